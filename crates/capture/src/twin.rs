//! An exact copy of what a sandbox wrote: upper directories and homes, also while somebody writes.
//!
//! ```text
//!  round 1 ─ everything ─► target      seen: path ─► stat that belongs to the copy
//!  round 2 ─ only what has another stat than was seen, or could have changed without one
//!  round n ─ nothing was different: it is what was there at one instant
//!  finish  ─ modes and times of directories, the deepest first
//! ```
//!
//! | in the source | in the copy |
//! |---|---|
//! | file | content (shared blocks, else holes as holes), mode, times, attributes, ACL, names of the same inode |
//! | directory | the same, with `user.overlay.opaque` and whatever else the overlay noted |
//! | symlink, FIFO | the same |
//! | character device 0:0 | a new one: a whiteout, which anybody may make |
//! | socket, other device | left out: nobody listens there, and nobody but root can make one |
//!
//! The overlay's own attributes are kept: the copy is mounted over the same layers. `origin` names the
//! layer's file a file came from (empty where the mounter may not decode handles), `impure` says that
//! there are such; both stay true. `uuid` is left out: it is the identity of one mount.
//!
//! Branches before objects: directories named `objects` are copied last, so that a copied git ref never
//! names an object that was written after its directory was read.
//!
//! The source may be hostile: nothing in it is followed or waited for.

use crate::paths::{self, LIST, LOOK, READ, base, join, name_c, open_beneath, parent, to_path};
use crate::remove::remove_at;
use crate::stat::{Kind, Stat, Time, kind_of};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sandbox_sys::copy::{Copier, clean_pages};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rounds at most, as of a capture.
const ROUNDS: usize = 5;

/// Inode times move in ticks: what was written in the tick of the look is looked at again after this.
const TICK: Duration = Duration::from_millis(25);

/// Bytes of a file that alone takes longer than anybody should stand still.
const LARGE: u64 = 32 << 20;

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy '{path}'", path = path.display())]
pub struct TwinError {
    /// Which file or directory. Its bytes are the sandbox's choice: escape before printing.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Twinned {
    /// Files and symlinks.
    pub files: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Sockets and devices that were left out.
    pub left_out: Vec<PathBuf>,
    /// What changed in every round, relative to its tree; empty when the copy is one instant.
    pub unsettled: Vec<PathBuf>,
}

/// Trees that are being copied.
#[derive(Debug)]
pub struct Twin {
    copier: Copier,
    trees: Vec<Tree>,
    rounds: usize,
    /// Something writes meanwhile.
    live: bool,
}

#[derive(Debug)]
struct Tree {
    path: PathBuf,
    from: OwnedFd,
    to: OwnedFd,
    /// What is in the copy, by path; the top is the empty one.
    seen: HashMap<Vec<u8>, Seen>,
    /// Copied files with more than one name: inode to the path that has it.
    links: HashMap<u64, (Vec<u8>, Stat)>,
    round: usize,
    /// What was different in this round.
    moved: Vec<Vec<u8>>,
    /// A change of some file might have left no trace.
    racy: bool,
    left_out: Vec<PathBuf>,
    /// When this round is to be given up.
    until: Option<Instant>,
    /// It was.
    late: bool,
}

/// One name of the copy.
#[derive(Debug)]
struct Seen {
    stat: Stat,
    owner: (u32, u32),
    racy: bool,
    round: usize,
}

impl Twin {
    /// Prepares to copy each tree (from, to); the targets exist and are empty.
    pub fn new(trees: &[(PathBuf, PathBuf)]) -> Result<Self, TwinError> {
        let trees = trees.iter().map(|(from, to)| {
            let open = |path: &Path| {
                paths::open_root(path).map_err(|errno| TwinError { path: path.to_owned(), source: errno.into() })
            };
            Ok(Tree {
                path: from.clone(),
                from: open(from)?,
                to: open(to)?,
                seen: HashMap::new(),
                links: HashMap::new(),
                round: 0,
                moved: Vec::new(),
                racy: false,
                left_out: Vec::new(),
                until: None,
                late: false,
            })
        });
        Ok(Self { copier: Copier::new(), trees: trees.collect::<Result<_, _>>()?, rounds: 0, live: true })
    }

