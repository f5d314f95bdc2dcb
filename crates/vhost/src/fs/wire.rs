//! The FUSE protocol as virtiofs uses it: what is read of requests and how replies are written.
//! Layouts and numbers: `linux/fuse.h` (7.31 to 7.41), little endian on the machines we run on.

use rustix::io::Errno;

/// Bytes of a request's header.
pub const IN_HEADER: usize = 40;
/// Bytes of a reply's header.
pub const OUT_HEADER: usize = 16;
/// Bytes of the part of a directory entry before its name.
pub const DIRENT: usize = 24;
/// Bytes of what a name resolves to.
pub const ENTRY: usize = 128;

/// The operations, by number. What is not named here is answered by number alone.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are those of `enum fuse_opcode`")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// What both sides can do, as exchanged by INIT.
pub mod flag {
    #![allow(missing_docs, reason = "the names are those of the FUSE_* flags of INIT")]
    pub const ASYNC_READ: u32 = 1;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
}

/// A request: its header's fields that are used, and what comes after the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Which operation.
    pub opcode: u32,
    /// Given back in the reply.
    pub unique: u64,
    /// The inode that is meant.
    pub node: u64,
    /// The operation's own arguments.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads a header; `None` when it is not whole. A length that says less than there is ends the body
    /// there, one that says more is not believed.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut header = Fields(bytes.get(..IN_HEADER)?);
        let len = header.u32()? as usize;
        let (opcode, unique, node) = (header.u32()?, header.u64()?, header.u64()?);
        let end = len.clamp(IN_HEADER, bytes.len());
        Some(Self { opcode, unique, node, body: &bytes[IN_HEADER..end] })
    }

    /// The arguments as fields, one after another.
    pub fn fields(&self) -> Fields<'a> {
        Fields(self.body)
    }
}

/// Reads integers from the front; `None` past the end.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    /// What is left, up to its first NUL; an error when there is none.
    pub fn text(&self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        Ok(&self.0[..end])
    }

    /// One name of a directory: never empty, `.`, `..`, with a slash or longer than 255 bytes.
    pub fn name(&self) -> Result<&'a [u8], Errno> {
        match self.text()? {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > 255 => Err(Errno::NAMETOOLONG),
            name => Ok(name),
        }
    }
}

/// What a guest is told of an inode (`struct fuse_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are those of stat(2)")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
}

/// Writes a reply behind its header, which is filled in at the end.
#[derive(Debug)]
pub struct Reply<'a>(pub &'a mut Vec<u8>);

impl Reply<'_> {
    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends zeros.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Appends attributes.
    pub fn attr(&mut self, attr: &Attr) -> &mut Self {
        self.u64(attr.ino).u64(attr.size).u64(attr.blocks);
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u64(time.0 as u64);
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u32(time.1);
        }
        for field in [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0] {
            self.u32(field);
        }
        self
    }

    /// Appends what a name resolves to; `seconds` is how long both the name and the attributes hold.
    pub fn entry(&mut self, generation: u64, seconds: u64, attr: &Attr) -> &mut Self {
        self.u64(attr.ino).u64(generation).u64(seconds).u64(seconds).u64(0).attr(attr)
    }

    /// Appends that a name is not there, which holds for `seconds`.
    pub fn no_entry(&mut self, seconds: u64) -> &mut Self {
        self.u64(0).u64(0).u64(seconds).zeros(ENTRY - 24)
    }

    /// Appends a directory entry; `kind` is a `DT_*`.
    pub fn dirent(&mut self, ino: u64, offset: u64, kind: u32, name: &[u8]) -> &mut Self {
        self.u64(ino).u64(offset).u32(name.len() as u32).u32(kind);
        self.0.extend_from_slice(name);
        self.zeros(padding(name.len()))
    }
}

/// Bytes that follow a name so that the next entry is aligned.
pub fn padding(name: usize) -> usize {
    name.next_multiple_of(8) - name
}

/// A device number as Linux encodes it in 32 bits.
pub fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_one_component() {
        let name = |bytes: &[u8]| Fields(bytes).name().map(<[u8]>::to_vec);
        assert_eq!(name(b"a\0"), Ok(b"a".to_vec()));
        assert_eq!(name(b"a\0b\0"), Ok(b"a".to_vec()));
        assert_eq!(name(b"...\0"), Ok(b"...".to_vec()));
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"../x\0", b"no end", b""] {
            assert_eq!(name(bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(name(&[vec![b'x'; 256], vec![0]].concat()), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn replies_have_the_kernels_sizes() {
        let mut bytes = Vec::new();
        Reply(&mut bytes).attr(&Attr::default());
        assert_eq!(bytes.len(), 88);
        bytes.clear();
        Reply(&mut bytes).entry(1, 2, &Attr::default());
        assert_eq!(bytes.len(), ENTRY);
        bytes.clear();
        Reply(&mut bytes).no_entry(1);
        assert_eq!(bytes.len(), ENTRY);
        bytes.clear();
        Reply(&mut bytes).dirent(1, 2, 4, b"123456789");
        assert_eq!(bytes.len(), DIRENT + 16);
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(0, 0), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let request = Request::parse(&bytes);
            prop_assert_eq!(request.is_some(), bytes.len() >= IN_HEADER);
            if let Some(request) = request {
                prop_assert!(request.body.len() <= bytes.len() - IN_HEADER);
                let _ = request.fields().name();
            }
        }
    }
}
