//! When which repository is refreshed: one task for each, at most one refresh running and one waiting.
//!
//! ```text
//! demand(name) ─► wanted += 1 ─► task: sleeps until due or wanted ─► host and global permits ─► Cycle (a thread)
//!      ▲                                                                                           │
//!      └───────────── waits for a run that began after it asked ◄── ended: (run, outcome) ◄────────┘
//! ```

use super::cycle::{Cycle, Done};
use super::next::{self, Times, after};
use super::reach::{Policy, Resolver};
use super::tips;
use super::trouble::Trouble;
use crate::catalog::State;
use crate::config;
use crate::credential::Keeper;
use crate::event::{Event, Observer, Refreshed, Trigger};
use crate::layout::Layout;
use crate::name::RepoName;
use crate::registry::{Record, Registry};
use crate::repo::MirrorRepo;
use sandbox_git::{Git, Oid};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{RwLock, Semaphore, watch};
use tokio::time::sleep_until;

/// Doubts are not looked at again for so long: clients can raise them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What refreshing stands on.
pub struct Parts {
    /// The git to run.
    pub git: Git,
    /// Where mirrors are.
    pub layout: Layout,
    /// What is mirrored.
    pub registry: Registry,
    /// Where secrets come from.
    pub keeper: Keeper,
    /// `[refresh]`.
    pub refresh: config::Refresh,
    /// `[upstream]`.
    pub upstream: config::Upstream,
    /// `[[credential]]`.
    pub credentials: Vec<config::Credential>,
    /// Who wants to know.
    pub observer: Arc<dyn Observer>,
}

/// Refreshes repositories for as long as it is held. Cheap to clone.
#[derive(Clone)]
pub struct Refresher(Arc<Inner>);

struct Inner {
    parts: Parts,
    policy: Policy,
    resolver: Resolver,
    all: Arc<Semaphore>,
    hosts: Mutex<HashMap<String, Host>>,
    repos: Mutex<HashMap<RepoName, Arc<Repo>>>,
}

struct Host {
    permits: Arc<Semaphore>,
    not_before: Option<Instant>,
}

/// One repository's refreshes.
pub(crate) struct Repo {
    /// Runs that are asked for, counted from 1: as many as began, or one more.
    wanted: watch::Sender<u64>,
    state: Mutex<Runs>,
    ended: watch::Sender<(u64, Ended)>,
    /// Held for writing by who replaces the repository, for reading by who works in it.
    pub(crate) place: RwLock<()>,
    /// Held by who does maintenance.
    pub(crate) maintenance: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Runs {
    begun: u64,
    /// Commits that are wanted of the next one.
    commits: BTreeSet<Oid>,
    trigger: Option<Trigger>,
    /// Until one has looked at the tips.
    doubted: bool,
}

type Ended = Option<Result<Arc<Done>, Arc<Trouble>>>;

/// How waiting for a refresh ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// It was refreshed after it was asked for.
    Fresh(Arc<Done>),
    /// It was tried.
    Failed(Arc<Trouble>),
    /// The host has asked for patience, and gets it.
    Patience(Duration),
    /// It is not registered (any more), or paused.
    Unknown,
}

