//! Copying one file or symlink into a layer, and comparing one with its copy.

use super::attributes::Attributes;
use crate::manifest::CopyStat;
use crate::paths::READ;
use crate::remove::remove_at;
use crate::stat::{Kind, Stat, Time};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use sandbox_sys::copy::{Copier, clean_pages};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often a file that changes under the copy is copied again at once.
const TRIES: u32 = 3;

/// What came of copying one name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copied {
    /// It is in the layer.
    Done {
        /// The host's stat that belongs to the content.
        stat: Stat,
        /// The stat in the layer.
        copy: CopyStat,
        /// A later change might leave no trace in the stat.
        racy: bool,
        /// It changed during every try.
        torn: bool,
        /// It shares its blocks with the host's file.
        reflinked: bool,
        /// It is a further name of a file that was copied.
        linked: bool,
        /// Entries of its access control list, or its capabilities, were left out.
        lessened: bool,
    },
    /// We may not read it.
    Unreadable(Stat),
    /// It is gone, or something else by now.
    Vanished,
}

/// What came of copying one name, as it is kept for each file until the manifest is written.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It is in the layer, and what the scan saw belongs to the content.
    Plain {
        /// Of the copy.
        ino: u64,
        /// Seconds and nanoseconds of the copy's ctime: together they would be padded.
        sec: i64,
        nsec: u32,
        how: How,
    },
    /// It is in the layer; the host's stat that belongs to the content is not what the scan saw.
    Moved(Box<(Stat, CopyStat, How)>),
    /// We may not read it.
    Unreadable(Box<Stat>),
    /// It is gone, or something else by now.
    Vanished,
}

const _: () = assert!(size_of::<Outcome>() == 24);

/// As in [`Copied::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How(u8);

impl How {
    const RACY: u8 = 1;
    const TORN: u8 = 2;
    const REFLINKED: u8 = 4;
    const LINKED: u8 = 8;
    const LESSENED: u8 = 16;
}

/// A file that is in the layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done<'a> {
    /// The host's stat that belongs to the content, where it is not what the scan saw.
    pub(super) stat: Option<&'a Stat>,
    pub(super) copy: CopyStat,
    how: How,
}

impl Done<'_> {
    fn is(&self, flag: u8) -> bool {
        self.how.0 & flag != 0
    }

    pub(super) fn racy(&self) -> bool {
        self.is(How::RACY)
    }

    pub(super) fn torn(&self) -> bool {
        self.is(How::TORN)
    }

    pub(super) fn reflinked(&self) -> bool {
        self.is(How::REFLINKED)
    }

    pub(super) fn linked(&self) -> bool {
        self.is(How::LINKED)
    }

    pub(super) fn lessened(&self) -> bool {
        self.is(How::LESSENED)
    }
}

impl Outcome {
    /// Keeps what is not in the scan's stat.
    pub(super) fn of(copied: &Copied, scanned: Option<&Stat>) -> Self {
        match *copied {
            Copied::Done { stat, copy, racy, torn, reflinked, linked, lessened } => {
                let flags = [
                    (racy, How::RACY),
                    (torn, How::TORN),
                    (reflinked, How::REFLINKED),
                    (linked, How::LINKED),
                    (lessened, How::LESSENED),
                ];
                let how = How(flags.iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag));
                Self::new(&stat, scanned, copy, how)
            }
            Copied::Unreadable(stat) => Self::Unreadable(Box::new(stat)),
            Copied::Vanished => Self::Vanished,
        }
    }

    fn new(stat: &Stat, scanned: Option<&Stat>, copy: CopyStat, how: How) -> Self {
        if scanned.map(told) == Some(told(stat)) {
            Self::plain(copy, how)
        } else {
            Self::Moved(Box::new((*stat, copy, how)))
        }
    }

    fn plain(copy: CopyStat, how: How) -> Self {
        Self::Plain { ino: copy.ino, sec: copy.ctime.sec, nsec: copy.ctime.nsec, how }
    }

    /// Returns what is told of a file that is in the layer.
    pub(super) fn done(&self) -> Option<Done<'_>> {
        match self {
            Self::Plain { ino, sec, nsec, how } => {
                let copy = CopyStat { ino: *ino, ctime: Time { sec: *sec, nsec: *nsec } };
                Some(Done { stat: None, copy, how: *how })
            }
            Self::Moved(moved) => Some(Done { stat: Some(&moved.0), copy: moved.1, how: moved.2 }),
            Self::Unreadable(_) | Self::Vanished => None,
        }
    }

    /// Notes that the copy has another stat by now.
    pub(super) fn set_copy(&mut self, copy: CopyStat) {
        match self {
            Self::Plain { how, .. } => *self = Self::plain(copy, *how),
            Self::Moved(moved) => moved.1 = copy,
            Self::Unreadable(_) | Self::Vanished => {}
        }
    }

    /// Returns the same for a further name of the file; the scan saw `first` of the first one, and of this one
    /// `scanned`.
    pub(super) fn as_link(&self, first: Option<&Stat>, scanned: Option<&Stat>) -> Self {
        let Some(done) = self.done() else { return self.clone() };
        let how = How(done.how.0 & (How::RACY | How::TORN) | How::LINKED);
        match done.stat.or(first) {
            Some(stat) => Self::new(stat, scanned, done.copy, how),
            // Both names are of the stack's manifest, which has their stats.
            None => Self::plain(done.copy, how),
        }
    }
}

