//! Repositories and linked worktrees that were made inside a sandbox, and content that is only staged:
//! the host has no place for it or never looks there, so it is told of before anything is dropped.
//!
//! Read from the upper directory, which is the sandbox's: nothing in it is followed.

use crate::host_repo::HostRepo;
use crate::record::Snapshot;
use crate::sandbox::Sandbox;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sandbox_capture::ChangesError;
use sandbox_git::index::{Entry, Index};
use sandbox_git::{Git, GitError, Oid, printable};
use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The most that is told.
const MOST: usize = 100;

/// Returns the paths, printable, of repositories inside the tree that were not captured.
pub fn repositories(sandbox: &Sandbox, snapshot: &Snapshot) -> Result<Vec<String>, ChangesError> {
    let upper = sandbox.upper();
    let found = sandbox_capture::repositories(&upper)?;
    let captured = |path: &Path| snapshot.git.views.iter().any(|view| view.path == path);
    let unknown = found.into_iter().filter(|(path, directory)| {
        // Another worktree of a repository that is known: its commits are there.
        let linked = || !directory && gitfile(&upper, &path.join(".git")).is_some_and(|to| is_worktree(&to));
        !captured(path) && !linked()
    });
    let found = unknown.map(|(path, _)| path).chain(modules(&upper, sandbox, snapshot));
    Ok(found.take(MOST).map(|path| printable(path.as_os_str().as_bytes())).collect())
}

/// How deep submodules' git directories are looked for: a name has slashes, and they have modules of their own.
const DEPTH: usize = 12;

/// Directories that are looked at.
const LOOKED_AT: usize = 10_000;

/// Git directories below `.git/modules` that were not captured: their work trees may be gone, their commits are there.
fn modules(upper: &Path, sandbox: &Sandbox, snapshot: &Snapshot) -> Vec<PathBuf> {
    let captured = |path: &Path| {
        let whole = sandbox.mount().worktree.join(path);
        snapshot.git.views.iter().any(|view| view.inside_gitdir == whole)
    };
    let mut found = Vec::new();
    let mut waiting = vec![(PathBuf::from(".git/modules"), 0)];
    let mut looked = 0;
    while let Some((dir, depth)) = waiting.pop() {
        looked += 1;
        if looked > LOOKED_AT || found.len() == MOST {
            break;
        }
        let Some(entries) = open_dir(upper, &dir) else { continue };
        let names = rustix::fs::Dir::new(entries).into_iter().flatten().flatten();
        let names: Vec<PathBuf> = names
            .map(|entry| PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())))
            .filter(|name| name != Path::new(".") && name != Path::new(".."))
            .collect();
        let has = |name: &str| names.iter().any(|known| known == Path::new(name));
        let repository = has("HEAD") && has("objects");
        if repository && !captured(&dir) {
            found.push(dir.clone());
        }
        let below = names.into_iter().filter(|name| !repository || name == Path::new("modules"));
        if depth < DEPTH {
            waiting.extend(below.map(|name| (dir.join(name), depth + 1)));
        }
    }
    // The work tree of one that is there was told of already.
    found.retain(|dir| !named_by_a_work_tree(upper, dir));
    found.sort();
    found
}

/// Its configuration names a work tree that is there and leads back.
fn named_by_a_work_tree(upper: &Path, gitdir: &Path) -> bool {
    let Some(config) = read(upper, &gitdir.join("config")) else { return false };
    let text = String::from_utf8_lossy(&config);
    let value = text.lines().find_map(|line| line.trim().strip_prefix("worktree")?.trim().strip_prefix('='));
    let Some(value) = value else { return false };
    let mut tree = PathBuf::new();
    for part in gitdir.join(value.trim()).components() {
        match part {
            std::path::Component::ParentDir if tree.pop() => {}
            std::path::Component::Normal(name) => tree.push(name),
            _ => return false,
        }
    }
    gitfile(upper, &tree.join(".git")).is_some()
}