impl Refresher {
    /// Begins. Must be called on a runtime with time; ends when the last clone is dropped.
    pub fn start(parts: Parts) -> Self {
        let policy = Policy {
            allow_insecure: parts.upstream.allow_insecure,
            allow_private: parts.upstream.allow_private.clone(),
            ca_file: parts.upstream.ca_file.clone(),
            known_hosts: parts.upstream.known_hosts.clone(),
        };
        let handle = tokio::runtime::Handle::current();
        let inner = Arc::new(Inner {
            all: Arc::new(Semaphore::new(parts.refresh.concurrency)),
            policy,
            resolver: Resolver::new(handle),
            hosts: Mutex::default(),
            repos: Mutex::default(),
            parts,
        });
        crate::maintain::clean(&inner.parts.layout);
        inner.reconcile();
        let weak = Arc::downgrade(&inner);
        let mut changes = inner.parts.registry.watch();
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let Some(inner) = weak.upgrade() else { return };
                inner.reconcile();
            }
        });
        Self(inner)
    }

    /// Asks for a refresh, and for these commits, without waiting. `false`: nothing of this name.
    pub fn poke(&self, name: &RepoName, trigger: Trigger) -> bool {
        self.0.demand(name, BTreeSet::new(), trigger).is_some()
    }

    /// Refreshes, and waits for it: for a run that begins after this call.
    pub async fn refresh(&self, name: &RepoName, commits: BTreeSet<Oid>, trigger: Trigger) -> Waited {
        let Some(record) = self.0.parts.registry.record(name) else { return Waited::Unknown };
        if let Some(left) = self.0.patience(record.spec.url.host()) {
            return Waited::Patience(left);
        }
        let Some((repo, run)) = self.0.demand(name, commits, trigger) else { return Waited::Unknown };
        let mut ended = repo.ended.subscribe();
        // Not held: a repository that is removed ends its waiters.
        drop(repo);
        match ended.wait_for(|(done, _)| *done >= run).await.as_deref() {
            Ok((_, Some(Ok(done)))) => Waited::Fresh(done.clone()),
            Ok((_, Some(Err(trouble)))) => Waited::Failed(trouble.clone()),
            Ok((_, None)) | Err(_) => Waited::Unknown,
        }
    }

    /// The repository's locks, for maintenance.
    pub(crate) fn repo(&self, name: &RepoName) -> Option<Arc<Repo>> {
        self.0.find(name)
    }

    /// Sets a mirror aside that was found corrupt, and has it cloned again at once.
    pub(crate) async fn quarantine(&self, name: &RepoName, why: String) -> Result<(), String> {
        let repo = self.repo(name).ok_or("it is not refreshed")?;
        let inner = self.0.clone();
        {
            let _alone = repo.place.write().await;
            let of = name.clone();
            let job = move || {
                let error = Trouble::Corrupt(why).to_string();
                let set = inner.parts.registry.status(&of, move |status| {
                    status.state = State::Quarantined;
                    status.error = Some(error);
                });
                // First nobody is sent there any more.
                set.map_err(|error| error.to_string())?;
                inner.set_aside(&of)
            };
            tokio::task::spawn_blocking(job).await.map_err(|error| error.to_string())??;
        }
        self.poke(name, Trigger::Admin);
        Ok(())
    }

    /// What it stands on.
    pub fn parts(&self) -> &Parts {
        &self.0.parts
    }
}

impl Inner {
    /// A task for each repository that is registered, none for others.
    fn reconcile(self: &Arc<Self>) {
        let mut repos = self.repos.lock().expect("nobody panics with it");
        // Read with the lock: an older state would end what a newer one began.
        let now = self.parts.registry.now();
        // Dropping the sender of `wanted` ends the task.
        repos.retain(|name, _| now.repos.get(name).is_some_and(|record| !record.paused));
        for (name, record) in now.repos.iter().filter(|(_, record)| !record.paused) {
            if repos.contains_key(name) {
                continue;
            }
            let repo = Arc::new(Repo {
                wanted: watch::channel(0).0,
                state: Mutex::default(),
                ended: watch::channel((0, None)).0,
                place: RwLock::default(),
                maintenance: tokio::sync::Mutex::default(),
            });
            repos.insert(name.clone(), repo.clone());
            tokio::spawn(run(
                Arc::downgrade(self),
                name.clone(),
                repo.wanted.subscribe(),
                Arc::downgrade(&repo),
                first(record),
            ));
        }
    }

    /// What is registered and not paused, also if that is so only since an instant.
    fn find(self: &Arc<Self>, name: &RepoName) -> Option<Arc<Repo>> {
        let known = || self.repos.lock().expect("nobody panics with it").get(name).cloned();
        known().or_else(|| {
            self.reconcile();
            known()
        })
    }

    /// Asks for a run that has not begun; which one.
    fn demand(self: &Arc<Self>, name: &RepoName, commits: BTreeSet<Oid>, trigger: Trigger) -> Option<(Arc<Repo>, u64)> {
        let repo = self.find(name)?;
        let run = {
            let mut state = repo.state.lock().expect("nobody panics with it");
            state.commits.extend(commits);
            state.trigger = Some(trigger);
            state.begun + 1
        };
        repo.wanted.send_if_modified(|wanted| std::mem::replace(wanted, run.max(*wanted)) < run);
        Some((repo, run))
    }

