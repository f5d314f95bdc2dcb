//! Where a repository inside is: its git directory, or the file that names it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// True for a directory that git would take for a repository's.
pub fn is_gitdir(path: &Path) -> bool {
    path.join("HEAD").symlink_metadata().is_ok()
        && (path.join("objects").is_dir() || path.join("commondir").is_file())
        && (path.join("refs").is_dir() || path.join("commondir").is_file())
}

/// Returns the directory that a `.git` file names.
pub fn read_gitfile(file: &Path) -> Option<PathBuf> {
    let bytes = super::read_regular(file, 8191)?;
    let named = bytes.strip_prefix(b"gitdir:")?.trim_ascii();
    Some(clean(&file.parent()?.join(OsStr::from_bytes(named))))
}

/// Resolves `.` and `..` by name alone.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}
