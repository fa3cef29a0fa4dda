-- An account in hand: read whole, changed in memory, written once. The first part of the scripts that change more of an
-- account than what was charged (command, roll, apply for late events). Mirrors ledger/grants.rs and alerts.rs, and what
-- closed.rs and command.rs store.
local BALANCE_MAX, NEVER, RESTATE_EVERY, PRIORITY_DEFAULT = 1e15, 9e15, 60000, 100
local KINDS = { 'plan', 'addon', 'carried', 'adjusted', 'topup', 'promo' }

-- The arguments, one after the other.
local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end
local function take_number()
  at = at + 1
  return tonumber(ARGV[at])
end

-- Whether a shard is behind a position that the worker knows: reads n, then n x (partition, position).
local function fell_back(shard)
  local fields, known = {}, {}
  for i = 1, take_number() do
    fields[i], known[i] = 'position:' .. take(), take_number()
  end
  local stored = fields[1] and redis.call('HMGET', shard, unpack(fields)) or {}
  for i = 1, #known do
    if tonumber(stored[i] or '0') < known[i] then
      return true
    end
  end
  return false
end

local function text(number)
  return string.format('%.0f', number)
end

-- Each of these, and fold_usage, counts its writes to a shard up first (`begun`) and sets `ended` to that count last. They differ if
-- Redis, when it loaded a torn append-only file, ran a part of what a script wrote: one adds, the other is set, so that
-- a whole transaction run without its end shows as soon as the next is run behind it.
local function torn(begun, ended)
  return begun ~= ended and { 'torn', begun or '0', ended or '0' }
end
local function begin(shard_key)
  return text(redis.call('HINCRBY', shard_key, 'begun', 1))
end

-- Amounts in credits, as the ledger prints them; nil is unlimited.
local function credits(thousandths)
  if not thousandths then
    return 'null'
  end
  local sign = thousandths < 0 and '-' or ''
  thousandths = math.abs(thousandths)
  local whole, fraction = math.floor(thousandths / 1000), thousandths % 1000
  local printed = sign .. string.format('%.0f', whole)
  if fraction == 0 then
    return printed
  end
  return printed .. '.' .. string.gsub(string.format('%03d', fraction), '0+$', '')
end