    fn patience(&self, host: &str) -> Option<Duration> {
        let hosts = self.hosts.lock().expect("nobody panics with it");
        let left = hosts.get(host)?.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn host_permits(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().expect("nobody panics with it");
        let per_host = self.parts.refresh.per_host;
        let new = || Host { permits: Arc::new(Semaphore::new(per_host)), not_before: None };
        hosts.entry(host.to_owned()).or_insert_with(new).permits.clone()
    }

    /// One run: permits, the cycle on a thread, what follows. Returns the wait.
    async fn once(self: &Arc<Self>, name: &RepoName, repo: &Arc<Repo>) -> Option<Duration> {
        let record = self.parts.registry.record(name)?;
        let host = record.spec.url.host().to_owned();
        let permits = self.host_permits(&host);
        let _host = permits.acquire().await.ok()?;
        let _all = self.all.acquire().await.ok()?;
        if let Some(left) = self.patience(&host) {
            // Whoever asked while the host was being asked is told what it has said, and does not wait for it.
            let run = {
                let mut state = repo.state.lock().expect("nobody panics with it");
                state.begun += 1;
                state.begun
            };
            repo.ended.send_replace((run, Some(Err(Arc::new(Trouble::Throttled { after: Some(left) })))));
            return Some(left);
        }
        let (run, commits, trigger, doubted) = {
            let mut state = repo.state.lock().expect("nobody panics with it");
            state.begun += 1;
            let trigger = state.trigger.take().unwrap_or(Trigger::Due);
            (state.begun, std::mem::take(&mut state.commits), trigger, state.doubted)
        };
        let began = Instant::now();
        let place = repo.place.read().await;
        let (inner, job) = (self.clone(), record.clone());
        let outcome = tokio::task::spawn_blocking(move || inner.cycle(&job, &commits, doubted)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(Trouble::Local("the refresh has panicked".to_owned())));
        let refresh = &self.parts.refresh;
        let times = Times {
            interval: record.spec.interval(refresh.interval),
            backoff_max: refresh.backoff_max,
            max_stale: refresh.max_stale,
            now: now(),
        };
        let format = outcome.as_ref().ok().map(|done| done.format);
        // What it was before is asked now: an operator may have changed it meanwhile.
        let before = self.parts.registry.record(name)?.status.clone();
        let mut next = after(&before, outcome.as_ref().map(|done| done.moved_to.clone()), times);
        next.status.format = format.unwrap_or(next.status.format);
        drop(place);
        if matches!(outcome, Ok(_) | Err(Trouble::Corrupt(_))) {
            // An upstream that is away was asked before anything was looked at.
            repo.state.lock().expect("nobody panics with it").doubted &= !doubted;
        }
        if next.quarantine {
            // Whoever works in it ends first.
            let _alone = repo.place.write().await;
            if let Err(error) = self.set_aside(name) {
                next.status.error = Some(error);
                next.wait = refresh.backoff_max;
            }
        }
        if let Some(wait) = next.host_waits {
            let mut hosts = self.hosts.lock().expect("nobody panics with it");
            if let Some(host) = hosts.get_mut(&host) {
                host.not_before = Some(Instant::now() + wait);
            }
        }
        if next.status.failures == 0
            && let Some(at) = next.status.refreshed
        {
            self.parts.registry.live(name).refreshed_at(at);
        }
        let (registry, status, of) = (self.parts.registry.clone(), next.status, name.clone());
        // Maintenance writes its own times into it.
        let written = move || {
            registry.status(&of, move |known| {
                let (repacked, whole) = (known.repacked, known.repacked_whole);
                *known = crate::registry::Status { repacked, repacked_whole: whole, ..status };
            })
        };
        let _ = tokio::task::spawn_blocking(written).await;
        self.parts.observer.observe(&Event::Refreshed(Refreshed {
            repo: name.clone(),
            trigger,
            outcome: outcome.as_ref().map_or_else(Trouble::word, |done| if done.cloned { "cloned" } else { "ok" }),
            error: outcome.as_ref().err().map(Trouble::to_string),
            took: began.elapsed(),
            changed: outcome.as_ref().map_or(0, |done| done.changed),
            bytes: outcome.as_ref().map_or(0, |done| done.bytes),
        }));
        repo.ended.send_replace((run, Some(outcome.map(Arc::new).map_err(Arc::new))));
        Some(next.wait)
    }

    fn cycle(&self, record: &Record, wanted: &BTreeSet<Oid>, doubted: bool) -> Result<Done, Trouble> {
        let credential = record.spec.credential.as_deref();
        let credential = credential.and_then(|id| self.parts.credentials.iter().find(|known| known.id == id));
        Cycle {
            git: &self.parts.git,
            layout: &self.parts.layout,
            spec: &record.spec,
            credential,
            keeper: &self.parts.keeper,
            policy: &self.policy,
            resolver: &self.resolver,
            limits: (self.parts.refresh.timeout, self.parts.refresh.clone_timeout),
            wanted,
            doubted,
            now: now(),
        }
        .run()
    }

    /// Looks whether what the refs name is there. If not, a refresh does what follows: while the upstream is away, what
    /// is whole of the mirror is better than nothing.
    async fn look(self: &Arc<Self>, name: &RepoName, repo: &Arc<Repo>) {
        if self.parts.registry.record(name).is_none_or(|record| record.status.state != State::Ready) {
            return;
        }
        let place = repo.place.read().await;
        let (git, mirror) = (self.parts.git.clone(), MirrorRepo::at(self.parts.layout.mirror(name)));
        let broken = tokio::task::spawn_blocking(move || tips::is_broken(&git, &mirror)).await;
        drop(place);
        if broken.unwrap_or(false) {
            repo.state.lock().expect("nobody panics with it").doubted = true;
            self.demand(name, BTreeSet::new(), Trigger::Doubt);
        }
    }

    /// Moves a corrupt mirror out of the way, whole: what sessions pushed is in it.
    fn set_aside(&self, name: &RepoName) -> Result<(), String> {
        let from = self.parts.layout.mirror(name);
        if !from.exists() {
            return Ok(());
        }
        let to = self.parts.layout.quarantine(name, u64::try_from(now()).unwrap_or(0));
        std::fs::rename(&from, &to).map_err(|error| format!("cannot set '{}' aside: {error}", from.display()))
    }
}

/// The task of one repository.
async fn run(
    inner: std::sync::Weak<Inner>,
    name: RepoName,
    mut wanted: watch::Receiver<u64>,
    repo: std::sync::Weak<Repo>,
    wait: Duration,
) {
    let Some(live) = inner.upgrade().map(|inner| inner.parts.registry.live(&name)) else { return };
    let (mut begun, mut due) = (0, later(wait));
    let mut quiet = tokio::time::Instant::now();
    loop {
        if *wanted.borrow_and_update() <= begun {
            let doubted = async {
                sleep_until(quiet).await;
                live.doubted().await;
            };
            tokio::select! {
                () = sleep_until(due) => {}
                more = wanted.changed() => if more.is_err() { return },
                () = doubted => {
                    let (Some(inner), Some(repo)) = (inner.upgrade(), repo.upgrade()) else { return };
                    inner.look(&name, &repo).await;
                    quiet = later(LOOK_AGAIN);
                    continue;
                }
            }
        }
        let (Some(inner), Some(repo)) = (inner.upgrade(), repo.upgrade()) else { return };
        let Some(next) = inner.once(&name, &repo).await else { return };
        begun = repo.state.lock().expect("nobody panics with it").begun;
        let dice = f64::from(u32::from_ne_bytes(random())) / f64::from(u32::MAX);
        due = later(next::jittered(next, inner.parts.refresh.jitter, dice));
    }
}

/// So long from now; what no clock can tell is never.
fn later(wait: Duration) -> tokio::time::Instant {
    let now = tokio::time::Instant::now();
    now.checked_add(wait).unwrap_or_else(|| now + Duration::from_secs(30 * 366 * 86_400))
}

/// A repository that was just refreshed (before a restart) is not asked again at once with all others.
fn first(record: &Record) -> Duration {
    match record.status.refreshed {
        Some(at) if record.status.failures == 0 => {
            let age = u64::try_from(now().saturating_sub(at)).unwrap_or(0);
            Duration::from_secs(5).saturating_sub(Duration::from_secs(age))
        }
        _ => Duration::ZERO,
    }
}

fn random() -> [u8; 4] {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
