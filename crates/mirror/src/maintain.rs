//! Keeps mirrors fast to serve from, and finds the broken ones. One owner: git itself never starts any of it.
//!
//! ```text
//! every LOOK ─► for each repository: next(status, packs, now) (pure) ─► one task at a time, all repositories
//!
//!   geometric   expire pins, pack-refs, repack --geometric=2 with MIDX and bitmaps, commit-graph
//!   full        the same with one pack, and a cruft pack that loses what is older than prune_after; before that,
//!               what sessions push keeps what it borrows (scratch/held/aged.rs)
//!   expire      scratch refs that nobody pushed to for scratch.ttl, and what was set aside for maintenance.quarantine
//!   verify      fsck; asked for by the administrator, or what serves doubts that every object is there
//!                  │ fails as a broken store does
//!                  ▼
//!               quarantine: set aside whole, clients are sent to the upstream, cloned again
//! ```
//!
//! Each task runs niced, with bounded threads and memory, in a process group with a limit of time. Refreshing goes on
//! meanwhile: a repack removes only packs that it has seen, and whatever came since is in others.

mod clean;
mod next;

pub use clean::clean;
pub use next::{Packs, next};

use crate::catalog::State;
use crate::config;
use crate::event::{Event, Maintained};
use crate::name::RepoName;
use crate::quarantine;
use crate::refresh::{Refresher, expire_pins};
use crate::repo::MirrorRepo;
use crate::scratch::held::Holdings;
use sandbox_git::{Git, GitCommand, GitError};
use sandbox_sys::child::ChildLimits;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often it is looked what is due.
const LOOK: Duration = Duration::from_secs(15);
/// How often it is looked for scratch refs that are too old.
const EXPIRE: Duration = Duration::from_secs(3600);
/// Doubts of objects are not looked at again for so long: to read them all is much.
const VERIFY_AGAIN: Duration = Duration::from_secs(3600);
/// The longest task.
const LIMIT: Duration = Duration::from_secs(6 * 3600);
const NICE: i32 = 15;

/// A piece of maintenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Packs of similar sizes become one.
    Geometric,
    /// All packs become one.
    Full,
    /// Every object is looked at.
    Verify,
}

impl Task {
    /// A word for metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Geometric => "geometric",
            Self::Full => "full",
            Self::Verify => "verify",
        }
    }
}

/// Why maintenance was not done.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// Not registered, paused, or not cloned yet.
    #[error("'{0}' is not there to be maintained: it is unknown, paused, or not cloned yet")]
    Absent(RepoName),
    /// The mirror is broken: it is set aside, and cloned again.
    #[error("'{name}' is corrupt, and is cloned again: {why}")]
    Corrupt {
        /// Which.
        name: RepoName,
        /// What git said.
        why: String,
    },
    /// Git said no.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Something else of this machine.
    #[error("{0}")]
    Other(String),
}

/// Maintains what a refresher refreshes. Cheap to clone.
#[derive(Clone)]
pub struct Maintainer {
    refresher: Refresher,
    config: Arc<config::Maintenance>,
    holdings: Holdings,
    ttl: Duration,
    /// One at a time: it is the disk that is slow.
    one: Arc<tokio::sync::Mutex<()>>,
}

