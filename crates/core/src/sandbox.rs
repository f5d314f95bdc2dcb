//! One sandbox as it is on disk now: finding it, its state, speaking to its supervisor,
//! and taking it into one's own hands while it is stopped.

use crate::connection::{Connection, ConnectionError};
use crate::id::{Name, RepoId, SandboxId};
use crate::launch::Network;
use crate::names::Names;
use crate::record::{RepoMount, RepoRecord, SandboxRecord, Snapshot, StatusRecord};
use crate::store::{SandboxDir, Store, StoreError, read_either, read_json, write_twice};
use sandbox_sys::lock::{FileLock, Holder, holder};
use sandbox_sys::process;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A sandbox that is fully made, looked at from one of its trees: what tells about commits and
/// changed files tells about that one.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Where it is.
    pub dir: SandboxDir,
    /// What was asked.
    pub record: SandboxRecord,
    /// Which of `record.repos` is looked at; 0 is the main one.
    pub tree: usize,
}

/// What is true of a sandbox now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its supervisor runs.
    Running,
    /// It was stopped, or its command ended.
    Stopped,
    /// Its supervisor or its first process was killed.
    Crashed,
    /// It ran when the machine went down.
    Rebooted,
}

impl State {
    /// The words that `list` prints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Crashed => "stopped (crashed)",
            Self::Rebooted => "stopped (rebooted)",
        }
    }
}

/// Why a sandbox cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is none of this name.
    #[error("no sandbox named '{name}'")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that exist.
        known: Vec<String>,
    },
    /// More than one repository has a sandbox of this name.
    #[error("more than one repository has a sandbox named '{name}'")]
    Ambiguous {
        /// What was asked for.
        name: String,
    },
    /// It must run for this.
    #[error("the sandbox '{name}' is not running")]
    NotRunning {
        /// Which.
        name: String,
    },
    /// It must not run for this.
    #[error("the sandbox '{name}' is running")]
    Running {
        /// Which.
        name: String,
    },
    /// Another command works on it, or on the same working tree.
    #[error("busy: {}", holder.as_ref().map_or_else(|| "another command".to_owned(), ToString::to_string))]
    Busy {
        /// Who says that it has the lock.
        holder: Option<Holder>,
    },
    /// Its first process does not end.
    #[error("process {pid} of the sandbox '{name}' does not end")]
    Lingering {
        /// Which.
        name: String,
        /// The host's pid.
        pid: u32,
    },
    /// A snapshot that it stands on is gone.
    #[error("the sandbox '{name}' stands on '{path}', which is gone", path = path.display())]
    Vanished {
        /// Which.
        name: String,
        /// What is gone.
        path: PathBuf,
    },
    /// The name that is asked for belongs to another.
    #[error("there is a sandbox named '{name}'")]
    Taken {
        /// The name.
        name: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The supervisor.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The kernel.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A sandbox whose record cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Which.
    pub id: SandboxId,
    /// The name that it was given, if it has one.
    pub name: Option<Name>,
    /// Why.
    pub error: StoreError,
}

impl Sandbox {
    /// Returns it, looked at from its main tree.
    pub fn new(dir: SandboxDir, record: SandboxRecord) -> Self {
        Self { dir, record, tree: 0 }
    }

    /// Returns the same, looked at from tree number `tree`.
    pub fn at(&self, tree: usize) -> Self {
        Self { tree, ..self.clone() }
    }

    /// Returns the same once for each of its trees, the main one first.
    pub fn trees(&self) -> impl Iterator<Item = Self> {
        (0..self.record.repos.len()).map(|n| self.at(n))
    }

    /// What is known of the tree that it is looked at from.
    pub fn mount(&self) -> &RepoMount {
        &self.record.repos[self.tree]
    }

    /// The upper directory of that tree.
    pub fn upper(&self) -> PathBuf {
        self.dir.upper(self.tree)
    }

    /// Reads one; `None` when it is half-made or gone.
    pub fn load(store: &Store, id: &SandboxId) -> Result<Option<Self>, SandboxError> {
        let dir = store.sandbox(id);
        Ok(read_json(&dir.record())?.map(|record| Self::new(dir, record)))
    }

