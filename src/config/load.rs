//! The layers of the configuration, each over the one before: defaults, file, environment, flags.
//!
//! A variable `CREDIT_METER__KAFKA__BROKERS` sets `kafka.brokers`: two underscores go one level down. Below
//! `kafka.properties` every underscore is a dot: `CREDIT_METER__KAFKA__PROPERTIES__SECURITY_PROTOCOL` sets
//! `security.protocol`. With `_FILE` at its end a variable names a file that holds the value, for secrets. An empty
//! variable counts as not set. One that would set a key had it two underscores is refused; others with the name of this program
//! are Kubernetes' or somebody else's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Config;
use crate::ledger::catalogue::Catalogue;

/// Read where no other file is named, if it exists.
const DEFAULT_FILE: &str = "config/meter.toml";
const PREFIX: &str = "CREDIT_METER__";
const NEARLY_PREFIX: &str = "CREDIT_METER_";
const FILE_SUFFIX: &str = "_FILE";

/// Why there is no configuration, or no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: std::io::Error },
    /// The place is a file and a line, a variable or a flag.
    #[error("{place}: {reason}")]
    Refused { place: String, reason: String },
}

impl Config {
    /// `overrides` are dotted keys and values from flags.
    pub fn load(
        file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        overrides: &[(String, String)],
    ) -> Result<Config, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let mut layers = match file {
            None => Layers::default(),
            Some(path) => Layers::of_file(path)?,
        };
        for (name, value) in environment {
            if value.is_empty() {
                continue;
            }
            if let Some(key) = name.strip_prefix(PREFIX) {
                layers.set_variable(name, key, value, environment)?;
            } else if let Some(meant) = name.strip_prefix(NEARLY_PREFIX).and_then(|key| layers.meant(key)) {
                return Err(refused(name.clone(), format!("it is not read: write {meant}")));
            }
        }
        for (key, value) in overrides {
            let levels: Vec<&str> = key.split('.').collect();
            layers.set(&path_of(&levels), value, &format!("flag for {key}"))?;
        }
        layers.finish()
    }

    /// With the environment of the process.
    pub fn from_process(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
        Config::load(file, &own_variables(std::env::vars_os())?, overrides)
    }
}

/// Reads the price list that the configuration names.
pub fn read_catalogue(config: &Config) -> Result<Catalogue, ConfigError> {
    read_catalogue_file(&config.catalogue.path)
}

/// Reads a price list.
pub fn read_catalogue_file(path: &Path) -> Result<Catalogue, ConfigError> {
    Catalogue::parse(&read(path)?).map_err(|error| refused(at_line(path, error.line), error.reason))
}

/// The configuration so far, and where each key was set last.
#[derive(Default)]
struct Layers {
    table: toml::Table,
    config: Config,
    places: BTreeMap<String, String>,
}

impl Layers {
    fn of_file(path: &Path) -> Result<Layers, ConfigError> {
        let text = read(path)?;
        let refuse = |error: toml::de::Error| {
            let start = error.span().unwrap_or_default().start;
            refused(at_line(path, line_of(&text, start)), without_value(error.message(), "this key"))
        };
        let config = toml::from_str(&text).map_err(refuse)?;
        let table = toml::from_str(&text).map_err(refuse)?;
        let mut places = BTreeMap::new();
        let written = DeTable::parse(&text).map_err(refuse)?;
        collect_places(written.get_ref(), "", &mut |key, start| {
            places.insert(key, at_line(path, line_of(&text, start)));
        });
        Ok(Layers { table, config, places })
    }

    fn set_variable(
        &mut self,
        name: &str,
        key: &str,
        value: &str,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), ConfigError> {
        let Some(key) = key.strip_suffix(FILE_SUFFIX) else {
            return self.set(&path_of_variable(key), value, name);
        };
        let direct = &name[..name.len() - FILE_SUFFIX.len()];
        if environment.get(direct).is_some_and(|value| !value.is_empty()) {
            return Err(refused(name.to_owned(), format!("{direct} is set too: leave one out")));
        }
        let secret = std::fs::read_to_string(value)
            .map_err(|error| refused(name.to_owned(), format!("cannot read {value}: {error}")))?;
        self.set(&path_of_variable(key), secret.trim(), name)
    }

