//! A manifest for a layer that was written by other means than a capture (the tracked files of a
//! revision): the host's stat is the layer's own, so that changes on top of it can be listed.

use crate::layer::write_manifest;
use crate::manifest::{Builder, CopyStat, Flags, MANIFEST, Manifest, Record, TREE};
use crate::request::CaptureError;
use crate::stat::{Kind, Stat, Time};
use rustix::fs::{AtFlags, CWD, statat};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes the manifest of the one layer in `dir`, which is or will be named `id`, and returns it.
/// The tree is our own: it is walked by path.
pub fn describe(dir: &Path, id: &str) -> Result<Manifest, CaptureError> {
    let tree = dir.join(TREE);
    let look = |path: &Path| {
        statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| Stat::from_kernel(&stat))
            .map_err(|errno| CaptureError::io("look at", path)(errno.into()))
    };
    let record = |stat: Stat, copy| Record { stat, layer: Some(0), copy, flags: Flags::default() };
    let mut builder = Builder::new(Time::now(), 0, vec![id.to_owned()], &[], record(look(&tree)?, None));
    let mut waiting = vec![(tree, 0)];
    while let Some((path, index)) = waiting.pop() {
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(CaptureError::io("list", &path))? {
            names.push(entry.map_err(CaptureError::io("list", &path))?.file_name());
        }
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        builder.begin(index, 0);
        let mut below = Vec::new();
        for name in names {
            let at = path.join(&name);
            let stat = look(&at)?;
            if stat.kind() == Kind::Dir {
                below.push((at, builder.push_dir(index, name.as_bytes(), record(stat, None))));
            } else {
                let copy = CopyStat { ino: stat.ino, ctime: stat.ctime };
                builder.push(name.as_bytes(), record(stat, Some(copy)));
            }
        }
        builder.end(index);
        waiting.extend(below.into_iter().rev());
    }
    let parts = builder.finish().map_err(|_| CaptureError::TooLarge { root: dir.to_owned() })?;
    let file = dir.join(MANIFEST);
    let manifest = Manifest::from_parts(parts)?;
    write_manifest(&file, &manifest, dir, None)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_layer_is_its_own_state() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("l1/tree");
        fs::create_dir_all(tree.join("src/deep")).unwrap();
        fs::write(tree.join("src/deep/a"), "a").unwrap();
        fs::write(tree.join("b"), "b").unwrap();
        std::os::unix::fs::symlink("b", tree.join("l")).unwrap();
        let manifest = describe(&dir.path().join("l1"), "l1").unwrap();
        assert_eq!(manifest.files(), 3);
        let entry = manifest.lookup(b"src/deep/a").unwrap();
        assert_eq!((entry.layer, entry.stat.size), (Some("l1"), 1));
        let upper = dir.path().join("upper");
        fs::create_dir_all(upper.join("src/deep")).unwrap();
        assert!(crate::changes(&upper, dir.path(), &manifest).unwrap().is_empty());
        fs::write(upper.join("src/deep/a"), "other").unwrap();
        fs::write(upper.join("new"), "n").unwrap();
        let changes = crate::changes(&upper, dir.path(), &manifest).unwrap();
        let paths: Vec<_> = changes.iter().map(|change| change.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["new", "src/deep/a"]);
    }
}
