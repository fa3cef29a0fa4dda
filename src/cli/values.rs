//! Arguments from their texts. Inside, values are valid.

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDate, SecondsFormat};
use chrono_tz::Tz;

use crate::ledger::account::Addon;
use crate::ledger::catalogue::{Overage, Threshold};
use crate::ledger::credits::Credits;
use crate::ledger::cycle::Interval;
use crate::ledger::grants::GrantKind;
use crate::ledger::members::MemberLimit;
use crate::ledger::time::moment;

/// As long as the meter takes a subject or an id.
const NAME_BYTES_MAX: usize = 256;

/// An account or an id: anything else would end as a dead letter.
pub fn name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control);
    let refused = || format!("it must have 1 to {NAME_BYTES_MAX} bytes and no control characters");
    if fits { Ok(text.to_owned()) } else { Err(refused()) }
}

/// `kafka.brokers=localhost:9092`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| "it must look like KEY=VALUE, for instance redis.shards=16".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

pub fn positive_credits(text: &str) -> Result<Credits, String> {
    let credits = Credits::parse(text).map_err(|error| error.to_string())?;
    if credits > Credits::ZERO { Ok(credits) } else { Err("it must be more than 0".to_owned()) }
}

/// `-5` or `+0.5`.
pub fn signed_credits(text: &str) -> Result<Credits, String> {
    let credits = match text.strip_prefix('+') {
        Some(unsigned) => positive_credits(unsigned)?,
        None => Credits::parse(text).map_err(|error| error.to_string())?,
    };
    if credits == Credits::ZERO { Err("it must be more or less than 0".to_owned()) } else { Ok(credits) }
}

/// `2026-01-31T00:00:00Z`, also with an offset; written in UTC. No date: whose midnight would that be?
pub fn instant(text: &str) -> Result<String, String> {
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|time| (1970..=9999).contains(&time.to_utc().year()));
    let time = time.ok_or_else(|| "it must be an RFC 3339 time, for instance 2026-01-31T00:00:00Z".to_owned())?;
    Ok(time.to_utc().to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// `email=500`.
pub fn addon(text: &str) -> Result<Addon, String> {
    let (credit_type, amount) =
        text.split_once('=').ok_or_else(|| "it must look like TYPE=AMOUNT, for instance email=500".to_owned())?;
    Ok(Addon { credit_type: name(credit_type)?, amount: positive_credits(amount)? })
}

/// `email=50` for each member, `email:ada=200` for one.
pub fn member_limit(text: &str) -> Result<MemberLimit, String> {
    let looks = "it must look like TYPE=AMOUNT or TYPE:MEMBER=AMOUNT, for instance email=50 or email:ada=200";
    // A member's name may have any character.
    let (of, amount) = text.rsplit_once('=').ok_or_else(|| looks.to_owned())?;
    let amount = Credits::parse(amount).map_err(|error| error.to_string())?;
    if amount < Credits::ZERO {
        return Err("the limit must not be negative".to_owned());
    }
    let (credit_type, user) = match of.split_once(':') {
        Some((credit_type, user)) => (credit_type, Some(name(user)?.into())),
        None => (of, None),
    };
    Ok(MemberLimit { credit_type: name(credit_type)?, user, amount })
}

/// The least that a size may be: a bare `5` was meant otherwise.
const BYTES_MIN: u64 = 4 << 10;

/// `512MiB`, `1GiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let refused = || "it must look like 512MiB or 1GiB, and be at least 4KiB".to_owned();
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let number: u64 = number.trim().parse().map_err(|_| refused())?;
    number.checked_mul(unit).filter(|bytes| *bytes >= BYTES_MIN).ok_or_else(refused)
}

/// `2026-01-31`.
pub fn date(text: &str) -> Result<NaiveDate, String> {
    text.parse().map_err(|_| "it must be a date like 2026-01-31".to_owned())
}

/// `30s`, `1h 30min`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "it must look like 30s, 10min or 72h".to_owned())
}

/// For what nothing could keep to if it were 0.
pub fn time_limit(text: &str) -> Result<Duration, String> {
    let limit = duration(text)?;
    if limit.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(limit) }
}

pub fn threshold(text: &str) -> Result<Threshold, String> {
    Threshold::parse(text).ok_or_else(|| "it must look like `80%` or `remaining 100`".to_owned())
}

/// `reject`, `cap`, `allow` or `allow:LIMIT`.
pub fn overage(text: &str) -> Result<Overage, String> {
    if let Some(limit) = text.strip_prefix("allow:") {
        let limit = Credits::parse(limit).map_err(|error| error.to_string())?;
        return if limit < Credits::ZERO {
            Err("the limit must not be negative".to_owned())
        } else {
            Ok(Overage::Allow { limit: Some(limit) })
        };
    }
    Overage::parse(text).ok_or_else(|| "it must be reject, cap, allow or allow:LIMIT".to_owned())
}

pub fn interval(text: &str) -> Result<Interval, String> {
    let known = Interval::ALL.map(Interval::name).join(", ");
    Interval::from_name(text).ok_or_else(|| format!("it must be one of {known}"))
}

