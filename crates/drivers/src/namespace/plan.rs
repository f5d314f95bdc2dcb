//! The mount tree as a value: what will be mounted, in which order, readable as text.
//!
//! ```text
//!   /                      tmpfs, read-only in the end
//!   /usr /opt …            host, read-only
//!   /etc                   generated
//!   /dev                   six devices and a pts of its own
//!   /proc /run /dev/shm    new instances
//!   /home/dev, /tmp        the sandbox's directories on disk
//!   /home/dev/.rustup …    toolchains, read-only
//!   /home/dev/project      overlay: what the sandbox works on
//!   /run/git-sandbox       our own files, read-only in the end
//! ```
//! Order matters: the home before what is below it, the trees last, since a tree may be anywhere.

use super::view::{DEVICES, Host};
use sandbox_core::driver::DriverError;
use sandbox_core::launch::{INSIDE, LaunchSpec, Mode, TreeView};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is forbidden on a mount; `nosuid` and `nodev` always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Nothing can be written.
    pub read_only: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
}

impl Access {
    /// Programs of the host.
    pub const SYSTEM: Self = Self { read_only: true, no_exec: false };
    /// Data of the host.
    pub const DATA: Self = Self { read_only: true, no_exec: true };
    /// A directory of the sandbox.
    pub const OWN: Self = Self { read_only: false, no_exec: false };
    /// A directory in memory, for sockets and the like.
    pub const MEMORY: Self = Self { read_only: false, no_exec: true };
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read_only { "ro,nosuid,nodev" } else { "rw,nosuid,nodev" })?;
        if self.no_exec { f.write_str(",noexec") } else { Ok(()) }
    }
}