impl Maintainer {
    /// Begins; must be called on a runtime with time. Scratch refs are kept for `ttl` after the last push. Ends with
    /// `stop`.
    pub fn start(
        refresher: Refresher,
        config: config::Maintenance,
        ttl: Duration,
        stop: tokio_util::sync::CancellationToken,
    ) -> Self {
        let holdings = Holdings::new(refresher.parts().git.clone(), refresher.parts().layout.clone());
        let this = Self { refresher, config: Arc::new(config), holdings, ttl, one: Arc::default() };
        let looking = this.clone();
        tokio::spawn(async move {
            let (mut aged, mut verified) = (Instant::now(), HashMap::new());
            loop {
                if aged <= Instant::now() {
                    aged += EXPIRE.min(ttl / 10);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = looking.expire() => {}
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK.min(looking.config.geometric_every)) => {}
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = looking.look(&mut verified) => {}
                }
            }
        });
        this
    }

    /// Takes away what sessions pushed too long ago, and what was set aside too long ago.
    async fn expire(&self) {
        let names: Vec<RepoName> = self.refresher.parts().registry.now().repos.keys().cloned().collect();
        let (layout, known, kept) = (self.refresher.parts().layout.clone(), names.clone(), self.config.quarantine);
        let now = u64::try_from(seconds()).unwrap_or(0);
        let empty = move || {
            let mut plan = quarantine::plan(quarantine::list(&layout, known.iter()), kept, false, now);
            quarantine::apply(&layout, &mut plan).map(|()| plan.removed)
        };
        let observer = &self.refresher.parts().observer;
        match tokio::task::spawn_blocking(empty).await {
            Ok(Ok(gone)) => gone.into_iter().for_each(|aside| observer.observe(&Event::Emptied(aside))),
            Ok(Err(error)) => {
                observer.observe(&Event::Trouble { what: format!("cannot empty the quarantine: {error}") })
            }
            Err(_) => {}
        }
        for name in names {
            let (holdings, ttl, of) = (self.holdings.clone(), self.ttl, name.clone());
            let job = tokio::task::spawn_blocking(move || holdings.expire(&of, ttl, SystemTime::now())).await;
            let observe = |event| self.refresher.parts().observer.observe(&event);
            match job {
                Ok(Ok(expired)) => {
                    expired.into_iter().for_each(|expired| observe(Event::Expired { repo: name.clone(), expired }))
                }
                Ok(Err(error)) => {
                    observe(Event::Trouble { what: format!("cannot take away old scratch refs: {error}") })
                }
                Err(_) => {}
            }
        }
    }

    /// Does what is due.
    async fn look(&self, verified: &mut HashMap<RepoName, Instant>) {
        let now = seconds();
        let registry = &self.refresher.parts().registry;
        verified.retain(|_, at| at.elapsed() < VERIFY_AGAIN);
        for record in registry.now().repos.values() {
            if record.status.state != State::Ready || record.paused {
                continue;
            }
            let name = &record.spec.name;
            if !verified.contains_key(name) && registry.live(name).objects_doubted() {
                verified.insert(name.clone(), Instant::now());
                let _ = self.run(name, Task::Verify).await;
                continue;
            }
            let dir = self.refresher.parts().layout.mirror(name);
            if let Some(task) = next(&record.status, Packs::of(&dir), &self.config, now) {
                // It is told as an event.
                let _ = self.run(name, task).await;
            }
        }
    }

    /// Does a task now, and waits for it.
    pub async fn run(&self, name: &RepoName, task: Task) -> Result<(), MaintainError> {
        let absent = || MaintainError::Absent(name.clone());
        let repo = self.refresher.repo(name).ok_or_else(absent)?;
        let _one = self.one.lock().await;
        let _owner = repo.maintenance.lock().await;
        let place = repo.place.read().await;
        let parts = self.refresher.parts();
        let dir = parts.layout.mirror(name);
        if !dir.join("HEAD").exists() {
            return Err(absent());
        }
        let before = Packs::of(&dir).count;
        let began = Instant::now();
        let (git, config, of) = (parts.git.clone(), self.config.clone(), MirrorRepo::at(&dir));
        let (holdings, observer, named) = (self.holdings.clone(), parts.observer.clone(), name.clone());
        let job = move || {
            let borrowers = || {
                let settled = holdings.settle(&named).map(drop);
                settled.inspect_err(|error| {
                    let what = format!("'{named}' is not pruned, since what was pushed to it would suffer: {error}");
                    observer.observe(&Event::Trouble { what });
                })
            };
            run(&git, &of, task, &config, || borrowers().is_ok())
        };
        let job = tokio::task::spawn_blocking(job).await;
        let done = job.unwrap_or_else(|error| Err(MaintainError::Other(error.to_string())));
        drop(place);
        let done = match done {
            Err(MaintainError::Git(error)) if is_broken(&error, task) => {
                let why = error.to_string();
                match self.refresher.quarantine(name, why.clone()).await {
                    Ok(()) => Err(MaintainError::Corrupt { name: name.clone(), why }),
                    Err(other) => Err(MaintainError::Other(other)),
                }
            }
            other => other,
        };
        let failed = done.is_err();
        let (registry, of) = (parts.registry.clone(), name.clone());
        let note = move || {
            registry.status(&of, move |status| {
                let now = Some(seconds());
                match task {
                    Task::Verify => {}
                    // What failed is not tried again at each look.
                    Task::Geometric => status.repacked = now,
                    Task::Full if failed => status.repacked = now,
                    Task::Full => (status.repacked, status.repacked_whole) = (now, now),
                }
            })
        };
        let _ = tokio::task::spawn_blocking(note).await;
        parts.observer.observe(&Event::Maintained(Maintained {
            repo: name.clone(),
            task,
            error: done.as_ref().err().map(ToString::to_string),
            took: began.elapsed(),
            packs: (before, Packs::of(&dir).count),
        }));
        done
    }
}

