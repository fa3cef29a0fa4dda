//! Redis' error answers: what each means for a call, and what to do.
//!
//! Most clear by themselves once their cause is gone: nothing was written, and the same call goes out again. An
//! error from inside a script, or a key of another type, does not: sending again would only repeat it.

use std::sync::Arc;

use redis::RedisError;

use super::StoreError;

/// Why Redis refused a call before its first write. Each clears once its cause is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    ReadOnly,
    Loading,
    Busy,
    OutOfMemory,
    CannotPersist,
    TooFewReplicas,
    ClusterDown,
    SlotMoving,
    /// Nodes point at one another.
    Redirected,
    PrimaryAway,
    NoScript,
    NotAllowed,
    TooManyClients,
    /// A Sentinel was asked for a primary that it does not watch.
    UnknownPrimary,
    /// The certificate that the server shows.
    Certificate,
    /// The server does not like what this program shows, or how it wants to speak.
    ClientTls,
    /// The port is one without TLS.
    NoTls,
    /// One that this program does not know: a proxy's, or a newer Redis'.
    Other,
}

impl Refusal {
    pub const ALL: [Refusal; 18] = [
        Refusal::ReadOnly,
        Refusal::Loading,
        Refusal::Busy,
        Refusal::OutOfMemory,
        Refusal::CannotPersist,
        Refusal::TooFewReplicas,
        Refusal::ClusterDown,
        Refusal::SlotMoving,
        Refusal::Redirected,
        Refusal::PrimaryAway,
        Refusal::NoScript,
        Refusal::NotAllowed,
        Refusal::TooManyClients,
        Refusal::UnknownPrimary,
        Refusal::Certificate,
        Refusal::ClientTls,
        Refusal::NoTls,
        Refusal::Other,
    ];

    /// Its label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::ReadOnly => "read_only",
            Refusal::Loading => "loading",
            Refusal::Busy => "busy",
            Refusal::OutOfMemory => "out_of_memory",
            Refusal::CannotPersist => "cannot_persist",
            Refusal::TooFewReplicas => "too_few_replicas",
            Refusal::ClusterDown => "cluster_down",
            Refusal::SlotMoving => "slot_moving",
            Refusal::Redirected => "redirected",
            Refusal::PrimaryAway => "primary_away",
            Refusal::NoScript => "no_script",
            Refusal::NotAllowed => "not_allowed",
            Refusal::TooManyClients => "too_many_clients",
            Refusal::UnknownPrimary => "unknown_primary",
            Refusal::Certificate => "certificate",
            Refusal::ClientTls => "client_tls",
            Refusal::NoTls => "no_tls",
            Refusal::Other => "refused",
        }
    }

    /// What is wrong, after "redis at …".
    pub const fn fault(self) -> &'static str {
        match self {
            Refusal::ReadOnly => "is a replica",
            Refusal::Loading => "is reading its data",
            Refusal::Busy => "is held up by a script of another client",
            Refusal::OutOfMemory => "is out of memory",
            Refusal::CannotPersist => "cannot write to its disk",
            Refusal::TooFewReplicas => "has fewer replicas than min-replicas-to-write",
            Refusal::ClusterDown => "says that the cluster is down",
            Refusal::SlotMoving => "is moving the shard's slot",
            Refusal::Redirected => "sends the call on to another node, again and again",
            Refusal::PrimaryAway => "is a replica without its primary",
            Refusal::NoScript => "loses each script that it is given",
            Refusal::NotAllowed => "does not allow it",
            Refusal::TooManyClients => "takes no more clients",
            Refusal::UnknownPrimary => "is a Sentinel that does not watch this primary",
            Refusal::Certificate => "shows a certificate that is not accepted",
            Refusal::ClientTls => "does not accept this program's TLS",
            Refusal::NoTls => "does not speak TLS at this port",
            Refusal::Other => "refused the call",
        }
    }

    pub const fn remedy(self) -> &'static str {
        match self {
            Refusal::ReadOnly | Refusal::PrimaryAway => "let redis.url lead to the primary",
            Refusal::Loading => "wait until it has read them",
            Refusal::Busy => "end it with SCRIPT KILL or FUNCTION KILL",
            Refusal::OutOfMemory => "raise maxmemory",
            Refusal::CannotPersist => "make room on its disk, its log says where",
            Refusal::TooFewReplicas => "bring its replicas back, or lower min-replicas-to-write",
            Refusal::ClusterDown => "start the nodes that are down; redis-cli --cluster check names the slots",
            Refusal::SlotMoving => "wait until it has moved; redis-cli --cluster fix ends a move that was broken off",
            Refusal::Redirected => "see what redis-cli --cluster check says of the slots",
            Refusal::NoScript => "find what runs SCRIPT FLUSH in a loop, with MONITOR",
            Refusal::NotAllowed => {
                "see user and password in redis.url, or in redis.sentinel for a Sentinel; ACL LOG names the rights that it lacks"
            }
            Refusal::TooManyClients => "raise maxclients, or close other clients",
            Refusal::UnknownPrimary => "see the name behind # in redis.url",
            Refusal::Certificate => {
                "name who has signed it in redis.tls.ca, or give it one that is in force and names this host"
            }
            Refusal::ClientTls => "see redis.tls.certificate and redis.tls.key, and the server's log",
            Refusal::NoTls => "name its tls-port in redis.url, or begin it without the s of rediss",
            Refusal::Other => "see its log",
        }
    }

    fn of(code: &str, detail: &str) -> Refusal {
        match code {
            "READONLY" => Refusal::ReadOnly,
            "LOADING" => Refusal::Loading,
            "BUSY" => Refusal::Busy,
            "OOM" => Refusal::OutOfMemory,
            "MISCONF" => Refusal::CannotPersist,
            "NOREPLICAS" => Refusal::TooFewReplicas,
            "CLUSTERDOWN" => Refusal::ClusterDown,
            "TRYAGAIN" => Refusal::SlotMoving,
            "MOVED" | "ASK" => Refusal::Redirected,
            "MASTERDOWN" => Refusal::PrimaryAway,
            "NOSCRIPT" => Refusal::NoScript,
            "NOPERM" | "NOAUTH" | "WRONGPASS" | "DENIED" => Refusal::NotAllowed,
            "ERR" if detail.contains("max number of clients") => Refusal::TooManyClients,
            _ => Refusal::Other,
        }
    }
}

