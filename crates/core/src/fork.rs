//! One more sandbox on the same snapshot, with a copy of what another one has written so far.
//!
//! ```text
//!  lock repository ─ name, directory (no record yet) ─ unlock
//!       │
//!       ▼
//!  copy upper directories and home ── stopped: its lock is held, one round
//!       │                             live:    frozen for one round, if that is short; else
//!       │                                      round, freeze, round for the difference, thaw
//!       │                             no freezer: rounds until nothing changed
//!       │                             a virtual machine: its disk stands still for one round
//!       ▼
//!  lock repository ─ the snapshot still is there ─ record ─ unlock
//! ```
//!
//! The child stands on the same layers and views for life, so its upper directory means the same. The
//! overlay's work directory and `/tmp` begin empty; what the host imported from the parent stays the
//! parent's. Until the record is there it is a half-made sandbox, which any later command sweeps.

mod guest_disk;

use crate::connection::{Connection, ConnectionError};
use crate::id::{Name, SandboxId};
use crate::launch::TreeView;
use crate::names::Names;
use crate::prepare::{PrepareError, taken_by};
use crate::record::{Forked, SandboxRecord};
use crate::sandbox::{Sandbox, SandboxError};
use crate::space::{Need, NoRoom, Room};
use crate::store::{RepoLocks, SandboxDir, Store, StoreError, make_dir, write_json, write_whole};
use sandbox_capture::{Twin, TwinError, Twinned};
use sandbox_protocol::{GIT_LOCKS, Message, escape_bytes, unescape_bytes};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::lock::FileLock;
use sandbox_sys::namespace::{Forked as Side, Namespaces, exit_now, fork_into, write_id_map};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a git command that runs in the parent may take, before its lock is copied with everything.
const LOCKED: Duration = Duration::from_secs(2);

/// How long a parent stands still for all of the copy.
const STILL: Duration = Duration::from_millis(50);

/// How long a virtual machine that was left behind may take to end.
const ENDING: Duration = Duration::from_secs(75);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The child's name; the parent's with a number when there is none.
    pub name: Option<Name>,
    /// The child's command, empty for an idle sandbox or a shell.
    pub argv: Vec<String>,
    /// The parent's commit that the host has, of each of its trees that has one, by their number.
    pub tips: BTreeMap<usize, String>,
    /// Where it comes from, if that is not the parent: what is copied is itself a copy of it, made just now.
    pub of: Option<Forked>,
}

/// How the parent is kept from writing.
#[derive(Debug)]
pub enum Hold<'a> {
    /// It does not run, and with this lock nobody starts it.
    Stopped(FileLock),
    /// It does not run, and the caller sees to it that nobody starts it.
    Still,
    /// Its supervisor is asked to let it stand still.
    Live(&'a mut Connection),
}

/// A sandbox that was made.
#[derive(Debug)]
pub struct Made {
    /// The child.
    pub sandbox: Sandbox,
    /// Its lock.
    pub lock: FileLock,
    /// What is to be told.
    pub told: Told,
}

/// What is to be told of a fork.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Files that were copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of its disk, where that is what was copied.
    #[serde(default)]
    pub disk: Option<u64>,
    /// The parent stood still for the end of the copy; `None` when it did not run.
    pub frozen: Option<bool>,
    /// Sockets and devices that were left out, as [`escape_bytes`] writes them.
    pub left_out: Vec<String>,
    /// Files that changed all the time, as [`escape_bytes`] writes them.
    pub unsettled: Vec<String>,
    /// The lock of a git command that did not end.
    pub locked: Option<String>,
}

