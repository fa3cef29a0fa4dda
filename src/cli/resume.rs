//! Where a follower is, in a file: the next one goes on from there, and misses nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use crate::file;
use crate::note;

/// What is told and not noted for so long may be told again by the next one.
const NOTE_WITHIN: Duration = Duration::from_secs(1);

/// The offsets that come next, and of what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub topic: String,
    /// `None`: of all accounts.
    pub account: Option<String>,
    pub next: BTreeMap<i32, i64>,
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
    /// `None`: there is no such file so far.
    pub fn read(path: &Path, topic: &str, account: Option<&str>) -> anyhow::Result<Option<Place>> {
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
        let of =
            |account: Option<&str>| account.map_or("all accounts".to_owned(), |account| format!("account {account}"));
        ensure!(
            place.topic == topic && place.account.as_deref() == account,
            "{} is a place in {} of {}, not in {topic} of {}: name another file",
            path.display(),
            place.topic,
            of(place.account.as_deref()),
            of(account),
        );
        Ok(Some(place))
    }
}

impl Noted {
    /// Writes the file once, so that what cannot be written is told at the start.
    pub fn begin(path: PathBuf, place: Place) -> anyhow::Result<Noted> {
        let noted = Noted { path, place, due: None, failed: false };
        noted.write().with_context(|| format!("{} cannot be written", noted.path.display()))?;
        Ok(noted)
    }

    pub fn told(&mut self, partition: i32, offset: i64) {
        self.place.next.insert(partition, offset + 1);
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

    fn place(account: Option<&str>) -> Place {
        Place { topic: "alerts".to_owned(), account: account.map(str::to_owned), next: BTreeMap::from([(0, 7)]) }
    }

    #[tokio::test]
    async fn what_was_told_is_in_the_file_and_nothing_is_written_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        assert_eq!(Place::read(&path, "alerts", None).unwrap(), None);
        let mut noted = Noted::begin(path.clone(), place(None)).unwrap();
        let read = || Place::read(&path, "alerts", None).unwrap().expect("it is there").next;
        assert_eq!(read(), BTreeMap::from([(0, 7)]));
        noted.told(0, 9);
        noted.told(3, 0);
        assert_eq!(read(), BTreeMap::from([(0, 7)]), "not yet");
        noted.due().await;
        noted.save();
        assert_eq!(read(), BTreeMap::from([(0, 10), (3, 1)]));
        fs::remove_file(&path).unwrap();
        noted.save();
        assert!(!path.exists(), "nothing was told since");
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 0, "no partial file is left");
    }

    #[test]
    fn a_file_of_something_else_is_refused_with_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("place");
        Noted::begin(path.clone(), place(Some("acme"))).unwrap();
        let told = |topic: &str, account: Option<&str>| Place::read(&path, topic, account).unwrap_err().to_string();
        assert!(Place::read(&path, "alerts", Some("acme")).unwrap().is_some());
        assert!(told("alerts", None).contains("in alerts of account acme, not in alerts of all accounts"));
        assert!(told("other", Some("acme")).contains("not in other of account acme"));
        fs::write(&path, "").unwrap();
        assert!(told("alerts", None).contains("is no place of `alerts --resume`"), "torn, or another file");
        let nowhere = folder.path().join("nowhere").join("place");
        assert!(Noted::begin(nowhere, place(None)).is_err());
    }
}
