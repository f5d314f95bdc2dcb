//! Everything of a spawn that comes before the launch: capture, git layer, snapshot, record.
//!
//! ```text
//! lock repository ─► capture ─► git layer + views ─► snapshot ─► name, directories, record
//!                    (nothing      (no process when
//!                     new: no       nothing changed)
//!                     layer)        both again while git is at work
//! ```
//!
//! Nothing is fsynced: up to the launch nothing can be lost, and a half-made sandbox is a
//! directory without `sandbox.json`, which the next `gc` sweeps.

use crate::directory;
use crate::gitdir::{self, Carried, GitDirError, Grant, Remembered, Request as GitRequest};
use crate::host_repo::{HostRepo, HostRepoError};
use crate::id::{LayerId, Name, RepoId, SandboxId, SnapshotId};
use crate::launch::{TreeView, User};
use crate::names::Names;
use crate::pulse::Pulse;
use crate::record::{GitFacts, SandboxRecord, Snapshot};
use crate::sandbox::Sandbox;
use crate::space::{Need, NoRoom};
use crate::store::{RepoDir, SandboxDir, Store, StoreError, make_dir, read_either, read_json, write_json};
use crate::watch::Watched;
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags, setxattr, utimensat};
use rustix::io::Errno;
use sandbox_capture::Watch;
use sandbox_capture::{CaptureError, CaptureRequest, Captured, Decision, Estimate, Limit, Progress, Rebased, Secrets};
use sandbox_capture::{Entry, Manifest, Reason};
use sandbox_git::Git;
use sandbox_git::index::Stat;
use sandbox_protocol::{escape_bytes, unescape_bytes};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What a sandbox is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The working tree as it is.
    WorkTree,
    /// The tracked files of `HEAD`.
    Head,
    /// The tracked files of a revision.
    Revision(String),
}

/// What is asked.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Git.
    pub git: &'a Git,
    /// The store.
    pub store: &'a Store,
    /// The host repository; `None` takes the directory `top`, which is none.
    pub host: Option<&'a HostRepo>,
    /// The top of the work tree, canonical.
    pub top: &'a Path,
    /// Of what; of a directory always the working tree.
    pub source: &'a Source,
    /// Who the sandbox runs as.
    pub user: &'a User,
    /// What happens to untracked files that look like secrets.
    pub secrets: Secrets,
    /// The most that is copied for one ignored directory without reflinks.
    pub capture_limit: Option<u64>,
    /// Directories that are carried whatever their size.
    pub with: &'a [PathBuf],
    /// Refs granted by name.
    pub grants: &'a [Grant],
    /// `sandbox.objects = all`.
    pub all_objects: bool,
    /// Threads to scan and copy with.
    pub threads: usize,
    /// Hears how the capture goes.
    pub progress: &'a dyn Progress,
    /// A watcher of the work tree is asked, if there is one.
    pub watch: bool,
}

/// What was taken; the repository's lock is held as long as it lives.
#[derive(Debug)]
pub struct Taken {
    /// The repository's id.
    pub repo: RepoId,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What is to be told.
    pub told: Told,
    lock: FileLock,
}

impl Taken {
    /// Bytes of the files in it, each name counted.
    pub fn bytes(&self, store: &Store) -> Result<u64> {
        let Some(top) = self.snapshot.layers.first() else { return Ok(0) };
        let path = store.repo(&self.repo).layer(top).join(sandbox_capture::MANIFEST);
        let manifest = Manifest::open(&path).map_err(crate::whole::CopyError::from)?;
        Ok(manifest.bytes_held())
    }
}

