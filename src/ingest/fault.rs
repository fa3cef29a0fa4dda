//! Why the brokers do not answer, and where the remedy is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Why there is no answer, and what to look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {}", .look.remedy())]
pub struct Fault {
    reason: String,
    look: Look,
}

/// Where a remedy is to be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Password,
    Certificate,
    Protocol,
    Leader,
    Network,
    Rights,
    Brokers,
}

impl Look {
    /// How much a fault tells that is to be looked for here.
    fn rank(self) -> u8 {
        match self {
            Look::Brokers | Look::Network => 0,
            // A guess from where the connection broke.
            Look::Protocol => 1,
            Look::Password | Look::Certificate | Look::Leader | Look::Rights => 2,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Look::Password => {
                "do the brokers know this user and password? see sasl.mechanism, sasl.username and sasl.password in \
                 kafka.properties"
            }
            Look::Certificate => {
                "was the brokers' certificate made by an authority of ssl.ca.location in kafka.properties, for the names \
                 in kafka.brokers, and is it in force?"
            }
            Look::Protocol => "is security.protocol in kafka.properties what this listener of the brokers asks for?",
            Look::Leader => {
                "a partition has no broker that leads it: kafka-topics --describe --unavailable-partitions names it; start \
                 its brokers"
            }
            Look::Network => {
                "is the address right, does something on the way drop what is sent, or does the broker stand still?"
            }
            Look::Rights => "may the meter's user do that? docs/permissions.md names the rights that it needs",
            Look::Brokers => "is it up, and are kafka.brokers and kafka.properties right?",
        }
    }
}

/// The brokers know the user, and do not let it do that.
pub fn not_allowed(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{ClusterAuthorizationFailed, GroupAuthorizationFailed, TopicAuthorizationFailed};
    matches!(code, TopicAuthorizationFailed | GroupAuthorizationFailed | ClusterAuthorizationFailed)
}

impl Fault {
    pub fn new(error: &KafkaError, reason: &str) -> Fault {
        let look = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => Look::Password,
            Some(RDKafkaErrorCode::SSL) if reason.contains("certificate") => Look::Certificate,
            Some(RDKafkaErrorCode::SSL) => Look::Protocol,
            Some(RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::LeaderNotAvailable) => Look::Leader,
            Some(code) if not_allowed(code) => Look::Rights,
            _ => Fault::silence(reason.to_owned()).look,
        };
        Fault { reason: reason.to_owned(), look }
    }

    /// Nothing is known but what the client says by itself.
    pub fn silence(reason: String) -> Fault {
        // A listener hangs up on whom it does not understand: right after the connection, or, as a hint of the client has it,
        // where it asks for a password.
        let hung_up = ["in state APIVERSION_QUERY", "SSL_HANDSHAKE", "security.protocol"];
        // Such a listener hangs up at once. This one has said nothing.
        let unanswered = reason.contains("imed out") && reason.contains("in state ");
        let look = match () {
            () if unanswered => Look::Network,
            () if hung_up.iter().any(|words| reason.contains(words)) => Look::Protocol,
            () => Look::Brokers,
        };
        Fault { reason, look }
    }

    /// Connections stand, and for so long nothing has come of what was asked for.
    pub fn unanswered(since: Duration) -> Fault {
        Fault { reason: format!("nothing has come from any broker for {}s", since.as_secs()), look: Look::Network }
    }

    /// That a broker hangs up on whom it does not understand is only logged; so is the end of an idle connection, which is
    /// no fault. Without the thread's name.
    fn logged(facility: &str, message: &str) -> Option<Fault> {
        let message = message.split_once("]: ").map_or(message, |(_, message)| message);
        (facility == "FAIL").then(|| Fault::silence(message.to_owned()))
    }
}

impl From<&KafkaError> for Fault {
    fn from(error: &KafkaError) -> Fault {
        Fault::new(error, &error.to_string())
    }
}

/// A client tells a fault with each attempt to connect, and the same again every half a minute.
const LATELY: Duration = Duration::from_secs(60);

/// The fault of a client that tells most, of those that it reported lately. Not the last: a name with several addresses, or
/// several brokers, are tried in turn, and that nobody listens at one of them says nothing about why the others refuse.
#[derive(Debug, Default)]
pub struct Reported {
    most: Noted,
    /// How a connection has ended: worth telling only while there is no other.
    end: Noted,
}

type Noted = Mutex<Option<(Fault, Instant)>>;

