//! The census: how many accounts are ok, low or exhausted, and what is left to those in alarm.
//!
//! The worker that publishes a shard's messages counts its accounts, so that a sum over workers counts each once. It
//! reads at a bounded pace, and an account of which an alert tells at once. It writes nothing but metrics.

/// What is known of the accounts.
mod book;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustc_hash::FxHashSet;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Metrics;
use crate::ledger::catalogue::Catalogue;
use crate::ledger::shard::shard_of;
use crate::metrics::accounts;
use crate::outbox::Relay;
use crate::store::{Store, StoreError};
use book::{Book, Count};

/// Accounts read in one go: a script that reads them keeps everyone else waiting for less than a millisecond.
const READ_AT_ONCE: usize = 100;
/// Accounts that one step through a shard aims at.
const PAGE: usize = 1_000;
/// How often the metrics follow what is known, and it is looked which shards are this worker's.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A count pauses for at least so long.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// And so many times as long as counting all shards takes, up to `metrics.census_every`: few accounts are counted often.
const PAUSE_COUNTS: u32 = 20;
/// The wait before accounts that have series are read again.
const FOLLOW_EVERY: Duration = Duration::from_secs(10);
/// The wait after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Accounts in alarm that wait to be read. Beyond, the next count finds them.
pub const ALERTED_MAX: usize = 10_000;

pub struct Census {
    pub store: Store,
    pub relay: Arc<Relay>,
    /// The one in force.
    pub catalogues: watch::Receiver<Arc<Catalogue>>,
    pub shards: u32,
    pub settings: Metrics,
    /// Accounts of which an alert tells.
    pub alerted: mpsc::Receiver<Arc<str>>,
}

/// What a census has done, and what it is at.
struct State {
    book: Book,
    /// Each shard's last count.
    counted: BTreeMap<u32, LastCount>,
    walk: Option<Walk>,
    /// Accounts to be read, those of which an alert tells before those that are followed.
    alerted: VecDeque<Arc<str>>,
    /// The same: one waits once.
    waiting: FxHashSet<Arc<str>>,
    followed: VecDeque<Arc<str>>,
    followed_at: Option<Instant>,
    /// Those that are followed and the count take turns.
    turn: bool,
    /// Before this, nothing more is read.
    next_read: Instant,
    /// Whether the metrics are behind the book.
    changed: bool,
    failing: bool,
}

#[derive(Clone, Copy)]
struct LastCount {
    ended: Instant,
    since_1970: Duration,
    took: Duration,
}

/// A way through a shard's accounts.
struct Walk {
    shard: u32,
    began: Instant,
    /// Where the next page begins; `None`: there is none.
    cursor: Option<u64>,
    page: VecDeque<Arc<str>>,
    count: Count,
}

