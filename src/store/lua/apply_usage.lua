-- Fourth part of apply: usage by day, member and action.

-- What the rows of a group come to: as told, if its events are charged or free, else nothing yet. A row: day, member,
-- class (of its action), events charged, thousandths, events free.
local ROW = 6
local function rows_of(group, as_told)
  local told, rows = group.used, {}
  for i = 1, #told, ROW do
    rows[#rows + 1] = {
      day = told[i], user = told[i + 1], action = class_action[told[i + 2]], charged = as_told and told[i + 3] or 0,
      cost = as_told and tonumber(told[i + 4]) or 0, denied = 0, free = as_told and told[i + 5] or 0,
    }
  end
  if as_told then
    for e in pairs(group.seen) do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local class = kind_class[b1 * 256 + b2]
      b1, b2 = byte(group.row_of, 2 * e - 1, 2 * e)
      local row = rows[b1 * 256 + b2]
      if class_judge[class] == 'c' then
        row.charged, row.cost = row.charged - 1, row.cost - class_cost[class]
      elseif class_judge[class] == 'f' then
        row.free = row.free - 1
      end
    end
    for e in pairs(group.free or {}) do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local class = kind_class[b1 * 256 + b2]
      b1, b2 = byte(group.row_of, 2 * e - 1, 2 * e)
      local row = rows[b1 * 256 + b2]
      row.charged, row.cost, row.free = row.charged - 1, row.cost - class_cost[class], row.free + 1
    end
  end
  return rows
end

-- Adds the rows to what each day has: for each day that changes its key and the fields to set.
local ACTIONS = '\t'
local function usage_after(group, rows)
  local days, changed = {}, {}
  for _, row in ipairs(rows) do
    if row.charged + row.denied + row.free ~= 0 then
      local day = days[row.day]
      if not day then
        day = { key = KEYS[group.used_key + row.day], asked = { ACTIONS }, lists = {}, rows = {} }
        days[row.day], changed[#changed + 1] = day, day
      end
      if not day.lists[row.user] then
        day.lists[row.user], day.asked[#day.asked + 1] = {}, row.user
      end
      day.rows[#day.rows + 1] = row
    end
  end
  for _, day in ipairs(changed) do
    local asked, names, index = day.asked, {}, {}
    for first = 1, #asked, SLICE do
      local last = math.min(first + SLICE - 1, #asked)
      for i, stored in ipairs(redis.call('HMGET', day.key, unpack(asked, first, last))) do
        local field = asked[first + i - 1]
        if field == ACTIONS then
          names = words(stored or '')
        elseif stored then
          day.lists[field] = cmsgpack.unpack(stored)
        end
      end
    end
    for i, name in ipairs(names) do
      index[name] = i
    end
    local known = #names
    for _, row in ipairs(day.rows) do
      local list = day.lists[row.user]
      if not index[row.action] then
        names[#names + 1] = row.action
        index[row.action] = #names
      end
      local place = 4 * (index[row.action] - 1)
      for i = #list + 1, place + 4 do
        list[i] = 0
      end
      list[place + 1], list[place + 2] = list[place + 1] + row.charged, list[place + 2] + row.cost
      list[place + 3], list[place + 4] = list[place + 3] + row.denied, list[place + 4] + row.free
    end
    local set = #names > known and { ACTIONS, table.concat(names, ' ') } or {}
    for i = 2, #asked do
      set[#set + 1], set[#set + 2] = asked[i], cmsgpack.pack(day.lists[asked[i]])
    end
    day.set = set
  end
  return changed
end

