//! What a sandbox changed whose writes are on a disk that only its guest mounts: its upper directories here are a
//! picture that the guest draws when somebody asks, and nothing is ever mounted from them.
//!
//! ```text
//!   asked for ──► fresh?  the disk has not changed since, or this very command asked            yes ─► use it
//!                   │ no
//!                   └──► `__picture-inside`, in the running guest or in a helper over its disk
//!                          ─► trees/<n>/upper made anew, by descriptor beneath its root
//!                          ─► picture.json
//! ```
//!
//! One that was drawn while nobody else was inside, and after which nobody began to work, is what the disk has when
//! the guest has switched itself off: it is good for the disk as it is then ([`settle`]), and no helper need look.
//!
//! It is what the sandbox says of itself, as an upper directory on the host is: nothing in it is followed, and what
//! was not seen counts as changed. It never holds more of a file than was sent, and a file whose contents were not
//! sent is none that could be read.

use crate::connection::{Connection, ConnectionError};
use crate::record::Snapshot;
use crate::sandbox::{Sandbox, SandboxError, State};
use crate::store::{SandboxDir, Store, StoreError, read_json, write_json};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use sandbox_protocol::{
    Exec, ExitStatus, PICTURE_VERB, PROGRAM, PictureEntry, PictureKind, PictureQuestion, escape_bytes, is_alone,
    read_entry,
};
use sandbox_sys::beneath::{LOOK, open_beneath};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of the largest file whose contents are taken.
const FILE: u64 = 64 << 20;

/// Bytes of all contents of one tree.
const ALL: u64 = 160 << 20;

/// Bytes of one picture.
const MOST: usize = 256 << 20;

/// Entries of one picture.
const ENTRIES: usize = 1_000_000;

/// A file is not made longer than this.
const LONGEST: u64 = 1 << 40;

/// How long a guest may take for one tree.
const TIME: Duration = Duration::from_secs(120);

/// How long one is good for the command that asked for it, while the guest goes on.
const WHILE_RUNNING: Duration = Duration::from_secs(60);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its guest.
    #[error("the sandbox '{name}' does not tell what it changed")]
    Asked {
        /// Which.
        name: String,
        /// Why.
        source: ConnectionError,
    },
    /// What it said.
    #[error("what the sandbox '{name}' tells of its changes cannot be used: {why}")]
    Said {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the picture.
    #[error("cannot write '{path}'", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, PictureError>;

/// `sandboxes/<id>/picture.json`: what the picture is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Drawn {
    /// The disk then.
    disk: Option<DiskState>,
    /// Who asked, and when (seconds since the machine was started).
    by: u32,
    at: u64,
    /// All of these paths is in it too, by tree.
    whole: Vec<(usize, String)>,
    /// When it was begun (see [`instant`]), if nobody else was inside.
    #[serde(default)]
    alone: Option<u64>,
}

/// A disk that was not written to has the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DiskState {
    ino: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// The disk of a sandbox whose writes are not on the host.
pub fn disk(sandbox: &Sandbox) -> PathBuf {
    sandbox.dir.disk()
}

fn drawn_file(sandbox: &Sandbox) -> PathBuf {
    drawn_in(&sandbox.dir)
}

fn drawn_in(dir: &SandboxDir) -> PathBuf {
    dir.path().join("picture.json")
}

fn disk_state(sandbox: &Sandbox) -> Option<DiskState> {
    state_of(&disk(sandbox))
}

fn state_of(disk: &Path) -> Option<DiskState> {
    let facts = fs::symlink_metadata(disk).ok()?;
    let (mtime, ctime) = ((facts.mtime(), facts.mtime_nsec()), (facts.ctime(), facts.ctime_nsec()));
    Some(DiskState { ino: facts.ino(), mtime, ctime })
}

fn now() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec as u64
}

/// A point of time: nanoseconds since this machine was started.
pub fn instant() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The picture that is there was begun after `since` (an [`instant`]), and nobody else was inside.
pub fn is_last(dir: &SandboxDir, since: u64) -> bool {
    last(dir, since).is_some()
}

fn last(dir: &SandboxDir, since: u64) -> Option<Drawn> {
    let drawn: Drawn = read_json(&drawn_in(dir)).ok().flatten()?;
    (drawn.alone? > since).then_some(drawn)
}

/// The guest has switched itself off, and nobody has begun to work in it after `since`: if the picture is of what
/// was left then ([`is_last`]), it is the disk's.
pub fn settle(dir: &SandboxDir, since: u64) -> std::result::Result<(), StoreError> {
    let Some((mut drawn, disk)) = last(dir, since).zip(state_of(&dir.disk())) else { return Ok(()) };
    crate::brought::settle(dir, &name_of_alone(drawn.alone), &name_of(&disk))?;
    drawn.disk = Some(disk);
    write_json(&drawn_in(dir), &drawn, false)
}

/// What stands for all that a guest's disk holds, for one that is asked now: it changes with the disk. Of one that
/// runs, only if this very process has seen that nobody else is inside.
pub(crate) fn disk_name(sandbox: &Sandbox) -> Option<String> {
    if sandbox.state().ok()? != State::Running {
        return disk_state(sandbox).map(|disk| name_of(&disk));
    }
    own_alone(sandbox).map(|drawn| name_of_alone(drawn.alone))
}

