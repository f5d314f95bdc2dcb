//! `RENAME_EXCHANGE` of two entries of which the overlay refuses to move one.
//!
//! ```text
//! <top>/.gs-rename/
//!   exchange -> .             says which kind of plan this is
//!   source -> one, target -> two
//!   new                       what was `source`
//!   other                     what was `target`
//!
//!   mkdir .gs-rename, exchange, source, target
//!   ► source taken to new, then target taken to other: renamed whole, or entry by entry
//!   ► new renamed to target   <- from here on it has happened
//!   ► other renamed to source, .gs-rename removed
//! ```
//!
//! An exchange that was cut is undone while `new` is there, and else finished: `other` is made after
//! `new` and goes after it, so that alone it can only mean the last step. Either takes renames only,
//! and no space on the disk. In between one of the names, or both, are missing: that it is not atomic
//! is what `docs/limits.md` says of every rename of a captured directory.

use super::work::{
    self, Places, RESERVED, Result, STRAGGLER_ROUNDS, clean, copy_up, fill, move_all, move_as, open_directory,
    parent_below, path_below, put_back,
};
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// The name that marks an exchange.
pub(super) const MARK: &CStr = c"exchange";
const NEW: &CStr = c"new";
pub(super) const OTHER: &CStr = c"other";

/// Exchanges two entries of one tree, as `renameat2(2)` would. The kernel has looked at them before and
/// refused only the overlay's part. On an error all is as it was.
pub fn exchange(places: &Places<'_>) -> Result<()> {
    work::recover(places.top).map_err(|_| Errno::XDEV)?;
    let name = |name: &[u8]| CString::new(name).map_err(|_| Errno::INVAL);
    let (one, two) = (name(places.old_name)?, name(places.new_name)?);
    let top = open_directory(rustix::fs::CWD, places.top)?;
    let source_path = path_below(places.top, places.old_parent, places.old_name)?;
    let target_path = path_below(places.top, places.new_parent, places.new_name)?;
    rustix::fs::mkdirat(&top, RESERVED, Mode::RWXU).map_err(|e| if e == Errno::EXIST { Errno::XDEV } else { e })?;
    let done = (|| {
        let reserved = open_directory(&top, RESERVED)?;
        rustix::fs::symlinkat(c".", &reserved, MARK)?;
        rustix::fs::symlinkat(OsStr::from_bytes(&source_path), &reserved, c"source")?;
        rustix::fs::symlinkat(OsStr::from_bytes(&target_path), &reserved, c"target")?;
        let undo = |_: &Errno| {
            let _ = give_back(&reserved, OTHER, places.new_parent, &two);
            let _ = give_back(&reserved, NEW, places.old_parent, &one);
        };
        take(places.old_parent, &one, &reserved, NEW).inspect_err(undo)?;
        take(places.new_parent, &two, &reserved, OTHER).inspect_err(undo)?;
        move_as(&reserved, NEW, places.new_parent, &two, RenameFlags::NOREPLACE).inspect_err(undo)?;
        // It has happened. A name that somebody gave away meanwhile stays theirs: this one goes beside it.
        finish(&reserved, places.old_parent, &one)
    })();
    let _ = clean(&top);
    done
}

/// Undoes or finishes an exchange that was cut.
pub(super) fn recover(top: &OwnedFd, reserved: &OwnedFd) -> Result<()> {
    let place = |link: &CStr| parent_below(top, &rustix::fs::readlinkat(reserved, link, Vec::new())?);
    let (source, target) = match (place(c"source"), place(c"target")) {
        (Ok(source), Ok(target)) => (source, target),
        // Cut before the plan was whole: nothing was taken.
        (Err(Errno::NOENT), _) | (_, Err(Errno::NOENT)) if !is_there(reserved, NEW) && !is_there(reserved, OTHER) => {
            return Ok(());
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    if is_there(reserved, NEW) {
        give_back(reserved, OTHER, &target.0, &target.1)?;
        give_back(reserved, NEW, &source.0, &source.1)
    } else {
        finish(reserved, &source.0, &source.1)
    }
}

fn is_there(directory: &OwnedFd, name: &CStr) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Takes an entry away to `slot`: whole if the overlay lets it, else entry by entry.
fn take(parent: &OwnedFd, name: &CStr, reserved: &OwnedFd, slot: &CStr) -> Result<()> {
    match move_as(parent, name, reserved, slot, RenameFlags::NOREPLACE) {
        Err(Errno::XDEV) => {}
        other => return other,
    }
    let source = open_directory(parent, name)?;
    let before = rustix::fs::fstat(&source)?;
    rustix::fs::mkdirat(reserved, slot, Mode::RWXU)?;
    let made = open_directory(reserved, slot)?;
    copy_up(&source);
    fill(&source, &made, &before, 0)?;
    for _ in 0..STRAGGLER_ROUNDS {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => move_all(&source, &made, 0)?,
            other => return other,
        }
    }
    Err(Errno::BUSY)
}

/// Gives back what was taken, wholly or in part.
fn give_back(reserved: &OwnedFd, slot: &CStr, parent: &OwnedFd, name: &CStr) -> Result<()> {
    match move_as(reserved, slot, parent, name, RenameFlags::NOREPLACE) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    match (open_directory(reserved, slot), open_directory(parent, name)) {
        (Ok(taken), Ok(shell)) => {
            let stat = rustix::fs::fstat(&shell)?;
            put_back(&taken, &shell, &stat, 0)?;
            rustix::fs::unlinkat(reserved, slot, AtFlags::REMOVEDIR)
        }
        _ => beside(reserved, slot, parent, name),
    }
}

fn finish(reserved: &OwnedFd, parent: &OwnedFd, name: &CStr) -> Result<()> {
    match move_as(reserved, OTHER, parent, name, RenameFlags::NOREPLACE) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::EXIST) => beside(reserved, OTHER, parent, name),
        other => other,
    }
}