    /// Brings the copy up to date once; true when nothing was different any more.
    pub fn round(&mut self) -> Result<bool, TwinError> {
        if self.live && self.rounds > 0 && self.trees.iter().any(|tree| tree.racy) {
            std::thread::sleep(TICK);
        }
        self.rounds += 1;
        for tree in &mut self.trees {
            tree.round(&self.copier, self.live)?;
        }
        Ok(self.trees.iter().all(|tree| tree.moved.is_empty() && !tree.racy))
    }

    /// Nothing writes from now on: one more round is the last.
    pub fn still(&mut self) {
        self.live = false;
    }

    /// As [`Twin::still`] and [`Twin::round`], given up when it takes longer than `limit` or meets a file that
    /// alone would: false then, and the source may be written to again.
    pub fn still_round(&mut self, limit: Duration) -> Result<bool, TwinError> {
        self.live = false;
        self.rounds += 1;
        let until = Some(Instant::now() + limit);
        for n in 0..self.trees.len() {
            let tree = &mut self.trees[n];
            tree.until = until;
            let done = tree.round(&self.copier, false);
            tree.until = None;
            match done {
                Err(_) if tree.late => {
                    self.live = true;
                    for tree in &mut self.trees {
                        tree.start_again();
                    }
                    return Ok(false);
                }
                done => done?,
            }
        }
        Ok(true)
    }

    /// Repeats until nothing is different, at most five rounds in all.
    pub fn settle(&mut self) -> Result<(), TwinError> {
        while self.rounds < ROUNDS && !self.round()? {}
        Ok(())
    }

    /// Gives the directories their modes and times. The copy is not touched after that.
    pub fn finish(mut self) -> Result<Twinned, TwinError> {
        let mut done = Twinned::default();
        for tree in &mut self.trees {
            tree.finish()?;
            let plain = |seen: &&Seen| matches!(seen.stat.kind(), Kind::File | Kind::Symlink);
            done.files += tree.seen.values().filter(plain).count() as u64;
            // What they take, not how long they are; each once, whatever names it has.
            let mut linked = std::collections::HashSet::new();
            let counts =
                |seen: &&Seen| seen.stat.kind() == Kind::File && (seen.stat.nlink == 1 || linked.insert(seen.stat.ino));
            done.bytes += tree.seen.values().filter(counts).map(|seen| seen.stat.weight()).sum::<u64>();
            done.left_out.append(&mut tree.left_out);
            if self.live {
                done.unsettled.extend(tree.moved.iter().map(|path| to_path(path)));
            }
        }
        done.unsettled.sort();
        Ok(done)
    }
}

impl Tree {
    fn error(&self, path: &[u8], source: impl Into<io::Error>) -> TwinError {
        TwinError { path: self.path.join(to_path(path)), source: source.into() }
    }

    /// What is in the copy was read without care for later writes: the next round copies it again.
    fn start_again(&mut self) {
        self.late = false;
        self.round = 0;
        for seen in self.seen.values_mut() {
            seen.racy = true;
            seen.round = 0;
        }
    }

