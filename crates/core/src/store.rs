//! The state directory: where everything is, and how files appear in it.
//!
//! The layout is drawn in `docs/on-disk-format.md`, and nowhere else.
//!
//! Locks are `flock`s held by the process that uses them, in the order store < repository <
//! sandbox: dying releases them. A file appears whole: written beside, renamed.

use crate::id::{LayerId, RepoId, SandboxId, SnapshotId, StoreId};
use crate::space::{self, Need, NoRoom, Reserve};
use crate::sum;
use sandbox_protocol::{escape_bytes, unescape_bytes};
use sandbox_sys::lock::FileLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format that this build writes.
pub const FORMAT: u32 = 1;

/// What may be in a state directory before its format is written.
const PARTS: &[&str] = &["format", "id", "lock", "repos", "sandboxes", "trash", "tmp", "open"];

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    newer: Option<u32>,
    reserve: Reserve,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer program wrote it: reading is possible, writing is not.
    #[error("the state directory '{path}' has format {found}, this program writes {FORMAT}", path = path.display())]
    Newer {
        /// The state directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Not a state directory.
    #[error("'{path}' is not a git-sandbox state directory", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It is a copy, and the original is there.
    #[error("the state directory '{path}' is a copy of '{original}', which is still there",
        path = path.display(), original = original.display())]
    Copied {
        /// The copy.
        path: PathBuf,
        /// The original.
        original: PathBuf,
    },
    /// A file could not be read or written.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of ours does not parse.
    #[error("'{path}' is damaged", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        source: serde_json::Error,
    },
}

/// Records of one kind: those that could be read, and why not of the others. One that is damaged harms nobody else.
#[derive(Debug)]
pub struct Readable<T> {
    /// What was read.
    pub whole: Vec<T>,
    /// One for each that could not be.
    pub damaged: Vec<StoreError>,
}

impl<T> Default for Readable<T> {
    fn default() -> Self {
        Self { whole: Vec::new(), damaged: Vec::new() }
    }
}

impl<T> Readable<T> {
    /// Adds what came of reading one; none is no record.
    pub fn add(&mut self, read: Result<Option<T>>) {
        match read {
            Ok(record) => self.whole.extend(record),
            Err(error) => self.damaged.push(error),
        }
    }
}

impl StoreError {
    /// The file or directory that it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Newer { path, .. }
            | Self::Foreign { path }
            | Self::Copied { path, .. }
            | Self::Io { path, .. }
            | Self::Damaged { path, .. } => path,
        }
    }

    /// Wraps an I/O error with what was done to which file.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

type Result<T> = std::result::Result<T, StoreError>;

