//! Who has which slot of a Redis Cluster.

use redis::{FromRedisValue, Value};

/// The nodes that serve. A single Redis has all slots.
#[derive(Clone, Debug, PartialEq)]
pub enum Slots {
    Single(String),
    Cluster(Vec<Run>),
}

/// Slots in a row, with the primary that has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    first: u16,
    last: u16,
    primary: String,
}

impl Slots {
    /// Reads the answer to CLUSTER SLOTS. A node that does not tell its own address is the one that was asked.
    pub fn parse(answer: Value, asked: &str) -> Option<Slots> {
        let Value::Array(rows) = answer else { return None };
        let mut runs = Vec::new();
        for row in rows {
            let Value::Array(parts) = row else { return None };
            let mut parts = parts.into_iter();
            let first = u16::from_redis_value(parts.next()?).ok()?;
            let last = u16::from_redis_value(parts.next()?).ok()?;
            let Value::Array(node) = parts.next()? else { return None };
            let mut node = node.into_iter();
            let host = Option::<String>::from_redis_value(node.next()?).ok()?.unwrap_or_default();
            let port = u16::from_redis_value(node.next()?).ok()?;
            runs.push(Run { first, last, primary: address(&host, port, asked)? });
        }
        Some(Slots::Cluster(runs))
    }

    pub fn owner(&self, slot: u16) -> Option<&str> {
        match self {
            Slots::Single(address) => Some(address),
            Slots::Cluster(runs) => {
                runs.iter().find(|run| run.first <= slot && slot <= run.last).map(|run| run.primary.as_str())
            }
        }
    }

    /// What a node has told of one slot stands before what was known.
    pub fn moved(&mut self, slot: u16, to: &str) {
        if let Slots::Cluster(runs) = self {
            runs.retain(|run| (run.first, run.last) != (slot, slot));
            runs.insert(0, Run { first: slot, last: slot, primary: to.to_owned() });
        }
    }

    /// Every node that has slots.
    pub fn primaries(&self) -> Vec<String> {
        let mut primaries: Vec<String> = match self {
            Slots::Single(address) => vec![address.clone()],
            Slots::Cluster(runs) => runs.iter().map(|run| run.primary.clone()).collect(),
        };
        primaries.sort_unstable();
        primaries.dedup();
        primaries
    }
}

/// Where a redirection points to: `host:port`, or `:port` for the host that was asked.
pub fn redirection(detail: &str, asked: &str) -> Option<String> {
    let (host, port) = detail.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    address(host, port.parse().ok()?, asked)
}

fn address(host: &str, port: u16, asked: &str) -> Option<String> {
    let host = match host {
        // `?`: a node that shall be known by its host name, and has none.
        "" | "?" => asked.rsplit_once(':')?.0,
        host => host,
    };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Slots {
        // As Redis 7 answers, the second of its nodes with a replica, the third without an address of its own.
        let answer = b"*3\r\n*3\r\n:0\r\n:99\r\n*4\r\n$8\r\n10.0.0.1\r\n:7001\r\n$1\r\na\r\n*0\r\n\
            *4\r\n:100\r\n:199\r\n*4\r\n$8\r\n10.0.0.2\r\n:7002\r\n$1\r\nb\r\n*0\r\n*4\r\n$8\r\n10.0.0.9\r\n:7009\r\n$1\r\nr\r\n*0\r\n\
            *3\r\n:200\r\n:16383\r\n*4\r\n$-1\r\n:7003\r\n$1\r\nc\r\n*0\r\n";
        Slots::parse(redis::parse_redis_value(answer).expect("an answer"), "10.0.0.3:7003").expect("slots")
    }

    #[test]
    fn a_slot_has_the_primary_that_the_cluster_names() {
        let slots = slots();
        assert_eq!(slots.owner(0), Some("10.0.0.1:7001"));
        assert_eq!(slots.owner(199), Some("10.0.0.2:7002"));
        assert_eq!(slots.owner(200), Some("10.0.0.3:7003"));
        assert_eq!(slots.primaries(), ["10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003"]);
    }

    #[test]
    fn a_slot_that_nobody_has_is_told_as_such() {
        assert_eq!(Slots::Cluster(Vec::new()).owner(7), None);
        assert_eq!(Slots::Single("a:1".into()).owner(7), Some("a:1"));
    }

    #[test]
    fn a_moved_slot_leaves_its_neighbours_where_they_are() {
        let mut slots = slots();
        slots.moved(150, "10.0.0.1:7001");
        slots.moved(150, "10.0.0.3:7003");
        let owners = [149, 150, 151].map(|slot| slots.owner(slot).unwrap().to_owned());
        assert_eq!(owners, ["10.0.0.2:7002", "10.0.0.3:7003", "10.0.0.2:7002"]);
    }

    #[test]
    fn a_redirection_without_a_host_stays_on_the_host() {
        assert_eq!(redirection("3999 10.0.0.7:6381", "10.0.0.1:7001").as_deref(), Some("10.0.0.7:6381"));
        assert_eq!(redirection("3999 :6381", "10.0.0.1:7001").as_deref(), Some("10.0.0.1:6381"));
        assert_eq!(redirection("3999 ::1:6381", "10.0.0.1:7001").as_deref(), Some("::1:6381"));
        assert_eq!(redirection("3999", "10.0.0.1:7001"), None);
    }
}