    /// Reads all of one repository (or of all), oldest first, looked at from there. Those whose record is damaged are
    /// left out: see [`Sandbox::damaged`].
    pub fn all(store: &Store, repo: Option<&RepoId>) -> Result<Vec<Self>, SandboxError> {
        let mut all = Vec::new();
        for id in store.sandbox_ids()? {
            let Ok(Some(sandbox)) = Self::load(store, &id) else { continue };
            match repo {
                None => all.push(sandbox),
                Some(repo) => all.extend(sandbox.seen_from(repo)),
            }
        }
        // Those without a number are older than all that have one.
        let age = |sandbox: &Self| match sandbox.record.sequence {
            0 => (0, sandbox.record.created),
            n => (n, 0),
        };
        all.sort_by(|a, b| (age(a), &a.record.name).cmp(&(age(b), &b.record.name)));
        Ok(all)
    }

    /// Finds those of one repository (or of all) whose record cannot be read. Whose they are is what names say; one
    /// without any is of all.
    pub fn damaged(store: &Store, repo: Option<&RepoId>) -> Result<Vec<Unreadable>, StoreError> {
        let mut found = Vec::new();
        for id in store.sandbox_ids()? {
            let Err(error) = read_json::<SandboxRecord>(&store.sandbox(&id).record()) else { continue };
            let mut named = Vec::new();
            for repo in store.repo_ids()? {
                named.extend(Names::of(&store.repo(&repo)).name_of(&id).map(|name| (repo, name)));
            }
            if repo.is_none_or(|repo| named.is_empty() || named.iter().any(|(of, _)| of == repo)) {
                found.push(Unreadable { id, name: named.pop().map(|(_, name)| name), error });
            }
        }
        Ok(found)
    }

    /// Returns it, looked at from a repository; `None` if that is not one of its.
    fn seen_from(&self, repo: &RepoId) -> Option<Self> {
        self.record.repos.iter().position(|mount| mount.repo == *repo).map(|n| self.at(n))
    }

    /// Finds one by its name in a repository, and looks at it from there; or anywhere when there is no repository.
    pub fn find(store: &Store, repo: Option<&RepoId>, name: &str) -> Result<Self, SandboxError> {
        if let Some(repo) = repo
            && let Some(id) = Names::of(&store.repo(repo)).get(name)
            && let Some(sandbox) = Self::load(store, &id)?
        {
            return Ok(sandbox.seen_from(repo).unwrap_or(sandbox));
        }
        let all = Self::all(store, repo)?;
        let mut found: Vec<Self> = all
            .iter()
            .filter(|sandbox| sandbox.record.name.as_str() == name || sandbox.record.id.as_str() == name)
            .cloned()
            .collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(SandboxError::Unknown {
                name: name.to_owned(),
                known: all.iter().map(|sandbox| sandbox.record.name.to_string()).collect(),
            }),
            _ => Err(SandboxError::Ambiguous { name: name.to_owned() }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.record.name.as_str()
    }

    /// What was last written about it. Nobody waits for that to be on the disk: what a power cut left of it says
    /// as much as none, that nothing runs.
    pub fn status(&self) -> Result<StatusRecord, SandboxError> {
        match read_json(&self.dir.status()) {
            Err(StoreError::Damaged { .. }) => Ok(StatusRecord::default()),
            status => Ok(status?.unwrap_or_default()),
        }
    }

    /// What is true now.
    pub fn state(&self) -> Result<State, SandboxError> {
        let status = self.status()?;
        Ok(self.state_of(&status))
    }

    /// What is true now, given what was last written.
    pub fn state_of(&self, status: &StatusRecord) -> State {
        let alive = |who: &crate::driver::ProcessIdentity| {
            matches!(process::open_identified(who.pid, who.start_time, &who.boot_id), Ok(Some(_)))
        };
        match &status.supervisor {
            Some(supervisor) if alive(supervisor) => State::Running,
            Some(supervisor) if process::boot_id().is_ok_and(|boot| boot != supervisor.boot_id) => State::Rebooted,
            Some(_) => State::Crashed,
            None if status.started.is_some() && !status.stopped => State::Crashed,
            None => State::Stopped,
        }
    }

    /// Connects to its supervisor.
    pub fn connect(&self) -> Result<Connection, SandboxError> {
        self.connect_with(&[])
    }

    /// As [`Sandbox::connect`], with features that our hello names.
    pub fn connect_with(&self, features: &[&str]) -> Result<Connection, SandboxError> {
        let not_running = || SandboxError::NotRunning { name: self.name().to_owned() };
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match connect(&self.dir) {
                Ok(stream) => return Ok(Connection::with_features(stream, features)?),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    // A supervisor that is still launching has the lock and no socket yet; one that
                    // has its name in the status and no socket is stopping.
                    let stopping = self.status()?.supervisor.is_some() && error.kind() == io::ErrorKind::NotFound;
                    if stopping || self.state()? != State::Running || Instant::now() > until {
                        return Err(not_running());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(source) => {
                    return Err(SandboxError::Io { step: format!("connect to the sandbox '{}'", self.name()), source });
                }
            }
        }
    }

    /// How long one that is on its way to its end is waited for. A guest looks at its disk once more and writes it
    /// out; emulated, on a busy machine, that is slow.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(if self.record.guest_disk { 120 } else { 10 })
    }