/// Whether a failure means that the store is broken.
fn is_broken(error: &GitError, task: Task) -> bool {
    let fsck = task == Task::Verify && matches!(error, GitError::Failed { code: Some(_), .. });
    fsck || crate::refresh::is_corrupt(&error.to_string())
}

/// The commands of a task. Nothing is lost for good unless `settled` says that nobody else stands on it.
fn run(
    git: &Git,
    repo: &MirrorRepo,
    task: Task,
    config: &config::Maintenance,
    settled: impl FnOnce() -> bool,
) -> Result<(), MaintainError> {
    let threads = u64::try_from(config.threads).unwrap_or(1).max(1);
    let command = || -> GitCommand {
        let limits = ChildLimits { nice: Some(NICE), ..ChildLimits::default() };
        // The last of these counts.
        repo.git(git)
            .config(format!("pack.threads={threads}"))
            .config(format!("pack.windowMemory={}", config.memory / 2 / threads))
            .config(format!("pack.deltaCacheSize={}", config.memory / 4))
            .config("core.packedRefsTimeout=5000")
            .limits(limits)
            .timeout(LIMIT)
    };
    if task == Task::Verify {
        // What came in is no damage, whatever it is like.
        let forgiven = crate::refresh::FORGIVEN.iter();
        let command = forgiven.fold(command(), |command, id| command.config(format!("fsck.{id}=ignore")));
        command.args(["fsck", "--full", "--no-dangling", "--no-progress"]).run()?;
        return Ok(());
    }
    expire_pins(git, repo, config.prune_after, seconds())?;
    command().args(["pack-refs", "--all", "--prune"]).run()?;
    let repack = command().args(["repack", "-d", "-q", "--write-bitmap-index"]);
    match task {
        Task::Geometric => repack.args(["--geometric=2", "--write-midx"]).run()?,
        _ => {
            let age = if settled() { format!("{}.seconds.ago", config.prune_after.as_secs()) } else { "never".into() };
            repack.args(["-a", "--cruft", &format!("--cruft-expiration={age}")]).run()?;
        }
    }
    let split = if task == Task::Full { "--split=replace" } else { "--split" };
    command().args(["commit-graph", "write", "--reachable", split, "--no-progress"]).run()?;
    Ok(())
}

impl Packs {
    /// Looks at a repository; none at all if it cannot be read.
    pub fn of(dir: &Path) -> Self {
        let dir = dir.join("objects/pack");
        let names = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut packs = Self::default();
        for name in names {
            let name = name.to_string_lossy();
            packs.count += usize::from(name.ends_with(".pack"));
            packs.bitmap |= name.ends_with(".bitmap");
            packs.cruft += usize::from(name.ends_with(".mtimes"));
        }
        packs
    }
}

fn seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
