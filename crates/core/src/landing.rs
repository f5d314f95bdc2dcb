//! The landing: a throw-away bare repository in which a sandbox's commits are received and checked
//! before the host's repository hears of them.
//!
//! ```text
//!  inside                       our relay             landing                         host
//!  git upload-pack ──bytes──► cap, deadline ──► git fetch fd::N, fsck on
//!                                               alternates: the sandbox's view only
//!                                               connectivity = received or granted
//!                                               tree budget
//!                                               pack of what is new ──────────────► objects
//!                                                                     one update-ref transaction
//! ```
//!
//! Host git only speaks the pack protocol; it opens no repository that a sandbox can write. A thin
//! pack can name only granted bases, because the landing sees nothing else: a private object of the
//! host can neither be completed into a pack nor referenced. The host's repository never fetches:
//! it is given a pack that our own git made in the landing, so a refusal leaves nothing in it.

mod budget;
mod names;
mod owner;
mod plan;
pub mod relay;
mod transfer;

pub use names::{escape_ref, unescape_ref};
pub use owner::Owner;
pub use plan::{Base, MAX_REFS, Planned, RefPlan, RefusedRef, plan_refs};
pub use relay::Conversation;
pub(crate) use transfer::place;
pub use transfer::{MoveOutcome, Update, delete_refs, stale_locks};

use crate::space::NoRoom;
use crate::store::{self, StoreError};
use crate::view::View;
use crate::{host_repo, view};
use sandbox_git::refs::write_packed;
use sandbox_git::{Git, GitCommand, GitError, ObjectFormat, Oid, RefName};
use sandbox_sys::child::ChildLimits;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file that says in which boot the landing was made.
const BOOT: &str = "sandbox-boot";

/// A file whose presence says that the landing holds something that was refused, or not judged yet.
const SPOILED: &str = "spoiled";

/// How often a land may be begun again to find the refs that are to blame.
const MAX_ATTEMPTS: usize = 64;

/// What a sandbox may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes over the wire in one land.
    pub bytes: u64,
    /// Time for one land.
    pub time: Duration,
    /// Memory of a git process that reads what was sent.
    pub memory: u64,
    /// Entries of one commit's tree that differ from its parent's, all directories unfolded.
    pub entries: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 4 << 30, time: Duration::from_secs(600), memory: 2 << 30, entries: 1_000_000 }
    }
}

/// Something wanted of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The ref that it is for: names it in messages.
    pub name: RefName,
    /// The object.
    pub oid: Oid,
}

/// What became of what was wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    /// Received (or granted before) and checked.
    pub accepted: Vec<Want>,
    /// Refused, each with the reason (escaped).
    pub refused: Vec<(Want, String)>,
    /// Bytes over the wire.
    pub bytes: u64,
}

