//! Files out of a sandbox, read from the host: by descriptors beneath the roots of its layers,
//! never following a link, so that nothing inside decides which file of the host is read or
//! written.
//!
//! The view is put together as the kernel does: `upper : git layer : delta : … : base`; a device
//! `0:0` hides, an opaque directory (`user.overlay.opaque`) hides what is below it.

pub mod matching;

use crate::launch::TreeView;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::Store;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Deeper than this nothing is copied.
const MAX_DEPTH: usize = 256;

/// Which symbolic links are copied, as links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// None.
    None,
    /// Those that are relative and stay inside what is copied.
    Inside,
    /// All: whoever opens one looks where it leads.
    All,
}

/// What to copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyOut<'a> {
    /// Relative to the tree that the sandbox is looked at from, without `..`.
    pub path: &'a Path,
    /// On the host; must not exist, unless it is a directory for a directory or a file for a file.
    pub target: &'a Path,
    /// Which symbolic links too.
    pub links: Links,
    /// Bytes at most, by apparent size.
    pub limit: u64,
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files and links.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What was not, and why.
    pub skipped: Vec<(String, &'static str)>,
}

/// Why nothing (more) was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyOutError {
    /// There is no such file in the sandbox.
    #[error("there is no '{path}' in the sandbox", path = path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// More bytes than allowed.
    #[error("'{path}' is more than {limit} bytes", path = shown(path))]
    TooLarge {
        /// The path asked for.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file.
    #[error("cannot copy '{path}'", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The top has no name of its own.
fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    if path.as_os_str().is_empty() { ".".into() } else { path.to_string_lossy() }
}

/// One directory of the view: the directories of the layers that it is made of, uppermost first.
struct Merged(Vec<OwnedFd>);

/// What a name is in the view.
enum Found {
    Nothing,
    Directory(Merged),
    /// The layer's directory that holds it, and its type.
    Leaf(OwnedFd, FileType),
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Merged {
    fn roots(store: &Store, sandbox: &Sandbox) -> Result<Self, CopyOutError> {
        let snapshot = sandbox.snapshot(store)?;
        let repo = store.repo(&sandbox.mount().repo);
        let mut paths = Vec::new();
        if sandbox.record.has_upper(sandbox.tree) {
            paths.push(sandbox.upper());
        }
        if sandbox.record.view == TreeView::Overlay {
            paths.extend(crate::assemble::stack(&snapshot, |id| repo.layer_tree(id)));
        }
        let open = |path: PathBuf| {
            rustix::fs::open(&path, DIRECTORY, Mode::empty()).map_err(|e| CopyOutError::Io { path, source: e.into() })
        };
        Ok(Self(paths.into_iter().map(open).collect::<Result<_, _>>()?))
    }

    /// Looks a name up through the layers.
    fn look(&self, name: &OsStr) -> io::Result<Found> {
        let mut dirs = Vec::new();
        for layer in &self.0 {
            let stat = match statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let dir = openat(layer, name, DIRECTORY, Mode::empty())?;
                    let opaque = is_opaque(&dir);
                    dirs.push(dir);
                    if opaque {
                        break;
                    }
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => break,
                _ if !dirs.is_empty() => break,
                kind => return Ok(Found::Leaf(layer.try_clone()?, kind)),
            }
        }
        Ok(if dirs.is_empty() { Found::Nothing } else { Found::Directory(Self(dirs)) })
    }

    fn names(&self) -> io::Result<BTreeSet<CString>> {
        let mut names = BTreeSet::new();
        for layer in &self.0 {
            for entry in Dir::read_from(layer)? {
                let name = entry?.file_name().to_owned();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    names.insert(name);
                }
            }
        }
        Ok(names)
    }
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(dir, "user.overlay.opaque", &mut value), Ok(n) if value[..n] == *b"y")
}

/// Copies a file or a directory out: all of it or, when something fails, nothing. What is larger than the limit is
/// refused before anything is written.
pub fn copy_out(store: &Store, sandbox: &Sandbox, request: &CopyOut<'_>) -> Result<Copied, CopyOutError> {
    all_or_nothing(request, |copy| copy.asked(Merged::roots(store, sandbox)?))
}

