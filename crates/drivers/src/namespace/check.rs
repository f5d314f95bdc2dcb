//! What this machine can do: the lines of `doctor`, and the checks before a launch that give a bare
//! `EINVAL` of the kernel a name.
//!
//! What can be tried is tried, in a child that makes the namespaces, mounts what a sandbox needs in
//! memory, and ends; a sysctl only explains why.

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, statfs};
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox_core::driver::{Check, DriverError, Verdict};
use sandbox_core::launch::{LaunchSpec, Mode as LaunchMode, Tree, TreeView};
use sandbox_sys::mount::{self, Attributes, Filesystem, Overlay};
use sandbox_sys::namespace::{self, Forked, Namespaces};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const OVERLAYFS: u64 = 0x794c_7630;
const NFS: u64 = 0x6969;
const CIFS: u64 = 0xFF53_4D42;
const SMB2: u64 = 0xFE53_4D42;
const FUSE: u64 = 0x6573_5546;

/// The id that the trial maps when root makes it: any that is not 0.
const TRIAL_UID: u32 = 1_879_048_192;

/// Returns major and minor version of the running kernel.
pub fn version() -> (u32, u32) {
    parse_version(&rustix::system::uname().release().to_string_lossy())
}

fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Returns whether AppArmor takes the power from user namespaces of programs without a profile.
pub fn apparmor_restricts() -> bool {
    sysctl("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
}

fn sysctl(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}

/// Refuses layers that are gone, or that the kernel would refuse without saying why.
pub fn layers(spec: &LaunchSpec) -> Result<(), DriverError> {
    for tree in &spec.trees {
        let writable = spec.mode == LaunchMode::Work && !tree.read_only;
        let changes = [&tree.upper, &tree.work];
        let copy = tree.view == TreeView::Copy;
        let needed = match (spec.mode, tree.read_only) {
            _ if copy => &changes[..1],
            (LaunchMode::Work, false) => &changes[..],
            (LaunchMode::Helper, false) => &changes[..1],
            _ => &[],
        };
        for path in tree.lowers.iter().chain(needed.iter().copied()) {
            match fs::metadata(path) {
                Ok(facts) if facts.is_dir() => {}
                Ok(_) => return Err(refused(tree, format!("'{}' is not a directory", path.display()))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(DriverError::Vanished { path: path.clone() });
                }
                Err(source) => {
                    return Err(DriverError::Step { step: format!("open '{}'", path.display()), source });
                }
            }
        }
        if writable && !copy {
            upper(tree, spec.user.gid)?;
        }
    }
    Ok(())
}

fn refused(tree: &Tree, why: String) -> DriverError {
    let (at, upper, work) = (tree.at.clone(), tree.upper.clone(), tree.work.clone());
    DriverError::Overlay { at, upper, work, source: io::Error::new(io::ErrorKind::Unsupported, why) }
}

/// What overlayfs wants of an upper directory.
fn upper(tree: &Tree, gid: u32) -> Result<(), DriverError> {
    let step = |source| DriverError::Step { step: format!("look at '{}'", tree.upper.display()), source };
    let upper = fs::metadata(&tree.upper).map_err(step)?;
    let work = fs::metadata(&tree.work).map_err(step)?;
    if upper.dev() != work.dev() {
        return Err(refused(tree, "they are on two file systems".to_owned()));
    }
    if tree.upper.starts_with(&tree.work) || tree.work.starts_with(&tree.upper) {
        return Err(refused(tree, "one of them is inside the other".to_owned()));
    }
    let overlaps = |lower: &PathBuf| lower.starts_with(&tree.upper) || tree.upper.starts_with(lower);
    if let Some(lower) = tree.lowers.iter().find(|lower| overlaps(lower)) {
        return Err(refused(tree, format!("the layer '{}' and the upper directory overlap", lower.display())));
    }
    if upper.mode() & 0o2000 != 0 && upper.gid() != gid {
        return Err(refused(tree, "the upper directory has the setgid bit and another group".to_owned()));
    }
    let kind = statfs(&tree.upper).map_err(|error| step(error.into()))?.f_type as u64;
    if let Some(name) = unfit(kind) {
        return Err(refused(tree, format!("{name} cannot hold an upper directory")));
    }
    Ok(())
}

/// The name of a file system that cannot be an upper directory.
pub(super) fn unfit(kind: u64) -> Option<&'static str> {
    match kind {
        OVERLAYFS => Some("overlayfs"),
        NFS => Some("NFS"),
        CIFS | SMB2 => Some("SMB"),
        FUSE => Some("FUSE"),
        _ => None,
    }
}

/// Looks at everything. Changes nothing.
pub fn all() -> Vec<Check> {
    let mut checks = vec![kernel(version())];
    let trial = try_namespaces();
    checks.push(user_namespaces(&trial));
    if let Ok(trial) = &trial {
        checks.push(mount_check("proc", trial.proc.as_ref(), "a fresh /proc can be mounted", PROC_FIX));
        checks.push(mount_check("overlay", trial.overlay.as_ref(), "overlayfs mounts without privilege", OVERLAY_FIX));
        checks.push(network(trial.loopback.as_ref()));
    }
    checks.push(seccomp());
    checks.push(landlock(sandbox_sys::landlock::abi()));
    checks.push(renames());
    checks.push(cgroups());
    checks
}

