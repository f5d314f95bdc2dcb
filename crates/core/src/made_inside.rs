//! Repositories and linked worktrees that were made inside a sandbox: the host has no place for
//! their commits or never looks at their files, so they are told of before anything is dropped.
//!
//! Read from the upper directory, which is the sandbox's: nothing in it is followed.

use crate::record::Snapshot;
use crate::sandbox::Sandbox;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sandbox_capture::ChangesError;
use sandbox_git::printable;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The most that is told.
const MOST: usize = 100;

/// Returns the paths, printable, of repositories inside the tree that were not captured.
pub fn repositories(sandbox: &Sandbox, snapshot: &Snapshot) -> Result<Vec<String>, ChangesError> {
    let upper = sandbox.dir.upper(0);
    let found = sandbox_capture::repositories(&upper)?;
    let captured = |path: &Path| snapshot.git.views.iter().any(|view| view.path == path);
    let unknown = found.into_iter().filter(|(path, directory)| {
        // Another worktree of a repository that is known: its commits are there.
        let linked = || !directory && gitfile(&upper, &path.join(".git")).is_some_and(|to| is_worktree(&to));
        !captured(path) && !linked()
    });
    Ok(unknown.take(MOST).map(|(path, _)| printable(path.as_os_str().as_bytes())).collect())
}

/// Returns the paths inside, printable, of linked worktrees that lie in the sandbox's home: what is
/// changed in them is no change of the tree.
pub fn worktrees_at_home(sandbox: &Sandbox) -> Vec<String> {
    let upper = sandbox.dir.upper(0);
    let Some(entries) = open_dir(&upper, Path::new(".git/worktrees")) else { return Vec::new() };
    let names = rustix::fs::Dir::new(entries).into_iter().flatten().flatten();
    let names = names.map(|entry| PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())));
    let mut found: Vec<String> = names
        .filter(|name| !name.starts_with(".") && !name.starts_with(".."))
        .filter_map(|name| read(&upper, &Path::new(".git/worktrees").join(name).join("gitdir")))
        .filter_map(|text| Some(Path::new(std::ffi::OsStr::from_bytes(text.trim_ascii())).parent()?.to_owned()))
        .filter(|path| !path.starts_with(&sandbox.record.repos[0].worktree))
        .filter(|path| path.strip_prefix(&sandbox.record.home).is_ok_and(|below| is_there(&sandbox.dir.home(), below)))
        .map(|path| printable(path.as_os_str().as_bytes()))
        .take(MOST)
        .collect();
    found.sort();
    found
}

fn is_worktree(gitdir: &[u8]) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(gitdir));
    path.parent().and_then(Path::file_name).is_some_and(|name| name == "worktrees")
}

/// What a `.git` file names.
fn gitfile(root: &Path, file: &Path) -> Option<Vec<u8>> {
    Some(read(root, file)?.strip_prefix(b"gitdir:")?.trim_ascii().to_vec())
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

fn open_dir(root: &Path, path: &Path) -> Option<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root.as_fd(), path, flags, Mode::empty(), BENEATH).ok()
}

/// Whether a directory is there, beneath `root` and without following links.
fn is_there(root: &Path, path: &Path) -> bool {
    !path.as_os_str().is_empty() && open_dir(root, path).is_some()
}

/// Reads a small regular file beneath `root`.
fn read(root: &Path, path: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(openat2(root.as_fd(), path, flags, Mode::empty(), BENEATH).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(8192).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
