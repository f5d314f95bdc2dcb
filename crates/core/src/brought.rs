//! Whether a sandbox that does not run can have anything that is not home, without a process.
//!
//! ```text
//! __commit-back   inside  = digest of its git directories ─┐   before the agent is asked
//!                 refs    = what it says, brought home      │
//!                 host    = digest of the refs here ────────┴─► brought.json, if the same question again
//!                                                               would bring nothing
//! later           both digests once more: equal = nothing new, else the read-only helper is asked
//! ```
//!
//! What a sandbox says of its refs is decided by the files of its git directories alone, so the same files say the
//! same again. In doubt there is no digest: of what leads out of a git directory, of what cannot be listed, of very
//! many files. Of a guest, whose disk only guests read, the disk itself counts: one that was not written to says the
//! same again, and one whose guest was asked when nobody else was inside is as it was then ([`picture::settle`]).

use crate::commit_back::{CommitBackError, nested_host, own_names, own_refs};
use crate::picture;
use crate::record::{Snapshot, ViewRecord};
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, Store, StoreError, read_json, write_json};
use crate::whole::list_beneath;
use crate::work;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev, statat};
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, Oid, RefName};
use sandbox_sys::beneath::{LOOK, open_beneath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More entries than this in the git directories are not looked at.
const MAX_ENTRIES: usize = 20_000;

/// Files of at most this many bytes are read: their times do not tell of a write through a mapping. Larger ones are
/// logs and packed refs, which git only ever replaces or appends to.
const MAX_READ: u64 = 64 << 10;

/// Bytes that are read of all of them.
const MAX_READ_ALL: u64 = 4 << 20;

/// `sandboxes/<id>/brought.json`: after which state of the sandbox nothing more was to be brought.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Of the git directories inside.
    inside: String,
    /// Of the sandbox's refs in each repository of the host, by tree and number of its view.
    host: BTreeMap<String, String>,
}

/// What one commit-back finds out for the next.
#[derive(Debug)]
pub(crate) struct Seen {
    /// `None`: in doubt.
    inside: Option<String>,
    host: BTreeMap<String, String>,
}

impl Seen {
    /// Before the sandbox is asked: what changes afterwards is then another state.
    ///
    /// Also of one that runs: the last commit-back of a life is not known as the last when it runs. At the end
    /// there is another one only if a ref has moved since.
    pub(crate) fn before(store: &Store, sandbox: &Sandbox) -> Self {
        Self { inside: inside(store, sandbox), host: BTreeMap::new() }
    }

    /// Repository `number` of a tree has these refs here, and what was said would bring nothing more.
    pub(crate) fn home(&mut self, sandbox: &Sandbox, number: usize, refs: &BTreeMap<RefName, Oid>) {
        self.host.insert(place(sandbox.tree, number), digest_of_refs(refs));
    }

    /// Not everything came home.
    pub(crate) fn doubt(&mut self) {
        self.inside = None;
    }

    /// Writes it down for those that come later; in doubt, what was known is forgotten.
    pub(crate) fn keep(self, sandbox: &Sandbox) -> Result<(), StoreError> {
        let path = file(sandbox);
        match self.inside {
            Some(inside) => write_json(&path, &Record { inside, host: self.host }, false),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(StoreError::io("remove", path)(error))
                }
                _ => Ok(()),
            },
        }
    }
}

/// Everything is home that a sandbox which does not run has committed: neither its git directories nor its refs here
/// have changed since a commit-back that left nothing. `false` is "not known".
pub fn is_home(git: &Git, store: &Store, sandbox: &Sandbox) -> bool {
    let Ok(Some(record)) = read_json::<Record>(&file(sandbox)) else { return false };
    inside(store, sandbox).is_some_and(|inside| inside == record.inside)
        && host(git, store, sandbox).is_ok_and(|host| host == record.host)
}

/// What was asked of a guest that was known as `alone` is of its disk, which is known as `disk`.
pub(crate) fn settle(dir: &SandboxDir, alone: &str, disk: &str) -> Result<(), StoreError> {
    let path = in_dir(dir);
    match read_json::<Record>(&path)? {
        Some(record) if record.inside == alone => {
            write_json(&path, &Record { inside: disk.to_owned(), ..record }, false)
        }
        _ => Ok(()),
    }
}

fn file(sandbox: &Sandbox) -> PathBuf {
    in_dir(&sandbox.dir)
}

fn in_dir(dir: &SandboxDir) -> PathBuf {
    dir.path().join("brought.json")
}

fn place(tree: usize, number: usize) -> String {
    format!("{tree}-{number}")
}

/// The sandbox's refs in each repository of the host, as they are now.
fn host(git: &Git, store: &Store, sandbox: &Sandbox) -> Result<BTreeMap<String, String>, CommitBackError> {
    let mut all = BTreeMap::new();
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let snapshot = tree.snapshot(store)?;
        let main = work::host(store, &tree)?;
        for (number, view) in snapshot.git.views.iter().enumerate() {
            let host = match view.path.as_os_str().is_empty() {
                true => main.clone(),
                false => nested_host(view, &snapshot, &main)?,
            };
            // Not all refs: of a hundred sandboxes that would be those of all of them, a hundred times.
            let (main, meta) = own_names(sandbox.name());
            let refs = RefStore::read_below(git, host.common_dir(), &[&main, &meta])?;
            all.insert(place(tree.tree, number), digest_of_refs(&own_refs(&refs, sandbox.name())));
        }
    }
    Ok(all)
}