/// Carries the steps of a copy out twice: counting, then writing.
fn all_or_nothing(
    request: &CopyOut<'_>,
    steps: impl Fn(&mut Copy<'_>) -> Result<(), CopyOutError>,
) -> Result<Copied, CopyOutError> {
    steps(&mut Copy { counts: true, ..Copy::new(request) })?;
    let mut copy = Copy::new(request);
    let done = steps(&mut copy);
    if done.is_err() {
        copy.take_back();
    }
    done.map(|()| copy.copied)
}

/// Copies what is the sandbox's own, all files that were changed or made in it, without looking at what it stands
/// on: that may be gone. `target` is made, or is a directory.
pub fn copy_changes(sandbox: &Sandbox, target: &Path) -> Result<Copied, CopyOutError> {
    let request = CopyOut { path: Path::new(""), target, links: Links::All, limit: u64::MAX };
    let upper = sandbox.upper();
    let top = rustix::fs::open(&upper, DIRECTORY, Mode::empty());
    let top = top.map_err(|error| CopyOutError::Io { path: upper, source: error.into() })?;
    let mut copy = Copy::new(&request);
    copy.directory(Merged(vec![top]), target)?;
    Ok(copy.copied)
}

struct Copy<'a> {
    request: &'a CopyOut<'a>,
    copied: Copied,
    /// Nothing is written.
    counts: bool,
    /// What was not there before, in the order in which it was made.
    made: Vec<PathBuf>,
}

impl<'a> Copy<'a> {
    fn new(request: &'a CopyOut<'a>) -> Self {
        Self { request, copied: Copied::default(), counts: false, made: Vec::new() }
    }

    /// Copies what is asked for.
    fn asked(&mut self, roots: Merged) -> Result<(), CopyOutError> {
        let request = self.request;
        let fail = |source: io::Error| CopyOutError::Io { path: request.path.to_owned(), source };
        let missing = || CopyOutError::Missing { path: request.path.to_owned() };
        let mut at = roots;
        // A `..` would be looked up beside the layers.
        let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let parts: Vec<Component<'_>> = request.path.components().filter(|part| *part != Component::CurDir).collect();
        if !parts.iter().all(plain) {
            return Err(missing());
        }
        let parts: Vec<&OsStr> = parts.iter().map(|part| part.as_os_str()).collect();
        for (n, part) in parts.iter().enumerate() {
            match at.look(part).map_err(fail)? {
                Found::Nothing => return Err(missing()),
                Found::Directory(dir) => at = dir,
                Found::Leaf(layer, kind) if n + 1 == parts.len() => {
                    return self.leaf(&layer, part, kind, request.target);
                }
                Found::Leaf(..) => return Err(missing()),
            }
        }
        if parts.iter().any(|part| part.eq_ignore_ascii_case(".git")) {
            self.skip(request.target, "a git directory");
            return Ok(());
        }
        self.directory(at, request.target)
    }

