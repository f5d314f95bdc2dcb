//! The tree as it was captured when the sandbox was spawned.

use crate::path::RepoPath;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

/// Reads paths as they were captured.
pub trait Captured {
    /// Returns the file or symlink at `path`, `None` if there was none (or a directory).
    fn get(&self, path: &RepoPath) -> io::Result<Option<CapturedFile>>;
}

/// One captured file.
pub struct CapturedFile {
    /// What it is.
    pub kind: Kind,
    /// Its content as it was in the working tree; of a symlink, the target.
    pub content: Box<dyn Read>,
}

/// What a captured path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File {
        /// Executable by its owner.
        executable: bool,
    },
    /// A symlink.
    Symlink,
}

/// A stack of layers on disk, the newest first. A device `0:0` hides what older layers have at and
/// below its path.
#[derive(Clone, Debug)]
pub struct Layers(Vec<PathBuf>);

impl Layers {
    /// Reads from directories, the newest first.
    pub fn new(trees: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(trees.into_iter().collect())
    }
}

/// What one layer says about a path.
enum Found {
    /// Nothing: ask the next older layer.
    Nothing,
    /// That there is no file.
    Hidden,
    /// This file.
    File(CapturedFile),
}

fn look(tree: &std::path::Path, path: &RepoPath) -> io::Result<Found> {
    // From the top down: a whiteout, file or symlink on the way hides everything below it in older
    // layers. Layers are written by this program only and never change, so names are safe to follow
    // one after the other.
    let mut ancestors: Vec<_> = path.ancestors().collect();
    ancestors.reverse();
    for dir in ancestors {
        match fs::symlink_metadata(tree.join(dir.as_path())) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Ok(Found::Hidden),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        }
    }
    let at = tree.join(path.as_path());
    let meta = match fs::symlink_metadata(&at) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if meta.file_type().is_char_device() && meta.rdev() == 0 {
        return Ok(Found::Hidden);
    }
    if meta.is_symlink() {
        let target = fs::read_link(&at)?.into_os_string().into_vec();
        return Ok(Found::File(CapturedFile { kind: Kind::Symlink, content: Box::new(io::Cursor::new(target)) }));
    }
    if meta.is_file() {
        let kind = Kind::File { executable: meta.mode() & 0o100 != 0 };
        return Ok(Found::File(CapturedFile { kind, content: Box::new(File::open(&at)?) }));
    }
    Ok(Found::Hidden)
}

impl Captured for Layers {
    fn get(&self, path: &RepoPath) -> io::Result<Option<CapturedFile>> {
        for tree in &self.0 {
            match look(tree, path)? {
                Found::Nothing => {}
                Found::Hidden => return Ok(None),
                Found::File(file) => return Ok(Some(file)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    fn text(layers: &Layers, path: &str) -> Option<String> {
        let mut file = layers.get(&RepoPath::parse(path.as_bytes()).unwrap()).unwrap()?;
        let mut text = String::new();
        file.content.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn newer_layers_win_and_whiteouts_hide() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        for path in [&new, &old] {
            fs::create_dir_all(path.join("d")).unwrap();
        }
        for name in ["both", "below", "gone", "d/x", "file/y"] {
            fs::create_dir_all(old.join(name).parent().unwrap()).unwrap();
            fs::write(old.join(name), "old").unwrap();
        }
        fs::write(new.join("both"), "new").unwrap();
        fs::write(new.join("file"), "now a file").unwrap();
        mknodat(CWD, new.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let layers = Layers::new([new, old]);
        assert_eq!(text(&layers, "both").unwrap(), "new");
        assert_eq!(text(&layers, "below").unwrap(), "old");
        assert_eq!(text(&layers, "d/x").unwrap(), "old");
        assert_eq!(text(&layers, "gone"), None);
        assert_eq!(text(&layers, "file/y"), None);
        assert_eq!(text(&layers, "d"), None);
    }
}
