-- init: makes a shard, or checks that it is the one that the worker believes.
-- KEYS[1] shard      hash
-- KEYS[2] catalogue  string  what the catalogue in force was read from
-- ARGV    schema, generation, shards, catalogue version, catalogue hash, catalogue text, first start ('1' or '0'),
--         the version and hash of the catalogue that this one was compared with and only adds to ('' each: none),
--         the first time in ms at which the two differ ('': they price the same),
--         n, then n x (partition, start)
-- Reply   {'ready' | 'emptied' | 'other_generation' | 'other_shards' | 'other_schema' | 'other_catalogue' |
--         'older_catalogue' | 'priced_up_to', three details}
local n = tonumber(ARGV[11])
assert(#KEYS == 2 and #ARGV == 11 + 2 * n, 'init: wrong arity')
local schema, generation, shards = ARGV[1], ARGV[2], ARGV[3]
local catalogue_version, catalogue_hash, catalogue_text = ARGV[4], ARGV[5], ARGV[6]
local first_start, grown_version, grown_hash, grown_starts_ms = ARGV[7], ARGV[8], ARGV[9], ARGV[10]

-- The time up to which something may have been priced, an event or a renewal by meter time; nil: nothing was.
local function reached_ms()
  local fields, latest = redis.call('HGETALL', KEYS[1]), nil
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 8) == 'reached:' or fields[i] == 'meter_time_ms' then
      local ms = tonumber(fields[i + 1])
      if (not latest or ms > latest) and (ms > 0 or fields[i] ~= 'meter_time_ms') then
        latest = ms
      end
    end
  end
  return latest
end

local stored = redis.call('HMGET', KEYS[1], 'schema', 'generation', 'shards', 'catalogue_version', 'catalogue_hash')
local stored_text = redis.call('GET', KEYS[2])
if not stored[2] then
  if first_start ~= '1' then
    return { 'emptied', '', '', '' }
  end
  local fields = {
    'schema', schema, 'generation', generation, 'shards', shards,
    'catalogue_version', catalogue_version, 'catalogue_hash', catalogue_hash,
    'meter_time_ms', '0', 'floor_ms', '0', 'restamp_tolerance_ms', '0',
  }
  for i = 1, n do
    fields[#fields + 1] = 'position:' .. ARGV[10 + 2 * i]
    fields[#fields + 1] = ARGV[11 + 2 * i]
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('SET', KEYS[2], catalogue_text)
  return { 'ready', '', '', '' }
end

if stored[1] ~= schema then
  return { 'other_schema', stored[1], '', '' }
end
if stored[2] ~= generation then
  return { 'other_generation', stored[2], '', '' }
end
if stored[3] ~= shards then
  return { 'other_shards', stored[3], '', '' }
end
if tonumber(catalogue_version) > tonumber(stored[4]) then
  if grown_version ~= stored[4] or grown_hash ~= stored[5] then
    return { 'older_catalogue', stored[4], stored[5], stored_text or '' }
  end
  local priced_up_to_ms = reached_ms()
  if grown_starts_ms ~= '' and priced_up_to_ms and tonumber(grown_starts_ms) <= priced_up_to_ms then
    return { 'priced_up_to', string.format('%.0f', priced_up_to_ms), '', '' }
  end
  redis.call('HSET', KEYS[1], 'catalogue_version', catalogue_version, 'catalogue_hash', catalogue_hash)
  redis.call('SET', KEYS[2], catalogue_text)
  return { 'ready', '', '', '' }
end
if stored[4] ~= catalogue_version or stored[5] ~= catalogue_hash then
  return { 'other_catalogue', stored[4], stored[5], '' }
end
if not stored_text then
  redis.call('SET', KEYS[2], catalogue_text)
end
return { 'ready', '', '', '' }
