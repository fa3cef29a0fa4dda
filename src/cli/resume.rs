//! Where a follower is, in a file: the next one goes on from there, and misses nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use crate::file;
use crate::ingest::tail::TailRecord;
use crate::note;

/// What is told and not noted for so long may be told again by the next one.
const NOTE_WITHIN: Duration = Duration::from_secs(1);

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Several may share the topic.
    pub meter: String,
    pub topic: String,
    /// `None`: all accounts.
    pub account: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    #[serde(flatten)]
    pub of: Followed,
    /// The offsets that come next, by partition.
    pub next: BTreeMap<i32, i64>,
    /// When the youngest record was published that was read. `None`: none was.
    pub read_ms: Option<i64>,
}

/// Keeps the file.
pub struct Noted {
    path: PathBuf,
    place: Place,
    /// Something was told since the file was written: when it is to be written.
    due: Option<Instant>,
    failed: bool,
}

impl Place {
    /// `None`: there is no such file so far. `followed`: what it must be a place of.
    pub fn read(path: &Path, followed: &Followed) -> anyhow::Result<Option<Place>> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("{}", path.display()))?,
        };
        let place: Place = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is no place of `alerts --resume`: name another file, or delete it and say --from",
                path.display()
            )
        })?;
        let of = &place.of;
        ensure!(of == followed, "{} is of {of}, not of {followed}: name another file", path.display());
        Ok(Some(place))
    }
}

impl fmt::Display for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Followed { meter, topic, account } = self;
        match account {
            Some(account) => write!(f, "account {account}")?,
            None => f.write_str("all accounts")?,
        }
        write!(f, " in topic {topic} of meter {meter}")
    }
}

impl Noted {
    /// Writes the file once, so that what cannot be written is told at the start.
    pub fn begin(path: PathBuf, place: Place) -> anyhow::Result<Noted> {
        // Not the link to it.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let noted = Noted { path, place, due: None, failed: false };
        noted.write().with_context(|| format!("{} cannot be written", noted.path.display()))?;
        Ok(noted)
    }

    pub fn told(&mut self, record: &TailRecord) {
        self.place.next.insert(record.partition, record.offset + 1);
        self.place.read_ms = self.place.read_ms.max(Some(record.timestamp_ms));
        self.due.get_or_insert_with(|| Instant::now() + NOTE_WITHIN);
    }

    /// Waits until it is to be written.
    pub async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// A disk that is full must not keep anyone from hearing of an alert.
    pub fn save(&mut self) {
        if self.due.take().is_none() {
            return;
        }
        let written = self.write();
        if let (Err(error), false) = (&written, self.failed) {
            note!(
                "{} cannot be written ({error}): whoever resumes tells again what comes from now on",
                self.path.display()
            );
        }
        self.failed = written.is_err();
        // It is tried again.
        self.due = written.err().map(|_| Instant::now() + NOTE_WITHIN);
    }

    fn write(&self) -> io::Result<()> {
        let partial = file::partial(&self.path);
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(&self.place)?)?;
            file::replace(&file, &partial, &self.path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&partial);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(meter: &str, account: Option<&str>) -> Followed {
        Followed { meter: meter.to_owned(), topic: "alerts".to_owned(), account: account.map(str::to_owned) }
    }

    fn place(of: &Followed) -> Place {
        Place { of: of.clone(), next: BTreeMap::from([(0, 7)]), read_ms: None }
    }

    fn record(partition: i32, offset: i64, timestamp_ms: i64) -> TailRecord {
        TailRecord { partition, offset, timestamp_ms, ..TailRecord::default() }
    }

    #[tokio::test]
    async fn what_was_told_is_in_the_file_and_nothing_is_written_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("place"), folder.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let of = followed("meter", None);
        let (own, read) = (place(&of), || Place::read(&path, &of).unwrap());
        assert_eq!(read(), None);
        drop(Noted::begin(path.clone(), own.clone()).unwrap());
        let mut noted = Noted::begin(link.clone(), own.clone()).unwrap();
        noted.told(&record(0, 9, 50));
        noted.told(&record(3, 0, 40));
        assert_eq!(read(), Some(own.clone()), "not yet");
        noted.due().await;
        noted.save();
        let told = Place { next: BTreeMap::from([(0, 10), (3, 1)]), read_ms: Some(50), ..own.clone() };
        assert_eq!(read(), Some(told));
        assert!(link.is_symlink(), "what it leads to is written");
        fs::remove_file(&path).unwrap();
        noted.save();
        assert_eq!(read(), None, "nothing was told since");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["link"], "no partial file is left");
    }

    #[tokio::test]
    async fn a_write_that_failed_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, away) = (folder.path().join("in"), folder.path().join("away"));
        let (path, of) = (inside.join("place"), followed("meter", None));
        fs::create_dir(&inside).unwrap();
        let mut noted = Noted::begin(path.clone(), place(&of)).unwrap();
        noted.told(&record(0, 9, 50));
        fs::rename(&inside, &away).unwrap();
        noted.save();
        fs::rename(&away, &inside).unwrap();
        noted.due().await;
        noted.save();
        let next = Place::read(&path, &of).unwrap().map(|place| place.next);
        assert_eq!(next, Some(BTreeMap::from([(0, 10)])));
    }

    #[test]
    fn a_file_of_something_else_is_refused_with_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        let acme = || followed("meter", Some("acme"));
        Noted::begin(path.clone(), place(&acme())).unwrap();
        let told = |of: Followed| Place::read(&path, &of).unwrap_err().to_string();
        assert!(Place::read(&path, &acme()).unwrap().is_some());
        let all = told(followed("meter", None));
        assert!(all.contains("is of account acme in topic alerts of meter meter, not of all accounts in"), "{all}");
        assert!(told(followed("other", Some("acme"))).contains("not of account acme in topic alerts of meter other"));
        assert!(told(Followed { topic: "x".into(), ..acme() }).contains("in topic x of"));
        fs::write(&path, "").unwrap();
        assert!(told(acme()).contains("is no place of `alerts --resume`"), "torn, or another file");
        let nowhere = folder.path().join("nowhere").join("place");
        assert!(Noted::begin(nowhere, place(&acme())).is_err());
    }
}
