//! Whether an overlay can be written to at a place: by what is known of the file system, else by trying it in
//! the namespaces of a sandbox.

use super::check::unfit;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, statfs, unlinkat};
use rustix::pipe::{PipeFlags, pipe_with};
use sandbox_sys::mount::{self, Attributes, Filesystem, Overlay};
use sandbox_sys::namespace::{self, Forked, Namespaces};
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};

/// File systems of disks that hold upper directories since there are overlays without privilege: nothing is tried
/// there, so that a start costs no process for it. `statfs` numbers of ext2 to ext4, XFS and Btrfs.
const KNOWN: [u64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];

/// What a trial does, each of which some file system refuses.
const STEPS: [&str; 4] =
    ["prepare a trial", "mount an overlay", "delete in an overlay", "replace a directory in an overlay"];

/// Returns why an overlay cannot have its upper directory at `place`; `None` when it can. `scratch` makes an empty
/// directory there.
pub fn refused(
    place: &Path,
    scratch: &mut dyn FnMut() -> io::Result<PathBuf>,
    uid: u32,
    gid: u32,
) -> io::Result<Option<String>> {
    let kind = statfs(place)?.f_type as u64;
    if KNOWN.contains(&kind) {
        return Ok(None);
    }
    if let Some(name) = unfit(kind) {
        return Ok(Some(format!("{name}, which cannot hold an upper directory")));
    }
    let dir = scratch()?;
    let root = rustix::process::geteuid().is_root();
    let own = |path: &Path| if root { lchown(path, Some(uid), Some(gid)) } else { Ok(()) };
    own(&dir)?;
    for part in ["lower", "upper", "work", "lower/dir", "lower/file", "lower/dir/file"] {
        let path = dir.join(part);
        if part.ends_with("file") { fs::write(&path, "x") } else { fs::create_dir(&path) }?;
        own(&path)?;
    }
    tried(&dir, root.then_some((uid, gid)))
}

/// Tries it in a child with the namespaces of a sandbox.
fn tried(dir: &Path, ids: Option<(u32, u32)>) -> io::Result<Option<String>> {
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (said_read, said_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (pid, pidfd) = match namespace::fork_into(Namespaces::USER.and(Namespaces::MOUNT), None)? {
        Forked::Child => {
            drop((go_write, said_read));
            let _ = rustix::io::read(&go_read, &mut [0u8; 1]);
            let (step, result) = trial(dir, ids);
            let errno = result.err().map_or(0, |error| mount::errno(&error).unwrap_or(-1));
            let _ = rustix::io::write(&said_write, format!("{step} {errno}").as_bytes());
            namespace::exit_now(0);
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((go_read, said_write));
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ids = ids.unwrap_or(me);
    let mapped = namespace::write_id_map(pid, ids, ids);
    drop(go_write);
    let mut text = String::new();
    let read = fs::File::from(said_read).read_to_string(&mut text);
    super::machine::end(&pidfd);
    mapped?;
    read?;
    let ended = || io::Error::other("the trial ended early");
    let (step, errno) = text.split_once(' ').ok_or_else(ended)?;
    let (step, errno): (usize, i32) = (step.parse().map_err(|_| ended())?, errno.parse().map_err(|_| ended())?);
    if errno == 0 {
        return Ok(None);
    }
    let step = STEPS.get(step).copied().unwrap_or_default();
    Ok(Some(format!("a file system that cannot {step}: {}", io::Error::from_raw_os_error(errno))))
}

/// Does in the child what a sandbox will do; returns how far it came.
fn trial(dir: &Path, ids: Option<(u32, u32)>) -> (usize, io::Result<()>) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let prepared = || -> io::Result<(OwnedFd, [OwnedFd; 3])> {
        mount::make_all_private()?;
        // By whoever starts it, and in this mount namespace: an overlay takes nothing of another one.
        let open = |part: &str| openat(CWD, dir.join(part), flags, Mode::empty());
        let parts = [open("lower")?, open("upper")?, open("work")?];
        if let Some((uid, gid)) = ids {
            namespace::switch_user(uid, gid)?;
        }
        let root = Filesystem::new("tmpfs")?.mount(Attributes::default())?;
        mount::attach(&root, openat(CWD, "/", flags, Mode::empty())?)?;
        mkdirat(&root, "at", Mode::RWXU)?;
        Ok((root, parts))
    };
    let (root, [lower, upper, work]) = match prepared() {
        Ok(prepared) => prepared,
        Err(error) => return (0, Err(error)),
    };
    let mounted = || -> io::Result<OwnedFd> {
        let at = openat(&root, "at", flags, Mode::empty())?;
        let lowers = [lower];
        Overlay { lowers: &lowers, writable: Some((&upper, &work)), attributes: Attributes::default() }
            .mount_on(&at)?;
        mount::open_below(&root, Path::new("/at"))
    };
    let at = match mounted() {
        Ok(at) => at,
        Err(error) => return (1, Err(error)),
    };
    if let Err(error) = unlinkat(&at, "file", AtFlags::empty()) {
        return (2, Err(error.into()));
    }
    let replaced = || -> io::Result<()> {
        unlinkat(&at, "dir/file", AtFlags::empty())?;
        unlinkat(&at, "dir", AtFlags::REMOVEDIR)?;
        Ok(mkdirat(&at, "dir", Mode::RWXU)?)
    };
    (3, replaced())
}
