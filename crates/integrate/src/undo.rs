//! The state before a merge, saved before the first write, and putting it back.
//!
//! ```text
//!   <undo>/undo.json     format, HEAD before and after, per path what was and what will be
//!         index          the index as it was, with its time (absent: there was none)
//!         index.new      the index as it will be (absent: it stays)
//!         files          the bytes of the touched files as they were, one after the other: one fsync
//!         lock, staging  which index.lock and which staging directory are of this merge
//! ```
//!
//! A merge that was cut (`kill -9`, a full disk) and one that is taken back are the same to
//! [`restore`]: each path, the index and HEAD must be as they were or as the merge made them; anything
//! else is work that came later, and nothing is put back.

use crate::error::MergeError;
use crate::index::{Index, IndexLock, copy_index};
use crate::inspect::merge_base;
use crate::path::RepoPath;
use crate::plan::HeadMove;
use crate::refs::Transaction;
use crate::repo::Repo;
use crate::worktree::{Found, Move, State, Worktree};
use rustix::fs::{self as rfs, OFlags};
use sandbox_git::Oid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The format of `undo.json`.
const FORMAT: u32 = 1;

/// `undo.json`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    name: String,
    reference: Option<String>,
    old: Option<Oid>,
    /// `None`: HEAD does not move.
    new: Option<Oid>,
    had_index: bool,
    /// Digest of what the index said.
    index: String,
    paths: Vec<PathRecord>,
}

/// One touched path.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PathRecord {
    /// Hex of the path's bytes: JSON has no bytes.
    path: String,
    before: State,
    after: State,
    /// Permission bits that the file had.
    mode: u32,
    /// Where its bytes are in `files`.
    offset: u64,
    length: u64,
}

/// What is saved beside the paths.
pub(crate) struct Context<'a> {
    pub name: &'a str,
    pub head: Option<&'a HeadMove>,
    /// Digest of what the index said.
    pub index: &'a str,
}

/// Saves the state before the first write, path by path.
pub(crate) struct Saver<'a> {
    dir: &'a Path,
    files: File,
    offset: u64,
    records: Vec<PathRecord>,
    had_index: bool,
}

impl<'a> Saver<'a> {
    /// Begins in an empty directory.
    pub fn begin(repo: &Repo, dir: &'a Path) -> Result<Self, MergeError> {
        let path = dir.join("files");
        let files = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let files = files.map_err(MergeError::io("create", path))?;
        let had_index = copy_index(repo.index(), &dir.join("index"))?;
        Ok(Self { dir, files, offset: 0, records: Vec::new(), had_index })
    }

    /// Saves one path as it is; `after` is what it will be.
    pub fn add(&mut self, path: &RepoPath, found: &Found, after: State) -> Result<(), MergeError> {
        let (offset, mut length, mut mode) = (self.offset, 0, 0);
        if let Found::File(seen) = found {
            (length, mode) = (seen.bytes.len() as u64, seen.stat.mode & 0o7777);
            self.files.write_all(&seen.bytes).map_err(MergeError::io("write", self.dir.join("files")))?;
            self.offset += length;
        }
        let path = crate::index::hex(path.as_bytes());
        self.records.push(PathRecord { path, before: found.state(), after, mode, offset, length });
        Ok(())
    }

    /// Makes it whole and durable.
    pub fn finish(self, context: &Context<'_>) -> Result<(), MergeError> {
        let record = Record {
            format: FORMAT,
            name: context.name.to_owned(),
            reference: context.head.and_then(|head| head.reference.clone()),
            old: context.head.and_then(|head| head.old),
            new: context.head.map(|head| head.new),
            had_index: self.had_index,
            index: context.index.to_owned(),
            paths: self.records,
        };
        let json = serde_json::to_vec_pretty(&record).expect("a record has string keys only");
        let file = self.dir.join("undo.json");
        let write = || {
            let temp = self.dir.join("undo.json.new");
            self.files.sync_all()?;
            write_private(&temp, &json, true)?;
            fs::rename(temp, &file)?;
            File::open(self.dir)?.sync_all()
        };
        write().map_err(MergeError::io("write", &file))
    }
}

