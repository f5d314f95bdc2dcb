//! Mounts by descriptor: binds, tmpfs, proc, devpts, overlay, pivot_root.
//!
//! ```text
//!   clone_tree(path)  ─┐
//!   Filesystem::new() ─┴─► detached mount ──set_attributes()──► attach(at) ──► part of the tree
//! ```
//! A detached mount is a descriptor: dropping it unmounts it, so a half-made tree leaves nothing behind.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount, open_tree, unmount,
};
use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// What is forbidden on a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Nothing can be written.
    pub read_only: bool,
    /// Set-id bits and file capabilities have no effect.
    pub no_suid: bool,
    /// Device nodes cannot be opened.
    pub no_dev: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
}

impl Attributes {
    fn bits(self) -> u64 {
        let mut bits = 0;
        for (on, bit) in [
            (self.read_only, libc::MOUNT_ATTR_RDONLY),
            (self.no_suid, libc::MOUNT_ATTR_NOSUID),
            (self.no_dev, libc::MOUNT_ATTR_NODEV),
            (self.no_exec, libc::MOUNT_ATTR_NOEXEC),
        ] {
            if on {
                bits |= bit;
            }
        }
        bits
    }

    fn new_mount(self) -> MountAttrFlags {
        MountAttrFlags::from_bits_retain(self.bits() as u32)
    }
}

/// Makes every mount of this namespace private: nothing of it reaches or follows another namespace.
pub fn make_all_private() -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Returns a detached copy of the mount tree at `path` with everything mounted below it, which is
/// required where a container has covered parts of the tree.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Returns a detached copy of what `at` names below `dir`, alone or with everything mounted below it.
pub fn clone_at(dir: impl AsFd, at: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if at.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(dir, at, flags)?)
}

/// Adds attributes to a mount, and to all below it.
pub fn set_attributes(tree: impl AsFd, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes.bits(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string; `attr` has the size that is passed and lives over the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mounts a detached tree on what `at` (opened with `O_PATH`) names.
pub fn attach(tree: impl AsFd, at: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", at, c"", flags)?;
    Ok(())
}

/// A file system that is being configured; each step tells what the kernel said, in its own words if it did.
#[derive(Debug)]
pub struct Filesystem {
    context: OwnedFd,
}

impl Filesystem {
    /// Opens a context for a file system type.
    pub fn new(kind: &str) -> io::Result<Self> {
        Ok(Self { context: fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)? })
    }

    /// Sets `key=value`. A value has at most 255 bytes.
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        fsconfig_set_string(&self.context, key, value).map_err(|error| self.explain(error))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        fsconfig_set_flag(&self.context, key).map_err(|error| self.explain(error))
    }

    /// Returns the detached mount.
    pub fn mount(self, attributes: Attributes) -> io::Result<OwnedFd> {
        fsconfig_create(&self.context).map_err(|error| self.explain(error))?;
        fsmount(&self.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.new_mount())
            .map_err(|error| self.explain(error))
    }

    /// The kernel's own words (`overlay: upper fs does not support …`) when the context has some.
    fn explain(&self, error: rustix::io::Errno) -> io::Error {
        let mut text = [0u8; 512];
        let mut said = String::new();
        while let Ok(length @ 1..) = rustix::io::read(&self.context, &mut text) {
            // A message begins with its level: "e ", "w " or "i ".
            let line = String::from_utf8_lossy(&text[..length]);
            let line = line.trim().get(2..).unwrap_or_default();
            if !said.is_empty() {
                said.push_str("; ");
            }
            said.push_str(line);
        }
        let cause = io::Error::from(error);
        if said.is_empty() { cause } else { Explained { said, cause }.into() }
    }
}

/// An errno with the kernel's words for it.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: {said}")]
pub struct Explained {
    said: String,
    /// The bare error.
    pub cause: io::Error,
}

impl From<Explained> for io::Error {
    fn from(explained: Explained) -> Self {
        Self::new(explained.cause.kind(), explained)
    }
}

/// Returns the errno of an error of this module, also when the kernel's words were added.
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<Explained>()?.cause.raw_os_error())
}

