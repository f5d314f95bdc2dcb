//! The registry: which repositories are mirrored, how they are, which sessions there are.
//!
//! ```text
//! mirror.toml ─► Put…, Remove… ─┐
//!                               ├─► plan (a value) ─► one writer thread ─► registry.sqlite
//! admin API   ─► Put,  Remove  ─┘                            │                (WAL, user_version)
//!                                                            ├─► registry.json   the last good state
//! refresh     ─► status ─────────────────────────────────────┤
//!                                                            └─► Snapshot, Catalog   (an Arc, swapped)
//! ```
//!
//! Readers never ask the database. When it is locked, writing fails and what was published stands; when it is
//! corrupt at a start, it is set aside and made again from `registry.json`. A database of a newer version is read,
//! and never written. Everything in it but sessions can be told again; only scratch refs, which are not in it,
//! can not: see [`plan::Removal`].

pub mod plan;
mod rows;
mod schema;

use crate::catalog::{Catalog, Entry, Live, Publisher, State};
use crate::identity::{Session, SessionId};
use crate::layout::Layout;
use crate::name::{RepoName, Scheme, Upstream};
use crate::refresh::Pattern;
use sandbox_git::ObjectFormat;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::watch;

pub use schema::SCHEMA;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What it is served as.
    pub name: RepoName,
    /// Where it comes from.
    #[serde(serialize_with = "write_url", deserialize_with = "read_url")]
    pub url: Upstream,
    /// The id of its credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Milliseconds between two refreshes, in place of the configured interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Which refs; empty: all heads and tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<Pattern>,
    /// Only for sessions that were granted it.
    #[serde(default)]
    pub private: bool,
}

impl Spec {
    /// A public repository of this upstream, with nothing special.
    pub fn of(url: Upstream) -> Self {
        Self { name: url.name().clone(), url, credential: None, interval_ms: None, refs: Vec::new(), private: false }
    }

    /// Between two refreshes.
    pub fn interval(&self, default: Duration) -> Duration {
        self.interval_ms.map_or(default, Duration::from_millis)
    }
}

fn write_url<S: Serializer>(url: &Upstream, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(url.url())
}

fn read_url<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Upstream, D::Error> {
    Upstream::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// `mirror.toml`.
    File,
    /// The admin API.
    Api,
}

/// What is true now. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Whether it is served.
    pub state: State,
    /// The hash of its objects.
    pub format: ObjectFormat,
    /// The last refresh that went well.
    pub refreshed: Option<i64>,
    /// The last refresh that was tried.
    pub tried: Option<i64>,
    /// How many went wrong since.
    pub failures: u32,
    /// What went wrong last; safe to print, without any secret.
    pub error: Option<String>,
    /// Since when the upstream says 401, 403 or 404.
    pub denied_since: Option<i64>,
    /// Where the upstream says that it is now.
    pub moved_to: Option<String>,
    /// The last geometric repack.
    pub repacked: Option<i64>,
    /// The last full repack.
    pub repacked_whole: Option<i64>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Cold,
            format: ObjectFormat::Sha1,
            refreshed: None,
            tried: None,
            failures: 0,
            error: None,
            denied_since: None,
            moved_to: None,
            repacked: None,
            repacked_whole: None,
        }
    }
}

/// A repository of the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What is asked for.
    #[serde(flatten)]
    pub spec: Spec,
    /// Who asked.
    pub origin: Origin,
    /// It is served, but not refreshed.
    pub paused: bool,
    /// What is true now.
    pub status: Status,
}

/// All that the registry holds, at one instant.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Repositories by name.
    pub repos: BTreeMap<RepoName, Arc<Record>>,
    /// Sessions by id.
    pub sessions: BTreeMap<SessionId, Arc<Session>>,
}

/// Why the registry could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Written by a newer program.
    #[error("the registry has version {found}, and this program writes version {SCHEMA}: it is only read")]
    Newer {
        /// Its version.
        found: i64,
    },
    /// Another process has it locked.
    #[error("the registry is locked by another program")]
    Locked,
    /// SQLite said no.
    #[error("cannot use the registry '{}'", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
    /// A file beside it.
    #[error("cannot write '{}'", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// What was asked cannot be.
    #[error(transparent)]
    Refused(#[from] plan::Refused),
    /// The writer has ended.
    #[error("the registry is closed")]
    Closed,
}

type Result<T> = std::result::Result<T, RegistryError>;
type Job = Box<dyn FnOnce(&mut rows::Store) + Send>;

/// The registry. Cheap to clone; the last clone ends the writer.
#[derive(Clone)]
pub struct Registry {
    writer: Arc<Writer>,
    now: watch::Receiver<Arc<Snapshot>>,
    publish: Arc<Out>,
    trouble: Arc<Option<String>>,
}

/// The thread that writes. Its end is waited for, so that whoever opens the file next has it alone.
struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The two that are published, changed together.
struct Out {
    layout: Layout,
    snapshot: watch::Sender<Arc<Snapshot>>,
    catalog: Publisher,
    live: Mutex<BTreeMap<RepoName, Arc<Live>>>,
    /// Hosts whose unregistered repositories clients are sent to.
    redirect_hosts: Vec<String>,
}