/// Why there is no fork. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The name, the repository's lock, a directory.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The parent.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The copy.
    #[error("cannot copy the sandbox '{name}'")]
    Copy {
        /// The parent.
        name: String,
        /// Which file.
        source: TwinError,
    },
    /// What it was at first could not be taken over.
    #[error("cannot copy the sandbox '{name}'")]
    Whole {
        /// The parent.
        name: String,
        /// Why.
        source: Box<crate::whole::CopyError>,
    },
    /// Its repository changed all the time, and could not be frozen.
    #[error("the repository in the sandbox '{name}' changes all the time: '{path}'")]
    Unsettled {
        /// The parent.
        name: String,
        /// What changed, escaped.
        path: String,
    },
    /// Half of a disk would be copied while the other half is written.
    #[error("cannot copy the sandbox '{name}': its virtual machine does not let its disk stand still")]
    NotHeld {
        /// The parent.
        name: String,
        /// What was said.
        source: ConnectionError,
    },
    /// A machine that was left behind still writes the disk out.
    #[error("cannot copy the sandbox '{name}': its disk is in use by a virtual machine that is still ending")]
    DiskBusy {
        /// The parent.
        name: String,
    },
    /// The parent was dropped meanwhile.
    #[error("the sandbox '{name}' was dropped while it was copied")]
    Dropped {
        /// The parent.
        name: String,
    },
    /// Its supervisor went away while it stood still.
    #[error("the sandbox '{name}' ended while it was copied")]
    Ended {
        /// The parent.
        name: String,
        /// What came over the connection.
        source: ConnectionError,
    },
}

type Result<T> = std::result::Result<T, ForkError>;

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ForkError {
    let path = path.to_owned();
    move |source| PrepareError::Io { action, path, source }.into()
}

/// Makes the child and returns it with its lock held.
pub fn fork(store: &Store, parent: &Sandbox, hold: Hold<'_>, request: Request) -> Result<Made> {
    has_room(store, parent).map_err(PrepareError::from)?;
    let repo_lock = || RepoLocks::take(store, parent.record.repos.iter().map(|mount| &mount.repo));
    let names: Vec<Names> = parent.record.repos.iter().map(|mount| Names::of(&store.repo(&mount.repo))).collect();
    let id = SandboxId::random();
    let dir = store.sandbox(&id);
    let locked = repo_lock()?;
    let name = free_name(store, &names, parent, request.name.as_ref())?;
    make_dir(dir.path())?;
    // Nobody waits for the lock of a sandbox without a record: taking the repository's later, with this
    // one held, waits for nobody who waits for us.
    let lock = FileLock::exclusive(&dir.lock_file()).map_err(io("lock", &dir.lock_file()))?;
    let half = Half { dir: &dir, names: &names, name: &name, id: &id };
    for names in &names {
        names.give(&name, &id)?;
    }
    drop(locked);

    let told = copy(store, parent, &dir, hold)?;

    let locked = repo_lock()?;
    // Its layers are kept by the parent's record, until ours is there.
    for tree in parent.trees() {
        tree.snapshot(store)?;
    }
    if !parent.dir.record().exists() {
        return Err(ForkError::Dropped { name: parent.name().to_owned() });
    }
    let mut tips = request.tips;
    let tip = tips.remove(&0);
    let parents = || Forked { name: parent.record.name.clone(), id: parent.record.id.clone(), tip, tips };
    let forked = request.of.unwrap_or_else(parents);
    let record = SandboxRecord {
        id: id.clone(),
        unnamed: request.name.is_none(),
        name: name.clone(),
        rm: false,
        created: unix_seconds(),
        sequence: store.next_sequence()?,
        argv: request.argv,
        forked: Some(forked),
        // A session is one sandbox's.
        mirror: None,
        ..parent.record.clone()
    };
    write_json(&dir.record(), &record, false)?;
    drop(locked);
    std::mem::forget(half);
    Ok(Made { sandbox: Sandbox::new(dir, record), lock, told })
}

/// Refuses a copy that does not fit. How large it is matters only where there may be too little room.
fn has_room(store: &Store, parent: &Sandbox) -> std::result::Result<(), NoRoom> {
    store.has_room(Need::default())?;
    if Room::of(store.root()).is_ok_and(|room| room.fits_anything(store.reserve())) {
        return Ok(());
    }
    let trees = (0..parent.record.repos.len()).filter(|n| parent.record.has_upper(*n) && !parent.record.guest_disk);
    let own = trees.map(|n| parent.dir.upper(n)).chain([parent.dir.disk()]);
    let mut need = Need::default();
    for path in own.chain([parent.dir.home()]) {
        let extent = crate::work::extent_of(&path);
        need = Need { bytes: need.bytes + extent.bytes, inodes: need.inodes + extent.inodes };
    }
    store.has_room(need).or_else(|short| match sandbox_capture::shares_blocks(store.root()) {
        true => store.has_room(Need { bytes: 0, ..need }),
        false => Err(short),
    })
}

