//! The main session's output on disk, bounded: two files that take turns.
//!
//! ```text
//! log/main.log      what was written last, at most LIMIT bytes
//! log/main.log.1    what was written before, LIMIT bytes or absent
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of one of the two files.
pub const LIMIT: u64 = 4 * 1024 * 1024;

/// An append-only log that never grows beyond two times [`LIMIT`].
#[derive(Debug)]
pub struct RingLog {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl RingLog {
    /// Opens (or makes) the log; output of an earlier run stays before the new one.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = open_append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit })
    }

    /// Appends; when the file is full it becomes the older one. A full disk loses log, never work.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.size >= self.limit {
                match fs::rename(&self.path, older(&self.path)) {
                    // Moved before, and then there was no room for a new one: there may be now.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
                self.file = open_append(&self.path)?;
                self.size = 0;
            }
            let n = bytes.len().min((self.limit - self.size) as usize);
            if let Err(error) = self.file.write_all(&bytes[..n]) {
                self.size = self.file.metadata().map_or(self.size, |meta| meta.len());
                return Err(error);
            }
            self.size += n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Returns the last bytes that were logged, at most `limit`.
    pub fn tail(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut out = read_tail(path, limit)?;
        let left = limit - out.len() as u64;
        if left > 0 {
            let mut before = read_tail(&older(path), left)?;
            before.append(&mut out);
            out = before;
        }
        Ok(out)
    }
}

/// Where a log's older half is.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open_append(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn read_tail(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
    let mut out = Vec::new();
    file.take(limit).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_and_forgets_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log/main.log");
        let mut log = RingLog::with_limit(&path, 10).unwrap();
        for i in 0..100u8 {
            log.append(&[b'0' + i % 10]).unwrap();
        }
        assert_eq!(RingLog::tail(&path, 15).unwrap(), b"567890123456789");
        assert!(RingLog::tail(&path, 1000).unwrap().len() <= 20);
        let mut again = RingLog::with_limit(&path, 10).unwrap();
        again.append(b"x").unwrap();
        assert_eq!(RingLog::tail(&path, 3).unwrap(), b"89x");
    }
}