/// One line about a capture, and what needs more than a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Files in it.
    pub files: u64,
    /// Files that were copied now.
    pub copied: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them share blocks with the host's files.
    pub reflinked: u64,
    /// Files that look like secrets and were carried.
    pub secrets_carried: Vec<PathBuf>,
    /// Files that look like secrets and stayed on the host.
    pub secrets_left: Vec<PathBuf>,
    /// What else is not in it, and why.
    pub left_out: Vec<(PathBuf, &'static str)>,
    /// Files that kept changing.
    pub unsettled: Vec<PathBuf>,
    /// About git.
    pub notes: Vec<String>,
    /// The revision, if it is not the working tree.
    pub revision: Option<String>,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = |n: u64| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
        match &self.revision {
            Some(revision) => write!(f, "{} of {revision}", files(self.files))?,
            None if self.files == 1 => f.write_str("1 file as it is here")?,
            None => write!(f, "{} as they are here", files(self.files))?,
        }
        if self.copied > 0 {
            let shared = if self.reflinked == self.copied { ", blocks shared" } else { "" };
            write!(f, ", {} copied ({}{shared})", self.copied, crate::units::size(self.bytes))?;
        }
        Ok(())
    }
}

/// Why nothing was taken or made.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The host repository.
    #[error(transparent)]
    Host(#[from] HostRepoError),
    /// The capture.
    #[error("cannot capture the working tree")]
    Capture(#[from] CaptureError),
    /// The git layer.
    #[error("cannot take over the repository")]
    GitDir(#[from] GitDirError),
    /// The full copy of `sandbox.view = copy`.
    #[error("cannot copy the tree for the sandbox")]
    Copy(#[from] crate::whole::CopyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk of the state directory has too little room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The name is taken.
    #[error("there is a sandbox named '{name}' already")]
    NameTaken {
        /// Which name.
        name: String,
    },
    /// The name is that of a sandbox that is being dropped.
    #[error("the sandbox '{name}' is being dropped, and its name is not free yet")]
    NameLeaving {
        /// Which name.
        name: String,
    },
    /// The name is taken in a repository that comes along.
    #[error("there is a sandbox named '{name}' already in '{path}'", path = path.display())]
    NameTakenThere {
        /// Which name.
        name: String,
        /// The repository's work tree.
        path: PathBuf,
    },
    /// A file or directory of the store.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `create`, `lock`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, PrepareError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let path = path.to_owned();
    move |source| PrepareError::Io { action, path, source }
}

/// `repos/<id>/latest/<digest>.json`: the last snapshot of each work tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latest {
    /// The work tree.
    pub worktree: PathBuf,
    /// Its last snapshot.
    pub snapshot: SnapshotId,
}

/// Where they are.
pub fn latest_dir(repo: &RepoDir) -> PathBuf {
    repo.path().join("latest")
}

pub(crate) fn latest_file(repo: &RepoDir, worktree: &Path) -> PathBuf {
    latest_dir(repo).join(format!("{}.json", crate::view::digest(worktree.as_os_str().as_bytes())))
}

/// Takes the snapshot that a sandbox will stand on. Waits for another spawn of the same
/// repository: the second one then finds nothing new to copy. Who takes several takes them in the order
/// of their [`id`]s, and keeps each until the last is taken.
pub fn take(request: &Request<'_>) -> Result<Taken> {
    request.store.has_room(Need::default())?;
    let id = id(request.store, request.host, request.top)?;
    let repo = request.store.repo(&id);
    let lock_file = repo.lock_file();
    let lock = FileLock::exclusive(&lock_file).map_err(failed("lock", &lock_file))?;
    let (snapshot, told) = match (request.host, request.source) {
        (None, _) => worktree(request, &repo)?,
        (Some(_), Source::WorkTree) => worktree(request, &repo)?,
        (Some(host), Source::Head) => revision(request, host, &repo, "HEAD")?,
        (Some(host), Source::Revision(rev)) => revision(request, host, &repo, rev)?,
    };
    Ok(Taken { repo: id, snapshot, told, lock })
}

/// The id of a repository or, without one, of the directory `top`. Makes its place in the store.
pub fn id(store: &Store, host: Option<&HostRepo>, top: &Path) -> Result<RepoId> {
    Ok(match host {
        Some(host) => host.repo_id(store)?,
        None => directory::id(store, top)?,
    })
}

/// Who the directories of a sandbox belong to, where that is not who makes them: run by root, nothing inside is
/// root outside.
pub fn owner(user: &User) -> Option<(u32, u32)> {
    rustix::process::geteuid().is_root().then_some((user.uid, user.gid))
}

fn worktree(request: &Request<'_>, repo: &RepoDir) -> Result<(Snapshot, Told)> {
    let top = request.top.to_owned();
    // One that is damaged saves no work; everything is captured anew.
    let latest: Option<Latest> = read_json(&latest_file(repo, &top)).ok().flatten();
    let latest = latest.filter(|latest| latest.worktree == top);
    let before: Option<Snapshot> =
        latest.and_then(|latest| read_either(&repo.snapshot(&latest.snapshot)).ok().flatten());
    stop("spawn.capture", repo.path())?;
    let views = before.iter().flat_map(|before| before.git.views.iter().skip(1));
    let mut pulse = Pulse::new(request.host, views.map(|view| view.host_gitdir.clone()));
    let mut previous = before.as_ref().map(|before| before.layers.clone()).unwrap_or_default();
    let (captured, layers, git_layer, git) = loop {
        pulse.begin();
        let captured = capture(request, repo, &top, &previous)?;
        stop("spawn.captured", repo.path())?;
        let layers: Vec<LayerId> = captured.layers.iter().filter_map(|id| LayerId::parse(id)).collect();
        let nested: Vec<PathBuf> =
            captured.git_boundaries.iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect();
        let (git_layer, git) = match request.host {
            Some(host) => git_layer(request, host, repo, &top, &captured, &nested)?,
            None => no_git(request, repo, before.as_ref(), &captured, &nested)?,
        };
        if !pulse.again() {
            break (captured, layers, git_layer, git);
        }
        previous = layers;
    };
    let mut told = told(&captured, &git);
    told.unsettled.extend(pulse.unsettled(&top));
    if let Some(lock) = pulse.lock() {
        told.notes.push(format!("another git command was at work meanwhile: '{}' exists", lock.display()));
    }
    let top_looks = Look::of(&captured);
    if let Some(before) = before
        && before.layers == layers
        && before.git_layer == git_layer
        && Look::of_snapshot(&before) == top_looks
    {
        used_now(&latest_file(repo, &top));
        return Ok((before, told));
    }
    let snapshot = Snapshot {
        id: SnapshotId::random(),
        worktree: top.clone(),
        layers,
        git_layer,
        git,
        created: unix_seconds(),
        root_mode: top_looks.mode,
        root_mtime: top_looks.mtime,
        root_attributes: top_looks.attributes,
        notes: notes(&told, &captured),
    };
    stop("spawn.snapshot", repo.path())?;
    write_json(&repo.snapshot(&snapshot.id), &snapshot, false)?;
    make_dir(&latest_dir(repo))?;
    stop("spawn.latest", repo.path())?;
    write_json(&latest_file(repo, &top), &Latest { worktree: top, snapshot: snapshot.id.clone() }, false)?;
    Ok((snapshot, told))
}

/// Captures that were not used for longest are the first that `gc` takes: the file's time says when.
fn used_now(latest: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    // A failure costs a warm spawn some day, not this one.
    let _ = utimensat(rustix::fs::CWD, latest, &times, AtFlags::empty());
}

/// A point at which a test may stop us.
fn stop(name: &'static str, at: &Path) -> Result<()> {
    fault::point(name).map_err(failed("write", at))
}

fn capture(request: &Request<'_>, repo: &RepoDir, top: &Path, previous: &[LayerId]) -> Result<Captured> {
    let previous: Vec<String> = match previous.iter().all(|id| repo.layer_tree(id).is_dir()) {
        true => previous.iter().map(ToString::to_string).collect(),
        false => Vec::new(),
    };
    let tracked = Tracked::new(request);
    let exclude = [request.store.root().to_owned()];
    let new_layer = LayerId::random();
    let git_state = request.host.map_or(1, |host| git_state(host, top));
    let watched = request.watch.then(|| Watched::new(repo, top, previous.first().map(String::as_str)));
    let measured = Measured::new(request.store, request.progress);
    let asked = CaptureRequest {
        root: top,
        previous: &previous,
        layers_dir: &repo.layers(),
        tmp_dir: &request.store.tmp(),
        new_layer_id: new_layer.as_str(),
        owner: owner(request.user),
        exclude: &exclude,
        secrets: request.secrets,
        tracked: &|path| tracked.has(path),
        ignored: &|path, _| request.host.is_some() && ignored(request, top, path),
        git_state,
        limit: request.capture_limit.map(|limit| Limit {
            ignored_over: limit,
            // Virtual environments of uv and others have this file too, and belong to what the
            // developer sees: only build output of some size is left out.
            cachedir_over: limit.min(256 << 20),
            with_reflinks: false,
            with: request.with,
        }),
        threads: request.threads,
        progress: &measured,
        watch: watched.as_ref().map(|watched| watched as &dyn Watch),
    };
    let captured = match sandbox_capture::capture(&asked) {
        // A whole new base has nothing to take away.
        Err(CaptureError::Whiteout { .. }) if !previous.is_empty() => {
            sandbox_capture::capture(&CaptureRequest { previous: &[], ..asked })
        }
        captured => captured,
    };
    let captured = match (captured, measured.short()) {
        (Err(CaptureError::Aborted), Some(short)) => return Err(short.into()),
        (captured, _) => captured?,
    };
    if let Some(watched) = &watched {
        watched.remember(&captured, git_state)?;
    }
    Ok(captured)
}

/// Looks whether there is room for a copy before it begins, and hands on everything else.
pub(crate) struct Measured<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
    short: Mutex<Option<NoRoom>>,
}

impl<'a> Measured<'a> {
    pub(crate) fn new(store: &'a Store, progress: &'a dyn Progress) -> Self {
        Self { store, progress, short: Mutex::default() }
    }

    /// Why a copy was not begun.
    pub(crate) fn short(self) -> Option<NoRoom> {
        self.short.into_inner().unwrap_or_default()
    }
}

impl Progress for Measured<'_> {
    fn has_room(&self, files: u64, bytes: u64, shared: &dyn Fn() -> bool) -> Decision {
        let need = Need { bytes, inodes: files };
        let alone = || self.store.has_room(Need { bytes: 0, ..need });
        // Whether blocks are shared is tried only where it matters.
        match self.store.has_room(need).or_else(|short| if shared() { alone() } else { Err(short) }) {
            Ok(()) => Decision::Continue,
            Err(short) => {
                if let Ok(mut said) = self.short.lock() {
                    *said = Some(short);
                }
                Decision::Abort
            }
        }
    }

    fn estimate(&self, estimate: &Estimate) -> Decision {
        self.progress.estimate(estimate)
    }

    fn whole(&self, files: u64, bytes: u64) {
        self.progress.whole(files, bytes);
    }

    fn goes_on(&self) -> bool {
        self.progress.goes_on()
    }

    fn copied(&self, files: u64, bytes: u64) {
        self.progress.copied(files, bytes);
    }
}

