"""scenario.py SEED NOW [--partitions N] > scenario.json

Makes a scenario as data: the same SEED and NOW (RFC 3339, UTC) always give the same text. It holds the records
exactly as they go on the wire, so that `produce.py` only writes them and `expected.py` has to read them itself.

Owns: what happens in the scenario. Never: decides how an event ends; `expected.py` does.

    {"seed", "now", "partitions",
     "commands": [record...],        in order
     "events": [record...]}          in order within a partition; `index` is the place in this list

A record is {"partition", "via": "confluent" or "kcat", "mode": "structured" or "binary", "key", "headers", "value"
or "value_base64"}. Records that are dead letters on purpose carry the header `scenario-index`, and so does the
dead letter, byte for byte.

All events of an account that can run out sit in one partition: there the order in the log is the order of
decision. The events of the others are spread, by a hash of their id.
"""

import argparse
import base64
import json
import random
import sys
from datetime import date, datetime, timedelta, timezone

USAGE = "credits.usage.v1"
PUT = "credits.account.put.v1"
GRANT = "credits.grant.v1"
SOURCES = ["urn:app:web", "https://crm.example/exports?team=a&b=c", "/batch/nightly", "worker-7"]
STRUCTURED_TYPES = ["application/cloudevents+json", "application/cloudevents+json; charset=UTF-8", None]

# account, plan, time zone, spread over partitions, events, put's further data, grants
# Spread accounts are granted more than their events can take.
ACCOUNTS = [
    ("acme", "basic", "UTC", False, 190, {}, []),
    ("globex", "organization", "America/New_York", False, 200, {}, []),
    ("initech", "capped", "Europe/Paris", False, 150, {}, []),
    ("umbrella", "starter", "Asia/Kolkata", False, 120, {}, []),
    ("stark", "capped", "Pacific/Auckland", False, 110,
     {"addons": [{"credit_type": "phone", "amount": 10.5}]}, [("phone", 2.125, "promo")]),
    ("wayne", "basic", "America/Sao_Paulo", False, 170,
     {"addons": [{"credit_type": "phone", "amount": 50}]}, [("phone", 25.75, "topup")]),
    ("équipe été", "starter", "Europe/London", False, 100,
     {"overage": "cap"}, [("email", 12.345, "topup")]),
    ("team:{7}/eu", "capped", "UTC", False, 90, {"overage": "reject"}, []),
    ("tyrell", "starter", "Pacific/Chatham", False, 80,
     {"addons": [{"credit_type": "enrichment", "amount": 5}]}, [("email", 20, "topup"), ("email", 5, "promo")]),
    ("hooli", "organization", "UTC", True, 260, {}, []),
    ("soylent", "organization", "Asia/Tokyo", True, 160, {}, [("enrichment", 1000, "promo")]),
    ("vandelay", "basic", "Australia/Lord_Howe", True, 180,
     {"addons": [{"credit_type": "email", "amount": 5000}]}, [("phone", 3000, "topup")]),
    ("wonka", "basic", "Africa/Casablanca", True, 100, {}, [("email", 4000, "topup"), ("phone", 2000.5, "promo")]),
]


