//! Dropped sandboxes, as they were: `trash/<id>/` is the sandbox's directory, moved by one
//! rename, so that restoring is exact (ignored files, home and nested repositories included).

use crate::id::Name;
use crate::journal::{End, Ids, Journal, Plan, Verb};
use crate::kept;
use crate::names::Names;
use crate::record::{RepoMount, SandboxRecord};
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{Readable, RepoLocks, SandboxDir, Store, StoreError, read_json, write_json, write_twice};
use crate::work::Unsaved;
use sandbox_git::printable;
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Days that a dropped sandbox is kept, unless `sandbox.trashExpiry` says otherwise.
pub const KEEP_DAYS: u64 = 30;

/// A dropped sandbox.
#[derive(Clone, Debug)]
pub struct Trashed {
    /// Where it is.
    pub dir: SandboxDir,
    /// What it was.
    pub record: SandboxRecord,
    /// Seconds since it was dropped.
    pub age_seconds: u64,
    /// Bytes on disk.
    pub disk: u64,
    /// What was in it.
    pub contents: Option<Contents>,
}

/// `trash/<id>/dropped.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    /// Unix seconds.
    pub at: u64,
    /// What was in it that the host had not got.
    #[serde(default)]
    pub contents: Option<Contents>,
}

/// What a dropped sandbox had that the host had not got, as it was found out before it was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Commits that no other ref of the host reached.
    pub commits: usize,
    /// Of submodules, repositories made inside, and the like; one line each, safe to print.
    pub elsewhere: Vec<String>,
    /// Files that were not committed, printable: `M path`.
    pub files: Vec<String>,
    /// How many there were.
    pub file_count: usize,
    /// Changed ignored files.
    pub ignored: usize,
    /// Their bytes.
    pub ignored_bytes: u64,
    /// Nothing could be found out.
    pub unknown: bool,
    /// Why there is no rescue commit, or the vault has nothing of it, in words that are safe to print.
    #[serde(default)]
    pub not_kept: Option<String>,
}

/// Files that are written down by name.
const MOST_FILES: usize = 1000;

impl Contents {
    /// Of what would be lost.
    pub fn of(unsaved: &Unsaved) -> Self {
        let name = |change: &crate::work::ChangedFile| format!("{} {}", change.letter(), printable(&change.path));
        Self {
            commits: unsaved.commits,
            elsewhere: unsaved.elsewhere.iter().map(|line| printable(line.as_bytes())).collect(),
            files: unsaved.files.iter().take(MOST_FILES).map(name).collect(),
            file_count: unsaved.files.len(),
            ignored: unsaved.ignored.len(),
            ignored_bytes: unsaved.ignored_bytes,
            unknown: unsaved.is_unknown(),
            not_kept: None,
        }
    }
}

impl Trashed {
    /// The work tree that it was made of.
    pub fn worktree(&self) -> &Path {
        self.record.repos.first().map_or(Path::new(""), |mount| &mount.worktree)
    }
}

/// Everything in the trash that can be read, newest first.
pub fn list(store: &Store) -> Result<Vec<Trashed>, StoreError> {
    read(store).map(|read| read.whole)
}

/// Everything in the trash, newest first, and what of it cannot be read.
pub fn read(store: &Store) -> Result<Readable<Trashed>, StoreError> {
    let dir = store.root().join("trash");
    let mut all = Readable::default();
    for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
        let entry = entry.map_err(StoreError::io("list", &dir))?;
        let Some(id) = entry.file_name().to_str().and_then(crate::id::SandboxId::parse) else { continue };
        let dir = store.trash(&id);
        let record = match read_json::<SandboxRecord>(&dir.record()) {
            Ok(Some(record)) => record,
            other => {
                all.damaged.extend(other.err());
                continue;
            }
        };
        // A damaged one says as much as none.
        let dropped: Option<Dropped> = read_json(&dir.path().join("dropped.json")).ok().flatten();
        // Where there was no room to write down when, the rename itself is remembered by the file system.
        let moved = || fs::metadata(dir.path()).map_or(unix_seconds(), |meta| u64::try_from(meta.ctime()).unwrap_or(0));
        let age_seconds = unix_seconds().saturating_sub(dropped.as_ref().map_or_else(moved, |dropped| dropped.at));
        let disk = crate::work::disk_of(dir.path());
        let contents = dropped.and_then(|dropped| dropped.contents);
        all.whole.push(Trashed { dir, record, age_seconds, disk, contents });
    }
    // Of two of the same second the rename tells which was the later one.
    let moved = |item: &Trashed| fs::metadata(item.dir.path()).map_or((0, 0), |meta| (meta.ctime(), meta.ctime_nsec()));
    all.whole.sort_by_cached_key(|item| (item.age_seconds, std::cmp::Reverse(moved(item))));
    Ok(all)
}

