-- look: a shard's hash and some of its accounts, all at one moment. Writes nothing.
-- KEYS[1] shard  hash    positions, totals, floor, generation, catalogue
-- KEYS[2..]      for each account its hash, then what is asked for: sets of identities, what members had charged in a cycle
--                (hashes), and days of usage (hash and journal of each)
-- ARGV    for each account how many sets, cycles and days are asked for
-- Reply   n, n x (field, value) of the shard, then for each account: n, n x (field, value), the size of each set, for each
--         cycle n, n x (field, value), and the days that have something: how many, then which of them, its journal, n,
--         n x (field, value) of each
local reply = {}

local function put(fields)
  reply[#reply + 1] = tostring(#fields / 2)
  for i = 1, #fields do
    reply[#reply + 1] = fields[i]
  end
end

put(redis.call('HGETALL', KEYS[1]))
local key = 1
for a = 1, #ARGV, 3 do
  key = key + 1
  put(redis.call('HGETALL', KEYS[key]))
  for _ = 1, tonumber(ARGV[a]) do
    key = key + 1
    reply[#reply + 1] = tostring(redis.call('SCARD', KEYS[key]))
  end
  for _ = 1, tonumber(ARGV[a + 1]) do
    key = key + 1
    put(redis.call('HGETALL', KEYS[key]))
  end
  local count = #reply + 1
  reply[count] = 0
  for day = 1, tonumber(ARGV[a + 2]) do
    key = key + 2
    local fields, journal = redis.call('HGETALL', KEYS[key - 1]), redis.call('GET', KEYS[key]) or ''
    if #fields > 0 or #journal > 0 then
      reply[count] = reply[count] + 1
      reply[#reply + 1], reply[#reply + 2] = tostring(day), journal
      put(fields)
    end
  end
  reply[count] = tostring(reply[count])
end
assert(key == #KEYS, 'look: wrong arity')
return reply
