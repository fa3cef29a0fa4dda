-- command: one command to one account, at most once. The worker has decided what it changes. Preceded by account.lua.
-- KEYS[1] shard          hash    positions, totals, generation, catalogue
-- KEYS[2] notes          hash    records found dead
-- KEYS[3] outbox         stream
-- KEYS[4] account        hash
-- KEYS[5] commands_seen  set     identities of the commands that were applied to the account, for ever, but for the first
--                         few, which are in the account's `ids`: most accounts have no more, and a set of one costs a lot
-- KEYS[6] due            zset    every account, by the time at which it next changes by itself
-- ARGV    generation, catalogue version, catalogue hash, outbox bound, restamp tolerance in ms,
--         partition, from, to, anchor and time reached of the record, account, version, member, command id (JSON text),
--         command type, '1' if its answer was published before, levels and credit types (in order, with commas),
--         others: n, then n x (partition, position that the worker knows),
--         change: 'refuse', reason, message (JSON text)
--              or 'put', '1' if a cycle opens and then its number, from, to; n, then n x (field, value) to set,
--                 n, then n x field to clear, n, then n x (credit type, kind, amount in thousandths or 'unlimited')
--              or 'grant', the lot as it is stored, the command's id
--              or 'void', what created the lot
--              or 'adjust', credit type, amount, '1' if it adds, reason (JSON text)
--              or 'close', at, n, then n x field to clear
-- Reply   as apply; {'applied', outcome, outbox entries}
local IDS_MAX = 3 -- 64-bit numbers that fit into a packed field

local function wrong_arity()
  error('command: wrong arity')
end
if #KEYS ~= 6 or #ARGV < 20 then
  wrong_arity()
end
local generation, catalogue_version, catalogue_hash = ARGV[1], ARGV[2], ARGV[3]
local outbox_max, restamp_tolerance = tonumber(ARGV[4]), tonumber(ARGV[5])
local partition, from, to = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
assert(from < to, 'command: a range goes back')
local anchor, reached, version, member = ARGV[9], ARGV[10], ARGV[12], ARGV[13]
local command_id, command_type, told = ARGV[14], ARGV[15], ARGV[16] == '1'
local levels, types = codes_from(ARGV[17]), codes_from(ARGV[18])

-- Read and check.
local outcomes = { 'duplicate', 'refused', 'applied' }
local fence = redis.call('HMGET', KEYS[1], 'generation', 'catalogue_version', 'catalogue_hash',
  'restamp_tolerance_ms', 'position:' .. partition, 'total:' .. partition .. ':duplicate',
  'total:' .. partition .. ':refused', 'total:' .. partition .. ':applied', 'begun', 'ended')
if fence[1] ~= generation then
  return { 'other_generation', fence[1] or '' }
end
if torn(fence[9], fence[10]) then
  return torn(fence[9], fence[10])
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
at = 18 -- those before it are taken by name
if fell_back(KEYS[1]) then
  return { 'fell_back' }
end
local change = take()
local account = read_account(KEYS[4], ARGV[11])
local ids = words(account.fields.ids or '')
local duplicate = redis.call('SISMEMBER', KEYS[5], member) == 1
for _, id in ipairs(ids) do
  duplicate = duplicate or id == member
end
if account.version ~= tonumber(version) and not duplicate then
  local reply = { 'stale' }
  show(reply, 0, shown_of(account))
  return reply
end
-- Asked in any case: what is no sorted set is found out before anything is written.
local is_listed = redis.call('ZSCORE', KEYS[6], account.name)
if is_listed and not account.exists then
  return { 'account_lost', account.name }
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
local offset = text(to - 1)
local entries = {}
local function line(event_type, kind, credit_type, amount, before, after, more)
  entries[#entries + 1] = ledger_line(account, event_type, 'command/' .. offset .. '/' .. text(#entries + 1), kind,
    credit_type, amount, before, after, '"command_id":' .. command_id .. more)
end

local function too_large(credit_type, amount)
  return 'balance_too_large', '"' .. (amount and credits(amount) or 'unlimited') .. ' credits of ' .. credit_type
    .. ' would exceed the largest balance"'
end

-- Each changes the account in memory, or gives the reason and the message of a refusal.
local CHANGES = {}
function CHANGES.refuse()
  return take(), take()