/// What is wrong with a connection that TLS did not let come about, or ended.
fn of_tls(error: &RedisError) -> Option<Refusal> {
    let source = std::error::Error::source(error)?;
    let io = source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?.downcast_ref::<std::io::Error>()?;
    match io.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Some(Refusal::Certificate),
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => Some(Refusal::ClientTls),
        rustls::Error::InvalidMessage(_) => Some(Refusal::NoTls),
        _ => None,
    }
}

/// What a failed call means. `place` is the node that was asked, `keys` what its keys begin with.
pub fn store_error(error: &RedisError, place: &str, keys: &str) -> StoreError {
    let place = place.to_owned();
    if let Some(refusal) = of_tls(error) {
        return StoreError::Refused { place, refusal, told: error.to_string() };
    }
    if matches!(error.kind(), redis::ErrorKind::AuthenticationFailed) {
        return StoreError::Refused { place, refusal: Refusal::NotAllowed, told: error.to_string() };
    }
    let Some(told) = error.clone().into_server_errors().and_then(|errors| Some(errors.first()?.1.clone())) else {
        let told = error.to_string().replace('\n', " ");
        let reason = match error.kind() {
            redis::ErrorKind::Parse => format!("what came is not redis' protocol, is another service there? ({told})"),
            _ => told,
        };
        return StoreError::Indefinite { place, reason };
    };
    let (code, detail) = (told.code(), told.details().unwrap_or("").trim_end());
    let refusal = Refusal::of(code, detail);
    let told = format!("{code} {detail}").trim_end().to_owned();
    // One that was killed had not written: Redis kills no other.
    let in_script = detail.contains("user_script:") && !detail.contains("Script killed by user");
    if code == "WRONGTYPE" || (refusal == Refusal::Other && in_script) {
        return StoreError::Broken(format!(
            "redis at {place} told {told}: a key under {keys} is not what the meter wrote, or a script has a fault; \
             restore the data from a backup, then restart the worker, and report it if that does not help"
        ));
    }
    StoreError::Refused { place, refusal, told }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    fn told(line: &str) -> StoreError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an answer");
        let error = value.extract_error().expect_err("an error");
        store_error(&error, "10.0.0.1:6379", "meter:{3}:")
    }

    #[test]
    fn each_answer_of_redis_has_its_kind() {
        let check = |line: &str, kind: &str| assert_eq!(told(line).kind(), kind, "{line}");
        check("READONLY You can't write against a read only replica. script: f3, on @user_script:1.", "read_only");
        check("LOADING Redis is loading the dataset in memory", "loading");
        check("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy");
        check(
            "OOM command not allowed when used memory > 'maxmemory'. script: f3, on @user_script:9.",
            "out_of_memory",
        );
        check("MISCONF Errors writing to the AOF file: No space left on device", "cannot_persist");
        check("NOREPLICAS Not enough good replicas to write.", "too_few_replicas");
        check("CLUSTERDOWN The cluster is down", "cluster_down");
        check("TRYAGAIN Multiple keys request during rehashing of slot", "slot_moving");
        check("MOVED 3999 127.0.0.1:6381", "redirected");
        check("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "primary_away");
        check("NOSCRIPT No matching script. Please use EVAL.", "no_script");
        check("NOAUTH Authentication required.", "not_allowed");
        check("NOPERM User bob has no permissions to run the 'evalsha' command", "not_allowed");
        check("WRONGPASS invalid username-password pair or user is disabled.", "not_allowed");
        check("ERR max number of clients reached", "too_many_clients");
        check("ERR upstream failure", "refused");
        // These would come again for ever.
        check("WRONGTYPE Operation against a key holding the wrong kind of value", "broken");
        check("ERR user_script:1: apply: wrong arity script: f3, on @user_script:1.", "broken");
        check("ERR Error running script (call to f_b3): @user_script:7: attempt to compare nil", "broken");
        check("ERR The user executing the script can't run this command script: f3, on @user_script:1.", "broken");
    }

    #[test]
    fn a_refusal_names_place_fault_and_remedy() {
        assert_eq!(
            told("OOM command not allowed when used memory > 'maxmemory'.").to_string(),
            "redis at 10.0.0.1:6379 is out of memory: raise maxmemory (OOM command not allowed when used memory > \
             'maxmemory'.)"
        );
    }

    #[test]
    fn every_kind_is_counted_from_zero() {
        let page = metrics::render();
        let kinds = Refusal::ALL.map(Refusal::name).into_iter().chain(["broken", "indefinite"]);
        for kind in kinds {
            let line = format!("credit_meter_call_refusals_total{{kind=\"{kind}\"}} ");
            assert!(page.contains(&line), "{line} is missing");
        }
    }
}
