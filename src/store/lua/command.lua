-- command: one command to one account, at most once. The worker has decided what it changes.
-- KEYS[1] shard          hash    positions, totals, generation, catalogue
-- KEYS[2] notes          hash    records found dead
-- KEYS[3] outbox         stream
-- KEYS[4] account        hash
-- KEYS[5] commands_seen  set     identities of the commands that were applied to the account, for ever
-- KEYS[6] due            zset    every open account, by the time at which it next changes by itself
-- ARGV    generation, catalogue version, catalogue hash, outbox bound, restamp tolerance in ms,
--         partition, from, to, anchor and time reached of the record, account, version, member, command id (JSON text), command type,
--         '1' if its answer was published before, change: 'refuse', reason, message (JSON text)
--              or 'put' | 'grant', next change in ms ('' = no cycle is opened),
--                 n, then n x (field, value) to set, n, then n x field to clear,
--                 n, then n x (kind, credit type, amount in thousandths or 'unlimited', own field or '', its value)
-- Reply   as apply; {'applied', outcome, outbox entries}
local BALANCE_MAX = 1e15

local function wrong_arity()
  error('command: wrong arity')
end
if #KEYS ~= 6 or #ARGV < 19 then
  wrong_arity()
end
local generation, catalogue_version, catalogue_hash = ARGV[1], ARGV[2], ARGV[3]
local outbox_max, restamp_tolerance = tonumber(ARGV[4]), tonumber(ARGV[5])
local partition, from, to = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
assert(from < to, 'command: a range goes back')
local anchor, reached, account, version, member = ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local command_id, command_type, told, change = ARGV[14], ARGV[15], ARGV[16] == '1', ARGV[17]

-- Amounts in credits, as the ledger prints them.
local function credits(thousandths)
  if not thousandths then
    return 'null'
  end
  local whole, fraction = math.floor(thousandths / 1000), thousandths % 1000
  local text = string.format('%.0f', whole)
  if fraction == 0 then
    return text
  end
  return text .. '.' .. string.gsub(string.format('%03d', fraction), '0+$', '')
end

-- Read and check.
local outcomes = { 'duplicate', 'refused', 'applied' }
local fence = redis.call('HMGET', KEYS[1], 'generation', 'catalogue_version', 'catalogue_hash',
  'restamp_tolerance_ms', 'position:' .. partition, 'total:' .. partition .. ':duplicate',
  'total:' .. partition .. ':refused', 'total:' .. partition .. ':applied')
if fence[1] ~= generation then
  return { 'other_generation', fence[1] or '' }
end
local position = tonumber(fence[5] or '0')
if position ~= from then
  if position >= to then
    return { 'done_before' }
  end
  return { 'other_position', fence[5] or '0' }
end
if fence[2] ~= catalogue_version or fence[3] ~= catalogue_hash then
  return { 'other_catalogue', fence[2], fence[3] }