/// Puts an entry beside one that has taken its name meanwhile: both are kept.
fn beside(reserved: &OwnedFd, slot: &CStr, parent: &OwnedFd, name: &CStr) -> Result<()> {
    for number in 1..1000 {
        let mut other = name.to_bytes().to_vec();
        other.extend_from_slice(format!("~{number}~").as_bytes());
        let other = CString::new(other).map_err(|_| Errno::INVAL)?;
        match move_as(reserved, slot, parent, &other, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::super::work::recover;
    use super::super::work::tests::Tree;
    use super::*;
    use std::os::unix::fs::symlink;

    /// A plan for `a` and `b/c`, as far as it got.
    fn cut(paths: &[&str], links: &[(&str, &str)]) -> Tree {
        let tree = Tree::of(paths);
        for (name, to) in links {
            symlink(to, tree.at(&format!(".gs-rename/{name}"))).unwrap();
        }
        tree
    }

    const PLAN: &[(&str, &str)] = &[("exchange", "."), ("source", "a"), ("target", "b/c")];

    #[test]
    fn both_kinds_change_places() {
        let tree = Tree::of(&["a/x", "b/c/y", "f"]);
        tree.exchange("a", "b/c").unwrap();
        assert_eq!(tree.list(), "a/y: b/c/y\nb/c/x: a/x\nf: f");
        tree.exchange("f", "b/c").unwrap();
        assert_eq!(tree.list(), "a/y: b/c/y\nb/c: f\nf/x: a/x");
        tree.exchange("f", "b/c").unwrap();
        assert_eq!(tree.exchange("gone", "a"), Err(Errno::NOENT));
        assert_eq!(tree.exchange("a", "gone"), Err(Errno::NOENT));
        assert_eq!(tree.list(), "a/y: b/c/y\nb/c/x: a/x\nf: f");
    }

    #[test]
    fn a_cut_is_undone_until_the_first_has_its_place() {
        let whole = "a/x: a/x\na/z: a/z\nb/c/y: b/c/y";
        // Each directory of the test holds its files' first paths.
        let at = |tree: &Tree| tree.list().replace(".gs-rename/new", "a").replace(".gs-rename/other", "b/c");
        for (paths, links) in [
            (&["a/x", "a/z", "b/c/y", ".gs-rename/"][..], &PLAN[..0]),
            (&["a/x", "a/z", "b/c/y", ".gs-rename/"], &PLAN[..2]),
            (&["a/x", "a/z", "b/c/y", ".gs-rename/"], PLAN),
            (&["a/x", ".gs-rename/new/z", "b/c/y"], PLAN),
            (&[".gs-rename/new/x", ".gs-rename/new/z", "b/c/y"], PLAN),
            (&[".gs-rename/new/x", ".gs-rename/new/z", "b/c/", ".gs-rename/other/y"], PLAN),
            (&[".gs-rename/new/x", ".gs-rename/new/z", "b/", ".gs-rename/other/y"], PLAN),
        ] {
            let tree = cut(paths, links);
            assert_eq!(recover(tree.top()), Ok(true), "{paths:?}");
            assert_eq!(at(&tree), whole, "{paths:?}");
            assert_eq!(recover(tree.top()), Ok(false));
        }
    }

    #[test]
    fn a_cut_after_that_is_finished() {
        let tree = cut(&["b/c/x", ".gs-rename/other/y"], PLAN);
        assert_eq!(recover(tree.top()), Ok(true));
        assert_eq!(tree.list(), "a/y: .gs-rename/other/y\nb/c/x: b/c/x");
        let tree = cut(&["b/c/x", ".gs-rename/other/y", "a"], PLAN);
        assert_eq!(recover(tree.top()), Ok(true));
        assert_eq!(tree.list(), "a: a\na~1~/y: .gs-rename/other/y\nb/c/x: b/c/x", "somebody's is kept");
        let tree = cut(&["a/y", "b/c/x", ".gs-rename/"], PLAN);
        assert_eq!(recover(tree.top()), Ok(true));
        assert_eq!(tree.list(), "a/y: a/y\nb/c/x: b/c/x");
    }

    #[test]
    fn a_forged_plan_leads_nowhere_else() {
        let tree = cut(&["tree/.gs-rename/other/a", "tree/in/", "outside/"], &[]);
        for (name, to) in [("exchange", "."), ("source", "../outside/x"), ("target", "in/x")] {
            symlink(to, tree.at(&format!("tree/.gs-rename/{name}"))).unwrap();
        }
        assert!(recover(&tree.at("tree")).is_err());
        assert!(tree.at("tree/.gs-rename/other/a").exists());
    }
}