/// This process has seen what changed in one that runs, and nobody else was inside.
pub fn seen_alone(sandbox: &Sandbox) -> bool {
    own_alone(sandbox).is_some()
}

fn own_alone(sandbox: &Sandbox) -> Option<Drawn> {
    let drawn: Option<Drawn> = read_json(&drawn_file(sandbox)).ok().flatten();
    drawn.filter(|drawn| drawn.by == std::process::id() && drawn.alone.is_some())
}

fn name_of(disk: &DiskState) -> String {
    format!("disk {disk:?}")
}

fn name_of_alone(alone: Option<u64>) -> String {
    format!("alone {alone:?}")
}

/// What is below the sandbox's upper directories is what it changed, with all of `whole` (by tree, as
/// [`escape_bytes`] writes paths). Always where it writes to the host itself.
pub fn is_fresh(sandbox: &Sandbox, whole: &[(usize, String)]) -> std::result::Result<bool, SandboxError> {
    if !sandbox.record.guest_disk {
        return Ok(true);
    }
    let state = sandbox.state()?;
    let disk = disk_state(sandbox);
    if state != State::Running && disk.is_none() {
        // It was never started.
        return Ok(true);
    }
    let drawn: Option<Drawn> = read_json(&drawn_file(sandbox)).ok().flatten();
    let Some(drawn) = drawn.filter(|drawn| whole.iter().all(|path| drawn.whole.contains(path))) else {
        return Ok(false);
    };
    Ok(match state {
        State::Running => drawn.by == std::process::id() && now() < drawn.at + WHILE_RUNNING.as_secs(),
        _ => drawn.disk == disk,
    })
}

/// Has the guest at the other end draw it, and keeps it.
pub fn take(connection: &mut Connection, store: &Store, sandbox: &Sandbox, whole: &[(usize, String)]) -> Result<()> {
    // As it was before: what is written meanwhile is not in it.
    let (disk, began) = (disk_state(sandbox), instant());
    let mut alone = true;
    for tree in sandbox.trees().filter(|tree| !tree.mount().read_only) {
        let snapshot = tree.snapshot(store)?;
        let question = question(&tree, &snapshot, whole);
        let said = ask(connection, &tree, &question)?;
        keep(&tree, &said)?;
        alone &= is_alone(&said);
    }
    let alone = alone.then_some(began);
    let drawn = Drawn { disk, by: std::process::id(), at: now(), whole: whole.to_vec(), alone };
    Ok(write_json(&drawn_file(sandbox), &drawn, false)?)
}

/// As [`take`] unless it is fresh; whether what changed is known then.
pub fn see(connection: &mut Connection, store: &Store, sandbox: &Sandbox) -> bool {
    is_fresh(sandbox, &[]).unwrap_or(false) || take(connection, store, sandbox, &[]).is_ok()
}

fn question(tree: &Sandbox, snapshot: &Snapshot, whole: &[(usize, String)]) -> PictureQuestion {
    let mount = tree.mount();
    let view = |view: &crate::record::ViewRecord| (escape_bytes(view.path.as_os_str().as_bytes()), view.base.clone());
    let mut whole: Vec<String> = whole.iter().filter(|(n, _)| *n == tree.tree).map(|(_, path)| path.clone()).collect();
    if mount.directory {
        // Nothing commits and nothing ignores.
        whole.push(String::new());
    }
    PictureQuestion {
        tree: escape_bytes(mount.worktree.as_os_str().as_bytes()),
        number: tree.tree,
        repos: if mount.directory { Vec::new() } else { snapshot.git.views.iter().map(view).collect() },
        whole,
        seconds: TIME.as_secs(),
        file_bytes: FILE,
        total_bytes: ALL,
    }
}

fn ask(connection: &mut Connection, tree: &Sandbox, question: &PictureQuestion) -> Result<Vec<u8>> {
    let input = serde_json::to_vec(question).unwrap_or_default();
    let argv = vec![PROGRAM.to_owned(), PICTURE_VERB.into()];
    let exec = Exec { argv, cwd: "/".into(), internal: true, ..Exec::default() };
    let name = || tree.name().to_owned();
    match connection.run_within(exec, &input, MOST, TIME + Duration::from_secs(10)) {
        Ok((ExitStatus::Code(0), said, _)) => Ok(said),
        Ok((status, _, words)) => {
            let text = String::from_utf8_lossy(&words);
            let line = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
            let line: String = sandbox_git::printable(line.as_bytes()).chars().take(300).collect();
            let why = if line.is_empty() { format!("status {}", status.shell()) } else { line };
            Err(PictureError::Said { name: name(), why })
        }
        Err(source) => Err(PictureError::Asked { name: name(), source }),
    }
}