/// One step; parents of `at` are made as needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A new file system in memory.
    Tmpfs {
        /// Where.
        at: PathBuf,
        /// How large it may get, in bytes.
        size: u64,
        /// How many files it may hold.
        inodes: u64,
        /// Permission bits of its root.
        mode: u32,
        /// What is forbidden.
        access: Access,
    },
    /// Something of the host, with all that is mounted below it.
    Bind {
        /// On the host.
        source: PathBuf,
        /// Inside.
        at: PathBuf,
        /// What is forbidden.
        access: Access,
        /// A directory, or a file.
        directory: bool,
    },
    /// An empty file that nobody can write, over a file or socket of the host that is shown. Left out
    /// where nothing is.
    Cover {
        /// Where.
        at: PathBuf,
    },
    /// A directory.
    Directory {
        /// Where.
        at: PathBuf,
    },
    /// A symlink. Left alone if something else is there already (in the home of an earlier run).
    Symlink {
        /// Where.
        at: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// A file that exists only inside.
    File {
        /// Where.
        at: PathBuf,
        /// Permission bits.
        mode: u32,
        /// What is in it.
        contents: Vec<u8>,
    },
    /// A character device of the host, checked by its number.
    Device {
        /// Its name below `/dev`.
        name: Cow<'static, str>,
        /// Major and minor number.
        number: (u32, u32),
    },
    /// A pts of its own at `/dev/pts`.
    Terminals {
        /// How many terminals it may have.
        max: u32,
    },
    /// `/proc` of the new pid namespace, masked.
    Proc {
        /// Limits of this user and pid namespace, written before `/proc/sys` becomes read-only.
        sysctls: Vec<(Cow<'static, str>, u64)>,
        /// A second one without masks at [`WHOLE_PROC`], where no path leads to once `/run` is mounted. The
        /// kernel lets a namespace inside mount its own only if a whole one is somewhere in its mounts.
        whole: bool,
    },
    /// A copy-on-write tree.
    Overlay {
        /// Where.
        at: PathBuf,
        /// Uppermost first.
        lowers: Vec<PathBuf>,
        /// Upper and work directory.
        writable: Option<(PathBuf, PathBuf)>,
    },
    /// A tree that is a directory of the sandbox.
    Whole {
        /// On the host.
        source: PathBuf,
        /// Inside.
        at: PathBuf,
        /// What is forbidden.
        access: Access,
    },
}

impl Step {
    /// Returns where inside the step does something.
    pub fn at(&self) -> PathBuf {
        match self {
            Self::Tmpfs { at, .. }
            | Self::Bind { at, .. }
            | Self::Cover { at }
            | Self::Directory { at }
            | Self::Symlink { at, .. }
            | Self::File { at, .. }
            | Self::Overlay { at, .. }
            | Self::Whole { at, .. } => at.clone(),
            Self::Device { name, .. } => Path::new("/dev").join(&**name),
            Self::Terminals { .. } => "/dev/pts".into(),
            Self::Proc { .. } => "/proc".into(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tmpfs { at, size, inodes, mode, access } => {
                write!(f, "tmpfs     {}  {access},mode={mode:o},size={size},nr_inodes={inodes}", at.display())
            }
            Self::Bind { source, at, access, .. } => {
                write!(f, "bind      {}  {access}", at.display())?;
                if source == at { Ok(()) } else { write!(f, "  from {}", source.display()) }
            }
            Self::Cover { at } => write!(f, "cover     {}", at.display()),
            Self::Directory { at } => write!(f, "directory {}", at.display()),
            Self::Symlink { at, target } => write!(f, "symlink   {} -> {}", at.display(), target.display()),
            Self::File { at, mode, contents } => {
                write!(f, "file      {}  {mode:o}, {} bytes", at.display(), contents.len())
            }
            Self::Device { name, number } => write!(f, "device    /dev/{name}  {}:{}", number.0, number.1),
            Self::Terminals { max } => write!(f, "devpts    /dev/pts  ptmxmode=0666,max={max}"),
            Self::Proc { sysctls, whole } => {
                write!(f, "proc      /proc  nosuid,nodev,noexec")?;
                for (name, value) in sysctls {
                    write!(f, "\n  limit     {name} = {value}")?;
                }
                for (path, kind) in MASKS {
                    write!(f, "\n  mask      {path}  {kind}")?;
                }
                write!(f, "\n  ro        /proc/sys")?;
                if *whole { write!(f, "\n  whole     {WHOLE_PROC}, under /run") } else { Ok(()) }
            }
            Self::Whole { source, at, access } => {
                write!(f, "copy      {}  {access}  from {}", at.display(), source.display())
            }
            Self::Overlay { at, lowers, writable } => {
                write!(f, "overlay   {}  nosuid,nodev,userxattr", at.display())?;
                for lower in lowers {
                    write!(f, "\n  lowerdir+ {}", lower.display())?;
                }
                match writable {
                    Some((upper, work)) => {
                        write!(f, "\n  upperdir  {}\n  workdir   {}", upper.display(), work.display())
                    }
                    None => write!(f, "\n  read-only"),
                }
            }
        }
    }
}

/// Paths below `/proc` that show or change the whole machine: `file` is covered by `/dev/null`,
/// `directory` by an empty one. A path that this kernel has not got is passed over.
pub const MASKS: &[(&str, &str)] = &[
    ("/proc/acpi", "directory"),
    ("/proc/asound", "directory"),
    ("/proc/bus", "directory"),
    ("/proc/driver", "directory"),
    ("/proc/fs", "directory"),
    ("/proc/irq", "directory"),
    ("/proc/scsi", "directory"),
    ("/proc/interrupts", "file"),
    ("/proc/kallsyms", "file"),
    ("/proc/kcore", "file"),
    ("/proc/keys", "file"),
    ("/proc/kmsg", "file"),
    ("/proc/latency_stats", "file"),
    ("/proc/sched_debug", "file"),
    ("/proc/sysrq-trigger", "file"),
    ("/proc/timer_list", "file"),
];

/// A directory that is always empty.
pub const EMPTY: &str = "/sys";

/// Where the whole `/proc` of a nested sandbox is: in a directory that `/run` covers.
pub const WHOLE_PROC: &str = "/run/proc";

/// How many namespaces of each kind may be inside with `--nested`: a browser has some for each tab.
const NESTED_NAMESPACES: u64 = 1024;

/// Limits of the new user namespace: no namespace inside, no fanotify, inotify within bounds so that one
/// sandbox cannot use up what the user's desktop shares with it.
const USER_LIMITS: &[(&str, u64)] = &[
    ("user/max_user_namespaces", 0),
    ("user/max_mnt_namespaces", 0),
    ("user/max_net_namespaces", 0),
    ("user/max_pid_namespaces", 0),
    ("user/max_ipc_namespaces", 0),
    ("user/max_uts_namespaces", 0),
    ("user/max_cgroup_namespaces", 0),
    ("user/max_time_namespaces", 0),
    ("user/max_inotify_instances", 1024),
    ("user/max_inotify_watches", 65536),
    ("user/max_fanotify_groups", 0),
    ("user/max_fanotify_marks", 0),
];

/// The sandbox's own copy of `kernel.pid_max` (per pid namespace only from Linux 6.14).
pub const PID_MAX: &str = "kernel/pid_max";

/// Facts of the kernel that change the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `kernel.pid_max` belongs to the pid namespace.
    pub own_pid_max: bool,
}

/// The whole tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// In order.
    pub steps: Vec<Step>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

/// Builds the plan; reads the host, changes nothing.
pub fn plan(spec: &LaunchSpec, host: &Host, kernel: Kernel) -> Result<MountPlan, DriverError> {
    refuse_impossible(spec)?;
    let helper = spec.mode == Mode::Helper;
    let memory = spec.limits.memory.unwrap_or(4 << 30);
    let mut steps = host.system(&spec.system);
    let mut notes = Vec::new();
    steps.extend(host.etc(spec));
    steps.extend(dev(memory));
    // Empty, and what covers the directories of /proc that are masked.
    steps.push(Step::Directory { at: EMPTY.into() });
    // Before `/run`, which covers the second one.
    steps.push(Step::Proc { sysctls: sysctls(spec, kernel), whole: spec.nested });
    steps.push(memory_at("/run", memory / 16, 0o755, Access::MEMORY));
    let tmp = Path::new("/tmp");
    if helper {
        steps.push(memory_at(tmp, memory / 8, 0o1777, Access::OWN));
        // A mount of its own, not a link: the state directory may be below it.
        steps.push(memory_at(Path::new("/var/tmp"), memory / 8, 0o1777, Access::OWN));
        steps.push(memory_at(&spec.home.at, memory / 8, 0o755, Access::OWN));
    } else {
        // The home may itself be below /tmp.
        steps.push(own(&spec.tmp, tmp));
        steps.push(own(&spec.tmp, Path::new("/var/tmp")));
        steps.push(own(&spec.home.source, &spec.home.at));
    }
    for toolchain in &spec.toolchains {
        let covered = spec.trees.iter().any(|tree| toolchain.at.starts_with(&tree.at));
        if covered || !host.has(&toolchain.source) {
            continue;
        }
        steps.push(Step::Bind {
            directory: host.is_dir(&toolchain.source),
            source: toolchain.source.clone(),
            at: toolchain.at.clone(),
            access: Access::SYSTEM,
        });
    }
    let in_a_tree = |at: &Path| spec.trees.iter().any(|tree| at.starts_with(&tree.at));
    let mut covers: Vec<PathBuf> = spec.covers.iter().cloned().chain(host.sockets_below(&steps)).collect();
    covers.retain(|at| !in_a_tree(at));
    covers.sort();
    covers.dedup();
    steps.extend(covers.into_iter().map(|at| Step::Cover { at }));
    let inside = Path::new(INSIDE);
    // Its own, so that it can be made read-only in the end, and neither moved nor replaced.
    steps.push(memory_at(inside, 16 << 20, 0o755, Access::MEMORY));
    for view in &spec.views {
        let at = inside.join("objects").join(&view.key);
        steps.push(Step::Bind { source: view.dir.clone(), at, access: Access::DATA, directory: true });
    }
    let program = inside.join("bin/git-sandbox");
    steps.push(Step::Bind { source: spec.program.clone(), at: program, access: Access::SYSTEM, directory: false });
    steps.push(Step::Symlink { at: inside.join("bin/git-remote-sandbox"), target: "git-sandbox".into() });
    for file in &spec.files {
        let contents = file.contents.clone().into_bytes();
        steps.push(Step::File { at: file.path.clone(), mode: file.mode, contents });
    }
    for tree in &spec.trees {
        steps.push(overlay(tree, helper));
    }
    for (at, target) in &spec.links {
        let inside_a_tree = spec.trees.iter().any(|tree| at.starts_with(&tree.at));
        if inside_a_tree {
            notes.push(format!("'{}' is not linked to '{}': it is in the tree", at.display(), target.display()));
        } else {
            steps.push(Step::Symlink { at: at.clone(), target: target.clone() });
        }
    }
    Ok(MountPlan { steps, notes })
}

/// Refuses what would take the system's place inside, or show the sandbox its own other half.
fn refuse_impossible(spec: &LaunchSpec) -> Result<(), DriverError> {
    let unsupported = |what: String| DriverError::Unsupported { driver: super::NAME, what };
    if spec.user.uid == 0 || spec.user.gid == 0 {
        return Err(unsupported("run anything as the host's user or group 0".to_owned()));
    }
    // The kernel maps the 0 of a namespace into one made inside only for who had CAP_SETFCAP (Linux 5.12).
    if spec.nested && spec.user.root {
        return Err(unsupported("nest sandboxes of a user that is root inside".to_owned()));
    }
    for tree in &spec.trees {
        let own = ["/", "/etc", "/usr", "/dev", "/proc", "/sys", "/run"];
        if own.iter().any(|path| tree.at == Path::new(path)) || tree.at.starts_with(INSIDE) {
            return Err(unsupported(format!("mount a tree at '{}'", tree.at.display())));
        }
        if spec.mode == Mode::Work && !tree.read_only && tree.upper.starts_with(&tree.at) {
            let what = format!("keep the changes of '{}' inside it ('{}')", tree.at.display(), tree.upper.display());
            return Err(unsupported(what));
        }
    }
    let paths = spec.links.iter().map(|link| &link.0).chain(spec.files.iter().map(|file| &file.path));
    for path in paths.chain(spec.trees.iter().map(|tree| &tree.at)) {
        let dots = path.components().any(|component| component == std::path::Component::ParentDir);
        if !path.is_absolute() || dots {
            return Err(unsupported(format!("make '{}': it is not a plain absolute path", path.display())));
        }
    }
    Ok(())
}

fn overlay(tree: &sandbox_core::launch::Tree, helper: bool) -> Step {
    if tree.view == TreeView::Copy {
        let access = Access { read_only: helper || tree.read_only, ..Access::OWN };
        return Step::Whole { source: tree.upper.clone(), at: tree.at.clone(), access };
    }
    let mut lowers = tree.lowers.clone();
    if helper && !tree.read_only {
        lowers.insert(0, tree.upper.clone());
    }
    let writable = (!helper && !tree.read_only).then(|| (tree.upper.clone(), tree.work.clone()));
    match (writable, lowers.as_slice()) {
        // An overlay without an upper directory wants two layers; one is simply shown.
        (None, [only]) => {
            Step::Bind { source: only.clone(), at: tree.at.clone(), access: Access::SYSTEM, directory: true }
        }
        (writable, _) => Step::Overlay { at: tree.at.clone(), lowers, writable },
    }
}

fn dev(memory: u64) -> Vec<Step> {
    let device = |(name, major, minor): &(&'static str, u32, u32)| Step::Device {
        name: Cow::Borrowed(name),
        number: (*major, *minor),
    };
    let mut steps: Vec<Step> = DEVICES.iter().map(device).collect();
    steps.push(Step::Terminals { max: 64 });
    steps.push(memory_at("/dev/shm", memory / 2, 0o1777, Access::MEMORY));
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        steps.push(Step::Symlink { at: Path::new("/dev").join(name), target: target.into() });
    }
    steps
}

