//! Named places at which a test ends the process as if it were killed: `debug.failpoint = "after_apply"`, or
//! `"after_apply@7"` for the seventh time that the place is reached. All of them are listed here.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static ARMED: OnceLock<Armed> = OnceLock::new();

struct Armed {
    place: Failpoint,
    /// How often it is still passed.
    passes: AtomicU64,
}

macro_rules! failpoints {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint {
            $($(#[$doc])* $name,)*
        }

        impl Failpoint {
            pub const ALL: [Failpoint; [$($text),*].len()] = [$(Failpoint::$name),*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Failpoint::$name => $text,)*
                }
            }
        }
    };
}

failpoints! {
    /// The root key is made, and no shard is.
    AfterRoot = "after_root",
    /// A shard is made, or found; the others are not looked at yet.
    AfterInit = "after_init",
    /// Kafka has the state's generation beside the offsets, and nothing is read yet.
    AfterGeneration = "after_generation",
    /// A call is ready and not sent.
    BeforeApply = "before_apply",
    /// The script has run; the worker has not seen its reply.
    AfterApply = "after_apply",
    /// The same for the script of a command.
    AfterCommand = "after_command",
    /// The shard has noted dead records; their dead letters are not produced yet.
    AfterNote = "after_note",
    /// Dead letters are in Kafka; the shard does not know.
    AfterDeadLetters = "after_dead_letters",
    /// The relay has taken messages from an outbox, and published none.
    BeforePublish = "before_publish",
    /// Messages are in Kafka, and still in the outbox.
    AfterPublish = "after_publish",
    /// Redis went back; the reader has not followed yet.
    AfterRewind = "after_rewind",
    /// A rebuild has deleted one shard's fence, and looked at no other.
    AfterFenceWiped = "after_fence_wiped",
    /// A rebuild has deleted all keys of one shard.
    AfterWipe = "after_wipe",
    /// A shard bears its new name, for a rebuild or again for the workers; the others do not yet.
    AfterName = "after_name",
}

#[derive(Debug, thiserror::Error)]
#[error("debug.failpoint = \"{0}\": no such place")]
pub struct NoSuchPlace(String);

/// Arms a place for this process. The first call counts.
pub fn arm(text: &str) -> Result<(), NoSuchPlace> {
    let no_such_place = || NoSuchPlace(text.to_owned());
    let (name, times) = text.split_once('@').unwrap_or((text, "1"));
    let place = Failpoint::ALL.into_iter().find(|place| place.name() == name).ok_or_else(no_such_place)?;
    let times: u64 = times.parse().map_err(|_| no_such_place())?;
    ARMED.get_or_init(|| Armed { place, passes: AtomicU64::new(times.saturating_sub(1)) });
    Ok(())
}

/// Ends the process if a test has armed this place.
pub fn reached(place: Failpoint) {
    let Some(armed) = ARMED.get().filter(|armed| armed.place == place) else { return };
    let passes = armed.passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    if passes.is_err() {
        tracing::warn!(place = place.name(), "failpoint: the process ends");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_places_are_refused() {
        for text in ["nowhere", "after_apply@", "after_apply@x", "@1"] {
            assert!(arm(text).is_err(), "{text}");
        }
    }
}