pub fn timezone(text: &str) -> Result<Tz, String> {
    text.parse().map_err(|_| "it must be a name of the IANA time zone database, for instance Europe/Paris".to_owned())
}

/// A date, which is its first moment in UTC, or an RFC 3339 time; in ms.
pub fn time(text: &str) -> Result<i64, String> {
    moment(text).ok_or_else(|| "it must look like 2027-01-01 or 2027-01-01T12:00:00Z".to_owned())
}

/// What a grant by hand can be.
pub fn grant_kind(text: &str) -> Result<GrantKind, String> {
    match GrantKind::from_name(text) {
        Some(kind @ (GrantKind::Topup | GrantKind::Promo)) => Ok(kind),
        _ => Err("it must be topup or promo".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overage_has_an_optional_limit() {
        assert_eq!(overage("allow"), Ok(Overage::Allow { limit: None }));
        assert_eq!(overage("allow:7.5"), Ok(Overage::Allow { limit: Some(Credits::from_thousandths(7500)) }));
        assert!(overage("allow:-1").is_err());
        assert!(overage("allow:").is_err());
        assert!(overage("deny").is_err());
    }

    #[test]
    fn a_date_a_duration_or_a_size_that_does_not_fit_is_told_how_it_looks() {
        assert_eq!(date("2026-01-31").unwrap().to_string(), "2026-01-31");
        for wrong in ["31.01.2026", "2026-02-30", "2026-01-31T00:00:00Z", "", "today"] {
            assert_eq!(date(wrong), Err("it must be a date like 2026-01-31".to_owned()), "{wrong}");
        }
        assert_eq!(duration("1h 30min"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "abc", "5", "5 apples", "-1s"] {
            assert_eq!(duration(wrong), Err("it must look like 30s, 10min or 72h".to_owned()), "{wrong}");
        }
        assert_eq!((time_limit("1s"), time_limit("0s").is_err()), (Ok(Duration::from_secs(1)), true));
        assert_eq!((bytes("4KiB"), bytes("1GiB"), bytes("4096")), (Ok(4096), Ok(1 << 30), Ok(4096)));
        for wrong in ["5", "0GiB", "4095", "1GB", "-1", "99999999999GiB"] {
            assert_eq!(
                bytes(wrong),
                Err("it must look like 512MiB or 1GiB, and be at least 4KiB".to_owned()),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_addon_names_type_and_amount() {
        let expected = Addon { credit_type: "email".into(), amount: Credits::whole(500) };
        assert_eq!(addon("email=500"), Ok(expected));
        for wrong in ["email", "email=", "=5", "email=-1", "email=0", "email=1e3"] {
            assert!(addon(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_member_limit_may_name_a_member() {
        let limit = |user: Option<&str>, amount: i64| MemberLimit {
            credit_type: "email".into(),
            user: user.map(Into::into),
            amount: Credits::whole(amount),
        };
        assert_eq!(member_limit("email=50"), Ok(limit(None, 50)));
        assert_eq!(member_limit("email=0"), Ok(limit(None, 0)));
        assert_eq!(member_limit("email:ada=200"), Ok(limit(Some("ada"), 200)));
        assert_eq!(member_limit("email:id:a=b c=7"), Ok(limit(Some("id:a=b c"), 7)));
        for wrong in ["email", "email=", "=5", "email=-1", "email:=1", ":ada=1", "email:ada", "email:ada=x"] {
            assert!(member_limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_adjustment_has_a_sign_and_is_not_nothing() {
        assert_eq!(signed_credits("-0.5"), Ok(Credits::from_thousandths(-500)));
        assert_eq!(signed_credits("+7"), Ok(Credits::whole(7)));
        assert_eq!(signed_credits("7"), Ok(Credits::whole(7)));
        for wrong in ["0", "-0", "+0", "+-1", "--1", "", "-", "1e3", "0.0001"] {
            assert!(signed_credits(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_sent_in_utc() {
        assert_eq!(instant("2026-01-31T01:00:00+01:00"), Ok("2026-01-31T00:00:00Z".to_owned()));
        for wrong in ["2026-01-31", "soon", "1969-12-31T00:00:00Z", "2026-02-30T00:00:00Z"] {
            assert!(instant(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_date_is_its_first_moment_in_utc() {
        use crate::config::StartFrom;
        for (text, ms) in [("1970-01-02", 86_400_000), ("1970-01-01T01:00:00.5+01:00", 500)] {
            assert_eq!((time(text), text.parse()), (Ok(ms), Ok(StartFrom::Time(ms))));
        }
        for wrong in ["1970-01-32", "1970-01-01T00:00:00", "yesterday", ""] {
            assert!(time(wrong).is_err() && wrong.parse::<StartFrom>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_names_that_the_meter_takes_are_names() {
        assert!(name("équipe 7").is_ok());
        assert!(name("").is_err());
        assert!(name("a\nb").is_err());
        assert!(name(&"x".repeat(257)).is_err());
    }
}
