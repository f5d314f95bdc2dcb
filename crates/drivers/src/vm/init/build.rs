//! The guest's directories, before the namespace driver takes over.
//!
//! ```text
//!   /                     tmpfs: the kernel's own root cannot be left by pivot_root(2)
//!   /dev /proc /sys       the kernel's; /sys/fs/cgroup for the limits
//!   /git-sandbox-guest    this program, from the initramfs
//!   /x                    exports of the host, read-only
//!   /disk                 the guest's own disk
//!   /trees/n              overlays
//! ```
//! The overlays are made here, as root of the machine, with `redirect_dir`: a directory of the snapshot is renamed
//! by the kernel like any other, which without privilege it could not be.

use super::{Failure, copy, during, locks};
use crate::vm::guest::{DISK, EXPORTS, GuestSpec, GuestTree, PROGRAM, TAG, TREES};
use rustix::fs::{AtFlags, CWD, chownat};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Gid, Uid};
use sandbox_core::launch::{Mode, User};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Control groups.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// The disk as the kernel calls it.
const DEVICE: &str = "/dev/vda";

/// Makes all of it; returns what is to be said of it.
pub fn build(spec: &GuestSpec) -> Result<Option<String>, Failure> {
    root()?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    // No tool of the user's needs them; without them there are no limits, and that is said.
    let _ = mount("cgroup2", CGROUPS, "cgroup2", safe | MountFlags::NOEXEC, None);
    mount(TAG, EXPORTS, "virtiofs", safe | MountFlags::RDONLY, None).map_err(during("mount the host's directories"))?;
    let helper = spec.launch.mode == Mode::Helper;
    if spec.disk {
        let read_only = if helper { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(DEVICE, DISK, "ext4", safe | read_only, Some(c"discard,commit=2")).map_err(during("mount the disk"))?;
    }
    let mut cut = None;
    if !helper {
        write_out_soon();
        own_directories(spec)?;
        cut = locks::clear(spec)?;
    }
    for tree in &spec.trees {
        overlay(tree).map_err(during(format!("put together the tree at '{}'", tree.at.display())))?;
    }
    Ok(cut)
}

/// A machine that is killed loses what is not on its disk yet: seconds of work, not half a minute. Without that it
/// is only later there.
fn write_out_soon() {
    for (file, centiseconds) in [("dirty_writeback_centisecs", "100"), ("dirty_expire_centisecs", "200")] {
        let _ = fs::write(Path::new("/proc/sys/vm").join(file), centiseconds);
    }
}

/// A root directory that is a mount, with the kernel's file systems in it.
fn root() -> Result<(), Failure> {
    fn did<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> Result<T, Failure> {
        result.map_err(during(format!("make the root directory: {what}")))
    }
    let new = Path::new("/root");
    let inside = |path: &str| new.join(path.trim_start_matches('/'));
    did("its place", fs::create_dir_all(new))?;
    did("tmpfs", mount("tmpfs", new, "tmpfs", MountFlags::NOSUID, Some(c"mode=0755")))?;
    for path in ["/dev", "/proc", "/sys", EXPORTS, DISK, TREES] {
        did(path, fs::create_dir_all(inside(path)))?;
    }
    did(PROGRAM, fs::write(inside(PROGRAM), ""))?;
    did(PROGRAM, mount_bind(PROGRAM, inside(PROGRAM)))?;
    for path in ["/dev", "/proc", "/sys"] {
        did(path, mount_move(path, inside(path)))?;
    }
    did("enter it", rustix::process::chdir(new))?;
    did("move it", mount_move(".", "/"))?;
    did("change to it", rustix::process::chroot("."))?;
    did("enter it", rustix::process::chdir("/"))
}

/// The sandbox's own directories on the disk: made at the first start, kept afterwards.
fn own_directories(spec: &GuestSpec) -> Result<(), Failure> {
    let disk = Path::new(DISK);
    let user = &spec.launch.user;
    let home = disk.join("home");
    if !home.exists() {
        // Under another name until it is whole.
        let filling = disk.join("home.new");
        let step = || during("fill the home directory");
        remove(&filling).map_err(step())?;
        match &spec.home {
            Some(source) => copy::directory(source, &filling).map_err(step())?,
            None => directory(&filling, user, 0o700).map_err(step())?,
        }
        fs::rename(&filling, &home).map_err(step())?;
    }
    let tmp = disk.join("tmp");
    let emptied = remove(&tmp).and_then(|()| directory(&tmp, user, 0o1777));
    emptied.map_err(during("empty '/tmp'"))?;
    for (upper, work) in spec.trees.iter().filter_map(|tree| tree.writable.as_ref()) {
        for path in [upper, work] {
            if path.exists() {
                continue;
            }
            let step = || during(format!("make '{}'", path.display()));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(step())?;
            }
            directory(path, user, 0o755).map_err(step())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn directory(path: &Path, user: &User, mode: u32) -> io::Result<()> {
    fs::create_dir(path)?;
    let owner = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    chownat(CWD, path, owner.0, owner.1, AtFlags::empty())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn overlay(tree: &GuestTree) -> io::Result<()> {
    fs::create_dir_all(&tree.at)?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    let (flags, rest) = match (&tree.writable, tree.lowers.as_slice()) {
        // An overlay without an upper directory wants two layers; one is simply shown.
        (None, [only]) => return Ok(mount_bind(only, &tree.at)?),
        (None, _) => (safe | MountFlags::RDONLY, "redirect_dir=follow".to_owned()),
        (Some((upper, work)), _) => {
            (safe, format!("redirect_dir=on,upperdir={},workdir={}", upper.display(), work.display()))
        }
    };
    let lowers: Vec<String> = tree.lowers.iter().map(|lower| lower.display().to_string()).collect();
    let options = format!("lowerdir={},index=off,metacopy=off,xino=off,{rest}", lowers.join(":"));
    let options = CString::new(options).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(mount("overlay", &tree.at, "overlay", flags, &*options)?)
}