/// What of a stat goes into the manifest.
fn told(stat: &Stat) -> Stat {
    Stat { nlink: 0, blocks: 0, ..*stat }
}

/// An error, and whether it was met in the layer or on the source's side.
pub(crate) struct CopyError {
    pub(crate) in_layer: bool,
    pub(crate) errno: Errno,
}

fn source(errno: Errno) -> CopyError {
    CopyError { in_layer: false, errno }
}
fn target(errno: Errno) -> CopyError {
    CopyError { in_layer: true, errno }
}

/// Copies `name` from one directory to another, replacing what is there.
pub(crate) fn copy_entry(
    copier: &Copier,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    kind: Kind,
    owner: Option<(u32, u32)>,
) -> Result<Copied, CopyError> {
    match kind {
        Kind::Symlink => copy_symlink(from, to, name, owner),
        _ => copy_file(copier, from, to, name, owner),
    }
}

fn copy_file(
    copier: &Copier,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    owner: Option<(u32, u32)>,
) -> Result<Copied, CopyError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let file = match rustix::fs::openat(from, name, READ, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::ACCESS | Errno::PERM) => {
                return match stat_at(from, name) {
                    Ok(stat) if stat.kind() == Kind::File => Ok(Copied::Unreadable(stat)),
                    _ => Ok(Copied::Vanished),
                };
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => return Ok(Copied::Vanished),
            Err(errno) => return Err(source(errno)),
        };
        let seen = Time::now();
        let before = fstat(file.as_fd()).map_err(source)?;
        if before.kind() != Kind::File {
            return Ok(Copied::Vanished);
        }
        clean_pages(file.as_fd());
        let new = create(to, name).map_err(target)?;
        let copied = copier
            .copy(file.as_fd(), new.as_fd(), before.size, before.blocks, before.dev)
            // A full disk is the layer's; a read error is the host's. Nothing else tells them apart.
            .map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                CopyError { in_layer: matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::ROFS), errno }
            })?;
        let attributes = Attributes::of(file.as_fd(), ids(owner));
        let stat = fstat(file.as_fd()).map_err(source)?;
        let torn = (stat.size, stat.mtime, stat.ctime) != (before.size, before.mtime, before.ctime);
        if torn && tries < TRIES {
            continue;
        }
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&new, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(target)?;
        }
        rustix::fs::fchmod(&new, Mode::from_raw_mode(stat.kept_mode())).map_err(target)?;
        let lessened = !attributes.set(new.as_fd()) || attributes.lessened;
        rustix::fs::futimens(&new, &times(stat.mtime)).map_err(target)?;
        let copy = copy_stat(&fstat(new.as_fd()).map_err(target)?);
        let racy = torn || stat.racy(seen);
        return Ok(Copied::Done { stat, copy, racy, torn, reflinked: copied.reflinked, linked: false, lessened });
    }
}

fn copy_symlink(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    owner: Option<(u32, u32)>,
) -> Result<Copied, CopyError> {
    let seen = Time::now();
    let gone = |errno| matches!(errno, Errno::NOENT | Errno::INVAL | Errno::NOTDIR);
    let stat = match stat_at(from, name) {
        Ok(stat) if stat.kind() == Kind::Symlink => stat,
        Ok(_) => return Ok(Copied::Vanished),
        Err(errno) if gone(errno) => return Ok(Copied::Vanished),
        Err(errno) => return Err(source(errno)),
    };
    let link = match rustix::fs::readlinkat(from, name, Vec::new()) {
        Ok(link) => link,
        Err(errno) if gone(errno) => return Ok(Copied::Vanished),
        Err(errno) => return Err(source(errno)),
    };
    let after = stat_at(from, name).ok();
    let torn = after != Some(stat);
    if rustix::fs::symlinkat(&link, to, name) == Err(Errno::EXIST) {
        remove_at(to, name).map_err(target)?;
        rustix::fs::symlinkat(&link, to, name).map_err(target)?;
    }
    if let Some((uid, gid)) = owner {
        rustix::fs::chownat(to, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(target)?;
    }
    rustix::fs::utimensat(to, name, &times(stat.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(target)?;
    let copy = copy_stat(&stat_at(to, name).map_err(target)?);
    Ok(Copied::Done {
        stat,
        copy,
        racy: torn || stat.racy(seen),
        torn,
        reflinked: false,
        linked: false,
        lessened: false,
    })
}

/// Makes a new file, in place of whatever has the name.
fn create(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::EXIST) => {
            remove_at(dir, name)?;
            rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
        }
        result => result,
    }
}

/// Whether the copy has fewer rights than the host's entry; `None`: as far as was known.
pub(crate) type Lessened = Option<bool>;

/// What a comparison of a host entry with its copy says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compared {
    /// They are equal; the host's stat that belongs to it, and whether it is racy.
    Same(Stat, bool, Lessened),
    /// They differ, or one of them cannot be read.
    Differs,
}