fn write_private(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// Puts the state back that was saved in `dir`: takes back a merge, or what is there of one that was
/// cut. Refuses, writing nothing, if a path, the index or HEAD is neither as before nor as the merge
/// made it.
pub fn restore(repo: &Repo, dir: &Path) -> Result<(), MergeError> {
    let Some(record) = read(dir)? else {
        // Cut before the first write.
        remove_own_lock(repo, dir)?;
        return remove_staging(repo, dir);
    };
    remove_own_lock(repo, dir)?;
    let mut lock = take_lock(repo, dir)?;
    let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
    let Back { todo, head, index } = look(repo, dir, &record, &tree)?;
    // From here on another one is noted.
    remove_staging(repo, dir)?;

    if record.new.is_some() && head != record.old {
        let back = HeadMove {
            reference: record.reference.clone(),
            old: head,
            new: record.old.unwrap_or(Oid::null(repo.format())),
        };
        Transaction::prepare(repo, &back, &format!("undo merge of sandbox '{}'", record.name), None)?.commit()?;
    }
    let failed = |source| MergeError::NotRestored { undo: dir.to_owned(), source };
    // Deepest first where something has to go, topmost first where something has to come.
    for (name, path, state) in todo.iter().rev() {
        let goes = matches!(path.before, State::Absent) || (path.before == State::Directory && *state != path.before);
        if *state != State::Absent && goes {
            remove(&tree, repo, dir, name).map_err(failed)?;
        }
    }
    for (name, path, state) in &todo {
        put_back(&tree, repo, dir, name, path, state).map_err(failed)?;
    }
    if index {
        if record.had_index {
            lock.fill(&dir.join("index"), true)?;
            lock.commit().map_err(failed)?;
        } else {
            lock.remove_index().map_err(failed)?;
        }
    }
    remove_staging(repo, dir)
}

/// Says whether [`restore`] would put the state back now, writing nothing: where several trees have to go
/// back together, all are asked first. Nothing to put back any more is no error.
pub fn can_restore(repo: &Repo, dir: &Path) -> Result<(), MergeError> {
    let Some(record) = read(dir)? else { return Ok(()) };
    let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
    look(repo, dir, &record, &tree).map(drop)
}

/// `None`: the merge was cut before its first write.
fn read(dir: &Path) -> Result<Option<Record>, MergeError> {
    let file = dir.join("undo.json");
    let json = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_dir() => return Ok(None),
        other => other.map_err(MergeError::io("read", &file))?,
    };
    let record: Record =
        serde_json::from_slice(&json).map_err(|source| MergeError::Damaged { path: file.clone(), source })?;
    if record.format != FORMAT {
        let source = serde::de::Error::custom(format!("format {} is not known", record.format));
        return Err(MergeError::Damaged { path: file, source });
    }
    Ok(Some(record))
}

/// What has to be put back.
struct Back<'a> {
    /// Each path that is not as it was, and what it is now.
    todo: Vec<(RepoPath, &'a PathRecord, State)>,
    /// Where HEAD is.
    head: Option<Oid>,
    /// The index has to.
    index: bool,
}

/// Compares what is there with what was and what the merge made of it.
fn look<'a>(repo: &Repo, dir: &Path, record: &'a Record, tree: &Worktree) -> Result<Back<'a>, MergeError> {
    let survey = survey(repo, dir, record, tree)?;
    if let Some(what) = survey.changed() {
        return Err(MergeError::ChangedSince { what });
    }
    let todo = survey.paths.into_iter().filter(|(.., path, state)| *state != path.before);
    Ok(Back {
        todo: todo.map(|(_, name, path, state)| (name, path, state)).collect(),
        head: survey.at,
        index: survey.index == Side::After,
    })
}

/// How something that a change touches is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// As it was.
    Before,
    /// As the change makes it.
    After,
    /// The change leaves it as it was.
    Same,
    /// As it can be between two renames.
    Between,
    /// Something else.
    Other,
}

/// Everything that a change touches, as it is now.
struct Survey<'a> {
    index: Side,
    head: Side,
    /// Where HEAD is.
    at: Option<Oid>,
    paths: Vec<(Side, RepoPath, &'a PathRecord, State)>,
}

