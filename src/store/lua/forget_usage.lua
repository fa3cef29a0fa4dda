-- forget_usage: deletes usage of days that are past by the time for which it is kept.
-- KEYS[1] shard  hash    meter time
-- KEYS[2..]      for each of the accounts and days its usage (hash) and the journal of it (string)
-- ARGV    generation, how long a day is kept in ms, start of the last of the days in ms since 1970 (UTC),
--         first day that the shard may still have, or '' if more accounts are to come
-- Reply   {'refused'}: another state, or an older one in which the days are not past; {'forgotten', days deleted}
local DAY_MS = 86400000
local fence = redis.call('HMGET', KEYS[1], 'generation', 'meter_time_ms', 'usage_from')
-- A day of any zone has ended a day after it has in UTC.
local past = tonumber(ARGV[3]) + 2 * DAY_MS + tonumber(ARGV[2])
if fence[1] ~= ARGV[1] or tonumber(fence[2]) < past then
  return { 'refused' }
end

-- Write. Nothing below can fail.
local gone = 0
for i = 2, #KEYS, 2 do
  gone = gone + math.min(1, redis.call('UNLINK', KEYS[i], KEYS[i + 1]))
end
if ARGV[4] ~= '' and tonumber(ARGV[4]) > tonumber(fence[3] or '0') then
  redis.call('HSET', KEYS[1], 'usage_from', ARGV[4])
end
return { 'forgotten', string.format('%.0f', gone) }