/// A digest of what git's answers depend on: the index and the ignore files that matter most. While
/// it is the same, the capture does not ask again.
fn git_state(host: &HostRepo, top: &Path) -> u64 {
    let files = [host.git_dir().join("index"), host.common_dir().join("info/exclude"), top.join(".gitignore")];
    // FNV-1a: stable over versions, and 0 is kept for "not known".
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        let numbers = fs::metadata(file)
            .map_or([0; 4], |meta| [meta.ino(), meta.size(), meta.mtime() as u64, meta.mtime_nsec() as u64]);
        for byte in numbers.into_iter().flat_map(u64::to_le_bytes) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash.max(1)
}

/// Paths in the host's index, read when first asked for: only files that look like secrets and
/// large directories are.
struct Tracked<'a> {
    request: &'a Request<'a>,
    paths: std::sync::OnceLock<Vec<Vec<u8>>>,
}

impl<'a> Tracked<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        Self { request, paths: std::sync::OnceLock::new() }
    }

    /// Whether a file is tracked; with a `/` at the end, whether anything below is.
    fn has(&self, path: &[u8]) -> bool {
        let paths = self.paths.get_or_init(|| {
            let Some(host) = self.request.host else { return Vec::new() };
            let out = host.read(self.request.git).args(["ls-files", "-z", "--cached"]).output();
            let mut paths: Vec<Vec<u8>> = out
                .map(|out| out.stdout.split(|b| *b == 0).filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect())
                .unwrap_or_default();
            paths.sort();
            paths
        });
        let at = paths.partition_point(|known| known.as_slice() < path);
        match paths.get(at) {
            Some(known) if path.ends_with(b"/") => known.starts_with(path),
            Some(known) => known == path,
            None => false,
        }
    }
}