def murmur2(data: bytes) -> int:
    """The hash of Kafka's Java client (seed 0x9747b28c); librdkafka's default is CRC-32."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at:at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if len(data) > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def java_partition(key: str, partitions: int) -> int:
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


class Scenario:
    def __init__(self, seed: int, now: datetime, partitions: int):
        self.rng = random.Random(seed)
        self.now = now
        self.partitions = partitions
        self.ids = 0
        self.spoilers = self.every_spoiler()

    # ---- commands ------------------------------------------------------------------------------------------

    def commands(self):
        """Dated before every event, so that whatever they give is in force for all of them."""
        when = self.now - timedelta(hours=30)
        records = []
        for account, plan, zone, _, _, extra, grants in ACCOUNTS:
            data = {"plan": plan, "anchor": self.anchor(plan).isoformat(), "timezone": zone, **extra}
            records.append(self.command(PUT, account, "put-1", when, data))
            for number, (credit_type, amount, kind) in enumerate(grants, 1):
                data = {"credit_type": credit_type, "amount": amount, "kind": kind}
                grant = self.command(GRANT, account, f"grant-{number}", when, data)
                # Sent twice, as after a lost acknowledgement: it must count once.
                records += [grant, grant] if number == 1 else [grant]
        return records

    def anchor(self, plan: str) -> date:
        """Starts a cycle 10 to 13 days ago, whatever the month: far from both of its ends, in any time zone."""
        start = (self.now - timedelta(days=10)).date()
        start = start.replace(day=min(start.day, 28))
        if plan == "organization":
            return start.replace(year=start.year - self.rng.randrange(3))
        months = start.year * 12 + start.month - 1 - self.rng.randrange(14)
        return start.replace(year=months // 12, month=months % 12 + 1)

    def command(self, kind, account, command_id, when, data):
        event = self.envelope(account, "urn:billing", command_id, when, data, kind)
        return {"partition": 0, "via": "confluent", **self.structured(event, account, STRUCTURED_TYPES[0])}

    # ---- events --------------------------------------------------------------------------------------------

    def events(self):
        # Each account's drafts keep their order; the accounts are mixed.
        queues = [self.account_drafts(account) for account in ACCOUNTS] + [[draft] for draft in self.strangers()]
        mixed = []
        turns = [number for number, queue in enumerate(queues) for _ in queue]
        self.rng.shuffle(turns)
        for number in turns:
            mixed.append(queues[number].pop(0))
        return self.on_the_wire(mixed)

    def account_drafts(self, row):
        account, plan, _, spread, count, _, _ = row
        drafts = [self.draft(account, plan, spread) for _ in range(count)]
        for draft in self.rng.sample(drafts, count // 8):
            self.insert_after(drafts, draft, self.repeated(draft, spread))
        for draft in self.rng.sample(drafts, 4):
            self.insert_after(drafts, draft, self.same_id_elsewhere(draft))
        for _ in range(6):
            self.insert_anywhere(drafts, self.spoiled(self.draft(account, plan, spread), next(self.spoilers)))
        if plan != "organization":
            self.insert_anywhere(drafts, self.spoiled(self.draft(account, plan, spread), before_the_cycle))
        if not spread:
            # A dead letter is not remembered: the corrected event, with the same id, counts.
            bad = self.spoiled(self.draft(account, plan, spread), zero_quantity)
            good = {**bad, "data": {**bad["data"], "quantity": 1}, "odd": False}
            self.insert_anywhere(drafts, bad)
            self.insert_after(drafts, bad, good)
        return drafts

    def every_spoiler(self):
        """All of them in some order, then again: each kind of bad record is in every scenario."""
        while True:
            yield from self.rng.sample(SPOILERS, len(SPOILERS))

    def strangers(self):
        """Accounts that no command ever made, and the identities that are easily mixed up."""
        drafts = []
        for number in range(6):
            drafts.append({**self.draft(f"nobody-{number % 3}", "basic", True), "odd": True})
        for account in ("hooli", "vandelay"):  # one id, two accounts: two events
            drafts.append({**self.draft(account, "basic", True), "source": "urn:app:web", "id": "shared-by-two"})
        for source, event_id in (("urn:a", "bc"), ("urn:ab", "c"), ("urn:a", "b"), ("urn:", "abc")):
            drafts.append({**self.draft("hooli", "basic", True), "source": source, "id": event_id})
        return drafts

    def draft(self, account, plan, spread):
        self.ids += 1
        action, quantity = self.action(plan, spread)
        data = {"action": action}
        if quantity != 1 or self.rng.random() < 0.3:
            data["quantity"] = quantity
        if action == "enrich_contact" or self.rng.random() < 0.1:
            data["outcome"] = self.rng.choice(["found", "found", "not_found"])
        if self.rng.random() < 0.4:
            data["user"] = self.rng.choice(["ana", "bjørn", "li 李", 'quo"te\\d'])
        if self.rng.random() < 0.2:
            data["contact"] = f"contact-{self.rng.randrange(500)}"
        event_id = self.rng.choice([
            f"evt-{self.ids:06}",
            f"{self.rng.getrandbits(128):032x}",
            f"é-{self.ids}",
            f"long-{self.ids}-".ljust(256, "x"),
        ])
        return {
            "account": account, "source": self.rng.choice(SOURCES), "id": event_id, "type": USAGE,
            "time": self.now - timedelta(seconds=self.rng.randrange(24 * 3600), milliseconds=self.rng.randrange(1000)),
            "data": data, "spread": spread, "odd": False,
        }

    def action(self, plan, spread):
        pick = self.rng.random()
        if plan == "organization":
            # Big enough that an account with one partition runs past its overage limit.
            big = self.rng.choice([1, 2, 10]) if spread else self.rng.choice([1, 50, 700, 1999])
            if pick < 0.45:
                return "enrich_contact", big
            if pick < 0.7:
                return "reveal_phone", big
            return ("reveal_email", self.rng.choice([1, 1, 25])) if pick < 0.95 else ("verify_email", 1)
        if pick < 0.5:
            # Some that never fit, between others that do.
            return "reveal_email", self.rng.choice([1, 1, 1, 2, 5] + ([] if spread else [300]))
        if pick < 0.8:
            return "reveal_phone", self.rng.choice([1, 1, 2, 3])
        return ("verify_email", self.rng.choice([1, 7])) if pick < 0.9 else ("enrich_contact", 1)

    def repeated(self, draft, spread):
        """The same event again: restamped by up to five minutes, and with other data where the first one decides."""
        again = {**draft, "data": dict(draft["data"])}
        if self.rng.random() < 0.5:
            again["time"] = min(draft["time"] + timedelta(seconds=self.rng.randrange(300)), self.now)
        if not spread and self.rng.random() < 0.3:
            again["data"]["quantity"] = self.rng.choice([1, 2, 3])
        return again

    def same_id_elsewhere(self, draft):
        """The same id from another source: another event."""
        other = self.rng.choice([source for source in SOURCES if source != draft["source"]])
        return {**draft, "source": other, "data": dict(draft["data"])}

    def spoiled(self, draft, spoil):
        draft["odd"] = True
        spoil(self, draft)
        return draft

    def insert_anywhere(self, drafts, draft):
        drafts.insert(self.rng.randrange(len(drafts) + 1), draft)

    def insert_after(self, drafts, first, draft):
        after = next(at for at, other in enumerate(drafts) if other is first)
        drafts.insert(self.rng.randrange(after + 1, len(drafts) + 1), draft)

    # ---- the wire ------------------------------------------------------------------------------------------

    def on_the_wire(self, drafts):
        """Writers take turns in each partition, in stretches long enough for kcat to write several at once."""
        turns = {}
        records = []
        for index, draft in enumerate(drafts):
            partition = self.partition(draft)
            via, left, content_type = turns.get(partition, ("kcat", 0, None))
            if left == 0:
                via = "confluent" if via == "kcat" else "kcat"
                left = self.rng.randrange(40, 90) if via == "confluent" else self.rng.randrange(15, 40)
                content_type = self.rng.choice(STRUCTURED_TYPES)
            turns[partition] = (via, left - 1, content_type)
            record = self.record(draft, via, content_type)
            if draft["odd"]:
                record["headers"].append(["scenario-index", str(index)])
            records.append({"index": index, "partition": partition, "via": self.writer(record, via), **record})
        return records

    def partition(self, draft):
        # With its time, so that a restamped duplicate may come through another partition.
        spread_key = f"{draft['id']}{draft['time']}"
        return java_partition(spread_key if draft["spread"] else draft["account"], self.partitions)

    def writer(self, record, via):
        """kcat cannot tell an empty value from none, and would split a value at its line feeds."""
        plain = record["value"] and "\n" not in record["value"] if "value" in record else True
        return via if plain else "confluent"

    def record(self, draft, via, content_type):
        account = draft["account"]
        # A producer whose key is not the account is only counted as misrouted.
        key = account if self.rng.random() > 0.03 else self.rng.choice(["user-1", "contact-17"])
        if "value" in draft or "value_base64" in draft:
            raw = {name: draft[name] for name in ("value", "value_base64") if name in draft}
            headers = [["content-type", draft["content_type"]]] if draft.get("content_type") else []
            return {"mode": "structured", "key": key, "headers": headers, **raw}
        event = self.envelope(account, draft["source"], draft["id"], draft["time"], draft["data"], draft["type"])
        event.update(draft.get("attributes", {}))
        for name in draft.get("without", []):
            del event[name]
        fits_headers = all(name == "data" or isinstance(value, str) for name, value in event.items())
        if fits_headers and "data" in event and self.rng.random() < (0.4 if via == "confluent" else 0.12):
            return self.binary(event, key)
        if via == "confluent":
            content_type = self.rng.choice(STRUCTURED_TYPES)
        return self.structured(event, key, content_type)

    def envelope(self, account, source, event_id, time, data, event_type):
        return {"specversion": "1.0", "id": event_id, "source": source, "type": event_type,
                "subject": account, "time": self.written(time), "data": data}

    def written(self, time):
        """RFC 3339 in the ways that producers write it."""
        if isinstance(time, str):
            return time
        style = self.rng.randrange(4)
        if style == 0:
            return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if style == 1:
            return time.isoformat(timespec="milliseconds")
        if style == 2:
            return time.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(timespec="seconds")
        return time.strftime("%Y-%m-%dT%H:%M:%SZ")

    def structured(self, event, key, content_type):
        event = {**event, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"} \
            if self.rng.random() < 0.1 else dict(event)
        members = list(event.items())
        self.rng.shuffle(members)
        text = json.dumps(
            dict(members),
            ensure_ascii=self.rng.random() < 0.5,  # \u00e9 and é are one account
            separators=(",", ":") if self.rng.random() < 0.7 else (", ", " : "),
            indent=1 if content_type and self.rng.random() < 0.02 else None,
        )
        headers = [["content-type", content_type]] if content_type else []
        return {"mode": "structured", "key": key, "headers": headers, "value": text}

    def binary(self, event, key):
        headers = [["content-type", "application/json"]]
        headers += [[f"ce_{name}", value] for name, value in event.items() if name != "data"]
        self.rng.shuffle(headers)
        return {"mode": "binary", "key": key, "headers": headers, "value": json.dumps(event["data"], ensure_ascii=False)}


# ---- what can be wrong with an event ---------------------------------------------------------------------------

def data_is(field, value):
    def spoil(_, draft):
        draft["data"][field] = value
    return spoil


def action_is(action, quantity):
    def spoil(_, draft):
        draft["data"].update(action=action, quantity=quantity)
    return spoil


def attribute_is(name, value):
    def spoil(_, draft):
        draft["attributes"] = {name: value}
    return spoil


def without(name):
    def spoil(_, draft):
        draft["without"] = [name]
    return spoil


def value_is(value, content_type=STRUCTURED_TYPES[0]):
    def spoil(_, draft):
        draft.update(value=value, content_type=content_type)
    return spoil


def no_action(_, draft):
    del draft["data"]["action"]


def from_the_future(scenario, draft):
    draft["time"] = scenario.now + timedelta(hours=6)


def before_the_cycle(scenario, draft):
    draft["time"] = scenario.now - timedelta(days=60)


def not_utf8(scenario, draft):
    event = scenario.envelope(draft["account"], draft["source"], "i\0d", draft["time"], draft["data"], USAGE)
    text = json.dumps(event).replace("\\u0000", "\0").encode().replace(b"\0", b"\xff\xfe")
    draft.update(value_base64=base64.b64encode(text).decode(), content_type=STRUCTURED_TYPES[0])


def deeply_nested(_, draft):
    nested = []
    for _ in range(200):
        nested = [nested]
    draft["data"]["note"] = nested


def huge_quantity(scenario, draft):
    draft["data"]["quantity"] = 10 ** 30


zero_quantity = data_is("quantity", 0)

SPOILERS = [
    zero_quantity, data_is("quantity", -3), data_is("quantity", 1.5), data_is("quantity", 0.25), huge_quantity,
    data_is("quantity", "3"), data_is("quantity", [1]), data_is("action", 5), data_is("action", "reveal_fax"),
    action_is("reveal_email", 200_000_000), action_is("enrich_contact", 50_000_001), no_action,
    without("id"), without("source"), without("subject"), without("time"), without("data"),
    attribute_is("id", 17), attribute_is("subject", ["acme"]), attribute_is("id", "x" * 257),
    attribute_is("source", "urn:" + "y" * 300), attribute_is("specversion", "0.3"),
    attribute_is("type", "credits.refund.v1"), attribute_is("time", "yesterday"),
    attribute_is("time", "2026-13-01T00:00:00Z"), attribute_is("time", "2026-01-01 00:00"),
    from_the_future, not_utf8, deeply_nested,
    value_is(None), value_is('{"specversion":"1.0","id":"cut'), value_is("not json at all"),
    value_is('{"specversion":"1.0","id":"n","source":"s","type":"credits.usage.v1","subject":"acme",'
             '"time":"2026-01-01T00:00:00Z","data":{"action":"reveal_email","quantity":NaN}}'),
    value_is('{"hello":"world"}', None),
]


def main():
    parser = argparse.ArgumentParser(description="make a deterministic scenario; see the top of this file")
    parser.add_argument("seed", type=int)
    parser.add_argument("now", help="RFC 3339, for example 2026-05-10T12:00:00Z")
    parser.add_argument("--partitions", type=int, default=6)
    options = parser.parse_args()
    now = datetime.fromisoformat(options.now).astimezone(timezone.utc).replace(microsecond=0)
    scenario = Scenario(options.seed, now, options.partitions)
    commands, events = scenario.commands(), scenario.events()
    json.dump(
        {"seed": options.seed, "now": now.isoformat(), "partitions": options.partitions,
         "commands": commands, "events": events},
        sys.stdout, ensure_ascii=False, indent=None)
    print()


if __name__ == "__main__":
    main()