/// Why nothing could be landed or moved at all.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The state directory.
    #[error("cannot use the state directory")]
    Store(#[from] StoreError),
    /// The host's disk has too little room for what came.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// Git failed for a reason that no single ref is to blame for.
    #[error("cannot receive from the sandbox")]
    Git(#[from] GitError),
    /// No conversation with the sandbox.
    #[error("cannot talk to the sandbox's git")]
    Connect(#[source] io::Error),
    /// It sent more than it may.
    #[error("the sandbox sent more than {0} bytes")]
    TooLarge(u64),
    /// The host's refs are not what they were when the move was planned.
    #[error("the host's refs changed meanwhile: {0}")]
    Changed(String),
    /// A ref that is not ours is in the way.
    #[error("a ref of the host is in the way: {0}")]
    InTheWay(String),
    /// Another git command holds a lock for too long.
    #[error("another git command holds a lock in the repository: {0}")]
    Locked(String),
    /// A file.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `write`, `copy`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, LandingError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LandingError {
    let path = path.to_owned();
    move |source| LandingError::Io { action, path, source }
}

/// A landing repository.
#[derive(Debug)]
pub struct Landing {
    git: Git,
    dir: PathBuf,
    format: ObjectFormat,
    partial: bool,
    granted: BTreeSet<Oid>,
    bounds: Bounds,
}

impl Landing {
    /// Makes the landing of one sandbox's repository in `dir`, over its view. A landing that is
    /// there already is used again (what was accepted before need not be sent twice) unless it holds
    /// something that was refused, or is of another boot: nothing of it is synced, and a power cut leaves it torn.
    pub fn create(git: &Git, dir: &Path, view: &View, bounds: Bounds) -> Result<Self> {
        let boot = sandbox_sys::process::boot_id().map_err(failed("read the boot id for", dir))?;
        let of_this_boot = fs::read_to_string(dir.join(BOOT)).is_ok_and(|found| found == boot);
        if dir.exists() && (dir.join(SPOILED).exists() || !of_this_boot) {
            fs::remove_dir_all(dir).map_err(failed("remove", dir))?;
        }
        host_repo::write_bare(dir, view.format(), view::partial_config(view))?;
        view::borrow(view, dir)?;
        sweep(dir)?;
        let granted = view.roots();
        let base: Vec<(RefName, Oid)> = granted
            .iter()
            .filter_map(|oid| Some((RefName::parse(format!("refs/base/{oid}"))?, *oid)))
            .chain(kept(dir))
            .collect();
        let packed = write_packed(base.iter().map(|(name, oid)| (name, *oid, None)));
        store::write_whole(&dir.join("packed-refs"), &packed, false)?;
        store::write_whole(&dir.join(BOOT), boot.as_bytes(), false)?;
        Ok(Self {
            git: git.clone(),
            dir: dir.to_owned(),
            format: view.format(),
            partial: view.is_partial(),
            granted,
            bounds,
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program and environment that serve a repository from inside the sandbox, for an internal
    /// session: `git upload-pack`, asked for objects by id.
    pub fn upload_pack(gitdir: &str) -> (Vec<String>, Vec<(String, String)>) {
        let argv = ["git", "-c", "uploadpack.allowAnySHA1InWant=true", "upload-pack", "--strict", gitdir];
        (argv.map(str::to_owned).to_vec(), vec![("GIT_PROTOCOL".into(), "version=2".into())])
    }

    /// Receives what is wanted. `connect` starts one conversation with an upload-pack that runs
    /// inside; it is called again when something was refused, to receive the rest without it.
    pub fn land(&self, connect: &mut dyn FnMut() -> io::Result<Conversation>, wants: &[Want]) -> Result<Landed> {
        let mut landed = Landed::default();
        let mut open: Vec<Want> = Vec::new();
        let mut present: Vec<Want> = Vec::new();
        let mut walker = budget::Walker::start(self)?;
        for want in wants {
            if want.oid.format() != self.format {
                landed.refused.push((want.clone(), format!("the id is not {}", self.format)));
            } else if walker.is_there(want.oid)? {
                present.push(want.clone());
            } else {
                open.push(want.clone());
            }
        }
        let mut clean = !self.dir.join(SPOILED).exists();
        // Until all was judged: a fetch that was cut short leaves a pack that nobody has checked.
        if !open.is_empty() {
            self.spoil()?;
        }
        let deadline = Instant::now() + self.bounds.time;
        let mut groups = vec![open];
        let mut received: Vec<Want> = Vec::new();
        let mut attempts = 0;
        while let Some(group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            attempts += 1;
            if attempts > MAX_ATTEMPTS {
                landed.refused.extend(group.into_iter().map(|want| (want, "too many refs were refused".to_owned())));
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            let before = self.packs();
            let (result, bytes) = self.fetch(connect, &group, left, self.bounds.bytes.saturating_sub(landed.bytes))?;
            landed.bytes += bytes;
            match result {
                Ok(()) => received.extend(group),
                Err(error @ (GitError::Timeout { .. } | GitError::Missing | GitError::TooOld { .. })) => {
                    return Err(error.into());
                }
                // Not one byte: no ref is to blame for that.
                Err(error) if bytes == 0 => return Err(LandingError::Connect(io::Error::other(error))),
                Err(error) => {
                    clean = false;
                    sweep(&self.dir)?;
                    // The last checks of `index-pack` come after its pack is in its place. What is there the next
                    // try takes for received, and does not check again.
                    self.remove_packs(&before)?;
                    if group.len() == 1 {
                        let reason = error.stderr().map_or_else(|| error.to_string(), str::to_owned);
                        landed.refused.extend(group.into_iter().map(|want| (want, reason.clone())));
                    } else {
                        let (left, right) = group.split_at(group.len() / 2);
                        groups.push(right.to_vec());
                        groups.push(left.to_vec());
                    }
                }
            }
        }
        received.extend(present);
        let verdicts = budget::judge(self, &mut walker, &received, self.bounds.time)?;
        if clean && verdicts.iter().all(Option::is_none) {
            self.unspoil()?;
        }
        for (want, verdict) in received.into_iter().zip(verdicts) {
            match verdict {
                Some(reason) => landed.refused.push((want, reason)),
                None => landed.accepted.push(want),
            }
        }
        Ok(landed)
    }

    /// Writes a blob of ours (the owner record) and returns its id.
    pub fn blob(&self, bytes: &[u8]) -> Result<Oid> {
        let hex = self.command().args(["hash-object", "-w", "--stdin"]).stdin(bytes).line()?;
        Oid::parse(&hex).ok_or_else(|| {
            GitError::Unexpected { command: "git hash-object".into(), what: sandbox_git::printable(hex.as_bytes()) }
                .into()
        })
    }

    /// One `git fetch` over one conversation. The outer error is ours, the inner one the sandbox's.
    fn fetch(
        &self,
        connect: &mut dyn FnMut() -> io::Result<Conversation>,
        wants: &[Want],
        time: Duration,
        bytes: u64,
    ) -> Result<(std::result::Result<(), GitError>, u64)> {
        let conversation = connect().map_err(LandingError::Connect)?;
        let (theirs, relay) = relay::start(conversation, bytes).map_err(LandingError::Connect)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let specs: String = wants.iter().map(|want| format!("+{}:refs/in/{}\n", want.oid, want.oid)).collect();
        let mut command = self.command();
        for setting in FETCH_CONFIG {
            command = command.config(setting);
        }
        let result = command
            .args(FETCH_ARGS)
            .arg(format!("fd::{number}/sandbox"))
            .stdin(specs)
            .inherit(theirs)
            .limits(ChildLimits { file_size: Some(self.bounds.bytes), ..child_limits(self.bounds) })
            .timeout(time)
            .run();
        let relayed = relay.finish();
        if relayed.over {
            return Err(LandingError::TooLarge(self.bounds.bytes));
        }
        Ok((result, relayed.bytes))
    }

    /// A command in the landing.
    fn command(&self) -> GitCommand {
        command(&self.git, &self.dir, self.bounds)
    }

    /// Removes the packs that came since `before`.
    fn remove_packs(&self, before: &BTreeSet<OsString>) -> Result<()> {
        // `.idx` sorts before `.pack`: without it a pack holds nothing.
        for pack in self.packs().difference(before) {
            let path = self.dir.join("objects/pack").join(pack);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What is in here now may not be trusted by a later land.
    fn spoil(&self) -> Result<()> {
        let path = self.dir.join(SPOILED);
        fs::write(&path, b"").map_err(failed("write", &path))
    }

    fn unspoil(&self) -> Result<()> {
        let path = self.dir.join(SPOILED);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// Writes all commits that a landing holds into a bundle, which needs nothing else; false when it holds none, or
/// something that was refused.
pub fn bundle(git: &Git, dir: &Path, out: &Path) -> Result<bool> {
    if dir.join(SPOILED).exists() || kept(dir).is_empty() {
        return Ok(false);
    }
    let command = command(git, dir, Bounds::default()).args(["bundle", "create", "--quiet"]).arg(out);
    command.arg("--glob=refs/in/*").run()?;
    Ok(true)
}

/// A command in a landing, over objects that come from inside: whatever it is, its memory, its time on a processor
/// and its time on the clock are bounded.
fn command(git: &Git, dir: &Path, bounds: Bounds) -> GitCommand {
    git.landing(dir, child_limits(bounds), bounds.time)
}

fn child_limits(bounds: Bounds) -> ChildLimits {
    ChildLimits {
        address_space: Some(bounds.memory),
        cpu_seconds: Some(bounds.time.as_secs().max(1)),
        // What was granted may be larger than what may be sent.
        file_size: None,
        nice: None,
    }
}

/// Configuration of the fetch from a sandbox.
const FETCH_CONFIG: &[&str] = &[
    // A descriptor: no shell, no path, no URL.
    "protocol.fd.allow=always",
    "protocol.version=2",
    "transfer.fsckObjects=true",
    "fetch.fsck.gitattributesSymlink=error",
    "fetch.fsck.gitignoreSymlink=error",
    "fetch.fsck.mailmapSymlink=error",
    "fetch.fsck.badFilemode=error",
    // An empty value would end the fetch, the user's own list would weaken it.
    "fetch.fsck.skipList=/dev/null",
    // Always a pack, so that the limit on file size holds.
    "fetch.unpackLimit=1",
    "fetch.prune=false",
    "fetch.writeCommitGraph=false",
    "fetch.showForcedUpdates=false",
    // The server must not send us elsewhere.
    "transfer.bundleURI=false",
    "promisor.acceptFromServer=none",
    // Thrown away: the host gets its own copy, synced.
    "core.fsync=none",
];

/// Arguments of the fetch from a sandbox; the refspecs come on standard input.
const FETCH_ARGS: &[&str] = &[
    "fetch",
    "--quiet",
    "--no-tags",
    "--no-prune",
    "--no-write-fetch-head",
    "--no-auto-maintenance",
    "--no-recurse-submodules",
    "--no-progress",
    "--refmap=",
    "--stdin",
];

/// Refs of an earlier land: what need not be sent again.
fn kept(dir: &Path) -> Vec<(RefName, Oid)> {
    let store = sandbox_git::refs::RefStore::read_files(dir, dir).unwrap_or_default();
    let kept = store.refs.keys().filter(|name| name.as_bytes().starts_with(b"refs/in/"));
    kept.filter_map(|name| Some((name.clone(), store.resolve(name)?))).collect()
}

/// Removes what an interrupted git command left.
fn sweep(dir: &Path) -> Result<()> {
    let packs = dir.join("objects/pack");
    for entry in fs::read_dir(&packs).map_err(failed("list", &packs))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("tmp_") || name.ends_with(".keep") || name.ends_with(".lock") {
            let _ = fs::remove_file(entry.path());
        }
    }
    for lock in ["packed-refs.lock", "HEAD.lock", "shallow.lock", "config.lock"] {
        let _ = fs::remove_file(dir.join(lock));
    }
    Ok(())
}
