//! Where things are below the root of the store.
//!
//! ```text
//! <root>/
//!   lock                            held by the service that runs
//!   registry.sqlite                 what is mirrored, and how it went
//!   mirrors/<stem>.git              one bare repository for each upstream; the stem is made from its name
//!   scratch/<stem>/<session>.git    what a session pushed, over alternates: cannot be made again
//!   packcache/<key>-<stamp>.pack    packs that were asked for; may go at any time, and be elsewhere
//!   quarantine/<stem>-<seconds>.git a mirror that was found corrupt
//!   tmp/                            half-made things; emptied when the service starts
//!   run/                            sockets of the service itself, and the hook's link
//! ```

use crate::identity::SessionId;
use crate::name::RepoName;
use std::io;
use std::path::{Path, PathBuf};

/// Paths below the root of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    packcache: PathBuf,
}

impl Layout {
    /// The store at this absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { packcache: root.join("packcache"), root }
    }

    /// The same with packs that were asked for in another directory, which may be on another disk.
    pub fn with_packcache(self, dir: impl Into<PathBuf>) -> Self {
        Self { packcache: dir.into(), ..self }
    }

    /// Makes the directories that are not there yet; only their owner may look into them.
    pub fn create(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let dirs = [
            self.root.clone(),
            self.mirrors(),
            self.root.join("scratch"),
            self.packcache(),
            self.quarantined(),
            self.tmp(),
            self.run(),
        ];
        dirs.iter().try_for_each(|dir| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir))
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lock of the one service that runs on this store.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The registry.
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry.sqlite")
    }

    /// The directory of all mirrors.
    pub fn mirrors(&self) -> PathBuf {
        self.root.join("mirrors")
    }

    /// The bare repository that mirrors an upstream.
    pub fn mirror(&self, name: &RepoName) -> PathBuf {
        self.mirrors().join(format!("{}.git", stem(name)))
    }

    /// The directory of all sessions' own repositories over one mirror.
    pub fn scratch_dir(&self, name: &RepoName) -> PathBuf {
        self.root.join("scratch").join(stem(name))
    }

    /// A session's own repository over a mirror.
    pub fn scratch(&self, name: &RepoName, session: &SessionId) -> PathBuf {
        self.scratch_dir(name).join(format!("{session}.git"))
    }

    /// The directory of what was set aside.
    pub fn quarantined(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Where a corrupt mirror is set aside; `now` in seconds since 1970.
    pub fn quarantine(&self, name: &RepoName, now: u64) -> PathBuf {
        self.quarantined().join(format!("{}-{now}.git", stem(name)))
    }

    /// Packs that were asked for.
    pub fn packcache(&self) -> PathBuf {
        self.packcache.clone()
    }

    /// Half-made things; on the file system of the mirrors, so that they can be renamed into place.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Sockets of the service itself, and the link that git calls as a hook.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// A file name for a repository: readable, and no two alike even where case does not count.
pub fn stem(name: &RepoName) -> String {
    let readable: String = name
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' })
        .take(96)
        .collect();
    let hash = sandbox_git::sha256(name.as_str().as_bytes());
    let hash: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{readable}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_file_name_of_its_own() {
        let layout = Layout::new("/s");
        let path = |text: &str| layout.mirror(&text.parse().unwrap());
        assert_eq!(path("github.com/o/r"), Path::new("/s/mirrors/github.com_o_r-6d5c8a7b6c8ca477.git"));
        assert_ne!(path("h/o/r"), path("h/o_r"));
        assert_ne!(path("h/o/R").to_str().unwrap().to_lowercase(), path("h/o/r").to_str().unwrap());
        assert!(path(&format!("h/{}", "ü".repeat(120))).file_name().unwrap().len() <= 128);
        let scratch = layout.scratch(&"h/r".parse().unwrap(), &"s42".parse().unwrap());
        assert!(scratch.starts_with("/s/scratch") && scratch.ends_with("s42.git"));
    }

    #[test]
    fn the_store_is_its_owners() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("store"));
        layout.create().unwrap();
        layout.create().unwrap();
        assert_eq!(std::fs::metadata(layout.root()).unwrap().mode() & 0o777, 0o700);
        assert!(layout.tmp().is_dir());
    }
}