end
function CHANGES.put()
  local opens = take() == '1'
  if opens then
    account.number, account.from, account.to = take_number(), take_number(), take_number()
    account.cleared.since = true
  end
  for _ = 1, take_number() do
    local field = take()
    account.set[field] = take()
  end
  for _ = 1, take_number() do
    account.cleared[take()] = true
  end
  for _ = 1, take_number() do
    local credit_type, kind, amount = take(), take(), tonumber(take())
    settle(account, credit_type)
    local granted, before, after = grant(account, credit_type, kind, amount)
    if not granted then
      return too_large(credit_type, amount)
    end
    line('credits.ledger.grant.v1', kind, credit_type, amount, before, after, '')
  end
end
function CHANGES.grant()
  local lot = lot_from(take())
  lot.id = take()
  if lot.begun then
    settle(account, lot.credit_type)
    local granted, before, after = grant(account, lot.credit_type, lot.kind, lot.left)
    if not granted then
      return too_large(lot.credit_type, lot.left)
    end
    line('credits.ledger.grant.v1', lot.kind, lot.credit_type, lot.left, before, after, '')
  end
  account.lots[to - 1] = lot
end
function CHANGES.void()
  local created = take_number()
  local lot = account.lots[created]
  settle(account, lot.credit_type)
  account.lots[created] = nil
  if lot.begun then
    local c, pool = counter_of(account, lot.credit_type), pool_of(account, lot.credit_type)
    local before = remaining(c)
    c.granted = c.granted and c.granted - lot.left
    pool.granted[lot.kind] = pool.granted[lot.kind] - lot.left
    line('credits.ledger.void.v1', lot.kind, lot.credit_type, lot.left, before, remaining(c), '')
  end
end
function CHANGES.adjust()
  local credit_type, amount, adds, reason = take(), take_number(), take() == '1', take()
  settle(account, credit_type)
  local before, after
  if adds then
    local granted
    granted, before, after = grant(account, credit_type, 'adjusted', amount)
    if not granted then
      return too_large(credit_type, amount)
    end
  else
    local c = counter_of(account, credit_type)
    before = remaining(c)
    if c.charged + amount > BALANCE_MAX then
      return too_large(credit_type, -amount)
    end
    c.charged = c.charged + amount
    after = remaining(c)
  end
  line('credits.ledger.adjustment.v1', 'adjusted', credit_type, adds and amount or -amount, before, after,
    ',"reason":' .. reason)
end
function CHANGES.close()
  account.life, account.to = 'closing', take_number()
  for _ = 1, take_number() do
    account.cleared[take()] = true
  end
end

local outcome, why = 'applied', ''
if duplicate then
  outcome = 'duplicate'
else
  local before = remaining_of(account)
  local reason, message = CHANGES[change]()
  if reason then
    outcome, why, entries = 'refused', ',"reason":"' .. reason .. '","message":' .. message, {}
  elseif at ~= #ARGV then
    wrong_arity()
  end
  account.version = account.version + 1
  if #ids < IDS_MAX then
    ids[#ids + 1] = member
    account.set.ids = table.concat(ids, ' ')
  end
  if not reason and account.life == 'open' then
    judge_account(entries, account, types, levels, before)
  end
end
if told then
  -- An alert that comes again bears the same id, and one that was never published would be lost.
  local alerts = {}
  for _, entry in ipairs(entries) do
    if entry[1] == 'alerts' then
      alerts[#alerts + 1] = entry
    end
  end
  entries = alerts
else
  entries[#entries + 1] = { 'ledger', 'command/' .. offset, 'credits.ledger.command.v1', account.name,
    '{"command_id":' .. command_id .. ',"command_type":"' .. command_type .. '","status":"' .. outcome .. '"' .. why .. '}' }
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
local begun = begin(KEYS[1])
if outcome == 'applied' then
  if not account.set.ids then
    redis.call('SADD', KEYS[5], member)
  end
  write_account(account, KEYS[6])
end
for _, entry in ipairs(entries) do
  publish(KEYS[3], entry)
end
redis.call('HSET', KEYS[1], 'ended', begun, unpack(moved))
return { 'applied', outcome, text(outbox_entries + #entries) }
