//! The state of the service as one value, from the registry, the sizes on disk and the numbers.

use sandbox_mirror::catalog::State as Serving;
use sandbox_mirror::config::Config;
use sandbox_mirror::layout::Layout;
use sandbox_mirror::measure::{Size, files, measure};
use sandbox_mirror::metrics::Metrics;
use sandbox_mirror::name::RepoName;
use sandbox_mirror::operate::Gather;
use sandbox_mirror::quarantine::{self, Aside};
use sandbox_mirror::registry::{Record, Registry};
use sandbox_mirror::service::Service;
use sandbox_mirror::status_page::{Cache, Repository, State, Status};
use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks at the sizes on disk.
const MEASURED: Duration = Duration::from_secs(20);

type Sizes = Arc<Mutex<HashMap<RepoName, Size>>>;
type Asides = Arc<Mutex<Vec<Aside>>>;

/// What was found on disk at the last look.
struct Found {
    sizes: Sizes,
    cached: Arc<AtomicU64>,
    asides: Asides,
}

/// Returns what tells the state, and what keeps the sizes in it up to date for as long as it is run.
pub fn gather(
    registry: &Registry,
    layout: &Layout,
    config: &Config,
    metrics: &Arc<Metrics>,
    running: Arc<OnceLock<Service>>,
) -> (Gather, impl Future<Output = ()> + use<>) {
    let sizes = Sizes::default();
    let (start, interval, min_free) = (Instant::now(), config.refresh.interval, config.store.min_free);
    let cached = Arc::new(AtomicU64::new(0));
    let asides = Asides::default();
    let found = Found { sizes: sizes.clone(), cached: cached.clone(), asides: asides.clone() };
    let measuring = keep(registry.clone(), layout.clone(), config.cache.dir.clone(), found);
    let (registry, metrics, root) = (registry.clone(), metrics.clone(), layout.root().to_owned());
    let gather = move || {
        let known = sizes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let snapshot = registry.now();
        let used = metrics.by_repository();
        let repos = snapshot.repos.iter().map(|(name, record)| {
            let size = known.get(name).copied().unwrap_or_default();
            let used = used.get(name).copied().unwrap_or_default();
            let live = registry.live(name).refreshed();
            let mut row = repository(record, live, size, now, interval);
            (row.requests, row.sent, row.hits, row.misses) = (used.requests, used.sent, used.hits, used.misses);
            row
        });
        let free = rustix::fs::statvfs(&root).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
        let (hits, misses) = metrics.cache_use();
        let bytes = cached.load(Ordering::Relaxed);
        let (inflight, waiting) = running.get().map_or((0, 0), |service| (service.inflight(), service.waiting()));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: start.elapsed().as_secs(),
            now,
            inflight: inflight as u64,
            waiting: waiting as u64,
            children: children(),
            free,
            low: free < min_free,
            cache: Cache { hits, misses, bytes },
            repos: repos.collect(),
            quarantine: asides.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            hidden: 0,
        }
    };
    (Box::new(gather), measuring)
}

/// Measures all repositories, again and again.
async fn keep(registry: Registry, layout: Layout, cache: PathBuf, found: Found) {
    loop {
        let (names, layout, cache) =
            (registry.now().repos.keys().cloned().collect::<Vec<_>>(), layout.clone(), cache.clone());
        let all = move || {
            let asides = quarantine::list(&layout, names.iter());
            let repos = names.into_iter().map(|name| (name.clone(), measure(&layout, &name))).collect();
            (repos, files(&cache), asides)
        };
        if let Ok((measured, bytes, asides)) = tokio::task::spawn_blocking(all).await {
            *found.sizes.lock().unwrap_or_else(PoisonError::into_inner) = measured;
            *found.asides.lock().unwrap_or_else(PoisonError::into_inner) = asides;
            found.cached.store(bytes, Ordering::Relaxed);
        }
        tokio::time::sleep(MEASURED).await;
    }
}

fn repository(record: &Record, live: Option<i64>, size: Size, now: u64, interval: Duration) -> Repository {
    let status = &record.status;
    let refreshed = live.max(status.refreshed);
    let age = refreshed.map(|at| now.saturating_sub(u64::try_from(at).unwrap_or(0)));
    let state = match status.state {
        Serving::Cold => State::Cloning,
        Serving::Quarantined => State::Quarantined,
        Serving::Gone => State::Gone,
        Serving::Ready if record.paused => State::Paused,
        Serving::Ready if status.failures > 0 => State::Stale,
        Serving::Ready => State::Fresh,
    };
    let interval = record.spec.interval(interval).as_secs();
    let next = (state == State::Fresh).then(|| interval.saturating_sub(age.unwrap_or(0)));
    Repository {
        name: record.spec.name.to_string(),
        upstream: record.spec.url.url().to_owned(),
        private: record.spec.private,
        state,
        age,
        next,
        error: status.error.clone(),
        head: None,
        refs: size.refs,
        packs: size.packs,
        bytes: size.bytes,
        requests: 0,
        sent: 0,
        hits: 0,
        misses: 0,
        scratch_refs: size.scratch_refs,
        scratch_bytes: size.scratch_bytes,
    }
}

/// Processes that this one has started and that run (proc_pid_children(5)).
fn children() -> u64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads.map(|thread| of(thread).split_whitespace().count() as u64).sum()
}