/// Whether git ignores a directory. One process for each: asked only of large ones.
fn ignored(request: &Request<'_>, top: &Path, path: &[u8]) -> bool {
    // A name may begin with a colon, which git would take for pathspec magic.
    let path = Path::new(".").join(std::ffi::OsStr::from_bytes(path));
    let command = request.git.user(top).config("core.fsmonitor=false").env("GIT_LITERAL_PATHSPECS", "0");
    command.args(["check-ignore", "--quiet"]).arg(path).try_output().is_ok_and(|(status, _)| status.success())
}

/// The uppermost layer of a directory without a repository: empty, and looking like the directory.
fn no_git(
    request: &Request<'_>,
    repo: &RepoDir,
    before: Option<&Snapshot>,
    captured: &Captured,
    nested: &[PathBuf],
) -> Result<(LayerId, GitFacts)> {
    let note =
        |path: &PathBuf| format!("'{}' is a repository: its files are carried, its '.git' is not", path.display());
    let facts = GitFacts { notes: nested.iter().map(note).collect(), ..GitFacts::default() };
    let top_looks = Look::of(captured);
    if let Some(before) = before.filter(|before| Look::of_snapshot(before) == top_looks)
        && repo.layer_tree(&before.git_layer).is_dir()
    {
        return Ok((before.git_layer.clone(), facts));
    }
    let id = LayerId::random();
    let temp = request.store.tmp().join(format!("git-{id}"));
    let guard = TempTree(temp.clone());
    let tree = temp.join("tree");
    make_dir(&tree)?;
    if let Some((uid, gid)) = owner(request.user) {
        std::os::unix::fs::lchown(&tree, Some(uid), Some(gid)).map_err(failed("change the owner of", &tree))?;
    }
    top_looks.give(&tree)?;
    publish(repo, &temp, &id)?;
    std::mem::forget(guard);
    Ok((id, facts))
}

