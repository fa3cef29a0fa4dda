"""scenario.py SEED [--in-order] > events.ndjson

A year of commands and usage for 16 accounts: each of four intervals in each of four time zones, with anchors at the
end of months. Lines stand in the order in which they arrive. With `--in-order` all commands come first and nothing is
late or faulty: then a meter that reads commands and usage from two topics must come to the same.
"""

import argparse
import json
import random
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

UTC = timezone.utc
START = datetime(2025, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 1, tzinfo=UTC)
INTERVALS = ["monthly", "quarterly", "semi_annual", "annual"]
# New York and Paris change their clocks, Kolkata never does, and Santiago skips midnight itself.
ZONES = ["America/New_York", "Europe/Paris", "Asia/Kolkata", "America/Santiago"]
ANCHORS = ["2024-03-31", "2024-08-30", "2024-10-29", "2025-01-31", "2024-12-30", "2024-09-06"]
PLANS = ["starter", "basic", "capped"]
ACTIONS = ["reveal_email"] * 8 + ["reveal_phone"] * 2 + ["reveal_mobile"] * 3 + ["verify_email", "enrich_contact"]
USAGE, TICK = "credits.usage.v1", "credits.tick.v1"


class Scenario:
    def __init__(self, seed, in_order):
        self.random = random.Random(seed)
        self.in_order = in_order
        self.lines = []
        self.number = 0
        self.plan = {}

    def event(self, arrives, kind, account, time, data, id=None):
        self.number += 1
        event = {
            "specversion": "1.0", "id": id or f"e{self.number}", "source": "scenario", "type": kind,
            "subject": account, "time": text(time),
        }
        if data is not None:
            event["data"] = data
        self.lines.append((arrives, self.number, event))
        return event["id"]

    def command(self, time, kind, account, data, id=None):
        return self.event(time, f"credits.{kind}.v1", account, time, data, id)

    def moment(self, start=START, end=END):
        return start + timedelta(seconds=self.random.randrange(int((end - start).total_seconds())))

    def put(self, time, account, index, plan, **more):
        anchor = ANCHORS[index % len(ANCHORS)]
        data = {"plan": plan, "anchor": anchor, "timezone": ZONES[index % 4], "interval": INTERVALS[index // 4]}
        self.command(time, "account.put", account, data | more)

    def accounts(self):
        for index in range(16):
            account = f"team-{index:02}"
            self.plan[account] = plan = PLANS[index % 3]
            more = {}
            if index % 2:
                more["addons"] = [{"credit_type": "email", "amount": 40.5}]
            if index % 5 == 1:
                more["overage"] = {"allow": {"limit": 25}}
            if index % 7 == 2:
                more["overage"] = "allow"
            self.put(START + timedelta(minutes=index), account, index, plan, **more)
            self.grants(account)
            if not self.in_order:
                self.changes(account, index, plan, more)

    def grant(self, time, account, **data):
        return self.command(time, "grant", account, data)

    def grants(self, account):
        for _ in range(6):
            time = begins = self.moment(START + timedelta(days=2))
            data = {"credit_type": self.random.choice(["email", "phone"]), "amount": self.random.randint(5, 40)}
            data["kind"] = self.random.choice(["topup", "promo"])
            if self.in_order:
                time = START + timedelta(hours=1)
                data["effective_at"] = text(begins)
            elif self.random.random() < 0.3:
                begins = time + timedelta(days=self.random.randint(1, 60))
                data["effective_at"] = text(begins)
            if self.random.random() < 0.7:
                data["expires_at"] = text(begins + timedelta(days=self.random.randint(1, 150)))
            if self.random.random() < 0.4:
                data["priority"] = self.random.choice([0, 10, 100, 500])
            id = self.grant(time, account, **data)
            if not self.in_order and self.random.random() < 0.2:
                self.command(time + timedelta(days=20), "grant.void", account, {"grant": id})

    def changes(self, account, index, plan, more):
        """Plans up and down, add-ons, adjustments, a closing, and what is refused or comes twice."""
        larger = {"starter": "basic", "capped": "basic", "basic": "basic"}[plan]
        up, down = self.moment(START + timedelta(days=20), START + timedelta(days=150)), self.moment(START + timedelta(days=200))
        self.put(up, account, index, larger, **more)
        self.put(down, account, index, "starter", **more)
        if index % 4 == 0:
            addons = [{"credit_type": "email", "amount": 60}, {"credit_type": "phone", "amount": 3}]
            self.put(self.moment(up, down), account, index, larger, addons=addons)
        if index % 4 == 1:
            # Another anchor and interval wait for the renewal.
            other = {"plan": "starter", "anchor": "2025-05-15", "timezone": "Asia/Kolkata", "interval": "monthly"}
            self.command(down + timedelta(days=10), "account.put", account, other)
        for _ in range(3):
            amount = self.random.choice([-7.25, -60, 12, 30.125])
            data = {"credit_type": "email", "amount": amount, "reason": "an import"}
            time = self.moment(START + timedelta(days=2))
            id = self.command(time, "adjust", account, data)
            if self.random.random() < 0.3:
                self.command(time + timedelta(minutes=1), "adjust", account, data, id)
        time = self.moment(START + timedelta(days=2))
        self.command(time, "grant.void", account, {"grant": "no-such-command"})
        self.command(time, "grant", account, {"credit_type": "sms", "amount": 1, "kind": "topup"})
        self.command(time, "account.put", account, {"plan": "gold", "anchor": "2025-01-01"})
        if index in (3, 9):
            self.command(datetime(2025, 10, 3, 5, tzinfo=UTC), "account.close", account, None)
        # A command that comes late takes effect in the open cycle.
        late = self.moment(START + timedelta(days=40))
        data = {"credit_type": "email", "amount": 9, "kind": "promo", "expires_at": text(late + timedelta(days=90))}
        self.event(late, "credits.grant.v1", account, late - timedelta(days=35), data)

    def usage(self, account):
        zone = ZoneInfo(ZONES[int(account[-2:]) % 4])
        times = [self.moment(START + timedelta(days=1)) for _ in range(450)]
        # Around midnights at which cycles may end.
        for month in range(1, 13):
            for day in (1, 6, 28, 29, 30, 31):
                try:
                    midnight = datetime(2025, month, day, tzinfo=zone).astimezone(UTC)
                except ValueError:
                    continue
                if midnight > START + timedelta(days=1):
                    times += [midnight + timedelta(seconds=s) for s in (-1, 0, self.random.randint(-900, 900))]
        for time in times:
            time = time.replace(microsecond=self.random.choice([0, 0, 500_000]))
            data = {"action": self.random.choice(ACTIONS), "user": "u-1"}
            if self.random.random() < 0.4:
                data["quantity"] = self.random.randint(1, 9)
            if data["action"] == "enrich_contact" and self.random.random() < 0.5:
                data["outcome"] = "not_found"
            if data["action"] == "reveal_mobile" and self.random.random() < 0.9:
                data["contact"] = f"contact-{self.random.randrange(8)}"
            arrives = time
            if not self.in_order and self.random.random() < 0.12:
                # Some of them later than three days.
                arrives = time + timedelta(hours=self.random.choice([0.01, 1, 10, 50, 71.9, 72.2, 100]))
            id = self.event(arrives, USAGE, account, time, data)
            if self.random.random() < 0.04:
                self.retry(arrives, time, account, data, id)

    def retry(self, arrives, time, account, data, id):
        again = time
        if self.random.random() < 0.5 and not self.in_order:
            # Stamped anew: not twice the same event where it is further away, unless on the same day.
            again = time + timedelta(seconds=self.random.choice([-500, 5, 300, 590, 4000]))
        arrives = arrives + timedelta(seconds=self.random.randint(0, 7200))
        if self.in_order:
            arrives = time
        self.event(arrives, USAGE, account, again, data, id)

    def faults(self):
        for _ in range(12):
            time = self.moment(START + timedelta(days=2))
            account = f"team-{self.random.randrange(16):02}"
            self.event(time, USAGE, "nobody", time, {"action": "reveal_email"})
            self.event(time, USAGE, account, time, {"action": "no_such_action"})
            self.event(time, USAGE, account, time, {"action": "reveal_email", "quantity": 0})
            self.event(time, USAGE, account, time, {"action": "reveal_email", "quantity": 10 ** 9})
            self.event(time, "credits.gift.v1", account, time, {"action": "reveal_email"})
        # Before the first cycle of an account, and yet not too late.
        first = START + timedelta(minutes=90)
        for index in range(3):
            self.event(first, USAGE, f"team-{index:02}", START - timedelta(days=2, minutes=index), {"action": "reveal_email"})
        self.event(END, TICK, "tick", END + timedelta(hours=6), None)

    def write(self):
        self.accounts()
        for index in range(16):
            self.usage(f"team-{index:02}")
        if not self.in_order:
            self.faults()
        is_usage = lambda event: event["type"] in (USAGE, TICK)
        self.lines.sort(key=lambda line: (self.in_order and is_usage(line[2]), line[0], line[1]))
        for number, (_, _, event) in enumerate(self.lines):
            print(json.dumps(event))
            if not self.in_order and number % 2000 == 700:
                print('{"specversion":"1.0","id":')
                print()


def text(time):
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


parser = argparse.ArgumentParser()
parser.add_argument("seed", type=int)
parser.add_argument("--in-order", action="store_true")
arguments = parser.parse_args()
Scenario(arguments.seed, arguments.in_order).write()
