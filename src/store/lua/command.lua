-- command: one command to one account, at most once. The worker has decided what it changes.
-- KEYS[1] shard          hash    positions, totals, generation, catalogue
-- KEYS[2] notes          hash    records found dead
-- KEYS[3] outbox         stream
-- KEYS[4] account        hash
-- KEYS[5] commands_seen  set     identities of the account's commands, for ever
-- KEYS[6] due            zset    every open account, by the time at which it next changes by itself
-- ARGV    generation, catalogue version, catalogue hash, outbox bound, restamp tolerance in ms,
--         partition, from, to, account, version, member, command id (JSON text), command type,
--         change: 'refuse', reason, message (JSON text)
--              or 'put' | 'grant', config ('' = keep), cycle ('' = none is opened), next change in ms,
--                 n, then n x (kind, credit type, amount in thousandths or 'unlimited', grant line)
-- Reply   as apply; {'applied', outcome, outbox entries}
local BALANCE_MAX = 1e15

local function wrong_arity()
  error('command: wrong arity')
end
if #KEYS ~= 6 or #ARGV < 16 then
  wrong_arity()
end
local generation, catalogue_version, catalogue_hash = ARGV[1], ARGV[2], ARGV[3]
local outbox_max, restamp_tolerance = tonumber(ARGV[4]), tonumber(ARGV[5])
local partition, from, to = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local account, version, member = ARGV[9], ARGV[10], ARGV[11]
local command_id, command_type, change = ARGV[12], ARGV[13], ARGV[14]

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
local stored = redis.call('HMGET', KEYS[4], 'version', 'config', 'cycle', 'grants')
local duplicate = redis.call('SISMEMBER', KEYS[5], member) == 1
if (stored[1] or '0') ~= version and not duplicate then
  return { 'stale', '0', stored[1] or '0', stored[2] or '', stored[3] or '', stored[4] or '' }
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
local fields, lines, given = {}, {}, {}
local config, cycle, next_change
local offset = string.format('%.0f', to - 1)
if duplicate then
  outcome = 'duplicate'
elseif change == 'refuse' then
  outcome, why = 'refused', ',"reason":"' .. ARGV[15] .. '","message":' .. ARGV[16]
else
  config, cycle, next_change = ARGV[15], ARGV[16], ARGV[17]
  local n = tonumber(ARGV[18])
  if #ARGV ~= 18 + 4 * n then
    wrong_arity()
  end
  local granted, usable, charged = {}, {}, {}
  local order = {}
  for i = 1, n do
    local at = 18 + 4 * (i - 1)
    local kind, credit_type, amount, line = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    if not granted[credit_type] then
      local counter = redis.call('HMGET', KEYS[4], credit_type .. '.granted', credit_type .. '.charged',
        credit_type .. '.expired')
      granted[credit_type] = tonumber(counter[1] or '0') or counter[1]
      usable[credit_type] = -tonumber(counter[3] or '0')
      charged[credit_type] = tonumber(counter[2] or '0')
      order[#order + 1] = credit_type
    end
    local function remaining()
      local total = granted[credit_type]
      if total == 'unlimited' then
        return nil
      end
      return math.max(0, total + usable[credit_type] - charged[credit_type])
    end
    local before = remaining()
    if granted[credit_type] ~= 'unlimited' then
      if amount == 'unlimited' then
        granted[credit_type] = 'unlimited'
      else
        granted[credit_type] = granted[credit_type] + tonumber(amount)
        if granted[credit_type] > BALANCE_MAX then
          outcome = 'refused'
          why = ',"reason":"balance_too_large","message":"' .. credits(tonumber(amount)) .. ' credits of '
            .. credit_type .. ' would exceed the largest balance"'
          break
        end
      end
    end
    given[#given + 1] = line
    local amount_shown = credits(tonumber(amount))
    lines[#lines + 1] = '{"kind":"' .. kind .. '","credit_type":"' .. credit_type .. '","amount":' .. amount_shown
      .. ',"before":' .. credits(before) .. ',"after":' .. credits(remaining())
      .. ',"cause":{"command_id":' .. command_id .. '}}'
  end
  if outcome == 'refused' then
    lines = {}
  else
    for _, credit_type in ipairs(order) do
      local total = granted[credit_type]
      fields[#fields + 1] = credit_type .. '.granted'
      fields[#fields + 1] = total == 'unlimited' and total or string.format('%.0f', total)
    end
    if change == 'put' then
      fields[#fields + 1] = 'version'
      fields[#fields + 1] = string.format('%.0f', tonumber(version) + 1)
      fields[#fields + 1] = 'config'
      fields[#fields + 1] = config
    end
    if cycle ~= '' then
      fields[#fields + 1] = 'cycle'
      fields[#fields + 1] = cycle
    end
    if #given > 0 then
      local grants = table.concat(given, '\n')
      if stored[4] and stored[4] ~= '' then
        grants = stored[4] .. '\n' .. grants
      end
      fields[#fields + 1] = 'grants'
      fields[#fields + 1] = grants
    end
  end
end
redis.call('ZSCORE', KEYS[6], account) -- a key of another type stops here, before the first write

-- Write. Nothing below can fail.
redis.call('SADD', KEYS[5], member)
if outcome == 'applied' then
  redis.call('HSET', KEYS[4], unpack(fields))
  if cycle ~= '' then
    redis.call('ZADD', KEYS[6], next_change, account)
  end
end
for i, line in ipairs(lines) do
  redis.call('XADD', KEYS[3], '*', 'output', 'ledger', 'id', 'command/' .. offset .. '/' .. i,
    'type', 'credits.ledger.grant.v1', 'account', account, 'data', line)
end
redis.call('XADD', KEYS[3], '*', 'output', 'ledger', 'id', 'command/' .. offset, 'type', 'credits.ledger.command.v1',
  'account', account, 'data', '{"command_id":' .. command_id .. ',"command_type":"' .. command_type
    .. '","status":"' .. outcome .. '"' .. why .. '}')
local moved = { 'position:' .. partition, ARGV[8] }
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
redis.call('HSET', KEYS[1], unpack(moved))
return { 'applied', outcome, tostring(outbox_entries + #lines + 1) }