/// What a captured top directory looks like. It is in no layer: a merged tree's top is the upper directory.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    mode: u32,
    mtime: (i64, u32),
    /// Name and value, as [`escape_bytes`] writes them.
    attributes: Vec<(String, String)>,
}

impl Look {
    fn of(captured: &Captured) -> Self {
        let escaped = |(name, value): &(Vec<u8>, Vec<u8>)| (escape_bytes(name), escape_bytes(value));
        Self {
            mode: captured.root_mode,
            mtime: (captured.root_mtime.sec, captured.root_mtime.nsec),
            attributes: captured.root_attributes.iter().map(escaped).collect(),
        }
    }

    fn of_snapshot(snapshot: &Snapshot) -> Self {
        Self { mode: snapshot.root_mode, mtime: snapshot.root_mtime, attributes: snapshot.root_attributes.clone() }
    }

    /// Gives it to a directory.
    fn give(&self, dir: &Path) -> Result<()> {
        fs::set_permissions(dir, fs::Permissions::from_mode(self.mode & 0o1777 | 0o700))
            .map_err(failed("change the mode of", dir))?;
        for (name, value) in &self.attributes {
            let name = OsString::from_vec(unescape_bytes(name));
            match setxattr(dir, &*name, &unescape_bytes(value), XattrFlags::empty()) {
                // What the file system of the store cannot hold is not carried, as in a layer.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG) => {}
                Err(errno) => return Err(failed("change the attributes of", dir)(errno.into())),
            }
        }
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: i64::from(self.mtime.1) };
        utimensat(rustix::fs::CWD, dir, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
            .map_err(|error| failed("change the time of", dir)(error.into()))
    }
}

