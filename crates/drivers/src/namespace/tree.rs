//! The new root while it is being built: each step of the plan by descriptor.
//!
//! Two halves of a step: what is the host's is opened first ([`open_sources`]), as who launched; what is put
//! into the tree comes after the change of the user ([`Tree::step`]), found without following any symlink.

use super::apply::{During, Report};
use super::plan::{Access, EMPTY, MASKS, PID_MAX, Step, WHOLE_PROC};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, RenameFlags, fstat, major, minor, mkdirat, openat, renameat_with, symlinkat,
};
use rustix::io::Errno;
use sandbox_core::launch::INSIDE;
use sandbox_protocol::AGENT_SOCKET;
use sandbox_sys::mount::{self, Attributes, Filesystem, Overlay};
use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The host's half of a step, opened before the user is switched.
pub struct Sources {
    tree: Option<OwnedFd>,
    lowers: Vec<OwnedFd>,
    writable: Option<(OwnedFd, OwnedFd)>,
}

/// Opens what a step needs of the host.
pub fn open_sources(step: &Step) -> Result<Sources, Report> {
    let mut sources = Sources { tree: None, lowers: Vec::new(), writable: None };
    match step {
        Step::Bind { source, access, .. } | Step::Whole { source, access, .. } => {
            let tree = mount::clone_tree(source).map_err(|error| gone(source, "show", &error))?;
            mount::set_attributes(&tree, attributes(*access), true)
                .during(|| format!("protect '{}'", source.display()))?;
            sources.tree = Some(tree);
        }
        Step::Device { name, number } => sources.tree = Some(device(name, *number, false)?),
        Step::Overlay { lowers, writable, .. } => {
            for lower in lowers {
                sources.lowers.push(open_layer(lower)?);
            }
            if let Some((upper, work)) = writable {
                sources.writable = Some((open_layer(upper)?, open_layer(work)?));
            }
        }
        _ => {}
    }
    Ok(sources)
}

fn open_layer(path: &Path) -> Result<OwnedFd, Report> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|error| gone(path, "open", &error.into()))
}

fn gone(path: &Path, verb: &str, error: &io::Error) -> Report {
    let mut report = Report::new(format!("{verb} '{}'", path.display()), error);
    if error.kind() == io::ErrorKind::NotFound {
        report.vanished = Some(path.to_owned());
    }
    report
}

/// A detached mount of one device node, which must be the device that its name promises: the host's
/// `/dev` may itself have been arranged by someone (CVE-2025-31133).
fn device(name: &str, number: (u32, u32), read_only: bool) -> Result<OwnedFd, Report> {
    let path = Path::new("/dev").join(name);
    let step = || format!("show '{}'", path.display());
    let tree = mount::clone_tree(&path).during(step)?;
    let facts = fstat(&tree).during(step)?;
    let found = (major(facts.st_rdev), minor(facts.st_rdev));
    if FileType::from_raw_mode(facts.st_mode) != FileType::CharacterDevice || found != number {
        return Err(Report::new(step(), &io::Error::other(format!("it is not device {}:{}", number.0, number.1))));
    }
    let attributes = Attributes { no_suid: true, no_exec: true, no_dev: false, read_only };
    mount::set_attributes(&tree, attributes, false).during(step)?;
    Ok(tree)
}

fn attributes(access: Access) -> Attributes {
    Attributes { read_only: access.read_only, no_suid: true, no_dev: true, no_exec: access.no_exec }
}

fn memory(step: &Step) -> io::Result<OwnedFd> {
    let Step::Tmpfs { size, inodes, mode, access, .. } = step else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let tmpfs = Filesystem::new("tmpfs")?;
    tmpfs.set("size", &size.to_string())?;
    tmpfs.set("nr_inodes", &inodes.to_string())?;
    tmpfs.set("mode", &format!("{mode:o}"))?;
    tmpfs.mount(attributes(*access))
}

/// The tree that is being built.
pub struct Tree {
    /// Its root, mounted where nobody looks yet.
    pub root: OwnedFd,
    /// An empty file of the root file system, where no path leads to once `/run` is mounted.
    empty: OwnedFd,
    proc: Option<Proc>,
    /// The mount of our own files.
    inside: Option<OwnedFd>,
    /// What had to be changed, for the user.
    notes: Vec<String>,
    /// The last directory that something was made in; forgotten when something is mounted over it.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
}