    fn round(&mut self, copier: &Copier, live: bool) -> Result<(), TwinError> {
        self.round += 1;
        self.racy = false;
        self.moved.clear();
        self.left_out.clear();
        let (mut waiting, mut last) = (vec![Vec::new()], Vec::new());
        while let Some(path) = waiting.pop().or_else(|| last.pop()) {
            for dir in self.dir(copier, live, &path)? {
                let queue = if base(&dir) == b"objects" { &mut last } else { &mut waiting };
                queue.push(dir);
            }
        }
        // What was not met in this round is gone. Longer paths first: what is in a directory goes before it.
        let round = self.round;
        let mut gone: Vec<Vec<u8>> =
            self.seen.iter().filter(|(_, seen)| seen.round != round).map(|(path, _)| path.clone()).collect();
        gone.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in gone {
            match open_beneath(self.to.as_fd(), parent(&path), LOOK) {
                Ok(dir) => remove_at(dir.as_fd(), &name_c(base(&path))).map_err(|errno| self.error(&path, errno))?,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(self.error(&path, errno)),
            }
            self.seen.remove(&path);
            self.moved.push(path);
        }
        if self.round == 1 {
            self.moved.clear();
            // The first look is nothing to compare with, but somebody may write by now.
            self.racy |= live;
        }
        Ok(())
    }

    /// Copies one directory's entries; returns the directories in it.
    fn dir(&mut self, copier: &Copier, live: bool, path: &[u8]) -> Result<Vec<Vec<u8>>, TwinError> {
        let from = match open_beneath(self.from.as_fd(), path, LIST) {
            Ok(from) => from,
            // Gone since its name was read: what is below it is not met in this round, and goes.
            Err(Errno::NOENT | Errno::NOTDIR) if live => return Ok(Vec::new()),
            Err(errno) => return Err(self.error(path, errno)),
        };
        let stat = rustix::fs::fstat(&from).map_err(|errno| self.error(path, errno))?;
        let to = open_beneath(self.to.as_fd(), path, LIST).map_err(|errno| self.error(path, errno))?;
        let now = Stat::from_kernel(&stat);
        let known = self.seen.get(path);
        if known.is_none_or(|seen| seen.stat.ino != now.ino || seen.stat.ctime != now.ctime) {
            same_xattrs(from.as_fd(), to.as_fd()).map_err(|errno| self.error(path, errno))?;
        }
        let owner = owner_of(&stat);
        self.seen.insert(path.to_owned(), Seen { stat: now, owner, racy: false, round: self.round });
        let mut names: Vec<CString> = Vec::new();
        paths::list(from.as_fd(), |name| names.push(name.to_owned())).map_err(|errno| self.error(path, errno))?;
        let mut dirs = Vec::new();
        for name in names {
            let below = join(path, name.as_bytes());
            match self.entry(copier, live, from.as_fd(), to.as_fd(), &name, &below) {
                Ok(true) => dirs.push(below),
                Ok(false) => {}
                Err(errno) => return Err(self.error(&below, errno)),
            }
        }
        Ok(dirs)
    }

