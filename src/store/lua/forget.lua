-- forget: deletes the identities of days that no event can ask for any more.
-- KEYS[1] shard  hash    the floor, and the largest restamp tolerance that was ever used
-- KEYS[2..]      for each account its hash, then for each of its days that go the sets and the charges
-- ARGV    generation, n accounts, then for each: its days as they were read, those that stay,
--         n days that go, then n x (day, number of its sets)
-- Reply   {'other_generation'} {'forgotten', accounts that changed}
local DAY_MS = 86400000
local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end

local generation = take()
local fence = redis.call('HMGET', KEYS[1], 'generation', 'floor_ms', 'restamp_tolerance_ms')
if fence[1] ~= generation then
  return { 'other_generation' }
end
local floor, tolerance = tonumber(fence[2]), tonumber(fence[3])
local key = 1
local going = {}
for _ = 1, tonumber(take()) do
  local read, stay = take(), take()
  key = key + 1
  local account = { key = KEYS[key], stay = stay, sets = {} }
  -- Another day may have begun since, or an older state with a lower floor may have come back.
  local goes = redis.call('HGET', account.key, 'days') == read
  for _ = 1, tonumber(take()) do
    local day = tonumber(take())
    goes = goes and (day + 1) * DAY_MS + tolerance <= floor
    -- Its sets, and what its events were charged.
    for _ = 1, tonumber(take()) + 1 do
      key = key + 1
      account.sets[#account.sets + 1] = KEYS[key]
    end
  end
  if goes and #account.sets > 0 then
    going[#going + 1] = account
  end
end
assert(at == #ARGV and key == #KEYS, 'forget: wrong arity')

-- Write. Nothing below can fail.
for _, account in ipairs(going) do
  redis.call('HSET', account.key, 'days', account.stay)
  for i = 1, #account.sets, 1000 do
    redis.call('UNLINK', unpack(account.sets, i, math.min(i + 999, #account.sets)))
  end
end
return { 'forgotten', tostring(#going) }