const PROC_FIX: &str = "in a container: run it with `--security-opt systempaths=unconfined`";
const OVERLAY_FIX: &str = "`modprobe overlay`, or a kernel from 5.15 on";

fn check(name: &str, verdict: Verdict, found: impl Into<String>, fix: Option<&str>) -> Check {
    Check { name: name.to_owned(), verdict, found: found.into(), fix: fix.map(str::to_owned) }
}

fn kernel((major, minor): (u32, u32)) -> Check {
    let found = format!("Linux {major}.{minor}");
    if (major, minor) < (5, 15) {
        return check("kernel", Verdict::Missing, format!("{found}, 5.15 is needed"), None);
    }
    check("kernel", Verdict::Ok, found, None)
}

fn user_namespaces(trial: &Result<Trial, io::Error>) -> Check {
    let name = "user-namespaces";
    let error = match trial {
        Ok(trial) => match &trial.power {
            None => return check(name, Verdict::Ok, "can be made", None),
            Some(error) => error,
        },
        Err(error) => error,
    };
    let (why, fix) = explain_userns(
        apparmor_restricts(),
        sysctl("user/max_user_namespaces").as_deref(),
        sysctl("kernel/unprivileged_userns_clone").as_deref(),
    );
    check(name, Verdict::Missing, format!("{why}: {error}"), Some(fix))
}

fn explain_userns(apparmor: bool, max: Option<&str>, debian: Option<&str>) -> (&'static str, &'static str) {
    match (apparmor, max, debian) {
        (true, ..) => ("AppArmor restricts them to programs with a profile", "`git-sandbox setup` (needs sudo once)"),
        (_, Some("0"), _) => ("they are switched off", "`sudo sysctl user.max_user_namespaces=65536`"),
        (_, _, Some("0")) => ("only root may make them", "`sudo sysctl kernel.unprivileged_userns_clone=1`"),
        _ => (
            "the kernel refuses them",
            "in a container: run it with `--security-opt seccomp=unconfined`; else raise `user.max_user_namespaces`",
        ),
    }
}

fn mount_check(name: &str, error: Option<&io::Error>, good: &str, fix: &str) -> Check {
    match error {
        None => check(name, Verdict::Ok, good, None),
        Some(error) => check(name, Verdict::Missing, error.to_string(), Some(fix)),
    }
}

fn network(error: Option<&io::Error>) -> Check {
    match error {
        None => check("network", Verdict::Ok, "a network namespace of its own", None),
        Some(error) => check("network", Verdict::Missing, error.to_string(), None),
    }
}

fn seccomp() -> Check {
    match sysctl("kernel/seccomp/actions_avail") {
        Some(actions) if actions.contains("user_notif") => {
            check("seccomp", Verdict::Ok, "filters and user notifications", None)
        }
        Some(_) => check("seccomp", Verdict::Missing, "no user notifications", None),
        None => check("seccomp", Verdict::Missing, "the kernel has no filters", None),
    }
}

fn landlock(abi: u32) -> Check {
    let found = if abi == 0 { "the kernel has none, or it is off".to_owned() } else { format!("ABI {abi}") };
    if abi >= sandbox_sys::landlock::FIRST_USABLE {
        return check("landlock", Verdict::Ok, found, None);
    }
    let found = format!("{found}: no second wall (ABI {} is needed)", sandbox_sys::landlock::FIRST_USABLE);
    check("landlock", Verdict::Weak, found, Some("a kernel from 5.19 on, with `landlock` in the boot parameter `lsm=`"))
}

fn renames() -> Check {
    let name = "directory-renames";
    match sysctl("kernel/yama/ptrace_scope").as_deref() {
        Some("3") => check(
            name,
            Verdict::Weak,
            "a directory of the snapshot cannot be renamed: yama forbids every look into a process",
            Some("`sudo sysctl kernel.yama.ptrace_scope=1` (after a reboot: 3 cannot be lowered)"),
        ),
        _ => check(name, Verdict::Ok, "the agent does what overlayfs refuses", None),
    }
}

/// What kind of control group a sandbox of this user's would get.
pub(super) fn own_cgroup() -> Option<&'static str> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    super::cgroup::writable(Path::new("/sys/fs/cgroup"), &membership)
}

fn cgroups() -> Check {
    match own_cgroup() {
        Some(kind) => check("limits", Verdict::Ok, format!("memory, processes and cpu by {kind}"), None),
        None => check(
            "limits",
            Verdict::Weak,
            "no cgroup of this user's: processes are limited, memory is watched, cpu is not",
            Some("`systemd-run --user --scope -p Delegate=yes git sandbox spawn …`"),
        ),
    }
}

/// What happened in the child: `None` is success.
struct Trial {
    power: Option<io::Error>,
    proc: Option<io::Error>,
    overlay: Option<io::Error>,
    loopback: Option<io::Error>,
}

