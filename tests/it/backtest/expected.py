"""expected.py events.ndjson [--until TIME] > expected.json

What a file of commands and usage comes to, cycle by cycle: a second, separate implementation of the meter's rules,
written from their description. It shares no code with the meter. Unlike the meter it takes every charge from its
grants at once, so that it needs no settling.

    {"statements": [{"account", "plan", "cycle", "open", "balances"}...],
     "usage", "commands": {outcome: records}, "not_judged", "refused": {reason: records}}
"""

import argparse
import json
import tomllib
from bisect import bisect_left
from collections import Counter
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

CATALOGUE = Path(__file__).resolve().parents[2] / "data" / "catalogue-independent.toml"
MONTHS = {"monthly": 1, "quarterly": 3, "semi_annual": 6, "annual": 12}
KINDS = ["plan", "addon", "carried", "adjusted", "topup", "promo"]
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
LATE_AFTER, TOLERANCE = 72 * HOUR, 10 * MINUTE
COST_MAX, QUANTITY_MAX = 10 ** 8 * 1000, 10 ** 15
UTC = timezone.utc


class Refused(Exception):
    """A command changes nothing; the text is the reason."""


class Dead(Exception):
    """A record cannot be judged; the text is the reason."""


def thousandths(credits):
    exact = Decimal(str(credits)) * 1000
    assert exact == int(exact)
    return int(exact)


def credits(amount):
    return None if amount is None else amount // 1000 if amount % 1000 == 0 else amount / 1000


def ms(text):
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000 + 0.5)


def rfc3339(time):
    seconds, rest = divmod(time, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:03}Z" if rest else f"{text}Z"


# ---- the calendar ----------------------------------------------------------------------------------------------

def first_instant(day, zone):
    """The first second whose local date is not before `day`, as ms."""
    middle = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    seconds = range(middle - 36 * 3600, middle + 36 * 3600)
    return seconds[bisect_left(seconds, day, key=lambda second: datetime.fromtimestamp(second, zone).date())] * 1000


def boundary(config, number):
    year, month = divmod(config.anchor.year * 12 + config.anchor.month - 1 + number * MONTHS[config.interval], 12)
    for last in (31, 30, 29, 28):
        try:
            return first_instant(date(year, month + 1, min(config.anchor.day, last)), ZoneInfo(config.timezone))
        except ValueError:
            continue