impl Survey<'_> {
    /// The first thing that is neither as it was nor as the change made it.
    fn changed(&self) -> Option<String> {
        if self.index == Side::Other {
            return Some("the index".into());
        }
        if self.head == Side::Other {
            return Some("HEAD".into());
        }
        self.paths.iter().find(|(side, ..)| *side == Side::Other).map(|(_, name, ..)| format!("'{name}'"))
    }

    /// Whether files or the index are like this.
    fn any(&self, side: Side) -> bool {
        self.index == side || self.paths.iter().any(|(other, ..)| *other == side)
    }
}

fn survey<'a>(repo: &Repo, dir: &Path, record: &'a Record, tree: &Worktree) -> Result<Survey<'a>, MergeError> {
    let index = Index::read(repo)?;
    // Edits leave the index alone, so it may have changed since.
    let new = dir.join("index.new");
    let index = if new.exists() {
        let after = Index::read_file(repo, &new)?.digest;
        match (index.digest == record.index, index.digest == after) {
            (true, true) => Side::Same,
            (true, false) => Side::Before,
            (false, true) => Side::After,
            (false, false) => Side::Other,
        }
    } else {
        Side::Same
    };
    let now = repo.head()?;
    let head = match record.new {
        None => Side::Same,
        Some(_) if now.reference != record.reference => Side::Other,
        Some(new) if now.commit == Some(new) => Side::After,
        Some(_) if now.commit == record.old => Side::Before,
        Some(_) => Side::Other,
    };
    let name = |path: &PathRecord| path.name().ok_or_else(|| MergeError::BadPath { path: path.path.clone() });
    let names = record.paths.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let mut paths = Vec::new();
    for (path, name) in record.paths.iter().zip(&names) {
        let state = tree.look(name).map_err(MergeError::io("read", name.as_path()))?.state();
        // A file that was removed may have given its place to a directory.
        let replaced =
            state == State::Directory && path.after == State::Absent && names.iter().any(|n| n.is_below(name));
        let side = match (state == path.before, state == path.after) {
            (true, true) => Side::Same,
            (true, false) => Side::Before,
            (false, true) => Side::After,
            _ if replaced => Side::After,
            // Between two renames of a cut merge.
            _ if state == State::Absent => Side::Between,
            _ => Side::Other,
        };
        paths.push((side, name.clone(), path, state));
    }
    Ok(Survey { index, head, at: now.commit, paths })
}

/// How a working tree stands to a change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of it is there.
    Before,
    /// Some of it is there, and [`restore`] puts back what was.
    Cut,
    /// It came past its last step. `since`: what was changed later, so that it cannot be taken back now.
    CarriedOut {
        /// In words.
        since: Option<String>,
    },
    /// Some of it is there, and something else that came later.
    Changed {
        /// In words.
        what: String,
    },
}

/// Says how far a change came whose former state is in `dir`, writing nothing. The last step is HEAD's move: a
/// branch that has the new commit says that all of it was done, even if work came later. A file or an index that
/// is still as it was says that it was not, as after a power cut.
///
/// # Errors
///
/// When the record or the working tree cannot be read.
pub fn standing(repo: &Repo, dir: &Path) -> Result<Standing, MergeError> {
    if !dir.exists() {
        return Ok(Standing::Before);
    }
    let Some(record) = read(dir)? else { return Ok(Standing::Before) };
    let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
    let survey = survey(repo, dir, &record, &tree)?;
    let since = survey.changed();
    if survey.head == Side::Other && has_new(repo, &record, survey.at)? {
        return Ok(Standing::CarriedOut { since });
    }
    let rest = survey.any(Side::Before) || survey.head == Side::Before;
    let carried_out = match survey.head {
        Side::After => !rest,
        Side::Same => !rest && !survey.any(Side::Between) && since.is_none(),
        _ => false,
    };
    if carried_out {
        // What is gone was removed later.
        let gone = survey.paths.iter().find(|(side, ..)| *side == Side::Between);
        return Ok(Standing::CarriedOut { since: since.or(gone.map(|(_, name, ..)| format!("'{name}'"))) });
    }
    Ok(match since {
        Some(what) => Standing::Changed { what },
        None if survey.any(Side::After) || survey.any(Side::Between) || survey.head == Side::After => Standing::Cut,
        None => Standing::Before,
    })
}

