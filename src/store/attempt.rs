//! An attempt that all who come while it is under way share: a node that does not answer is waited for once, and not by
//! each caller after the other.

use std::sync::atomic::{AtomicU64, Ordering};

/// One attempt at a time, and how the last one ended, if it failed.
#[derive(Debug)]
pub struct Attempt<E> {
    failure: tokio::sync::Mutex<Option<E>>,
    /// Attempts that have ended.
    ended: AtomicU64,
}

impl<E> Default for Attempt<E> {
    fn default() -> Attempt<E> {
        Attempt { failure: tokio::sync::Mutex::default(), ended: AtomicU64::default() }
    }
}

impl<E: Clone> Attempt<E> {
    /// `there`: what an earlier attempt has left, if it is still good. Otherwise makes it, or takes the failure of the
    /// attempt that was under way when this one came.
    pub async fn share<T>(
        &self,
        there: impl Fn() -> Option<T>,
        make: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if let Some(there) = there() {
            return Ok(there);
        }
        let before = self.ended.load(Ordering::Acquire);
        let mut failure = self.failure.lock().await;
        if let Some(there) = there() {
            return Ok(there);
        }
        if self.ended.load(Ordering::Acquire) != before
            && let Some(failure) = &*failure
        {
            return Err(failure.clone());
        }
        // Dropped before its end, it has failed nobody: the next one in the queue makes its own.
        let made = make().await;
        *failure = made.as_ref().err().cloned();
        self.ended.fetch_add(1, Ordering::Release);
        made
    }
}
