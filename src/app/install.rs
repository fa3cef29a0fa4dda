//! A catalogue into every shard: a higher version once it is known that it only adds to what is stored.
//!
//! No shard is changed before all were asked, so that a catalogue that is refused is refused everywhere.

use std::sync::Arc;

use super::start::StartError;
use crate::config::{Config, at_line};
use crate::ledger::call::SCHEMA;
use crate::ledger::catalogue::{Catalogue, CatalogueError, CatalogueId, Growth};
use crate::ledger::shard::{Grown, InitCall, InitReply, is_being_rebuilt, is_name_of_rebuild};
use crate::ledger::time::rfc3339;
use crate::store::Store;

/// A shard with a lower version.
struct Older {
    shard: u32,
    stored: CatalogueId,
    growth: Growth,
}

/// Makes every shard, or checks that it is the one that this worker believes, and has it price by this catalogue.
pub async fn everywhere(
    config: &Config,
    catalogue: &Catalogue,
    store: &Store,
    call: &InitCall,
) -> Result<(), StartError> {
    let (mut older, mut emptied) = (Vec::new(), None);
    for shard in 0..call.shards {
        match store.init(shard, call).await? {
            InitReply::OlderCatalogue(stored, text) => {
                let growth = compare(config, catalogue, shard, &stored, &text)?;
                let state = store.shard_state(shard).await?;
                let renewed_ms = Some(state.meter_time_ms).filter(|time_ms| *time_ms > 0);
                check_start(&growth, state.reached_ms.max(renewed_ms))
                    .map_err(|error| edits(config, &stored, error))?;
                older.push(Older { shard, stored, growth });
            }
            InitReply::OtherGeneration(stored) if is_being_rebuilt(&stored, &call.generation) => {
                return Err(StartError::BeingRebuilt { prefix: config.redis.prefix.clone() });
            }
            InitReply::OtherGeneration(_) if is_name_of_rebuild(&call.generation) => {
                return Err(StartError::TakenOver { shard });
            }
            // A rebuild that is at another shard deletes some first.
            reply @ InitReply::Emptied => emptied = emptied.or(ready(config, catalogue, shard, reply).err()),
            reply => ready(config, catalogue, shard, reply)?,
        }
    }
    if let Some(error) = emptied {
        return Err(error);
    }
    for Older { shard, stored, growth } in older {
        let grown = Some(Grown { from: stored, starts_ms: growth.starts_ms() });
        let reply = store.init(shard, &InitCall { grown, ..call.clone() }).await?;
        ready(config, catalogue, shard, reply)?;
    }
    Ok(())
}

fn compare(
    config: &Config,
    catalogue: &Catalogue,
    shard: u32,
    stored: &CatalogueId,
    text: &Arc<str>,
) -> Result<Growth, StartError> {
    if text.is_empty() {
        return Err(StartError::CatalogueNotKept { stored: stored.version });
    }
    let unreadable = |reason: String| StartError::CatalogueUnreadable { shard, reason };
    let old = Catalogue::parse(text).map_err(|error| unreadable(error.to_string()))?;
    if old.id != *stored {
        return Err(unreadable(format!("its hash is {}, stored is {}", old.id.hash, stored.hash)));
    }
    catalogue.grows_from(&old).map_err(|error| edits(config, stored, error))
}

/// `reached_ms`: events dated up to here may have been priced, and renewals up to here.
fn check_start(growth: &Growth, reached_ms: Option<i64>) -> Result<(), CatalogueError> {
    reached_ms.map_or(Ok(()), |reached_ms| growth.check_in_time(reached_ms))
}

fn edits(config: &Config, stored: &CatalogueId, error: CatalogueError) -> StartError {
    let place = at_line(&config.catalogue.path, error.line);
    StartError::CatalogueEdits { place, reason: error.reason, stored: stored.version }
}

fn ready(config: &Config, catalogue: &Catalogue, shard: u32, reply: InitReply) -> Result<(), StartError> {
    match reply {
        InitReply::Ready => Ok(()),
        InitReply::Emptied => Err(StartError::ShardEmptied { prefix: config.redis.prefix.clone(), shard }),
        InitReply::OtherGeneration(stored) => Err(StartError::Torn { shard, stored }),
        InitReply::OtherShards(stored) => Err(StartError::OtherShards { configured: config.redis.shards, stored }),
        InitReply::OtherSchema(stored) if stored > SCHEMA => Err(StartError::NewerSchema { stored }),
        InitReply::OtherSchema(stored) => Err(StartError::OlderSchema { shard, stored }),
        InitReply::OtherCatalogue(stored) => {
            let own = catalogue.id.version;
            Err(StartError::OtherCatalogue { own, stored: stored.version, hash: stored.hash })
        }
        // Another worker has installed a version between the two meanwhile: the next try compares with that.
        InitReply::OlderCatalogue(stored, _) => {
            let own = catalogue.id.version;
            Err(StartError::OtherCatalogue { own, stored: stored.version, hash: stored.hash })
        }
        InitReply::PricedUpTo(up_to_ms) => Err(StartError::PricedMeanwhile { shard, up_to: rfc3339(up_to_ms) }),
    }
}
