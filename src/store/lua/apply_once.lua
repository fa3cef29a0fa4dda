-- Second part of apply: what is charged once within a cycle. Mirrors ledger/once.rs. A mark is the hash of an action and a
-- contact, or company. The worker numbers a group's marks and says which events ask for which; known ones are free.
-- Lua's stack holds a few thousand values.
local MARKS_AT_ONCE = 4000

-- The layout of a day among an account's days; of a cycle among those whose marks it keeps.
local function layout_of(days, day)
  local _, last = string.find(days, ' ' .. day .. ':', 1, true)
  return last and string.match(days, '^%S+', last + 1)
end

-- For how many members a set must have room beside those of this call, so that the next one need not be refused: as many
-- again, and no less than half of what a single set takes, or a quarter of what one of several takes: calls differ tenfold
-- in size.
local function room_again(count, is_single, set_members_max)
  return math.max(count, math.floor(set_members_max / (is_single and 2 or 4)))
end

-- Takes the keys of a group's marks; whether the worker knows another layout than the account has.
local function read_marks(group, events, cycles, key)
  local once = {
    text = redis.call('HGET', group.key, 'once') or '', cycles = {}, known = {}, added = {}, removed = {}, mark_of = {},
  }
  for at = 1, #events, 4 do
    local e1, e2, m1, m2 = string.byte(events, at, at + 3)
    once.mark_of[e1 * 256 + e2] = m1 * 256 + m2
  end
  local is_stale = false
  for c, packed in ipairs(cycles) do
    local cycle = { day = packed[1], layout = packed[2], probes = packed[3], stored = layout_of(once.text, packed[1]) }
    for _, probe in ipairs(cycle.probes) do
      probe.key = key
      key = key + #probe
    end
    is_stale = is_stale or (cycle.stored and cycle.stored ~= cycle.layout)
    once.cycles[c] = cycle
  end
  group.once = once
  return is_stale, key
end

-- Asks which marks are known. Only those that are not count for the room in the newest sets.
local function look_at_marks(once, set_members_max)
  for _, cycle in ipairs(once.cycles) do
    for _, probe in ipairs(cycle.probes) do
      for s, set in ipairs(probe) do
        local members, marks = set[1], set[2]
        for first = 1, #members, MARKS_AT_ONCE do
          local last = math.min(first + MARKS_AT_ONCE - 1, #members)
          local is_member = redis.call('SMISMEMBER', KEYS[probe.key + s], unpack(members, first, last))
          for i = first, last do
            if is_member[i - first + 1] == 1 then
              local b1, b2 = string.byte(marks, 2 * i - 1, 2 * i)
              once.known[b1 * 256 + b2] = true
            end
          end
        end
      end
    end
    local newest = cycle.probes[#cycle.probes]
    cycle.newest, cycle.count = newest, 0
    for s, set in ipairs(newest) do
      local new = 0
      for i = 1, #set[1] do
        local b1, b2 = string.byte(set[2], 2 * i - 1, 2 * i)
        if not once.known[b1 * 256 + b2] then
          new = new + 1
        end
      end
      if new > 0 and cycle.count == 0 and cycle.stored then
        -- One of several stands for all, as for days.
        local is_single = string.match(cycle.layout, '%d+$') == '1'
        local bound = is_single and set_members_max or set_members_max * 7 / 8
        local size = redis.call('SCARD', KEYS[newest.key + s]) + new
        cycle.is_full = size > bound
        cycle.is_crowded = size + room_again(new, is_single, set_members_max) > bound
      end
      cycle.count = cycle.count + new
    end
  end
end

-- Of a group's events those that are free if all others are charged, and the marks that these set.
local function free_of(group, judge_of)
  local once, free, added = group.once, {}, {}
  for event = 1, group.count do
    local mark = once.mark_of[event]
    if mark and not group.seen[event] and judge_of(event) == 'c' then
      if once.known[mark] or added[mark] then
        free[event] = true
      else
        added[mark] = true
      end
    end
  end
  return free, added
end

-- The members of a set whose marks are among these.
local function members_of(set, marks)
  local members = {}
  for i, member in ipairs(set[1]) do
    local b1, b2 = string.byte(set[2], 2 * i - 1, 2 * i)
    if marks[b1 * 256 + b2] then
      members[#members + 1] = member
    end
  end
  return members
end

-- The cycle and the member of a mark.
local function name_of(once, mark)
  if not once.names then
    once.names = {}
    for _, cycle in ipairs(once.cycles) do
      for _, set in ipairs(cycle.probes[1]) do
        for i, member in ipairs(set[1]) do
          local b1, b2 = string.byte(set[2], 2 * i - 1, 2 * i)
          once.names[b1 * 256 + b2] = { cycle.day, member }
        end
      end
    end
  end
  return unpack(once.names[mark])
end

local function write_members(command, key, members)
  for first = 1, #members, MARKS_AT_ONCE do
    redis.call(command, key, unpack(members, first, math.min(first + MARKS_AT_ONCE - 1, #members)))
  end
end

-- Writes a group's marks, begins those of cycles that have none yet, and gives the cycles among them by layout.
local function write_marks(once)
  local text = once.text
  for _, cycle in ipairs(once.cycles) do
    for _, probe in ipairs(cycle.probes) do
      for s, set in ipairs(probe) do
        write_members('SREM', KEYS[probe.key + s], members_of(set, once.removed))
      end
    end
    for s, set in ipairs(cycle.newest) do
      write_members('SADD', KEYS[cycle.newest.key + s], members_of(set, once.added))
    end
    if not cycle.stored then
      text = text .. ' ' .. cycle.day .. ':' .. cycle.layout
    end
  end
  return text
end