fn git_layer(
    request: &Request<'_>,
    host: &HostRepo,
    repo: &RepoDir,
    top: &Path,
    captured: &Captured,
    nested: &[PathBuf],
) -> Result<(LayerId, GitFacts)> {
    // The index inside names inodes of the base layer, and the sandbox's owner; whatever else a
    // delta layer changes differs in its mtime as well.
    let (uid, gid) = if request.user.root { (0, 0) } else { (request.user.uid, request.user.gid) };
    let grants: Vec<&str> = request.grants.iter().map(|grant| grant.pattern.as_str()).collect();
    let base = captured.layers.last().map_or("", String::as_str);
    let salt = format!("{base} {uid} {gid} {} {grants:?} {nested:?}", request.all_objects);
    // Copies that were folded have other inodes than the index inside says.
    let moved = captured.rebased == Some(Rebased::Folded { kept: true });
    let remembered = if moved { None } else { Remembered::load(repo, top)? };
    if let Some(remembered) = &remembered
        && remembered.is_for(&gitdir::fingerprint(request.git, host, nested, &remembered.hints), &salt)
    {
        return Ok((remembered.layer.clone(), remembered.facts.clone()));
    }
    let id = LayerId::random();
    let temp = request.store.tmp().join(format!("git-{id}"));
    let manifest: &Manifest = &captured.manifest;
    let host_owner = fs::metadata(top).map(|meta| (meta.uid(), meta.gid())).map_err(failed("look at", top))?;
    let git_request = GitRequest {
        git: request.git,
        repo,
        host,
        nested,
        captured: &|path: &[u8]| manifest.lookup(path).and_then(|entry| carried(&entry, host_owner, uid, gid)),
        owner: owner(request.user),
        grants: request.grants,
        all_objects: request.all_objects,
    };
    let guard = TempTree(temp.clone());
    let made = gitdir::make(&git_request, &temp.join("tree"))?;
    publish(repo, &temp, &id)?;
    std::mem::forget(guard);
    let facts = made.facts.clone();
    Remembered::new(made, id.clone(), &salt).save(repo, top)?;
    Ok((id, facts))
}

/// Removes a directory unless it was moved into place.
struct TempTree(PathBuf);

impl Drop for TempTree {
    fn drop(&mut self) {
        let _ = sandbox_capture::remove_tree(&self.0);
    }
}

/// Moves a finished layer into place.
fn publish(repo: &RepoDir, temp: &Path, id: &LayerId) -> Result<()> {
    make_dir(&repo.layers())?;
    stop("spawn.layer", temp)?;
    fs::rename(temp, repo.layer(id)).map_err(failed("move into place", temp))
}

/// Both sides of a captured file. The capture does not keep owners: a file of another owner than
/// the top directory's looks changed to git, which then reads it, and finds it the same.
fn carried(entry: &Entry<'_>, host_owner: (u32, u32), uid: u32, gid: u32) -> Option<Carried> {
    let copy = entry.copy?;
    let time = |time: sandbox_capture::Time| (time.sec as u32, time.nsec);
    let host = Stat {
        ctime: time(entry.stat.ctime),
        mtime: time(entry.stat.mtime),
        dev: entry.stat.dev as u32,
        ino: entry.stat.ino as u32,
        uid: host_owner.0,
        gid: host_owner.1,
        size: entry.stat.size as u32,
    };
    let layer = Stat { ctime: time(copy.ctime), ino: copy.ino as u32, uid, gid, ..host };
    Some(Carried { host, layer })
}

