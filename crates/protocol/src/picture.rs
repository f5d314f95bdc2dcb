//! A picture of what a sandbox changed, for a driver whose changes are on a disk that only its guest mounts.
//!
//! ```text
//! picture = entry* end
//! entry   = u8 kind, u16 length of the path, u32 mode, i64 seconds, u32 nanoseconds of the last change of contents,
//!           u64 size, u64 length of what follows, path, what follows      (little endian; paths are relative)
//! end     = an entry of kind 'e', without a path; its mode is 1 if nothing else ran inside when it was begun
//! ```
//! What follows is a file's contents or a link's target. A file with nothing after it and a size has contents that
//! were not asked for; one whose contents were, and cannot be had, is of the kind "other".

use std::io::{self, Read, Write};

/// The program's verb that reads a [`PictureQuestion`] on standard input and writes a picture to standard output.
pub const PICTURE_VERB: &str = "__picture-inside";

/// The directory inside that has each tree's own changes, by the tree's number, read-only.
pub const OWN: &str = "/run/git-sandbox/own";

/// Bytes before an entry's path.
const HEADER: usize = 35;

/// The longest path.
const MOST_PATH: usize = 4096;

/// What `__picture-inside` is asked of one tree. Paths are as [`crate::escape_bytes`] writes them.
#[derive(Clone, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct PictureQuestion {
    /// Absolute path of the tree.
    pub tree: String,
    /// Its number.
    pub number: usize,
    /// Repositories in it: path relative to the tree, and the commit that was checked out when it was captured.
    pub repos: Vec<(String, Option<String>)>,
    /// Relative paths of which all is wanted, whatever git says of it; the empty one is the tree.
    #[serde(default)]
    pub whole: Vec<String>,
    /// Seconds for all of it.
    pub seconds: u64,
    /// Bytes of the largest file whose contents are sent.
    pub file_bytes: u64,
    /// Bytes of all contents.
    pub total_bytes: u64,
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// Nothing, where something was captured.
    Gone,
    /// A FIFO, a socket, a device.
    Other,
}

const KINDS: [(PictureKind, u8); 5] = [
    (PictureKind::Directory, b'd'),
    (PictureKind::File, b'f'),
    (PictureKind::Link, b'l'),
    (PictureKind::Gone, b'g'),
    (PictureKind::Other, b'o'),
];

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureEntry {
    /// Relative to the tree.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: PictureKind,
    /// Permission bits.
    pub mode: u32,
    /// Last change of its contents: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// A file's size.
    pub size: u64,
    /// A file's contents as far as they are told, a link's target.
    pub data: Vec<u8>,
}

impl PictureEntry {
    /// Writes it.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let kind = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or(b'o', |(_, byte)| *byte);
        header(out, kind, self)?;
        out.write_all(&self.path)?;
        out.write_all(&self.data)
    }
}

fn header(out: &mut impl Write, kind: u8, entry: &PictureEntry) -> io::Result<()> {
    let length = u16::try_from(entry.path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    out.write_all(&[kind])?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&entry.mode.to_le_bytes())?;
    out.write_all(&entry.mtime.0.to_le_bytes())?;
    out.write_all(&entry.mtime.1.to_le_bytes())?;
    out.write_all(&entry.size.to_le_bytes())?;
    out.write_all(&(entry.data.len() as u64).to_le_bytes())
}

/// Writes the end of a picture: without it, it was cut. `alone`: nobody was there who could change anything since.
pub fn end_picture(out: &mut impl Write, alone: bool) -> io::Result<()> {
    let mode = u32::from(alone);
    let nothing =
        PictureEntry { path: Vec::new(), kind: PictureKind::Other, mode, mtime: (0, 0), size: 0, data: Vec::new() };
    header(out, b'e', &nothing)
}

/// What the end of a picture says: nobody was there who could change anything since.
pub fn is_alone(picture: &[u8]) -> bool {
    let end = picture.len().checked_sub(HEADER).map(|from| &picture[from..]);
    end.is_some_and(|end| end[0] == b'e' && end[3..7] == 1u32.to_le_bytes())
}