impl Store {
    /// Opens the state directory, making it (mode 0700) when it does not exist.
    ///
    /// A store of a newer format opens for reading; [`Store::writable`] then refuses.
    pub fn open(root: &Path) -> Result<Self> {
        let format = root.join("format");
        let newer = match fs::read_to_string(&format) {
            Ok(text) => match text.trim().strip_prefix("git-sandbox ").and_then(|n| n.parse::<u32>().ok()) {
                Some(FORMAT) => None,
                Some(found) => Some(found),
                None => return Err(StoreError::Foreign { path: root.to_owned() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Another command may be making it at this moment: only what is not ours is foreign.
                let foreign = |entry: io::Result<fs::DirEntry>| {
                    entry.is_ok_and(|entry| {
                        let name = entry.file_name();
                        let name = name.to_string_lossy();
                        !PARTS.contains(&&*name) && !name.starts_with(".lock.") && !name.starts_with(".format.")
                    })
                };
                if fs::read_dir(root).is_ok_and(|mut entries| entries.any(foreign)) {
                    return Err(StoreError::Foreign { path: root.to_owned() });
                }
                make_dir(root)?;
                for part in ["repos", "sandboxes", "trash", "tmp", "open"] {
                    make_dir(&root.join(part))?;
                }
                if !root.join("lock").exists() {
                    write_whole(&root.join("lock"), b"", false)?;
                }
                write_whole(&format, format!("git-sandbox {FORMAT}\n").as_bytes(), true)?;
                None
            }
            Err(source) => return Err(StoreError::Io { action: "read", path: format, source }),
        };
        Ok(Self { root: root.to_owned(), newer, reserve: Reserve::None })
    }

    /// The same, with a part of its disk kept for the host: what would take of it is refused before it is begun.
    pub fn with_reserve(self, reserve: Reserve) -> Self {
        Self { reserve, ..self }
    }

    /// What is kept of its disk.
    pub fn reserve(&self) -> Reserve {
        self.reserve
    }

    /// Refuses what cannot fit on its disk.
    pub fn has_room(&self, need: Need) -> std::result::Result<(), NoRoom> {
        space::check(&self.root, self.reserve, need)
    }

    /// Refuses when a newer program wrote this store.
    pub fn writable(&self) -> Result<()> {
        match self.newer {
            None => Ok(()),
            Some(found) => Err(StoreError::Newer { path: self.root.clone(), found }),
        }
    }

    /// The id of this state directory, made when it is first asked for: refs of the host say by it whose they are.
    pub fn id(&self) -> Result<StoreId> {
        let path = self.root.join("id");
        let read = || match fs::read_to_string(&path) {
            Ok(text) => Ok(StoreId::parse(text.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        };
        if let Some(id) = read()? {
            self.at_home(&id)?;
            return Ok(id);
        }
        // Whoever is first gives it, for all.
        let id = StoreId::random();
        let made = self.tmp().join(format!("id-{id}"));
        write_whole(&made, format!("{id}\n").as_bytes(), true)?;
        let linked = fs::hard_link(&made, &path);
        let _ = fs::remove_file(&made);
        let id = match (linked, read()?) {
            (_, Some(id)) => id,
            (Err(source), None) => return Err(StoreError::Io { action: "write", path, source }),
            (Ok(()), None) => id,
        };
        self.at_home(&id)?;
        Ok(id)
    }

    /// Refuses a copy of a state directory that is still there: refs would be of both, and each would take those of
    /// the other for its own. One that was moved or restored is where it is now.
    fn at_home(&self, id: &StoreId) -> Result<()> {
        let inode = |root: &Path| fs::metadata(root).map(|meta| meta.ino());
        let here = inode(&self.root).map_err(StoreError::io("look at", &self.root))?;
        let noted = fs::read_to_string(self.root.join("id.at")).ok();
        let noted = noted.as_deref().and_then(|text| text.trim_end().split_once(' '));
        let noted = noted.and_then(|(inode, path)| {
            Some((inode.parse::<u64>().ok()?, PathBuf::from(OsString::from_vec(unescape_bytes(path)))))
        });
        let has_id = |root: &Path| fs::read_to_string(root.join("id")).is_ok_and(|text| text.trim() == id.as_str());
        match noted {
            Some((known, _)) if known == here => Ok(()),
            Some((known, path)) if inode(&path).is_ok_and(|inode| inode == known) && has_id(&path) => {
                Err(StoreError::Copied { path: self.root.clone(), original: path })
            }
            _ => self.note_place(here),
        }
    }

    fn note_place(&self, inode: u64) -> Result<()> {
        let text = format!("{inode} {}\n", escape_bytes(self.root.as_os_str().as_bytes()));
        write_whole(&self.root.join("id.at"), text.as_bytes(), false)
    }

    /// Gives a copy an id of its own: refs that both had stay with the original.
    pub fn become_another(&self) -> Result<StoreId> {
        let id = StoreId::random();
        write_whole(&self.root.join("id"), format!("{id}\n").as_bytes(), true)?;
        self.note_place(fs::metadata(&self.root).map_err(StoreError::io("look at", &self.root))?.ino())?;
        Ok(id)
    }

    /// The next number of a sandbox. Two at once get two; one that a power cut tore is the first again.
    pub fn next_sequence(&self) -> Result<u64> {
        use std::os::unix::fs::FileExt;
        let path = self.root.join("sequence");
        let next = || -> io::Result<u64> {
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            let mut bytes = [0u8; 20];
            let length = file.read_at(&mut bytes, 0)?;
            let last = std::str::from_utf8(&bytes[..length]).ok().and_then(|text| text.trim().parse::<u64>().ok());
            let next = last.unwrap_or(0).saturating_add(1);
            // Of one width, so that no digit of the last one stays.
            file.write_all_at(format!("{next:019}\n").as_bytes(), 0)?;
            Ok(next)
        };
        next().map_err(StoreError::io("write", &path))
    }

    /// The state directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `lock`, the store's own.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Repositories without a working tree, which stand for upstreams (`spawn --from-mirror`).
    pub fn mirrored(&self) -> PathBuf {
        self.root.join("mirrored")
    }

    /// Where half-made things are put.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where a dropped sandbox waits for being deleted.
    pub fn dropped(&self, id: &SandboxId) -> PathBuf {
        self.tmp().join(format!("dropped-{id}"))
    }

    /// Markers of operations under way ([`crate::journal`]).
    pub fn open_operations(&self) -> PathBuf {
        self.root.join("open")
    }

    /// `repos/<id>`.
    pub fn repo(&self, id: &RepoId) -> RepoDir {
        RepoDir { path: self.root.join("repos").join(id), reserve: self.reserve }
    }

    /// `sandboxes/<id>`.
    pub fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.root.join("sandboxes").join(id))
    }

    /// `trash/<id>`.
    pub fn trash(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.root.join("trash").join(id))
    }

    /// Ids of all directories under `sandboxes`, half-made ones included, sorted.
    pub fn sandbox_ids(&self) -> Result<Vec<SandboxId>> {
        list_ids(&self.root.join("sandboxes"), SandboxId::parse)
    }

    /// Ids of all repositories, sorted.
    pub fn repo_ids(&self) -> Result<Vec<RepoId>> {
        list_ids(&self.root.join("repos"), RepoId::parse)
    }
}

fn list_ids<T: Ord>(dir: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let mut ids = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
        Err(source) => return Err(StoreError::Io { action: "list", path: dir.to_owned(), source }),
    };
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        ids.extend(entry.file_name().to_str().and_then(&parse));
    }
    ids.sort();
    Ok(ids)
}