    /// Copies one name; true when it is a directory, to be entered.
    fn entry(
        &mut self,
        copier: &Copier,
        live: bool,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<bool, Errno> {
        let kernel = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if live => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let looked = Time::now();
        let stat = Stat::from_kernel(&kernel);
        let round = self.round;
        if let Some(until) = self.until
            && (Instant::now() > until || (stat.kind() == Kind::File && stat.weight() > LARGE))
        {
            self.late = true;
            return Err(Errno::TIMEDOUT);
        }
        let mut again = false;
        if let Some(seen) = self.seen.get_mut(path) {
            let same = if stat.kind() == Kind::Dir { seen.stat.kind() == Kind::Dir } else { seen.stat == stat };
            // Only the content of files can have changed without a trace.
            again = same && seen.racy && stat.kind() == Kind::File;
            if same && !again {
                seen.round = round;
                return Ok(stat.kind() == Kind::Dir);
            }
        }
        let known = if again { None } else { self.seen.remove(path) };
        if let Some(seen) = known {
            self.moved.push(path.to_owned());
            let was_dir = seen.stat.kind() == Kind::Dir;
            remove_at(to, name)?;
            if was_dir {
                let below = join(path, b"");
                self.seen.retain(|known, _| !known.starts_with(&below));
            }
        } else if !again {
            self.moved.push(path.to_owned());
        }
        let mut racy = false;
        let kind = FileType::from_raw_mode(kernel.st_mode);
        match kind {
            FileType::Directory => rustix::fs::mkdirat(to, name, Mode::RWXU)?,
            FileType::RegularFile => match self.file(copier, live, from, to, name, path, &stat, again)? {
                true => {}
                false => return Ok(false),
            },
            FileType::Symlink => match rustix::fs::readlinkat(from, name, Vec::new()) {
                Ok(target) => rustix::fs::symlinkat(&target, to, name)?,
                Err(Errno::NOENT | Errno::INVAL) if live => return Ok(false),
                Err(errno) => return Err(errno),
            },
            FileType::Fifo => {
                rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, 0)?;
                rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.mode & 0o7777), AtFlags::empty())?;
            }
            FileType::CharacterDevice if kernel.st_rdev == 0 => {
                rustix::fs::mknodat(to, name, kind, Mode::empty(), 0)?;
            }
            _ => {
                self.left_out.push(to_path(path));
                return Ok(false);
            }
        }
        if stat.kind() != Kind::Dir {
            if kind != FileType::RegularFile {
                own(to, name, owner_of(&kernel))?;
                rustix::fs::utimensat(to, name, &times(&kernel), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            racy = live && kind == FileType::RegularFile && stat.racy(looked);
        }
        self.racy |= racy;
        // What a directory has besides entries is copied when it is entered: until then its stat is not known.
        let ctime = if stat.kind() == Kind::Dir { Time::default() } else { stat.ctime };
        let stat = Stat { ctime, ..stat };
        self.seen.insert(path.to_owned(), Seen { stat, owner: owner_of(&kernel), racy, round });
        Ok(stat.kind() == Kind::Dir)
    }

    /// Copies a file, or makes a further name of its copy; false when it is gone or another thing by now.
    /// `again`: into the copy that there is, whatever other names that has.
    #[allow(clippy::too_many_arguments, reason = "both sides of one name")]
    fn file(
        &mut self,
        copier: &Copier,
        live: bool,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        stat: &Stat,
        again: bool,
    ) -> Result<bool, Errno> {
        if stat.nlink > 1
            && !again
            && let Some((first, known)) = self.links.get(&stat.ino)
            && known == stat
        {
            let dir = open_beneath(self.to.as_fd(), parent(first), LOOK)?;
            match rustix::fs::linkat(&dir, name_c(base(first)), to, name, AtFlags::empty()) {
                Ok(()) => return Ok(true),
                // The file system has no more names for it.
                Err(Errno::MLINK) => {}
                Err(errno) => return Err(errno),
            }
        }
        let file = match rustix::fs::openat(from, name, READ, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) if live => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let opened = rustix::fs::fstat(&file)?;
        if kind_of(opened.st_mode) != Kind::File {
            return if live { Ok(false) } else { Err(Errno::STALE) };
        }
        if live {
            // So that a later write through a mapping shows in the times.
            clean_pages(file.as_fd());
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = if again {
            rustix::fs::chmodat(to, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
            flags | OFlags::TRUNC
        } else {
            flags | OFlags::CREATE | OFlags::EXCL
        };
        let new = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        let size = opened.st_size as u64;
        copier
            .copy(file.as_fd(), new.as_fd(), size, opened.st_blocks as u64, opened.st_dev as u64)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = owner_of(&opened);
            rustix::fs::fchown(&new, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        // The mode before an access list (which is part of it), the times last.
        rustix::fs::fchmod(&new, Mode::from_raw_mode(opened.st_mode & 0o7777))?;
        same_xattrs(file.as_fd(), new.as_fd())?;
        rustix::fs::futimens(&new, &times(&opened))?;
        if stat.nlink > 1 {
            self.links.insert(stat.ino, (path.to_owned(), *stat));
        }
        Ok(true)
    }

    fn finish(&mut self) -> Result<(), TwinError> {
        let mut dirs: Vec<(&Vec<u8>, &Seen)> =
            self.seen.iter().filter(|(_, seen)| seen.stat.kind() == Kind::Dir).collect();
        dirs.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, seen) in dirs {
            let done = open_beneath(self.to.as_fd(), path, LIST).and_then(|dir| {
                if rustix::process::geteuid().is_root() {
                    let (uid, gid) = seen.owner;
                    rustix::fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                }
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(seen.stat.mode & 0o7777))?;
                let time = Timespec { tv_sec: seen.stat.mtime.sec, tv_nsec: i64::from(seen.stat.mtime.nsec) };
                rustix::fs::futimens(&dir, &Timestamps { last_access: time, last_modification: time })
            });
            done.map_err(|errno| self.error(path, errno))?;
        }
        Ok(())
    }
}

#[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
pub(crate) fn times(stat: &rustix::fs::Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as i64, tv_nsec: stat.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as i64 },
    }
}

