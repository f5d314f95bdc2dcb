//! Shared file mappings of a process: files that can change without any call.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// One shared mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Major and minor number of the file system's device, as in `/proc/self/mountinfo`.
    pub dev: (u32, u32),
    /// Inode.
    pub ino: u64,
    /// As the kernel names it to us; ` (deleted)` at its end when it has no name any more.
    pub path: PathBuf,
}

/// `struct procmap_query` of `linux/fs.h` (Linux 6.11).
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
const SHARED: u64 = 0x08;
const NEXT: u64 = 0x10;
const FILE: u64 = 0x20;

/// Returns the shared file mappings of a process; `PermissionDenied` when they are not ours to see.
pub fn shared(pid: u32) -> io::Result<Vec<Shared>> {
    let file = File::open(format!("/proc/{pid}/maps"))?;
    match queried(&file) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ENAMETOOLONG)) => {
            parsed(BufReader::new(file))
        }
        result => result,
    }
}

/// Asks for each mapping, which costs a call for each shared one and not a line for each.
fn queried(file: &File) -> io::Result<Vec<Shared>> {
    const { assert!(size_of::<Query>() == 104) };
    let mut found = Vec::new();
    let mut name = [0u8; 4096];
    let mut addr = 0;
    loop {
        let mut query = Query {
            size: size_of::<Query>() as u64,
            flags: SHARED | NEXT | FILE,
            addr,
            vma_name_size: name.len() as u32,
            vma_name_addr: name.as_mut_ptr() as u64,
            ..Query::default()
        };
        // SAFETY: the kernel reads and writes `query`, whose size it is told, and writes at most
        // `vma_name_size` bytes to `name`; both live here.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), PROCMAP_QUERY as _, &mut query) };
        if result < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // No further one; or the process has ended.
                Some(libc::ENOENT | libc::ESRCH) => return Ok(found),
                Some(libc::EINTR) => continue,
                _ => return Err(error),
            }
        }
        // The size says how long the name is, with its NUL.
        let length = (query.vma_name_size as usize).saturating_sub(1).min(name.len());
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&name[..length]));
        found.push(Shared { dev: (query.dev_major, query.dev_minor), ino: query.inode, path });
        if query.vma_end <= addr {
            return Ok(found);
        }
        addr = query.vma_end;
    }
}

/// Reads the text, where the kernel has no queries.
fn parsed(text: impl BufRead) -> io::Result<Vec<Shared>> {
    let mut found = Vec::new();
    for line in text.split(b'\n') {
        let line = match line {
            Ok(line) => line,
            // The process has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => break,
            Err(error) => return Err(error),
        };
        found.extend(parse(&line));
    }
    Ok(found)
}

/// Reads a line such as `7f…-7f… rw-s 00000000 fe:01 1234    /home/u/file`.
fn parse(line: &[u8]) -> Option<Shared> {
    let mut rest = line;
    let mut next = || {
        let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        rest = after.strip_prefix(b" ").unwrap_or_default();
        std::str::from_utf8(field).ok()
    };
    let (_, flags, _, dev, ino) = (next()?, next()?, next()?, next()?, next()?);
    if flags.as_bytes().get(3) != Some(&b's') {
        return None;
    }
    let (major, minor) = dev.split_once(':')?;
    let dev = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let ino = ino.parse().ok().filter(|ino| *ino != 0)?;
    let spaces = rest.iter().take_while(|b| **b == b' ').count();
    // Of all bytes, only a line break is written in another way.
    let mut path = Vec::new();
    let mut at = &rest[spaces..];
    while let Some((byte, after)) = at.split_first() {
        match at.strip_prefix(b"\\012") {
            Some(after) => {
                path.push(b'\n');
                at = after;
            }
            None => {
                path.push(*byte);
                at = after;
            }
        }
    }
    Some(Shared { dev, ino, path: PathBuf::from(std::ffi::OsStr::from_bytes(&path)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_shared_mapping_is_seen_both_ways_and_a_private_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, [0; 4096]).unwrap();
            File::options().read(true).write(true).open(path).unwrap()
        };
        let (shared_file, private_file) = (open("sha red\n"), open("private"));
        let map = |file: &File, flags| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0) }.unwrap()
        };
        let maps = [map(&shared_file, MapFlags::SHARED), map(&private_file, MapFlags::PRIVATE)];
        let pid = std::process::id();
        let text = parsed(BufReader::new(File::open(format!("/proc/{pid}/maps")).unwrap())).unwrap();
        let both = [shared(pid).unwrap(), text];
        for found in &both {
            let ours: Vec<_> = found.iter().filter(|map| map.path.starts_with(dir.path())).collect();
            assert_eq!(ours.len(), 1, "{found:?}");
            assert_eq!(ours[0].path, dir.path().join("sha red\n"));
            assert_eq!(ours[0].ino, shared_file.metadata().unwrap().ino());
        }
        for map in maps {
            // SAFETY: mapped above with this length, and used nowhere.
            unsafe { munmap(map, 4096) }.unwrap();
        }
        assert!(!shared(pid).unwrap().iter().any(|map| map.path.starts_with(dir.path())));
    }

    #[test]
    fn lines_of_other_kinds_are_none() {
        for line in ["", "x", "7f-7f rw-p 0 fe:01 12 /a", "7f-7f rw-s 0 00:01 0 ", "7f-7f rw-s 0 zz:01 3 /a"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        let found = parse(b"7f00-7f01 r--s 00000000 fe:0a 77                /a b (deleted)").unwrap();
        assert_eq!((found.dev, found.ino, found.path), ((254, 10), 77, PathBuf::from("/a b (deleted)")));
    }
}
