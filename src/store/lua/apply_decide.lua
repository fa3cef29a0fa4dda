
-- Last part of apply: what each event comes to, and the writes.

-- Decide.
local counts = {}
for r = 1, range_count do
  counts[r] = { dead_lettered = 0, duplicate = repeats[r], denied = 0, free = 0, capped = 0, charged = 0, voided = 0 }
end
for d = 1, dead_count do
  counts[dead_range[d]].dead_lettered = counts[dead_range[d]].dead_lettered + 1
end
local simple = {}
for k = 1, kind_count do
  simple[k] = 0
end

local REASONS = { 'not_entitled', 'insufficient_credits', 'overage_limit', 'capped', 'member_limit' }
local LETTERS = { 'e', 'i', 'o', [5] = 'm' }

-- Messages about events that are denied or capped, and the verdicts that are not as told.
local denials = { messages = {} }
function denials.new()
  return { {}, {}, {}, {}, {} }
end

function denials.add(by_reason, group, range, class, reason, left, uncovered, line)
  local offset, source, id = match(line, '^(%d+) %-?%d+ (%d+) (.*)$')
  local index = match(partition[range], ':(%d+)$')
  local described = '{"source":' .. sources[tonumber(source)] .. ',"id":' .. id .. ',"topic":' .. topic_text
    .. ',"partition":' .. index .. ',"offset":' .. offset .. ',"action":"' .. class_action[class]
    .. '","credit_type":"' .. type_name[class_type[class]]
    .. '","required":' .. credits(class_cost[class]) .. ',"remaining":' .. credits(left)
  if reason == 4 then
    described = described .. ',"uncovered":' .. credits(uncovered)
  end
  described = described .. '}'
  local list = by_reason[reason]
  local last = list[#list]
  if not last or #last.events == DENIED_EVENTS_MAX or last.bytes + #described > DENIED_BYTES_MAX then
    last = {
      account = group.account, reason = REASONS[reason], events = {},
      id = topic .. '/' .. index .. '/' .. offset .. '/' .. REASONS[reason],
    }
    last.bytes = #('{"reason":"' .. last.reason .. '","events":[') - 1
    list[#list + 1] = last
  end
  last.events[#last.events + 1] = described
  last.bytes = last.bytes + #described + 1
end

function denials.tell(by_reason)
  for _, list in ipairs(by_reason) do
    for _, message in ipairs(list) do
      denials.messages[#denials.messages + 1] = message
    end
  end
end

function denials.verdict(verdicts, letter, e)
  verdicts[#verdicts + 1] = letter .. string.char(math.floor(e / 256), e % 256)
end

-- Denies what a group's plan is not entitled to, where all else fits: before what that costs is charged. The worker told
-- what the events before each cost, were all of them charged.
function denials.deny_unentitled(group, counter, free, verdicts, rows)
  local not_charged, skipped, at = {}, {}, 1
  for _, events in ipairs({ group.seen, free or {} }) do
    for e in pairs(events) do
      not_charged[#not_charged + 1] = e
    end
  end
  table.sort(not_charged)
  local by_reason = denials.new()
  for i = 1, #group.unentitled, 3 do
    local e, before, first = group.unentitled[i], group.unentitled[i + 1], group.unentitled[i + 2]
    if not group.seen[e] then
      while not_charged[at] and not_charged[at] < e do
        local b1, b2 = byte(group.kinds, 2 * not_charged[at] - 1, 2 * not_charged[at])
        local class = kind_class[b1 * 256 + b2]
        if class_judge[class] == 'c' and not class_cycle[class] then
          skipped[class_type[class]] = (skipped[class_type[class]] or 0) + class_cost[class]
        end
        at = at + 1
      end
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local range, class = kind_range[b1 * 256 + b2], kind_class[b1 * 256 + b2]
      local t = class_type[class]
      local c = counter[t]
      local left = not c.unlimited and math.max(0, c.usable - c.charged - before + (skipped[t] or 0)) or nil
      c.denied = (c.denied or 0) + 1
      counts[range].denied = counts[range].denied + 1
      denials.verdict(verdicts, LETTERS[1], e)
      denials.add(by_reason, group, range, class, 1, left, 0,
        string.sub(lines, first, string.find(lines, '\n', first, true) - 1))
      if rows then
        usage.count(rows, usage.row_of(group, e), 0, 0, 1, 0)
      end
    end
  end
  denials.tell(by_reason)
end

-- Decides a group's events one by one.
local function one_by_one(group, counter, rows)
  local verdicts, by_reason = {}, denials.new()
  local line_of = lines_of(group)
  local once = group.once
  for e = 1, group.count do
    local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
    local kind = b1 * 256 + b2
    local range, class = kind_range[kind], kind_class[kind]
    local tally = counts[range]
    local row, verdict = rows and usage.row_of(group, e), nil
    local mark = once and once.mark_of[e]
    local charged_before = mark and class_judge[class] == 'c' and once.known[mark]
    if group.seen[e] then
      tally.duplicate = tally.duplicate + 1
      verdict = 'd'
    elseif class_judge[class] == 'v' then
      charges.take_back(group, e, class, counter, rows, row, range, line_of(e))
      tally.voided = tally.voided + 1
      verdict = 'v'
    elseif class_judge[class] == 'f' or charged_before then
      tally.free = tally.free + 1
      if rows then
        usage.count(rows, row, 0, 0, 0, 1)
      end
      verdict = 'f'
    elseif class_voidable[class] and charges.was_voided(group, e) then
      tally.voided = tally.voided + 1
      verdict = 'v'
    else
      local credit_type = type_name[class_type[class]]
      local cost, c = class_cost[class], counter[class_type[class]]
      local left, reason, uncovered
      local count = limits.count_of(group, e)
      local over_limit = count and count.limit and class_judge[class] == 'c' and count.used + cost > count.limit
      if class_cycle[class] then
        local account = whole_account(group)
        if c.charged > 0 or account.counters[credit_type] then
          counter_of(account, credit_type).charged = c.charged
        end
        local dated = tonumber(match(line_of(e), '^%d+ (%-?%d+) '))
        reason, uncovered, left = use_late(account, class, credit_type, dated, over_limit)
        local moved = account.counters[credit_type]
        if not c.unlimited and moved then
          c.granted, c.usable = moved.granted, moved.granted - moved.expired
        end
      else
        left = not c.unlimited and math.max(0, c.usable - c.charged) or nil
        local over = c.unlimited and 0 or math.max(0, c.charged - c.usable)
        reason, uncovered = reason_of(class, left, c.charged, over, group.overage, group.limit, over_limit)
        if not reason or reason == 4 then
          c.charged = c.charged + cost - uncovered
        else
          c.denied = (c.denied or 0) + 1
          c.starved = c.starved or reason == 2 or reason == 3
        end
      end
      local is_set = mark and (not reason or reason == 4) and cost > uncovered and not once.known[mark]
      if is_set then
        once.known[mark], once.added[mark] = true, true
      end
      if class_voidable[class] and (not reason or reason == 4) then
        charges.keep_of(group, e, class, cost - uncovered, not left, is_set and mark, count, rows, row)
      end
      local is_charged = not reason or reason == 4
      if rows and is_charged then
        usage.count(rows, row, 1, cost - uncovered, 0, 0)
      elseif rows then
        usage.count(rows, row, 0, 0, 1, 0)
      end
      if count and is_charged then
        count.used = count.used + cost - uncovered
      end
      if not reason then
        tally.charged = tally.charged + 1
        verdict = 'c'
      elseif reason == 4 then
        tally.capped = tally.capped + 1
        verdict = 'p'
        if uncovered > 0 then
          group.uncovered = group.uncovered or {}
          group.uncovered[class] = (group.uncovered[class] or 0) + uncovered
        end
      else
        tally.denied = tally.denied + 1
        verdict = LETTERS[reason]
      end
      if reason and not RECORDED[class_judge[class]] then
        denials.add(by_reason, group, range, class, reason, left, uncovered, line_of(e))
      end
    end
    if verdict ~= (class_judge[class] == 'f' and 'f' or 'c') then
      denials.verdict(verdicts, verdict, e)
    end
  end
  denials.tell(by_reason)
  return table.concat(verdicts)
end

local reply = { 'applied', '' }
-- New events of the group in hand, by kind.
local new_of = {}
for g = 1, group_count do
  local group = groups[g]
  local stored = group.stored
  local counter = {}
  for i, t in ipairs(group.types) do
    local granted, charged, expired = stored[3 * i], tonumber(stored[3 * i + 1] or '0'), tonumber(stored[3 * i + 2] or '0')
    local c = { charged = charged, was = charged, judged = charged, expired = expired, unlimited = granted == 'unlimited' }
    if not c.unlimited then
      c.granted = tonumber(granted or '0')
      c.usable = c.granted - expired
      assert(c.usable >= 0 and charged >= 0 and c.usable <= BALANCE_MAX, 'apply: a counter is broken')
    end
    counter[t] = c
  end
  -- Add the costs of the group's new events up, by kind: where the sums fit, every event fits.
  local seen, any_seen, tally = group.seen, group.any_seen, group.tally
  for i = 1, #tally, 2 do
    new_of[tally[i]] = tally[i + 1]
  end
  if any_seen then
    for e in pairs(seen) do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local kind = b1 * 256 + b2
      new_of[kind] = new_of[kind] - 1
    end
  end
  local free, marked
  if group.once then
    free, marked = free_of(group, function(e)
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      return class_judge[kind_class[b1 * 256 + b2]]
    end)
    for e in pairs(free) do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local kind = b1 * 256 + b2
      new_of[kind] = new_of[kind] - 1
    end
  end
  -- What is counted for members is decided one by one.
  local sums, fits, denies = {}, not group.members and not charges.any_waits(group), false
  for i = 1, #tally, 2 do
    local new = new_of[tally[i]]
    local class = kind_class[tally[i]]
    local judge = class_judge[class]
    if new > 0 and judge == 'c' and not class_cycle[class] then
      local t = class_type[class]
      sums[t] = (sums[t] or 0) + class_cost[class] * new
    elseif new > 0 and judge == 'e' and not class_cycle[class] and not next(group.asks) then
      denies = true
    elseif new > 0 and judge ~= 'f' then
      fits = false
    end
  end
  for t, sum in pairs(sums) do
    local c = counter[t]
    if c.unlimited then
      fits = fits and c.charged + sum <= BALANCE_MAX
    else
      local limit = group.overage == 'allow' and group.limit or 0
      fits = fits and c.charged + sum - c.usable <= limit
    end
  end
  if not fits then
    local rows = group.used_days[1] and usage.rows_of(group, false)
    reply[g + 2] = one_by_one(group, counter, rows)
    group.usage = rows and usage.after(group, rows)
  else
    local verdicts = {}
    for e in pairs(seen) do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local tally = counts[kind_range[b1 * 256 + b2]]
      tally.duplicate = tally.duplicate + 1
      denials.verdict(verdicts, 'd', e)
    end
    if free then
      group.free, group.once.added = free, marked
      for e in pairs(free) do
        local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
        local tally = counts[kind_range[b1 * 256 + b2]]
        tally.free = tally.free + 1
        denials.verdict(verdicts, 'f', e)
      end
    end
    local rows, has_one_day = nil, #group.used_days == 1
    if group.used_days[1] then
      rows = has_one_day and usage.differences(group) or usage.rows_of(group, true)
      usage.count_otherwise(group, rows)
    end
    if denies then
      denials.deny_unentitled(group, counter, free, verdicts, rows)
    end
    for i = 1, #tally, 2 do
      local kind = tally[i]
      if class_judge[kind_class[kind]] ~= 'e' then
        simple[kind] = simple[kind] + new_of[kind]
      end
    end
    for t, sum in pairs(sums) do
      counter[t].charged = counter[t].charged + sum
    end
    reply[g + 2] = table.concat(verdicts)
    charges.keep_all(group, counter, rows)
    group.usage = rows and (has_one_day and usage.journalled or usage.after)(group, rows)
  end
  -- Events that were denied are counted beside the charges.
  for t, c in pairs(counter) do
    if c.denied then
      c.denied = c.denied + tonumber(redis.call('HGET', group.key, type_name[t] .. '.d') or '0')
    end
  end
  group.counter = counter
  alerts_after_use(group, counter)
end
for k = 1, kind_count do
  local tally = counts[kind_range[k]]
  local outcome = class_judge[kind_class[k]] == 'f' and 'free' or 'charged'
  tally[outcome] = tally[outcome] + simple[k]
end

-- Where the shard is afterwards.
local moved = {}
for r = 1, range_count do
  moved[#moved + 1] = fields[FIELDS * (r - 1) + 1]
  moved[#moved + 1] = to[r]
  if anchor[r] ~= '' then
    local n = #moved
    moved[n + 1], moved[n + 2] = 'anchor:' .. partition[r], anchor[r]
    moved[n + 3], moved[n + 4] = 'reached:' .. partition[r], reached[r]
  end
  for i, outcome in ipairs(TOTALS) do
    local n = counts[r][outcome]
    if n > 0 then
      moved[#moved + 1] = fields[FIELDS * (r - 1) + 1 + i]
      moved[#moved + 1] = format('%.0f', tonumber(fence[FENCE + FIELDS * (r - 1) + 1 + i] or '0') + n)
    end
  end
end
if tonumber(restamp_tolerance) > tonumber(fence[5]) then
  moved[#moved + 1] = 'restamp_tolerance_ms'
  moved[#moved + 1] = restamp_tolerance
end

-- Write. Nothing below can fail: every key was read above as the type that it is written as.
local begun = #moved > 0 and begin(KEYS[1])
for g = 1, group_count do
  local group = groups[g]
  local changed = {}
  for t, c in pairs(group.counter) do
    if group.whole and (c.charged > 0 or group.whole.counters[type_name[t]]) then
      counter_of(group.whole, type_name[t]).charged = c.charged
    end
    if c.charged ~= c.was then
      changed[#changed + 1] = type_name[t] .. '.c'
      changed[#changed + 1] = format('%.0f', c.charged)
    end
    if c.alarm and c.alarm ~= c.alarm_before then
      changed[#changed + 1] = type_name[t] .. '.a'
      changed[#changed + 1] = c.alarm
    end
    if c.denied then
      changed[#changed + 1] = type_name[t] .. '.d'
      changed[#changed + 1] = format('%.0f', c.denied)
    end
  end
  local days = group.stored[2] or ''
  local had_days = days
  for _, run in ipairs(group.runs) do
    local probe = run.probes[run.newest]
    for s, members in pairs(probe.new) do
      redis.call('SADD', KEYS[probe.key + s], unpack(members))
    end
    if not run.stored and not layout_of(days, run.day) then
      days = days .. ' ' .. run.day .. ':' .. run.layout
    end
    -- Sets without room for as much again: the next call finds more, and need not be refused for it.
    if run.is_crowded then
      local layout
      days, layout = more_sets(days, run)
      if layout then
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = tostring(g - 1), run.day, layout
      end
    end
  end
  if group.once then
    local marks = write_marks(group.once)
    for _, cycle in ipairs(group.once.cycles) do
      if cycle.is_crowded then
        local layout
        marks, layout = more_sets(marks, cycle)
        local n = #reply
        reply[n + 1], reply[n + 2], reply[n + 3] = tostring(g - 1), 'o' .. cycle.day, layout
      end
    end
    if marks ~= group.once.text then
      changed[#changed + 1] = 'once'
      changed[#changed + 1] = marks
    end
  end
  for class, uncovered in pairs(group.uncovered or {}) do
    local n = #reply
    reply[n + 1], reply[n + 2], reply[n + 3] = tostring(g - 1), 'u' .. class, format('%.0f', uncovered)
  end
  if days ~= had_days then
    changed[#changed + 1] = 'days'
    changed[#changed + 1] = days
  end
  if group.members then
    limits.write(group.members)
  end
  for _, day in ipairs(group.usage or {}) do
    usage.write(day)
  end
  if group.whole then
    for i = 1, #changed, 2 do
      group.whole.set[changed[i]] = changed[i + 1]
    end
    write_account(group.whole, KEYS[4])
  elseif #changed > 0 then
    redis.call('HSET', group.key, unpack(changed))
  end
end
charges.write()
for _, message in ipairs(denials.messages) do
  redis.call('XADD', KEYS[3], '*', 'output', 'denied', 'id', message.id, 'type', 'credits.denied.v1',
    'account', message.account,
    'data', '{"reason":"' .. message.reason .. '","events":[' .. table.concat(message.events, ',') .. ']}')
end
for _, entry in ipairs(alerts) do
  publish(KEYS[3], entry)
end
for _, note in ipairs(in_ranges) do
  redis.call('HDEL', KEYS[2], note[3])
end
if begun then
  redis.call('HSET', KEYS[1], 'ended', begun, unpack(moved))
end
reply[2] = tostring(outbox_entries + #denials.messages + #alerts)
return reply
