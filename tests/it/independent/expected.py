"""expected.py scenario.json [--catalogue FILE] > expected.json

Says how each record of a scenario must end, and what the balances must be: a second, separate implementation of
the meter's contract, written from its description. It shares no code with the meter or with `scenario.py`.

    {"balances":     {account: {credit type: {"granted", "used", "remaining", "overage"}}},
     "denied":       [[source, id, reason, required]...]      sorted
     "capped":       [[source, id, uncovered]...]             sorted
     "dead_letters": [[index, reason]...]                     index: the header `scenario-index`
     "outcomes":     {outcome: how many events}}

Amounts are credits with at most three decimals. `granted` and `remaining` are null where a type is unlimited.
"""

import argparse
import base64
import json
import sys
import tomllib
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

CATALOGUE = Path(__file__).resolve().parents[2] / "data" / "catalogue-independent.toml"
MONTHS = {"monthly": 1, "quarterly": 3, "semi_annual": 6, "annual": 12}
REQUIRED = ["id", "source", "subject", "time"]
TEXT_BYTES_MAX = 256
NESTING_MAX = 128
QUANTITY_MAX = 10 ** 15
COST_MAX = 10 ** 8 * 1000  # thousandths of a credit
EARLY_LIMIT = timedelta(minutes=5)


class Dead(Exception):
    """This record is a dead letter; the text is the reason."""


def thousandths(credits):
    exact = Decimal(credits) * 1000
    assert exact == int(exact), f"{credits} has more than three decimals"
    return int(exact)


def credits(amount):
    """Thousandths as a JSON number in credits."""
    return amount // 1000 if amount % 1000 == 0 else float(Decimal(amount) / 1000)


# ---- reading a record ------------------------------------------------------------------------------------------

def bytes_of(record):
    if "value_base64" in record:
        return base64.b64decode(record["value_base64"])
    return (record["value"] or "").encode()


def parse_json(raw):
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Dead("invalid_utf8") from None

    def no_such_number(name):
        raise ValueError(name)

    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=no_such_number)
    except ValueError:
        raise Dead("invalid_json") from None
    if depth(value) > NESTING_MAX:
        raise Dead("nesting_too_deep")
    return value


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def read_event(record):
    """A CloudEvent as a dict of attributes and `data`, from either content mode."""
    raw = bytes_of(record)
    if not raw:
        raise Dead("empty_value")
    headers = {name.lower(): value for name, value in record["headers"]}
    if "ce_specversion" in headers:
        event = {name[3:]: value for name, value in headers.items() if name.startswith("ce_")}
        return {**event, "data": parse_json(raw)}
    event = parse_json(raw)
    if not isinstance(event, dict) or "specversion" not in event:
        raise Dead("not_a_cloudevent")
    return event


def read_envelope(record, types):
    event = read_event(record)
    if event["specversion"] != "1.0":
        raise Dead("unsupported_specversion")
    if event.get("type") not in types:
        raise Dead("unknown_type" if "type" in event else "missing_field")
    for name in REQUIRED:
        require_text(event, name)
    if "data" not in event:
        raise Dead("missing_field")
    try:
        event["time"] = datetime.fromisoformat(event["time"])
    except ValueError:
        raise Dead("invalid_time") from None
    if event["time"].tzinfo is None:
        raise Dead("invalid_time")
    return event


def require_text(fields, name):
    if name not in fields or fields[name] == "":
        raise Dead("missing_field")
    if not isinstance(fields[name], str):
        raise Dead("wrong_type")
    if len(fields[name].encode()) > TEXT_BYTES_MAX:
        raise Dead("invalid_field")


def quantity_of(data):
    quantity = data.get("quantity", 1)
    if isinstance(quantity, Decimal):
        raise Dead("quantity_not_integer")
    if not isinstance(quantity, int) or isinstance(quantity, bool):
        raise Dead("wrong_type")
    if quantity == 0:
        raise Dead("quantity_zero")
    if quantity < 0:
        raise Dead("quantity_negative")
    if quantity > QUANTITY_MAX:
        raise Dead("quantity_too_large")
    return quantity


# ---- accounts --------------------------------------------------------------------------------------------------

class Balance:
    def __init__(self):
        self.unlimited = False
        self.granted = 0
        self.charged = 0  # all of it, covered by grants or not

    def remaining(self):
        return max(self.granted - self.charged, 0)

    def overage(self):
        return 0 if self.unlimited else max(self.charged - self.granted, 0)

    def shown(self):
        return {
            "granted": None if self.unlimited else credits(self.granted),
            "used": credits(self.charged - self.overage()),
            "remaining": None if self.unlimited else credits(self.remaining()),
            "overage": credits(self.overage()),
        }


class Account:
    def __init__(self, put, plan, at):
        self.plan = plan
        self.overage = put.get("overage", plan["overage"])
        self.cycle = cycle_at(put, plan, at)
        self.balances = {}
        self.seen = set()
        for credit_type, amount in plan["allowance"].items():
            balance = self.balance(credit_type)
            balance.unlimited = amount == "unlimited"
            balance.granted = 0 if balance.unlimited else thousandths(amount)
        for addon in put.get("addons", []):
            self.balance(addon["credit_type"]).granted += thousandths(addon["amount"])

    def balance(self, credit_type):
        return self.balances.setdefault(credit_type, Balance())


