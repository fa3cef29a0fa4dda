
-- Fifth part of apply: charges that are kept, and taken back by voids. Mirrors ledger/void.rs.
function charges.keep(name, member, text)
  charges.book[name][member] = text
  charges.changed[name] = charges.changed[name] or {}
  charges.changed[name][member] = true
end

-- Keeps what an event was charged, and whether nothing was taken for it since the type is unlimited: a mark that it has set, and
-- what was counted for its member, are given away with it.
function charges.keep_of(group, e, class, cost, unlimited, mark, count, rows, row)
  local ask = group.asks[e]
  local cycle = class_cycle[class] and text(class_cycle[class]) or group.cycle
  local _, member
  if mark then
    _, member = name_of(group.once, mark)
  end
  local place = count and ' - - ' .. count.user or ''
  if rows then
    place = ' ' .. group.used_days[rows.day[row] or 1] .. ' ' .. class_action[class] .. ' ' .. rows.user[row]
  end
  charges.keep(ask.keys[1], ask.member,
    table.concat({ type_name[class_type[class]], text(cost), cycle,
      (member or '-') .. (unlimited and 'u' or '') .. (count and 'm' or '') }, ' ') .. place)
end

-- The same where all of a group's events are charged or free as told.
function charges.keep_all(group, counter, rows)
  for e in pairs(group.asks) do
    if not group.seen[e] and not (group.free and group.free[e]) then
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local class = kind_class[b1 * 256 + b2]
      local mark = group.once and group.once.mark_of[e]
      local c = counter[class_type[class]]
      charges.keep_of(group, e, class, class_cost[class], c and c.unlimited, mark, nil, rows, rows and usage.row_of(group, e))
    end
  end
end

-- Whether a void waits for one of a group's events.
function charges.any_waits(group)
  for _, ask in pairs(group.asks) do
    local _, kept = charges.kept_of(ask)
    if kept == '-' then
      return true
    end
  end
  return false
end

-- Whether the void of an event has come before it; it waits no longer.
function charges.was_voided(group, e)
  local name, kept = charges.kept_of(group.asks[e])
  if kept == '-' then
    charges.keep(name, group.asks[e].member, false)
  end
  return kept == '-'
end

-- Takes a charge out of the usage of its day, unless that was forgotten. After a change of zone it stays.
function charges.uncount_usage(group, rows, row, place, cost)
  local number, action, user = match(place, '^(%d+) (%S+) (.*)$')
  local d = rows.day[row] or 1
  if number ~= group.used_days[d] then
    return
  end
  local charged, credits_used = usage.stored(group, rows, d, action, user)
  local r = usage.find(rows, d, action, user)
  if r then
    charged, credits_used = charged + rows.charged[r], credits_used + rows.cost[r]
  end
  if charged > 0 and credits_used >= cost then
    r = r or usage.new_row(rows, d, action, user)
    usage.count(rows, r, -1, -cost, 0, 0)
    rows.given[r] = true
  end
end

-- An account that late events and voids change is read whole, once.
local function whole_account(group)
  if not group.whole then
    redis.call('ZCARD', KEYS[4]) -- an error if it is no sorted set: it is written with the account
    group.whole = read_account(group.key, group.account)
  end
  return group.whole
end

-- Judges a credit type that usage or a void has moved.
local alerts = {}
function charges.judge_type(group, t, c, risen, denied, at)
  local credit_type = type_name[t]
  local stored = redis.call('HMGET', group.key, 'cycle', credit_type .. '.a')
  local cycle, start = match(stored[1], '^(%-?%d+) (%-?%d+)')
  local before = c.alarm or stored[2]
  local alarm = judge_alerts(alerts, group.account, tonumber(cycle), credit_type, c, before and alarm_from(before),
    group.levels, risen, denied, tonumber(start), at)
  if before or #alarm.fired > 0 then
    c.alarm = text(alarm.arming) .. ' ' .. table.concat(alarm.fired, ',')
  end
  c.alarm_before = stored[2]
end

-- Judges the credit types that a group's events have moved since they were judged last. Most are above all levels.
local function alerts_after_use(group, counter)
  for t in ipairs(type_name) do
    local c = counter[t]
    if c and (c.starved or c.charged ~= c.judged) then
      local used, left = not c.unlimited and math.min(c.charged, c.usable), remaining(c)
      local judges = c.starved
      for _, code in ipairs(group.levels) do
        judges = judges or below(code, c.granted, c.usable, used, left)
      end
      if judges then
        charges.judge_type(group, t, c, false, c.starved, tonumber(group.latest))
      end
      c.judged, c.starved = c.charged, nil
    end
  end
end

-- The counter of a type in hand, which may be none that the group's events cost.
function charges.counter_in_hand(group, counter, credit_type)
  local t
  for i, name in ipairs(type_name) do
    t = name == credit_type and i or t
  end
  if not t then
    t = #type_name + 1
    type_name[t] = credit_type
  end
  if not counter[t] then
    local c = whole_account(group).counters[credit_type] or { granted = 0, charged = 0, expired = 0 }
    counter[t] = {
      charged = c.charged, was = c.charged, judged = c.charged, expired = c.expired, granted = c.granted,
      usable = c.granted and c.granted - c.expired, unlimited = not c.granted,
    }
  end
  return t, counter[t]
end

