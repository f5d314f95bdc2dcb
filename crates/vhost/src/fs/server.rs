//! Answers requests. Nothing here can write: what would is answered with `EROFS` by its number, before
//! its arguments are looked at.
//!
//! ```text
//!   (parent, name) ──statx in the parent's descriptor──► number, attributes          LOOKUP, READDIRPLUS
//!   number ──node: parent, name──► the same again, and the number must be the same    GETATTR, READ, …
//! ```
//! OPEN is answered with `ENOSYS`, upon which the kernel of the guest never asks again and
//! reads by inode: that saves a round trip for each open file, and there is no table of handles that a
//! guest could fill. Files stay open here as long as there is room.

use super::cache::Cache as Kept;
use super::list::List;
use super::node::{Nodes, Owners, ROOT, STAT, seconds};
use super::wire::{Attr, DIRENT, ENTRY, OUT_HEADER, Reply, Request, flag, opcode, padding};
use super::{Cache, Export};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, Statx, openat, readlinkat, statx};
use rustix::io::Errno;
use sandbox_sys::beneath::{LOOK, open_beneath};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The most bytes of one READ.
pub const MAX_READ: usize = 256 * 1024;
/// The newest version of the protocol that is spoken, and the oldest that a guest may speak (Linux 5.4).
const VERSION: (u32, u32) = (7, 31);
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 * 1024;
/// More directories above one another than a path can name: the way has become a circle.
const MAX_DEPTH: usize = 4096;

const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;

/// How much may be held at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Inodes that the guest knows.
    pub nodes: usize,
    /// Descriptors that are kept: of files, and half as many of directories.
    pub files: usize,
}

/// The file system of one guest.
#[derive(Debug)]
pub struct Server {
    exports: Vec<Mounted>,
    nodes: Nodes,
    owners: Owners,
    xattrs: bool,
    directories: Kept<Arc<OwnedFd>>,
    files: Kept<Arc<OwnedFd>>,
    lists: Kept<List>,
    /// What the guest's kernel said that it can do.
    can: u32,
}

#[derive(Debug)]
struct Mounted {
    name: Box<[u8]>,
    root: Arc<OwnedFd>,
    number: u64,
    seconds: u64,
}

type Answer = Result<(), Errno>;

impl Server {
    /// Returns a server for some exports. `xattrs` false tells the guest that there are no extended
    /// attributes at all, which saves an overlay in it one request for each file.
    pub fn new(exports: &[Export], owners: Owners, xattrs: bool, limits: Limits) -> Result<Self, Errno> {
        let mut nodes = Nodes::new(limits.nodes);
        let mut mounted = Vec::new();
        for (index, export) in exports.iter().enumerate() {
            let index = u16::try_from(index).map_err(|_| Errno::NOMEM)?;
            let root = export.root.try_clone().map_err(|_| Errno::MFILE)?;
            let number = nodes.number(index, &stat_of(&root)?)?;
            nodes.pin(number, index, export.name.as_bytes());
            let seconds = seconds(export.cache);
            mounted.push(Mounted { name: export.name.as_bytes().into(), root: Arc::new(root), number, seconds });
        }
        Ok(Self {
            exports: mounted,
            nodes,
            owners,
            xattrs,
            directories: Kept::new(limits.files / 2),
            files: Kept::new(limits.files),
            lists: Kept::new(32),
            can: 0,
        })
    }

    /// Answers one request. `reply` is emptied, and stays empty when none is due; `room` is how many bytes
    /// of it the guest can take.
    pub fn answer(&mut self, request: &[u8], room: usize, reply: &mut Vec<u8>) {
        reply.clear();
        let Some(request) = Request::parse(request) else { return };
        if matches!(request.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            self.forget(&request);
            return;
        }
        if room < OUT_HEADER {
            return;
        }
        reply.resize(OUT_HEADER, 0);
        let answer = self.run(&request, room, reply);
        let error = match answer {
            Ok(()) if reply.len() <= room => 0,
            Ok(()) => Errno::IO.raw_os_error(),
            Err(error) => error.raw_os_error(),
        };
        if error != 0 {
            reply.truncate(OUT_HEADER);
        }
        let len = reply.len() as u32;
        reply[0..4].copy_from_slice(&len.to_le_bytes());
        reply[4..8].copy_from_slice(&(-error).to_le_bytes());
        reply[8..16].copy_from_slice(&request.unique.to_le_bytes());
    }