end
local stored_version = redis.call('HGET', KEYS[4], 'version') or '0'
local duplicate = redis.call('SISMEMBER', KEYS[5], member) == 1
if stored_version ~= version and not duplicate then
  local shown = redis.call('HGETALL', KEYS[4])
  local reply = { 'stale', '0', tostring(#shown / 2) }
  for i = 1, #shown do
    reply[3 + i] = shown[i]
  end
  return reply
end
if stored_version == '0' and redis.call('ZSCORE', KEYS[6], account) then
  return { 'account_lost', account }
end
local notes = redis.call('HGETALL', KEYS[2])
local dead = { 'dead' }
for i = 1, #notes, 2 do
  local noted_partition, offset = string.match(notes[i], '^(.*)@(%d+)$')
  offset = tonumber(offset)
  if noted_partition == partition and from <= offset and offset < to then
    dead[#dead + 1] = notes[i]
    dead[#dead + 1] = notes[i + 1]
  end
end
if #dead > 1 then
  return dead
end
local outbox_entries = redis.call('XLEN', KEYS[3])
if outbox_entries >= outbox_max then
  return { 'outbox_full', tostring(outbox_entries) }
end

-- Decide.
local outcome, why = 'applied', ''
local next_change = ''
local fields, cleared, lines = {}, {}, {}
local offset = string.format('%.0f', to - 1)
if duplicate then
  outcome = 'duplicate'
elseif change == 'refuse' then
  outcome, why = 'refused', ',"reason":"' .. ARGV[18] .. '","message":' .. ARGV[19]
else
  local at = 18
  local function take()
    at = at + 1
    return ARGV[at]
  end
  next_change = ARGV[18]
  local opens = next_change ~= ''
  local set = {}
  for i = 1, 2 * tonumber(take()) do
    set[i] = take()
  end
  for i = 1, tonumber(take()) do
    cleared[i] = take()
  end
  -- By credit type: what is granted, what of it the plan and the add-ons gave, what is charged and expired.
  local counters, order, own = {}, {}, {}
  for i = 1, tonumber(take()) do
    local kind, credit_type, amount, own_field, own_value = take(), take(), take(), take(), take()
    local c = counters[credit_type]
    if not c then
      local stored = redis.call('HMGET', KEYS[4], credit_type .. '.granted', credit_type .. '.plan',
        credit_type .. '.addon', credit_type .. '.charged', credit_type .. '.expired')
      c = {
        granted = stored[1] or '0', plan = stored[2], addon = stored[3],
        charged = tonumber(stored[4] or '0'), expired = tonumber(stored[5] or '0'),
      }
      counters[credit_type] = c
      order[#order + 1] = credit_type
    end
    local function sum(before)
      if before == 'unlimited' or amount == 'unlimited' then
        return 'unlimited'
      end
      return string.format('%.0f', tonumber(before or '0') + tonumber(amount))
    end
    local function remaining()
      local granted = tonumber(c.granted)
      return granted and math.max(0, granted - c.expired - c.charged)
    end
    local before = remaining()
    c.granted = sum(c.granted)
    if own_field ~= '' then
      local n = #own
      own[n + 1], own[n + 2] = own_field, own_value
    else
      c[kind] = sum(c[kind])
    end
    if (tonumber(c.granted) or 0) > BALANCE_MAX then
      outcome = 'refused'
      why = ',"reason":"balance_too_large","message":"' .. credits(tonumber(amount)) .. ' credits of '
        .. credit_type .. ' would exceed the largest balance"'
      break
    end
    lines[#lines + 1] = '{"kind":"' .. kind .. '","credit_type":"' .. credit_type .. '","amount":'
      .. credits(tonumber(amount)) .. ',"before":' .. credits(before) .. ',"after":' .. credits(remaining())
      .. ',"cause":{"command_id":' .. command_id .. '}}'
  end
  if outcome == 'refused' then
    lines = {}
  else
    if at ~= #ARGV then
      wrong_arity()
    end
    local function put(name, value)
      local n = #fields
      fields[n + 1], fields[n + 2] = name, value
    end
    -- What every call reads comes first: a packed hash is searched from its start.
    if change == 'put' then
      put('version', string.format('%.0f', tonumber(version) + 1))
    end
    if opens then
      put('days', '')
    end
    for _, credit_type in ipairs(order) do
      put(credit_type .. '.granted', counters[credit_type].granted)
      if opens then
        put(credit_type .. '.charged', '0')
      end
    end
    for _, credit_type in ipairs(order) do
      for _, kind in ipairs({ 'plan', 'addon' }) do
        if counters[credit_type][kind] then
          put(credit_type .. '.' .. kind, counters[credit_type][kind])
        end
      end
    end
    for _, list in ipairs({ own, set }) do
      for i = 1, #list, 2 do
        put(list[i], list[i + 1])
      end
    end
  end
end

-- Where the shard is afterwards.
local moved = { 'position:' .. partition, ARGV[8] }
if anchor ~= '' then
  moved[3], moved[4], moved[5], moved[6] = 'anchor:' .. partition, anchor, 'reached:' .. partition, reached
end
for i, name in ipairs(outcomes) do
  if name == outcome then
    moved[#moved + 1] = 'total:' .. partition .. ':' .. name
    moved[#moved + 1] = string.format('%.0f', tonumber(fence[5 + i] or '0') + 1)
  end
end
if restamp_tolerance > tonumber(fence[4]) then
  moved[#moved + 1] = 'restamp_tolerance_ms'
  moved[#moved + 1] = ARGV[5]
end

-- Write. Nothing below can fail.
if outcome == 'applied' then
  redis.call('SADD', KEYS[5], member)
  redis.call('HSET', KEYS[4], unpack(fields))
  if #cleared > 0 then
    redis.call('HDEL', KEYS[4], unpack(cleared))
  end
  if next_change ~= '' then
    redis.call('ZADD', KEYS[6], next_change, account)
  end
end
if told then
  lines = {}
end
for i, line in ipairs(lines) do
  redis.call('XADD', KEYS[3], '*', 'output', 'ledger', 'id', 'command/' .. offset .. '/' .. i,
    'type', 'credits.ledger.grant.v1', 'account', account, 'data', line)
end
if not told then
  redis.call('XADD', KEYS[3], '*', 'output', 'ledger', 'id', 'command/' .. offset, 'type', 'credits.ledger.command.v1',
    'account', account, 'data', '{"command_id":' .. command_id .. ',"command_type":"' .. command_type
      .. '","status":"' .. outcome .. '"' .. why .. '}')
end
redis.call('HSET', KEYS[1], unpack(moved))
return { 'applied', outcome, tostring(outbox_entries + #lines + (told and 0 or 1)) }
