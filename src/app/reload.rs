//! The catalogue's file while the meter runs: read again on SIGHUP, when it changes, and when a shard prices by another
//! one. What is refused changes nothing: the catalogue before it stays in force.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::install;
use super::start::StartError;
use crate::config::{Config, at_line};
use crate::ledger::catalogue::Catalogue;
use crate::ledger::shard::InitCall;
use crate::metrics::{self, Reload};
use crate::store::{Store, StoreError};

/// How often the file is looked at. Its content is compared: a file that is swapped behind a link may keep its time.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks in a row that do not find it. It may be written anew: who replaces a file leaves it away for a moment.
const AWAY_LOOKS: u32 = 5;

pub struct Reloader {
    pub config: Config,
    pub store: Store,
    pub generation: String,
    /// Rung when a shard prices by another catalogue.
    pub other_catalogue: Arc<Notify>,
    /// The catalogue in force in every shard; told again once it is in shards that had another.
    pub in_force: watch::Sender<Arc<Catalogue>>,
}

/// Why the file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Due,
    Signal,
    /// What is in force here is not in force there.
    OtherCatalogue,
}

impl Reloader {
    pub async fn run(self, stop: CancellationToken) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => Some(hangups),
            Err(error) => {
                tracing::warn!(%error, "no SIGHUP handler; a change of the catalogue's file is seen nevertheless");
                None
            }
        };
        let hangup = async |hangups: &mut Option<tokio::signal::unix::Signal>| match hangups {
            Some(hangups) => hangups.recv().await,
            None => std::future::pending().await,
        };
        let other_catalogue = self.other_catalogue.clone();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let judged = self.in_force.borrow().text.to_string();
        let mut looking = Looking { judged: Some(judged), changing: None, away: 0, said: None, reloader: self };
        loop {
            let why = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hangup(&mut hangups) => Why::Signal,
                () = other_catalogue.notified() => Why::OtherCatalogue,
                _ = look.tick() => Why::Due,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = looking.look(why) => {}
            }
        }
    }
}

struct Looking {
    reloader: Reloader,
    /// The file as it was when it was judged last; `None`: it is judged again when it is looked at.
    judged: Option<String>,
    /// The file as it was at the last look, while it is not judged.
    changing: Option<String>,
    /// Looks in a row that could not read it.
    away: u32,
    /// The last refusal, so that it is said once.
    said: Option<String>,
}

impl Looking {
    fn in_force(&self) -> Arc<Catalogue> {
        self.reloader.in_force.borrow().clone()
    }

    async fn look(&mut self, why: Why) {
        let path = &self.reloader.config.catalogue.path;
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) => {
                self.away += 1;
                // A signal asks for an answer.
                if why == Why::Signal || self.away == AWAY_LOOKS {
                    let reason = format!("{error}: put it back, no meter starts without it");
                    self.refused(why, path.display().to_string(), reason);
                }
                return;
            }
        };
        if std::mem::take(&mut self.away) >= AWAY_LOOKS {
            self.said = None;
            tracing::info!(path = %path.display(), "the catalogue can be read again");
        }
        let known = self.judged.as_ref() == Some(&text);
        if why == Why::Due {
            // It may be half written: what stands still is judged.
            let stands_still = self.changing.as_ref() == Some(&text);
            self.changing = (!known).then(|| text.clone());
            if known || !stands_still {
                return;
            }
        }
        let catalogue = match Catalogue::parse(&text) {
            Ok(catalogue) => Arc::new(catalogue),
            Err(error) => {
                let place = at_line(path, error.line);
                self.judged = Some(text);
                self.refused(why, place, error.reason);
                // What is in force here may still be newer than what the shard has.
                if why == Why::OtherCatalogue {
                    let in_force = self.in_force();
                    self.install(in_force, why).await;
                }
                return;
            }
        };
        let is_in_force = catalogue.id == self.in_force().id;
        if is_in_force && why != Why::OtherCatalogue {
            self.judged = Some(text);
            metrics::record_catalogue_reload(Reload::Unchanged);
            return tracing::info!(version = catalogue.id.version, "the catalogue has not changed");
        }
        if self.install(catalogue, why).await {
            self.judged = Some(text);
        }
    }

    /// Whether it is judged: as long as Redis does not answer, nobody knows.
    async fn install(&mut self, catalogue: Arc<Catalogue>, why: Why) -> bool {
        let Reloader { config, store, generation, .. } = &self.reloader;
        let call = InitCall {
            generation: generation.clone(),
            shards: config.redis.shards,
            catalogue: catalogue.id.clone(),
            catalogue_text: catalogue.text.clone(),
            grown: None,
            starts: Vec::new(),
            first_start: false,
        };
        let before = self.in_force().id.clone();
        match install::everywhere(config, &catalogue, store, &call).await {
            Ok(()) => {
                if catalogue.id != before {
                    let (version, hash) = (catalogue.id.version, &catalogue.id.hash);
                    tracing::info!(version, hash, was = before.version, "another catalogue is in force");
                    metrics::record_catalogue_reload(Reload::Applied);
                }
                self.reloader.in_force.send_replace(catalogue);
                true
            }
            Err(
                error @ (StartError::Store(StoreError::Indefinite { .. } | StoreError::Refused { .. })
                | StartError::BeingRebuilt { .. }),
            ) => {
                tracing::warn!(%error, "the catalogue waits: redis does not take it");
                false
            }
            // A shard has a newer one: said once it is clear that this worker's file stays behind.
            Err(StartError::OtherCatalogue { .. }) if why == Why::OtherCatalogue && catalogue.id == before => true,
            Err(StartError::CatalogueEdits { place, reason, .. }) => {
                self.refused(why, place, reason);
                true
            }
            Err(error) => {
                let place = config.catalogue.path.display().to_string();
                self.refused(why, place, error.to_string());
                true
            }
        }
    }

    fn refused(&mut self, why: Why, place: String, reason: String) {
        let version = self.in_force().id.version;
        let refusal = format!("the catalogue is refused: {place}: {reason}; version {version} stays in force");
        if self.said.as_ref() == Some(&refusal) && why != Why::Signal {
            return;
        }
        metrics::record_catalogue_reload(Reload::Refused);
        tracing::error!("{refusal}");
        self.said = Some(refusal);
    }
}