    /// The variable that was meant by one with a single underscore where two should be, if it would set a key.
    fn meant(&self, key: &str) -> Option<String> {
        let (key, suffix) = key.strip_suffix(FILE_SUFFIX).map_or((key, ""), |key| (key, FILE_SUFFIX));
        let key = key.replace("__", "_");
        let (section, rest) = key.split_once('_')?;
        let deeper = rest.split_once('_').map(|(table, rest)| format!("{section}__{table}__{rest}"));
        let known = |key: &String| {
            let why_not =
                self.with(&path_of_variable(key), toml::Value::String(String::new())).err().unwrap_or_default();
            !["unknown field", "there are no keys below it", "type: map", "expected struct", "expected a map"]
                .iter()
                .any(|words| why_not.contains(words))
        };
        let meant = [Some(format!("{section}__{rest}")), deeper].into_iter().flatten().find(known)?;
        Some(format!("{PREFIX}{meant}{suffix}"))
    }

    /// Sets one key. What was there before was good, so that whatever is wrong now is wrong with this key.
    fn set(&mut self, path: &[String], text: &str, place: &str) -> Result<(), ConfigError> {
        // Variables and flags are text, whatever the key's type is. A number is tried where a text does not fit.
        let mut candidates = vec![toml::Value::String(text.to_owned())];
        candidates.extend(text.parse().map(toml::Value::Integer));
        candidates.extend(text.parse().map(toml::Value::Boolean));
        let mut reason = String::new();
        for candidate in candidates {
            match self.with(path, candidate) {
                Ok((table, config)) => {
                    self.places.insert(path.join("."), place.to_owned());
                    (self.table, self.config) = (table, config);
                    return Ok(());
                }
                // That the value is no text says less than what is wrong with the text, or with the number.
                Err(why) if reason.is_empty() || reason.starts_with("invalid type") => reason = why,
                Err(_) => {}
            }
        }
        Err(refused(place.to_owned(), without_value(&reason, &format!("`{}`", path.join(".")))))
    }

    fn with(&self, path: &[String], value: toml::Value) -> Result<(toml::Table, Config), String> {
        let mut table = self.table.clone();
        insert(&mut table, path, value)?;
        let config = table.clone().try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
        Ok((table, config))
    }

    fn finish(self) -> Result<Config, ConfigError> {
        self.config.check().map_err(|wrong| {
            let place = self.places.get(&wrong.key).map_or("defaults", String::as_str);
            refused(place.to_owned(), format!("{} {}", wrong.key, wrong.reason))
        })?;
        Ok(self.config)
    }
}

fn insert(table: &mut toml::Table, path: &[String], value: toml::Value) -> Result<(), String> {
    let Some((last, levels)) = path.split_last() else { return Ok(()) };
    let mut table = table;
    for level in levels {
        let below = table.entry(level.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = below.as_table_mut().ok_or_else(|| format!("`{level}` is a value: there are no keys below it"))?;
    }
    table.insert(last.clone(), value);
    Ok(())
}

fn path_of_variable(key: &str) -> Vec<String> {
    let key = key.to_lowercase();
    let levels: Vec<&str> = key.split("__").collect();
    match levels.as_slice() {
        ["kafka", "properties", names @ ..] if !names.is_empty() => {
            path_of_property(&names.join(".").replace('_', "."))
        }
        _ => path_of(&levels),
    }
}

fn path_of(levels: &[&str]) -> Vec<String> {
    match levels {
        ["kafka", "properties", names @ ..] if !names.is_empty() => path_of_property(&names.join(".")),
        _ => levels.iter().map(|level| (*level).to_owned()).collect(),
    }
}

/// The name of a property of librdkafka holds dots of its own.
fn path_of_property(name: &str) -> Vec<String> {
    vec!["kafka".to_owned(), "properties".to_owned(), name.to_owned()]
}

/// Tells the dotted key of each value and where it starts.
fn collect_places(table: &DeTable, above: &str, found: &mut impl FnMut(String, usize)) {
    for (name, value) in table {
        let key = if above.is_empty() { name.get_ref().to_string() } else { format!("{above}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(below) => collect_places(below, &key, found),
            _ => found(key, name.span().start),
        }
    }
}

/// The variables that are meant for this program, or may be.
fn own_variables(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut own = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(NEARLY_PREFIX)) else { continue };
        let value = match value.into_string() {
            Ok(value) => value,
            Err(value) if !name.starts_with(PREFIX) => value.to_string_lossy().into_owned(),
            Err(_) => return Err(refused(name.to_owned(), "it is not UTF-8 text".to_owned())),
        };
        own.insert(name.to_owned(), value);
    }
    Ok(own)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|reason| ConfigError::Unreadable { path: path.to_owned(), reason })
}