/// The name that was asked for, if it is free; else the parent's with the first number that is.
fn free_name(store: &Store, names: &[Names], parent: &Sandbox, asked: Option<&Name>) -> Result<Name> {
    let holder = |name: &Name| names.iter().find_map(|names| names.holder(store, name));
    let taken = |name: &Name| holder(name).is_some();
    if let Some(name) = asked {
        return match holder(name) {
            Some(id) => Err(taken_by(store, &id, name, None).into()),
            None => Ok(name.clone()),
        };
    }
    let (stem, first) = numbered(parent.name());
    let free = (first..first + 10_000).find_map(|n| {
        let end = format!("-{n}");
        let room = crate::id::MAX_NAME - end.len();
        let stem = stem.get(..room).unwrap_or(stem).trim_end_matches(['.', '-', '_']);
        Name::parse(&format!("{stem}{end}")).ok().filter(|name| !taken(name))
    });
    Ok(free.unwrap_or_else(Name::random))
}

/// `fix` is followed by `fix-2`, and `fix-2` by `fix-3`.
fn numbered(name: &str) -> (&str, u32) {
    match name.rsplit_once('-') {
        Some((stem, n)) if !n.starts_with('0') && n.len() < 5 => match n.parse::<u32>() {
            Ok(n) => (stem, n + 1),
            Err(_) => (name, 2),
        },
        _ => (name, 2),
    }
}

/// A sandbox without a record: goes unless it is finished.
struct Half<'a> {
    dir: &'a SandboxDir,
    names: &'a [Names],
    name: &'a Name,
    id: &'a SandboxId,
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        for names in self.names {
            names.take_back(self.name, self.id);
        }
        let _ = sandbox_capture::remove_tree(self.dir.path());
    }
}

/// Makes the child's directories and fills them.
pub(crate) fn copy(store: &Store, parent: &Sandbox, dir: &SandboxDir, hold: Hold<'_>) -> Result<Told> {
    for n in (0..parent.record.repos.len()).filter(|n| parent.record.has_upper(*n)) {
        owned(&dir.work(n), &parent.dir.work(n))?;
    }
    owned(&dir.tmp(), &parent.dir.tmp())?;
    let told = copy_state(store, parent, dir, hold)?;
    // What it may reach goes along; who changes one of the two changes only that one.
    let policy = parent.dir.network();
    match fs::read(&policy) {
        Ok(bytes) => write_whole(&dir.network(), &bytes, false)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("read", &policy)(error)),
    }
    Ok(told)
}

/// Copies what the parent has written: its home and its trees.
pub(crate) fn copy_state(store: &Store, parent: &Sandbox, dir: &SandboxDir, hold: Hold<'_>) -> Result<Told> {
    let mut trees = vec![(parent.dir.home(), dir.home())];
    for n in (0..parent.record.repos.len()).filter(|n| parent.record.has_upper(*n)) {
        trees.push((parent.dir.upper(n), dir.upper(n)));
    }
    for (from, to) in &trees {
        owned(to, from)?;
    }
    let mut hold = hold;
    let mut disk = None;
    if parent.record.guest_disk {
        // The rest of what is here was never the guest's, or is what it said of itself.
        disk = Some(guest_disk::copy(parent, dir, &mut hold)?);
        trees.truncate(1);
        hold = Hold::Still;
    }
    let mut told = match contents(parent, &trees, &mut hold) {
        Err(ForkError::Copy { source, .. })
            if source.source.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() =>
        {
            for (from, to) in &trees {
                sandbox_capture::remove_tree(to).map_err(io("empty", to))?;
                owned(to, from)?;
            }
            closed_contents(parent, &trees, &mut hold, source)?
        }
        done => done?,
    };
    if let Some(disk) = disk {
        told = Told { disk: Some(disk.bytes), frozen: disk.frozen, locked: disk.locked, ..told };
    }
    if parent.record.view == TreeView::Copy {
        for n in 0..parent.record.repos.len() {
            let snapshot = parent.at(n).snapshot(store)?;
            crate::whole::inherit(&parent.dir, &snapshot, dir, n)
                .map_err(|source| ForkError::Whole { name: parent.name().to_owned(), source: Box::new(source) })?;
        }
    }
    Ok(told)
}

