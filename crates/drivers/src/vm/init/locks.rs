//! Locks of git commands that were cut off with their machine.
//!
//! ```text
//!   start ─► /disk/running is there? ─ yes ─► the machine before was killed: no lock has an owner any more
//!     │                                        ─► those below the git directories of the uppers are removed, and said
//!     └─► /disk/running is made; the end of the machine, and a copy of the disk, take it away
//! ```
//! A lock that was there when the machine ended in good order is somebody's intention, and stays.

use super::{Failure, during};
use crate::vm::guest::{DISK, GuestSpec};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Git directories are not deeper; whoever makes one that is keeps its locks.
const DEEPEST: usize = 64;

/// As many are named.
const NAMED: usize = 5;

fn mark() -> PathBuf {
    Path::new(DISK).join("running")
}

/// From here on whatever is locked may be cut off.
pub fn begin() -> io::Result<()> {
    File::create(mark())?.sync_all()
}

/// From here on nothing is cut off any more.
pub fn end() {
    // It is not there on a machine that only looks.
    let _ = fs::remove_file(mark());
}

/// Removes what a machine that was killed left locked; returns what is to be said of it.
pub fn clear(spec: &GuestSpec) -> Result<Option<String>, Failure> {
    let cut = mark().exists();
    begin().map_err(during("write to the disk"))?;
    if !cut {
        return Ok(None);
    }
    let mut removed = Vec::new();
    for (tree, launched) in spec.trees.iter().zip(&spec.launch.trees) {
        let Some((upper, _)) = &tree.writable else { continue };
        remove_below(&upper.join(".git"), &launched.at.join(".git"), DEEPEST, &mut removed);
    }
    Ok(said(&removed))
}

fn said(removed: &[PathBuf]) -> Option<String> {
    if removed.is_empty() {
        return None;
    }
    let names: Vec<String> = removed.iter().take(NAMED).map(|path| format!("'{}'", path.display())).collect();
    let more = removed.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!("removed {}{more}: a git command was cut off when the machine was killed", names.join(", ")))
}

/// Nothing else runs yet. What is no directory of its own (a link) is not entered; objects have no locks.
fn remove_below(dir: &Path, shown: &Path, depth: usize, removed: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (Ok(kind), name) = (entry.file_type(), entry.file_name()) else { continue };
        let (path, shown) = (entry.path(), shown.join(&name));
        if kind.is_dir() && depth > 0 && name != "objects" {
            remove_below(&path, &shown, depth - 1, removed);
        } else if kind.is_file() && path.extension().is_some_and(|end| end == "lock") && fs::remove_file(&path).is_ok()
        {
            removed.push(shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_locks_of_the_git_directory_go() {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        for path in ["refs/heads", "modules/sub/refs", "objects/pack"] {
            fs::create_dir_all(git.join(path)).unwrap();
        }
        let locks = ["index.lock", "refs/heads/main.lock", "modules/sub/HEAD.lock"];
        let others = ["index", "refs/heads/main", "objects/pack/x.lock", "../outside.lock"];
        for path in locks.iter().chain(&others) {
            fs::write(git.join(path), "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), git.join("link")).unwrap();
        std::os::unix::fs::symlink("index", git.join("kept.lock")).unwrap();
        let mut removed = Vec::new();
        remove_below(&git, Path::new("/r/.git"), DEEPEST, &mut removed);
        removed.sort();
        let shown: Vec<&str> = removed.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(shown, ["/r/.git/index.lock", "/r/.git/modules/sub/HEAD.lock", "/r/.git/refs/heads/main.lock"]);
        assert!(locks.iter().all(|path| !git.join(path).exists()) && others.iter().all(|path| git.join(path).exists()));
        assert!(git.join("kept.lock").symlink_metadata().is_ok());
    }

    #[test]
    fn what_was_removed_is_said() {
        assert_eq!(said(&[]), None);
        let cut = "a git command was cut off when the machine was killed";
        assert_eq!(said(&["/r/a.lock".into()]), Some(format!("removed '/r/a.lock': {cut}")));
        let many: Vec<PathBuf> = (0..7).map(|n| format!("{n}").into()).collect();
        assert_eq!(said(&many), Some(format!("removed '0', '1', '2', '3', '4' and 2 more: {cut}")));
    }
}