pub(crate) fn owner_of(stat: &rustix::fs::Stat) -> (u32, u32) {
    (stat.st_uid, stat.st_gid)
}

/// Only root makes files of others; what anybody else copies is their own.
pub(crate) fn own(dir: BorrowedFd<'_>, name: &CStr, (uid, gid): (u32, u32)) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives `to` the attributes of `from`, and takes away what that has not.
pub(crate) fn same_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let (wanted, there) = (xattrs(from)?, xattrs(to)?);
    for name in there.iter().filter(|name| !wanted.contains(name)) {
        match rustix::fs::fremovexattr(to, name.as_c_str()) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    for name in wanted {
        let mut value = vec![0u8; 64 * 1024];
        match rustix::fs::fgetxattr(from, name.as_c_str(), &mut value[..]) {
            Ok(len) => rustix::fs::fsetxattr(to, name.as_c_str(), &value[..len], XattrFlags::empty())?,
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Names of the attributes that are copied.
fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let len = match rustix::fs::flistxattr_query(file) {
        // Nearly every file has none: one call says so.
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => len,
        Err(errno) => return Err(errno),
    };
    let mut buffer = vec![0u8; len.max(1024) * 2];
    let len = rustix::fs::flistxattr(file, &mut buffer[..])?;
    let names = buffer[..len].split(|b| *b == 0).filter(|name| {
        let kept = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        kept && *name != b"user.overlay.uuid"
    });
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    struct Two {
        _dir: tempfile::TempDir,
        from: PathBuf,
        to: PathBuf,
    }

    impl Two {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            fs::create_dir(&from).unwrap();
            fs::create_dir(&to).unwrap();
            Self { _dir: dir, from, to }
        }

        fn twin(&self) -> Twin {
            Twin::new(&[(self.from.clone(), self.to.clone())]).unwrap()
        }

        fn at_once(&self) -> Twinned {
            let mut twin = self.twin();
            twin.still();
            assert!(twin.round().unwrap());
            twin.finish().unwrap()
        }

        /// Everything that can be told of a tree without its inode numbers, a line for each name.
        fn told(root: &Path) -> String {
            let mut lines = Vec::new();
            let mut waiting = vec![root.to_owned()];
            while let Some(path) = waiting.pop() {
                let meta = fs::symlink_metadata(&path).unwrap();
                let what = if meta.is_symlink() {
                    format!("-> {:?}", fs::read_link(&path).unwrap())
                } else if meta.is_file() {
                    format!("{} bytes, {} names", meta.len(), meta.nlink())
                } else {
                    format!("dev {}", meta.rdev())
                };
                let mut attributes = Vec::new();
                if meta.is_dir() || meta.is_file() {
                    let file = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
                    attributes = xattrs(file.as_fd()).unwrap();
                }
                let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
                lines.push(format!(
                    "{relative} {:o} {}.{} {}:{} {what} {attributes:?}",
                    meta.mode(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.uid(),
                    meta.gid()
                ));
                if meta.is_dir() {
                    waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                }
            }
            lines.sort();
            lines.join("\n")
        }
    }

    fn set(path: &Path, name: &CStr, value: &[u8]) {
        rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    #[test]
    fn everything_that_an_upper_directory_can_hold_is_in_the_copy() {
        let two = Two::new();
        let at = |path: &str| two.from.join(path);
        fs::create_dir_all(at("dir/closed")).unwrap();
        fs::write(at("dir/closed/f"), "secret").unwrap();
        fs::write(at("exec"), "#!/bin/sh").unwrap();
        fs::set_permissions(at("exec"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::write(two.from.join(std::ffi::OsStr::from_bytes(b"no\xffutf8\n")), "x").unwrap();
        symlink("../nowhere", at("link")).unwrap();
        fs::hard_link(at("exec"), at("dir/again")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        set(&at("dir"), c"user.overlay.opaque", b"y");
        set(&at("dir"), c"user.overlay.uuid", b"0123456789abcdef");
        set(&at("dir/closed/f"), c"user.mine", &[0, 1, 255]);
        let sparse = fs::File::create(at("sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 4 << 20).unwrap();
        let old = Timespec { tv_sec: 12345, tv_nsec: 678_901_234 };
        for path in ["exec", "link", "dir/closed", "fifo", "gone"] {
            let times = Timestamps { last_access: old, last_modification: old };
            rustix::fs::utimensat(rustix::fs::CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let seen = two.at_once();
        assert_eq!((seen.files, seen.left_out, seen.unsettled), (6, vec![PathBuf::from("socket")], vec![]));
        drop(_listener);
        fs::remove_file(at("socket")).unwrap();
        let time = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() }
        };
        let copied = time(&two.to);
        rustix::fs::utimensat(
            rustix::fs::CWD,
            &two.from,
            &Timestamps { last_access: copied, last_modification: copied },
            AtFlags::empty(),
        )
        .unwrap();
        assert_eq!(Two::told(&two.to), Two::told(&two.from));
        assert_eq!(fs::read(two.to.join("dir/closed/f")).unwrap(), b"secret");
        assert!(fs::metadata(two.to.join("sparse")).unwrap().blocks() * 512 < 1 << 20);
        assert!(rustix::fs::getxattr(two.to.join("dir"), c"user.overlay.uuid", &mut [0u8; 64][..]).is_err());
    }

    #[test]
    fn what_changes_meanwhile_is_in_the_last_round() {
        let two = Two::new();
        let at = |path: &str| two.from.join(path);
        for path in ["a/deep/x", "b/y", "c/z", "objects/o"] {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), path).unwrap();
        }
        fs::hard_link(at("b/y"), at("b/y2")).unwrap();
        let mut twin = two.twin();
        assert!(!twin.round().unwrap(), "the first look is nothing to compare with");
        fs::write(at("a/deep/x"), "other").unwrap();
        fs::remove_dir_all(at("c")).unwrap();
        fs::write(at("c"), "a file now").unwrap();
        fs::rename(at("b"), at("moved")).unwrap();
        fs::write(at("moved/y"), "through both names").unwrap();
        fs::remove_dir_all(at("objects")).unwrap();
        symlink("moved", at("objects")).unwrap();
        set(&at("a"), c"user.overlay.opaque", b"y");
        assert!(!twin.round().unwrap());
        rustix::fs::removexattr(at("a"), c"user.overlay.opaque").unwrap();
        twin.settle().unwrap();
        assert!(twin.finish().unwrap().unsettled.is_empty());
        assert_eq!(Two::told(&two.to), Two::told(&two.from));
        assert_eq!(fs::read(two.to.join("moved/y2")).unwrap(), b"through both names");
    }

    #[test]
    fn names_of_one_fresh_file_stay_together() {
        // Fresh files are copied twice, into the copy that there is: read-only ones too.
        let two = Two::new();
        fs::write(two.from.join("a"), "one").unwrap();
        fs::set_permissions(two.from.join("a"), fs::Permissions::from_mode(0o400)).unwrap();
        fs::create_dir(two.from.join("d")).unwrap();
        for name in ["b", "c", "d/e"] {
            fs::hard_link(two.from.join("a"), two.from.join(name)).unwrap();
        }
        let mut twin = two.twin();
        twin.settle().unwrap();
        let seen = twin.finish().unwrap();
        assert_eq!((seen.files, seen.bytes), (4, 3));
        assert_eq!(Two::told(&two.to), Two::told(&two.from));
    }

    #[test]
    fn a_round_that_takes_too_long_is_given_up_and_forgotten() {
        let two = Two::new();
        for dir in ["a", "b", "c"] {
            fs::create_dir(two.from.join(dir)).unwrap();
            fs::write(two.from.join(dir).join("f"), dir).unwrap();
        }
        fs::hard_link(two.from.join("a/f"), two.from.join("c/again")).unwrap();
        fs::File::create(two.from.join("zeros")).unwrap().set_len(LARGE * 2).unwrap();
        let mut twin = two.twin();
        assert!(!twin.still_round(Duration::ZERO).unwrap());
        // What a mapping writes may leave no trace: nothing of the first try counts.
        let before = fs::metadata(two.from.join("a/f")).unwrap();
        fs::write(two.from.join("a/f"), "z").unwrap();
        let file = fs::File::options().write(true).open(two.from.join("a/f")).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        fs::remove_dir_all(two.from.join("b")).unwrap();
        assert!(!twin.round().unwrap());
        twin.settle().unwrap();
        assert!(twin.finish().unwrap().unsettled.is_empty());
        assert_eq!(Two::told(&two.to), Two::told(&two.from));
        assert_eq!(fs::read(two.to.join("c/again")).unwrap(), b"z");
        // Holes are no reason: it is what must be read that counts.
        let whole = Two::new();
        fs::File::create(whole.from.join("zeros")).unwrap().set_len(LARGE * 2).unwrap();
        assert!(whole.twin().still_round(Duration::from_secs(60)).unwrap());
        fs::write(whole.from.join("full"), vec![1; LARGE as usize + 1]).unwrap();
        let again = Two::new();
        let mut twin = Twin::new(&[(whole.from.clone(), again.to.clone())]).unwrap();
        assert!(!twin.still_round(Duration::from_secs(60)).unwrap());
        twin.settle().unwrap();
        twin.finish().unwrap();
        assert_eq!(fs::metadata(again.to.join("full")).unwrap().len(), LARGE + 1);
    }

    #[test]
    fn what_never_settles_is_named_after_five_rounds() {
        let two = Two::new();
        fs::write(two.from.join("quiet"), "q").unwrap();
        let mut twin = two.twin();
        let mut n = 0;
        while twin.rounds < ROUNDS {
            n += 1;
            fs::write(two.from.join("busy"), "x".repeat(n)).unwrap();
            assert!(!twin.round().unwrap());
        }
        twin.settle().unwrap();
        assert_eq!(twin.rounds, ROUNDS);
        assert_eq!(twin.finish().unwrap().unsettled, [PathBuf::from("busy")]);
    }

    #[test]
    fn a_write_in_the_tick_of_the_copy_is_not_lost() {
        // Equal size, and the times may be the same: only looking again after the tick finds it.
        for _ in 0..20 {
            let two = Two::new();
            let path = two.from.join("f");
            fs::write(&path, "one").unwrap();
            let mut twin = two.twin();
            twin.round().unwrap();
            fs::write(&path, "two").unwrap();
            twin.settle().unwrap();
            twin.finish().unwrap();
            assert_eq!(fs::read(two.to.join("f")).unwrap(), b"two");
        }
    }
}
