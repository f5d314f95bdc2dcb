//! Reading a directory in pieces, from any place on.

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// Bytes that are read at once: some hundred entries.
const PIECE: usize = 8 * 1024;

/// An entry as the host lists it.
#[derive(Debug)]
pub struct Entry {
    /// Inode number on the host.
    pub ino: u64,
    /// Where the next one begins.
    pub next: u64,
    /// A `DT_*`.
    pub kind: u32,
    /// Its name.
    pub name: Box<[u8]>,
}

/// An open directory and where in it the guest is.
#[derive(Debug)]
pub struct List {
    directory: OwnedFd,
    ahead: VecDeque<Entry>,
    at: u64,
}

impl List {
    /// Returns a list that begins at the start of an open directory.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, ahead: VecDeque::new(), at: 0 }
    }

    /// Goes to where an entry said that the next one begins; 0 is the start, and reads the directory anew.
    pub fn seek(&mut self, offset: u64) -> Result<(), Errno> {
        if offset == 0 || offset != self.at {
            self.ahead.clear();
            let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)? as u64;
            seek(&self.directory, SeekFrom::Start(offset))?;
            self.at = offset;
        }
        Ok(())
    }

    /// Returns the next entry without going on.
    pub fn peek(&mut self) -> Result<Option<&Entry>, Errno> {
        if self.ahead.is_empty() {
            let mut buffer = [MaybeUninit::<u8>::uninit(); PIECE];
            let mut raw = RawDir::new(&self.directory, &mut buffer);
            while let Some(entry) = raw.next() {
                let entry = entry?;
                self.ahead.push_back(Entry {
                    ino: entry.ino(),
                    next: entry.next_entry_cookie(),
                    kind: number(entry.file_type()),
                    name: entry.file_name().to_bytes().into(),
                });
                if raw.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.ahead.front())
    }

    /// Goes past the entry that was peeked at.
    pub fn advance(&mut self) {
        if let Some(entry) = self.ahead.pop_front() {
            self.at = entry.next;
        }
    }
}

/// The `DT_*` of a type: the type bits of a mode, shifted down.
fn number(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => known.as_raw_mode() >> 12,
    }
}