def cycle_at(config, time):
    """Number, start and end of the cycle that holds a time."""
    day = datetime.fromtimestamp(time // 1000, UTC)
    months = (day.year - config.anchor.year) * 12 + day.month - config.anchor.month
    number = months // MONTHS[config.interval] - 1
    while boundary(config, number + 1) <= time:
        number += 1
    return number, boundary(config, number), boundary(config, number + 1)


def end_after(config, start):
    """A cycle is never shorter than half an interval."""
    return cycle_at(config, start + 15 * DAY * MONTHS[config.interval])[2]


# ---- accounts --------------------------------------------------------------------------------------------------

class Config:
    def __init__(self, data, plans):
        self.plan = data["plan"]
        self.anchor = date.fromisoformat(data["anchor"])
        self.interval = data.get("interval") or plans[self.plan]["interval"]
        self.timezone = data.get("timezone", "UTC")
        self.addons = {each["credit_type"]: thousandths(each["amount"]) for each in data.get("addons", [])}
        self.overage = data.get("overage")

    def key(self):
        return (self.plan, self.anchor, self.interval, self.timezone, sorted(self.addons.items()), str(self.overage))


class Source:
    """Credits that burn: the pool of plan, add-ons and adjustments, or a top-up or promo."""

    def __init__(self, kind, left, priority=100, effective=0, expires=None, command=None, created=-1, begun=True):
        self.kind, self.left, self.priority = kind, left, priority
        self.effective, self.expires, self.command = effective, expires, command
        self.created, self.begun = created, begun


class Type:
    """One credit type in one cycle."""

    def __init__(self):
        self.granted = dict.fromkeys(KINDS, 0)
        self.charged = self.expired = self.moved = self.spare = self.denied = self.over = 0

    def total(self):
        return None if None in self.granted.values() else sum(self.granted.values())

    def any(self):
        return any(value != 0 for value in [*self.granted.values(), self.charged, self.expired, self.moved, self.denied])

    def shown(self, remaining):
        total = self.total()
        over = 0 if total is None else self.charged - min(self.charged, total - self.expired - remaining)
        return {
            "granted": credits(total), "granted_by": {kind: credits(self.granted[kind]) for kind in KINDS},
            "used": credits(self.charged - over), "expired": credits(self.expired),
            "remaining": None if total is None else credits(remaining), "overage": credits(over), "denied": self.denied,
        }


class Account:
    def __init__(self, meter, name, config, time):
        self.meter, self.name, self.config, self.next = meter, name, config, None
        self.number, self.start, self.end = cycle_at(config, time)
        self.since, self.closing, self.closed_for_good = self.start, False, False
        self.types, self.pools, self.lots, self.cycles = {}, {}, [], {}
        self.seen, self.commands, self.marks = set(), set(), set()
        self.grant_plan()

    def plan(self):
        return self.meter.plans[self.config.plan]

    def type(self, name):
        return self.types.setdefault(name, Type())

    def pool(self, name):
        return self.pools.setdefault(name, Source("pool", 0, effective=self.start))

    def grant_plan(self):
        for name, amount in self.plan()["allowance"].items():
            self.give(name, "plan", None if amount == "unlimited" else thousandths(amount))
        for name, amount in self.config.addons.items():
            self.give(name, "addon", amount)

    def give(self, name, kind, amount, lot=None):
        counted = self.type(name)
        if amount is None:
            counted.granted[kind] = None
            return
        if counted.granted[kind] is not None:
            counted.granted[kind] += amount
        if lot is None:
            self.pool(name).left += amount
        # What was charged beyond the grants is covered first.
        open_, counted.over = counted.over, 0
        self.burn(name, open_)

    def sources(self, name):
        lots = [lot for lot in self.lots if lot.begun and lot.name == name]

        def order(source):
            expires = self.end if source.expires is None else source.expires
            return source.priority, expires, source.kind not in ("pool", "promo") or source.kind == "pool", source.effective, source.created
        return sorted(lots + [self.pool(name)], key=order)

    def burn(self, name, amount):
        counted = self.type(name)
        if counted.total() is None:
            return
        for source in self.sources(name):
            taken = min(amount, source.left)
            source.left -= taken
            amount -= taken
        counted.over += amount

    def remaining(self, name):
        return sum(source.left for source in self.sources(name))

    # -- time

    def pass_to(self, time):
        while not self.closed_for_good:
            lots = [lot.expires if lot.begun else lot.effective for lot in self.lots]
            due = min([self.end] + [at for at in lots if at is not None])
            if due > time:
                return
            if due < self.end:
                self.end_lots(lambda lot: lot.expires is not None and lot.expires <= due)
                self.begin_lots(due)
            else:
                self.renew()

    def end_lots(self, ends):
        for lot in [lot for lot in self.lots if lot.begun and ends(lot)]:
            self.lots.remove(lot)
            self.type(lot.name).expired += lot.left
            self.type(lot.name).spare += lot.left

    def begin_lots(self, time):
        for lot in self.lots:
            if not lot.begun and lot.effective <= time:
                lot.begun = True
                self.give(lot.name, lot.kind, lot.left, lot)

    def renew(self):
        for counted in self.types.values():
            counted.spare = 0
        if self.closing:
            self.end_lots(lambda lot: True)
            self.lots = []
        else:
            self.end_lots(lambda lot: lot.expires is None or lot.expires <= self.end)
        for name in {lot.name for lot in self.lots}:
            self.type(name)
        for name, counted in self.types.items():
            left = self.pool(name).left
            if counted.total() is not None:
                counted.expired += left
                counted.spare += left
                counted.moved = sum(lot.left for lot in self.lots if lot.begun and lot.name == name)
        overage = self.overage()
        self.cycles[self.number] = (self.start, self.end, self.config.plan, overage, self.types)
        self.types, self.pools = {}, {}
        if self.closing:
            self.closed_for_good = True
            return
        if self.next:
            self.config, self.next = self.next, None
        self.number, self.start, self.end = self.number + 1, self.end, end_after(self.config, self.end)
        for lot in self.lots:
            if lot.begun:
                self.type(lot.name).granted[lot.kind] += lot.left
        self.grant_plan()
        self.begin_lots(self.start)

    def overage(self):
        return self.config.overage or self.plan().get("overage", "reject")

    # -- commands

    def at(self, time):
        return max(time, self.start)

    def put(self, wanted):
        old, plans = self.config, self.meter.plans
        larger = wanted.interval == old.interval and allows_all(plans[wanted.plan], plans[old.plan])
        now = Config.__new__(Config)
        now.__dict__.update(wanted.__dict__ | {"anchor": old.anchor, "timezone": old.timezone, "interval": old.interval})
        now.plan = wanted.plan if larger else old.plan
        self.config = now
        self.next = wanted if now.key() != wanted.key() else None
        grants = [("addon", now.addons)]
        if larger:
            grants.insert(0, ("plan", {name: thousandths(amount) for name, amount in self.plan()["allowance"].items()}))
        for kind, amounts in grants:
            for name, amount in amounts.items():
                before = self.type(name).granted[kind]
                if amount > before:
                    self.give(name, kind, amount - before)

    def grant(self, data, time, id, line):
        if data["credit_type"] not in self.meter.types:
            raise Refused("unknown_credit_type")
        now = self.at(time)
        effective = max(ms(data["effective_at"]) if "effective_at" in data else now, now)
        expires = ms(data["expires_at"]) if "expires_at" in data else None
        if expires is not None and expires <= effective:
            raise Refused("invalid_command")
        amount = thousandths(data["amount"])
        priority = data.get("priority", 100)
        lot = Source(data["kind"], amount, priority, effective, expires, id, line, begun=effective <= now)
        lot.name = data["credit_type"]
        self.lots.append(lot)
        if lot.begun:
            self.give(lot.name, lot.kind, amount, lot)

    def void(self, id):
        for lot in self.lots:
            if lot.command == id:
                self.lots.remove(lot)
                if lot.begun:
                    self.type(lot.name).granted[lot.kind] -= lot.left
                return
        raise Refused("unknown_grant")

    def adjust(self, data):
        amount = thousandths(data["amount"])
        if amount > 0:
            self.give(data["credit_type"], "adjusted", amount)
        else:
            self.type(data["credit_type"]).charged -= amount
            self.burn(data["credit_type"], -amount)

    def close(self, time):
        self.closing, self.end, self.next = True, self.at(time), None

    # -- usage

    def terms(self, time):
        if not self.closed_for_good and self.start <= time < self.end:
            return self.config.plan, self.overage(), None
        for number, (start, end, plan, overage, _) in self.cycles.items():
            if start <= time < end and end > self.meter.floor:
                return plan, overage, number
        if time < self.since:
            raise Dead("before_account")
        raise Dead("too_late" if time < self.end else "account_closed")

    def use(self, event, time, cost, name):
        plan, overage, number = self.terms(time)
        if cost > COST_MAX:
            raise Dead("cost_too_large")
        if time < self.meter.floor:
            raise Dead("too_late")
        day, into = divmod(time, DAY)
        days = [day, day - 1] if into < TOLERANCE else [day, day + 1] if DAY - into <= TOLERANCE else [day]
        identity = event["source"], event["id"]
        duplicate = any((identity, each) in self.seen for each in days)
        self.seen.add((identity, day))
        if duplicate:
            return "duplicate"
        action, data = self.meter.actions[event["data"]["action"]], event["data"]
        entitled = data["action"] in self.meter.plans[plan]["actions"]
        if entitled and (cost == 0 or data.get("outcome") in action.get("free_outcomes", [])):
            return "free"
        by = action.get("charge_once", {}).get("by")
        mark = by and data.get(by) and (self.number if number is None else number, data["action"], data[by])
        if entitled and mark in self.marks:
            return "free"
        if number is None:
            counted, lots = self.type(name), []
            remaining = self.remaining(name)
            over = counted.over
        else:
            counted = self.cycles[number][4].setdefault(name, Type())
            lots = [lot for lot in self.sources(name) if lot.kind != "pool" and lot.effective <= time]
            remaining = counted.spare + sum(lot.left for lot in lots)
            over = 0
            if counted.total() is not None:
                over = counted.charged - min(counted.charged, counted.total() - counted.expired - counted.moved)
        outcome, charge = judge(entitled, cost, counted.total() is None, remaining, over, overage)
        if outcome == "denied":
            counted.denied += 1
        elif mark and charge > 0:
            self.marks.add(mark)
        counted.charged += charge
        if number is None:
            self.burn(name, charge)
        else:
            self.burn_late(number, name, charge, lots)
        return outcome

    def burn_late(self, number, name, charge, lots):
        counted = self.cycles[number][4][name]
        spare = min(charge, counted.spare)
        counted.spare -= spare
        counted.expired -= spare
        charge -= spare
        for lot in lots:
            taken = min(charge, lot.left)
            charge -= taken
            lot.left -= taken
            # It had gone on from that cycle, and through those between.
            for other in self.cycles:
                if other >= number and taken:
                    between = self.cycles[other][4].setdefault(name, Type())
                    between.moved -= taken
                    if other > number:
                        between.granted[lot.kind] -= taken
            self.type(name).granted[lot.kind] -= taken

    def statements(self):
        def shown(plan, cycle, open_, types, remaining):
            number, start, end = cycle
            balances = {name: counted.shown(remaining(name)) for name, counted in types.items() if counted.any()}
            cycle = {"number": number, "start": rfc3339(start), "end": rfc3339(end)}
            return {"account": self.name, "plan": plan, "cycle": cycle, "open": open_, "balances": balances}

        for number, (start, end, plan, _, types) in sorted(self.cycles.items()):
            yield shown(plan, (number, start, end), False, types, lambda name: types[name].moved)
        if not self.closed_for_good:
            cycle = self.number, self.start, self.end
            yield shown(self.config.plan, cycle, True, dict(self.types), self.remaining)


def allows_all(plan, other):
    enough = all(plan["allowance"].get(name, 0) >= amount for name, amount in other["allowance"].items())
    return enough and set(other["actions"]) <= set(plan["actions"])


def judge(entitled, cost, unlimited, remaining, over, overage):
    if not entitled:
        return "denied", 0
    if unlimited or cost <= remaining:
        return "charged", cost
    if overage == "reject":
        return "denied", 0
    if overage == "cap":
        return "capped", remaining
    if overage != "allow" and over + cost - remaining > thousandths(overage["allow"]["limit"]):
        return "denied", 0
    return "charged", cost


# ---- the file --------------------------------------------------------------------------------------------------

class Meter:
    def __init__(self, catalogue):
        self.plans, self.actions, self.types = catalogue["plans"], catalogue["actions"], catalogue["credit_types"]
        self.accounts, self.now, self.floor = {}, 0, 0
        self.usage, self.commands, self.not_judged, self.refused = Counter(), Counter(), Counter(), Counter()

    def line(self, number, text):
        try:
            try:
                event = json.loads(text)
            except ValueError:
                raise Dead("invalid_json") from None
            kind = event["type"]
            if kind == "credits.usage.v1":
                quantity = event["data"].get("quantity", 1)
                if quantity == 0:
                    raise Dead("quantity_zero")
            elif kind not in ("credits.tick.v1", *COMMANDS):
                raise Dead("unknown_type")
            time = ms(event["time"])
            # What is due by then happens first. The floor is that of the records before.
            self.floor = max(self.floor, self.now - LATE_AFTER)
            self.now = max(self.now, time)
            account = self.accounts.get(event["subject"])
            if account:
                account.pass_to(self.now)
            if kind == "credits.usage.v1":
                self.usage[self.use(event, account, time, quantity)] += 1
            elif kind in COMMANDS:
                self.command(number, kind, event, account, time)
        except Dead as dead:
            self.not_judged[str(dead)] += 1

    def use(self, event, account, time, quantity):
        action = self.actions.get(event["data"]["action"])
        if action is None:
            raise Dead("unknown_action")
        price = action["prices"][0]
        cost = thousandths(price["credits"]) * quantity
        if account is None:
            raise Dead("unknown_account")
        return account.use(event, time, cost, price["credit_type"])

    def command(self, number, kind, event, account, time):
        data, id = event.get("data"), event["id"]
        if account and id in account.commands:
            self.commands["duplicate"] += 1
            return
        try:
            if account and account.closing:
                raise Refused("account_closed")
            if kind == "credits.account.put.v1":
                if data["plan"] not in self.plans:
                    raise Refused("unknown_plan")
                config = Config(data, self.plans)
                if account:
                    account.put(config)
                else:
                    account = self.accounts[event["subject"]] = Account(self, event["subject"], config, time)
            elif kind == "credits.grant.v1":
                account.grant(data, time, id, number)
            elif kind == "credits.grant.void.v1":
                account.void(data["grant"])
            elif kind == "credits.adjust.v1":
                account.adjust(data)
            else:
                account.close(time)
        except Refused as refused:
            self.commands["refused"] += 1
            self.refused[str(refused)] += 1
            return
        self.commands["applied"] += 1
        account.commands.add(id)
        account.pass_to(self.now)


COMMANDS = [f"credits.{name}.v1" for name in ("account.put", "account.close", "grant", "grant.void", "adjust")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("events")
    parser.add_argument("--until")
    arguments = parser.parse_args()
    meter = Meter(tomllib.loads(CATALOGUE.read_text(encoding="utf-8")))
    for number, line in enumerate(open(arguments.events, encoding="utf-8"), 1):
        if line.strip():
            meter.line(number, line)
    end = max(meter.now, ms(arguments.until)) if arguments.until else meter.now
    statements = []
    for _, account in sorted(meter.accounts.items()):
        account.pass_to(end)
        statements.extend(account.statements())
    counts = {name: dict(getattr(meter, name)) for name in ("usage", "commands", "not_judged", "refused")}
    print(json.dumps({"statements": statements} | counts, indent=1))


main()
