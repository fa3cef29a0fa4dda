
-- Fourth part of apply: usage by day, member and action.

-- What the rows of a group come to: as told, if its events are charged or free but for some (`denies`), else nothing yet.
-- Rows are columns, since a group has nearly as many as events: day, member, class (of the action), events charged,
-- thousandths, events free; `denied` is there if some may be; `action` has the names that no class gives.
local function rows_of(group, as_told, denies)
  local told = group.used
  local rows = { n = #told[1], day = told[1], user = told[2], class = told[3], action = {} }
  if not as_told then
    rows.charged, rows.cost, rows.free, rows.denied = {}, {}, {}, {}
    for r = 1, rows.n do
      rows.charged[r], rows.cost[r], rows.free[r], rows.denied[r] = 0, 0, 0, 0
    end
    return rows
  end
  rows.charged, rows.cost, rows.free, rows.denied = told[4], told[5], told[6], denies and {}
  for r = 1, denies and rows.n or 0 do
    rows.denied[r] = 0
  end
  local function row_and_class(e)
    local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
    local class = kind_class[b1 * 256 + b2]
    b1, b2 = byte(group.row_of, 2 * e - 1, 2 * e)
    return b1 * 256 + b2, class
  end
  for e in pairs(group.seen) do
    local r, class = row_and_class(e)
    if class_judge[class] == 'c' then
      rows.charged[r], rows.cost[r] = rows.charged[r] - 1, rows.cost[r] - class_cost[class]
    elseif class_judge[class] == 'f' then
      rows.free[r] = rows.free[r] - 1
    end
  end
  for e in pairs(group.free or {}) do
    local r, class = row_and_class(e)
    rows.charged[r], rows.cost[r], rows.free[r] = rows.charged[r] - 1, rows.cost[r] - class_cost[class], rows.free[r] + 1
  end
  return rows
end

-- Adds the rows to what each day has: for each day that changes its key and the fields to set.
local ACTIONS = '\t'
local function usage_after(group, rows)
  local days, changed = {}, {}
  local day_of, user_of, charged, cost, free, denied = rows.day, rows.user, rows.charged, rows.cost, rows.free, rows.denied
  local given = rows.given or {} -- back by voids: what a row comes to may then be nothing
  for r = 1, rows.n do
    if charged[r] ~= 0 or free[r] ~= 0 or denied and denied[r] ~= 0 or given[r] then
      local day = days[day_of[r]]
      if not day then
        day = { key = KEYS[group.used_key + day_of[r]], asked = { ACTIONS }, lists = {} }
        days[day_of[r]], changed[#changed + 1] = day, day
      end
      if day.lists[user_of[r]] == nil then
        day.lists[user_of[r]], day.asked[#day.asked + 1] = false, user_of[r]
      end
    end
  end
  for _, day in ipairs(changed) do
    local asked = day.asked
    day.names, day.index = {}, {}
    for first = 1, #asked, SLICE do
      local last = math.min(first + SLICE - 1, #asked)
      for i, stored in ipairs(redis.call('HMGET', day.key, unpack(asked, first, last))) do
        local field = asked[first + i - 1]
        if field == ACTIONS then
          day.names = words(stored or '')
        else
          day.lists[field] = stored and cmsgpack.unpack(stored) or {}
        end
      end
    end
    for i, name in ipairs(day.names) do
      day.index[name] = i
    end
    day.known = #day.names
  end
  for r = 1, rows.n do
    if charged[r] ~= 0 or free[r] ~= 0 or denied and denied[r] ~= 0 or given[r] then
      local day = days[day_of[r]]
      local list, action = day.lists[user_of[r]], rows.action[r] or class_action[rows.class[r]]
      if not day.index[action] then
        day.names[#day.names + 1] = action
        day.index[action] = #day.names
      end
      local place = 4 * (day.index[action] - 1)
      for i = #list + 1, place + 4 do
        list[i] = 0
      end
      list[place + 1], list[place + 2] = list[place + 1] + charged[r], list[place + 2] + cost[r]
      list[place + 3] = list[place + 3] + (denied and denied[r] or 0)
      list[place + 4] = list[place + 4] + free[r]
    end
  end
  for _, day in ipairs(changed) do
    local set = #day.names > day.known and { ACTIONS, table.concat(day.names, ' ') } or {}
    local asked, lists = day.asked, day.lists
    for i = 2, #asked do
      set[#set + 1], set[#set + 2] = asked[i], cmsgpack.pack(lists[asked[i]])
    end
    day.set = set
  end
  return changed
end
