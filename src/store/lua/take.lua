-- take: deletes what a relay has published from a shard's outbox, and gives it what comes next.
-- KEYS[1] outbox  stream
-- KEYS[2] lease   string  the relay that publishes this shard; expires, since two relays would only repeat
-- ARGV    relay, lease in ms, how many entries to give, '1' if the lease must be written (the relay asks for the
--         replicas of this very write, and so of all before it), n, then n x entry id that was published
-- Reply   {'held'} or {'taken', then for each entry: entry id, output, id, type, account, data}
local n = tonumber(ARGV[5])
assert(#KEYS == 2 and #ARGV == 5 + n, 'take: wrong arity')
local BYTES_MAX = 4194304 -- of one reply; the entry that passes it is still given
local relay, lease_ms, count, must_write = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

local holder = redis.call('GET', KEYS[2])
if holder and holder ~= relay then
  return { 'held' }
end
-- What was published goes first: it frees memory, and lets the lease be written where there was none left.
if n > 0 then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 6, 5 + n))
end
if holder then
  redis.call('PEXPIRE', KEYS[2], lease_ms)
elseif must_write then
  redis.call('SET', KEYS[2], relay, 'PX', lease_ms)
else
  redis.pcall('SET', KEYS[2], relay, 'PX', lease_ms) -- without it two relays may repeat, no more
end
local reply = { 'taken' }
local bytes = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', count)) do
  reply[#reply + 1] = entry[1]
  for field = 2, 10, 2 do
    reply[#reply + 1] = entry[2][field]
  end
  bytes = bytes + #entry[2][10]
  if bytes > BYTES_MAX then
    break
  end
end
return reply
