-- look: a shard's hash and some of its accounts, all at one moment. Writes nothing.
-- KEYS[1] shard  hash    positions, totals, floor, generation, catalogue
-- KEYS[2..]      for each account its hash, then the sets of identities that are asked for
-- ARGV    for each account how many sets are asked for
-- Reply   n, n x (field, value) of the shard, then for each account: n, n x (field, value), the size of each set
local reply = {}

local function put(fields)
  reply[#reply + 1] = tostring(#fields / 2)
  for i = 1, #fields do
    reply[#reply + 1] = fields[i]
  end
end

put(redis.call('HGETALL', KEYS[1]))
local key = 1
for a = 1, #ARGV do
  key = key + 1
  put(redis.call('HGETALL', KEYS[key]))
  for _ = 1, tonumber(ARGV[a]) do
    key = key + 1
    reply[#reply + 1] = tostring(redis.call('SCARD', KEYS[key]))
  end
end
assert(key == #KEYS, 'look: wrong arity')
return reply