impl Registry {
    /// Opens (or makes) the registry at `path` and publishes what is in it.
    pub fn open(path: PathBuf, layout: Layout, catalog: Publisher, redirect_hosts: Vec<String>) -> Result<Self> {
        let (store, first, trouble) = rows::Store::open(&path)?;
        let (snapshot, now) = watch::channel(Arc::default());
        let out = Out { layout, snapshot, catalog, live: Mutex::default(), redirect_hosts };
        out.publish(first, true);
        let (jobs, waiting) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                let mut store = store;
                for job in waiting {
                    job(&mut store);
                }
            })
            .map_err(|source| RegistryError::File { path, source })?;
        let writer = Arc::new(Writer { jobs: Some(jobs), thread: Some(thread) });
        Ok(Self { writer, now, publish: Arc::new(out), trouble: Arc::new(trouble) })
    }

    /// What was wrong with it when it was opened, if it could be used all the same; safe to print.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What it holds now.
    pub fn now(&self) -> Arc<Snapshot> {
        self.now.borrow().clone()
    }

    /// A repository.
    pub fn record(&self, name: &RepoName) -> Option<Arc<Record>> {
        self.now.borrow().repos.get(name).cloned()
    }

    /// Tells when it holds something else.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.now.clone()
    }

    /// Runs a job on the writer's thread and waits for it.
    fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut rows::Store, &Snapshot) -> Result<(T, Option<Snapshot>, bool)> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::sync_channel(1);
        let out = self.publish.clone();
        let job: Job = Box::new(move |store| {
            let now = out.snapshot.borrow().clone();
            let done = job(store, &now).map(|(value, changed, serving)| {
                if let Some(snapshot) = changed {
                    if serving {
                        // Without it a corrupt database could not be made again; with an old one it can.
                        let _ = store.save(&snapshot);
                    }
                    out.publish(snapshot, serving);
                }
                value
            });
            let _ = send.send(done);
        });
        let jobs = self.writer.jobs.as_ref().ok_or(RegistryError::Closed)?;
        jobs.send(job).map_err(|_| RegistryError::Closed)?;
        receive.recv().map_err(|_| RegistryError::Closed)?
    }

    /// Makes the registry hold what was asked for: all or nothing. Returns what it did.
    pub fn apply(&self, changes: Vec<plan::Change>) -> Result<plan::Plan> {
        self.write(move |store, now| {
            let plan = plan::plan(now, changes)?;
            if plan.is_empty() {
                return Ok((plan, None, false));
            }
            let next = plan.applied_to(now);
            store.apply(&plan, &next)?;
            Ok((plan, Some(next), true))
        })
    }

    /// Changes what is known of a repository. `false`: it is not there any more.
    pub fn status(&self, name: &RepoName, change: impl FnOnce(&mut Status) + Send + 'static) -> Result<bool> {
        let name = name.clone();
        self.write(move |store, now| {
            let Some(record) = now.repos.get(&name) else { return Ok((false, None, false)) };
            let mut record = Record::clone(record);
            let before = record.status.clone();
            change(&mut record.status);
            if record.status == before {
                return Ok((true, None, false));
            }
            // Serving wants to know of these two; the rest would only make new catalogs.
            let serving = (before.state, before.format) != (record.status.state, record.status.format);
            let mut next = now.clone();
            let written = store.status(&record);
            next.repos.insert(name, Arc::new(record));
            // What is true is true, whether it could be written or not: the next refresh finds it again.
            let _ = written;
            Ok((true, Some(next), serving))
        })
    }

    /// Pauses refreshing a repository, or goes on with it.
    pub fn pause(&self, name: &RepoName, paused: bool) -> Result<()> {
        let name = name.clone();
        self.write(move |store, now| {
            let record = now.repos.get(&name).ok_or(plan::Refused::Unknown { name: name.clone() })?;
            let record = Record { paused, ..Record::clone(record) };
            store.pause(&name, paused)?;
            let mut next = now.clone();
            next.repos.insert(name, Arc::new(record));
            Ok(((), Some(next), true))
        })
    }

    /// Adds or replaces a session.
    pub fn put_session(&self, session: Session) -> Result<()> {
        self.write(move |store, now| {
            store.put_session(&session)?;
            let mut next = now.clone();
            next.sessions.insert(session.id.clone(), Arc::new(session));
            Ok(((), Some(next), true))
        })
    }

    /// Ends a session; whether there was one.
    pub fn end_session(&self, id: &SessionId) -> Result<bool> {
        let id = id.clone();
        self.write(move |store, now| {
            let mut next = now.clone();
            if next.sessions.remove(&id).is_none() {
                return Ok((false, None, false));
            }
            store.end_session(&id)?;
            Ok((true, Some(next), true))
        })
    }

    /// What serving looks at while a repository stays the same.
    pub fn live(&self, name: &RepoName) -> Arc<Live> {
        self.publish.live(name)
    }
}

impl Out {
    fn live(&self, name: &RepoName) -> Arc<Live> {
        self.live.lock().expect("nobody panics with it").entry(name.clone()).or_default().clone()
    }

    fn publish(&self, snapshot: Snapshot, serving: bool) {
        if serving {
            let entries = snapshot.repos.values().map(|record| {
                let live = self.live(&record.spec.name);
                if let Some(at) = record.status.refreshed {
                    live.refreshed_at(at);
                }
                Arc::new(Entry {
                    name: record.spec.name.clone(),
                    dir: self.layout.mirror(&record.spec.name),
                    state: record.status.state,
                    format: record.status.format,
                    private: record.spec.private,
                    redirect: redirect(&record.spec),
                    live,
                })
            });
            let catalog = Catalog::new(entries, snapshot.sessions.values().cloned());
            self.catalog.publish(catalog.redirecting(self.redirect_hosts.iter().cloned()));
        }
        self.snapshot.send_replace(Arc::new(snapshot));
    }
}

/// Where clients are sent while it cannot be served: only where they need nothing that the mirror has.
fn redirect(spec: &Spec) -> Option<String> {
    let web = matches!(spec.url.scheme(), Scheme::Https | Scheme::Http);
    (web && !spec.private && spec.credential.is_none()).then(|| spec.url.url().to_owned())
}

#[cfg(test)]
mod tests;