/// `repos/<id>`: what the sandboxes of one host repository share.
#[derive(Clone, Debug)]
pub struct RepoDir {
    path: PathBuf,
    reserve: Reserve,
}

impl RepoDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Refuses what cannot fit on its disk.
    pub fn has_room(&self, need: Need) -> std::result::Result<(), NoRoom> {
        // `<root>/repos/<id>`: the disk is known by the state directory.
        let root = self.path.ancestors().nth(2).unwrap_or(&self.path);
        space::check(root, self.reserve, need)
    }
    /// `repo.json`.
    pub fn record(&self) -> PathBuf {
        self.path.join("repo.json")
    }
    /// The repository's lock.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }
    /// Held by who shortens a stack of layers in the background.
    pub fn fold_lock(&self) -> PathBuf {
        self.path.join("fold.lock")
    }
    /// The vault, a bare repository.
    pub fn vault(&self) -> PathBuf {
        self.path.join("packs")
    }
    /// All views.
    pub fn views(&self) -> PathBuf {
        self.path.join("views")
    }
    /// One view.
    pub fn view(&self, key: &str) -> PathBuf {
        self.path.join("views").join(key)
    }
    /// All layers.
    pub fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }
    /// One layer (`tree/` and `manifest` are in it).
    pub fn layer(&self, id: &LayerId) -> PathBuf {
        self.path.join("layers").join(id)
    }
    /// The tree of one layer: a lower directory.
    pub fn layer_tree(&self, id: &LayerId) -> PathBuf {
        self.layer(id).join("tree")
    }
    /// All snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }
    /// One snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> PathBuf {
        self.path.join("snapshots").join(format!("{id}.json"))
    }
}