fn revision(request: &Request<'_>, host: &HostRepo, repo: &RepoDir, rev: &str) -> Result<(Snapshot, Told)> {
    let top = request.top.to_owned();
    let (files_id, git_id) = (LayerId::random(), LayerId::random());
    let tmp = request.store.tmp();
    let (files_tmp, git_tmp) = (tmp.join(format!("rev-{files_id}")), tmp.join(format!("git-{git_id}")));
    let guards = (TempTree(files_tmp.clone()), TempTree(git_tmp.clone()));
    for dir in [&files_tmp, &git_tmp] {
        make_dir(dir)?;
    }
    let git_request = GitRequest {
        git: request.git,
        repo,
        host,
        nested: &[],
        captured: &|_: &[u8]| None,
        owner: owner(request.user),
        grants: request.grants,
        all_objects: request.all_objects,
    };
    let out = gitdir::tree_checkout(&git_request, rev, &top, &files_tmp.join("tree"), &git_tmp.join("tree"))?;
    let root = fs::metadata(files_tmp.join("tree")).map_err(failed("look at", &files_tmp))?;
    sandbox_capture::describe(&files_tmp, files_id.as_str())?;
    publish(repo, &files_tmp, &files_id)?;
    publish(repo, &git_tmp, &git_id)?;
    std::mem::forget(guards);
    let told = Told {
        files: out.files as u64,
        revision: Some(format!("{} ({})", sandbox_git::printable(rev.as_bytes()), out.commit.short())),
        notes: out.facts.notes.clone(),
        ..Told::default()
    };
    let snapshot = Snapshot {
        id: SnapshotId::random(),
        worktree: top,
        layers: vec![files_id],
        git_layer: git_id,
        git: out.facts,
        created: unix_seconds(),
        root_mode: root.mode() & 0o777,
        root_mtime: (root.mtime(), root.mtime_nsec() as u32),
        root_attributes: Vec::new(),
        notes: Vec::new(),
    };
    write_json(&repo.snapshot(&snapshot.id), &snapshot, false)?;
    Ok((snapshot, told))
}

fn told(captured: &Captured, git: &GitFacts) -> Told {
    let mut told = Told {
        files: captured.stats.files,
        copied: captured.stats.copied_files,
        bytes: captured.stats.copied_bytes,
        reflinked: captured.stats.reflinked,
        secrets_carried: captured.carried_secrets.clone(),
        unsettled: captured.unsettled.clone(),
        notes: git.notes.clone(),
        ..Told::default()
    };
    told.notes.extend(lessened(captured.stats.lessened));
    for left in &captured.left_out {
        let why = match left.reason {
            Reason::Secret => {
                told.secrets_left.push(left.path.clone());
                continue;
            }
            // Asked for: no news.
            Reason::Ignored => continue,
            Reason::Special => "a FIFO, socket or device",
            Reason::Unreadable => "not readable",
            Reason::OverLimit => "over `sandbox.captureLimit`, and never captured",
            Reason::Stale => "over `sandbox.captureLimit`: as it was when last captured",
        };
        told.left_out.push((left.path.clone(), why));
    }
    told
}

/// That a snapshot has not all rights that there are on the host.
fn lessened(number: u64) -> Option<String> {
    let which = match number {
        0 => return None,
        1 => "1 file or directory has not the rights of others, or capabilities, that it has here".to_owned(),
        n => format!("{n} files or directories without rights of others, or capabilities, that they have here"),
    };
    Some(which)
}

/// What `show` still tells later.
fn notes(told: &Told, captured: &Captured) -> Vec<String> {
    let mut notes: Vec<String> = lessened(captured.stats.lessened).into_iter().collect();
    for path in told.secrets_left.iter().take(10) {
        notes.push(format!("left out: '{}' looks like a secret", path.display()));
    }
    for (path, why) in told.left_out.iter().take(10) {
        notes.push(format!("left out: '{}' ({why})", path.display()));
    }
    notes
}

/// Refuses a name that is taken, before anything is captured for it. [`create`] decides for good.
/// `there`: the repository is one that comes along.
pub fn check_name(store: &Store, repo: &RepoId, name: &Name, there: Option<&Path>) -> Result<()> {
    match Names::of(&store.repo(repo)).holder(store, name) {
        Some(id) => Err(taken_by(store, &id, name, there)),
        None => Ok(()),
    }
}