/// Returns the paths inside, printable, of linked worktrees that lie in the sandbox's home: what is
/// changed in them is no change of the tree.
pub fn worktrees_at_home(sandbox: &Sandbox) -> Vec<String> {
    let upper = sandbox.upper();
    let Some(entries) = open_dir(&upper, Path::new(".git/worktrees")) else { return Vec::new() };
    let names = rustix::fs::Dir::new(entries).into_iter().flatten().flatten();
    let names = names.map(|entry| PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())));
    let mut found: Vec<String> = names
        .filter(|name| !name.starts_with(".") && !name.starts_with(".."))
        .filter_map(|name| read(&upper, &Path::new(".git/worktrees").join(name).join("gitdir")))
        .filter_map(|text| Some(Path::new(std::ffi::OsStr::from_bytes(text.trim_ascii())).parent()?.to_owned()))
        .filter(|path| !sandbox.record.repos.iter().any(|mount| path.starts_with(&mount.worktree)))
        .filter(|path| {
            path.strip_prefix(&sandbox.record.home)
                .is_ok_and(|below| sandbox.record.guest_disk || is_there(&sandbox.dir.home(), below))
        })
        .map(|path| printable(path.as_os_str().as_bytes()))
        .take(MOST)
        .collect();
    found.sort();
    found
}

/// Larger indexes and files are not looked into, in bytes.
const LOOKED_INTO: u64 = 64 << 20;

/// Returns paths, printable, of the main repository whose staged content is in no commit of `tip`, was not
/// staged when the sandbox was made, and is not in the working tree either.
pub fn staged_only(
    git: &Git,
    host: &HostRepo,
    sandbox: &Sandbox,
    layer: &Path,
    tip: Option<&Oid>,
) -> Result<Vec<String>, GitError> {
    let upper = sandbox.upper();
    let name = Path::new(".git/index");
    let parse = |bytes: Vec<u8>| Index::parse(bytes, host.format()).ok();
    let Some(now) = read_up_to(&upper, name, LOOKED_INTO).and_then(parse) else { return Ok(Vec::new()) };
    let captured = fs::read(layer.join(name)).ok().and_then(parse);
    let mut known: HashSet<(Vec<u8>, Oid)> =
        captured.iter().flat_map(Index::entries).map(|entry| (entry.path.clone(), entry.oid)).collect();
    let regular = |entry: &&Entry| entry.stage == 0 && matches!(entry.mode & 0o170_000, 0o100_000 | 0o120_000);
    let mut candidates: Vec<&Entry> = now
        .entries()
        .iter()
        .filter(regular)
        .filter(|entry| !known.contains(&(entry.path.clone(), entry.oid)))
        .collect();
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(tip) = tip {
        let listing = host.read(git).args(["ls-tree", "-r", "-z", "--full-tree", &tip.to_string()]).output()?;
        known.extend(listing.stdout.split(|byte| *byte == 0).filter_map(|line| {
            let (meta, path) = line.split_at_checked(line.iter().position(|byte| *byte == b'\t')?)?;
            Some((path[1..].to_vec(), Oid::parse(meta.rsplit(|byte| *byte == b' ').next()?)?))
        }));
    }
    candidates.retain(|entry| !known.contains(&(entry.path.clone(), entry.oid)) && !is_in_tree(&upper, entry));
    Ok(candidates.into_iter().take(MOST).map(|entry| printable(&entry.path)).collect())
}

/// The working tree has what is staged.
fn is_in_tree(upper: &Path, entry: &Entry) -> bool {
    let path = Path::new(std::ffi::OsStr::from_bytes(&entry.path));
    if entry.mode & 0o170_000 == 0o120_000 {
        // Changed links are told of one by one already.
        return true;
    }
    read_up_to(upper, path, LOOKED_INTO)
        .is_some_and(|bytes| sandbox_git::hash_object(entry.oid.format(), "blob", &bytes) == entry.oid)
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
    read_up_to(root, path, 8192)
}

/// Reads a regular file of at most `most` bytes beneath `root`.
fn read_up_to(root: &Path, path: &Path, most: u64) -> Option<Vec<u8>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(openat2(root.as_fd(), path, flags, Mode::empty(), BENEATH).ok()?);
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() > most {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
