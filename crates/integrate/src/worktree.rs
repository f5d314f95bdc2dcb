//! The host's working tree: every step beneath its top, no symlink followed, no file replaced that is
//! not the one that was looked at.

use crate::index::hex;
use crate::path::RepoPath;
use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A working tree, held by a descriptor of its top.
pub(crate) struct Worktree {
    top: OwnedFd,
}

/// What is at a path.
pub(crate) enum Found {
    /// Nothing. `under` is a file or symlink above it, if that is why.
    Absent { under: Option<RepoPath> },
    /// A file or symlink.
    File(Seen),
    /// A directory.
    Directory,
    /// A socket, device or pipe.
    Special,
}

/// What is at a path, without the bytes: enough to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Absent,
    File { executable: bool, sha256: String },
    Symlink { sha256: String },
    Directory,
    Special,
}

impl Found {
    pub fn state(&self) -> State {
        match self {
            Self::Absent { .. } => State::Absent,
            Self::File(seen) => State::of(seen.symlink, seen.executable, &seen.bytes),
            Self::Directory => State::Directory,
            Self::Special => State::Special,
        }
    }
}

impl State {
    pub fn of(symlink: bool, executable: bool, bytes: &[u8]) -> Self {
        let sha256 = hex(&sha2::Sha256::digest(bytes));
        if symlink { Self::Symlink { sha256 } } else { Self::File { executable, sha256 } }
    }
}

/// A file or symlink that was read.
pub(crate) struct Seen {
    pub symlink: bool,
    pub executable: bool,
    /// Content, or the symlink's target.
    pub bytes: Vec<u8>,
    pub stat: Identity,
}

/// What tells a file from another and from its own later states, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: (i64, u32),
    pub mode: u32,
    pub owner: (u32, u32),
}

impl Identity {
    fn of(stat: &rfs::Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
        }
    }
}

