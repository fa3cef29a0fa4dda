//! A dead letter, read again: the record as it came, and why it is dead.

use super::dead_letters::{ADDED, FROM_METER};
use super::tail::TailRecord;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Where the letter itself is.
    pub partition: i32,
    pub offset: i64,
    pub at_ms: i64,
    pub reason: String,
    pub message: String,
    /// Where the record was.
    pub from: Place,
    /// When it was appended there.
    pub appended_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// Those that it came with.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl Letter {
    /// `None`: another meter wrote it. An error names the header that is missing or broken.
    pub fn read(record: TailRecord, meter: &str) -> Result<Option<Letter>, String> {
        let TailRecord { partition, offset, timestamp_ms: at_ms, key, value, headers } = record;
        // A record may bring headers of the same name; ours come last.
        let header = |name: &str| {
            let mut all = headers.iter().filter(|(own, _)| own.strip_prefix(ADDED).unwrap_or_default() == name);
            let last = all.next_back().and_then(|(_, value)| std::str::from_utf8(value.as_deref()?).ok());
            last.map(str::to_owned).ok_or_else(|| format!("it has no header {ADDED}{name}"))
        };
        let number = |name: &str| {
            let text = header(name)?;
            text.parse::<i64>().map_err(|_| format!("its header {ADDED}{name} is `{text}`"))
        };
        if header(&FROM_METER[ADDED.len()..])? != meter {
            return Ok(None);
        }
        let index = number("partition")?;
        let from = Place {
            topic: header("topic")?,
            partition: i32::try_from(index).map_err(|_| format!("its header {ADDED}partition is `{index}`"))?,
            offset: number("offset")?,
        };
        let (reason, message) = (header("exception.class.name")?, header("exception.message")?);
        let appended_ms = number("timestamp")?;
        let headers = own(headers);
        Ok(Some(Letter { partition, offset, at_ms, reason, message, from, appended_ms, key, value, headers }))
    }
}

/// The headers of the record: those before the seven that were added.
fn own(mut headers: Vec<(String, Option<Vec<u8>>)>) -> Vec<(String, Option<Vec<u8>>)> {
    let added = headers.iter().rev().take_while(|(name, _)| name.starts_with(ADDED)).count().min(ADDED_COUNT);
    headers.truncate(headers.len() - added);
    headers
}

const ADDED_COUNT: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(change: impl FnOnce(&mut Vec<(String, Option<Vec<u8>>)>)) -> TailRecord {
        let added = [
            ("topic", "usage"),
            ("partition", "3"),
            ("offset", "41"),
            ("exception.class.name", "too_late"),
            ("exception.message", "it is too old"),
            ("timestamp", "1700000000000"),
            ("connector.name", "meter"),
        ];
        let mut headers = vec![("trace".to_owned(), Some(vec![0, 255])), ("empty".to_owned(), None)];
        // A record that was a dead letter of somebody else before.
        headers.push((format!("{ADDED}topic"), Some(b"elsewhere".to_vec())));
        headers.extend(added.map(|(name, value)| (format!("{ADDED}{name}"), Some(value.as_bytes().to_vec()))));
        change(&mut headers);
        TailRecord { partition: 1, offset: 7, timestamp_ms: 5, key: Some(b"acme".to_vec()), value: None, headers }
    }

    #[test]
    fn a_letter_tells_where_its_record_was_and_what_it_came_with() {
        let letter = Letter::read(record(|_| {}), "meter").unwrap().unwrap();
        assert_eq!(letter.from, Place { topic: "usage".into(), partition: 3, offset: 41 });
        assert_eq!((letter.reason.as_str(), letter.message.as_str()), ("too_late", "it is too old"));
        assert_eq!((letter.at_ms, letter.appended_ms, letter.value), (5, 1_700_000_000_000, None));
        let names: Vec<&str> = letter.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["trace", "empty", "__connect.errors.topic"]);
    }

    #[test]
    fn letters_of_others_are_passed_over_and_broken_ones_told() {
        assert_eq!(Letter::read(record(|_| {}), "another"), Ok(None));
        let missing = Letter::read(record(|headers| drop(headers.remove(5))), "meter");
        assert_eq!(missing, Err("it has no header __connect.errors.offset".to_owned()));
        let broken = Letter::read(record(|headers| headers[5].1 = Some(b"x".to_vec())), "meter");
        assert_eq!(broken, Err("its header __connect.errors.offset is `x`".to_owned()));
    }
}