struct Proc {
    mount: OwnedFd,
    /// A read-only copy of its `sys`, made while mount namespaces may still be made.
    read_only_sys: OwnedFd,
    sysctls: Vec<(Cow<'static, str>, u64)>,
}

impl Tree {
    /// Starts with an empty file system in memory, stacked on the root directory that still is.
    pub fn new() -> Result<Self, Report> {
        let tmpfs = Step::Tmpfs {
            at: "/".into(),
            size: 16 << 20,
            inodes: 16384,
            mode: 0o755,
            access: Access { read_only: false, no_exec: false },
        };
        let root = memory(&tmpfs).during(|| "create the new root directory".to_owned())?;
        let old = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .during(|| "open the root directory".to_owned())?;
        mount::attach(&root, &old).during(|| "attach the new root directory".to_owned())?;
        let step = || "make an empty file".to_owned();
        mkdirat(&root, "run", Mode::from_raw_mode(0o755)).during(step)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
        openat(&root, "run/empty", flags, Mode::from_raw_mode(0o444)).during(step)?;
        let empty = openat(&root, "run/empty", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(step)?;
        Ok(Self { root, empty, proc: None, inside: None, notes: Vec::new(), last: RefCell::new(None) })
    }

    /// Carries out one step.
    pub fn step(&mut self, step: &Step, sources: &Sources) -> Result<(), Report> {
        match step {
            Step::Tmpfs { at, .. } => {
                let mount = memory(step).during(|| format!("create '{}'", at.display()))?;
                self.attach(&mount, at, true)?;
                if at == Path::new(INSIDE) {
                    self.inside = Some(mount);
                }
            }
            Step::Bind { at, directory, .. } => {
                if let Some(tree) = &sources.tree {
                    self.attach(tree, at, *directory)?;
                }
            }
            Step::Device { name, .. } => {
                if let Some(tree) = &sources.tree {
                    self.attach(tree, &Path::new("/dev").join(&**name), false)?;
                }
            }
            Step::Cover { at } => self.cover(at)?,
            Step::Directory { at } => {
                self.directory(at).during(|| format!("make '{}'", at.display()))?;
            }
            Step::Symlink { at, target } => {
                self.symlink(at, target).during(|| format!("link '{}'", at.display()))?;
            }
            Step::File { at, mode, contents } => {
                self.file(at, *mode, contents).during(|| format!("write '{}'", at.display()))?;
            }
            Step::Terminals { max } => {
                let mount = terminals(*max).during(|| "create '/dev/pts'".to_owned())?;
                self.attach(&mount, Path::new("/dev/pts"), true)?;
            }
            Step::Proc { sysctls, whole } => self.proc(sysctls, *whole)?,
            Step::Whole { at, .. } => {
                self.clear(at)?;
                if let Some(tree) = &sources.tree {
                    self.attach(tree, at, true)?;
                }
            }
            Step::Overlay { at, .. } => {
                self.clear(at)?;
                let target = self.mount_point(at, true)?;
                self.last.borrow_mut().take_if(|(path, _)| path.starts_with(at));
                let overlay = Overlay {
                    lowers: &sources.lowers,
                    writable: sources.writable.as_ref().map(|(upper, work)| (upper, work)),
                    attributes: Attributes { read_only: sources.writable.is_none(), ..attributes(Access::OWN) },
                };
                overlay.mount_on(&target).map_err(|error| {
                    let report = Report::new(format!("mount the overlay of '{}'", at.display()), &error);
                    Report { tree: Some(at.clone()), ..report }
                })?;
            }
        }
        Ok(())
    }

    fn attach(&self, mount: &OwnedFd, at: &Path, directory: bool) -> Result<(), Report> {
        let target = self.mount_point(at, directory)?;
        self.last.borrow_mut().take_if(|(path, _)| path.starts_with(at));
        mount::attach(mount, &target).during(|| format!("mount '{}'", at.display()))
    }

    /// Mounts the empty file over what is at `at`, unless nothing is, or it is reached by a link only.
    fn cover(&self, at: &Path) -> Result<(), Report> {
        let step = || format!("cover '{}'", at.display());
        let target = match mount::open_below(&self.root, at) {
            Ok(target) => target,
            Err(error)
                if matches!(
                    mount::errno(&error).map(Errno::from_raw_os_error),
                    Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR)
                ) =>
            {
                return Ok(());
            }
            other => other.during(step)?,
        };
        let kind = FileType::from_raw_mode(fstat(&target).during(step)?.st_mode);
        // Only what a file can be mounted on, and no link: what that leads to is covered itself.
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            return Ok(());
        }
        let cover = mount::clone_at(&self.empty, Path::new(""), false).during(step)?;
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
        mount::set_attributes(&cover, attributes, false).during(step)?;
        mount::attach(&cover, &target).during(step)
    }

