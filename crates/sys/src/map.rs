//! Read-only mappings of files that never change.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

/// A file's bytes, mapped read-only.
///
/// For files that are written once, renamed into place and never opened for writing again. If such a
/// file is cut short nevertheless, reading the lost pages ends the process with SIGBUS; if it is
/// overwritten, the bytes change. So never map a file that a sandbox or a user can write.
#[derive(Debug)]
pub struct Map {
    at: NonNull<u8>,
    len: usize,
}

impl Map {
    /// Maps the whole file.
    pub fn new(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len == 0 {
            return Ok(Self { at: NonNull::dangling(), len });
        }
        // SAFETY: a new private read-only mapping at an address of the kernel's choice overlaps nothing.
        let at = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0)? };
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, len })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `at` is the start of a readable mapping of `len` bytes that lives as long as `self`
        // (or dangling with length 0); nobody has it writable.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: mapped in `new` with this length; no borrow can outlive `self`.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

// SAFETY: the bytes are only ever read, and the mapping belongs to the process, not to a thread.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_map_reads_what_was_written() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(&*Map::new(&file).unwrap(), b"");
        file.write_all(b"manifest").unwrap();
        let map = Map::new(&file).unwrap();
        drop(file);
        assert_eq!(std::thread::spawn(move || map.to_vec()).join().unwrap(), b"manifest");
    }
}