/// Makes the namespaces of a sandbox in a child and tries the mounts there.
fn try_namespaces() -> io::Result<Trial> {
    let root = rustix::process::geteuid().is_root();
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (result_read, result_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let all = [Namespaces::MOUNT, Namespaces::PID, Namespaces::IPC, Namespaces::UTS, Namespaces::NET];
    let namespaces = all.into_iter().fold(Namespaces::USER, Namespaces::and);
    let (pid, pidfd) = match namespace::fork_into(namespaces, None)? {
        Forked::Child => {
            drop((go_write, result_read));
            let _ = rustix::io::read(&go_read, &mut [0u8; 1]);
            let text = trial(root).map(|error| error.map_or(0, |error| mount::errno(&error).unwrap_or(-1)));
            let text = text.map(|errno| errno.to_string()).join(" ");
            let _ = rustix::io::write(&result_write, text.as_bytes());
            namespace::exit_now(0);
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((go_read, result_write));
    let ids = if root {
        (TRIAL_UID, TRIAL_UID)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    };
    let mapped = namespace::write_id_map(pid, ids, ids);
    drop(go_write);
    let mut text = String::new();
    let read = fs::File::from(result_read).read_to_string(&mut text);
    super::machine::end(&pidfd);
    mapped?;
    read?;
    parse_trial(&text).ok_or_else(|| io::Error::other("the trial ended early"))
}

fn parse_trial(text: &str) -> Option<Trial> {
    let mut numbers = text.split(' ').map(|number| number.parse::<i32>().ok());
    let mut next = || Some(numbers.next()??).map(|errno| (errno != 0).then(|| io::Error::from_raw_os_error(errno)));
    Some(Trial { power: next()?, proc: next()?, overlay: next()?, loopback: next()? })
}

fn trial(root: bool) -> [Option<io::Error>; 4] {
    let power = mount::make_all_private();
    let proc = Filesystem::new("proc").and_then(|proc| proc.mount(Attributes::default())).map(drop);
    let user = if root { namespace::switch_user(TRIAL_UID, TRIAL_UID) } else { Ok(()) };
    let overlay = user.and_then(|()| try_overlay());
    [power.err(), proc.err(), overlay.err(), namespace::loopback_up().err()]
}

fn try_overlay() -> io::Result<()> {
    let root = Filesystem::new("tmpfs")?.mount(Attributes::default())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    mount::attach(&root, openat(CWD, "/", flags, Mode::empty())?)?;
    let dir = |name: &str| -> io::Result<OwnedFd> {
        mkdirat(&root, name, Mode::RWXU)?;
        Ok(openat(&root, name, flags, Mode::empty())?)
    };
    let (at, lowers, upper, work) = (dir("at")?, [dir("lower")?], dir("upper")?, dir("work")?);
    Overlay { lowers: &lowers, writable: Some((&upper, &work)), attributes: Attributes::default() }.mount_on(&at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::plan::tests::spec;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(parse_version("6.18.44-fc-v509"), (6, 18));
        assert_eq!(parse_version("5.15.0-91-generic"), (5, 15));
        assert_eq!(kernel((5, 10)).verdict, Verdict::Missing);
        assert_eq!(kernel((6, 1)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_refused_namespace_has_a_reason_and_a_command() {
        assert!(explain_userns(true, None, None).0.contains("AppArmor"));
        assert!(explain_userns(false, Some("0"), None).1.contains("max_user_namespaces"));
        assert!(explain_userns(false, Some("1000"), Some("0")).1.contains("unprivileged_userns_clone"));
        assert!(explain_userns(false, Some("1000"), Some("1")).1.contains("container"));
    }

    #[test]
    fn a_trial_is_read_back() {
        let trial = parse_trial("0 1 0 22").unwrap();
        assert!(trial.power.is_none() && trial.overlay.is_none());
        assert_eq!(trial.proc.unwrap().raw_os_error(), Some(1));
        assert_eq!(trial.loopback.unwrap().raw_os_error(), Some(22));
        assert!(parse_trial("0 1").is_none());
    }

    #[test]
    fn layers_are_named_when_they_are_gone_or_unfit() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec();
        let tree = &mut spec.trees[0];
        tree.lowers = vec![dir.path().join("lower")];
        tree.upper = dir.path().join("upper");
        tree.work = dir.path().join("work");
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert!(layers(&spec).is_ok());
        fs::remove_dir(dir.path().join("work")).unwrap();
        fs::write(dir.path().join("work"), "").unwrap();
        let text = layers(&spec).unwrap_err();
        assert!(std::error::Error::source(&text).unwrap().to_string().ends_with("work' is not a directory"));
        fs::remove_dir(dir.path().join("lower")).unwrap();
        assert!(matches!(layers(&spec), Err(DriverError::Vanished { path }) if path.ends_with("lower")));
        assert_eq!(unfit(OVERLAYFS), Some("overlayfs"));
        assert_eq!(unfit(0xEF53), None);
    }
}
