//! Copies the private home to the guest's disk, once.

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, chownat, utimensat};
use rustix::process::{Gid, Uid};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Copies a directory with all that is in it: files, directories, symlinks; owners, permissions and times.
/// Sockets and devices are left out. The target does not exist yet.
pub fn directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let facts = fs::symlink_metadata(&source)?;
        if facts.is_dir() {
            directory(&source, &target)?;
        } else if facts.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
            like(&facts, &target)?;
        } else if facts.is_file() {
            io::copy(&mut fs::File::open(&source)?, &mut fs::File::create_new(&target)?)?;
            like(&facts, &target)?;
        }
    }
    // After its entries, which change its time.
    like(&fs::symlink_metadata(from)?, to)
}

fn like(facts: &Metadata, target: &Path) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(facts.uid())), Some(Gid::from_raw(facts.gid())));
    chownat(CWD, target, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if !facts.is_symlink() {
        fs::set_permissions(target, fs::Permissions::from_mode(facts.mode() & 0o7777))?;
    }
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(facts.atime(), facts.atime_nsec()),
        last_modification: time(facts.mtime(), facts.mtime_nsec()),
    };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_copied_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join(".config/tool")).unwrap();
        fs::write(from.join(".config/tool/file"), "text").unwrap();
        fs::set_permissions(from.join(".config/tool/file"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 7 };
        let times = Timestamps { last_access: old, last_modification: old };
        for path in [".config/tool/file", "link", ".config"] {
            utimensat(CWD, from.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let to = dir.path().join("to");
        directory(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join(".config/tool/file")).unwrap(), "text");
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
        assert!(!to.join("socket").exists());
        for path in [".config/tool/file", "link", ".config"] {
            let (a, b) = (fs::symlink_metadata(from.join(path)).unwrap(), fs::symlink_metadata(to.join(path)).unwrap());
            assert_eq!((a.mtime(), a.mtime_nsec(), a.mode()), (b.mtime(), b.mtime_nsec(), b.mode()), "{path}");
        }
    }
}