def cycle_at(put, plan, at):
    """The half-open cycle that holds `at`: local midnights, counted from the original anchor."""
    anchor = date.fromisoformat(put["anchor"])
    zone = ZoneInfo(put.get("timezone", "UTC"))
    months = MONTHS[put.get("interval", plan["interval"])]

    def boundary(number):
        month = anchor.year * 12 + anchor.month - 1 + number * months
        first = date(month // 12, month % 12 + 1, 1)
        next_first = date((month + 1) // 12, (month + 1) % 12 + 1, 1)
        day = min(anchor.day, (next_first - first).days)
        return datetime(first.year, first.month, day, tzinfo=zone).astimezone(timezone.utc)

    number = 0
    while boundary(number + 1) <= at:
        number += 1
    assert boundary(number) <= at, f"the anchor {anchor} lies after the command"
    return boundary(number), boundary(number + 1)


def run_commands(records, catalogue):
    accounts, seen = {}, set()
    for record in records:
        command = read_envelope(record, ["credits.account.put.v1", "credits.grant.v1"])
        identity = (command["subject"], command["source"], command["id"])
        if identity in seen:
            continue
        seen.add(identity)
        data = command["data"]
        if command["type"] == "credits.account.put.v1":
            accounts[command["subject"]] = Account(data, catalogue["plans"][data["plan"]], command["time"])
        else:
            accounts[command["subject"]].balance(data["credit_type"]).granted += thousandths(data["amount"])
    return accounts


# ---- deciding events -------------------------------------------------------------------------------------------

class Meter:
    def __init__(self, accounts, catalogue, now):
        self.accounts = accounts
        self.actions = catalogue["actions"]
        self.now = now
        self.denied, self.capped, self.dead_letters = [], [], []
        self.outcomes = dict.fromkeys(["charged", "capped", "free", "duplicate", "denied", "dead_lettered"], 0)

    def take(self, record):
        try:
            outcome = self.decide(record)
        except Dead as dead:
            outcome = "dead_lettered"
            self.dead_letters.append([record["index"], str(dead)])
            named = ["scenario-index", str(record["index"])] in record["headers"]
            assert named, f"event {record['index']} is a dead letter ({dead}) that scenario.py did not plan"
        self.outcomes[outcome] += 1

    def decide(self, record):
        event = read_envelope(record, ["credits.usage.v1"])
        data = event["data"]
        if not isinstance(data, dict):
            raise Dead("wrong_type")
        require_text(data, "action")
        quantity = quantity_of(data)
        action = self.actions.get(data["action"])
        if action is None:
            raise Dead("unknown_action")
        [price] = action["prices"]
        cost = thousandths(price["credits"]) * quantity
        if cost > COST_MAX:
            raise Dead("cost_too_large")
        if event["time"] > self.now + EARLY_LIMIT:
            raise Dead("too_early")
        account = self.accounts.get(event["subject"])
        if account is None:
            raise Dead("unknown_account")
        start, end = account.cycle
        if not start <= event["time"] < end:
            raise Dead("before_account")

        identity = (event["source"], event["id"])
        if identity in account.seen:
            return "duplicate"
        account.seen.add(identity)
        if data["action"] not in account.plan["actions"]:
            return self.deny(identity, "not_entitled", cost)
        if cost == 0 or data.get("outcome") in action.get("free_outcomes", []):
            return "free"
        return self.charge(account, identity, price["credit_type"], cost)

    def charge(self, account, identity, credit_type, cost):
        balance = account.balance(credit_type)
        if balance.unlimited or cost <= balance.remaining():
            balance.charged += cost
            return "charged"
        if account.overage == "reject":
            return self.deny(identity, "insufficient_credits", cost)
        if account.overage == "cap":
            uncovered = cost - balance.remaining()
            balance.charged += cost - uncovered
            self.capped.append([*identity, credits(uncovered)])
            return "capped"
        limit = thousandths(account.overage["allow"]["limit"])
        if balance.charged + cost - balance.granted > limit:
            return self.deny(identity, "overage_limit", cost)
        balance.charged += cost
        return "charged"

    def deny(self, identity, reason, cost):
        self.denied.append([*identity, reason, credits(cost)])
        return "denied"


def main():
    parser = argparse.ArgumentParser(description="say how a scenario must end; see the top of this file")
    parser.add_argument("scenario")
    parser.add_argument("--catalogue", default=CATALOGUE)
    options = parser.parse_args()
    with open(options.scenario, encoding="utf-8") as file:
        scenario = json.load(file, parse_float=Decimal)
    with open(options.catalogue, "rb") as file:
        catalogue = tomllib.load(file, parse_float=Decimal)

    accounts = run_commands(scenario["commands"], catalogue)
    meter = Meter(accounts, catalogue, datetime.fromisoformat(scenario["now"]))
    for record in scenario["events"]:
        meter.take(record)
    balances = {
        name: {credit_type: balance.shown() for credit_type, balance in sorted(account.balances.items())}
        for name, account in sorted(accounts.items())
    }
    json.dump({"balances": balances, "denied": sorted(meter.denied), "capped": sorted(meter.capped),
               "dead_letters": meter.dead_letters, "outcomes": meter.outcomes}, sys.stdout, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