    /// Removes what was made; a directory that has got anything else meanwhile stays.
    fn take_back(&mut self) {
        for path in self.made.drain(..).rev() {
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
    }

    fn fail(path: &Path) -> impl FnOnce(io::Error) -> CopyOutError {
        let path = path.to_owned();
        move |source| CopyOutError::Io { path, source }
    }

    fn skip(&mut self, target: &Path, why: &'static str) {
        let shown = target.strip_prefix(self.request.target).unwrap_or(target);
        self.copied.skipped.push((shown.to_string_lossy().into_owned(), why));
    }

    /// Copies directories with a stack of our own, as deep as the tree is: depth is the sandbox's
    /// choice, and open descriptors are few however wide it is.
    fn directory(&mut self, top: Merged, target: &Path) -> Result<(), CopyOutError> {
        let mut stack = vec![self.enter(top, target.to_owned())?];
        while let Some((dir, names, target)) = stack.last_mut() {
            let Some(name) = names.pop_first() else {
                stack.pop();
                continue;
            };
            let name = OsStr::from_bytes(name.to_bytes());
            let below = target.join(name);
            match dir.look(name).map_err(Self::fail(&below))? {
                Found::Nothing => {}
                // A copied `.git` would be a repository whose configuration came from inside.
                _ if name.eq_ignore_ascii_case(".git") => self.skip(&below, "a git directory"),
                Found::Directory(_) if stack.len() > MAX_DEPTH => self.skip(&below, "too deep"),
                Found::Directory(_) if below.is_symlink() => self.skip(&below, "a symbolic link is in its place"),
                Found::Directory(sub) => {
                    let entered = self.enter(sub, below)?;
                    stack.push(entered);
                }
                Found::Leaf(layer, kind) => self.leaf(&layer, name, kind, &below)?,
            }
        }
        Ok(())
    }

    fn enter(&mut self, dir: Merged, target: PathBuf) -> Result<(Merged, BTreeSet<CString>, PathBuf), CopyOutError> {
        if !self.counts {
            match std::fs::create_dir(&target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
                other => {
                    other.map_err(Self::fail(&target))?;
                    self.made.push(target.clone());
                }
            }
        }
        let names = dir.names().map_err(Self::fail(&target))?;
        Ok((dir, names, target))
    }

    fn leaf(&mut self, layer: &OwnedFd, name: &OsStr, kind: FileType, target: &Path) -> Result<(), CopyOutError> {
        match kind {
            FileType::RegularFile => self.file(layer, name, target),
            FileType::Symlink if self.request.links != Links::None => self.link(layer, name, target),
            FileType::Symlink => {
                self.skip(target, "a symbolic link");
                Ok(())
            }
            _ => {
                self.skip(target, "not a regular file");
                Ok(())
            }
        }
    }

    fn file(&mut self, layer: &OwnedFd, name: &OsStr, target: &Path) -> Result<(), CopyOutError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = match openat(layer, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::ACCESS) => {
                self.skip(target, "not readable");
                return Ok(());
            }
            Err(error) => return Err(Self::fail(target)(error.into())),
        };
        let stat = fstat(&source).map_err(|e| Self::fail(target)(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.skip(target, "not a regular file");
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.copied.bytes.saturating_add(size) > self.request.limit {
            return Err(CopyOutError::TooLarge { path: self.request.path.to_owned(), limit: self.request.limit });
        }
        if self.counts {
            self.copied.bytes += size;
            return Ok(());
        }
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temp = tempfile::NamedTempFile::new_in(parent).map_err(Self::fail(target))?;
        // Never more than was counted, whatever grows meanwhile; holes stay holes.
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        sandbox_sys::copy::Copier::new()
            .copy(source.as_fd(), temp.as_fd(), size, blocks, stat.st_dev)
            .map_err(Self::fail(target))?;
        let mode = Mode::from_raw_mode(if stat.st_mode & 0o100 != 0 { 0o755 } else { 0o644 });
        rustix::fs::fchmod(temp.as_file(), mode & !umask()).map_err(|e| Self::fail(target)(e.into()))?;
        let new = std::fs::symlink_metadata(target).is_err();
        temp.persist(target).map_err(|error| Self::fail(target)(error.error))?;
        if new {
            self.made.push(target.to_owned());
        }
        self.copied.files += 1;
        self.copied.bytes += size;
        Ok(())
    }

    fn link(&mut self, layer: &OwnedFd, name: &OsStr, target: &Path) -> Result<(), CopyOutError> {
        let to = readlinkat(layer, name, Vec::new()).map_err(|e| Self::fail(target)(e.into()))?;
        let to = Path::new(OsStr::from_bytes(to.to_bytes()));
        let below = target.strip_prefix(self.request.target).unwrap_or(Path::new(""));
        if self.request.links == Links::Inside && !stays(to, below.components().count()) {
            self.skip(target, "a symbolic link that leads out");
            return Ok(());
        }
        if self.counts {
            return Ok(());
        }
        std::os::unix::fs::symlink(to, target).map_err(Self::fail(target))?;
        self.made.push(target.to_owned());
        self.copied.files += 1;
        Ok(())
    }
}

/// Does a link of depth `depth` (1 = directly in what is copied, 0 = itself what is copied) stay
/// inside? A `..` after a name counts as leaving: the name may be a link to somewhere higher.
fn stays(to: &Path, depth: usize) -> bool {
    let mut above = 0;
    let mut named = false;
    for part in to.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::ParentDir if named => return false,
            Component::ParentDir => above += 1,
            Component::CurDir => {}
            _ => return false,
        }
    }
    above < depth
}