/// Makes a directory that belongs to whom the parent's belongs to.
fn owned(path: &Path, like: &Path) -> Result<()> {
    make_dir(path)?;
    if rustix::process::geteuid().is_root() {
        let meta = fs::symlink_metadata(like).map_err(io("look at", like))?;
        lchown(path, Some(meta.uid()), Some(meta.gid())).map_err(io("change the owner of", path))?;
    }
    Ok(())
}

/// Copies the trees, with the parent standing still for the last round where that is possible.
fn contents(parent: &Sandbox, trees: &[(PathBuf, PathBuf)], hold: &mut Hold<'_>) -> Result<Told> {
    let failed = |source| ForkError::Copy { name: parent.name().to_owned(), source };
    let mut twin = Twin::new(trees).map_err(failed)?;
    let (mut frozen, mut locked) = (None, None);
    match hold {
        Hold::Stopped(_) | Hold::Still => {
            twin.still();
            twin.round().map_err(failed)?;
        }
        Hold::Live(connection) => {
            let until = Instant::now() + LOCKED;
            (frozen, locked) = freeze(parent, connection, until)?;
            if frozen == Some(true) {
                // A small copy is over before anybody notices.
                let mut done = twin.still_round(STILL);
                thaw(parent, connection, frozen)?;
                if !done.map_err(failed)? {
                    // Most of a large one while the parent goes on: it stands still only for the difference.
                    twin.round().map_err(failed)?;
                    (frozen, locked) = freeze(parent, connection, until)?;
                    if frozen == Some(true) {
                        twin.still();
                        done = twin.round();
                        thaw(parent, connection, frozen)?;
                        done.map_err(failed)?;
                    } else {
                        twin.settle().map_err(failed)?;
                    }
                }
            } else {
                twin.settle().map_err(failed)?;
            }
        }
    }
    let Twinned { files, bytes, left_out, unsettled } = twin.finish().map_err(failed)?;
    if let Some(path) = unsettled.iter().find(|path| path.components().any(|part| part.as_os_str() == ".git")) {
        let path = sandbox_git::printable(path.as_os_str().as_bytes());
        return Err(ForkError::Unsettled { name: parent.name().to_owned(), path });
    }
    let shown = |paths: Vec<PathBuf>| paths.iter().map(|path| escape_bytes(path.as_os_str().as_bytes())).collect();
    Ok(Told { files, bytes, disk: None, frozen, left_out: shown(left_out), unsettled: shown(unsettled), locked })
}