/// `sandboxes/<id>`: what belongs to one sandbox.
#[derive(Clone, Debug)]
pub struct SandboxDir(PathBuf);

impl SandboxDir {
    /// One that is not where it usually is.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// `sandbox.json`: what was asked.
    pub fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }
    /// `status.json`: what was last true.
    pub fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }
    /// `launch.json`: the last launch spec.
    pub fn launch(&self) -> PathBuf {
        self.0.join("launch.json")
    }
    /// Held by the supervisor, or by who works on a stopped sandbox.
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }
    /// The supervisor's socket.
    pub fn ctl(&self) -> PathBuf {
        self.0.join("ctl")
    }
    /// Output of the main session.
    pub fn log(&self) -> PathBuf {
        self.0.join("log").join("main.log")
    }
    /// What happened, one JSON object a line ([`sandbox_protocol::Event`]).
    pub fn events(&self) -> PathBuf {
        self.0.join("log").join("events.jsonl")
    }
    /// What the network may reach: the proxy's policy file.
    pub fn network(&self) -> PathBuf {
        self.0.join("network.json")
    }
    /// Where the front leads that stands between the sandbox and the mirror.
    pub fn mirror(&self) -> PathBuf {
        self.0.join("mirror.json")
    }
    /// The private home.
    pub fn home(&self) -> PathBuf {
        self.0.join("home")
    }
    /// The private `/tmp`.
    pub fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }
    /// The disk of a virtual machine, with all that the sandbox writes.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.img")
    }
    /// What the kernel of a virtual machine printed.
    pub fn console(&self) -> PathBuf {
        self.0.join("log").join("console.log")
    }
    /// Upper directory of tree number `n`; with [`crate::launch::TreeView::Copy`] the whole tree.
    pub fn upper(&self, n: usize) -> PathBuf {
        self.0.join("trees").join(n.to_string()).join("upper")
    }
    /// Work directory of tree number `n`.
    pub fn work(&self, n: usize) -> PathBuf {
        self.0.join("trees").join(n.to_string()).join("work")
    }
    /// What tree number `n` was at first, with [`crate::launch::TreeView::Copy`].
    pub fn manifest(&self, n: usize) -> PathBuf {
        self.0.join("trees").join(n.to_string()).join("manifest")
    }
}

/// Locks of repositories, each taken once and in the order of their ids, so that two who want the same
/// ones never wait for each other.
#[derive(Debug)]
pub struct RepoLocks(#[expect(dead_code, reason = "held until it is dropped")] Vec<FileLock>);

impl RepoLocks {
    /// Waits for all of them.
    pub fn take<'a>(store: &Store, ids: impl IntoIterator<Item = &'a RepoId>) -> Result<Self> {
        let ids: BTreeSet<&RepoId> = ids.into_iter().collect();
        let lock = |id: &RepoId| {
            let path = store.repo(id).lock_file();
            FileLock::exclusive(&path).map_err(StoreError::io("lock", path))
        };
        Ok(Self(ids.into_iter().map(lock).collect::<Result<_>>()?))
    }
}

/// Makes a directory (and its parents) with mode 0700; an existing one is left as it is.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create", path))
}

/// Writes a file that appears whole: temporary beside it, optionally fsync, rename.
///
/// Without fsync its bytes are on their way to the disk before it has its name
/// ([`sandbox_sys::writeback`]): a power cut after somebody else's fsync finds it whole, and not empty.
pub fn write_whole(path: &Path, contents: &[u8], sync: bool) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut random = [0u8; 4];
    getrandom::fill(&mut random).expect("the kernel's random source works after boot");
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = dir.join(format!(".{base}.{:08x}", u32::from_le_bytes(random)));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(contents)?;
        if sync {
            file.sync_all()?;
        } else {
            sandbox_sys::writeback::begin(&file);
        }
        fs::rename(&temp, path)?;
        if sync {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temp);
        StoreError::Io { action: "write", path: path.to_owned(), source }
    })
}

