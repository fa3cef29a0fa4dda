-- census: how some accounts of a shard stand. Writes nothing.
-- KEYS    for each account its hash
-- ARGV    the fields that are asked for
-- Reply   for each account the value of each field, '' where there is none
local reply = {}
for a = 1, #KEYS do
  -- A key of another type halts its shard elsewhere; here it is no account.
  local values = redis.pcall('HMGET', KEYS[a], unpack(ARGV))
  for f = 1, #ARGV do
    reply[#reply + 1] = not values.err and values[f] or ''
  end
end
return reply
