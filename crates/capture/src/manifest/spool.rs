//! Bytes that only grow at the end, for a manifest in the making: a large one is not held in memory.

use sandbox_sys::map::Map;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What is kept in memory before it goes to the file.
const KEPT: usize = 128 * 1024;

/// Bytes in a file without a name, as far as there is one and it takes them, and in memory.
///
/// What is pushed at once stays together in one part of the result.
#[derive(Debug, Default)]
pub(super) struct Spool {
    file: Option<File>,
    written: u64,
    kept: Vec<u8>,
    /// The file takes no more.
    full: bool,
}

/// A part of a manifest in memory.
#[derive(Debug)]
pub(crate) enum Part {
    Owned(Vec<u8>),
    Mapped(Map),
}

impl Deref for Part {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl Spool {
    /// Keeps what comes in a file in this directory; in memory where there can be none without a name.
    pub(super) fn spill(&mut self, dir: &Path) {
        use rustix::fs::{CWD, Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        self.file = rustix::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR).ok().map(File::from);
    }

    /// Returns how many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.written as usize + self.kept.len()
    }

    /// Adds bytes.
    pub(super) fn push(&mut self, bytes: &[&[u8]]) {
        bytes.iter().for_each(|bytes| self.kept.extend_from_slice(bytes));
        if self.kept.len() >= KEPT && !self.full {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(file) = &self.file else { return };
        match file.write_all_at(&self.kept, self.written) {
            Ok(()) => {
                self.written += self.kept.len() as u64;
                self.kept.clear();
            }
            // A full disk: the rest stays in memory. Whoever writes the manifest meets the error.
            Err(_) => self.full = true,
        }
    }

    /// Returns the bytes.
    pub(super) fn into_parts(mut self) -> io::Result<Vec<Part>> {
        let mut parts = Vec::new();
        if self.written > 0
            && let Some(file) = &self.file
        {
            // A write that failed may have left something.
            file.set_len(self.written)?;
            parts.push(Part::Mapped(Map::new(file)?));
        }
        self.kept.shrink_to_fit();
        parts.push(Part::Owned(self.kept));
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_a_file_comes_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for full in [false, true] {
            let mut spool = Spool::default();
            spool.spill(dir.path());
            let has_file = spool.file.is_some();
            let mut all = Vec::new();
            for n in 0..10_000u32 {
                // As when the disk was full.
                spool.full |= full && n == 5_000;
                let record = [n.to_le_bytes(); 16].concat();
                spool.push(&[&record[..20], &record[20..]]);
                all.extend_from_slice(&record);
            }
            assert_eq!(spool.len(), all.len());
            let parts = spool.into_parts().unwrap();
            assert_eq!(parts.len(), if has_file { 2 } else { 1 });
            // No record is in two parts.
            assert!(parts.iter().all(|part| part.len() % 64 == 0));
            assert_eq!(parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>(), all);
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