/// Whether the new commit is in the history of HEAD, wherever that is by now.
fn has_new(repo: &Repo, record: &Record, head: Option<Oid>) -> Result<bool, MergeError> {
    let (Some(new), Some(head)) = (record.new, head) else { return Ok(false) };
    Ok(merge_base(repo, new, head)? == Some(new))
}

/// Removes what a change that was [carried out](Standing::CarriedOut) and then cut left beside it.
///
/// # Errors
///
/// When it cannot be removed.
pub fn settle(repo: &Repo, dir: &Path) -> Result<(), MergeError> {
    remove_own_lock(repo, dir)?;
    remove_staging(repo, dir)
}

/// Removes the staging directory of a change that was cut; everything in it is in `dir` too.
fn remove_staging(repo: &Repo, dir: &Path) -> Result<(), MergeError> {
    let Ok(noted) = fs::read(dir.join("staging")) else { return Ok(()) };
    let name = Path::new(std::ffi::OsStr::from_bytes(&noted));
    // Only a name was noted: nothing but a directory of ours can be meant.
    if name.components().count() != 1 || !noted.starts_with(STAGING.as_bytes()) {
        return Ok(());
    }
    for parent in [repo.gitdir(), repo.worktree()] {
        match fs::remove_dir_all(parent.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MergeError::io("remove", parent.join(name))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl PathRecord {
    fn name(&self) -> Option<RepoPath> {
        let hex = self.path.as_bytes();
        let digit = |b: u8| (b as char).to_digit(16);
        let bytes: Option<Vec<u8>> =
            hex.chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8)).collect();
        RepoPath::parse(&bytes?)
    }
}

/// Removes the lock of a merge that was cut, if it is the one that was noted, and its marks on packs.
fn remove_own_lock(repo: &Repo, dir: &Path) -> Result<(), MergeError> {
    crate::publish::sweep(repo)?;
    let mut lock = repo.index().to_owned().into_os_string();
    lock.push(".lock");
    let lock = Path::new(&lock);
    match fs::remove_file(lock_to_be(repo, dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(MergeError::io("remove", lock_to_be(repo, dir))(error));
        }
        _ => {}
    }
    let (Ok(noted), Ok(found)) = (fs::read(dir.join("lock")), lock_note(lock)) else { return Ok(()) };
    if noted == found {
        fs::remove_file(lock).map_err(MergeError::io("remove", lock))?;
    }
    Ok(())
}

/// Takes the index's lock, noted in `dir` before it is one: whenever a merge is cut, its lock is known to be its own.
pub(crate) fn take_lock(repo: &Repo, dir: &Path) -> Result<IndexLock, MergeError> {
    let file = lock_to_be(repo, dir);
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&file);
    made.map_err(MergeError::io("create", &file))?;
    let note = || write_private(&dir.join("lock"), &lock_note(&file)?, false);
    let lock = note().map_err(MergeError::io("write", dir)).and_then(|()| {
        sandbox_sys::fault::point("merge.lock").map_err(MergeError::io("create", &file))?;
        match IndexLock::take_as(repo, &file) {
            // A file system without hard links.
            Err(MergeError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                let lock = IndexLock::take(repo)?;
                let note = write_private(&dir.join("lock"), &lock_note(lock.path()).unwrap_or_default(), false);
                note.map_err(MergeError::io("write", dir)).map(|()| lock)
            }
            other => other,
        }
    });
    let removed = fs::remove_file(&file).map_err(MergeError::io("remove", &file));
    let lock = lock?;
    removed.map(|()| lock)
}

/// What becomes the index's lock, beside it: its name is told by that of the undo directory.
fn lock_to_be(repo: &Repo, dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    repo.index().with_file_name(format!("{STAGING}{name}.lock"))
}

fn lock_note(lock: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(lock)?;
    // With its birth: an inode number is given again.
    let born = meta.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{} {} {}", meta.dev(), meta.ino(), born.unwrap_or_default().as_nanos()).into_bytes())
}

