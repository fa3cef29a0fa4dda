"""produce.py scenario.json --brokers B --usage-topic U --commands-topic C --partitions N [--only commands|events]

Writes a scenario's records to Kafka with two clients that share nothing with the meter's own producer: Python's
confluent-kafka, and kcat. Prints what it wrote as one line of JSON. The topics must exist.

Owns: how records get into the topics. Never: looks into a record.

Each partition has one writer at a time, which is flushed before the next one starts: the scenario's order is the
log's order. Partitions use different compressions.
"""

import argparse
import base64
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Producer

COMPRESSIONS = ["none", "gzip", "snappy", "lz4", "zstd"]
TIMEOUT_SECONDS = 30
KEY_DELIMITER = "\t"  # JSON escapes tabs, so none is in a value


class WriteFailed(Exception):
    pass


def value_of(record):
    if "value_base64" in record:
        return base64.b64decode(record["value_base64"])
    return None if record["value"] is None else record["value"].encode()


class Writer:
    """Writes the records of one partition, in order."""

    def __init__(self, brokers, topic, partition):
        self.brokers = brokers
        self.topic = topic
        self.partition = partition
        self.compression = COMPRESSIONS[partition % len(COMPRESSIONS)]
        self.producer = Producer({
            "bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 5,
            "compression.type": self.compression,
        })

    def write(self, records):
        for via, stretch in itertools.groupby(records, key=lambda record: record["via"]):
            if via == "confluent":
                self.by_confluent(list(stretch))
            else:
                self.by_kcat(list(stretch))

    def by_confluent(self, records):
        errors = []

        def delivered(error, _):
            if error is not None:
                errors.append(str(error))

        for record in records:
            headers = [(name, value.encode()) for name, value in record["headers"]]
            self.producer.produce(
                self.topic, partition=self.partition, key=record["key"].encode(), value=value_of(record),
                headers=headers, on_delivery=delivered)
        unsent = self.producer.flush(TIMEOUT_SECONDS)
        if unsent or errors:
            raise WriteFailed(f"{self.place()}: confluent-kafka: {unsent} records not acknowledged within "
                              f"{TIMEOUT_SECONDS} s, {len(errors)} refused {errors[:1]}: is {self.brokers} up, and the topic there?")

    def by_kcat(self, records):
        """One kcat writes all neighbours that have the same headers; its headers are for a whole run."""
        for headers, run in itertools.groupby(records, key=lambda record: record["headers"]):
            lines = [record["key"].encode() + KEY_DELIMITER.encode() + value_of(record) for record in run]
            command = ["kcat", "-P", "-b", self.brokers, "-t", self.topic, "-p", str(self.partition), "-z",
                       self.compression, "-K", KEY_DELIMITER, "-X", "acks=all", "-X", "enable.idempotence=true"]
            for name, value in headers:
                command += ["-H", f"{name}={value}"]
            done = subprocess.run(command, input=b"\n".join(lines), capture_output=True, timeout=TIMEOUT_SECONDS)
            if done.returncode != 0:
                raise WriteFailed(f"{self.place()}: kcat exited {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}")

    def place(self):
        return f"{self.topic}/{self.partition}"


def write_topic(brokers, topic, records):
    """Writes a topic, its partitions side by side; returns how many records each has got."""
    by_partition = {}
    for record in records:
        by_partition.setdefault(record["partition"], []).append(record)
    with ThreadPoolExecutor(max_workers=4) as pool:
        jobs = [pool.submit(Writer(brokers, topic, partition).write, part) for partition, part in by_partition.items()]
        for job in jobs:
            job.result()
    return {str(partition): len(part) for partition, part in sorted(by_partition.items())}


def counts(records):
    names = [f"{record['via']}/{record['mode']}" for record in records]
    return {name: names.count(name) for name in sorted(set(names))}


def main():
    parser = argparse.ArgumentParser(description="write a scenario to Kafka; see the top of this file")
    parser.add_argument("scenario")
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--usage-topic", required=True)
    parser.add_argument("--commands-topic", required=True)
    parser.add_argument("--partitions", type=int, required=True, help="of the usage topic")
    parser.add_argument("--only", choices=["commands", "events"], help="write a part; both, commands first, if absent")
    options = parser.parse_args()
    with open(options.scenario, encoding="utf-8") as file:
        scenario = json.load(file)
    if options.partitions < scenario["partitions"]:
        sys.exit(f"produce.py: {options.scenario} needs {scenario['partitions']} partitions, {options.usage_topic} "
                 f"has {options.partitions}: make the scenario with --partitions {options.partitions}")
    report = {}
    try:
        if options.only != "events":
            report["commands"] = write_topic(options.brokers, options.commands_topic, scenario["commands"])
        if options.only != "commands":
            report["events"] = write_topic(options.brokers, options.usage_topic, scenario["events"])
            report["writers"] = counts(scenario["events"])
    except WriteFailed as failed:
        sys.exit(f"produce.py: {failed}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
