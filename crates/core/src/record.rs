//! What is written about repositories, snapshots and sandboxes: the JSON files of the store.

use crate::driver::{Isolation, ProcessIdentity, Usage};
use crate::id::{LayerId, Name, RepoId, SandboxId, SnapshotId};
use crate::launch::{Limits, Network, TreeView, User};
use sandbox_protocol::ExitStatus;
use sandbox_protocol::event::Frozen;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `repos/<id>/repo.json`: which host repository this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepoRecord {
    /// Its id, also in the file `sandbox-id` of the common git directory.
    pub id: RepoId,
    /// The common git directory when last seen.
    pub common_dir: PathBuf,
    /// Device and inode of that directory: the same id with another inode is a copy.
    pub dev: u64,
    /// See `dev`.
    pub ino: u64,
    /// The user's answer to "carry files that look like secrets?", if asked.
    #[serde(default)]
    pub carry_secrets: Option<bool>,
    /// The user's answers to "shall sandboxes have the login of this agent?", by the preset's name.
    #[serde(default)]
    pub carry_credentials: BTreeMap<String, bool>,
    /// The user's answers to "shall sandboxes have what `.sandbox.toml` asks for?", by `PATH` or `PATH:ro`.
    #[serde(default)]
    pub with: BTreeMap<String, bool>,
    /// The user's answers to "shall this command run before each merge?", by the command of `.sandbox.toml`.
    #[serde(default)]
    pub checks: BTreeMap<String, bool>,
    /// It is no repository: `common_dir` is a directory of the user.
    #[serde(default)]
    pub directory: bool,
}

/// `repos/<id>/snapshots/<id>.json`: one immutable capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The work tree that was captured, canonical.
    pub worktree: PathBuf,
    /// Layers of the tree, uppermost first, without the git layer.
    pub layers: Vec<LayerId>,
    /// The layer that holds `.git` (and those of nested repositories); above all others.
    pub git_layer: LayerId,
    /// What was known about git.
    pub git: GitFacts,
    /// Unix seconds.
    pub created: u64,
    /// Mode and modification time (seconds, nanoseconds) of the top directory.
    pub root_mode: u32,
    /// See `root_mode`.
    pub root_mtime: (i64, u32),
    /// Extended attributes of the top directory: name and value, as `escape_bytes` writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_attributes: Vec<(String, String)>,
    /// What was left out or is special, one line each, as told to the user.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The git side of a snapshot: of the main repository and of each one inside it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct GitFacts {
    /// The commit of `HEAD`; `None` when there is none yet.
    pub base: Option<String>,
    /// `refs/heads/…` that was checked out; `None` when detached.
    pub branch: Option<String>,
    /// Ids that were granted and that a landing may rely on.
    pub granted: Vec<String>,
    /// The view of the main repository and of every nested one, by key.
    pub views: Vec<ViewRecord>,
    /// `sha1` or `sha256`.
    pub object_format: String,
    /// Git configuration of system and user scope, as it is shown inside at `/etc/gitconfig`.
    pub user_config: String,
    /// Names of the remotes that the generated configuration has, of all repositories.
    #[serde(default)]
    pub remotes: Vec<String>,
    /// Told once: signing is off, a filter is missing, …
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A repository and the view that it borrows from.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ViewRecord {
    /// Work tree relative to the main one; empty for the main repository itself.
    pub path: PathBuf,
    /// Absolute git directory on the host (the common one), where commits of it land.
    pub host_gitdir: PathBuf,
    /// Absolute git directory inside the sandbox.
    pub inside_gitdir: PathBuf,
    /// Name of `repos/<id>/views/<key>`.
    pub key: String,
    /// The commit of its `HEAD`.
    pub base: Option<String>,
    /// The branch that was checked out.
    pub branch: Option<String>,
    /// What was granted of it.
    pub granted: Vec<String>,
    /// `sha1` or `sha256`.
    pub object_format: String,
    /// The host's shallow boundary when it was captured.
    #[serde(default)]
    pub shallow: Vec<String>,
    /// A partial clone: objects may be missing.
    #[serde(default)]
    pub partial: bool,
}

