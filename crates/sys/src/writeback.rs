//! Order on the disk without waiting for it.
//!
//! A file that is written and renamed has its new name on the disk as soon as anybody's fsync commits the journal,
//! but its bytes only after up to half a minute: blocks are allocated late. After a power cut in between it is
//! there and empty. Once the writing has begun its blocks are allocated, and a journal that orders data before
//! names (ext4 `data=ordered`, the default) waits for them when it commits, whoever asks it to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Begins to write a file's bytes to the disk, and does not wait for the end of it.
///
/// A file system that cannot do it (tmpfs, FUSE, network) goes on as it would without.
pub fn begin(file: impl AsFd) {
    // SAFETY: the descriptor is borrowed for the call; the kernel touches no memory of ours.
    unsafe {
        libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Puts the new names of these files below `root` on the disk: each directory that holds one, and `root` itself.
///
/// Git syncs what is in a ref and leaves the rename to the file system, which takes seconds.
///
/// # Errors
/// A directory that cannot be synced. One that is not there (the ref is packed) is none.
pub fn names<'a>(root: &Path, names: impl IntoIterator<Item = &'a [u8]>) -> io::Result<()> {
    let below = names.into_iter().filter_map(|name| Some(root.join(OsStr::from_bytes(name)).parent()?.to_owned()));
    let dirs: BTreeSet<PathBuf> = below.chain([root.to_owned()]).collect();
    for dir in dirs {
        match File::open(&dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_written_is_there_and_a_pipe_does_not_mind() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        begin(&file);
        assert_eq!(file.metadata().unwrap().len(), 1);
        let (_read, write) = std::io::pipe().unwrap();
        begin(&write);
    }

    #[test]
    fn a_directory_that_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("refs")).unwrap();
        names(dir.path(), [&b"refs/x"[..], b"refs/heads/y"]).unwrap();
    }
}
