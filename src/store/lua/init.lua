-- init: makes a shard, or checks that it is the one that the worker believes.
-- KEYS[1] shard  hash
-- ARGV    schema, generation, shards, catalogue version, catalogue hash, first start ('1' or '0'),
--         n, then n x (partition, start)
-- Reply   {'ready' | 'emptied' | 'other_generation' | 'other_shards' | 'newer_schema' | 'other_catalogue', two details}
local n = tonumber(ARGV[7])
assert(#KEYS == 1 and #ARGV == 7 + 2 * n, 'init: wrong arity')
local schema, generation, shards = ARGV[1], ARGV[2], ARGV[3]
local catalogue_version, catalogue_hash, first_start = ARGV[4], ARGV[5], ARGV[6]

local stored = redis.call('HMGET', KEYS[1], 'schema', 'generation', 'shards', 'catalogue_version', 'catalogue_hash')
if not stored[2] then
  if first_start ~= '1' then
    return { 'emptied', '', '' }
  end
  local fields = {
    'schema', schema, 'generation', generation, 'shards', shards,
    'catalogue_version', catalogue_version, 'catalogue_hash', catalogue_hash,
    'meter_time_ms', '0', 'floor_ms', '0', 'restamp_tolerance_ms', '0',
  }
  for i = 1, n do
    fields[#fields + 1] = 'position:' .. ARGV[6 + 2 * i]
    fields[#fields + 1] = ARGV[7 + 2 * i]
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  return { 'ready', '', '' }
end

if tonumber(stored[1]) > tonumber(schema) then
  return { 'newer_schema', stored[1], '' }
end
if stored[2] ~= generation then
  return { 'other_generation', stored[2], '' }
end
if stored[3] ~= shards then
  return { 'other_shards', stored[3], '' }
end
if tonumber(catalogue_version) > tonumber(stored[4]) then
  redis.call('HSET', KEYS[1], 'catalogue_version', catalogue_version, 'catalogue_hash', catalogue_hash)
  return { 'ready', '', '' }
end
if stored[4] ~= catalogue_version or stored[5] ~= catalogue_hash then
  return { 'other_catalogue', stored[4], stored[5] }
end
return { 'ready', '', '' }