/// What `stat` says of a name in a directory.
pub(crate) fn identity_at(dir: &OwnedFd, name: &OsStr) -> io::Result<Identity> {
    Ok(Identity::of(&rfs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Worktree {
    pub fn open(top: &Path) -> io::Result<Self> {
        Ok(Self { top: rfs::open(top, DIRECTORY, Mode::empty())? })
    }

    /// The device that the top is on.
    pub fn device(&self) -> io::Result<u64> {
        Ok(rfs::fstat(&self.top)?.st_dev)
    }

    fn open_dir(&self, path: Option<&RepoPath>) -> rustix::io::Result<OwnedFd> {
        match path {
            None => rfs::openat2(&self.top, ".", DIRECTORY, Mode::empty(), BENEATH),
            Some(path) => rfs::openat2(&self.top, path.as_path(), DIRECTORY, Mode::empty(), BENEATH),
        }
    }

    /// Opens the directory that holds `path`.
    fn open_parent(&self, path: &RepoPath) -> rustix::io::Result<OwnedFd> {
        self.open_dir(path.parent().as_ref())
    }

    /// Looks at a path and reads it.
    pub fn look(&self, path: &RepoPath) -> io::Result<Found> {
        let parent = match self.open_parent(path) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Found::Absent { under: self.blocker(path)? }),
            Err(error) => return Err(error.into()),
        };
        let name = OsStr::from_bytes(path.name());
        let stat = match rfs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Found::Absent { under: None }),
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Found::Directory),
            FileType::Symlink => {
                let bytes = rfs::readlinkat(&parent, name, Vec::new())?.into_bytes();
                Ok(Found::File(Seen { symlink: true, executable: false, bytes, stat: Identity::of(&stat) }))
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut file = File::from(rfs::openat(&parent, name, flags, Mode::empty())?);
                // of the descriptor: what is read is what is described
                let stat = rfs::fstat(&file)?;
                let mut bytes = Vec::with_capacity(stat.st_size as usize);
                file.read_to_end(&mut bytes)?;
                let executable = stat.st_mode & 0o100 != 0;
                Ok(Found::File(Seen { symlink: false, executable, bytes, stat: Identity::of(&stat) }))
            }
            _ => Ok(Found::Special),
        }
    }

    /// The highest ancestor of `path` that is there and is not a directory.
    fn blocker(&self, path: &RepoPath) -> io::Result<Option<RepoPath>> {
        let mut ancestors: Vec<_> = path.ancestors().collect();
        ancestors.reverse();
        for dir in ancestors {
            let parent = self.open_parent(&dir)?;
            match rfs::statat(&parent, OsStr::from_bytes(dir.name()), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Ok(_) => return Ok(Some(dir)),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Names of a directory's entries, and which of them are directories.
    pub fn list(&self, dir: &RepoPath) -> io::Result<Vec<(RepoPath, bool)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rfs::openat2(&self.top, dir.as_path(), flags, Mode::empty(), BENEATH)?;
        let mut all = Vec::new();
        for entry in rfs::Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let mut path = dir.as_bytes().to_vec();
            path.push(b'/');
            path.extend_from_slice(name);
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    let at = OsStr::from_bytes(&path);
                    let stat = rfs::statat(&self.top, at, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                kind => kind == FileType::Directory,
            };
            // `.git` and its like are no repository paths, but something that is in the way.
            all.push((RepoPath::parse(&path).unwrap_or_else(|| dir.clone()), is_dir));
        }
        Ok(all)
    }

    /// What `stat` says of a file now.
    pub fn identity(&self, path: &RepoPath) -> io::Result<Option<Identity>> {
        let stat = self
            .open_parent(path)
            .and_then(|parent| rfs::statat(parent, OsStr::from_bytes(path.name()), AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(Identity::of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the directories above `path` that are missing, and returns those it made, topmost first.
    pub fn make_parents(&self, path: &RepoPath, made: &mut Vec<RepoPath>) -> io::Result<()> {
        let mut ancestors: Vec<_> = path.ancestors().collect();
        ancestors.reverse();
        for dir in ancestors {
            if self.make_dir(&dir)? {
                made.push(dir);
            }
        }
        Ok(())
    }

    /// Makes a directory; false if it is there already.
    pub fn make_dir(&self, dir: &RepoPath) -> io::Result<bool> {
        let parent = self.open_parent(dir)?;
        match rfs::mkdirat(parent, OsStr::from_bytes(dir.name()), Mode::from_raw_mode(0o777)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                self.open_dir(Some(dir))?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory if it is there and empty; returns the mode that it had.
    pub fn remove_dir(&self, dir: &RepoPath) -> io::Result<Option<u32>> {
        let Ok(parent) = self.open_parent(dir) else { return Ok(None) };
        let name = OsStr::from_bytes(dir.name());
        let Ok(stat) = rfs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        match rfs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(Some(stat.st_mode)),
            // A mount point, somebody's current directory on some file systems: it stays, empty.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR | Errno::BUSY | Errno::ACCESS) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a directory a mode.
    pub fn set_dir_mode(&self, dir: &RepoPath, mode: u32) -> io::Result<()> {
        let parent = self.open_parent(dir)?;
        Ok(rfs::chmodat(parent, OsStr::from_bytes(dir.name()), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?)
    }

    /// Moves a file between the tree and a staging directory. See [`Move`].
    pub fn rename(&self, path: &RepoPath, staging: &OwnedFd, name: &str, how: Move) -> io::Result<()> {
        let parent = self.open_parent(path)?;
        let here = OsStr::from_bytes(path.name());
        let result = match how {
            Move::Out => rfs::renameat_with(&parent, here, staging, name, RenameFlags::NOREPLACE),
            Move::In => rfs::renameat_with(staging, name, &parent, here, RenameFlags::NOREPLACE),
            Move::Exchange => rfs::renameat_with(staging, name, &parent, here, RenameFlags::EXCHANGE),
        };
        match result {
            // A file system without these flags (NFS, some FUSE): look, then rename.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_plainly(&parent, here, staging, name, how),
            other => Ok(other?),
        }
    }
}

/// How a file moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Out of the tree, to a name that is free.
    Out,
    /// Into the tree, where nothing is.
    In,
    /// Both change places.
    Exchange,
}

fn rename_plainly(parent: &OwnedFd, here: &OsStr, staging: &OwnedFd, name: &str, how: Move) -> io::Result<()> {
    match how {
        Move::Out => rfs::renameat(parent, here, staging, name)?,
        Move::In => match rfs::statat(parent, here, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rfs::renameat(staging, name, parent, here)?,
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) => return Err(error.into()),
        },
        Move::Exchange => {
            let aside = format!("{name}.x");
            rfs::renameat(parent, here, staging, &aside)?;
            if let Err(error) = rfs::renameat(staging, name, parent, here) {
                rfs::renameat(staging, &aside, parent, here)?;
                return Err(error.into());
            }
            rfs::renameat(staging, &aside, staging, name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn nothing_is_reached_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/d")).unwrap();
        fs::create_dir_all(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("out/secret"), "x").unwrap();
        std::os::unix::fs::symlink("../out", dir.path().join("tree/link")).unwrap();
        let tree = Worktree::open(&dir.path().join("tree")).unwrap();
        match tree.look(&path("link/secret")).unwrap() {
            Found::Absent { under: Some(under) } => assert_eq!(under, path("link")),
            _ => panic!("the symlink was followed"),
        }
        assert!(tree.make_parents(&path("link/a/b"), &mut Vec::new()).is_err());
        assert!(matches!(tree.look(&path("d")).unwrap(), Found::Directory));
        assert!(matches!(tree.look(&path("d/none")).unwrap(), Found::Absent { under: None }));
        assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 1);
    }

    #[test]
    fn files_change_places_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, staging) = (dir.path().join("tree"), dir.path().join("s"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(&staging).unwrap();
        fs::write(tree.join("f"), "old").unwrap();
        fs::write(staging.join("0"), "new").unwrap();
        let fd = rfs::open(&staging, DIRECTORY, Mode::empty()).unwrap();
        let worktree = Worktree::open(&tree).unwrap();
        assert!(worktree.rename(&path("f"), &fd, "0", Move::In).is_err());
        worktree.rename(&path("f"), &fd, "0", Move::Exchange).unwrap();
        assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "new");
        assert_eq!(fs::read_to_string(staging.join("0")).unwrap(), "old");
        worktree.rename(&path("f"), &fd, "1", Move::Out).unwrap();
        assert!(!tree.join("f").exists());
    }
}
