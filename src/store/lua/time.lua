-- time: moves a shard's meter time and its floor, never back.
-- KEYS[1] shard  hash
-- ARGV    generation, time of a tick in ms ('' = the smallest that the partitions without an end have reached),
--         late_after in ms, n, then n x (partition, end: its position must be there; '' = its own time counts)
-- Reply   {'other_generation'} {'held', first partition that is not there} {'at', meter time, floor}
local n = tonumber(ARGV[4])
assert(#KEYS == 1 and #ARGV == 4 + 2 * n, 'time: wrong arity')
local generation, tick, late_after = ARGV[1], ARGV[2], tonumber(ARGV[3])

local fields = { 'generation', 'meter_time_ms', 'floor_ms' }
for i = 1, n do
  local partition, last = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  fields[3 + i] = (last == '' and 'reached:' or 'position:') .. partition
end
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
if stored[1] ~= generation then
  return { 'other_generation' }
end
local reached = tonumber(tick)
for i = 1, n do
  local last = ARGV[4 + 2 * i]
  local there = tonumber(stored[3 + i])
  if last == '' then
    if not there then
      return { 'held', ARGV[3 + 2 * i] }
    end
    reached = math.min(reached or there, there)
  elseif (there or 0) < tonumber(last) then
    return { 'held', ARGV[3 + 2 * i] }
  end
end
local meter_time = math.max(tonumber(stored[2]), reached or 0)
local floor = math.max(tonumber(stored[3]), meter_time - late_after)
local meter_time_text, floor_text = string.format('%.0f', meter_time), string.format('%.0f', floor)
redis.call('HSET', KEYS[1], 'meter_time_ms', meter_time_text, 'floor_ms', floor_text)
return { 'at', meter_time_text, floor_text }
