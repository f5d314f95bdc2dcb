//! Copying file contents the cheapest way: reflink, `copy_file_range`, read and write.
//!
//! ```text
//! first file of a source filesystem ─► FICLONE ─ works ────────► FICLONE for all its files
//!                                         │ refused for good (EXDEV, EOPNOTSUPP)
//!                                         ▼
//!                                      copy_file_range (large files) ─ refused ─► read and write
//! ```
//!
//! Small files are always read and written: below some hundred KiB one read and one write cost less
//! than setting up a splice.

use rustix::fs::{SeekFrom, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;

/// Files up to this size are read and written, in one step each.
const SMALL: u64 = 256 * 1024;

/// The most that one `copy_file_range` is asked for, so that an interrupt is never far away.
const CHUNK: u64 = 64 * 1024 * 1024;

/// How the contents of a file came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The file's length.
    pub bytes: u64,
    /// The blocks are shared with the source.
    pub reflinked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Nothing is known yet, or reflinks work.
    Reflink,
    Range,
    ReadWrite,
}

/// Copies files into one filesystem; remembers for each source filesystem what works.
#[derive(Debug, Default)]
pub struct Copier {
    methods: Mutex<Vec<(u64, Method)>>,
}

impl Copier {
    /// Returns a copier that has tried nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns whether reflinks from the device `dev` are known to work or have not been tried.
    pub fn may_reflink(&self, dev: u64) -> bool {
        self.method(dev) == Method::Reflink
    }

    /// Copies `size` bytes of `source` into the empty file `target`, holes as holes.
    ///
    /// `blocks` is the number of 512-byte units that the source occupies: fewer than its size needs
    /// means holes. `dev` is the source's device, the key under which the method is remembered.
    /// Copies less when the source is shorter than `size` by now; the caller compares stats.
    pub fn copy(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        size: u64,
        blocks: u64,
        dev: u64,
    ) -> io::Result<Copied> {
        if size == 0 {
            return Ok(Copied { bytes: 0, reflinked: false });
        }
        let mut method = self.method(dev);
        if method == Method::Reflink {
            match ioctl_ficlone(target, source) {
                Ok(()) => {
                    return Ok(Copied { bytes: size, reflinked: true });
                }
                // Not for these two filesystems.
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                    self.remember(dev, Method::Range);
                }
                // Only this file (a swap file, checksums off on Btrfs, a file under an exclusive lock …).
                Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM | Errno::BADF | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
            method = Method::Range;
        }
        let sparse = blocks.saturating_mul(512) < size;
        let bytes = if sparse {
            ftruncate(target, size)?;
            self.copy_data(source, target, size, dev, &mut method)?
        } else {
            self.copy_range(source, target, 0, size, dev, &mut method)?
        };
        Ok(Copied { bytes, reflinked: false })
    }

    /// Copies the data of a sparse file, hole by hole.
    fn copy_data(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        size: u64,
        dev: u64,
        method: &mut Method,
    ) -> io::Result<u64> {
        let mut at = 0;
        while at < size {
            let data = match seek(source, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                // The filesystem cannot tell: everything is data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(error) => return Err(error.into()),
            };
            let end = match seek(source, SeekFrom::Hole(data)) {
                Ok(end) => end.min(size),
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
                Err(error) => return Err(error.into()),
            };
            if data >= size || end <= data {
                break;
            }
            let copied = self.copy_range(source, target, data, end - data, dev, method)?;
            if copied < end - data {
                return Ok(data + copied);
            }
            at = end;
        }
        Ok(size)
    }