/// What became of a sandbox that went into the trash.
#[derive(Debug)]
pub struct Discarded<E> {
    /// Where it is now.
    pub dir: SandboxDir,
    /// Why its refs are still there: the next command goes on with it, and its name is not free before.
    pub refs_left: Option<E>,
}

/// Moves a sandbox, whose lock is held and that does not run, into the trash.
/// Needs no room on the disk: on a full one this is how room is made. `remove_refs` takes its refs away
/// once it is safe there: as long as it is not, they stay.
pub fn discard<E>(
    store: &Store,
    sandbox: &Sandbox,
    contents: Option<Contents>,
    lock: FileLock,
    remove_refs: impl FnOnce(&Sandbox) -> Result<(), E>,
) -> Result<Discarded<E>, StoreError> {
    let journal = Journal::of_sandbox(store, &sandbox.record.id);
    let mut op = journal.start(Plan::new(Verb::Drop).of(sandbox.name()).makes_room())?;
    let stop = |name| fault::point(name).map_err(StoreError::io("move away", sandbox.dir.path()));
    stop("trash.away")?;
    op.begin_durably("away", Ids::new())?;
    stop("trash.rename")?;
    let target = store.trash(&sandbox.record.id);
    fs::rename(sandbox.dir.path(), target.path()).map_err(StoreError::io("move away", sandbox.dir.path()))?;
    let there = Sandbox::new(target, sandbox.record.clone());
    note(&there, contents);
    stop("trash.refs")?;
    // Until they are gone nobody else is given the name that they have.
    if let Err(error) = remove_refs(&there) {
        return Ok(Discarded { dir: there.dir, refs_left: Some(error) });
    }
    stop("trash.name")?;
    crate::removal::take_names_back(store, &there.record);
    drop(lock);
    stop("trash.end")?;
    op.end(End::Done);
    Ok(Discarded { dir: there.dir, refs_left: None })
}

/// Writes down when it came into the trash. Can be done again.
pub(crate) fn note(sandbox: &Sandbox, contents: Option<Contents>) {
    let dropped = sandbox.dir.path().join("dropped.json");
    if !dropped.exists() {
        let _ = write_json(&dropped, &Dropped { at: unix_seconds(), contents }, true);
    }
}

/// Brings one back, under its name or, when that was given again, under that name with a number; or under the
/// name that is asked for, which must be free. Returns the name.
pub fn restore(store: &Store, item: &Trashed, wanted: Option<&Name>) -> Result<Name, SandboxError> {
    let mut record = item.record.clone();
    // Names are given under the lock of the repository, and only one of two that restore goes on.
    let _locks = RepoLocks::take(store, item.record.repos.iter().map(|mount| &mount.repo))?;
    let taken = |name: &Name| {
        let names = |mount: &RepoMount| Names::of(&store.repo(&mount.repo));
        record.repos.iter().any(|mount| names(mount).holder(store, name).is_some_and(|id| id != record.id))
    };
    if let Some(name) = wanted.filter(|name| taken(name)) {
        return Err(SandboxError::Taken { name: name.to_string() });
    }
    let mut name = wanted.unwrap_or(&record.name).clone();
    for n in 2.. {
        if !taken(&name) {
            break;
        }
        let stem: String = record.name.as_str().chars().take(crate::id::MAX_NAME - 4).collect();
        name = Name::parse(&format!("{stem}-{n}")).unwrap_or_else(|_| Name::random());
    }
    record.name = name.clone();
    for mount in &record.repos {
        Names::of(&store.repo(&mount.repo)).give(&name, &record.id)?;
    }
    write_twice(&item.dir.record(), &record, true)?;
    let target = store.sandbox(&record.id);
    fs::rename(item.dir.path(), target.path()).map_err(StoreError::io("move back", item.dir.path()))?;
    let _ = fs::remove_file(target.path().join("dropped.json"));
    Ok(name)
}