fn memory_at(at: impl Into<PathBuf>, size: u64, mode: u32, access: Access) -> Step {
    Step::Tmpfs { at: at.into(), size, inodes: 65536, mode, access }
}

fn own(source: &Path, at: &Path) -> Step {
    Step::Bind { source: source.to_owned(), at: at.to_owned(), access: Access::OWN, directory: true }
}

fn sysctls(spec: &LaunchSpec, kernel: Kernel) -> Vec<(Cow<'static, str>, u64)> {
    let mut limits = USER_LIMITS.to_vec();
    if spec.nested {
        for (_, value) in limits.iter_mut().filter(|(name, _)| name.ends_with("_namespaces")) {
            *value = NESTED_NAMESPACES;
        }
    }
    if let (Some(pids), true) = (spec.limits.pids, kernel.own_pid_max) {
        // Once the numbers have wrapped around, those below 300 are not given out again.
        limits.push((PID_MAX, u64::from(pids) + 301));
    }
    limits.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sandbox_core::launch::{GeneratedFile, Limits, Mount, Network, Tree, User, View};

    /// A spec as `spawn` makes it for an ordinary user.
    pub(crate) fn spec() -> LaunchSpec {
        let state = Path::new("/state/sandboxes/1");
        LaunchSpec {
            id: "0123456789abcdef0123456789abcdef".into(),
            name: "fix".into(),
            mode: Mode::Work,
            trees: vec![Tree {
                at: "/home/dev/project".into(),
                lowers: vec!["/state/layers/git".into(), "/state/layers/delta".into(), "/state/layers/base".into()],
                upper: state.join("upper/0"),
                work: state.join("work/0"),
                read_only: false,
                view: TreeView::Overlay,
            }],
            views: vec![View { key: "k".into(), dir: "/state/views/k".into() }],
            home: Mount { source: state.join("home"), at: "/home/dev".into() },
            tmp: state.join("tmp"),
            system: vec!["/usr".into(), "/bin".into()],
            toolchains: vec![Mount { source: "/usr".into(), at: "/home/dev/.rustup".into() }],
            covers: vec![],
            links: vec![("/workspace".into(), "/home/dev/project".into())],
            files: vec![GeneratedFile {
                path: "/run/git-sandbox/repo.config".into(),
                mode: 0o644,
                contents: "[core]\n".into(),
            }],
            user: User {
                name: "dev".into(),
                group: "dev".into(),
                uid: 1000,
                gid: 1000,
                shell: "/bin/bash".into(),
                root: false,
            },
            hostname: "fix".into(),
            env: vec![("HOME".into(), "/home/dev".into())],
            network: Network::None,
            mirror: false,
            limits: Limits { memory: Some(1 << 30), pids: Some(1024), ..Limits::default() },
            allow_weak: vec![],
            require: vec![],
            nested: false,
            program: "/usr/local/bin/git-sandbox".into(),
            vm: None,
        }
    }

    const KERNEL: Kernel = Kernel { own_pid_max: true };

    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        std::os::unix::fs::symlink("usr/bin", dir.path().join("bin")).unwrap();
        let host = Host::at(dir.path());
        (dir, host)
    }

    fn text(spec: &LaunchSpec) -> String {
        let (_dir, host) = host();
        plan(spec, &host, KERNEL).unwrap().to_string()
    }

    #[test]
    fn an_ordinary_sandbox() {
        let expected = "\
bind      /usr  ro,nosuid,nodev
symlink   /bin -> usr/bin
symlink   /etc/mtab -> ../proc/self/mounts
file      /etc/passwd  644, 139 bytes
file      /etc/group  644, 48 bytes
file      /etc/hostname  644, 4 bytes
file      /etc/hosts  644, 56 bytes
file      /etc/resolv.conf  644, 0 bytes
file      /etc/nsswitch.conf  644, 70 bytes
file      /etc/machine-id  644, 33 bytes
device    /dev/null  1:3
device    /dev/zero  1:5
device    /dev/full  1:7
device    /dev/random  1:8
device    /dev/urandom  1:9
device    /dev/tty  5:0
devpts    /dev/pts  ptmxmode=0666,max=64
tmpfs     /dev/shm  rw,nosuid,nodev,noexec,mode=1777,size=536870912,nr_inodes=65536
symlink   /dev/ptmx -> pts/ptmx
symlink   /dev/fd -> /proc/self/fd
symlink   /dev/stdin -> /proc/self/fd/0
symlink   /dev/stdout -> /proc/self/fd/1
symlink   /dev/stderr -> /proc/self/fd/2
directory /sys
proc      /proc  nosuid,nodev,noexec
  limit     user/max_user_namespaces = 0
  limit     user/max_mnt_namespaces = 0
  limit     user/max_net_namespaces = 0
  limit     user/max_pid_namespaces = 0
  limit     user/max_ipc_namespaces = 0
  limit     user/max_uts_namespaces = 0
  limit     user/max_cgroup_namespaces = 0
  limit     user/max_time_namespaces = 0
  limit     user/max_inotify_instances = 1024
  limit     user/max_inotify_watches = 65536
  limit     user/max_fanotify_groups = 0
  limit     user/max_fanotify_marks = 0
  limit     kernel/pid_max = 1325
  mask      /proc/acpi  directory
  mask      /proc/asound  directory
  mask      /proc/bus  directory
  mask      /proc/driver  directory
  mask      /proc/fs  directory
  mask      /proc/irq  directory
  mask      /proc/scsi  directory
  mask      /proc/interrupts  file
  mask      /proc/kallsyms  file
  mask      /proc/kcore  file
  mask      /proc/keys  file
  mask      /proc/kmsg  file
  mask      /proc/latency_stats  file
  mask      /proc/sched_debug  file
  mask      /proc/sysrq-trigger  file
  mask      /proc/timer_list  file
  ro        /proc/sys
tmpfs     /run  rw,nosuid,nodev,noexec,mode=755,size=67108864,nr_inodes=65536
bind      /tmp  rw,nosuid,nodev  from /state/sandboxes/1/tmp
bind      /var/tmp  rw,nosuid,nodev  from /state/sandboxes/1/tmp
bind      /home/dev  rw,nosuid,nodev  from /state/sandboxes/1/home
bind      /home/dev/.rustup  ro,nosuid,nodev  from /usr
tmpfs     /run/git-sandbox  rw,nosuid,nodev,noexec,mode=755,size=16777216,nr_inodes=65536
bind      /run/git-sandbox/objects/k  ro,nosuid,nodev,noexec  from /state/views/k
bind      /run/git-sandbox/bin/git-sandbox  ro,nosuid,nodev  from /usr/local/bin/git-sandbox
symlink   /run/git-sandbox/bin/git-remote-sandbox -> git-sandbox
file      /run/git-sandbox/repo.config  644, 7 bytes
overlay   /home/dev/project  nosuid,nodev,userxattr
  lowerdir+ /state/layers/git
  lowerdir+ /state/layers/delta
  lowerdir+ /state/layers/base
  upperdir  /state/sandboxes/1/upper/0
  workdir   /state/sandboxes/1/work/0
symlink   /workspace -> /home/dev/project
";
        assert_eq!(text(&spec()), expected);
    }

    #[test]
    fn a_helper_can_write_nothing_on_disk() {
        let mut spec = spec();
        spec.mode = Mode::Helper;
        let text = text(&spec);
        for line in text.lines().filter(|line| line.starts_with("bind")) {
            assert!(line.contains("  ro,"), "{line}");
        }
        assert!(text.contains(
            "overlay   /home/dev/project  nosuid,nodev,userxattr\n  lowerdir+ /state/sandboxes/1/upper/0\n  \
             lowerdir+ /state/layers/git\n"
        ));
        assert!(text.contains("  lowerdir+ /state/layers/base\n  read-only\n"));
        assert!(!text.contains("workdir"));
    }

    #[test]
    fn nested_differs_in_limits_and_a_second_proc() {
        let mut nested = spec();
        nested.nested = true;
        let (strict, nested) = (text(&spec()), text(&nested));
        let strict: Vec<&str> = strict.lines().collect();
        let (more, same): (Vec<&str>, Vec<&str>) = nested.lines().partition(|line| !strict.contains(line));
        assert_eq!(more.len(), 9, "{more:?}");
        assert!(more[..8].iter().all(|line| line.ends_with("_namespaces = 1024")), "{more:?}");
        assert_eq!(more[8], "  whole     /run/proc, under /run");
        assert_eq!(same.len(), strict.len() - 8);
        // What covers it comes later.
        let at = |start: &str| nested.lines().position(|line| line.starts_with(start)).unwrap();
        assert!(at("proc ") < at("tmpfs     /run "));
    }

    #[test]
    fn a_read_only_tree_of_one_layer_is_shown_as_it_is() {
        let mut spec = spec();
        spec.trees[0].read_only = true;
        spec.trees[0].lowers.truncate(1);
        assert!(text(&spec).contains("bind      /home/dev/project  ro,nosuid,nodev  from /state/layers/git\n"));
    }

    #[test]
    fn a_tree_that_is_the_home_covers_the_toolchains() {
        let mut spec = spec();
        spec.trees[0].at = "/home/dev".into();
        let text = text(&spec);
        assert!(!text.contains(".rustup"), "{text}");
        assert!(text.find("bind      /home/dev ").unwrap() < text.find("overlay   /home/dev ").unwrap());
    }

    #[test]
    fn logins_and_sockets_below_what_is_shown_are_covered() {
        let (dir, host) = host();
        let root = dir.path();
        for path in ["proc/net", "opt/d", "usr/lib/x y", "var"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        std::os::unix::fs::symlink("opt", root.join("alias")).unwrap();
        let _sockets = ["opt/d/s", "usr/lib/x y/s", "var/s"]
            .map(|path| std::os::unix::net::UnixListener::bind(root.join(path)).unwrap());
        std::fs::write(root.join("opt/d/file"), "").unwrap();
        let line = |path: &str| format!("0000000000000000: 00000002 00000000 00010000 0001 01 12345 {path}\n");
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n".to_owned()
            + &["/alias/d/s", "/usr/lib/x y/s", "/usr/lib/x y/s", "/var/s", "/opt/d/file", "/opt/gone", "@/usr/s", "s"]
                .map(line)
                .concat()
            + "0000000000000000: 00000003 00000000 00000000 0001 03 12346\n";
        std::fs::write(root.join("proc/net/unix"), table).unwrap();
        let mut spec = spec();
        spec.system.push("/opt".into());
        spec.covers = vec!["/home/dev/.rustup/etc/npmrc".into(), "/home/dev/project/etc/npmrc".into()];
        let plan = plan(&spec, &host, KERNEL).unwrap().to_string();
        let covers: Vec<&str> = plan.lines().filter(|line| line.starts_with("cover")).collect();
        assert_eq!(
            covers,
            [
                "cover     /home/dev/.rustup/etc/npmrc",
                "cover     /home/dev/.rustup/lib/x y/s",
                "cover     /opt/d/s",
                "cover     /usr/lib/x y/s"
            ]
        );
        assert!(plan.find("bind      /home/dev/.rustup").unwrap() < plan.find("cover ").unwrap());
    }

    #[test]
    fn impossible_places_are_refused_by_name() {
        let (_dir, host) = host();
        let refused = |change: &dyn Fn(&mut LaunchSpec)| {
            let mut spec = spec();
            change(&mut spec);
            plan(&spec, &host, KERNEL).unwrap_err().to_string()
        };
        for at in ["/", "/etc", "/usr", "/run/git-sandbox/x"] {
            let text = refused(&|spec| spec.trees[0].at = at.into());
            assert_eq!(text, format!("the driver 'namespace' cannot mount a tree at '{at}'"));
        }
        assert!(refused(&|spec| spec.trees[0].at = "/state".into()).contains("keep the changes of '/state' inside it"));
        assert!(refused(&|spec| (spec.nested, spec.user.root) = (true, true)).contains("root inside"));
        assert!(refused(&|spec| spec.user.uid = 0).contains("user or group 0"));
        assert!(refused(&|spec| spec.links[0].0 = "/a/../etc/x".into()).contains("not a plain absolute path"));
    }
}
