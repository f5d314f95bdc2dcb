//! What a driver is asked to launch: one self-contained value, built without privilege,
//! written to the supervisor as JSON, and the same for every driver.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where our own files are inside: a directory on a tmpfs, made at each start.
///
/// ```text
/// /run/git-sandbox/
///   bin/git-sandbox           this program, read-only (also git-remote-sandbox)
///   agent.sock                requests of tools inside (`git push host`), served by PID 1
///   objects/<view key>/       a view, read-only: what `.git/objects/info/alternates` names
///   trees                     where the trees are, one path a line, the main one first
///   repo.config               git configuration per sandbox, included by each generated `.git/config`
///   bashrc, zsh/.zshrc        the prompt
/// ```
pub const INSIDE: &str = "/run/git-sandbox";

/// What [`LaunchSpec::nested`] costs: told when a sandbox is made, and by `show`.
pub const NESTED_COST: &str = "nested: programs inside may make namespaces and mounts of their own, so that more of the \
                               kernel is in their reach; no Landlock; a /proc that they mount is not masked";

/// Everything that a driver needs to know to start one sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The sandbox's id and name, for messages, the host name and `GIT_SANDBOX`.
    pub id: String,
    /// See `id`.
    pub name: String,
    /// A sandbox to work in, or a read-only helper over a stopped one's directories.
    pub mode: Mode,
    /// Copy-on-write trees, mounted in this order.
    pub trees: Vec<Tree>,
    /// Object views, mounted read-only at `/run/git-sandbox/objects/<key>`.
    pub views: Vec<View>,
    /// The private home: a directory of the sandbox on disk, at the host's own path.
    pub home: Mount,
    /// The private `/tmp` (and `/var/tmp`): a directory of the sandbox on disk, emptied at start.
    pub tmp: PathBuf,
    /// Top directories of the host that are shown read-only when they exist: `/usr`, `/opt`, `/nix/store`, …;
    /// where the host has a symlink (`/bin`), the same symlink is made.
    pub system: Vec<PathBuf>,
    /// Read-only binds below the home or elsewhere: toolchains. A missing source is skipped.
    pub toolchains: Vec<Mount>,
    /// Files below toolchains that hold a login: shown as empty files. One that is not there is skipped.
    #[serde(default)]
    pub covers: Vec<PathBuf>,
    /// Symlinks to make (path, target): the caller's spelling of the tree's path, `/workspace`.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files to generate (below `/etc` or [`INSIDE`]).
    pub files: Vec<GeneratedFile>,
    /// Who the command is inside.
    pub user: User,
    /// Host name inside.
    pub hostname: String,
    /// The whole environment of every session.
    pub env: Vec<(String, String)>,
    /// The network.
    pub network: Network,
    /// A listener at [`MIRROR_PORT`] inside is handed out: it leads to the configured mirror.
    #[serde(default)]
    pub mirror: bool,
    /// Resource limits.
    pub limits: Limits,
    /// Layers of the wall that may be missing (`--allow-weak`).
    #[serde(default)]
    pub allow_weak: Vec<String>,
    /// Layers that would only be told of when missing, and must stand (`sandbox.require`).
    #[serde(default)]
    pub require: Vec<String>,
    /// Programs inside may make namespaces and mounts of their own (`--nested`).
    #[serde(default)]
    pub nested: bool,
    /// Absolute path of our own binary on the host.
    pub program: PathBuf,
    /// What a driver with a kernel of its own needs besides; the others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
}

/// A virtual machine's own things on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The sandbox's directory: its disk, its console log and its sockets are there.
    pub dir: PathBuf,
    /// What the user has set.
    pub settings: VmSettings,
}

/// How virtual machines are run here, the same for all of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSettings {
    /// A directory for what can be made again: unpacked kernels, initramfs images, verdicts about acceleration.
    pub cache: PathBuf,
    /// The guest kernel (`sandbox.vm.kernel`); one is looked for without it.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// What runs the guest's instructions (`sandbox.vm.accel`).
    #[serde(default)]
    pub accel: Accel,
}

/// What runs a guest's instructions (`sandbox.vm.accel`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The processor where it really can, which a probe decides, else emulation.
    #[default]
    Auto,
    /// The processor, through `/dev/kvm`, or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// Reads the setting.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Kvm, Self::Tcg].into_iter().find(|accel| accel.as_str() == text)
    }

    /// Its name in the setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the sandbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// To work in: the upper directory is writable.
    Work,
    /// To read from: upper and layers are all lower directories, nothing is writable but a
    /// tmpfs; for commit-back and rescue of a sandbox that does not run.
    Helper,
}

/// One copy-on-write tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tree {
    /// Canonical absolute path on the host, and inside.
    pub at: PathBuf,
    /// Read-only layers, uppermost first.
    pub lowers: Vec<PathBuf>,
    /// The sandbox's own changes; with [`TreeView::Copy`] the whole tree.
    pub upper: PathBuf,
    /// Overlayfs's work directory; on the same file system as `upper`.
    pub work: PathBuf,
    /// Mounted read-only (`--with PATH:ro`).
    pub read_only: bool,
    /// How it is put together.
    #[serde(default)]
    pub view: TreeView,
}

/// How a sandbox's tree is put together (`sandbox.view`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TreeView {
    /// An overlay: layers below, and what is written in `upper`.
    #[default]
    Overlay,
    /// `upper` is a full copy, and all that there is.
    Copy,
}

impl TreeView {
    /// Its name in the setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Copy => "copy",
        }
    }
}

/// A directory of packs, seen read-only inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Its key: the name below `/run/git-sandbox/objects/`.
    pub key: String,
    /// The object directory on the host (holding `pack/`).
    pub dir: PathBuf,
}

/// A directory (or file) of the host at a path inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// On the host.
    pub source: PathBuf,
    /// Inside.
    pub at: PathBuf,
}

/// A file that exists only inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneratedFile {
    /// Absolute path inside.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub contents: String,
}

/// The one user inside. Its uid and gid are the same numbers inside and outside, so that
/// ownership in the copied index stays true; with `root` it is seen as 0 inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Name of the primary group.
    pub group: String,
    /// Host uid that everything inside runs as; never 0.
    pub uid: u32,
    /// Host gid; never 0.
    pub gid: u32,
    /// Absolute path of the login shell.
    pub shell: PathBuf,
    /// Shown as uid 0 inside (`--root`).
    pub root: bool,
}

/// What network there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A namespace with only a loopback device.
    None,
    /// The same, and on its loopback device, at [`PROXY_PORT`], the proxy outside: it lets out what the
    /// sandbox's policy file allows.
    Allow,
    /// The host's.
    Host,
}

impl Network {
    /// Its name on the command line and in `GIT_SANDBOX_NET`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Allow => "allow",
            Self::Host => "host",
        }
    }
}

/// The port of 127.0.0.1 inside where the proxy takes connections (the usual one of HTTP proxies).
pub const PROXY_PORT: u16 = 3128;

/// The port of 127.0.0.1 inside that leads to the mirror (`sandbox.mirror`), and to nothing else.
pub const MIRROR_PORT: u16 = 9480;

/// Resource limits; `None` is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Hundredths of a CPU.
    pub cpu_percent: Option<u32>,
    /// Bytes of the upper directory.
    pub disk: Option<u64>,
}