/// The layers of an overlay, as descriptors (`O_PATH`) so that neither the length of paths nor an
/// unreachable parent matters.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// Uppermost first.
    pub lowers: &'a [OwnedFd],
    /// Upper and work directory; without them nothing can be written.
    pub writable: Option<(&'a OwnedFd, &'a OwnedFd)>,
    /// What is forbidden.
    pub attributes: Attributes,
}

impl Overlay<'_> {
    /// Mounts it on `at` (opened with `O_PATH`).
    ///
    /// `userxattr`, since the mounter has no privilege outside its user namespace; no index, no xino:
    /// both would change what a lower may look like.
    pub fn mount_on(&self, at: impl AsFd) -> io::Result<()> {
        match self.detached() {
            Ok(tree) => attach(tree, at),
            // Before 6.8 there is no `lowerdir+`, and a string of fsconfig ends at 255 bytes.
            Err(error) if errno(&error) == Some(libc::EINVAL) => match self.mount_by_options(at) {
                Ok(()) => Ok(()),
                Err(second) if errno(&second) == Some(libc::EINVAL) => Err(error),
                Err(second) => Err(second),
            },
            Err(error) => Err(error),
        }
    }

    fn detached(&self) -> io::Result<OwnedFd> {
        let overlay = Filesystem::new("overlay")?;
        // What df(1) and mountinfo call it.
        overlay.set("source", "overlay")?;
        for lower in self.lowers {
            overlay.set("lowerdir+", &name_of(lower))?;
        }
        if let Some((upper, work)) = self.writable {
            overlay.set("upperdir", &name_of(upper))?;
            overlay.set("workdir", &name_of(work))?;
        }
        overlay.flag("userxattr")?;
        overlay.set("index", "off")?;
        overlay.set("xino", "off")?;
        overlay.mount(self.attributes)
    }

    /// Mounts it by mount(2), whose options are one page of text: for kernels before 6.8.
    pub fn mount_by_options(&self, at: impl AsFd) -> io::Result<()> {
        let lowers: Vec<String> = self.lowers.iter().map(name_of).collect();
        let mut options = format!("userxattr,index=off,xino=off,lowerdir={}", lowers.join(":"));
        if let Some((upper, work)) = self.writable {
            options.push_str(&format!(",upperdir={},workdir={}", name_of(upper), name_of(work)));
        }
        let options = CString::new(options).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut flags = MountFlags::empty();
        for (on, flag) in [
            (self.attributes.read_only, MountFlags::RDONLY),
            (self.attributes.no_suid, MountFlags::NOSUID),
            (self.attributes.no_dev, MountFlags::NODEV),
            (self.attributes.no_exec, MountFlags::NOEXEC),
        ] {
            flags.set(flag, on);
        }
        mount("overlay", name_of(&at), "overlay", flags, &*options)?;
        Ok(())
    }
}

/// The descriptor as a path; works for any that this process has, whatever its permissions on the way.
fn name_of(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Makes the mounted tree at `root` the root directory and detaches the old one. The working directory
/// is the new root afterwards.
pub fn pivot_to(root: impl AsFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root is stacked on the new one and then taken off: no directory for it is needed.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Opens what `path` names below `root` (both `O_PATH`) without following any symlink, and never outside.
pub fn open_below(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let inner = path.strip_prefix("/").unwrap_or(path);
    let inner = if inner.as_os_str().is_empty() { Path::new(".") } else { inner };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat2(root, inner, flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_followed_below_a_root() {
        let dir = std::env::temp_dir().join(format!("sandbox-sys-mount-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        let root = rustix::fs::open(&dir, OFlags::PATH, Mode::empty()).unwrap();
        assert!(open_below(&root, Path::new("/a/b")).is_ok());
        assert!(open_below(&root, Path::new("/")).is_ok());
        assert!(open_below(&root, Path::new("/link/passwd")).is_err());
        assert!(open_below(&root, Path::new("/a/../../../etc")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_explained_error_keeps_its_errno() {
        let explained = Explained { said: "overlay: no".to_owned(), cause: io::Error::from_raw_os_error(22) };
        let error = io::Error::from(explained);
        assert_eq!(errno(&error), Some(22));
        assert!(error.to_string().ends_with("overlay: no"), "{error}");
    }
}
