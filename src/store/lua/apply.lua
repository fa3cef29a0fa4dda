-- apply: usage events of one shard, each at most once, and the ranges of offsets that they come from. Preceded by
-- account.lua, usage.lua, apply_once.lua and apply_members.lua; goes on in apply_late.lua, apply_usage.lua, apply_void.lua and
-- apply_decide.lua.
-- KEYS[1] shard   hash    positions, totals, generation, catalogue, floor
-- KEYS[2] notes   hash    records found dead: 'partition@offset' -> reason
-- KEYS[3] outbox  stream
-- KEYS[4] due     zset    every account
-- KEYS[5..]       for each group its account (hash), then for each of its runs the sets of identities that its probes
--                 touch and the charges of its days, if it asks for them, then its usage of each of its days (hash, and
--                 its journal, a string), then for each of its cycles with marks the sets that it touches, then what was
--                 charged to members in each cycle that is asked for (hash)
-- ARGV    generation, catalogue version, catalogue hash, outbox bound, restamp tolerance in ms,
--         end of the commands topic ('' = not asked), commands that must be applied first ('' = any),
--         members of a set beyond which its day gets more, bytes of a journal of usage, usage topic,
--         the same as JSON text,
--         ranges: n, then n x (partition, from, to, repeats, anchor and time reached of the last record, or '')
--         others: n, then n x (partition, position that the worker knows)
--         dead:   n, then n x (range, offset, reason, '1' if its dead letter is in Kafka)
--         groups, in MessagePack: account, version, wants, policy, oldest date, latest date,
--           tally: kind, events, for each kind among its events
--           kinds: two bytes an event
--           where its lines begin
--           days of usage, what is told of it (see usage.lua), two bytes an event: which row it belongs to
--           runs:  days, events, members (empty if no probe asks for them all), probes: for each the sets of one
--                  generation; none = one set for all members, else for each set its members and, in two bytes each,
--                  which of the run's events they are; charges asked for, or none: members (for a void that of the
--                  event that it names) and, in two bytes each, their events
--           marks that events ask for: two bytes an event, two its mark
--           cycles of these: number, layout, for each generation its sets: members, and two bytes each their marks
--           number of the open cycle
--           members, nothing if the account limits none of what the events cost, and none is a void: two bytes an event:
--             which count it goes to, 0 = none; counts: cycle, field, limit in thousandths or '' = only counted; numbers of
--             the cycles
--           events of the open cycle that its plan is not entitled to, in order: event, what those before it cost in its
--             type in thousandths, where its line begins
--         tables, in MessagePack, lists that the groups point into:
--           types:    name
--           wants:    the types (of an account) that a group needs
--           classes:  action, type, cost in thousandths, judge: 'c'harge | 'f'ree | not 'e'ntitled | 'v'oid, or the
--                     verdict in upper case (denied 'E', 'I', 'O', 'M', capped 'P'): it stands already, and nothing is
--                     published about it again; 'R': the call holds an earlier attempt, of the neighbouring day; the
--                     closed cycle that it is charged to, '' = the open one; '1': what it is charged is kept, for a void to come
--           kinds:    range, class
--           sources:  as JSON text
--           policies: overage ('reject' | 'cap' | 'allow'), overage limit, levels at which it alerts
--           days:     day, its layout, neighbouring day or '', its layout or '' = it has none, probes of the own day;
--                     the last of those is where identities are added
--         lines, an event each: offset, date, source, its id as JSON text; one long text, since Lua hashes every byte of
--                 every text that it makes, and a line is needed only where a message names its event
--         all indexes count from 1, those of 'dead' from 0; a call without ranges and events only asks for accounts
-- Reply   in order of precedence; all but 'applied' wrote nothing, but for the notes of 'dead' and the layouts of a 'stale'
--         that a full day causes, which comes last:
--         {'other_generation', stored} {'torn', writes begun, ended} {'done_before'} {'other_position', stored of each range}
--         {'other_catalogue', version, hash} {'fell_back'}
--         {'stale', then for each: group, n, n x (field, value) of the account}
--         {'account_lost', account} {'unknown', position of the commands} {'dead', then for each: 'partition@offset', reason}
--         {'outbox_full', entries}
--         {'applied', outbox entries, then for each group the events that ended otherwise than free, for classes that
--           are, or charged, for all others: a verdict's letter and two bytes each, then for each day that gets more sets
--           from now on: group, day, layout; for marks: group, 'o' and cycle, layout; for classes with capped events: group,
--           'u' and class, what of their costs was not charged}
local DENIED_EVENTS_MAX = 500
local DENIED_BYTES_MAX = 262144
local byte, format, match = string.byte, string.format, string.match