fn digest_of_refs(refs: &BTreeMap<RefName, Oid>) -> String {
    let mut text = Vec::new();
    for (name, oid) in refs {
        text.extend_from_slice(oid.to_string().as_bytes());
        text.push(b' ');
        text.extend_from_slice(name.as_bytes());
        text.push(b'\n');
    }
    hex(&text)
}

/// The digest of all git directories of a sandbox, but for their objects; `None` in doubt.
fn inside(store: &Store, sandbox: &Sandbox) -> Option<String> {
    // What a guest writes is on its disk, and not in these directories.
    if sandbox.record.guest_disk || picture::disk(sandbox).symlink_metadata().is_ok() {
        return picture::disk_name(sandbox);
    }
    let mut look = Look { text: Vec::new(), entries: 0, read: 0 };
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        let snapshot = tree.snapshot(store).ok()?;
        let root = rustix::fs::open(tree.upper(), LOOK, Mode::empty()).ok()?;
        for dir in git_dirs(&snapshot)? {
            look.add(tree.mount().worktree.as_os_str().as_bytes());
            look.git_dir(root.as_fd(), &dir, &snapshot)?;
        }
    }
    Some(hex(&look.text))
}

/// The outermost git directories, relative to the tree; `None` if one is outside of it.
fn git_dirs(snapshot: &Snapshot) -> Option<Vec<PathBuf>> {
    let relative = |view: &ViewRecord| Some(view.inside_gitdir.strip_prefix(&snapshot.worktree).ok()?.to_owned());
    let mut dirs: Vec<PathBuf> = snapshot.git.views.iter().map(relative).collect::<Option<_>>()?;
    dirs.push(".git".into());
    dirs.sort();
    // A submodule's lies in that of the outer repository.
    dirs.dedup_by(|inner, outer| inner.starts_with(&*outer));
    Some(dirs)
}

struct Look {
    text: Vec<u8>,
    entries: usize,
    read: u64,
}

impl Look {
    fn add(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.text.extend_from_slice(bytes);
    }

    fn git_dir(&mut self, root: BorrowedFd<'_>, top: &Path, snapshot: &Snapshot) -> Option<()> {
        let is_git_dir = |path: &Path| {
            path == top || snapshot.git.views.iter().any(|view| view.inside_gitdir == snapshot.worktree.join(path))
        };
        let mut waiting = vec![top.to_owned()];
        while let Some(dir) = waiting.pop() {
            let listed = match list_beneath(root, &dir) {
                // Nothing of it was written.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir == top => {
                    // Unless something on the way is not what it was.
                    self.on_the_way(root, top)?;
                    self.add(b"none");
                    continue;
                }
                listed => listed.ok()?,
            };
            let own = is_git_dir(&dir);
            let mut names = listed.names;
            names.sort();
            for name in names {
                match name.as_bytes() {
                    // What is staged, and messages of git's, say nothing of refs.
                    b"index" | b"COMMIT_EDITMSG" | b"gc.log" if own => continue,
                    // These lead to another place.
                    b"commondir" | b".git" if own => return None,
                    _ => {}
                }
                let path = dir.join(&name);
                let kind = self.entry(listed.fd.as_fd(), &path, &name)?;
                // Objects only come and go with the refs that name them.
                if kind == FileType::Directory && !(own && name.as_bytes() == b"objects") {
                    waiting.push(path);
                }
            }
        }
        Some(())
    }

    /// No directory above a git directory was replaced or removed.
    fn on_the_way(&mut self, root: BorrowedFd<'_>, top: &Path) -> Option<()> {
        for above in top.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            let (parent, name) = (above.parent()?, above.file_name()?);
            let Ok(parent) = open_beneath(root, parent.as_os_str().as_bytes(), LOOK) else { continue };
            match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {}
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                _ => return None,
            }
        }
        Some(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, path: &Path, name: &std::ffi::OsStr) -> Option<FileType> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return None;
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == makedev(0, 0);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) && !whiteout {
            return None;
        }
        let numbers = [
            u64::from(stat.st_mode),
            stat.st_ino,
            if kind == FileType::Directory { 0 } else { stat.st_size as u64 },
            stat.st_mtime as u64,
            stat.st_mtime_nsec as u64,
            stat.st_ctime as u64,
            stat.st_ctime_nsec as u64,
        ];
        self.add(path.as_os_str().as_bytes());
        for number in numbers {
            self.text.extend_from_slice(&number.to_le_bytes());
        }
        if kind == FileType::RegularFile && stat.st_size as u64 <= MAX_READ {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
            let mut bytes = Vec::new();
            File::from(file).take(MAX_READ + 1).read_to_end(&mut bytes).ok()?;
            self.read += bytes.len() as u64;
            if self.read > MAX_READ_ALL || refs_elsewhere(&bytes) {
                return None;
            }
            self.add(&bytes);
        }
        Some(kind)
    }
}

/// A configuration can put the refs of a repository to another place (`extensions.refStorage = files://…`).
fn refs_elsewhere(bytes: &[u8]) -> bool {
    const KEY: &[u8] = b"refstorage";
    bytes.windows(KEY.len()).any(|word| word.eq_ignore_ascii_case(KEY)) && bytes.windows(3).any(|word| word == b"://")
}

fn hex(bytes: &[u8]) -> String {
    sandbox_git::sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
