//! The worker that one would write first, and the same with its calls in pipelines. Neither is exactly-once: the
//! offset is committed apart from the credits, and a lost reply is a guess.

use std::time::Instant;

use anyhow::Context;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;

use crate::kafka;
use crate::machine::cpu_seconds;
use crate::readers::Event;
use crate::redis_probe::RedisProbe;
use crate::report::Run;

/// Charges an event unless its id was seen in the last three days.
const SCRIPT: &str = "if redis.call('SET', KEYS[1], 1, 'NX', 'EX', 259200) then \
    return redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[2]) end return 0";

pub struct Obvious<'a> {
    pub brokers: &'a str,
    pub topic: &'a str,
    pub redis_url: &'a str,
    /// Before every key.
    pub prefix: &'a str,
    /// Calls that go out before one is awaited.
    pub pipeline: usize,
}

impl Obvious<'_> {
    /// From the first record to the answer for the last.
    pub async fn run(&self, events: u64, probe: &mut RedisProbe) -> anyhow::Result<Run> {
        let consumer: StreamConsumer = kafka::settings(self.brokers).create()?;
        consumer.assign(&kafka::beginning(self.topic, kafka::PARTITIONS)?)?;
        let mut connection = redis::Client::open(self.redis_url)?.get_multiplexed_async_connection().await?;
        let hash: String = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut connection).await?;
        let mut started = None;
        let mut count = 0;
        while count < events {
            let mut pipe = redis::pipe();
            let wanted = (self.pipeline as u64).min(events - count);
            let mut waiting = 0;
            for _ in 0..wanted {
                let message = consumer.recv().await?;
                if started.is_none() {
                    started = Some((Instant::now(), cpu_seconds("self"), probe.cpu_seconds()?));
                }
                count += 1;
                let Ok(event) = serde_json::from_slice::<Event>(message.payload().unwrap_or_default()) else {
                    continue;
                };
                let (field, cost) = price(&event);
                pipe.cmd("EVALSHA").arg(&hash).arg(2);
                pipe.arg(format!("{}:{}:seen:{}:{}", self.prefix, event.subject, event.source, event.id));
                pipe.arg(format!("{}:{}:balance", self.prefix, event.subject)).arg(field).arg(cost);
                waiting += 1;
            }
            if waiting > 0 {
                let _: Vec<i64> = pipe.query_async(&mut connection).await?;
            }
        }
        let (started, cpu, redis_cpu) = started.context("the data set is empty")?;
        let seconds = started.elapsed().as_secs_f64();
        let redis_seconds = probe.cpu_seconds()? - redis_cpu;
        Ok(Run { events, seconds, cpu_seconds: cpu_seconds("self") - cpu, redis_seconds })
    }
}

fn price(event: &Event) -> (&'static str, u64) {
    let free = event.data.outcome == Some("not_found");
    let (credit_type, cost) = match event.data.action {
        "reveal_email" => ("email", if free { 0 } else { 1_000 }),
        "reveal_phone" => ("phone", 1_500),
        _ => ("enrichment", 2_000),
    };
    (credit_type, cost * event.data.quantity.unwrap_or(1))
}