/// Lets the parent stand still between two git commands, or after `until` in the middle of one. Returns
/// whether it does, and the lock of the one in whose middle it is.
fn freeze(parent: &Sandbox, connection: &mut Connection, until: Instant) -> Result<(Option<bool>, Option<String>)> {
    let mut pause = Duration::from_millis(1);
    loop {
        // Only looked at as long as a lock is there: to freeze it for that would only hold up the git command.
        while git_lock(parent).is_some() && Instant::now() < until {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        let frozen = Some(ask(connection, &Message::Freeze).is_ok());
        // One may have begun meanwhile.
        let locked = git_lock(parent);
        if locked.is_none() || Instant::now() >= until {
            return Ok((frozen, locked));
        }
        thaw(parent, connection, frozen)?;
    }
}

/// A git command in one of the parent's repositories has not ended.
fn git_lock(parent: &Sandbox) -> Option<String> {
    parent.trees().find_map(|tree| {
        let git = tree.upper().join(".git");
        let lock = GIT_LOCKS.iter().find(|name| git.join(name).symlink_metadata().is_ok())?;
        Some(match tree.tree {
            0 => format!(".git/{lock}"),
            _ => tree.mount().worktree.join(".git").join(lock).to_string_lossy().into_owned(),
        })
    })
}

fn thaw(parent: &Sandbox, connection: &mut Connection, frozen: Option<bool>) -> Result<()> {
    if frozen != Some(true) {
        return Ok(());
    }
    ask(connection, &Message::Thaw).map_err(|source| ForkError::Ended { name: parent.name().to_owned(), source })
}

fn ask(connection: &mut Connection, message: &Message) -> std::result::Result<(), ConnectionError> {
    connection.ask(message, 1 << 16).map(drop)
}

/// What a process in a user namespace tells of its copy.
#[derive(Serialize, Deserialize)]
enum Word {
    Done(Told),
    /// Which file, as [`escape_bytes`] writes it, and the error's number.
    Failed(String, i32),
    Other(String),
}

/// As [`contents`], where the parent has files that their owner may not read: in a user namespace with only
/// that owner in it, modes do not count. Changing them instead would show in the parent.
fn closed_contents(
    parent: &Sandbox,
    trees: &[(PathBuf, PathBuf)],
    hold: &mut Hold<'_>,
    why: TwinError,
) -> Result<Told> {
    let name = parent.name().to_owned();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let pipe = |source| PrepareError::Io { action: "copy", path: parent.dir.path().to_owned(), source };
    let (mut ours, mut theirs) = UnixStream::pair().map_err(pipe)?;
    let forked = match fork_into(Namespaces::USER, None) {
        Ok(forked) => forked,
        // No such namespace here: it stays at what was found before.
        Err(_) => return Err(ForkError::Copy { name, source: why }),
    };
    let pidfd = match forked {
        Side::Child => {
            drop(ours);
            // Until the ids are mapped.
            let mut go = [0u8; 1];
            if theirs.read_exact(&mut go).is_err() {
                exit_now(1);
            }
            let word = match contents(parent, trees, hold) {
                Ok(told) => Word::Done(told),
                Err(ForkError::Copy { source, .. }) => Word::Failed(
                    escape_bytes(source.path.as_os_str().as_bytes()),
                    source.source.raw_os_error().unwrap_or(5),
                ),
                Err(error) => Word::Other(error.to_string()),
            };
            let _ = theirs.write_all(&serde_json::to_vec(&word).unwrap_or_default());
            exit_now(0);
        }
        Side::Parent { pid, pidfd } => {
            write_id_map(pid, (uid, gid), (uid, gid)).map_err(|source| ForkError::Copy {
                name: name.clone(),
                source: TwinError { path: why.path.clone(), source },
            })?;
            pidfd
        }
    };
    drop(theirs);
    ours.write_all(b"x").map_err(pipe)?;
    let mut word = Vec::new();
    ours.read_to_end(&mut word).map_err(pipe)?;
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
        rustix::process::WaitIdOptions::EXITED,
    );
    match serde_json::from_slice(&word) {
        Ok(Word::Done(told)) => Ok(told),
        Ok(Word::Failed(path, errno)) => {
            let path = PathBuf::from(OsString::from_vec(unescape_bytes(&path)));
            Err(ForkError::Copy { name, source: TwinError { path, source: io::Error::from_raw_os_error(errno) } })
        }
        Ok(Word::Other(said)) => Err(pipe(io::Error::other(said)).into()),
        // It was killed.
        Err(_) => Err(ForkError::Copy { name, source: why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_without_a_name_gets_the_next_number() {
        let all = ["fix", "fix-2", "fix-9", "a-b", "v1-05", "x-99999"].map(numbered);
        assert_eq!(all, [("fix", 2), ("fix", 3), ("fix", 10), ("a-b", 2), ("v1-05", 2), ("x-99999", 2)]);
    }
}