    /// Copies `len` bytes at `offset`; fewer when the source ends before.
    fn copy_range(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        dev: u64,
        method: &mut Method,
    ) -> io::Result<u64> {
        let mut done = 0;
        if len > SMALL && *method == Method::Range {
            while done < len {
                let (mut from, mut to) = (offset + done, offset + done);
                let want = usize::try_from((len - done).min(CHUNK)).unwrap_or(usize::MAX);
                match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
                    Ok(0) => break,
                    Ok(n) => done += n as u64,
                    Err(Errno::INTR) => {}
                    Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                        *method = Method::ReadWrite;
                        self.remember(dev, Method::ReadWrite);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        // The rest, and what `copy_file_range` gave up with 0 bytes (files of pseudo filesystems).
        let mut buffer = Vec::new();
        while done < len {
            let want = usize::try_from((len - done).min(SMALL)).unwrap_or(usize::MAX);
            buffer.resize(want, 0);
            let got = match rustix::io::pread(source, &mut buffer[..want], offset + done) {
                Ok(0) => break,
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut written = 0;
            while written < got {
                match rustix::io::pwrite(target, &buffer[written..got], offset + done + written as u64) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => written += n,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            done += got as u64;
        }
        Ok(done)
    }

    fn method(&self, dev: u64) -> Method {
        let methods = self.methods.lock().unwrap_or_else(|e| e.into_inner());
        methods.iter().find(|(d, _)| *d == dev).map_or(Method::Reflink, |(_, method)| *method)
    }

    fn remember(&self, dev: u64, method: Method) {
        let mut methods = self.methods.lock().unwrap_or_else(|e| e.into_inner());
        match methods.iter_mut().find(|(d, _)| *d == dev) {
            Some((_, known)) => *known = method,
            None => methods.push((dev, method)),
        }
    }
}

/// Starts writing a file's dirty pages, so that a later write through a shared mapping faults again
/// and shows in the file's mtime and ctime.
///
/// A page that is dirty already takes further writes through a mapping without any trace in the
/// inode. Waits only for pages that are being written already (they could be dirty again), not for
/// what it starts itself. A filesystem that cannot do it (a pipe, some FUSE) is left alone.
pub fn clean_pages(file: BorrowedFd<'_>) {
    // SAFETY: the descriptor is open for the whole call, and the call takes no pointers.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn copied(source: &File) -> (tempfile::NamedTempFile, Copied) {
        let target = tempfile::NamedTempFile::new().unwrap();
        let stat = source.metadata().unwrap();
        let copied = Copier::new()
            .copy(source.as_fd(), target.as_file().as_fd(), stat.len(), stat.blocks(), stat.dev())
            .unwrap();
        (target, copied)
    }

    fn content(file: &tempfile::NamedTempFile) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::open(file.path()).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn small_and_large_files_come_over_whole() {
        for len in [0usize, 1, 4095, 256 * 1024, 256 * 1024 + 1, 3_000_001] {
            let mut source = tempfile::tempfile().unwrap();
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            source.write_all(&bytes).unwrap();
            let (target, copied) = copied(&source);
            assert_eq!(copied.bytes, len as u64);
            assert_eq!(content(&target), bytes);
        }
    }

    #[test]
    fn holes_stay_holes() {
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(b"head", 0).unwrap();
        source.write_all_at(b"tail", 20 << 20).unwrap();
        source.set_len(40 << 20).unwrap();
        let (target, _) = copied(&source);
        let stat = target.as_file().metadata().unwrap();
        assert_eq!(stat.len(), 40 << 20);
        assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
        let bytes = content(&target);
        assert_eq!((&bytes[..4], &bytes[20 << 20..(20 << 20) + 4]), (&b"head"[..], &b"tail"[..]));
        assert!(bytes[4..20 << 20].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_file_that_is_shorter_by_now_is_no_error() {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(b"short").unwrap();
        let target = tempfile::NamedTempFile::new().unwrap();
        let copied = Copier::new().copy(source.as_fd(), target.as_file().as_fd(), 1 << 20, 1 << 20, u64::MAX).unwrap();
        assert!(copied.reflinked || copied.bytes == 5);
    }

    #[test]
    fn a_write_through_an_old_mapping_shows_after_cleaning() {
        // The point of `clean_pages`: without it the second write below leaves no trace.
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let map = Shared::new(&file);
        map.write(1);
        clean_pages(file.as_fd());
        let before = file.metadata().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        map.write(2);
        let after = file.metadata().unwrap();
        let time = |m: &std::fs::Metadata| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        if is_tmpfs(&file) {
            eprintln!("skipped: tmpfs has no dirty pages to write");
            return;
        }
        assert_ne!(time(&before), time(&after));
    }

    fn is_tmpfs(file: &File) -> bool {
        rustix::fs::fstatfs(file).unwrap().f_type == 0x0102_1994
    }

    struct Shared(*mut std::ffi::c_void);

    impl Shared {
        fn new(file: &File) -> Self {
            use rustix::mm::{MapFlags, ProtFlags, mmap};
            // SAFETY: a fresh mapping of a file that only this test has open.
            let at = unsafe {
                mmap(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
            };
            Self(at.unwrap())
        }

        fn write(&self, byte: u8) {
            // SAFETY: the mapping is one writable page and lives as long as `self`.
            unsafe { self.0.cast::<u8>().write_volatile(byte) }
        }
    }

    impl Drop for Shared {
        fn drop(&mut self) {
            // SAFETY: mapped in `new` with this length, used nowhere else.
            let _ = unsafe { rustix::mm::munmap(self.0, 4096) };
        }
    }
}
