//! Who serves next: first come, first served, so many at once, and so many of one repository.

use super::Settings;
use crate::name::RepoName;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many light requests (capabilities, refs) run for one heavy one: they must not wait for packs.
const LIGHT: usize = 4;

/// Too many wait, or it took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mirror is busy: try again in {} s", RETRY.as_secs())]
pub struct Busy;

/// When to come again.
pub const RETRY: Duration = Duration::from_secs(5);

/// What a request will cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Capabilities, refs.
    Light,
    /// Packs.
    Heavy,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    heavy: Arc<Semaphore>,
    light: Arc<Semaphore>,
    repos: Mutex<HashMap<RepoName, Arc<Semaphore>>>,
    waiting: AtomicUsize,
    settings: Settings,
}

/// The right to run one git process.
#[derive(Debug)]
pub struct Turn {
    /// How long it was waited for.
    pub queued: Duration,
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Queue {
    /// An empty one.
    pub fn new(settings: Settings) -> Self {
        Self {
            heavy: Arc::new(Semaphore::new(settings.max_inflight)),
            light: Arc::new(Semaphore::new(settings.max_inflight.saturating_mul(LIGHT).min(Semaphore::MAX_PERMITS))),
            repos: Mutex::default(),
            waiting: AtomicUsize::new(0),
            settings,
        }
    }

    /// Waits for a turn.
    pub async fn turn(&self, repo: &RepoName, weight: Weight) -> Result<Turn, Busy> {
        let since = Instant::now();
        let _waits = Waits::new(&self.waiting, self.settings.queue)?;
        let permits = async {
            match weight {
                Weight::Light => [self.light.clone().acquire_owned().await.ok(), None],
                // First its repository's: who waits for that does not hold up the others.
                Weight::Heavy => {
                    let own = self.repo(repo).acquire_owned().await.ok();
                    [own, self.heavy.clone().acquire_owned().await.ok()]
                }
            }
        };
        let permits = tokio::time::timeout(self.settings.queue_timeout, permits).await.map_err(|_| Busy)?;
        Ok(Turn { queued: since.elapsed(), _permits: permits })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many heavy requests run.
    pub fn inflight(&self) -> usize {
        self.settings.max_inflight - self.heavy.available_permits()
    }

    fn repo(&self, repo: &RepoName) -> Arc<Semaphore> {
        let mut repos = self.repos.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = self.settings.max_inflight_repo;
        if repos.len() > 4096 {
            // Names are those of the registry; still, what nobody uses need not be kept.
            repos.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        repos.entry(repo.clone()).or_insert_with(|| Arc::new(Semaphore::new(limit))).clone()
    }
}

/// One that waits.
struct Waits<'q>(&'q AtomicUsize);

impl<'q> Waits<'q> {
    fn new(count: &'q AtomicUsize, limit: usize) -> Result<Self, Busy> {
        let this = Self(count);
        match count.fetch_add(1, Ordering::Relaxed) < limit {
            true => Ok(this),
            false => Err(Busy),
        }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(max_inflight: usize, max_inflight_repo: usize, queue: usize) -> Queue {
        let queue_timeout = Duration::from_secs(600);
        Queue::new(Settings { max_inflight, max_inflight_repo, queue, queue_timeout, ..Default::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn one_repository_does_not_take_all_turns_and_packs_do_not_hold_up_refs() {
        let queue = queue(2, 1, 10);
        let (a, b): (RepoName, RepoName) = ("h/a".parse().unwrap(), "h/b".parse().unwrap());
        let first = queue.turn(&a, Weight::Heavy).await.unwrap();
        let soon = Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, queue.turn(&a, Weight::Heavy)).await.is_err());
        let other = tokio::time::timeout(soon, queue.turn(&b, Weight::Heavy)).await.unwrap().unwrap();
        assert_eq!(queue.inflight(), 2);
        tokio::time::timeout(soon, queue.turn(&a, Weight::Light)).await.unwrap().unwrap();
        drop((first, other));
        tokio::time::timeout(soon, queue.turn(&a, Weight::Heavy)).await.unwrap().unwrap();
        assert_eq!((queue.inflight(), queue.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_wait_or_waited_too_long_is_told_so() {
        let queue = Arc::new(queue(1, 1, 1));
        let a: RepoName = "h/a".parse().unwrap();
        let held = queue.turn(&a, Weight::Heavy).await.unwrap();
        let waits = tokio::spawn({
            let (queue, a) = (queue.clone(), a.clone());
            async move { queue.turn(&a, Weight::Heavy).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(queue.turn(&a, Weight::Heavy).await.map(drop), Err(Busy), "one waits already");
        assert_eq!(waits.await.unwrap(), Err(Busy), "in vain for ten minutes");
        assert_eq!(Busy.to_string(), "the mirror is busy: try again in 5 s");
        drop(held);
        queue.turn(&a, Weight::Heavy).await.unwrap();
    }
}