-- Gives back what was charged, first to what burns last; what was taken from a lot that is gone comes back to the pool. Where the
-- type is unlimited by now, only lots matter.
-- Mirrors ledger/grants.rs.
function charges.refund_now(group, c, credit_type, cost, unlimited)
  local account = whole_account(group)
  local stored, pool = counter_of(account, credit_type), pool_of(account, credit_type)
  stored.charged = c.charged
  settle(account, credit_type)
  c.charged = c.charged - cost
  local order, back = burn_order(account, credit_type), unlimited and 0 or cost
  if not c.granted then
    for i = #order, 1, -1 do
      local lot = order[i][6]
      if lot.used and lot.used[account.number] then
        local given = math.min(back, lot.used[account.number])
        take_from(lot, account.number, -given)
        back = back - given
      end
    end
    return
  end
  back = c.granted - c.expired - c.charged
  for _, source in ipairs(order) do
    back = back - source[6].left
  end
  back = math.max(0, back)
  for i = #order, 1, -1 do
    local source = order[i][6]
    local given
    if source.used then
      given = math.min(back, source.used[account.number] or 0)
      take_from(source, account.number, -given)
    else
      given = math.min(back, math.max(0, own_total(pool.granted) - pool.left))
      pool.left = pool.left + given
    end
    back = back - given
  end
  pool.left = pool.left + back
end

-- What exceeds the overage of a closed cycle is again in the lots that it was taken from, as far as they live; the rest expires
-- there, for late use to take. Mirrors ledger/closed.rs.
function charges.refund_late(account, number, credit_type, cost, unlimited)
  local closed = account.closed[number]
  local c = closed_counter_of(closed, credit_type)
  local granted = total(c.granted)
  local over = granted and c.charged - math.min(c.charged, granted - c.expired - c.moved) or 0
  local back = cost - math.min(cost, over)
  c.charged = c.charged - cost
  change_closed(closed)
  if unlimited then
    return
  end
  settle(account, credit_type)
  local order = burn_order(account, credit_type)
  for i = #order, 1, -1 do
    local lot = order[i][6]
    if lot.used and lot.used[number] then
      local given = fitting(account, credit_type, math.min(back, lot.used[number]))
      back = back - given
      take_late(account, number, lot, -given)
    end
  end
  if granted then
    c.expired, c.spare = c.expired + back, c.spare + back
  end
end

-- What the ledger topic says of a void.
function charges.tell(group, range, line, kind, event_type, data)
  local offset, source, id = match(line, '^(%d+) %-?%d+ (%d+) (.*)$')
  local index = match(partition[range], ':(%d+)$')
  alerts[#alerts + 1] = { 'ledger', topic .. '/' .. index .. '/' .. offset .. '/' .. kind, event_type, group.account,
    '{' .. data .. ',"cause":{"source":' .. sources[tonumber(source)] .. ',"id":' .. id .. '}}' }
end

-- Takes back what the event that a void names was charged, or waits for it.
function charges.take_back(group, e, class, counter, rows, row, range, line)
  local ask, once = group.asks[e], group.once
  local name, kept = charges.kept_of(ask)
  if not name or kept == '-' then
    if not name then
      charges.keep(ask.keys[1], ask.member, '-')
    end
    return charges.tell(group, range, line, 'waits', 'credits.ledger.void-waits.v1',
      '"action":"' .. class_action[class] .. '"')
  end
  charges.keep(name, ask.member, false)
  local credit_type, cost, cycle, mark, place = match(kept, '^(%S+) (%d+) (%-?%d+) (%S+) ?(.*)$')
  local unlimited, counted
  mark, unlimited, counted = match(mark, '^(%-?%d*)(u?)(m?)$')
  unlimited = unlimited == 'u'
  cost = tonumber(cost)
  local own_cycle = class_cycle[class] and text(class_cycle[class]) or group.cycle
  if counted == 'm' and own_cycle == cycle then
    limits.give_back(group, cycle, credit_type, match(place, '^%S+ %S+ (.*)$'), cost)
  end
  local asked = once and once.mark_of[e]
  if asked then
    local of_cycle, member = name_of(once, asked)
    if of_cycle == cycle and member == mark then
      once.known[asked], once.added[asked], once.removed[asked] = nil, nil, true
    end
  end
  if rows and place ~= '' then
    charges.uncount_usage(group, rows, row, place, cost)
  end
  if cost == 0 then
    return
  end
  local account, number = whole_account(group), tonumber(cycle)
  local t, c, before, after
  if account.life ~= 'closed' then
    t, c = charges.counter_in_hand(group, counter, credit_type)
    alerts_after_use(group, counter)
    before = remaining(c)
    if account.number == number then
      charges.refund_now(group, c, credit_type, cost, unlimited)
    else
      local open = account.counters[credit_type] or {}
      open.charged = c.charged
      charges.refund_late(account, number, credit_type, cost, unlimited)
      open = account.counters[credit_type] or c
      c.granted, c.usable = open.granted, open.granted and open.granted - open.expired
    end
    after = remaining(c)
  else
    charges.refund_late(account, number, credit_type, cost, unlimited)
  end
  charges.tell(group, range, line, 'refund', 'credits.ledger.refund.v1', '"credit_type":"' .. credit_type .. '","amount":'
    .. credits(cost) .. ',"cycle":' .. cycle .. ',"before":' .. credits(before) .. ',"after":' .. credits(after))
  if c then
    charges.judge_type(group, t, c, before and after > before, false)
    c.judged = c.charged
  end
end

function charges.write()
  for name, members in pairs(charges.changed) do
    local set, gone = {}, {}
    for member in pairs(members) do
      local kept = charges.book[name][member]
      if kept then
        set[#set + 1], set[#set + 2] = member, kept
      else
        gone[#gone + 1] = member
      end
    end
    write_sliced('HSET', name, set)
    write_sliced('HDEL', name, gone)
  end
end