    /// Takes the lock of a sandbox that does not run, once nothing of an earlier life is left:
    /// a pid namespace's first process is reaped only after all its members, so that waiting
    /// for it is waiting for the last writer of the upper directory.
    pub fn take(&self, patience: Duration) -> Result<FileLock, SandboxError> {
        let path = self.dir.lock_file();
        let io = |source| SandboxError::Io { step: format!("lock '{}'", path.display()), source };
        let until = Instant::now() + patience;
        let lock = loop {
            match FileLock::try_exclusive(&path) {
                Ok(Some(lock)) => break lock,
                Ok(None) => {}
                // Dropped meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(SandboxError::Unknown { name: self.name().to_owned(), known: Vec::new() });
                }
                Err(error) => return Err(io(error)),
            }
            if Instant::now() >= until {
                let name = self.name().to_owned();
                return Err(match self.status()?.supervisor {
                    Some(_) => SandboxError::Running { name },
                    None => SandboxError::Busy { holder: holder(&path) },
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if let Some(init) = self.status()?.init
            && let Some(pidfd) = process::open_identified(init.pid, init.start_time, &init.boot_id).map_err(io)?
            && !process::wait_gone(&pidfd, Some(self.patience())).map_err(io)?
        {
            return Err(SandboxError::Lingering { name: self.name().to_owned(), pid: init.pid });
        }
        // A restore that was cut: nothing is to see half of it.
        crate::checkpoint::settle(&self.dir, &self.record)?;
        Ok(lock)
    }

    /// Gives it another network from its next start on. Everything else of the record stays as it is on disk now.
    pub fn set_network(&mut self, network: Network) -> Result<(), SandboxError> {
        let path = self.dir.record();
        let mut record: SandboxRecord = read_json(&path)?
            .ok_or_else(|| SandboxError::Vanished { name: self.name().to_owned(), path: path.clone() })?;
        record.network = network;
        write_twice(&path, &record, true)?;
        self.record = record;
        Ok(())
    }

    /// The snapshot that the tree it is looked at from stands on.
    pub fn snapshot(&self, store: &Store) -> Result<Snapshot, SandboxError> {
        let mount = self.mount();
        let path = store.repo(&mount.repo).snapshot(&mount.snapshot);
        read_either(&path)?.ok_or_else(|| SandboxError::Vanished { name: self.name().to_owned(), path })
    }

    /// The record of that tree's repository.
    pub fn repo(&self, store: &Store) -> Result<RepoRecord, SandboxError> {
        let path = store.repo(&self.mount().repo).record();
        read_json(&path)?.ok_or_else(|| SandboxError::Vanished { name: self.name().to_owned(), path })
    }
}

/// Connects to a supervisor's socket through a descriptor of its directory: paths may be long.
fn connect(dir: &SandboxDir) -> io::Result<UnixStream> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir.path(), flags, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/ctl", std::os::fd::AsRawFd::as_raw_fd(&fd)))
}

/// Returns where a path inside a tree is in a stack of layers, uppermost first; the first one that has it.
pub fn find_in_layers(layers: &[PathBuf], relative: &Path) -> Option<PathBuf> {
    layers.iter().map(|layer| layer.join(relative)).find(|path| fs::symlink_metadata(path).is_ok())
}
