//! Opening by relative path without ever following a symlink, at any depth.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The kernel takes paths of at most 4096 bytes; longer ones are walked in pieces.
const PIECE: usize = 3500;

/// Flags for a directory whose entries are only looked up, not listed.
pub const LOOK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens what `path` names below `root`; no component may be a symlink. The empty path is `root`.
///
/// # Errors
///
/// `NOTDIR` also for a symlink in the way.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_resolved(root, path, flags, ResolveFlags::empty())
}

/// Opens as [`open_beneath`] does, with further restrictions (`NO_XDEV`: no mount point in the way).
///
/// # Errors
///
/// Those of [`open_beneath`], and what the restrictions forbid.
pub fn open_resolved(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut rest = path;
    let mut at: Option<OwnedFd> = None;
    while rest.len() > PIECE {
        let cut = rest[..PIECE].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let next = open_piece(at.as_ref().map_or(root, AsFd::as_fd), &rest[..cut], LOOK, resolve)?;
        at = Some(next);
        rest = &rest[cut + 1..];
    }
    open_piece(at.as_ref().map_or(root, AsFd::as_fd), rest, flags, resolve)
}

fn open_piece(at: BorrowedFd<'_>, path: &[u8], flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
    let mut tries = 0;
    loop {
        match openat2(at, path, flags, Mode::empty(), resolve) {
            // A rename somewhere made the kernel unsure whether it is still beneath.
            Err(Errno::AGAIN) if tries < 100 => tries += 1,
            Err(Errno::INTR) => {}
            // A symlink in the way: for callers the same as "no such directory any more".
            Err(Errno::LOOP) => return Err(Errno::NOTDIR),
            result => return result,
        }
    }
}