    fn run(&mut self, request: &Request<'_>, room: usize, reply: &mut Vec<u8>) -> Answer {
        match request.opcode {
            opcode::INIT => self.init(request, reply),
            opcode::LOOKUP => self.lookup(request, reply),
            opcode::GETATTR => self.getattr(request.node, reply),
            opcode::READLINK => self.readlink(request.node, reply),
            opcode::OPEN => self.open(reply),
            // No flags: the guest's kernel keeps no list of its own (6.1 was seen to show a directory as empty
            // after its pages were dropped).
            opcode::OPENDIR => {
                Reply(reply).zeros(16);
                Ok(())
            }
            opcode::READ => self.read(request, room, reply),
            opcode::READDIR => self.readdir(request, room, false, reply),
            opcode::READDIRPLUS => self.readdir(request, room, true, reply),
            opcode::GETXATTR => self.getxattr(request, reply),
            opcode::LISTXATTR => self.listxattr(request, reply),
            opcode::STATFS => self.statfs(request.node, reply),
            opcode::LSEEK => self.lseek(request, reply),
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Ok(()),
            opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::LINK
            | opcode::WRITE
            | opcode::SETXATTR
            | opcode::REMOVEXATTR
            | opcode::CREATE
            | opcode::FALLOCATE
            | opcode::RENAME2
            | opcode::COPY_FILE_RANGE
            | opcode::TMPFILE => Err(Errno::ROFS),
            // FLUSH, FSYNC, ACCESS, INTERRUPT, locks, ioctl, poll, statx, mappings and what is newer than
            // this program: the kernel does without.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
        let mut fields = request.fields();
        let mut next = || fields.u32().ok_or(Errno::INVAL);
        let (major, minor, readahead, can) = (next()?, next()?, next()?, next()?);
        if major < VERSION.0 || (major == VERSION.0 && minor < VERSION.1) {
            return Err(Errno::PROTO);
        }
        self.can = can;
        let wanted = flag::ASYNC_READ
            | flag::AUTO_INVAL_DATA
            | flag::DO_READDIRPLUS
            | flag::NO_OPEN_SUPPORT
            | flag::PARALLEL_DIROPS
            | flag::MAX_PAGES
            | flag::CACHE_SYMLINKS;
        let mut out = Reply(reply);
        out.u32(VERSION.0).u32(VERSION.1).u32(readahead).u32(wanted & can);
        // Requests in the background: the kernel's own numbers. Writes: the least it may be, none is taken.
        out.u32(0).u32(4096).u32(1).u32((MAX_READ / 4096) as u32).zeros(32);
        Ok(())
    }

    /// `ENOSYS` means "never ask again" to a kernel that said so; an older one gets a handle of no meaning.
    fn open(&self, reply: &mut Vec<u8>) -> Answer {
        /// FOPEN_KEEP_CACHE.
        const KEEP: u32 = 1 << 1;
        if self.can & flag::NO_OPEN_SUPPORT != 0 {
            return Err(Errno::NOSYS);
        }
        Reply(reply).u64(0).u32(KEEP).u32(0);
        Ok(())
    }

    fn lookup(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
        let name = request.fields().name()?;
        if request.node == ROOT {
            let found = self.exports.iter().find(|export| *export.name == *name).ok_or(Errno::NOENT)?;
            let (stat, seconds, number) = (stat_of(&found.root)?, found.seconds, found.number);
            Reply(reply).entry(0, seconds, &self.owners.attr(number, &stat));
            return Ok(());
        }
        let directory = self.directory(request.node)?;
        let seconds = self.seconds(request.node)?;
        match self.tell(request.node, directory.as_fd(), name) {
            Ok((generation, attr)) => {
                Reply(reply).entry(u64::from(generation), seconds, &attr);
                Ok(())
            }
            // That it is not there may be believed for as long as what is there.
            Err(Errno::NOENT) => {
                Reply(reply).no_entry(seconds);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at an entry of a directory and notes that the guest is told of it.
    fn tell(&mut self, parent: u64, directory: BorrowedFd<'_>, name: &[u8]) -> Result<(u32, Attr), Errno> {
        let stat = stat_at(directory, name)?;
        let export = self.nodes.get(parent)?.export;
        let number = self.nodes.number(export, &stat)?;
        let generation = self.nodes.told(number, parent, name, &stat)?;
        Ok((generation, self.owners.attr(number, &stat)))
    }

    fn forget(&mut self, request: &Request<'_>) {
        let mut fields = request.fields();
        if request.opcode == opcode::FORGET {
            if let Some(count) = fields.u64() {
                self.forget_one(request.node, count);
            }
            return;
        }
        let count = fields.u32().unwrap_or(0);
        let _ = fields.u32();
        for _ in 0..count {
            // Ends with what was sent, whatever the count says.
            let (Some(node), Some(count)) = (fields.u64(), fields.u64()) else { return };
            self.forget_one(node, count);
        }
    }

    fn forget_one(&mut self, number: u64, count: u64) {
        self.nodes.forget(number, count);
        if self.nodes.get(number).is_err() {
            self.files.remove(number);
            self.directories.remove(number);
            self.lists.remove(number);
        }
    }

    fn getattr(&mut self, number: u64, reply: &mut Vec<u8>) -> Answer {
        let (attr, seconds) = if number == ROOT {
            (self.root_attr(), seconds(Cache::Always))
        } else {
            let stat = self.stat(number)?;
            (self.owners.attr(number, &stat), self.seconds(number)?)
        };
        Reply(reply).u64(seconds).u32(0).u32(0).attr(&attr);
        Ok(())
    }

    /// The directory of the exports: nobody's but root's, and it never changes.
    fn root_attr(&self) -> Attr {
        let nlink = 2 + self.exports.len() as u32;
        Attr { ino: ROOT, mode: S_IFDIR | 0o555, nlink, blksize: 4096, ..Attr::default() }
    }

    fn readlink(&mut self, number: u64, reply: &mut Vec<u8>) -> Answer {
        let (directory, name) = self.parent(number)?;
        self.same(number, &stat_at(directory.as_fd(), &name)?)?;
        let target = readlinkat(&directory, &*name, Vec::new())?;
        reply.extend_from_slice(target.as_bytes());
        Ok(())
    }

    fn read(&mut self, request: &Request<'_>, room: usize, reply: &mut Vec<u8>) -> Answer {
        let mut fields = request.fields();
        let (_, offset, size) = (fields.u64(), fields.u64(), fields.u32());
        let (offset, size) = (offset.ok_or(Errno::INVAL)?, size.ok_or(Errno::INVAL)? as usize);
        let size = size.min(MAX_READ).min(room - OUT_HEADER);
        if offset > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        let file = self.file(request.node)?;
        // Whole or up to the end of the file: less would be read as the end.
        reply.resize(OUT_HEADER + size, 0);
        let mut done = 0;
        while done < size {
            match rustix::io::pread(&file, &mut reply[OUT_HEADER + done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        reply.truncate(OUT_HEADER + done);
        Ok(())
    }

    fn readdir(&mut self, request: &Request<'_>, room: usize, plus: bool, reply: &mut Vec<u8>) -> Answer {
        let mut fields = request.fields();
        let (_, offset, size) = (fields.u64(), fields.u64(), fields.u32());
        let (offset, size) = (offset.ok_or(Errno::INVAL)?, size.ok_or(Errno::INVAL)? as usize);
        let end = OUT_HEADER + size.min(MAX_READ).min(room - OUT_HEADER);
        let fixed = DIRENT + if plus { ENTRY } else { 0 };
        if request.node == ROOT {
            return self.read_root(offset, end, plus, reply);
        }
        let (directory, seconds) = (self.directory(request.node)?, self.seconds(request.node)?);
        let mut list = match self.lists.remove(request.node) {
            Some(list) => list,
            None => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                List::new(openat(&directory, c".", flags, Mode::empty())?)
            }
        };
        list.seek(offset)?;
        while let Some(entry) = list.peek()? {
            let name = entry.name.clone();
            if reply.len() + fixed + name.len() + padding(name.len()) > end {
                break;
            }
            let (ino, next, kind) = (entry.ino, entry.next, entry.kind);
            list.advance();
            if plus {
                // The kernel knows these two, and takes number 0 as "not looked up".
                let told = match &*name {
                    b"." | b".." => None,
                    // Gone in between, or not to be looked at: the guest asks for itself.
                    name => self.tell(request.node, directory.as_fd(), name).ok(),
                };
                match told {
                    Some((generation, attr)) => Reply(reply).entry(u64::from(generation), seconds, &attr),
                    None => Reply(reply).zeros(ENTRY),
                };
            }
            Reply(reply).dirent(ino, next, kind, &name);
        }
        self.lists.put(request.node, list);
        Ok(())
    }

    fn read_root(&mut self, offset: u64, end: usize, plus: bool, reply: &mut Vec<u8>) -> Answer {
        const DIRECTORY: u32 = 4;
        let dots = [(ROOT, &b"."[..], None), (ROOT, &b".."[..], None)];
        let exports = self.exports.iter().map(|export| (export.number, &*export.name, Some(export)));
        let entries = dots.into_iter().chain(exports).enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (index, (number, name, export)) in entries {
            let fixed = DIRENT + if plus { ENTRY } else { 0 };
            if reply.len() + fixed + name.len() + padding(name.len()) > end {
                break;
            }
            if plus {
                let stat = export.map(|export| (stat_of(&export.root), export.seconds));
                match stat {
                    Some((Ok(stat), seconds)) => {
                        Reply(reply).entry(0, seconds, &self.owners.attr(number, &stat));
                    }
                    _ => {
                        Reply(reply).zeros(ENTRY);
                    }
                }
            }
            Reply(reply).dirent(number, index as u64 + 1, DIRECTORY, name);
        }
        Ok(())
    }

    fn getxattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
        if !self.xattrs {
            return Err(Errno::NOSYS);
        }
        let mut fields = request.fields();
        let size = fields.u32().ok_or(Errno::INVAL)? as usize;
        let _ = fields.u32();
        let name = fields.text()?;
        if !shown(name) {
            return Err(Errno::NODATA);
        }
        let Some(file) = self.with_attributes(request.node)? else { return Err(Errno::NODATA) };
        let mut value = vec![0; MAX_XATTR];
        let len = rustix::fs::fgetxattr(&file, name, &mut value[..])?;
        value.truncate(len);
        if size != 0 && len > size {
            return Err(Errno::RANGE);
        }
        sized(size, len, &value, reply);
        Ok(())
    }

    fn listxattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
        if !self.xattrs {
            return Err(Errno::NOSYS);
        }
        let size = request.fields().u32().ok_or(Errno::INVAL)? as usize;
        let mut names = Vec::new();
        if let Some(file) = self.with_attributes(request.node)? {
            // Nearly every file has none: one call says so.
            if rustix::fs::flistxattr_query(&file)? > 0 {
                let mut all = vec![0; MAX_XATTR];
                let len = rustix::fs::flistxattr(&file, &mut all[..])?;
                for name in all[..len].split_inclusive(|byte| *byte == 0) {
                    if shown(name.strip_suffix(b"\0").unwrap_or(name)) {
                        names.extend_from_slice(name);
                    }
                }
            }
        }
        if size != 0 && names.len() > size {
            return Err(Errno::RANGE);
        }
        sized(size, names.len(), &names, reply);
        Ok(())
    }

    fn statfs(&mut self, number: u64, reply: &mut Vec<u8>) -> Answer {
        let export = if number == ROOT { 0 } else { usize::from(self.nodes.get(number)?.export) };
        let root = self.exports.get(export).ok_or(Errno::NOENT)?;
        let all = rustix::fs::fstatvfs(&root.root)?;
        let mut out = Reply(reply);
        out.u64(all.f_blocks).u64(all.f_bfree).u64(all.f_bavail).u64(all.f_files).u64(all.f_ffree);
        out.u32(all.f_bsize as u32).u32(all.f_namemax as u32).u32(all.f_frsize as u32).zeros(28);
        Ok(())
    }

    fn lseek(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Answer {
        let mut fields = request.fields();
        let (_, offset, whence) = (fields.u64(), fields.u64(), fields.u32());
        let offset = offset.ok_or(Errno::INVAL)?;
        if offset > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        // The kernel only asks for these two (SEEK_DATA, SEEK_HOLE).
        let to = match whence {
            Some(3) => SeekFrom::Data(offset),
            Some(4) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let at = rustix::fs::seek(self.file(request.node)?, to)?;
        Reply(reply).u64(at);
        Ok(())
    }

    fn seconds(&self, number: u64) -> Result<u64, Errno> {
        let export = usize::from(self.nodes.get(number)?.export);
        Ok(self.exports.get(export).ok_or(Errno::STALE)?.seconds)
    }

    /// The way to a node: its directory, open, and its name there.
    fn parent(&mut self, number: u64) -> Result<(Arc<OwnedFd>, Box<[u8]>), Errno> {
        let node = self.nodes.get(number)?;
        let (parent, name) = (node.parent, node.name.clone());
        if parent == ROOT {
            return Err(Errno::INVAL);
        }
        Ok((self.directory(parent)?, name))
    }

    /// What a node is now; an error when its name means another one meanwhile.
    fn stat(&mut self, number: u64) -> Result<Statx, Errno> {
        let node = self.nodes.get(number)?;
        if node.parent == ROOT {
            return stat_of(&self.exports[usize::from(node.export)].root);
        }
        let (directory, name) = self.parent(number)?;
        let stat = stat_at(directory.as_fd(), &name)?;
        self.same(number, &stat)?;
        Ok(stat)
    }

    fn same(&mut self, number: u64, stat: &Statx) -> Answer {
        let export = self.nodes.get(number)?.export;
        if self.nodes.number(export, stat)? == number { Ok(()) } else { Err(Errno::STALE) }
    }

    /// A directory, to look names up in it.
    fn directory(&mut self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        // Up to one that is open, and down again.
        let mut way = Vec::new();
        let mut at = number;
        let mut open = loop {
            let node = self.nodes.get(at)?;
            if node.parent == ROOT {
                break Arc::clone(&self.exports[usize::from(node.export)].root);
            }
            if !node.is(S_IFDIR) {
                return Err(Errno::NOTDIR);
            }
            if let Some(open) = self.directories.get(at) {
                break Arc::clone(open);
            }
            way.push(at);
            if way.len() > MAX_DEPTH {
                return Err(Errno::STALE);
            }
            at = self.nodes.get(at)?.parent;
        };
        for number in way.into_iter().rev() {
            let next = open_beneath(open.as_fd(), &self.nodes.get(number)?.name, LOOK)?;
            self.same(number, &stat_of(&next)?)?;
            open = Arc::new(next);
            self.directories.put(number, Arc::clone(&open));
        }
        Ok(open)
    }

    /// A regular file, to read.
    fn file(&mut self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.nodes.get(number)?;
        if !node.is(S_IFREG) {
            return Err(if node.is(S_IFDIR) { Errno::ISDIR } else { Errno::INVAL });
        }
        if let Some(file) = self.files.get(number) {
            return Ok(Arc::clone(file));
        }
        let (directory, name) = self.parent(number)?;
        // A FIFO or device that has taken its place must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = open_beneath(directory.as_fd(), &name, flags)?;
        let stat = stat_of(&file)?;
        self.same(number, &stat)?;
        if u32::from(stat.stx_mode) & S_IFMT != S_IFREG {
            return Err(Errno::STALE);
        }
        let file = Arc::new(file);
        self.files.put(number, Arc::clone(&file));
        Ok(file)
    }

    /// A node that can have extended attributes that are shown, open; `None` for one that cannot.
    fn with_attributes(&mut self, number: u64) -> Result<Option<Arc<OwnedFd>>, Errno> {
        if number == ROOT {
            return Ok(None);
        }
        let node = self.nodes.get(number)?;
        if node.is(S_IFREG) {
            return self.file(number).map(Some);
        }
        if !node.is(S_IFDIR) {
            return Ok(None);
        }
        let directory = self.directory(number)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Some(Arc::new(openat(&directory, c".", flags, Mode::empty())?)))
    }
}

/// Which extended attributes belong to the tree. An overlay's own are the guest's business: layers have none,
/// and what an outer overlay wrote must not be read by an inner one.
fn shown(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// A value, or with `size` 0 only its length.
fn sized(size: usize, len: usize, value: &[u8], reply: &mut Vec<u8>) {
    if size == 0 {
        Reply(reply).u32(len as u32).u32(0);
    } else {
        reply.extend_from_slice(value);
    }
}

fn stat_of(fd: &OwnedFd) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, STAT)
}

fn stat_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, STAT)
}
