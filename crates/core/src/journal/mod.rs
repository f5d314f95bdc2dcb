//! What a command is about to do and what it did, in lines that are only ever appended: so that the
//! next command can finish or take back what a dead one left, and `undo` knows what there was.
//!
//! ```text
//! open/<operation>            one for each operation under way; its owner holds the flock; in it: whose journal
//! journal                     of the store: what empties the trash, `gc`
//! repos/<id>/journal          of a repository: what changes a working tree or branches of the host
//! sandboxes/<id>/journal      of a sandbox: what brings its commits home, what drops it; moves with its directory
//!
//!   start ─► begin A ─► done A ─► begin B ─► done B ─► end
//!
//! marker locked              dead here: marker's lock is free           marker removed
//! ```
//!
//! - A line is one JSON object of at most [`MAX_LINE`] bytes, written by one `write`. One that was cut (the last,
//!   without its line feed) is none.
//! - The marker alone says that something is unfinished: who finds `open/` empty has looked at everything.
//!   Whether its owner lives is what the kernel says of the lock, and nothing else.
//! - Only [`Op::begin_durably`] syncs: before what destroys or publishes.
//! - A journal of a newer format is read and not written.
//!
//! A command says what it does as a [`Plan`]; [`Journal::start`] gives the [`Op`] that it reports its steps to.
//! [`recover`] is for those that died: what their journal says and what is on the disk become a value
//! ([`recover::Recovery`]), and one function applies it.

mod line;
mod op;
mod read;
pub mod recover;
pub mod together;

pub use line::{End, Ids, MAX_LINE, Verb, path_id, path_of};
pub use op::{Op, Plan};
pub use read::{History, Operation, Step};

use crate::id::{OpId, RepoId, SandboxId};
use crate::store::{Store, StoreError};
use std::fmt;
use std::path::{Path, PathBuf};

/// The format of the lines that this build writes.
pub const FORMAT: u32 = 1;

/// From so many bytes on the older half of a journal is in `journal.1`.
const ROTATE: u64 = 1 << 20;

/// Whose journal it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Home {
    /// The store's.
    Store,
    /// A repository's.
    Repo(RepoId),
    /// A sandbox's, wherever its directory is now.
    Sandbox(SandboxId),
}

impl Home {
    /// Reads what [`Home`]'s `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().split_once(' ') {
            None if text.trim() == "store" => Some(Self::Store),
            Some(("repository", id)) => RepoId::parse(id).map(Self::Repo),
            Some(("sandbox", id)) => SandboxId::parse(id).map(Self::Sandbox),
            _ => None,
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("store"),
            Self::Repo(id) => write!(f, "repository {id}"),
            Self::Sandbox(id) => write!(f, "sandbox {id}"),
        }
    }
}

/// One journal.
#[derive(Clone, Debug)]
pub struct Journal {
    store: Store,
    home: Home,
    dir: PathBuf,
}

impl Journal {
    /// Names a journal; nothing is made yet. That of a sandbox is where its directory is: among the sandboxes, in
    /// the trash, or on its way out.
    pub fn of(store: &Store, home: Home) -> Self {
        let dir = match &home {
            Home::Store => store.root().to_owned(),
            Home::Repo(id) => store.repo(id).path().to_owned(),
            Home::Sandbox(id) => {
                let places =
                    [store.sandbox(id).path().to_owned(), store.trash(id).path().to_owned(), store.dropped(id)];
                let found = places.iter().find(|dir| dir.is_dir()).unwrap_or(&places[0]);
                found.clone()
            }
        };
        Self { store: store.clone(), home, dir }
    }

    /// Of the store.
    pub fn of_store(store: &Store) -> Self {
        Self::of(store, Home::Store)
    }

    /// Of a repository.
    pub fn of_repo(store: &Store, id: &RepoId) -> Self {
        Self::of(store, Home::Repo(id.clone()))
    }

    /// Of a sandbox.
    pub fn of_sandbox(store: &Store, id: &SandboxId) -> Self {
        Self::of(store, Home::Sandbox(id.clone()))
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Reads all of it, the older half included. None is an empty one.
    pub fn read(&self) -> Result<History, StoreError> {
        let mut history = History::default();
        for name in ["journal.1", "journal"] {
            let path = self.dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => history.add(&bytes),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(StoreError::Io { action: "read", path, source }),
            }
        }
        Ok(history)
    }

    /// Begins an operation: from here on the next command knows of it.
    pub fn start(&self, plan: Plan) -> Result<Op, StoreError> {
        Op::start(self, plan)
    }
}

/// One marker: an operation that somebody is at work on, or was.
#[derive(Clone, Debug)]
pub struct Marker {
    /// Its operation.
    pub op: OpId,
    /// The file.
    pub path: PathBuf,
}

/// The markers of all operations that did not come to their end, sorted. With none, this is one look at an empty
/// directory.
pub fn markers(store: &Store) -> Vec<Marker> {
    let Ok(entries) = std::fs::read_dir(store.open_operations()) else { return Vec::new() };
    let marker = |entry: std::fs::DirEntry| {
        let op = OpId::parse(entry.file_name().to_str()?)?;
        Some(Marker { op, path: entry.path() })
    };
    let mut all: Vec<Marker> = entries.flatten().filter_map(marker).collect();
    all.sort_by(|a, b| a.op.cmp(&b.op));
    all
}

/// The journals that those operations are written in.
pub(crate) fn homes(store: &Store) -> impl Iterator<Item = Home> {
    markers(store).into_iter().filter_map(|marker| Home::parse(&std::fs::read_to_string(marker.path).ok()?))
}