/// Removes what the merge made: moved out first, so that a racing change is not lost.
fn remove(tree: &Worktree, repo: &Repo, dir: &Path, name: &RepoPath) -> io::Result<()> {
    match tree.look(name)? {
        Found::Directory => drop(tree.remove_dir(name)?),
        Found::Absent { .. } => {}
        _ => {
            let staging = Staging::new(repo, tree, dir)?;
            tree.rename(name, staging.fd(), "old", Move::Out)?;
        }
    }
    for dir in name.ancestors() {
        if tree.remove_dir(&dir)?.is_none() {
            break;
        }
    }
    Ok(())
}

fn put_back(
    tree: &Worktree,
    repo: &Repo,
    dir: &Path,
    name: &RepoPath,
    path: &PathRecord,
    state: &State,
) -> io::Result<()> {
    match path.before {
        State::Absent | State::Special => return Ok(()),
        State::Directory => {
            tree.make_parents(name, &mut Vec::new())?;
            return tree.make_dir(name).map(drop);
        }
        State::File { .. } | State::Symlink { .. } => {}
    }
    if *state == State::Directory {
        tree.remove_dir(name)?;
    }
    let staging = Staging::new(repo, tree, dir)?;
    let mut bytes = vec![0; path.length as usize];
    File::open(dir.join("files"))?.read_exact_at(&mut bytes, path.offset)?;
    let symlink = matches!(path.before, State::Symlink { .. });
    staging.put("old", symlink, &bytes, path.mode, None)?;
    tree.make_parents(name, &mut Vec::new())?;
    let how = if tree.identity(name)?.is_some() { Move::Exchange } else { Move::In };
    tree.rename(name, staging.fd(), "old", how)
}

/// How the names of staging directories begin.
const STAGING: &str = ".sandbox-merge.";

/// A directory on the working tree's file system where files wait for their rename.
pub(crate) struct Staging {
    dir: tempfile::TempDir,
    fd: std::os::fd::OwnedFd,
}

impl Staging {
    /// Below the git directory if that is on the same file system, where no watcher of the working tree
    /// sees it; else at the top of the working tree. Its name is noted in `undo` before it is made: whoever is killed
    /// leaves none that nobody knows of.
    pub fn new(repo: &Repo, tree: &Worktree, undo: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let same = fs::metadata(repo.gitdir())?.dev() == tree.device()?;
        let at = if same { repo.gitdir() } else { repo.worktree() };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let name = format!("{STAGING}{}-{}.{:09}", std::process::id(), now.tv_sec, now.tv_nsec);
        write_private(&undo.join("staging"), name.as_bytes(), false)?;
        let dir = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir_in(at)?;
        let fd = rfs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rfs::Mode::empty())?;
        Ok(Self { dir, fd })
    }

    pub fn fd(&self) -> &std::os::fd::OwnedFd {
        &self.fd
    }

    /// Leaves the directory where it is.
    pub fn keep(self) {
        let _ = self.dir.keep();
    }

    /// Writes a file or symlink. `mode` 0: as the umask gives it. `owner`: of the file that it replaces.
    pub fn put(&self, name: &str, symlink: bool, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        let path = self.dir.path().join(name);
        if symlink {
            return std::os::unix::fs::symlink(std::ffi::OsString::from_vec(bytes.to_vec()), &path);
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path)?;
        file.write_all(bytes)?;
        if let Some((uid, gid)) = owner {
            // Root works in trees of others; anybody else cannot, and need not.
            use std::os::unix::fs::MetadataExt;
            let meta = file.metadata()?;
            if (meta.uid(), meta.gid()) != (uid, gid) {
                let _ = std::os::unix::fs::fchown(&file, Some(uid), Some(gid));
            }
        }
        if mode != 0 {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        }
        Ok(())
    }

    /// Makes a file executable for whom it is readable.
    pub fn make_executable(&self, name: &str) -> io::Result<()> {
        let path = self.dir.path().join(name);
        let mode = fs::metadata(&path)?.permissions().mode();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))
    }

    /// What a staged file is now.
    pub fn identity(&self, name: &str) -> io::Result<crate::worktree::Identity> {
        crate::worktree::identity_at(&self.fd, std::ffi::OsStr::from_bytes(name.as_bytes()))
    }
}