/// `sandboxes/<id>/sandbox.json`: what was asked. Without it the directory is a half-made sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// Its name, unique per repository.
    pub name: Name,
    /// The user did not choose the name.
    pub unnamed: bool,
    /// Drop it when its command ends and nothing is left (`--rm`).
    #[serde(default)]
    pub rm: bool,
    /// The driver that runs it.
    pub driver: String,
    /// Its repositories; the first is the main one.
    pub repos: Vec<RepoMount>,
    /// Unix seconds.
    pub created: u64,
    /// Which sandbox of this state directory it was, counted from 1: clocks jump, this does not. 0: an earlier version
    /// made it.
    #[serde(default)]
    pub sequence: u64,
    /// The command that `spawn` was given, empty for an idle sandbox.
    pub argv: Vec<String>,
    /// Where that command started.
    pub cwd: PathBuf,
    /// `$HOME` inside.
    pub home: PathBuf,
    /// Who it runs as.
    pub user: User,
    /// Environment of the sessions, from the host's allow-list and `--env`.
    pub env: Vec<(String, String)>,
    /// The network.
    pub network: Network,
    /// The preset that it was made with.
    #[serde(default)]
    pub preset: Option<String>,
    /// Limits.
    pub limits: Limits,
    /// Further toolchain binds, as (source, target).
    #[serde(default)]
    pub toolchains: Vec<(PathBuf, PathBuf)>,
    /// Symlinks to make inside, as (path, target).
    #[serde(default)]
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Seconds after which the command is ended.
    #[serde(default)]
    pub timeout: Option<u64>,
    /// Layers of the wall that may be missing.
    #[serde(default)]
    pub allow_weak: Vec<String>,
    /// Layers that must stand (`sandbox.require` and `.sandbox.toml`, when it was made).
    #[serde(default)]
    pub require: Vec<String>,
    /// No weaker driver than this may run it.
    #[serde(default)]
    pub min_isolation: Option<Isolation>,
    /// Programs inside may make namespaces and mounts of their own.
    #[serde(default)]
    pub nested: bool,
    /// What its command left uncommitted is committed when the command has ended.
    #[serde(default)]
    pub auto_commit: bool,
    /// How its trees are put together, for life.
    #[serde(default)]
    pub view: TreeView,
    /// What it writes is on a disk that only a guest mounts; its upper directories here are a picture of that.
    #[serde(default)]
    pub guest_disk: bool,
    /// Seconds between two rescues of what is not committed, while something changes; 0: none but at the end.
    #[serde(default = "rescue_every")]
    pub rescue_every: u64,
    /// What it was forked from.
    #[serde(default)]
    pub forked: Option<Forked>,
    /// `URL@REF` of what it was made from, where that is an upstream without a working tree on this machine: its
    /// repository is one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The mirror that it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorAccess>,
}

/// A sandbox's way to a mirror: what git inside is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MirrorAccess {
    /// Where the mirror is, for people.
    pub address: String,
    /// Where it is for git inside, without a slash at the end.
    pub url: String,
    /// Upstreams whose fetches are led there; the first is that of the main repository.
    pub led: Vec<Led>,
    /// Its session on the mirror: it may write `refs/agents/<session>`.
    #[serde(default)]
    pub session: Option<String>,
    /// What its command has done is recorded there when it has ended (`sandbox.record`).
    #[serde(default)]
    pub record: bool,
}

/// One upstream that a mirror stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Led {
    /// The remote.
    pub remote: String,
    /// Its URL.
    pub url: String,
    /// The path of it on the mirror.
    pub path: String,
}

/// How often what is not committed is rescued, unless the user says otherwise.
pub const RESCUE_EVERY: u64 = 300;

fn rescue_every() -> u64 {
    RESCUE_EVERY
}

impl SandboxRecord {
    /// Tree number `n` has a directory of its own in the sandbox: with an overlay, one that can be written to.
    pub fn has_upper(&self, n: usize) -> bool {
        self.view == TreeView::Copy || !self.repos[n].read_only
    }
}

/// Where a forked sandbox comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forked {
    /// The name that the other sandbox had then.
    pub name: Name,
    /// Its id.
    pub id: SandboxId,
    /// The commit of it that the host had then: what is committed up to there is no news of the fork.
    #[serde(default)]
    pub tip: Option<String>,
    /// The same of its further repositories, by their number.
    #[serde(default)]
    pub tips: BTreeMap<usize, String>,
}

/// One repository (or plain directory) of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepoMount {
    /// The host repository.
    pub repo: RepoId,
    /// The work tree on the host, and its path inside.
    pub worktree: PathBuf,
    /// The stack that it stands on, for life.
    pub snapshot: SnapshotId,
    /// Nothing in it can be changed inside (`--with PATH:ro`): it has no upper directory.
    #[serde(default)]
    pub read_only: bool,
    /// A directory that is no repository: it has no commits.
    #[serde(default)]
    pub directory: bool,
}

impl RepoMount {
    /// Commits of it come home.
    pub fn has_commits(&self) -> bool {
        !self.read_only && !self.directory
    }
}

/// `sandboxes/<id>/status.json`: what was last true; the running supervisor knows better.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct StatusRecord {
    /// The supervisor, while it runs.
    pub supervisor: Option<ProcessIdentity>,
    /// The sandbox's first process.
    pub init: Option<ProcessIdentity>,
    /// It was ended by `stop` or by its command's end, not by a crash.
    pub stopped: bool,
    /// How the main command ended, and when (Unix seconds).
    pub exited: Option<(ExitStatus, u64)>,
    /// When it was last started (Unix seconds).
    pub started: Option<u64>,
    /// Every ref that was seen to move inside was brought home before the end.
    #[serde(default)]
    pub home: bool,
    /// `--timeout` ended the command.
    #[serde(default)]
    pub timed_out: bool,
    /// What was enforced at the last start, what not.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The layers of the wall that stood in its last life, by name (see `Hello::enforced`).
    #[serde(default)]
    pub enforced: Vec<String>,
    /// What its last life has used, once that has ended.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Everything inside stands still, because there is no room for what it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
}
