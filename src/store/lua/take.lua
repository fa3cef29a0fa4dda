-- take: deletes what a relay has published from a shard's outbox, and gives it what comes next.
-- KEYS[1] outbox  stream
-- KEYS[2] lease   string  the relay that publishes this shard; expires, since two relays would only repeat
-- ARGV    relay, lease in ms, how many entries to give, n, then n x entry id that was published
-- Reply   {'held'} or {'taken', then for each entry: entry id, output, id, type, account, data}
local n = tonumber(ARGV[4])
assert(#KEYS == 2 and #ARGV == 4 + n, 'take: wrong arity')
local relay, lease_ms, count = ARGV[1], ARGV[2], ARGV[3]

local holder = redis.call('GET', KEYS[2])
if holder and holder ~= relay then
  return { 'held' }
end
local reply = { 'taken' }
local skipped = {}
for i = 5, 4 + n do
  skipped[ARGV[i]] = true
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', tonumber(count) + n)) do
  if not skipped[entry[1]] and (#reply - 1) / 6 < tonumber(count) then
    reply[#reply + 1] = entry[1]
    for field = 2, 10, 2 do
      reply[#reply + 1] = entry[2][field]
    end
  end
end

redis.call('SET', KEYS[2], relay, 'PX', lease_ms)
if n > 0 then
  redis.call('XDEL', KEYS[1], unpack(ARGV, 5, 4 + n))
end
return reply
