//! Reads a log of two files that take turns (see `sandbox_supervisor::RingLog`), and what is appended to it later.
//!
//! ```text
//!   x.log.1   older, complete          rename on each change of files:  x.log ──► x.log.1
//!   x.log     what is appended to
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a line that is taken apart from the next one at the latest.
const LONGEST: usize = 64 * 1024;

/// Where a reader of one log is.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
}

impl Follower {
    /// At the beginning of what there still is. The log need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None }
    }

    /// Returns what was written since the last time; the first time all that there is.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut new = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut new)?;
        }
        // Files change places at any moment. What is open stays what it is, so the newer one is opened
        // first, and what is before it is read before it.
        let (current, older) = (open(&self.path)?, open(&older(&self.path))?);
        let ours = self.file.as_ref().map(id).transpose()?;
        if let Some(mut older) = older {
            let older_id = id(&older)?;
            if Some(older_id) == ours {
                // Its last bytes, written between our reading and the change.
                if let Some(file) = &mut self.file {
                    file.read_to_end(&mut new)?;
                }
            } else if current.as_ref().map(id).transpose()?.is_none_or(|current| current != ours.unwrap_or_default()) {
                older.read_to_end(&mut new)?;
                self.file = Some(older);
            }
        }
        if let Some(mut current) = current
            && Some(id(&current)?) != self.file.as_ref().map(id).transpose()?
        {
            current.read_to_end(&mut new)?;
            self.file = Some(current);
        }
        Ok(new)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Cuts what comes in pieces into lines.
#[derive(Debug, Default)]
pub struct Lines {
    half: Vec<u8>,
}

impl Lines {
    /// Returns the lines that are complete now, without their line breaks. One that grows beyond all bounds is cut.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            for piece in text.chunks(LONGEST) {
                if self.half.len() + piece.len() > LONGEST {
                    lines.push(std::mem::take(&mut self.half));
                }
                self.half.extend_from_slice(piece);
            }
            if whole {
                lines.push(std::mem::take(&mut self.half));
            }
        }
        lines
    }

    /// Returns the last line if it was never ended.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.half)).filter(|half| !half.is_empty())
    }
}

/// The last `n` of some.
pub fn last<T>(all: Vec<T>, n: Option<usize>) -> Vec<T> {
    let skip = all.len().saturating_sub(n.unwrap_or(usize::MAX));
    all.into_iter().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn turn(path: &Path) {
        fs::rename(path, older(path)).unwrap();
        append(path, "");
    }

    #[test]
    fn everything_is_read_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut follower = Follower::new(&path);
        assert_eq!(follower.read().unwrap(), b"");
        append(&path, "a");
        assert_eq!(follower.read().unwrap(), b"a");
        assert_eq!(follower.read().unwrap(), b"");
        append(&path, "b");
        turn(&path);
        append(&path, "c");
        assert_eq!(follower.read().unwrap(), b"bc");
        turn(&path);
        assert_eq!(follower.read().unwrap(), b"");
        // Two changes between two looks: what is still there is read.
        append(&path, "d");
        turn(&path);
        append(&path, "e");
        turn(&path);
        append(&path, "f");
        assert_eq!(follower.read().unwrap(), b"def");
        assert_eq!(follower.read().unwrap(), b"");
    }

    #[test]
    fn the_older_half_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        append(&path, "old ");
        turn(&path);
        append(&path, "new");
        let mut follower = Follower::new(&path);
        assert_eq!(follower.read().unwrap(), b"old new");
        assert_eq!(follower.read().unwrap(), b"");
    }

    /// The moment between the two steps of a change of files.
    #[test]
    fn a_change_that_is_half_done_is_no_loss() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        append(&path, "a");
        let mut follower = Follower::new(&path);
        assert_eq!(follower.read().unwrap(), b"a");
        append(&path, "b");
        fs::rename(&path, older(&path)).unwrap();
        assert_eq!(follower.read().unwrap(), b"b");
        append(&path, "c");
        assert_eq!(follower.read().unwrap(), b"c");
    }

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"a\nb"), [b"a"]);
        assert_eq!(lines.feed(b"c\n\nd"), [&b"bc"[..], b""]);
        assert_eq!(lines.rest().as_deref(), Some(&b"d"[..]));
        assert_eq!(lines.rest(), None);
        let seen = lines.feed(&[&vec![b'x'; 3 * LONGEST][..], b"\n"].concat());
        assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [LONGEST; 3]);
        assert_eq!(last(vec![1, 2, 3], Some(2)), [2, 3]);
        assert_eq!(last(vec![1, 2, 3], None), [1, 2, 3]);
    }
}