fn refused(place: String, reason: String) -> ConfigError {
    ConfigError::Refused { place, reason }
}

/// A text where a table should be was meant for a key below, and may be a password.
fn without_value(reason: &str, what: &str) -> String {
    let has_keys = ["expected struct ", "expected a map"].iter().any(|words| reason.contains(words));
    if reason.starts_with("invalid type") && has_keys {
        return format!("{what} has keys below it, and no value of its own");
    }
    reason.to_owned()
}

/// A place in a file, for messages.
pub fn at_line(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

fn line_of(text: &str, start: usize) -> usize {
    1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::catalogue::{Amount, Overage};
    use crate::ledger::credits::Credits;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// Loads with a file of this text; in messages it is called `FILE`.
    fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meter.toml");
        std::fs::write(&path, file).unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "  redis://:pass word@host/ \n").unwrap();
        let in_directory = |value: &str| value.replace("SECRET", &secret.display().to_string());
        let environment = pairs(environment).into_iter().map(|(name, value)| (name, in_directory(&value))).collect();
        Config::load(Some(&path), &environment, &pairs(flags)).map_err(|error| {
            error.to_string().replace(&path.display().to_string(), "FILE").replace(&in_directory("SECRET"), "SECRET")
        })
    }

    #[test]
    fn a_later_layer_wins() {
        let file = "[redis]\nshards = 1\nprefix = 'file'\nurl = 'redis://file/'\n[events]\nlate_after = '1h'";
        let environment = [
            ("CREDIT_METER__REDIS__SHARDS", "2"),
            ("CREDIT_METER__REDIS__URL", "redis://env/"),
            ("CREDIT_METER__KAFKA__TOPICS__DEAD_LETTER", "dead"),
            ("CREDIT_METER__KAFKA__GROUP", "7"),
            ("CREDIT_METER__KAFKA__INSTANCE_ID", ""),
            ("CREDIT_METER__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "ssl"),
            ("CREDIT_METER__KAFKA__PROPERTIES__FETCH_MIN_BYTES", "1"),
            ("CREDIT_METER__EVENTS__AGE_FROM", "create"),
            ("CREDIT_METER_FILE", "not one of ours"),
            ("CREDIT_METER_REDIS_PORT_6379_TCP_ADDR", "a Service of Kubernetes"),
            ("CREDIT_METER_REDIS_URL", ""),
            ("CREDIT_METER__", ""),
        ];
        let flags = [("redis.shards", "3"), ("kafka.properties.ssl.ca.location", "/ca.pem"), ("log.format", "json")];
        let config = load(file, &environment, &flags).unwrap();
        assert_eq!((config.redis.shards, &*config.redis.prefix, &*config.redis.url), (3, "file", "redis://env/"));
        assert_eq!((&*config.kafka.topics.dead_letter, &*config.kafka.group), ("dead", "7"));
        assert_eq!(config.kafka.instance_id, None);
        assert_eq!(config.events.late_after, Duration::from_secs(3600));
        assert_eq!(config.events.age_from, super::super::AgeFrom::Create);
        let properties = [("fetch.min.bytes", "1"), ("security.protocol", "ssl"), ("ssl.ca.location", "/ca.pem")];
        assert!(config.kafka.properties.iter().map(|(name, value)| (&**name, &**value)).eq(properties));
        assert_eq!(load("", &[], &[]).unwrap(), Config::default());
    }

    #[test]
    fn a_secret_is_read_from_a_file() {
        let config = load("", &[("CREDIT_METER__REDIS__URL_FILE", "SECRET")], &[]).unwrap();
        assert_eq!(&*config.redis.url, "redis://:pass word@host/");
        let config = load("", &[("CREDIT_METER__KAFKA__PROPERTIES__SASL_PASSWORD_FILE", "SECRET")], &[]).unwrap();
        assert!(config.kafka.properties["sasl.password"].starts_with("redis://"));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        let file = |file: &str, message: &str| {
            let said = load(file, &[], &[]).unwrap_err();
            assert!(said.starts_with(message), "{file}: {said}");
        };
        let variable = |name: &str, value: &str, message: &str| {
            let said = load("", &[(name, value)], &[]).unwrap_err();
            assert!(said.starts_with(&format!("{name}: ")) && said.contains(message), "{said}");
        };
        let flag = |key: &str, value: &str, message: &str| {
            let said = load("", &[], &[(key, value)]).unwrap_err();
            assert!(said.starts_with(&format!("flag for {key}: ")) && said.contains(message), "{said}");
        };
        file(
            "\n[redis]\nurls = 1",
            "FILE:3: unknown field `urls`, expected one of `url`, `prefix`, `shards`, `timeout`",
        );
        file("\n[radis]\n", "FILE:2: unknown field `radis`, expected one of `kafka`, `redis`, `http`");
        file("[redis]\n\nshards = '3'", "FILE:3: invalid type: string \"3\", expected u32");
        file("[redis]\nshards = 0", "FILE:2: redis.shards is 0: write 1 to 4096");
        file("redis.shards = 0", "FILE:1: redis.shards is 0: write 1 to 4096");
        file(
            "redis = {\n timeout = '5 minuets' }",
            "FILE:2: `5 minuets` is no duration: unknown time unit \"minuets\"",
        );
        file("[redis]\nurl =", "FILE:2: string values must be quoted, expected literal string");
        file("[kafka.properties]\n'a.b' = 1", "FILE:2: invalid type: write the value in quotes");
        variable("CREDIT_METER__REDIS__URLS", "x", "unknown field `urls`, expected one of `url`");
        variable("CREDIT_METER__REDIS_URL", "x", "unknown field `redis_url`");
        variable("CREDIT_METER__REDIS", "redis://:hush@host/", "`redis` has keys below it, and no value of its own");
        variable(
            "CREDIT_METER__REDIS__SENTINEL",
            "hush",
            "`redis.sentinel` has keys below it, and no value of its own",
        );
        variable(
            "CREDIT_METER__KAFKA__PROPERTIES",
            "hush",
            "`kafka.properties` has keys below it, and no value of its own",
        );
        file("[redis]\nsentinel = 'hush'", "FILE:2: this key has keys below it, and no value of its own");
        variable("CREDIT_METER__REDIS__SHARDS", "many", "invalid type: string \"many\", expected u32");
        variable("CREDIT_METER__REDIS__SHARDS", "-1", "invalid value: integer `-1`, expected u32");
        variable("CREDIT_METER__REDIS__SHARDS", "5000", "redis.shards is 5000: write 1 to 4096");
        variable("CREDIT_METER__REDIS__SHARDS__MORE", "1", "invalid type: map, expected u32");
        variable("CREDIT_METER__EVENTS__LATE_AFTER", "3", "`3` is no duration");
        variable("CREDIT_METER__EVENTS__AGE_FROM", "birth", "unknown variant `birth`, expected `append` or `create`");
        variable("CREDIT_METER__REDIS__URL_FILE", "/does/not/exist", "cannot read /does/not/exist");
        for (nearly, meant) in [
            ("KAFKA_BROKERS", "KAFKA__BROKERS"),
            ("REDIS_SHARDS", "REDIS__SHARDS"),
            ("REDIS_URL_FILE", "REDIS__URL_FILE"),
            ("EVENTS_LATE_AFTER", "EVENTS__LATE_AFTER"),
            ("KAFKA_TOPICS__DEAD_LETTER", "KAFKA__TOPICS__DEAD_LETTER"),
            ("KAFKA_PROPERTIES_SASL_PASSWORD", "KAFKA__PROPERTIES__SASL_PASSWORD"),
        ] {
            let name = format!("CREDIT_METER_{nearly}");
            variable(&name, "hush", &format!("it is not read: write CREDIT_METER__{meant}"));
        }
        for other in [
            "REDIS_TLS",
            "KAFKA_PROPERTIES",
            "REDIS_PORT",
            "REDIS_URLS",
            "REDIS_SHARDS_MORE",
            "KAFKA_SERVICE_HOST",
            "VENV",
        ] {
            load("", &[(&format!("CREDIT_METER_{other}"), "x")], &[]).unwrap();
        }
        flag("redis.shard", "1", "unknown field `shard`");
        flag("http.listen", "9464", "http.listen is `9464`");
        flag("kafka.properties.group.id", "x", "set kafka.group instead");
        let twice = [("CREDIT_METER__REDIS__URL", "redis://env/"), ("CREDIT_METER__REDIS__URL_FILE", "SECRET")];
        let said = load("", &twice, &[]).unwrap_err();
        assert_eq!(said, "CREDIT_METER__REDIS__URL_FILE: CREDIT_METER__REDIS__URL is set too: leave one out");
        let said = load("[redis]\nurl = ''", &[("CREDIT_METER__REDIS__URL__X", "1")], &[]).unwrap_err();
        assert_eq!(said, "CREDIT_METER__REDIS__URL__X: `url` is a value: there are no keys below it");
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let none = BTreeMap::new();
        let missing = Config::load(Some(Path::new("/does/not/exist.toml")), &none, &[]).unwrap_err();
        let missing = format!("{:#}", anyhow::Error::from(missing));
        assert_eq!(missing, "/does/not/exist.toml: No such file or directory (os error 2)", "with all its causes");
        // Tests run where Cargo.toml is: there the file exists, and says what is the default anyway.
        assert_eq!(Config::load(None, &none, &[]).unwrap(), Config::default());
    }

    #[test]
    fn only_own_variables_must_be_text() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![0xff]);
        let own = |name: &str| own_variables([(broken(), broken()), (OsString::from(name), broken())].into_iter());
        assert_eq!(own("PATH").unwrap(), BTreeMap::new());
        assert!(own("CREDIT_METER_PORT").is_ok());
        let said = own("CREDIT_METER__REDIS__URL").unwrap_err().to_string();
        assert_eq!(said, "CREDIT_METER__REDIS__URL: it is not UTF-8 text");
    }

    /// The file with the lines that are only examples (`# key = value`) made effective.
    fn with_examples(text: &str) -> String {
        let is_key = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let uncomment = |line: &str| match line.strip_prefix("# ") {
            Some(example) if is_key(example) => example.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_configuration_file_holds_every_key_with_its_default() {
        let text = include_str!("../../config/meter.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());

        let full: toml::Table = toml::from_str(&with_examples(text)).unwrap();
        full.clone().try_into::<Config>().expect("the examples are good").check().unwrap();
        // serde names the keys that it knows where it meets one that it does not know.
        let known_keys = |section: &str| -> Vec<String> {
            let error = toml::from_str::<Config>(&format!("{section}none = 1")).unwrap_err();
            let known = error.message().split_once("expected").unwrap().1.to_owned();
            known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        for section in known_keys("") {
            let written = full.get(&section).unwrap_or_else(|| panic!("no [{section}]"));
            for key in known_keys(&format!("{section}.")) {
                assert!(written.get(&key).is_some(), "no {section}.{key}");
            }
        }
        for key in known_keys("kafka.topics.") {
            assert!(full["kafka"]["topics"].get(&key).is_some(), "no kafka.topics.{key}");
        }
    }

    #[test]
    fn the_example_catalogue_is_good() {
        let catalogue = read_catalogue(&Config::default()).unwrap();
        assert_eq!(catalogue.credit_types, ["email", "enrichment", "phone"]);
        assert_eq!(catalogue.actions["enrich_contact"].free_outcomes, ["not_found"]);
        assert_eq!(catalogue.actions["verify_email"].prices[0].credits, Credits::ZERO);
        let organization = &catalogue.plans["organization"];
        assert_eq!(organization.allowance_at(0)["email"], Amount::Unlimited);
        assert!(matches!(organization.overage, Overage::Allow { limit: Some(_) }));
        assert_eq!(catalogue.plans.len(), 4);
    }

    #[test]
    fn a_bad_catalogue_is_refused_with_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.catalogue.path = directory.path().join("catalogue.toml");
        let path = config.catalogue.path.display().to_string();
        let missing = read_catalogue(&config).unwrap_err().to_string();
        assert!(missing.starts_with(&format!("{path}: No such file")), "{missing}");
        let text =
            include_str!("../../config/catalogue.toml").replace("interval = \"annual\"", "interval = \"weekly\"");
        let line = 1 + text.lines().position(|line| line.contains("weekly")).unwrap();
        std::fs::write(&path, text).unwrap();
        let said = read_catalogue(&config).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{path}:{line}: interval `weekly`")), "{said}");
    }
}