/// Writes a record as JSON, whole.
pub fn write_json<T: Serialize>(path: &Path, value: &T, sync: bool) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).expect("records have no maps with non-string keys");
    json.push(b'\n');
    write_whole(path, &sum::sealed(json), sync)
}

/// As [`write_json`], with a copy beside it ([`copy_of`]) from which `repair` makes a damaged one whole.
pub fn write_twice<T: Serialize>(path: &Path, value: &T, sync: bool) -> Result<()> {
    write_json(&copy_of(path), value, false)?;
    write_json(path, value, sync)
}

/// Where the copy of a record is.
pub fn copy_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".copy");
    name.into()
}

/// Makes the copy of a record that was written without one.
pub fn keep_copy(path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(StoreError::io("read", path))?;
    write_whole(&copy_of(path), &bytes, false)
}

/// Reads a record; `None` when there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { action: "read", path: path.to_owned(), source }),
    };
    let damaged = |source| StoreError::Damaged { path: path.to_owned(), source };
    let record = serde_json::from_slice(&bytes).map_err(damaged)?;
    if sum::is_broken(&bytes) {
        return Err(damaged(serde::de::Error::custom("it is not what was written: its sum is another one")));
    }
    Ok(Some(record))
}

/// As [`read_json`]; where that is damaged and its copy is not, the copy. For what is written once.
pub fn read_either<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_json(path) {
        Err(error @ StoreError::Damaged { .. }) => match read_json(&copy_of(path)) {
            Ok(Some(record)) => Ok(Some(record)),
            _ => Err(error),
        },
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_told_from_one_that_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let store = Store::open(&at("s")).unwrap();
        let id = store.id().unwrap();
        for name in ["format", "id", "id.at"] {
            make_dir(&at("copy")).unwrap();
            fs::copy(at("s").join(name), at("copy").join(name)).unwrap();
        }
        let copy = Store::open(&at("copy")).unwrap();
        let refused = copy.id().unwrap_err();
        assert!(matches!(&refused, StoreError::Copied { original, .. } if *original == at("s")), "{refused}");
        assert_eq!(store.id().unwrap(), id);
        fs::rename(at("s"), at("moved")).unwrap();
        assert_eq!(Store::open(&at("moved")).unwrap().id().unwrap(), id);
        // With the original gone from its place nothing says which is which: the first to be asked is it.
        fs::rename(at("moved"), at("s")).unwrap();
        let own = copy.become_another().unwrap();
        assert!(own != id && copy.id().unwrap() == own && store.id().unwrap() == id);
    }

    #[test]
    fn numbers_of_sandboxes_only_go_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s")).unwrap();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let each: Vec<_> = (0..12).map(|_| scope.spawn(|| store.next_sequence().unwrap())).collect();
            each.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn newer_state_is_read_but_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        Store::open(&root).unwrap().writable().unwrap();
        fs::write(root.join("format"), "git-sandbox 7\n").unwrap();
        let store = Store::open(&root).unwrap();
        assert!(store.sandbox_ids().unwrap().is_empty());
        assert!(matches!(store.writable(), Err(StoreError::Newer { found: 7, .. })));
    }

    #[test]
    fn a_state_directory_has_one_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s")).unwrap();
        let ids: Vec<StoreId> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| store.id().unwrap())).collect();
            asked.into_iter().map(|id| id.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(Store::open(store.root()).unwrap().id().unwrap(), ids[0]);
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
        assert_ne!(Store::open(&dir.path().join("t")).unwrap().id().unwrap(), ids[0]);
    }

    #[test]
    fn a_foreign_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Foreign { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_appear_whole_and_leave_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_json(&path, &vec![1, 2], true).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap().unwrap(), [1, 2]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