impl Reported {
    pub fn note(&self, fault: Fault) {
        self.note_at(fault, Instant::now());
    }

    pub fn note_logged(&self, facility: &str, message: &str) {
        let Some(fault) = Fault::logged(facility, message) else { return };
        if fault.look == Look::Protocol {
            self.note(fault.clone());
        }
        *hold(&self.end) = Some((fault, Instant::now()));
    }

    fn note_at(&self, fault: Fault, now: Instant) {
        let mut held = hold(&self.most);
        let tells_more =
            |(held, noted): &(Fault, Instant)| is_fresh(*noted, now) && held.look.rank() > fault.look.rank();
        if !held.as_ref().is_some_and(tells_more) {
            *held = Some((fault, now));
        }
    }

    pub fn lately(&self) -> Option<Fault> {
        self.lately_at(Instant::now())
    }

    fn lately_at(&self, now: Instant) -> Option<Fault> {
        fresh(&self.most, now)
    }

    /// What was reported says nothing any more, as once a broker is connected.
    pub fn clear(&self) {
        *hold(&self.most) = None;
    }

    pub fn last_end(&self) -> Option<Fault> {
        fresh(&self.end, Instant::now())
    }
}

fn hold(noted: &Noted) -> MutexGuard<'_, Option<(Fault, Instant)>> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fresh(noted: &Noted, now: Instant) -> Option<Fault> {
    hold(noted).as_ref().filter(|(_, noted)| is_fresh(*noted, now)).map(|(fault, _)| fault.clone())
}

fn is_fresh(noted: Instant, now: Instant) -> bool {
    now.duration_since(noted) < LATELY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where_to_look() {
        let of = |code, reason: &str| Fault::new(&KafkaError::Global(code), reason).to_string();
        let check = |told: String, remedy: &str| assert!(told.contains(remedy), "{told}");
        check(of(RDKafkaErrorCode::Authentication, "no"), "no; do the brokers know this user and password?");
        check(of(RDKafkaErrorCode::GroupAuthorizationFailed, "no"), "docs/permissions.md names the rights");
        check(of(RDKafkaErrorCode::SSL, "certificate verify failed"), "an authority of ssl.ca.location");
        check(of(RDKafkaErrorCode::SSL, "connecting to a PLAINTEXT broker listener?"), "is security.protocol in");
        check(of(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused"), "is it up, and are kafka.brokers");
        let unanswered = "ApiVersionRequest failed: Local: Timed out: probably due to broker version < 0.10 (see \
                          api.version.request configuration) (after 10006ms in state APIVERSION_QUERY)";
        check(of(RDKafkaErrorCode::BrokerTransportFailure, unanswered), "does something on the way drop what is sent");
    }

    #[test]
    fn the_end_of_a_connection_is_told_apart_from_faults() {
        let told = |ended: &str| {
            let faults = Reported::default();
            faults.note_logged("FAIL", &format!("[thrd:k:1/1]: {ended}"));
            assert_eq!(faults.last_end().map(|fault| fault.reason).as_deref(), Some(ended));
            faults.lately().map(|fault| fault.reason)
        };
        let hung_up = "k:1/bootstrap: Disconnected (after 0ms in state APIVERSION_QUERY)";
        assert_eq!(told(hung_up).as_deref(), Some(hung_up));
        assert_eq!(told("k:1/1: Disconnected (after 600000ms in state UP)"), None, "it was idle");
    }

    #[test]
    fn of_the_faults_reported_lately_the_one_that_tells_most_is_told() {
        let (faults, start) = (Reported::default(), Instant::now());
        let refused = || Fault::silence("connect to [::1] failed: Connection refused".into());
        let password = |told: &str| Fault::new(&KafkaError::Global(RDKafkaErrorCode::Authentication), told);
        let told = |at: u64| faults.lately_at(start + Duration::from_secs(at)).map(|fault| fault.reason);
        let note = |fault: Fault, at: u64| faults.note_at(fault, start + Duration::from_secs(at));
        note(refused(), 0);
        assert!(told(0).expect("a fault").contains("refused"));
        note(password("first"), 1);
        note(password("second"), 2);
        note(refused(), 3);
        assert_eq!(told(61).as_deref(), Some("second"), "another address says nothing about it");
        assert_eq!(told(62), None, "it was not told again");
        note(refused(), 63);
        assert!(told(63).expect("a fault").contains("refused"));
        faults.clear();
        assert_eq!(told(63), None);
    }
}