local generation, catalogue_version, catalogue_hash = take(), take(), take()
local outbox_max, restamp_tolerance = take_number(), take()
local commands_end, commands_first = take(), take()
local set_members_max, journal_bytes_max = take_number(), take_number()
local topic, topic_text = take(), take()

local range_count = take_number()
local partition, from, to, repeats, anchor, reached = {}, {}, {}, {}, {}, {}
for r = 1, range_count do
  partition[r], from[r], to[r], repeats[r] = take(), take_number(), take(), take_number()
  anchor[r], reached[r] = take(), take()
  assert(from[r] <= tonumber(to[r]), 'apply: a range goes back')
end

-- The fence, before anything else.
local TOTALS = { 'dead_lettered', 'duplicate', 'denied', 'free', 'capped', 'charged', 'voided' }
local FIELDS = 1 + #TOTALS
local fields = {}
for r = 1, range_count do
  fields[#fields + 1] = 'position:' .. partition[r]
  for _, outcome in ipairs(TOTALS) do
    fields[#fields + 1] = 'total:' .. partition[r] .. ':' .. outcome
  end
end
local FENCE = 8
local fence = redis.call('HMGET', KEYS[1], 'generation', 'catalogue_version', 'catalogue_hash', 'floor_ms',
  'restamp_tolerance_ms', 'position:commands:0', 'begun', 'ended', unpack(fields))
if fence[1] ~= generation then
  return { 'other_generation', fence[1] or '' }
end
if torn(fence[7], fence[8]) then
  return torn(fence[7], fence[8])
end
local in_place, done_before = true, true
local positions = { 'other_position' }
for r = 1, range_count do
  local stored = fence[FENCE + FIELDS * (r - 1) + 1] or '0'
  positions[r + 1] = stored
  in_place = in_place and tonumber(stored) == from[r]
  done_before = done_before and tonumber(stored) >= tonumber(to[r])
end
if not in_place then
  return done_before and { 'done_before' } or positions
end
if fence[2] ~= catalogue_version or fence[3] ~= catalogue_hash then
  return { 'other_catalogue', fence[2], fence[3] }
end

if fell_back(KEYS[1]) then
  return { 'fell_back' }
end

local dead_count = take_number()
local dead_range, dead_name, dead_reason = {}, {}, {}
local declared = {}
local found_dead = false
for d = 1, dead_count do
  local r = take_number() + 1
  local name = partition[r] .. '@' .. take()
  dead_range[d], dead_name[d], dead_reason[d] = r, name, take()
  if take() == '1' then
    declared[name] = true
  else
    found_dead = true
  end
end

local packed_groups = cmsgpack.unpack(take())
local type_name, wants, classes, kinds, sources, policies, days_of = unpack(cmsgpack.unpack(take()))
local lines = take()
local class_action, class_type, class_cost, class_judge, class_cycle, class_voidable = {}, {}, {}, {}, {}, {}
local holds_repeats = false
for c, class in ipairs(classes) do
  class_action[c], class_type[c], class_cost[c], class_judge[c] = class[1], class[2], tonumber(class[3]), class[4]
  class_cycle[c], class_voidable[c] = tonumber(class[5]), class[6] == '1'
  holds_repeats = holds_repeats or class[4] == 'R'
end
local kind_count = #kinds
local kind_range, kind_class = {}, {}
for k, kind in ipairs(kinds) do
  kind_range[k], kind_class[k] = kind[1], kind[2]
end

-- The fields of an account that a group needs.
local wanted_of = {}
for w, want in ipairs(wants) do
  local wanted = { 'version', 'days' }
  for _, t in ipairs(want) do
    local name = type_name[t]
    local n = #wanted
    wanted[n + 1], wanted[n + 2], wanted[n + 3] = name .. '.g', name .. '.c', name .. '.e'
  end
  wanted_of[w] = wanted
end

local levels_of = {}
for p, policy in ipairs(policies) do
  levels_of[p] = codes_from(policy[3])
end

-- What is kept of a run's voidable events, and of those that its voids name.
local charges = { book = {}, changed = {} }
function charges.read(group, run, key)
  local members, events = run.asks[1], run.asks[2]
  local keys = { KEYS[key + 1], run.neighbour ~= '' and KEYS[key + 2] or nil }
  for _, name in ipairs(keys) do
    local kept = charges.book[name] or {}
    for i, text in ipairs(redis.call('HMGET', name, unpack(members))) do
      kept[members[i]] = text
    end
    charges.book[name] = kept
  end
  for i, member in ipairs(members) do
    local b1, b2 = byte(events, 2 * i - 1, 2 * i)
    group.asks[run.first_event - 1 + b1 * 256 + b2] = { member = member, keys = keys }
  end
  return key + #keys
end

-- The key under which something is kept of the event that is asked for, and what.
function charges.kept_of(ask)
  for _, name in ipairs(ask.keys) do
    if charges.book[name][ask.member] then
      return name, charges.book[name][ask.member]
    end
  end
end

-- Whether a void of the group asks for a charge to a cycle that is kept no more.
function charges.find_late_voids(group)
  for e, ask in pairs(group.asks) do
    local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
    local _, text = charges.kept_of(ask)
    local number = text and class_judge[kind_class[b1 * 256 + b2]] == 'v' and match(text, '^%S+ %d+ (%-?%d+)')
    if number then
      local stored = redis.call('HMGET', group.key, 'cycle', 'life', 'closed:' .. number)
      local is_open = stored[1] and match(stored[1], '^%S+') == number and stored[2] ~= 'closed'
      if not is_open and not stored[3] then
        group.late_voids = group.late_voids or {}
        group.late_voids[e] = true
      end
    end
  end
  return group.late_voids
end

-- Accounts: read each once; is the worker's knowledge of them stale?
local group_count = #packed_groups
local groups = {}
local key = 4
local stale = { 'stale' }
local unknown = false
local floor = tonumber(fence[4])
local below_floor = false
for g = 1, group_count do
  local account, version, want, policy, oldest, latest, tally, event_kinds, first_line, used_days, used, row_of, packed_runs,
    marks, cycles, cycle, members, unentitled = unpack(packed_groups[g])
  key = key + 1
  local group = {
    account = account, version = version, types = wants[want], overage = policies[policy][1],
    limit = tonumber(policies[policy][2]), levels = levels_of[policy],
    tally = tally, kinds = event_kinds, first_line = first_line, used = used, row_of = row_of, runs = {}, key = KEYS[key],
    latest = latest, cycle = cycle, used_days = used_days, asks = {}, unentitled = unentitled,
  }
  local event = 0
  for r, packed in ipairs(packed_runs) do
    local days = days_of[packed[1]]
    local run = {
      day = days[1], layout = days[2], neighbour = days[3], beside = days[4], newest = days[5],
      first_event = event + 1, count = packed[2], members = packed[3], probes = packed[4], asks = packed[5],
    }
    event = event + run.count
    for _, probe in ipairs(run.probes) do
      probe.key = key
      key = key + math.max(1, #probe)
    end
    if run.asks[1] then
      key = charges.read(group, run, key)
    end
    group.runs[r] = run
  end
  group.count = event
  group.used_key = key
  key = key + 2 * #used_days
  local stored = redis.call('HMGET', group.key, unpack(wanted_of[want]))
  group.stored = stored
  local is_stale = (stored[1] or '0') ~= group.version
  if stored[1] then
    local days = stored[2] or ''
    for _, run in ipairs(group.runs) do
      run.stored = layout_of(days, run.day)
      is_stale = is_stale or (run.stored and run.stored ~= run.layout)
        or (run.neighbour ~= '' and (layout_of(days, run.neighbour) or '') ~= run.beside)
    end
  end
  if #cycles > 0 then
    local other_marks
    other_marks, key = read_marks(group, marks, cycles, key)
    is_stale = is_stale or other_marks
  end
  key = limits.read(group, members, key)
  if is_stale then
    local shown = redis.call('HGETALL', group.key)
    local n = #stale
    stale[n + 1], stale[n + 2] = tostring(g - 1), tostring(#shown / 2)
    for i = 1, #shown do
      stale[n + 2 + i] = shown[i]
    end
  end
  unknown = unknown or (group.version == '0' and group.count > 0)
  -- Of each group, also where another is below the floor: all that is dead is told at once.
  local late_voids = charges.find_late_voids(group)
  below_floor = below_floor or (group.count > 0 and tonumber(oldest) < floor) or late_voids
  groups[g] = group
end
assert(at == #ARGV and key == #KEYS, 'apply: wrong arity')
if #stale > 1 then
  return stale
end
if unknown then
  for g = 1, group_count do
    local account = groups[g].account
    if groups[g].version == '0' and redis.call('ZSCORE', KEYS[4], account) then
      return { 'account_lost', account }
    end
  end
end
local commands_position = fence[6] or '0'
local too_soon = commands_first ~= '' and tonumber(commands_position) < tonumber(commands_first)
if too_soon or unknown and (commands_end == '' or tonumber(commands_position) < tonumber(commands_end)) then
  return { 'unknown', commands_position }
end

-- Dead records: each must be noted before its dead letter counts, and each note within the ranges decides.
local noted = {}
if redis.call('HLEN', KEYS[2]) > 0 then
  local all = redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    noted[all[i]] = all[i + 1]
  end
end
-- Gives an event's line, later events after earlier ones.
local function lines_of(group)
  local line, start = 1, group.first_line
  return function(event)
    while line < event do
      start = string.find(lines, '\n', start, true) + 1
      line = line + 1
    end
    return string.sub(lines, start, string.find(lines, '\n', start, true) - 1)
  end
end

local new_notes = {}
local function find_dead(name, reason)
  found_dead = true
  if not noted[name] then
    noted[name], new_notes[#new_notes + 1], new_notes[#new_notes + 2] = reason, name, reason
  end
end
for d = 1, dead_count do
  -- Redis may be older than the dead letter.
  if not declared[dead_name[d]] or not noted[dead_name[d]] then
    find_dead(dead_name[d], dead_reason[d])
  end
end
if unknown or below_floor then
  for g = 1, group_count do
    local group = groups[g]
    local line_of = lines_of(group)
    for e = 1, group.count do
      local offset, date = match(line_of(e), '^(%d+) (-?%d+) ')
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      local name = partition[kind_range[b1 * 256 + b2]] .. '@' .. offset
      local is_void = class_judge[kind_class[b1 * 256 + b2]] == 'v'
      if group.version == '0' then
        find_dead(name, 'unknown_account')
      elseif tonumber(date) < floor then
        find_dead(name, is_void and 'void_too_late' or 'too_late')
      elseif group.late_voids and group.late_voids[e] then
        find_dead(name, 'void_too_late')
      end
    end
  end
end
local in_ranges = {}
local undeclared = false
for name, reason in pairs(noted) do
  local noted_partition, offset = match(name, '^(.*)@(%d+)$')
  offset = tonumber(offset)
  for r = 1, range_count do
    if partition[r] == noted_partition and from[r] <= offset and offset < tonumber(to[r]) then
      in_ranges[#in_ranges + 1] = { r, offset, name, reason }
      undeclared = undeclared or not declared[name]
    end
  end
end
if found_dead or undeclared then
  table.sort(in_ranges, function(a, b)
    if a[1] ~= b[1] then
      return a[1] < b[1]
    end
    return a[2] < b[2]
  end)
  local reply = { 'dead' }
  for _, note in ipairs(in_ranges) do
    reply[#reply + 1] = note[3]
    reply[#reply + 1] = note[4]
  end
  -- The only write of this refusal: notes, by which a record stays dead whoever reads it next.
  for i = 1, #new_notes, 2000 do
    redis.call('HSET', KEYS[2], unpack(new_notes, i, math.min(i + 1999, #new_notes)))
  end
  return reply
end
local outbox_entries = redis.call('XLEN', KEYS[3])
if outbox_entries >= outbox_max then
  return { 'outbox_full', tostring(outbox_entries) }
end

-- What was seen before. The worker has taken out repeats within the call.
local function look(probe, run, seen)
  local new = {}
  local before_run = run.first_event - 1
  for s = 1, math.max(1, #probe) do
    local members, events = run.members, nil
    if probe[s] then
      members, events = probe[s][1], probe[s][2]
    end
    local is_member = redis.call('SMISMEMBER', KEYS[probe.key + s], unpack(members))
    local count, known = #members, 0
    for i = 1, count do
      if is_member[i] == 1 then
        known = known + 1
        local event = i
        if events then
          local b1, b2 = byte(events, 2 * i - 1, 2 * i)
          event = b1 * 256 + b2
        end
        seen[before_run + event] = true
      end
    end
    new[s] = known < count and members or nil
    if probe.is_newest and run.stored and s == 1 then
      -- One of several stands for all, and they are full a little earlier, since they do not fill evenly.
      local bound = probe[s] and set_members_max * 7 / 8 or set_members_max
      local members = redis.call('SCARD', KEYS[probe.key + s]) + count
      run.is_full, run.is_crowded = members > bound, members + room_again(count, not probe[s], set_members_max) > bound
    end
  end
  probe.new = new
end

-- The layout of a day with one generation of sets more, for so many events to come.
local SETS_MAX, GROWTH = 4096, 8
local function grown(layout, count)
  local sets, enough = 1, math.ceil(count * 8 / set_members_max)
  while sets < enough do
    sets = sets * 2
  end
  local next = math.min(tonumber(match(layout, '%d+$')) * GROWTH, SETS_MAX)
  return layout .. ',' .. format('%.0f', math.max(next, math.min(sets, SETS_MAX)))
end

-- An account's days, one of them with one generation more; as they are if another run has seen to it.
local function more_sets(days, run)
  local first, last = string.find(days, ' ' .. run.day .. ':' .. run.layout, 1, true)
  if not first or layout_of(days, run.day) ~= run.layout then
    return days, nil
  end
  local layout = grown(run.layout, run.count)
  return string.sub(days, 1, first - 1) .. ' ' .. run.day .. ':' .. layout .. string.sub(days, last + 1), layout
end

local growing = {}
for g = 1, group_count do
  local group = groups[g]
  local seen = {}
  local days = group.stored[2] or ''
  for _, run in ipairs(group.runs) do
    run.probes[run.newest].is_newest = true
    for _, probe in ipairs(run.probes) do
      look(probe, run, seen)
    end
    if run.is_full then
      local layout
      days, layout = more_sets(days, run)
      if layout then
        growing[#growing + 1] = g
      end
    end
  end
  if group.once then
    look_at_marks(group.once, set_members_max)
    for _, cycle in ipairs(group.once.cycles) do
      if cycle.is_full then
        group.once.text = more_sets(group.once.text, cycle)
        growing[#growing + 1] = g
      end
    end
  end
  if holds_repeats then
    for e = 1, group.count do
      local b1, b2 = byte(group.kinds, 2 * e - 1, 2 * e)
      if class_judge[kind_class[b1 * 256 + b2]] == 'R' then
        seen[e] = true
      end
    end
  end
  group.days = days
  group.seen, group.any_seen = seen, next(seen) ~= nil
end
if #growing > 0 then
  -- The only write of this refused call: new layouts of days and marks, by which all workers then go.
  local reply = { 'stale' }
  for i, g in ipairs(growing) do
    if growing[i - 1] ~= g then
      local layouts = { 'days', groups[g].days }
      if groups[g].once then
        layouts[3], layouts[4] = 'once', groups[g].once.text
      end
      redis.call('HSET', groups[g].key, unpack(layouts))
      local shown = redis.call('HGETALL', groups[g].key)
      local n = #reply
      reply[n + 1], reply[n + 2] = tostring(g - 1), tostring(#shown / 2)
      for f = 1, #shown do
        reply[n + 2 + f] = shown[f]
      end
    end
  end
  return reply
end
-- It goes on in apply_late.lua: the parts are one script.