/// Reads the next entry; `None` at the end. What cannot be one is `InvalidData`: the other side is not trusted.
pub fn read_entry(bytes: &mut &[u8]) -> io::Result<Option<PictureEntry>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut head = [0u8; HEADER];
    bytes.read_exact(&mut head).map_err(|_| invalid("it ends too early"))?;
    let field = |from: usize, to: usize| {
        let mut wide = [0u8; 8];
        wide[..to - from].copy_from_slice(&head[from..to]);
        u64::from_le_bytes(wide)
    };
    let (length, follows) = (field(1, 3) as usize, field(27, 35));
    if head[0] == b'e' {
        return Ok(None);
    }
    let kind = KINDS.iter().find(|(_, byte)| *byte == head[0]).ok_or_else(|| invalid("an entry is of no kind"))?.0;
    if length == 0 || length > MOST_PATH || length as u64 + follows.min(u64::MAX >> 1) > bytes.len() as u64 {
        return Err(invalid("an entry is longer than what there is"));
    }
    let (path, rest) = bytes.split_at(length);
    let (data, rest) = rest.split_at(follows as usize);
    *bytes = rest;
    let part = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    if !path.split(|byte| *byte == b'/').all(part) {
        return Err(invalid("a path is none"));
    }
    Ok(Some(PictureEntry {
        path: path.to_owned(),
        kind,
        mode: field(3, 7) as u32 & 0o7777,
        mtime: (field(7, 15) as i64, (field(15, 19) as u32).min(999_999_999)),
        size: field(19, 27),
        data: data.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], data: &[u8]) -> PictureEntry {
        PictureEntry {
            path: path.to_owned(),
            kind: PictureKind::File,
            mode: 0o755,
            mtime: (-5, 7),
            size: 9,
            data: data.to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let entries = [entry(b"a", b"123"), entry(b"b/\xff", b"")];
        entries.iter().for_each(|entry| entry.write(&mut bytes).unwrap());
        end_picture(&mut bytes, false).unwrap();
        assert!(!is_alone(&bytes));
        let mut rest = &bytes[..];
        for entry in &entries {
            assert_eq!(read_entry(&mut rest).unwrap().as_ref(), Some(entry));
        }
        assert_eq!(read_entry(&mut rest).unwrap(), None);
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            let all = (0..3).map(|_| read_entry(&mut rest)).find(Result::is_err);
            assert!(all.is_some(), "cut at {cut}");
        }
    }

    #[test]
    fn the_end_tells_whether_anybody_else_was_there() {
        let mut bytes = Vec::new();
        entry(b"e", &[1; 40]).write(&mut bytes).unwrap();
        assert!(!is_alone(&bytes) && !is_alone(b"e"));
        end_picture(&mut bytes, true).unwrap();
        assert!(is_alone(&bytes));
        let mut rest = &bytes[..];
        assert!(read_entry(&mut rest).unwrap().is_some() && read_entry(&mut rest).unwrap().is_none());
    }

    #[test]
    fn what_means_harm_is_none() {
        let said = |bytes: &[u8]| read_entry(&mut &bytes[..]).unwrap_err().to_string();
        let written = |entry: &PictureEntry| {
            let mut bytes = Vec::new();
            entry.write(&mut bytes).unwrap();
            bytes
        };
        for path in [&b"../x"[..], b"/etc/passwd", b"a//b", b"a/./b", b"a\0b", b"a/"] {
            assert_eq!(said(&written(&entry(path, b""))), "a path is none", "{path:?}");
        }
        let mut huge = written(&entry(b"a", b"x"));
        huge[27..35].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(said(&huge), "an entry is longer than what there is");
        huge[0] = b'?';
        assert_eq!(said(&huge), "an entry is of no kind");
        assert_eq!(said(b"f"), "it ends too early");
    }
}
