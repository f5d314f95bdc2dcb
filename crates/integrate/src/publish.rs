//! New objects into the host's database, such that no `gc` of the host takes them before a ref names them.
//!
//! ```text
//! scratch objects ─► one pack with a `.keep` beside it ─► refs move ─► the `.keep` goes
//! ```
//!
//! What nothing names is taken by `git prune --expire=now`, `gc --prune=now` and `repack -ad`, whenever they
//! come. A pack that is marked when they begin, and one that comes after they began, are left alone by all of
//! them; when the mark goes, a ref names what is in it.

use crate::error::MergeError;
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::keep;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whose our marks are; those of other operations are left to their own recovery.
const WHOSE: &str = "merge";

/// Objects that are in the host's database and that no `gc` takes while this lives.
#[derive(Debug)]
#[must_use = "dropped before a ref names the objects, they can be taken"]
pub(crate) struct Published {
    mark: Option<PathBuf>,
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(mark) = self.mark.take() {
            let _ = fs::remove_file(mark);
        }
    }
}

/// Publishes all that was made in `repo` so far.
pub(crate) fn publish(repo: &Repo) -> Result<Published, MergeError> {
    let ids = loose(repo.own_objects()).map_err(MergeError::io("list", repo.own_objects()))?;
    if ids.is_empty() {
        return Ok(Published { mark: None });
    }
    // No deltas: they are few, small, and the next repack finds better ones.
    let pack = repo.pure().args(["pack-objects", "-q", "--stdout", "--window=0"]).stdin(ids).output()?.stdout;
    // Without its index a pack is not looked into. The reverse index is one more file to wait for, and git computes
    // that of so small a pack when it needs it.
    let git = repo.host().config("core.fsync=committed,pack-metadata").config("pack.writeReverseIndex=false");
    let mark = keep::text(WHOSE).map_err(MergeError::io("find", Path::new("/proc/self")))?;
    let said = git.args(["index-pack", "--stdin", &format!("--keep={mark}")]).stdin(pack).output()?.stdout;
    let text = String::from_utf8_lossy(&said);
    let mark = match text.trim().split_once('\t') {
        Some(("keep", id)) => Some(repo.host_objects().join(format!("pack/pack-{id}.keep"))),
        // The very same pack was there, with a mark of somebody else.
        Some(("pack", _)) => None,
        _ => return Err(unexpected("git index-pack", &said).into()),
    };
    Ok(Published { mark })
}

/// Removes marks that a killed command left. One of a command that lives stays: with another state directory it can
/// be at work in the same repository.
pub fn sweep(repo: &Repo) -> Result<(), MergeError> {
    let packs = repo.host_objects().join("pack");
    let failed = || MergeError::io("remove a mark below", &packs);
    let entries = match fs::read_dir(&packs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed())?,
    };
    for entry in entries {
        let path = entry.map_err(failed())?.path();
        let is_mark = path.extension().is_some_and(|extension| extension == "keep");
        let left = |found: String| keep::is_of(&found, WHOSE) && keep::is_left(&found);
        if is_mark && fs::read_to_string(&path).is_ok_and(left) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The ids of the loose objects of a database, one a line.
fn loose(objects: &Path) -> io::Result<String> {
    let mut ids = String::new();
    for dir in fs::read_dir(objects)? {
        let dir = dir?;
        let Some(start) = dir.file_name().to_str().filter(|name| is_hex(name) && name.len() == 2).map(str::to_owned)
        else {
            continue;
        };
        for file in fs::read_dir(dir.path())? {
            let name = file?.file_name();
            if let Some(rest) = name.to_str().filter(|name| is_hex(name)) {
                ids.extend([&start, rest, "\n"]);
            }
        }
    }
    Ok(ids)
}

fn is_hex(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::How;
    use crate::tests::World;

    /// A merge commit that no ref names yet, and the user's `gc` at that moment.
    #[test]
    fn no_gc_takes_what_is_about_to_be_named() {
        let mut world = World::new(&[("a", "1\n")]);
        world.spawn();
        world.agent_write("b", "1\n");
        world.agent(&["add", "-A"]);
        world.agent(&["commit", "-qm", "there"]);
        let plan = world.plan(How::NoFf).unwrap();
        let repo = world.repo();
        let new = plan.head.new.to_string();
        let is_there = || world.try_git(&["cat-file", "-e", &new]);
        let clean = || {
            for args in [&["repack", "-q", "-a", "-d"][..], &["prune", "--expire=now"], &["gc", "-q", "--prune=now"]] {
                world.git(args);
            }
        };
        assert!(!is_there(), "a plan leaves nothing in the host's database");
        let published = publish(&repo).unwrap();
        assert!(is_there());
        clean();
        assert!(is_there());

        // At work: whoever else sweeps, with a state of its own, leaves the mark.
        sweep(&repo).unwrap();
        clean();
        assert!(is_there(), "the mark of one that lives was taken");

        // Killed: the mark stays until the next command, and then nothing does.
        let mark = published.mark.clone().unwrap();
        let live = fs::read_to_string(&mark).unwrap();
        let mut words: Vec<&str> = live.split(' ').collect();
        let start = words.len() - 3;
        words[start] = "1";
        fs::remove_file(&mark).unwrap();
        fs::write(&mark, words.join(" ")).unwrap();
        std::mem::forget(published);
        sweep(&repo).unwrap();
        let keeps = fs::read_dir(repo.host_objects().join("pack")).unwrap().flatten();
        assert_eq!(keeps.filter(|file| file.path().extension().is_some_and(|e| e == "keep")).count(), 0);
        clean();
        assert!(!is_there(), "without a mark it is taken: the test shows something");

        // A mark of somebody else stays.
        let theirs = repo.host_objects().join("pack/pack-1234.keep");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, "theirs\n").unwrap();
        sweep(&repo).unwrap();
        assert!(theirs.exists());
    }
}