impl Census {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tell = tokio::time::interval(TELL_EVERY);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = State {
            book: Book::new(self.settings.clone()),
            counted: BTreeMap::new(),
            walk: None,
            alerted: VecDeque::new(),
            waiting: FxHashSet::default(),
            followed: VecDeque::new(),
            followed_at: None,
            turn: false,
            next_read: Instant::now(),
            changed: true,
            failing: false,
        };
        loop {
            let waits = state.has_work(&self);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tell.tick() => {
                    self.follow_leases(&mut state);
                    self.tell(&mut state);
                }
                Some(account) = self.alerted.recv(), if state.alerted.len() < ALERTED_MAX => {
                    if state.waiting.insert(account.clone()) {
                        state.alerted.push_back(account);
                    }
                }
                () = tokio::time::sleep_until(state.next_read.into()), if waits => self.turn(&mut state).await,
            }
        }
    }

    /// A shard is counted by the worker that publishes its messages.
    fn follow_leases(&self, state: &mut State) {
        for shard in 0..self.shards {
            match (self.relay.known.holds(shard), state.book.holds(shard)) {
                (true, false) => state.book.take(shard),
                (false, true) => {
                    state.book.drop(shard);
                    state.counted.remove(&shard);
                    state.walk.take_if(|walk| walk.shard == shard);
                    state.changed = true;
                }
                (true, true) | (false, false) => {}
            }
        }
    }

    fn tell(&self, state: &mut State) {
        if !std::mem::take(&mut state.changed) {
            return;
        }
        accounts::set_accounts(&state.book.accounts());
        let (remaining, dropped) = state.book.remaining();
        accounts::set_account_remaining(&remaining, dropped);
        let held: Vec<u32> = (0..self.shards).filter(|shard| state.book.holds(*shard)).collect();
        let ends = held.iter().map(|shard| state.counted.get(shard).map(|last| last.since_1970));
        // Where some shard was never counted, what was told stays.
        if let Some(ends) = ends.collect::<Option<Vec<Duration>>>() {
            accounts::set_census_ended(ends.into_iter().min().map(|end| end.as_secs_f64()));
        }
    }

    /// Reads some accounts, and waits as long as the pace wants.
    async fn turn(&self, state: &mut State) {
        let at_once = READ_AT_ONCE.min(self.settings.census_rate);
        let read = match self.read_some(state, at_once).await {
            Ok(read) => {
                state.failing = false;
                read
            }
            Err(error) => {
                if !std::mem::replace(&mut state.failing, true) {
                    tracing::warn!(%error, "accounts are not counted");
                }
                state.next_read = Instant::now() + RETRY;
                return;
            }
        };
        let pace = Duration::from_secs_f64(read as f64 / self.settings.census_rate as f64);
        state.next_read = state.next_read.max(Instant::now()) + pace;
    }

    /// Gives how many were read.
    async fn read_some(&self, state: &mut State, at_once: usize) -> Result<usize, StoreError> {
        if !state.alerted.is_empty() {
            let accounts: Vec<_> = state.alerted.iter().take(at_once).cloned().collect();
            let read = self.read(state, &accounts).await?;
            for account in state.alerted.drain(..accounts.len()) {
                state.waiting.remove(&account);
            }
            return Ok(read);
        }
        if state.followed_at.is_none_or(|at| at.elapsed() >= FOLLOW_EVERY) && state.followed.is_empty() {
            state.followed = state.book.followed().into();
            state.followed_at = Some(Instant::now());
        }
        state.turn = !state.turn;
        let counts = state.turn && self.next_shard(state).is_some();
        if state.followed.is_empty() || counts {
            return self.walk(state, at_once).await;
        }
        let accounts: Vec<_> = state.followed.iter().take(at_once).cloned().collect();
        let read = self.read(state, &accounts).await?;
        state.followed.drain(..accounts.len());
        Ok(read)
    }

    /// Reads accounts of any of this worker's shards.
    async fn read(&self, state: &mut State, wanted: &[Arc<str>]) -> Result<usize, StoreError> {
        let credit_types = self.catalogues.borrow().credit_types.clone();
        let mut by_shard: BTreeMap<u32, Vec<Arc<str>>> = BTreeMap::new();
        for account in wanted {
            by_shard.entry(shard_of(account, self.shards)).or_default().push(account.clone());
        }
        let mut read = 0;
        for (shard, accounts) in by_shard.into_iter().filter(|(shard, _)| self.relay.known.holds(*shard)) {
            let counted = self.store.census(&accounts, &credit_types).await?;
            state.book.take(shard);
            for (account, counted) in accounts.iter().zip(&counted) {
                state.book.note(shard, account, counted.as_ref());
            }
            read += accounts.len();
            state.changed = true;
        }
        Ok(read)
    }

    /// Goes on through the accounts of a shard; gives how many were read.
    async fn walk(&self, state: &mut State, at_once: usize) -> Result<usize, StoreError> {
        let Some(shard) = self.next_shard(state) else { return Ok(0) };
        let walk = state.walk.get_or_insert_with(|| Walk::new(shard));
        if walk.page.is_empty()
            && let Some(cursor) = walk.cursor
        {
            let (next, page) = self.store.names(walk.shard, cursor, PAGE.min(self.settings.census_rate)).await?;
            walk.cursor = (next != 0).then_some(next);
            walk.page.extend(page);
        }
        let accounts: Vec<_> = walk.page.iter().take(at_once).cloned().collect();
        let credit_types = self.catalogues.borrow().credit_types.clone();
        let counted = self.store.census(&accounts, &credit_types).await?;
        walk.page.drain(..accounts.len());
        for (account, counted) in accounts.iter().zip(&counted) {
            state.book.note(walk.shard, account, counted.as_ref());
            state.book.count(&mut walk.count, account, counted.as_ref());
        }
        state.changed = true;
        if walk.page.is_empty() && walk.cursor.is_none() {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let last = LastCount { ended: Instant::now(), since_1970, took: walk.began.elapsed() };
            state.counted.insert(walk.shard, last);
            let Some(Walk { shard, count, .. }) = state.walk.take() else { return Ok(accounts.len()) };
            state.book.counted(shard, count);
        }
        Ok(accounts.len())
    }

    /// The shard that is being counted, or whose turn it is: those first that never were, then the oldest count.
    fn next_shard(&self, state: &State) -> Option<u32> {
        if let Some(walk) = &state.walk {
            return Some(walk.shard);
        }
        let held = (0..self.shards).filter(|shard| state.book.holds(*shard));
        let next = held.min_by_key(|shard| state.counted.get(shard).map(|last| last.ended))?;
        let last = state.counted.get(&next);
        last.is_none_or(|last| last.ended.elapsed() >= self.pause(last.took)).then_some(next)
    }

    /// How long a count stays good, if it took so long for one shard.
    fn pause(&self, took: Duration) -> Duration {
        took.saturating_mul(self.shards * PAUSE_COUNTS).max(PAUSE_MIN).min(self.settings.census_every)
    }
}

impl State {
    /// Whether something waits to be read.
    fn has_work(&self, census: &Census) -> bool {
        let follows = self.followed_at.is_none_or(|at| at.elapsed() >= FOLLOW_EVERY);
        !self.alerted.is_empty() || !self.followed.is_empty() || follows || census.next_shard(self).is_some()
    }
}

impl Walk {
    fn new(shard: u32) -> Walk {
        Walk { shard, began: Instant::now(), cursor: Some(0), page: VecDeque::new(), count: Count::default() }
    }
}
