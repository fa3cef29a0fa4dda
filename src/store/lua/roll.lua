-- roll: what time does to accounts: lots begin and end, cycles close and open, statements are restated. Each account
-- takes its steps only if it is at the version that the worker saw, so that each cycle is closed once, in order.
-- Preceded by account.lua.
-- KEYS[1] shard   hash    generation, catalogue, meter time, floor
-- KEYS[2] outbox  stream
-- KEYS[3] due     zset    every account, by the time at which it next changes by itself
-- KEYS[4..] accounts  hash, each followed by the sets of marks and the hashes of members' use that it forgets
-- ARGV    generation, catalogue version, catalogue hash, others: n, then n x (partition, position that the worker knows),
--         commands that must be applied first ('' = any), meter time by which the steps were found ('' = usage asked),
--         outbox bound, late_after in ms, types: n, then n x name in order,
--         accounts: n, then n x (name, version, levels, steps: n, then n x
--           ('lots', at) | ('restate', number, cycle as JSON)
--           | ('forget', number, cycle as JSON, layout of its marks, n sets of them)
--           | ('renew', number, cycle as JSON, its plan, its overage, n, n x (type, most that is carried over),
--              '1' if another opens, and then: number, from, to, cycle as JSON, plan, levels, n, n x (type, kind, amount),
--              n, n x (field, value) to set, n, n x field to clear))
-- Reply   as apply: {'other_generation', …} {'torn', …} {'other_catalogue', …} {'unknown', position of the commands}
--         {'fell_back'}: what the worker knows to be applied, or was when the steps were found, is gone
--         {'outbox_full', entries}
--         {'stale', then for each account: index, n, n x (field, value)}: as it is afterwards

-- Read and check.
local generation, catalogue_version, catalogue_hash = take(), take(), take()
local fence = redis.call('HMGET', KEYS[1], 'generation', 'catalogue_version', 'catalogue_hash', 'meter_time_ms', 'floor_ms',
  'position:commands:0', 'begun', 'ended', 'rebuilt')
if fence[1] ~= generation then
  return { 'other_generation', fence[1] or '' }
end
if torn(fence[7], fence[8]) then
  return torn(fence[7], fence[8])
end
if fence[2] ~= catalogue_version or fence[3] ~= catalogue_hash then
  return { 'other_catalogue', fence[2], fence[3] }
end
if fell_back(KEYS[1]) then
  return { 'fell_back' }
end
local commands_first, found_at, outbox_max, late_after = take(), take(), take_number(), take_number()
if commands_first ~= '' and tonumber(fence[6] or '0') < tonumber(commands_first) then
  return { 'unknown', fence[6] or '0' }
end
if found_at ~= '' and tonumber(fence[4]) < tonumber(found_at) then
  return { 'fell_back' }
end
local outbox_entries = redis.call('XLEN', KEYS[2])
if outbox_entries >= outbox_max then
  return { 'outbox_full', text(outbox_entries) }
end
redis.call('ZCARD', KEYS[3]) -- an error if it is no sorted set: it is written last, and must not fail then
local meter_time, floor, rebuilt = tonumber(fence[4]), tonumber(fence[5]), tonumber(fence[9] or '0')
local types, is_type = {}, {}
for i = 1, take_number() do
  types[i] = take()
  is_type[types[i]] = true
end

