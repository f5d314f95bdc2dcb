//! What a service that was killed left behind in mirrors: locks, half-written packs, and that packs are kept until
//! refs name them.
//!
//! The one service of a store holds its lock, so whoever made these is gone, or is a child of the dead service that
//! finds its file missing and ends. Only names that our own commands make are touched.

use crate::layout::Layout;
use crate::refresh::is_taken_in;
use std::fs;
use std::path::{Path, PathBuf};

/// Locks of git in a bare repository, beside those of single refs.
const LOCKS: &[&str] = &[
    "HEAD.lock",
    "config.lock",
    "packed-refs.lock",
    "packed-refs.new",
    "shallow.lock",
    "objects/pack/multi-pack-index.lock",
    "objects/info/commit-graph.lock",
    "objects/info/commit-graphs/commit-graph-chain.lock",
];

/// Names at which half-written packs, indexes and bitmaps begin.
const TEMPORARY: &[&str] = &["tmp_pack_", "tmp_idx_", "tmp_rev_", "tmp_bitmap_", "tmp_midx_", "tmp_mtimes_", ".tmp-"];

/// Removes them from all mirrors; returns what was removed. Only at a start, before anything is refreshed.
pub fn clean(layout: &Layout) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for mirror in fs::read_dir(layout.mirrors()).into_iter().flatten().flatten() {
        let dir = mirror.path();
        let mut remove = |path: PathBuf| {
            if fs::remove_file(&path).is_ok() {
                removed.push(path);
            }
        };
        LOCKS.iter().for_each(|lock| remove(dir.join(lock)));
        locks_of_refs(&dir.join("refs"), &mut remove);
        for file in fs::read_dir(dir.join("objects/pack")).into_iter().flatten().flatten() {
            let name = file.file_name();
            let taken_in = name.to_string_lossy().ends_with(".keep") && is_taken_in(&file.path());
            if taken_in || TEMPORARY.iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
                remove(file.path());
            }
        }
    }
    removed
}

fn locks_of_refs(dir: &Path, remove: &mut impl FnMut(PathBuf)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => locks_of_refs(&entry.path(), remove),
            // No ref may end so.
            Ok(kind) if kind.is_file() && entry.file_name().to_string_lossy().ends_with(".lock") => {
                remove(entry.path())
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_and_half_packs_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mirror = layout.mirror(&"h/r".parse().unwrap());
        let left = ["HEAD.lock", "refs/heads/a/b.lock", "objects/pack/tmp_pack_x1", "objects/pack/.tmp-7-pack-1.idx"];
        let kept =
            ["HEAD", "refs/heads/a/b", "objects/pack/pack-1.pack", "objects/pack/pack-1.keep", "description.lock"];
        for file in left.iter().chain(&kept) {
            let path = mirror.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let taken_in = mirror.join("objects/pack/pack-2.keep");
        fs::write(&taken_in, "git-sandbox mirror: refs will name what is in it\n").unwrap();
        assert_eq!(clean(&layout).len(), left.len() + 1);
        assert!(!taken_in.exists());
        assert!(left.iter().all(|file| !mirror.join(file).exists()));
        assert!(kept.iter().all(|file| mirror.join(file).exists()));
        assert!(clean(&layout).is_empty());
    }
}
