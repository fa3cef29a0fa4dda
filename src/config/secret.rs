//! A setting that may be a password: no message and no debug output has its value.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A text that is used as it is, and shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        deserializer.deserialize_any(OnlyText)
    }
}

/// Of anything else serde would tell the value, and a password may be all digits.
struct OnlyText;

impl OnlyText {
    fn refuse<E: Error>() -> Result<Secret, E> {
        Err(E::custom("invalid type: write the value in quotes"))
    }
}

impl Visitor<'_> for OnlyText {
    type Value = Secret;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a text in quotes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Ok(text.into())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Secret, E> {
        OnlyText::refuse()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Secret, E> {
        OnlyText::refuse()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
        OnlyText::refuse()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn no_debug_output_has_a_secret() {
        let mut config = Config::default();
        config.redis.url = "redis://:hush@10.0.0.1/".into();
        config.kafka.properties.insert("sasl.password".into(), "hush".into());
        let shown = format!("{config:?} {config:#?}");
        assert!(shown.contains("sasl.password") && !shown.contains("hush"), "{shown}");
    }

    #[test]
    fn no_refusal_has_a_secret() {
        for value in ["271828", "27.1828", "271828.0", "true", "[271828]", "{ a = 271828 }"] {
            let text = format!("[kafka.properties]\n\"sasl.password\" = {value}");
            let said = toml::from_str::<Config>(&text).unwrap_err().message().to_owned();
            assert!(said.contains("in quotes") && !said.contains("1828"), "{value}: {said}");
        }
    }
}