/// Makes a tree's upper directory anew out of a picture.
fn keep(tree: &Sandbox, said: &[u8]) -> Result<()> {
    let upper = tree.upper();
    let next = upper.with_file_name("picture");
    let io = |source| PictureError::Io { path: next.clone(), source };
    if next.symlink_metadata().is_ok() {
        sandbox_capture::remove_tree(&next).map_err(io)?;
    }
    fs::create_dir(&next).map_err(io)?;
    let root = rustix::fs::open(&next, LOOK, Mode::empty()).map_err(|error| io(error.into()))?;
    let said_wrong = |why: String| PictureError::Said { name: tree.name().to_owned(), why };
    let mut rest = said;
    let mut entries = 0;
    while let Some(entry) = read_entry(&mut rest).map_err(|error| said_wrong(error.to_string()))? {
        entries += 1;
        if entries > ENTRIES {
            return Err(said_wrong(format!("it has more than {ENTRIES} entries")));
        }
        make(root.as_fd(), &entry).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => io(error),
            _ => said_wrong(format!("'{}': {error}", sandbox_git::printable(&entry.path))),
        })?;
    }
    sandbox_capture::remove_tree(&upper).map_err(io)?;
    fs::rename(&next, &upper).map_err(io)
}

fn make(root: BorrowedFd<'_>, entry: &PictureEntry) -> io::Result<()> {
    let cut = entry.path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = cut.map_or((&b""[..], &entry.path[..]), |cut| (&entry.path[..cut], &entry.path[cut + 1..]));
    let dir = open_beneath(root, parent, LOOK)?;
    // Our own, and readable, whatever it is there; else a file that was captured like that would seem changed.
    let mode = Mode::from_raw_mode(0o400 | (entry.mode & 0o777));
    match entry.kind {
        PictureKind::Directory => match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            made => made?,
        },
        PictureKind::File => file(&dir, name, mode, entry)?,
        PictureKind::Link => rustix::fs::symlinkat(&entry.data[..], &dir, name)?,
        PictureKind::Gone => {
            let device = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(&dir, name, device, Mode::empty(), 0)?;
        }
        PictureKind::Other => {
            rustix::fs::mknodat(&dir, name, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        }
    }
    Ok(())
}

fn file(dir: &OwnedFd, name: &[u8], mode: Mode, entry: &PictureEntry) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = fs::File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    rustix::fs::fchmod(&file, mode)?;
    file.write_all(&entry.data)?;
    if entry.data.is_empty() {
        file.set_len(entry.size.min(LONGEST))?;
    }
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: i64::from(entry.mtime.1) };
    rustix::fs::utimensat(
        dir,
        name,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(entries: &[(&str, PictureKind, &str)]) -> std::result::Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), LOOK, Mode::empty()).unwrap();
        for (path, kind, data) in entries {
            let (path, data) = (path.as_bytes().to_owned(), data.as_bytes().to_owned());
            let entry = PictureEntry { path, kind: *kind, mode: 0o755, mtime: (7, 8), size: 9, data };
            make(root.as_fd(), &entry).map_err(|error| error.to_string())?;
        }
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let facts = entry.metadata().unwrap();
                format!("{} {:o} {}", entry.file_name().to_string_lossy(), facts.mode() & 0o7777, facts.len())
            })
            .collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn a_picture_is_made_of_files_of_our_own() {
        use PictureKind::{Directory, File, Gone, Other};
        let entries = [
            ("d", Directory, ""),
            ("d", Directory, ""),
            ("d/f", File, "text"),
            ("h", File, ""),
            ("g", Gone, ""),
            ("o", Other, ""),
        ];
        let seen = made(&entries).unwrap();
        assert!(seen[1..].iter().map(String::as_str).eq(["g 0 0", "h 755 9", "o 600 0"]), "{seen:?}");
    }

    /// Looked at again only if nobody worked after it was begun, and only for what was asked then.
    #[test]
    fn the_last_one_is_good_for_the_disk_as_it_is_at_the_end() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path()).unwrap();
        let dir = store.sandbox(&crate::id::SandboxId::random());
        fs::create_dir_all(dir.path()).unwrap();
        let drawn = |alone| Drawn { disk: None, by: 1, at: 0, whole: Vec::new(), alone };
        let write = |alone| write_json(&drawn_in(&dir), &drawn(alone), false).unwrap();
        let known = || read_json::<Drawn>(&drawn_in(&dir)).unwrap().unwrap().disk;
        settle(&dir, 0).unwrap();
        fs::write(dir.disk(), "x").unwrap();
        write(None);
        settle(&dir, 0).unwrap();
        write(Some(5));
        assert!(!is_last(&dir, 5));
        settle(&dir, 5).unwrap();
        assert_eq!(known(), None, "somebody was there, or came later");
        assert!(is_last(&dir, 4));
        settle(&dir, 4).unwrap();
        assert!(known().is_some() && known() == state_of(&dir.disk()));
    }

    #[test]
    fn nothing_is_written_through_a_link_or_over_what_is_there() {
        use PictureKind::{File, Link};
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_string_lossy().into_owned();
        assert!(made(&[("l", Link, &target), ("l/x", File, "harm")]).unwrap_err().contains("Not a directory"));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(made(&[("f", File, "a"), ("f", File, "b")]).unwrap_err().contains("File exists"));
        assert!(made(&[("no/such", File, "a")]).is_err());
    }
}
