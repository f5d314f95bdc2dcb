//! How large a repository is on disk: what the status page and `/metrics` tell. Reads directories and sizes, no
//! objects; meant for a background thread.

use crate::layout::Layout;
use crate::name::RepoName;
use std::fs;
use std::path::{Path, PathBuf};

/// What one repository takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Branches and tags.
    pub refs: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of objects.
    pub bytes: u64,
    /// Refs that sessions pushed.
    pub scratch_refs: u64,
    /// Bytes of objects that sessions pushed; those of `isolation = "repo"` are in `bytes`.
    pub scratch_bytes: u64,
}

/// Measures a mirror and what sessions pushed to it. What vanishes meanwhile counts nothing.
pub fn measure(layout: &Layout, name: &RepoName) -> Size {
    let mut size = bare(&layout.mirror(name));
    for session in entries(&layout.scratch_dir(name)) {
        refs(&session, &mut |name| size.scratch_refs += u64::from(name.starts_with("refs/agents/")));
        size.scratch_bytes += objects(&session).1;
    }
    size
}

/// Measures one bare repository.
pub fn bare(repo: &Path) -> Size {
    let (packs, bytes) = objects(repo);
    let mut size = Size { packs, bytes, ..Size::default() };
    refs(repo, &mut |name| match name {
        _ if name.starts_with("refs/heads/") || name.starts_with("refs/tags/") => size.refs += 1,
        _ if name.starts_with("refs/agents/") => size.scratch_refs += 1,
        _ => {}
    });
    size
}

/// Bytes of the files below a directory of directories: the pack cache.
pub fn files(dir: &Path) -> u64 {
    let size =
        |file: &PathBuf| fs::symlink_metadata(file).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    entries(dir).map(|entry| size(&entry) + entries(&entry).map(|file| size(&file)).sum::<u64>()).sum()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Packs and bytes of an object directory.
fn objects(repo: &Path) -> (u64, u64) {
    let (mut packs, mut bytes) = (0, 0);
    for dir in entries(&repo.join("objects")) {
        for file in entries(&dir) {
            packs += u64::from(file.extension().is_some_and(|kind| kind == "pack"));
            bytes += fs::symlink_metadata(&file).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
        }
    }
    (packs, bytes)
}

/// Calls `found` with each ref once (gitrepository-layout(5): a loose ref covers a packed one).
fn refs(repo: &Path, found: &mut dyn FnMut(&str)) {
    let mut loose = std::collections::HashSet::new();
    let mut dirs = vec![repo.join("refs")];
    while let Some(dir) = dirs.pop() {
        for path in entries(&dir) {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => dirs.push(path),
                Ok(meta) if meta.is_file() && path.extension().is_none_or(|kind| kind != "lock") => {
                    let name = path.strip_prefix(repo).ok().and_then(Path::to_str);
                    loose.extend(name.map(str::to_owned));
                }
                _ => {}
            }
        }
    }
    loose.iter().for_each(|name| found(name));
    let packed = fs::read_to_string(repo.join("packed-refs")).unwrap_or_default();
    let packed = packed.lines().filter(|line| !line.starts_with(['#', '^'])).filter_map(|line| line.split_once(' '));
    packed.filter(|(_, name)| !loose.contains(*name)).for_each(|(_, name)| found(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_testkit::TestEnv;

    #[test]
    fn refs_are_counted_once_and_hidden_ones_not_at_all() {
        let env = TestEnv::new();
        let layout = Layout::new(env.root().join("store"));
        layout.create().unwrap();
        let name: RepoName = "h/o/r".parse().unwrap();
        assert_eq!(measure(&layout, &name), Size::default());
        let source = env.repo_at("source");
        std::fs::create_dir_all(source.dir()).unwrap();
        source.git(&["init", "-q"]).expect(0);
        source.commit("file", "one");
        let mirror = layout.mirror(&name);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        env.git(source.dir(), &["clone", "-q", "--mirror", ".", &path(&mirror)]).expect(0);
        for args in [
            &["tag", "v1"][..],
            &["pack-refs", "--all"],
            &["tag", "-f", "v1", "HEAD"],
            &["update-ref", "refs/keep/x", "HEAD"],
            &["repack", "-adq"],
        ] {
            env.git(&mirror, args).expect(0);
        }
        let session = layout.scratch(&name, &"s1".parse().unwrap());
        env.git(source.dir(), &["clone", "-q", "--bare", ".", &path(&session)]).expect(0);
        env.git(&session, &["update-ref", "refs/agents/s1", "HEAD"]).expect(0);
        let size = measure(&layout, &name);
        assert_eq!((size.refs, size.packs, size.scratch_refs), (2, 1, 1));
        assert!(size.bytes > 100 && size.scratch_bytes > 100, "{size:?}");
    }
}