local function words(line)
  local list = {}
  for word in string.gmatch(line, '%S+') do
    list[#list + 1] = word
  end
  return list
end

-- What was granted by kind; a kind that is nil is unlimited. In a list kinds at the end of which nothing was granted may
-- be left out.
local function new_granted()
  local granted = {}
  for _, kind in ipairs(KINDS) do
    granted[kind] = 0
  end
  return granted
end

local function granted_from(list)
  local granted = {}
  for i, kind in ipairs(KINDS) do
    granted[kind] = tonumber(list[i] or 0)
  end
  return granted
end

local function granted_text(granted)
  local list = {}
  for i, kind in ipairs(KINDS) do
    list[i] = granted[kind] and text(granted[kind]) or 'unlimited'
  end
  return table.concat(list, ' ')
end

-- What plan, add-ons, what was carried over and adjustments gave; nil is unlimited.
local function own_total(granted)
  return granted.plan and granted.addon and granted.carried and granted.adjusted
    and granted.plan + granted.addon + granted.carried + granted.adjusted
end

-- As short as it can be, since each account has one for each type: '=' if all of that is left.
local function pool_from(line)
  local list = words(line)
  local left = table.remove(list, 1)
  local granted = granted_from(list)
  return { left = left == '=' and own_total(granted) or tonumber(left), granted = granted }
end

local function pool_text(pool)
  local left = pool.left == own_total(pool.granted) and '=' or text(pool.left)
  local short = string.gsub(left .. ' ' .. granted_text(pool.granted), '[ 0]+$', function(zeros)
    return string.match(zeros, '^0+') or ''
  end)
  return short
end

local function total(granted)
  local sum = 0
  for _, kind in ipairs(KINDS) do
    if not granted[kind] then
      return nil
    end
    sum = sum + granted[kind]
  end
  return sum
end

-- What is granted in numbers, beside what is unlimited. Never beyond BALANCE_MAX: a type that is unlimited may be limited
-- in the next cycle, and then this counts.
local function counted(granted)
  local sum = 0
  for _, kind in ipairs(KINDS) do
    sum = sum + (granted[kind] or 0)
  end
  return sum
end

local function counter_of(account, credit_type)
  local c = account.counters[credit_type]
  if not c then
    c = { granted = 0, charged = 0, expired = 0 }
    account.counters[credit_type] = c
  end
  return c
end

local function pool_of(account, credit_type)
  local pool = account.pools[credit_type]
  if not pool then
    pool = { granted = new_granted(), left = 0 }
    account.pools[credit_type] = pool
  end
  return pool
end

local function remaining(c)
  return c.granted and math.max(0, c.granted - c.expired - c.charged)
end

local function lot_from(line)
  local list = words(line)
  return {
    kind = list[1], credit_type = list[2], left = tonumber(list[3]), priority = tonumber(list[4]),
    effective = tonumber(list[5]), expires = tonumber(list[6]), begun = list[7] == 'begun', used = {},
  }
end

local function lot_text(lot)
  return table.concat({
    lot.kind, lot.credit_type, text(lot.left), text(lot.priority), text(lot.effective),
    lot.expires and text(lot.expires) or '-', lot.begun and 'begun' or 'waits',
  }, ' ')
end

-- What each cycle took from a lot, in their order; nil: none did.
local function used_text(used)
  local cycles = {}
  for cycle in pairs(used) do
    cycles[#cycles + 1] = cycle
  end
  table.sort(cycles)
  for i, cycle in ipairs(cycles) do
    cycles[i] = text(cycle) .. ':' .. text(used[cycle])
  end
  return cycles[1] and table.concat(cycles, ' ')
end

-- Counts what a cycle takes from a lot; below zero, what comes back to it.
local function take_from(lot, cycle, amount)
  local used = (lot.used[cycle] or 0) + amount
  lot.left, lot.used[cycle] = lot.left - amount, used > 0 and used or nil
end

local function closed_counter_from(line)
  local list = words(line)
  return {
    granted = granted_from(list), charged = tonumber(list[7]), expired = tonumber(list[8]),
    moved = tonumber(list[9]), spare = tonumber(list[10]), denied = tonumber(list[11]),
  }
end

local function closed_of(account, number)
  local closed = account.closed[number]
  if not closed then
    closed = { counters = {} }
    account.closed[number] = closed
  end
  return closed
end

local function closed_counter_of(closed, credit_type)
  local c = closed.counters[credit_type]
  if not c then
    c = { granted = new_granted(), charged = 0, expired = 0, moved = 0, spare = 0, denied = 0 }
    closed.counters[credit_type] = c
  end
  return c
end

-- Its statement is out of date. Each change has a number, see ledger/closed.rs.
local function change_closed(closed)
  closed.restate, closed.revision = true, closed.revision + 1
end

-- Levels are codes: 'p80' of what was granted and has not expired is used, 'r10000' thousandths remain, 'x' nothing does.
local function codes_from(line)
  local codes = {}
  for code in string.gmatch(line, '[^,]+') do
    codes[#codes + 1] = code
  end
  return codes
end

local function alarm_from(line)
  local arming, fired = string.match(line, '^(%d+) (.*)$')
  return { arming = tonumber(arming), fired = codes_from(fired) }
end

local function code_before(a, b)
  local kind_a, kind_b = string.byte(a), string.byte(b)
  if kind_a ~= kind_b then
    return kind_a < kind_b
  end
  return (tonumber(string.sub(a, 2)) or 0) < (tonumber(string.sub(b, 2)) or 0)
end

-- Whether a balance is below a level. One to which nothing was granted is below nothing.
local function below(code, granted, usable, used, left)
  if not granted or granted == 0 then
    return false
  elseif code == 'x' then
    return left == 0
  end
  local number = tonumber(string.sub(code, 2))
  if string.sub(code, 1, 1) == 'r' then
    return left <= number
  end
  -- used * 100 >= usable * number, without a product beyond 2^53.
  local beyond = used - number * math.floor(usable / 100)
  return usable > 0 and (beyond >= 100 or beyond * 100 >= number * (usable % 100))
end

local function level_name(code)
  local kind, number = string.sub(code, 1, 1), tonumber(string.sub(code, 2))
  return kind == 'x' and 'exhausted' or kind == 'p' and text(number) .. '%' or 'remaining ' .. credits(number)
end

-- A moment as RFC 3339 has it, from seconds since 1970. The date by Howard Hinnant's algorithm (chrono-compatible
-- Low-Level Date Algorithms, civil_from_days), which counts years from March.
local function rfc3339(seconds)
  local day, rest = math.floor(seconds / 86400), seconds % 86400
  local era = math.floor((day + 719468) / 146097)
  local of_era = day + 719468 - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  local of_month = of_year - math.floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  return string.format('%04d-%02d-%02dT%02d:%02d:%02dZ', year + era * 400 + (month <= 2 and 1 or 0), month, of_month,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60)
end

-- When what is left will be used up at the rate of the cycle so far, as JSON text. The same operations as the ledger's.
local YEAR_10000 = 253402300800
local function runs_out(used, left, cycle_start, at)
  local elapsed = at and at - cycle_start or 0
  if not left or left == 0 or used == 0 or elapsed <= 0 then
    return 'null'
  end
  local seconds = math.floor((at + left * (elapsed / used)) / 1000)
  return seconds < YEAR_10000 and '"' .. rfc3339(seconds) .. '"' or 'null'
end

-- Judges a credit type after it has moved: `risen` is true where something was added, `denied` where an event was denied
-- for want of credits; `at` is the latest date of the usage that moved it. Gives the alarm as it is then, and appends the
-- messages.
local function judge_alerts(entries, name, cycle, credit_type, c, alarm, levels, risen, denied, cycle_start, at)
  local usable = c.granted and c.granted - c.expired
  local used, left = usable and math.min(c.charged, usable) or c.charged, remaining(c)
  alarm = alarm or { arming = 0, fired = {} }
  local arming, fired, has_fired = alarm.arming, {}, {}
  local function tell(kind, code)
    local granted = credits(c.granted)
    local id = table.concat({ kind, name, credit_type, code, text(cycle), text(arming), granted }, '/')
    entries[#entries + 1] = { 'alerts', id,
      'credits.' .. kind .. '.v1', name, '{"credit_type":"' .. credit_type .. '","threshold":"' .. level_name(code)
        .. '","used":' .. credits(used) .. ',"granted":' .. granted .. ',"remaining":' .. credits(left)
        .. ',"cycle":' .. text(cycle) .. ',"arming":' .. text(arming)
        .. (kind == 'low' and ',"runs_out":' .. runs_out(used, left, cycle_start, at) or '') .. '}' }
  end
  for _, code in ipairs(alarm.fired) do
    if risen and not below(code, c.granted, usable, used, left) then
      tell('restored', code)
    else
      fired[#fired + 1], has_fired[code] = code, true
    end
  end
  if #fired < #alarm.fired then
    arming = arming + 1
  end
  for _, code in ipairs(levels) do
    if not has_fired[code] and (below(code, c.granted, usable, used, left) or code == 'x' and denied) then
      fired[#fired + 1], has_fired[code] = code, true
      tell(code == 'x' and 'exhausted' or 'low', code)
    end
  end
  table.sort(fired, code_before)
  return { arming = arming, fired = fired }
end

-- What remains of each type, to tell later what has risen.
local UNLIMITED = math.huge
local function remaining_of(account)
  local left = {}
  for credit_type, c in pairs(account.counters) do
    left[credit_type] = remaining(c) or UNLIMITED
  end
  return left
end

-- The same for the types of an account in hand, after a command, a lot that began or ended, or a renewal (`before` is nil).
local function judge_account(entries, account, types, levels, before)
  for _, credit_type in ipairs(types) do
    local c = account.counters[credit_type] or { granted = 0, charged = 0, expired = 0 }
    local risen = not before or (remaining(c) or UNLIMITED) > (before[credit_type] or 0)
    account.alarms[credit_type] = judge_alerts(entries, account.name, account.number, credit_type, c,
      account.alarms[credit_type], levels, risen, false)
  end
end

-- Reads an account; `fields` is its hash, kept to see what has changed.
local function read_account(key, name)
  local shown = redis.call('HGETALL', key)
  local account = {
    key = key, name = name, fields = {}, set = {}, cleared = {}, exists = #shown > 0,
    counters = {}, pools = {}, lots = {}, denied = {}, alarms = {}, closed = {},
  }
  local fields, ids, used = account.fields, {}, {}
  for i = 1, #shown, 2 do
    local field, value = shown[i], shown[i + 1]
    fields[field] = value
    local credit_type, part = string.match(field, '^([%l%d_]+)%.(%l+)$')
    local number, closed_type = string.match(field, '^closed:(%-?%d+):?(.*)$')
    local created, is_id = string.match(field, '^lot:(%d+)(:?)')
    local used_of = string.match(field, '^used:(%d+)$')
    local judged = string.match(field, '^terms:(%-?%d+)$')
    if part == 'g' then
      counter_of(account, credit_type).granted = tonumber(value)
    elseif part == 'c' then
      counter_of(account, credit_type).charged = tonumber(value)
    elseif part == 'e' then
      counter_of(account, credit_type).expired = tonumber(value)
    elseif part == 'p' then
      account.pools[credit_type] = pool_from(value)
    elseif part == 'a' then
      account.alarms[credit_type] = alarm_from(value)
    elseif part == 'd' then
      account.denied[credit_type] = tonumber(value)
    elseif is_id == ':' then
      ids[tonumber(created)] = value
    elseif used_of then
      used[tonumber(used_of)] = value
    elseif created then
      account.lots[tonumber(created)] = lot_from(value)
    elseif judged then
      local closed = closed_of(account, tonumber(judged))
      local list = words(value)
      closed.restate, closed.revision, closed.overage, closed.plan = list[1] == '1', tonumber(list[2]), list[3], list[4]
    elseif number and closed_type ~= '' then
      closed_of(account, tonumber(number)).counters[closed_type] = closed_counter_from(value)
    elseif number then
      local closed = closed_of(account, tonumber(number))
      local list = words(value)
      closed.from, closed.to, closed.keep, closed.stated, closed.told =
        tonumber(list[1]), tonumber(list[2]), tonumber(list[3]), tonumber(list[4]), tonumber(list[5] or '0')
    end
  end
  for created, lot in pairs(account.lots) do
    lot.id = ids[created]
    for cycle, amount in string.gmatch(used[created] or '', '(%-?%d+):(%d+)') do
      lot.used[tonumber(cycle)] = tonumber(amount)
    end
  end
  account.version = tonumber(fields.version or '0')
  account.life = fields.life or 'open'
  if fields.cycle then
    local list = words(fields.cycle)
    account.number, account.from, account.to = tonumber(list[1]), tonumber(list[2]), tonumber(list[3])
  end
  return account
end

-- Lots by the order of their creation: the order in which everything that concerns several is done.
local function lots_in_order(account)
  local order = {}
  for created in pairs(account.lots) do
    order[#order + 1] = created
  end
  table.sort(order)
  return order
end

-- Pool and lots of a type that have begun, in the order in which they burn.
local function burn_order(account, credit_type)
  local order = { { PRIORITY_DEFAULT, account.to, 1, account.from, -1, pool_of(account, credit_type) } }
  for created, lot in pairs(account.lots) do
    if lot.begun and lot.credit_type == credit_type then
      local bought = lot.kind == 'promo' and 0 or 1
      order[#order + 1] = { lot.priority, lot.expires or account.to, bought, lot.effective, created, lot }
    end
  end
  table.sort(order, function(a, b)
    for i = 1, 5 do
      if a[i] ~= b[i] then
        return a[i] < b[i]
      end
    end
    return false
  end)
  return order
end

-- Takes what was charged since the last settling from pool and lots.
local function settle(account, credit_type)
  local c = account.counters[credit_type]
  if not c or not c.granted then
    return
  end
  local order = burn_order(account, credit_type)
  local left = 0
  for _, source in ipairs(order) do
    left = left + source[6].left
  end
  local open = c.charged - (c.granted - c.expired - left)
  for _, source in ipairs(order) do
    local taken = math.min(open, source[6].left)
    if source[6].used then
      take_from(source[6], account.number, taken)
    else
      source[6].left = source[6].left - taken
    end
    open = open - taken
  end
end

-- As much of an amount as the balance can take; nil is unlimited.
local function fitting(account, credit_type, amount)
  return amount and math.min(amount, BALANCE_MAX - counted(pool_of(account, credit_type).granted))
end

-- Adds to what was granted: what remained before, and remains now; false where the balance would exceed its bound.
local function grant(account, credit_type, kind, amount)
  if fitting(account, credit_type, amount) ~= amount then
    return false
  end
  local c = counter_of(account, credit_type)
  local before = remaining(c)
  c.granted = amount and c.granted and c.granted + amount
  local pool = pool_of(account, credit_type)
  pool.granted[kind] = amount and pool.granted[kind] and pool.granted[kind] + amount or nil
  if amount and kind ~= 'topup' and kind ~= 'promo' then
    pool.left = pool.left + amount
  end
  return true, before, remaining(c)
end

-- A line of the ledger topic.
local function ledger_line(account, event_type, id, kind, credit_type, amount, before, after, cause)
  return { 'ledger', id, event_type, account.name, '{"kind":"' .. kind .. '","credit_type":"' .. credit_type
    .. '","amount":' .. credits(amount) .. ',"before":' .. credits(before) .. ',"after":' .. credits(after)
    .. ',"cause":{' .. cause .. '}}' }
end

-- When something is to be done about the account.
local function due_of(account)
  local due = NEVER
  if account.life ~= 'closed' then
    due = account.to
    for _, lot in pairs(account.lots) do
      due = math.min(due, lot.begun and (lot.expires or due) or lot.effective)
    end
  end
  for _, closed in pairs(account.closed) do
    due = math.min(due, closed.restate and closed.stated + RESTATE_EVERY or closed.keep)
  end
  return due
end

-- The hash as it is now, in the order in which a new one is written: what every call reads comes first. No value is longer
-- than Redis keeps packed (hash-max-listpack-value, 64), unless a name is.
local function fields_of(account)
  local names, values = {}, {}
  local function put(name, value)
    if not values[name] then
      names[#names + 1] = name
    end
    values[name] = value
  end
  put('version', text(account.version))
  put('days', account.fields.days or '')
  for credit_type, c in pairs(account.counters) do
    put(credit_type .. '.g', c.granted and text(c.granted) or 'unlimited')
    if c.charged ~= 0 then
      put(credit_type .. '.c', text(c.charged))
    end
    if c.expired ~= 0 then
      put(credit_type .. '.e', text(c.expired))
    end
  end
  for credit_type, pool in pairs(account.pools) do
    local line = pool_text(pool)
    if line ~= '=' then
      put(credit_type .. '.p', line)
    end
  end
  for credit_type, alarm in pairs(account.alarms) do
    if alarm.arming > 0 or #alarm.fired > 0 then
      put(credit_type .. '.a', text(alarm.arming) .. ' ' .. table.concat(alarm.fired, ','))
    end
  end
  for credit_type, denied in pairs(account.denied) do
    put(credit_type .. '.d', text(denied))
  end
  for created, lot in pairs(account.lots) do
    put('lot:' .. text(created), lot_text(lot))
    put('lot:' .. text(created) .. ':id', lot.id)
    local used = used_text(lot.used)
    if used then
      put('used:' .. text(created), used)
    end
  end
  put('cycle', text(account.number) .. ' ' .. text(account.from) .. ' ' .. text(account.to))
  if account.life ~= 'open' then
    put('life', account.life)
  end
  for number, closed in pairs(account.closed) do
    local name = 'closed:' .. text(number)
    put(name, table.concat({
      text(closed.from), text(closed.to), text(closed.keep), text(closed.stated), text(closed.told),
    }, ' '))
    put('terms:' .. text(number), table.concat({
      closed.restate and '1' or '0', text(closed.revision), closed.overage, closed.plan,
    }, ' '))
    for credit_type, c in pairs(closed.counters) do
      put(name .. ':' .. credit_type, table.concat({
        granted_text(c.granted), text(c.charged), text(c.expired), text(c.moved), text(c.spare), text(c.denied),
      }, ' '))
    end
  end
  -- The configuration, as it was or as it is set.
  for name, value in pairs(account.fields) do
    local managed = string.find(name, '.', 1, true) or string.find(name, '^lot:') or string.find(name, '^used:')
      or string.find(name, '^closed:') or string.find(name, '^terms:') or name == 'life'
    if not managed and not values[name] and not account.cleared[name] then
      put(name, value)
    end
  end
  for name, value in pairs(account.set) do
    put(name, value)
  end
  return names, values
end

-- In slices, since Lua's stack holds a few thousand values, and an account may have missed many cycles.
local SLICE = 2000
local function write_sliced(command, key, list)
  for first = 1, #list, SLICE do
    redis.call(command, key, unpack(list, first, math.min(first + SLICE - 1, #list)))
  end
end

-- Writes what has changed, and gives the whole hash as a reply shows it.
local function write_account(account, due_key)
  local names, values = fields_of(account)
  local changed, gone, shown = {}, {}, {}
  for _, name in ipairs(names) do
    shown[#shown + 1], shown[#shown + 2] = name, values[name]
    if account.fields[name] ~= values[name] then
      changed[#changed + 1], changed[#changed + 2] = name, values[name]
    end
  end
  for name in pairs(account.fields) do
    if not values[name] then
      gone[#gone + 1] = name
    end
  end
  write_sliced('HSET', account.key, changed)
  write_sliced('HDEL', account.key, gone)
  redis.call('ZADD', due_key, text(due_of(account)), account.name)
  return shown
end

local function show(reply, index, shown)
  local n = #reply
  reply[n + 1], reply[n + 2] = text(index), text(#shown / 2)
  for i = 1, #shown do
    reply[n + 2 + i] = shown[i]
  end
end

local function shown_of(account)
  local shown = {}
  for name, value in pairs(account.fields) do
    shown[#shown + 1], shown[#shown + 2] = name, value
  end
  return shown
end

local function publish(outbox_key, entry)
  redis.call('XADD', outbox_key, '*', 'output', entry[1], 'id', entry[2], 'type', entry[3], 'account', entry[4],
    'data', entry[5])
end