/// That a name is not free, by who holds it.
pub(crate) fn taken_by(store: &Store, id: &SandboxId, name: &Name, there: Option<&Path>) -> PrepareError {
    let name = name.to_string();
    match there {
        _ if !store.sandbox(id).path().exists() => PrepareError::NameLeaving { name },
        None => PrepareError::NameTaken { name },
        Some(path) => PrepareError::NameTakenThere { name, path: path.to_owned() },
    }
}

/// Makes a sandbox of what was taken, one for each of the record's trees in their order: gives its name
/// in all of them, makes its directories, writes its record. Returns it with its lock held.
///
/// With [`TreeView::Copy`] its trees are filled here, by `threads` threads, which can take as long as a first capture.
pub fn create(
    store: &Store,
    mut record: SandboxRecord,
    taken: &[&Taken],
    threads: usize,
    progress: &dyn Progress,
) -> Result<(Sandbox, FileLock)> {
    // Held by who calls us: names are given under the locks of all.
    let _ = taken.iter().map(|taken| &taken.lock);
    let names: Vec<Names> = taken.iter().map(|taken| Names::of(&store.repo(&taken.repo))).collect();
    let held = |names: &Names, name: &Name| names.holder(store, name);
    let is_taken = |name: &Name| names.iter().any(|names| held(names, name).is_some());
    if record.unnamed {
        for n in 0u32.. {
            if !is_taken(&record.name) {
                break;
            }
            record.name = Name::random();
            if n > 64 {
                record.name = Name::parse(&format!("{}-{n}", record.name)).unwrap_or_else(|_| Name::random());
            }
        }
    } else if let Some((n, id)) = names.iter().enumerate().find_map(|(n, names)| Some((n, held(names, &record.name)?)))
    {
        return Err(taken_by(store, &id, &record.name, (n > 0).then(|| record.repos[n].worktree.as_path())));
    }
    let dir = store.sandbox(&record.id);
    make_dir(dir.path())?;
    let guard = TempTree(dir.path().to_owned());
    stop("spawn.dir", dir.path())?;
    let lock_file = dir.lock_file();
    let lock = FileLock::exclusive(&lock_file).map_err(failed("lock", &lock_file))?;
    furnish(store, &dir, &record, taken, threads, progress)?;
    stop("spawn.name", dir.path())?;
    for names in &names {
        names.give(&record.name, &record.id)?;
    }
    stop("spawn.record", dir.path())?;
    record.sequence = store.next_sequence()?;
    write_json(&dir.record(), &record, false)?;
    stop("spawn.made", dir.path())?;
    std::mem::forget(guard);
    Ok((Sandbox::new(dir, record), lock))
}

/// Makes the directories of a sandbox whose own directory is there: its home, and for each tree what it is written
/// to.
pub(crate) fn furnish(
    store: &Store,
    dir: &SandboxDir,
    record: &SandboxRecord,
    taken: &[&Taken],
    threads: usize,
    progress: &dyn Progress,
) -> Result<()> {
    let own = |path: PathBuf| -> Result<PathBuf> {
        make_dir(&path)?;
        if let Some((uid, gid)) = owner(&record.user) {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
        }
        Ok(path)
    };
    own(dir.home())?;
    own(dir.tmp())?;
    for (n, taken) in taken.iter().enumerate().filter(|(n, _)| record.has_upper(*n)) {
        own(dir.work(n))?;
        let upper = own(dir.upper(n))?;
        if record.view == TreeView::Copy {
            let measured = Measured::new(store, progress);
            let filled = crate::whole::fill(&store.repo(&taken.repo), &taken.snapshot, dir, n, threads, &measured);
            match measured.short() {
                Some(short) => return Err(short.into()),
                None => filled?,
            }
        }
        // The top directory of the merged tree is the upper one: it looks like the host's.
        Look::of_snapshot(&taken.snapshot).give(&upper)?;
    }
    Ok(())
}

/// Takes a sandbox back whose launch failed: nothing was ever done in it.
pub fn undo(store: &Store, sandbox: &Sandbox) {
    let Ok(lock) = sandbox.take(std::time::Duration::from_secs(5)) else { return };
    let _ = crate::removal::remove_unused(store, sandbox, lock);
}