/// Compares content and extended attributes; modes and times are the caller's business.
pub(crate) fn compare_entry(
    host: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    name: &CStr,
    kind: Kind,
    owner: Option<(u32, u32)>,
) -> Compared {
    let seen = Time::now();
    match kind {
        Kind::Symlink => {
            let read = |dir| rustix::fs::readlinkat(dir, name, Vec::new()).ok();
            match (read(host), read(layer), stat_at(host, name)) {
                (Some(ours), Some(copy), Ok(stat)) if ours == copy => Compared::Same(stat, stat.racy(seen), None),
                _ => Compared::Differs,
            }
        }
        _ => compare_files(host, layer, name, seen, owner).unwrap_or(Compared::Differs),
    }
}

/// Compares the extended attributes of a directory with those of its copy.
pub(super) fn compare_directories(
    host: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    owner: Option<(u32, u32)>,
) -> Result<Compared, Errno> {
    let seen = Time::now();
    let stat = fstat(host)?;
    let of = |dir| Attributes::of(dir, ids(owner));
    let ours = of(host);
    let same = ours.same(&of(layer)) && fstat(host)? == stat;
    Ok(if same { Compared::Same(stat, stat.racy(seen), Some(ours.lessened)) } else { Compared::Differs })
}

/// Returns the user and the group that exist inside.
pub(super) fn ids(owner: Option<(u32, u32)>) -> (u32, u32) {
    owner.unwrap_or_else(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()))
}

fn compare_files(
    host: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    name: &CStr,
    seen: Time,
    owner: Option<(u32, u32)>,
) -> Result<Compared, Errno> {
    let ours = rustix::fs::openat(host, name, READ, Mode::empty())?;
    let copy = rustix::fs::openat(layer, name, READ, Mode::empty())?;
    let before = fstat(ours.as_fd())?;
    if before.kind() != Kind::File || fstat(copy.as_fd())?.size != before.size {
        return Ok(Compared::Differs);
    }
    clean_pages(ours.as_fd());
    let attributes = |file: &OwnedFd| Attributes::of(file.as_fd(), ids(owner));
    let here = attributes(&ours);
    if !same_bytes(ours.as_fd(), copy.as_fd())? || !here.same(&attributes(&copy)) {
        return Ok(Compared::Differs);
    }
    let stat = fstat(ours.as_fd())?;
    Ok(if stat == before { Compared::Same(stat, stat.racy(seen), Some(here.lessened)) } else { Compared::Differs })
}

/// Returns whether two files have the same content.
pub(crate) fn same_bytes(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool, Errno> {
    const CHUNK: usize = 128 * 1024;
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let (n, m) = (read_full(a, &mut left, at)?, read_full(b, &mut right, at)?);
        if left[..n] != right[..m] {
            return Ok(false);
        }
        if n < CHUNK {
            return Ok(true);
        }
        at += n as u64;
    }
}

fn read_full(file: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut len = 0;
    while len < buffer.len() {
        match rustix::io::pread(file, &mut buffer[len..], at + len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(len)
}

/// Access and modification time, both as the host's modification time: nobody reads a layer's atime.
pub(crate) fn times(mtime: Time) -> Timestamps {
    let at = Timespec { tv_sec: mtime.sec, tv_nsec: mtime.nsec.into() };
    Timestamps { last_access: at, last_modification: at }
}

pub(crate) fn copy_stat(stat: &Stat) -> CopyStat {
    CopyStat { ino: stat.ino, ctime: stat.ctime }
}

pub(crate) fn fstat(file: BorrowedFd<'_>) -> Result<Stat, Errno> {
    rustix::fs::fstat(file).map(|stat| Stat::from_kernel(&stat))
}

pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| Stat::from_kernel(&stat))
}