    /// Moves aside what is in the way of a tree: in the private home an earlier run can have put a link or
    /// a file in the place of a directory that leads to it, and then the sandbox would never start again.
    fn clear(&mut self, at: &Path) -> Result<(), Report> {
        let step = || format!("make way for '{}'", at.display());
        let mut prefixes: Vec<&Path> = at.ancestors().collect();
        prefixes.reverse();
        for prefix in prefixes {
            let found = match mount::open_below(&self.root, prefix) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other.during(step)?,
            };
            if FileType::from_raw_mode(fstat(&found).during(step)?.st_mode) == FileType::Directory {
                continue;
            }
            let (Some(parent), Some(name)) = (prefix.parent(), prefix.file_name()) else { return Ok(()) };
            let parent = mount::open_below(&self.root, parent).during(step)?;
            let other = |number: u32| {
                let mut other = name.to_owned();
                other.push(format!(".moved-{number}"));
                other
            };
            let moved = (1..1000).map(other).find_map(|other| {
                match renameat_with(&parent, name, &parent, &other, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => None,
                    result => Some(result.map(|()| other)),
                }
            });
            let other = moved.unwrap_or(Err(Errno::EXIST)).during(step)?;
            let (prefix, other) = (prefix.display(), Path::new(&other).display());
            self.notes.push(format!("'{prefix}' was in the way of '{}' and is now '{other}'", at.display()));
            return Ok(());
        }
        Ok(())
    }

    fn mount_point(&self, at: &Path, directory: bool) -> Result<OwnedFd, Report> {
        let result = if directory { self.directory(at) } else { self.empty_file(at) };
        result.during(|| format!("make the mount point '{}'", at.display()))
    }

    /// Opens a directory of the new tree, making it and its parents as needed.
    fn directory(&self, at: &Path) -> io::Result<OwnedFd> {
        // Beside one that was just made it is most often not there yet.
        let beside = matches!(&*self.last.borrow(), Some((parent, _)) if at.parent() == Some(parent));
        if !beside {
            match mount::open_below(&self.root, at) {
                Ok(found) => return Ok(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let (parent, name) = self.parent(at)?;
        match mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) if beside => return mount::open_below(&self.root, at),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*parent, name, flags, Mode::empty())?)
    }

    fn empty_file(&self, at: &Path) -> io::Result<OwnedFd> {
        let (parent, name) = self.parent(at)?;
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&*parent, name, flags, Mode::from_raw_mode(0o644))?)
    }

    /// The directory that `at` is an entry of. The last one is remembered: the steps of `/etc` or `/dev`
    /// come in a row.
    fn parent<'p>(&self, at: &'p Path) -> io::Result<(Rc<OwnedFd>, &'p std::ffi::OsStr)> {
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        if let Some((path, fd)) = &*self.last.borrow()
            && path == parent
        {
            return Ok((Rc::clone(fd), name));
        }
        let fd = Rc::new(self.directory(parent)?);
        *self.last.borrow_mut() = Some((parent.to_owned(), Rc::clone(&fd)));
        Ok((fd, name))
    }

    fn symlink(&self, at: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(at)?;
        match symlinkat(target, &*parent, name) {
            Err(Errno::EXIST) => match rustix::fs::readlinkat(&*parent, name, Vec::new()) {
                Ok(found) if found.as_bytes() == target.as_os_str().as_bytes() => Ok(()),
                _ => Err(Errno::EXIST.into()),
            },
            other => Ok(other?),
        }
    }

    fn file(&self, at: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(at)?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&*parent, name, flags, Mode::from_raw_mode(mode & 0o777))?;
        let mut rest = contents;
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&fd, rest)?..];
        }
        Ok(())
    }

    /// Mounts `/proc` and covers what shows the whole machine.
    fn proc(&mut self, sysctls: &[(Cow<'static, str>, u64)], whole: bool) -> Result<(), Report> {
        let hidden = Attributes { no_suid: true, no_dev: true, no_exec: true, read_only: false };
        let mount =
            Filesystem::new("proc").and_then(|proc| proc.mount(hidden)).during(|| "mount '/proc'".to_owned())?;
        self.attach(&mount, Path::new("/proc"), true)?;
        if whole {
            let whole = Filesystem::new("proc").and_then(|proc| proc.mount(hidden));
            self.attach(&whole.during(|| "mount a whole '/proc'".to_owned())?, Path::new(WHOLE_PROC), true)?;
        }
        let read_only = Attributes { read_only: true, ..hidden };
        for (path, kind) in MASKS {
            let step = || format!("mask '{path}'");
            let name = path.trim_start_matches("/proc/");
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = match openat(&mount, name, flags, Mode::empty()) {
                Ok(target) => target,
                Err(Errno::NOENT) => continue,
                other => other.during(step)?,
            };
            let cover = if *kind == "directory" {
                let empty = EMPTY.trim_start_matches('/');
                let cover = mount::clone_at(&self.root, Path::new(empty), false).during(step)?;
                mount::set_attributes(&cover, read_only, false).during(step)?;
                cover
            } else {
                device("null", (1, 3), true)?
            };
            mount::attach(&cover, &target).during(step)?;
        }
        let step = || "make '/proc/sys' read-only".to_owned();
        let read_only_sys = mount::clone_at(&mount, Path::new("sys"), false).during(step)?;
        mount::set_attributes(&read_only_sys, read_only, false).during(step)?;
        self.proc = Some(Proc { mount, read_only_sys, sysctls: sysctls.to_vec() });
        Ok(())
    }

    /// Makes the socket for tools inside.
    pub fn listen(&self) -> Result<Option<UnixListener>, Report> {
        let Some(inside) = &self.inside else { return Ok(None) };
        let name = Path::new(AGENT_SOCKET).file_name().unwrap_or_default();
        let path = Path::new("/proc/self/fd").join(inside.as_raw_fd().to_string()).join(name);
        UnixListener::bind(path).map(Some).during(|| format!("listen at '{AGENT_SOCKET}'"))
    }

    /// Writes the limits and makes read-only what must be. Afterwards no mount can be made any more: the
    /// limit of mount namespaces counts detached mounts too. Returns what could not be had.
    pub fn finish(&mut self) -> Result<Vec<String>, Report> {
        let mut notes = std::mem::take(&mut self.notes);
        let read_only = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: false };
        mount::set_attributes(&self.root, read_only, false).during(|| "make '/' read-only".to_owned())?;
        if let Some(inside) = &self.inside {
            let read_only = Attributes { no_exec: true, ..read_only };
            mount::set_attributes(inside, read_only, false).during(|| format!("make '{INSIDE}' read-only"))?;
        }
        if let Some(proc) = &self.proc {
            for (name, value) in &proc.sysctls {
                match write_file(proc.mount.as_fd(), &format!("sys/{name}"), &value.to_string()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Numbers above the limit are in use by none: only the fall-back limit holds.
                    Err(_) if name == PID_MAX => {}
                    Err(error) => notes.push(format!("limit '{name}' is not enforced: {error}")),
                }
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let step = || "make '/proc/sys' read-only".to_owned();
            let target = openat(&proc.mount, "sys", flags, Mode::empty()).during(step)?;
            mount::attach(&proc.read_only_sys, &target).during(step)?;
        }
        Ok(notes)
    }
}

fn terminals(max: u32) -> io::Result<OwnedFd> {
    let devpts = Filesystem::new("devpts")?;
    devpts.set("mode", "620")?;
    devpts.set("ptmxmode", "0666")?;
    devpts.set("max", &max.to_string())?;
    devpts.mount(Attributes { no_suid: true, no_exec: true, no_dev: false, read_only: false })
}

/// Writes a short file of a kernel file system.
pub fn write_file(dir: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    let fd = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, text.as_bytes())?;
    Ok(())
}