/// Deletes these for good and returns how many. One that was restored meanwhile is left alone.
pub fn empty(store: &Store, items: &[Trashed]) -> Result<usize, StoreError> {
    let mut op = Journal::of_store(store).start(Plan::new(Verb::Empty).makes_room())?;
    // What is deleted to the end by a later command, if this one is cut.
    op.begin_durably(
        "delete",
        items.iter().map(|item| (item.record.id.to_string(), item.record.name.to_string())).collect(),
    )?;
    let mut deleted = 0;
    for item in items {
        // What the vault has first: as long as the directory is there, nothing is lost.
        if item.dir.record().exists() {
            kept::forget(store, &item.record)?;
        }
        deleted += usize::from(delete_dir(store, item.dir.path())?);
    }
    op.end(End::Done);
    Ok(deleted)
}

/// Deletes one for good; false when it is not there any more. One rename takes it from the trash first: what
/// is being deleted cannot be restored by halves.
pub(crate) fn delete_dir(store: &Store, path: &Path) -> Result<bool, StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = store.tmp().join(format!("dropped-{name}"));
    let stop = |name| fault::point(name).map_err(StoreError::io("delete", path));
    stop("empty.away")?;
    match fs::rename(path, &gone) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(StoreError::Io { action: "move away", path: path.to_owned(), source }),
    }
    stop("empty.delete")?;
    sandbox_capture::remove_tree(&gone).map_err(StoreError::io("delete", &gone))?;
    stop("empty.deleted")?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SandboxId;

    #[test]
    fn what_is_not_in_the_trash_any_more_is_not_deleted() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let id = SandboxId::random();
        let dir = store.trash(&id);
        crate::store::make_dir(&dir.path().join("home")).unwrap();
        fs::rename(dir.path(), store.sandbox(&id).path()).unwrap();
        assert!(!delete_dir(&store, dir.path()).unwrap());
        assert!(store.sandbox(&id).home().exists());
        fs::rename(store.sandbox(&id).path(), dir.path()).unwrap();
        assert!(delete_dir(&store, dir.path()).unwrap());
        assert!(!dir.path().exists());
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
    }

    /// On a full disk nothing can be written, and this is how room is made.
    #[test]
    fn what_cannot_be_written_down_does_not_keep_it_out_of_the_trash() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let record: SandboxRecord = serde_json::from_value(serde_json::json!({
            "id": SandboxId::random().to_string(), "name": "full", "unnamed": false, "driver": "namespace",
            "repos": [], "created": 0, "argv": [], "cwd": "/", "home": "/",
            "user": {"name": "u", "group": "u", "uid": 1000, "gid": 1000, "shell": "/bin/sh", "root": false},
            "env": [], "network": "none", "limits": {},
        }))
        .unwrap();
        let dir = store.sandbox(&record.id);
        // Nothing can take the place of a directory: writing fails, whoever tries.
        crate::store::make_dir(&dir.path().join("dropped.json")).unwrap();
        write_json(&dir.record(), &record, false).unwrap();
        let lock = FileLock::exclusive(&dir.lock_file()).unwrap();
        let gone = |_: &Sandbox| Ok::<(), StoreError>(());
        let there = discard(&store, &Sandbox::new(dir.clone(), record), None, lock, gone).unwrap().dir;
        assert!(!dir.path().exists() && there.record().exists());
        fs::remove_dir(there.path().join("dropped.json")).unwrap();
        let listed = list(&store).unwrap();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].age_seconds < 60, "{}", listed[0].age_seconds);
    }
}
