
-- fold_usage: adds the journals of days to their members' lists. Preceded by account.lua and usage.lua.
-- KEYS[1] shard  hash    generation, begun, ended
-- KEYS[2..]      for each of the accounts and days its usage (hash) and the journal of it (string)
-- ARGV    generation
-- Reply   {'refused'}: another state, or a torn one; {'folded', journals}
local fence = redis.call('HMGET', KEYS[1], 'generation', 'begun', 'ended')
if fence[1] ~= ARGV[1] or torn(fence[2], fence[3]) then
  return { 'refused' }
end
local days = {}
for i = 2, #KEYS, 2 do
  local journal = redis.call('GET', KEYS[i + 1])
  if journal then
    days[#days + 1] = usage.folded(usage.day(KEYS[i], KEYS[i + 1]), journal)
  end
end

-- Write. Nothing below can fail.
if #days > 0 then
  local begun = begin(KEYS[1])
  for _, day in ipairs(days) do
    usage.write(day)
  end
  redis.call('HSET', KEYS[1], 'ended', begun)
end
return { 'folded', text(#days) }
