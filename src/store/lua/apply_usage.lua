
-- Fourth part of apply: usage by day, member and action. Preceded by usage.lua.

-- What the rows of a group come to: as told, if its events are charged or free but for some, else nothing yet.
function usage.rows_of(group, as_told)
  local actions, user, action, charged, cost, free, day = unpack(cmsgpack.unpack(group.used))
  local rows = { n = #user, actions = actions, day = day or {}, user = user, action = action, denied = {}, given = {} }
  for r = 1, rows.n do
    rows.denied[r] = 0
    if not as_told then
      charged[r], cost[r], free[r] = 0, 0, 0
    end
  end
  rows.charged, rows.cost, rows.free = charged, cost, free
  return rows
end

-- Where rows stay as they came: by what some of them differ, and whose they are if charges are kept with that.
function usage.differences(group)
  return { differ = {}, day = {}, user = next(group.asks) and cmsgpack.unpack(group.used)[2] }
end

-- Which row an event belongs to.
function usage.row_of(group, e)
  local b1, b2 = byte(group.row_of, 2 * e - 1, 2 * e)
  return b1 * 256 + b2
end

function usage.count(rows, r, charged, cost, denied, free)
  if rows.differ then
    local own = rows.differ[r] or { 0, 0, 0, 0 }
    rows.differ[r] = { own[1] + charged, own[2] + cost, own[3] + denied, own[4] + free }
    return
  end
  rows.charged[r], rows.cost[r] = rows.charged[r] + charged, rows.cost[r] + cost
  rows.denied[r], rows.free[r] = rows.denied[r] + denied, rows.free[r] + free
end

-- Events of a group that were seen before, and those that are free since something is charged once: not as told.
function usage.count_otherwise(group, rows)
  local function class_of(e)
    local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
    return kind_class[b1 * 256 + b2]
  end
  for e in pairs(group.seen) do
    local class = class_of(e)
    if class_judge[class] == 'c' then
      usage.count(rows, usage.row_of(group, e), -1, -class_cost[class], 0, 0)
    elseif class_judge[class] == 'f' then
      usage.count(rows, usage.row_of(group, e), 0, 0, 0, -1)
    end
  end
  for e in pairs(group.free or {}) do
    usage.count(rows, usage.row_of(group, e), -1, -class_cost[class_of(e)], 0, 1)
  end
end

local function day_in_hand(group, d)
  return usage.day(KEYS[group.used_key + 2 * d - 1], KEYS[group.used_key + 2 * d])
end

-- Adds the rows to what each day has: for each day that changes its key and the fields to set.
function usage.after(group, rows)
  local days, changed, moves = {}, {}, {}
  local day_of, charged, cost, denied, free = rows.day, rows.charged, rows.cost, rows.denied, rows.free
  for r = 1, rows.n do
    -- Given back by voids, a row may come to nothing.
    moves[r] = charged[r] ~= 0 or denied[r] ~= 0 or free[r] ~= 0 or rows.given[r]
    if moves[r] then
      local d = day_of[r] or 1
      if not days[d] then
        days[d] = day_in_hand(group, d)
        changed[#changed + 1] = days[d]
      end
      usage.ask(days[d], rows.user[r])
    end
  end
  for _, day in ipairs(changed) do
    usage.read(day)
    day.places = usage.places(day, rows.actions)
  end
  for r = 1, rows.n do
    if moves[r] then
      local day = days[day_of[r] or 1]
      usage.add(day.lists[rows.user[r]], day.places[rows.action[r]], charged[r], cost[r], denied[r], free[r])
    end
  end
  for _, day in ipairs(changed) do
    usage.finish(day)
  end
  return changed
end

-- What a member's action came to on a day: events charged, and thousandths.
function usage.stored(group, rows, d, action, user)
  local day, charged, cost = day_in_hand(group, d), 0, 0
  local stored = redis.call('HMGET', day.key, ACTIONS, user)
  if stored[1] and stored[2] then
    local list = cmsgpack.unpack(stored[2])
    for i, name in ipairs(words(stored[1])) do
      if name == action then
        charged, cost = list[4 * i - 3] or 0, list[4 * i - 2] or 0
      end
    end
  end
  -- Taken apart once, since a call may have many voids.
  rows.journals = rows.journals or {}
  rows.journals[d] = rows.journals[d] or usage.sums(redis.call('GET', day.journal) or '')
  local own = rows.journals[d][action .. ' ' .. user] or { 0, 0 }
  return charged + own[1], cost + own[2]
end

function usage.sums(journal)
  local sums = {}
  local function add(told, r, charged, cost)
    local name = told[1][told[3][r]] .. ' ' .. told[2][r]
    local own = sums[name] or { 0, 0 }
    sums[name] = { own[1] + charged, own[2] + cost }
  end
  usage.each({ cmsgpack.unpack(journal) }, function(told)
    for r = 1, #told[2] do
      add(told, r, told[4][r], told[5][r])
    end
  end, function(otherwise, told)
    for i, r in ipairs(otherwise[1]) do
      add(told, r, otherwise[2][i], otherwise[3][i])
    end
  end)
  return sums
end

-- A row a day, member and action; found by name, since a call may have as many voids as rows.
function usage.find(rows, d, action, user)
  if not rows.place then
    rows.place = {}
    for r = 1, rows.n do
      rows.place[(rows.day[r] or 1) .. ' ' .. rows.actions[rows.action[r]] .. ' ' .. rows.user[r]] = r
    end
  end
  return rows.place[d .. ' ' .. action .. ' ' .. user]
end

function usage.new_row(rows, d, action, user)
  local r, place = rows.n + 1
  for i, name in ipairs(rows.actions) do
    place = name == action and i or place
  end
  if not place then
    place = #rows.actions + 1
    rows.actions[place] = action
  end
  rows.n, rows.day[r], rows.user[r], rows.action[r] = r, d, user, place
  rows.charged[r], rows.cost[r], rows.denied[r], rows.free[r] = 0, 0, 0, 0
  rows.place[d .. ' ' .. action .. ' ' .. user] = r
  return r
end

-- The only day of a group, whose journal takes its rows with what is different; or if that is full, all that it has.
function usage.journalled(group, rows)
  local seen = 0
  for _ in pairs(group.seen) do
    seen = seen + 1
  end
  if seen == group.count then
    return {}
  end
  local otherwise = { {}, {}, {}, {}, {} }
  for r, own in pairs(rows.differ) do
    local n = #otherwise[1] + 1
    otherwise[1][n] = r
    for i = 1, 4 do
      otherwise[i + 1][n] = own[i]
    end
  end
  local day, added = day_in_hand(group, 1), group.used
  if otherwise[1][1] then
    added = added .. cmsgpack.pack(otherwise)
  end
  if redis.call('STRLEN', day.journal) + #added <= journal_bytes_max then
    day.added = added
    return { day }
  end
  return { usage.folded(day, (redis.call('GET', day.journal) or '') .. added) }
end
