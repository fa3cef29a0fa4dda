
-- Third part of apply: what an event costs whom. The same rule for the open cycle and for closed ones.
local RECORDED = { E = 1, I = 2, O = 3, P = 4, M = 5 }

-- Why an event of a class is not charged, or not whole (nil: it is), and how much is not covered. `over`: what was
-- charged beyond the grants before; `over_limit`: the member would be above its own.
local function reason_of(class, left, charged, over, overage, limit, over_limit)
  local cost, judge = class_cost[class], class_judge[class]
  if RECORDED[judge] then
    return RECORDED[judge], 0
  elseif judge == 'e' then
    return 1, 0
  elseif over_limit then
    return 5, 0
  elseif not left then
    return charged + cost > BALANCE_MAX and 3 or nil, 0
  elseif cost <= left then
    return nil, 0
  elseif overage == 'reject' then
    return 2, 0
  elseif overage == 'cap' then
    return 4, cost - left
  end
  return over + cost - left > limit and 3 or nil, 0
end

-- A closed cycle takes credits of a lot that had gone on from it; below zero, gives them back.
local function take_late(account, number, lot, taken)
  if taken == 0 then
    return
  end
  local credit_type, kind = lot.credit_type, lot.kind
  take_from(lot, number, taken)
  for other, closed in pairs(account.closed) do
    if other >= number then
      local c = closed_counter_of(closed, credit_type)
      c.moved = total(c.granted) and c.moved - taken or 0
      if other > number then
        c.granted[kind] = c.granted[kind] - taken
        change_closed(closed)
      end
    end
  end
  local pool, c = pool_of(account, credit_type), counter_of(account, credit_type)
  pool.granted[kind] = pool.granted[kind] - taken
  c.granted = c.granted and c.granted - taken
end

-- Decides an event of a closed cycle, and charges it: from what expired at its close, then from lots in force at its
-- time. Gives the reason, what is not covered, and what remained.
local function use_late(account, class, credit_type, dated, over_limit)
  local number = class_cycle[class]
  local closed = account.closed[number]
  local c = closed.counters[credit_type]
    or { granted = new_granted(), charged = 0, expired = 0, moved = 0, spare = 0, denied = 0 }
  local granted = total(c.granted)
  local left, lots = nil, {}
  if granted then
    settle(account, credit_type)
    left = c.spare
    for _, source in ipairs(burn_order(account, credit_type)) do
      if source[5] >= 0 and source[4] <= dated then
        lots[#lots + 1] = source[6]
        left = left + source[6].left
      end
    end
  end
  local over = granted and c.charged - math.min(c.charged, granted - c.expired - c.moved) or 0
  local overage, limit = closed.overage, BALANCE_MAX
  if string.sub(overage, 1, 6) == 'allow:' then
    overage, limit = 'allow', tonumber(string.sub(overage, 7))
  end
  local reason, uncovered = reason_of(class, left, c.charged, over, overage, limit, over_limit)
  closed.counters[credit_type] = c
  change_closed(closed)
  if not reason or reason == 4 then
    local cost = class_cost[class] - uncovered
    local spare = math.min(cost, c.spare)
    c.charged, c.spare, c.expired = c.charged + cost, c.spare - spare, c.expired - spare
    local open = cost - spare
    for _, lot in ipairs(lots) do
      local taken = math.min(open, lot.left)
      open = open - taken
      take_late(account, number, lot, taken)
    end
  else
    c.denied = c.denied + 1
  end
  return reason, uncovered, left
end