fn umask() -> Mode {
    let mask = rustix::process::umask(Mode::empty());
    rustix::process::umask(mask);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_whatever_they_go_through() {
        assert!(stays(Path::new("b/c"), 1));
        assert!(stays(Path::new("../b"), 2));
        assert!(!stays(Path::new("../b"), 1));
        assert!(!stays(Path::new("/etc/passwd"), 5));
        // `a/b/up` may be a link to the top: what is above it is outside.
        assert!(!stays(Path::new("a/b/up/../x"), 1));
        // One link alone has nothing to stay inside of.
        assert!(!stays(Path::new("x"), 0));
    }

    #[test]
    fn a_wide_tree_needs_few_descriptors_and_a_link_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, outside) = (dir.path().join("from"), dir.path().join("to"), dir.path().join("outside"));
        for path in [&to, &outside] {
            std::fs::create_dir(path).unwrap();
        }
        for n in 0..2000 {
            std::fs::create_dir_all(from.join(format!("d{n}"))).unwrap();
        }
        std::fs::write(from.join("d7/x"), "x").unwrap();
        std::fs::write(from.join("d8/x"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, to.join("d7")).unwrap();
        let request = CopyOut { path: Path::new(""), target: &to, links: Links::Inside, limit: 100 };
        let mut copy = Copy::new(&request);
        let top = Merged(vec![rustix::fs::open(&from, DIRECTORY, Mode::empty()).unwrap()]);
        copy.directory(top, &to).unwrap();
        assert_eq!(copy.copied.skipped, [("d7".to_owned(), "a symbolic link is in its place")]);
        assert_eq!((copy.copied.files, std::fs::read_dir(&outside).unwrap().count()), (1, 0));
        assert!(to.join("d1999").is_dir() && to.join("d8/x").is_file());
    }

    #[test]
    fn what_fails_leaves_nothing_half_made() {
        let dir = tempfile::tempdir().unwrap();
        let (from, new, old) = (dir.path().join("from"), dir.path().join("new"), dir.path().join("old"));
        for name in ["a", "b", "c"] {
            std::fs::create_dir_all(from.join("sub")).unwrap();
            std::fs::write(from.join("sub").join(name), "12345").unwrap();
        }
        std::fs::create_dir_all(old.join("sub/c/mine")).unwrap();
        std::fs::write(old.join("sub/a"), "mine").unwrap();
        let list = |at: &Path| {
            let out = std::process::Command::new("find").arg(at).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        let before = list(&old);
        let copy = |target: &Path, limit| {
            let request = CopyOut { path: Path::new(""), target, links: Links::None, limit };
            let top = || Merged(vec![rustix::fs::open(&from, DIRECTORY, Mode::empty()).unwrap()]);
            all_or_nothing(&request, |copy| copy.asked(top()))
        };
        // Too large: neither a new directory nor anything in one that is there.
        for target in [&new, &old] {
            assert!(matches!(copy(target, 14), Err(CopyOutError::TooLarge { limit: 14, .. })));
        }
        assert!(!new.exists());
        assert_eq!((list(&old), std::fs::read_to_string(old.join("sub/a")).unwrap()), (before.clone(), "mine".into()));
        // A directory is in the way of the last one: what was new is gone again.
        assert!(matches!(copy(&old, 15), Err(CopyOutError::Io { .. })));
        assert_eq!(list(&old), before);
        assert_eq!(copy(&new, 15).unwrap().files, 3);
    }
}
