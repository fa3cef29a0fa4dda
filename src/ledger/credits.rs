//! Amounts of credits, kept as integers of a thousandth, never as floats.

use std::fmt;

use serde::{Serialize, Serializer};

/// An amount of credits, in thousandths of a credit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Credits(i64);

/// Why a text is not an amount of credits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreditsError {
    #[error("`{0}` is not a plain decimal number")]
    NotANumber(String),
    #[error("`{0}` has more than three decimals")]
    TooPrecise(String),
    #[error("`{0}` is beyond the largest amount, 1000000000000 credits")]
    TooLarge(String),
}

impl Credits {
    pub const ZERO: Credits = Credits(0);
    /// The most that one event may cost: 10^8 credits. A call of 20,000 events then stays below 2^53
    /// thousandths, the largest integer that a Lua number holds exactly.
    pub const EVENT_MAX: Credits = Credits(100_000_000_000);
    /// The most that a balance may hold: 10^12 credits, nine times below 2^53 thousandths.
    pub const BALANCE_MAX: Credits = Credits(1_000_000_000_000_000);

    pub const fn from_thousandths(thousandths: i64) -> Credits {
        Credits(thousandths)
    }

    pub const fn thousandths(self) -> i64 {
        self.0
    }

    pub const fn whole(credits: i64) -> Credits {
        Credits(credits * 1000)
    }

    /// Reads a JSON or TOML number from its text: digits, at most three decimals, no exponent.
    pub fn parse(text: &str) -> Result<Credits, CreditsError> {
        let not_a_number = || CreditsError::NotANumber(clip(text));
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = match digits.split_once('.') {
            Some((_, "")) => return Err(not_a_number()),
            Some((whole, fraction)) => (whole, fraction),
            None => (digits, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
            return Err(not_a_number());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 3 {
            return Err(CreditsError::TooPrecise(clip(text)));
        }
        let too_large = || CreditsError::TooLarge(clip(text));
        let whole: i64 = whole.parse().map_err(|_| too_large())?;
        let fraction: i64 = format!("{fraction:0<3}").parse().map_err(|_| not_a_number())?;
        let magnitude =
            whole.checked_mul(1000).and_then(|thousandths| thousandths.checked_add(fraction)).ok_or_else(too_large)?;
        if magnitude > Credits::BALANCE_MAX.0 {
            return Err(too_large());
        }
        Ok(Credits(if negative { -magnitude } else { magnitude }))
    }

    pub fn checked_mul(self, quantity: u64) -> Option<Credits> {
        let quantity = i64::try_from(quantity).ok()?;
        self.0.checked_mul(quantity).map(Credits)
    }
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

impl std::ops::Add for Credits {
    type Output = Credits;
    fn add(self, other: Credits) -> Credits {
        Credits(self.0.checked_add(other.0).expect("amounts are bounded by BALANCE_MAX, far below i64"))
    }
}

impl std::ops::Sub for Credits {
    type Output = Credits;
    fn sub(self, other: Credits) -> Credits {
        Credits(self.0.checked_sub(other.0).expect("amounts are bounded by BALANCE_MAX, far below i64"))
    }
}

impl std::ops::AddAssign for Credits {
    fn add_assign(&mut self, other: Credits) {
        *self = *self + other;
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        let (whole, fraction) = (magnitude / 1000, magnitude % 1000);
        let sign = if self.0 < 0 { "-" } else { "" };
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let decimals = format!("{fraction:03}");
        write!(f, "{sign}{whole}.{}", decimals.trim_end_matches('0'))
    }
}

impl fmt::Debug for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} credits")
    }
}

/// A JSON number in credits, written from the integer, never through a float.
impl Serialize for Credits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number =
            serde_json::value::RawValue::from_string(self.to_string()).expect("a decimal number is valid JSON");
        number.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_from_their_text() {
        let check = |text: &str, thousandths: i64| {
            assert_eq!(Credits::parse(text), Ok(Credits(thousandths)), "{text}");
        };
        check("0", 0);
        check("1", 1000);
        check("1.5", 1500);
        check("0.001", 1);
        check("1.2300000", 1230);
        check("-0.8", -800);
        check("1000000000000", 1_000_000_000_000_000);
    }

    #[test]
    fn other_texts_are_refused() {
        let check = |text: &str, reason: &str| {
            let refused = Credits::parse(text).expect_err(text).to_string();
            assert!(refused.contains(reason), "{text}: {refused}");
        };
        check("", "not a plain decimal");
        check("1e3", "not a plain decimal");
        check("+1", "not a plain decimal");
        check(".5", "not a plain decimal");
        check("5.", "not a plain decimal");
        check("NaN", "not a plain decimal");
        check("0.0001", "three decimals");
        check("1000000000000.001", "beyond the largest");
        check("99999999999999999999", "beyond the largest");
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_back(thousandths in -1_000_000_000_000_000i64..=1_000_000_000_000_000) {
            let credits = Credits(thousandths);
            proptest::prop_assert_eq!(Credits::parse(&credits.to_string()), Ok(credits));
        }
    }
}
