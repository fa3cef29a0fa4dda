
-- Usage by day, member and action, behind account.lua: for apply, which adds to it, and fold_usage.
--
-- A day of an account is a hash, with a list of numbers for each member, and a journal: rows that are not in these lists
-- yet. A call touches nearly as many members as it has events, and to read, unpack, pack and write the list of each took more
-- time than to charge the events. In MessagePack, one behind the other:
--   told       {actions, then a column each: member, place of the action, events charged, thousandths, events free,
--              and where a call has several days, which day}
--   otherwise  {rows of the table before, then by what they differ: events charged, thousandths, events denied, free}
local ACTIONS = '\t'
local usage = {}

-- A day in hand: its members' lists are read once, added to, and written once.
function usage.day(key, journal)
  return { key = key, journal = journal, asked = { ACTIONS }, lists = {} }
end

function usage.ask(day, user)
  if day.lists[user] == nil then
    day.lists[user], day.asked[#day.asked + 1] = false, user
  end
end

function usage.read(day)
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

-- Where the numbers of each of these actions begin in a list, from 0.
function usage.places(day, actions)
  local places = {}
  for i, name in ipairs(actions) do
    if not day.index[name] then
      day.names[#day.names + 1] = name
      day.index[name] = #day.names
    end
    places[i] = 4 * (day.index[name] - 1)
  end
  return places
end

function usage.add(list, place, charged, cost, denied, free)
  for i = #list + 1, place + 4 do
    list[i] = 0
  end
  list[place + 1], list[place + 2] = list[place + 1] + charged, list[place + 2] + cost
  list[place + 3], list[place + 4] = list[place + 3] + denied, list[place + 4] + free
end

-- What is to be set in a day's hash.
function usage.finish(day)
  local set = #day.names > day.known and { ACTIONS, table.concat(day.names, ' ') } or {}
  for i = 2, #day.asked do
    local user = day.asked[i]
    set[#set + 1], set[#set + 2] = user, cmsgpack.pack(day.lists[user])
  end
  day.set = set
  return day
end

-- Calls `told` with each table of rows of a journal, unpacked, and `otherwise` with each that corrects the one before it.
function usage.each(parts, told, otherwise)
  local before
  for _, part in ipairs(parts) do
    if type(part[2][1]) == 'string' then
      before = part
      told(part)
    else
      otherwise(part, before)
    end
  end
end

-- A day with everything that a journal has.
function usage.folded(day, journal)
  local parts = { cmsgpack.unpack(journal) }
  usage.each(parts, function(told)
    for _, user in ipairs(told[2]) do
      usage.ask(day, user)
    end
  end, function() end)
  usage.read(day)
  local places
  usage.each(parts, function(told)
    places = usage.places(day, told[1])
    local user, action, charged, cost, free = told[2], told[3], told[4], told[5], told[6]
    for r = 1, #user do
      usage.add(day.lists[user[r]], places[action[r]], charged[r], cost[r], 0, free[r])
    end
  end, function(otherwise, told)
    local charged, cost, denied, free = otherwise[2], otherwise[3], otherwise[4], otherwise[5]
    for i, r in ipairs(otherwise[1]) do
      usage.add(day.lists[told[2][r]], places[told[3][r]], charged[i], cost[i], denied[i], free[i])
    end
  end)
  day.is_folded = true
  return usage.finish(day)
end

function usage.write(day)
  if day.added then
    redis.call('APPEND', day.journal, day.added)
    return
  end
  write_sliced('HSET', day.key, day.set)
  if day.is_folded then
    redis.call('DEL', day.journal)
  end
end
