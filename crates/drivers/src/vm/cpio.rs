//! Writes a cpio archive in the "newc" format, which is what the kernel unpacks at boot
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! ```text
//! entry   = "070701", 13 fields of 8 hexadecimal digits, name, NUL, pad to 4, contents, pad to 4
//! archive = entry*, the entry "TRAILER!!!"
//! ```
//! Inodes are counted, times are 0: the same entries give the same bytes.

use std::io::{self, Read, Write};

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
    written: u64,
}

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    /// Adds a directory; parents first.
    pub fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.header(name, DIRECTORY | mode, 0, (0, 0))
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.header(name, DEVICE | mode, 0, number)
    }

    /// Adds a file of `size` bytes; `UnexpectedEof` when there are fewer.
    pub fn file(&mut self, name: &str, mode: u32, size: u64, contents: impl Read) -> io::Result<()> {
        let length = u32::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.header(name, REGULAR | mode, length, (0, 0))?;
        if io::copy(&mut contents.take(size), &mut self.out)? < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.written += size;
        self.pad()
    }

    /// Ends it and returns what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = u32::MAX;
        self.header("TRAILER!!!", 0, 0, (0, 0))?;
        Ok(self.out)
    }

    fn header(&mut self, name: &str, mode: u32, size: u32, device: (u32, u32)) -> io::Result<()> {
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let length = u32::try_from(name.len() + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        // inode, mode, uid, gid, links, mtime, size, device of the file system, device, length of the name, sum
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, length, 0];
        let mut text = "070701".to_owned();
        for field in fields {
            text.push_str(&format!("{field:08X}"));
        }
        text.push_str(name);
        text.push('\0');
        self.out.write_all(text.as_bytes())?;
        self.written += text.len() as u64;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = (4 - self.written % 4) % 4;
        self.out.write_all(&[0; 4][..missing as usize])?;
        self.written += missing;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_these_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, 5, &b"hello"[..]).unwrap();
        let bytes = archive.finish().unwrap();
        let field = |inode: u32, mode: u32, links: u32, size: u32, device: (u32, u32), name: &str| {
            let mut text = format!(
                "070701{inode:08X}{mode:08X}{zero}{zero}{links:08X}{zero}{size:08X}{zero}{zero}{:08X}{:08X}{:08X}{zero}{name}\0",
                device.0,
                device.1,
                name.len() + 1,
                zero = "00000000"
            )
            .into_bytes();
            text.resize(text.len().next_multiple_of(4), 0);
            text
        };
        let mut expected = field(1, 0o040_755, 2, 0, (0, 0), "dev");
        expected.extend(field(2, 0o020_600, 1, 0, (5, 1), "dev/console"));
        expected.extend(field(3, 0o100_755, 1, 5, (0, 0), "init"));
        expected.extend(b"hello\0\0\0");
        expected.extend(field(0, 0, 1, 0, (0, 0), "TRAILER!!!"));
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&expected));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn what_is_shorter_than_said_is_an_error() {
        let short = Archive::new(Vec::new()).file("x", 0o644, 3, &b"ab"[..]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }
}