-- Decide.
local entries = {}
local function tell(output, id, event_type, account, data)
  entries[#entries + 1] = { output, id, event_type, account.name, data }
end

local function expire(account, credit_type, kind, amount, id)
  local c = counter_of(account, credit_type)
  if amount == 0 or not c.granted then
    return
  end
  local before = remaining(c)
  c.expired = c.expired + amount
  entries[#entries + 1] = ledger_line(account, 'credits.ledger.expiry.v1', id, kind, credit_type, amount, before,
    remaining(c), '"cycle":' .. text(account.number))
end

-- Ends lots of a type; gives what was left of them.
local function end_lots(account, credit_type, ends)
  local left = 0
  for _, created in ipairs(lots_in_order(account)) do
    local lot = account.lots[created]
    if lot.credit_type == credit_type and lot.begun and ends(lot) then
      account.lots[created] = nil
      expire(account, credit_type, lot.kind, lot.left, 'expired/' .. text(created))
      left = left + lot.left
    end
  end
  return left
end

local function give(account, credit_type, kind, amount, id, cause)
  amount = fitting(account, credit_type, amount)
  local _, before, after = grant(account, credit_type, kind, amount)
  entries[#entries + 1] = ledger_line(account, 'credits.ledger.grant.v1', id, kind, credit_type, amount, before, after,
    cause)
end

-- A text as JSON: command ids are stored as they were written.
local ESCAPES = { ['"'] = '\\"', ['\\'] = '\\\\', ['\b'] = '\\b', ['\f'] = '\\f', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t' }
local function json_text(written)
  return '"' .. string.gsub(written, '[%z\1-\31"\\]', function(char)
    return ESCAPES[char] or string.format('\\u%04x', string.byte(char))
  end) .. '"'
end

local function begin_lots(account, time)
  for _, created in ipairs(lots_in_order(account)) do
    local lot = account.lots[created]
    if not lot.begun and lot.effective <= time then
      lot.begun = true
      lot.left = fitting(account, lot.credit_type, lot.left)
      give(account, lot.credit_type, lot.kind, lot.left, 'begun/' .. text(created), '"command_id":' .. json_text(lot.id))
    end
  end
end

local function overage_of(c)
  local granted = total(c.granted)
  return granted and c.charged - math.min(c.charged, granted - c.expired - c.moved) or 0
end

-- What a statement's number counts from, see ledger/closed.rs.
local function base_of(closed)
  return closed.to <= rebuilt * 1000 and rebuilt or 0
end

local function state(account, number, cycle_text, closed)
  closed.restate, closed.stated, closed.told = false, meter_time, closed.revision + base_of(closed)
  local balances = {}
  for _, credit_type in ipairs(types) do
    local c = closed.counters[credit_type]
    if c then
      local by = {}
      for i, kind in ipairs(KINDS) do
        by[i] = '"' .. kind .. '":' .. credits(c.granted[kind])
      end
      local granted, overage = total(c.granted), overage_of(c)
      balances[#balances + 1] = '"' .. credit_type .. '":{"granted":' .. credits(granted) .. ',"granted_by":{'
        .. table.concat(by, ',') .. '},"used":' .. credits(c.charged - overage) .. ',"expired":' .. credits(c.expired)
        .. ',"remaining":' .. (granted and credits(c.moved) or 'null') .. ',"overage":' .. credits(overage)
        .. ',"denied":' .. text(c.denied) .. '}'
    end
  end
  tell('cycles', 'closed/' .. account.name .. '/' .. text(number) .. '/' .. text(closed.told),
    'credits.cycle.closed.v1', account, '{"cycle":' .. cycle_text .. ',"plan":"' .. closed.plan .. '","revision":'
      .. text(closed.told) .. ',"balances":{' .. table.concat(balances, ',') .. '}}')
end

local function close(account, cycle_text, plan, overage, carry_over, opens)
  local closed = {
    from = account.from, to = account.to, plan = plan, overage = overage, revision = 1,
    keep = account.to + late_after, counters = {},
  }
  local function ends(lot)
    return not opens or not lot.expires or lot.expires <= account.to
  end
  for _, credit_type in ipairs(types) do
    settle(account, credit_type)
    local spare = end_lots(account, credit_type, ends)
    local pool = account.pools[credit_type] or { granted = new_granted(), left = 0 }
    local unlimited = not total(pool.granted)
    local carried = (opens and not unlimited) and math.min(pool.left, carry_over[credit_type] or 0) or 0
    expire(account, credit_type, 'plan', pool.left - carried,
      'expired/' .. account.name .. '/' .. text(account.number) .. '/' .. credit_type)
    spare = spare + pool.left - carried
    -- The next cycle begins with what goes on.
    local granted = new_granted()
    granted.carried = carried
    local moved = carried
    for _, lot in pairs(account.lots) do
      if lot.begun and lot.credit_type == credit_type then
        granted[lot.kind] = granted[lot.kind] + lot.left
        moved = moved + lot.left
      end
    end
    local c = account.counters[credit_type] or { charged = 0, expired = 0 }
    local counted = {
      granted = pool.granted, charged = c.charged, expired = c.expired, moved = unlimited and 0 or moved,
      spare = unlimited and 0 or spare, denied = account.denied[credit_type] or 0,
    }
    local nothing = granted_text(counted.granted) == '0 0 0 0 0 0' and counted.charged == 0 and counted.expired == 0
      and counted.moved == 0 and counted.spare == 0 and counted.denied == 0
    if not nothing then
      closed.counters[credit_type] = counted
    end
    account.counters[credit_type], account.pools[credit_type] = nil, nil
    if moved > 0 then
      account.pools[credit_type] = { granted = granted, left = carried }
      account.counters[credit_type] = { granted = moved, charged = 0, expired = 0 }
    end
  end
  account.denied = {}
  state(account, account.number, cycle_text, closed)
  account.closed[account.number] = closed
end

local function open(account)
  local number = take_number()
  if not account.fields.since then
    account.set.since = account.set.since or text(account.from)
  end
  account.number, account.from, account.to = number, take_number(), take_number()
  local cycle_text, plan, levels = take(), take(), codes_from(take())
  for _ = 1, take_number() do
    local credit_type, kind, amount = take(), take(), tonumber(take())
    give(account, credit_type, kind, amount,
      'granted/' .. account.name .. '/' .. text(number) .. '/' .. credit_type .. '/' .. kind, '"cycle":' .. text(number))
  end
  for _ = 1, take_number() do
    local field = take()
    account.set[field], account.cleared[field] = take(), nil
  end
  for _ = 1, take_number() do
    local field = take()
    account.cleared[field], account.set[field] = true, nil
  end
  begin_lots(account, account.from)
  local granted = {}
  for _, credit_type in ipairs(types) do
    local c = account.counters[credit_type]
    if c then
      granted[#granted + 1] = '"' .. credit_type .. '":' .. credits(c.granted)
    end
  end
  tell('cycles', 'opened/' .. account.name .. '/' .. text(number), 'credits.cycle.opened.v1', account,
    '{"cycle":' .. cycle_text .. ',"plan":"' .. plan .. '","granted":{' .. table.concat(granted, ',') .. '}}')
  judge_account(entries, account, types, levels)
  account.levels = levels
end

-- Forgets a cycle's marks, if they are as the worker believes.
local key = 3
local function forget_marks(account, number, layout, sets)
  local once = account.once or account.fields.once or ''
  local name = ' ' .. text(number) .. ':'
  if layout == '' then
    return not string.find(once, name, 1, true)
  end
  local first, last = string.find(once .. ' ', name .. layout .. ' ', 1, true)
  if first then
    account.once = string.sub(once, 1, first - 1) .. string.sub(once, last)
    for _, set in ipairs(sets) do
      account.gone[#account.gone + 1] = set
    end
  end
  return first
end

-- Takes a step from the arguments.
local STEPS = {}
function STEPS.lots(account)
  local time, before = take_number(), remaining_of(account)
  for _, credit_type in ipairs(types) do
    settle(account, credit_type)
    end_lots(account, credit_type, function(lot)
      return lot.expires and lot.expires <= time
    end)
  end
  begin_lots(account, time)
  judge_account(entries, account, types, account.levels, before)
end
function STEPS.restate(account)
  local number, cycle_text = take_number(), take()
  local closed = account.closed[number]
  if closed and closed.restate and closed.stated + RESTATE_EVERY <= meter_time then
    -- An older program changes a cycle without counting, and does not keep what was told.
    if closed.told == 0 or closed.told >= closed.revision + base_of(closed) then
      closed.revision = closed.revision + 1
    end
    state(account, number, cycle_text, closed)
  end
end
function STEPS.forget(account)
  local number, cycle_text, layout, sets = take_number(), take(), take(), {}
  for s = 1, take_number() do
    key = key + 1
    sets[s] = KEYS[key]
  end
  key = key + 1
  local members = KEYS[key]
  local closed = account.closed[number]
  if closed and not closed.restate and closed.to <= floor and forget_marks(account, number, layout, sets) then
    -- What was told before the state was counted anew may have been less.
    if closed.told < base_of(closed) then
      state(account, number, cycle_text, closed)
    end
    account.closed[number] = nil
    for _, lot in pairs(account.lots) do
      lot.used[number] = nil
    end
    account.gone[#account.gone + 1] = members
  end
end
function STEPS.renew(account)
  local number, cycle_text, plan, overage = take_number(), take(), take(), take()
  assert(number == account.number, 'roll: another cycle is open')
  local carry_over = {}
  for _ = 1, take_number() do
    local credit_type = take()
    carry_over[credit_type] = take_number()
  end
  local opens = take() == '1'
  close(account, cycle_text, plan, overage, carry_over, opens)
  if opens then
    open(account)
  else
    -- Nothing is granted any more, so that no level holds: what was told of has an end.
    judge_account(entries, account, types, {})
    account.life, account.lots, account.alarms = 'closed', {}, {}
  end
end

-- Passes a step over: its account is not as the worker believed.
local SKIP = {}
local function skip(words_each)
  local count = take_number()
  at = at + count * words_each
end
function SKIP.lots()
  at = at + 1
end
function SKIP.restate()
  at = at + 2
end
function SKIP.forget()
  at = at + 3
  key = key + take_number() + 1
end
function SKIP.renew()
  at = at + 4
  skip(2)
  if take() == '1' then
    at = at + 6
    skip(3)
    skip(2)
    skip(1)
  end
end

local accounts = {}
for a = 1, take_number() do
  key = key + 1
  local account = read_account(KEYS[key], take())
  account.gone = {}
  for _, of_types in ipairs({ account.counters, account.pools }) do
    for credit_type in pairs(of_types) do
      assert(is_type[credit_type], 'roll: the account has a credit type that the catalogue lacks')
    end
  end
  local version = take_number()
  account.levels = codes_from(take())
  account.takes = account.exists and account.version == version
  for _ = 1, take_number() do
    local step = take()
    if account.takes then
      STEPS[step](account)
      account.version = account.version + 1
    else
      SKIP[step]()
    end
  end
  if account.once == '' then
    account.cleared.once = true
  else
    account.set.once = account.once
  end
  accounts[a] = account
end
assert(at == #ARGV and key == #KEYS, 'roll: wrong arity')

-- Write. Nothing below can fail: every key was read above as the type that it is written as.
local begun = begin(KEYS[1])
local reply = { 'stale' }
for a, account in ipairs(accounts) do
  show(reply, a - 1, account.takes and write_account(account, KEYS[3]) or shown_of(account))
  for first = 1, #account.gone, SLICE do
    redis.call('UNLINK', unpack(account.gone, first, math.min(first + SLICE - 1, #account.gone)))
  end
end
for _, entry in ipairs(entries) do
  publish(KEYS[2], entry)
end
redis.call('HSET', KEYS[1], 'ended', begun)
return reply
