-- Part of apply, before its arguments are read: limits of members. Mirrors ledger/members.rs. The worker says which event
-- goes to which count, and what limit that has; an account without limits has no counts.
local limits = {}
function limits.read(group, packed, key)
  local of_event, told, numbers = unpack(packed)
  if not of_event then
    return key
  end
  local counts, listed, cycles = {}, {}, {}
  for c, number in ipairs(numbers) do
    local cycle = { key = KEYS[key + c], counts = {}, asked = {} }
    listed[c], cycles[number] = cycle, cycle
  end
  for i = 1, #told, 3 do
    local cycle, field = listed[told[i]], told[i + 1]
    local count = { user = string.match(field, ':(.*)$'), limit = tonumber(told[i + 2]) }
    counts[#counts + 1], cycle.counts[field], cycle.asked[#cycle.asked + 1] = count, count, field
  end
  for _, cycle in ipairs(listed) do
    for first = 1, #cycle.asked, SLICE do
      local last = math.min(first + SLICE - 1, #cycle.asked)
      for i, used in ipairs(redis.call('HMGET', cycle.key, unpack(cycle.asked, first, last))) do
        local count = cycle.counts[cycle.asked[first + i - 1]]
        count.used = tonumber(used or '0')
        count.was = count.used
      end
    end
  end
  group.members = { of_event = of_event, counts = counts, cycles = cycles }
  return key + #numbers
end

-- The count that an event goes to, should it be charged.
function limits.count_of(group, event)
  if group.members and group.members.counts[1] then
    local b1, b2 = string.byte(group.members.of_event, 2 * event - 1, 2 * event)
    return group.members.counts[b1 * 256 + b2]
  end
end

-- Takes what a void gives back out of the count that it went to.
function limits.give_back(group, number, credit_type, user, cost)
  local cycle = group.members and group.members.cycles[number]
  if cycle then
    local field = credit_type .. ':' .. user
    local count = cycle.counts[field]
    if not count then
      count = { used = tonumber(redis.call('HGET', cycle.key, field) or '0') }
      count.was, cycle.counts[field] = count.used, count
    end
    count.used = count.used - math.min(cost, count.used)
  end
end

function limits.write(members)
  for _, cycle in pairs(members.cycles) do
    local set, gone = {}, {}
    for field, count in pairs(cycle.counts) do
      if count.used ~= count.was and count.used > 0 then
        set[#set + 1], set[#set + 2] = field, text(count.used)
      elseif count.used ~= count.was then
        gone[#gone + 1] = field
      end
    end
    write_sliced('HSET', cycle.key, set)
    write_sliced('HDEL', cycle.key, gone)
  end
end

