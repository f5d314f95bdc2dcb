//! The file server as a guest sees it: requests in, replies out, over real directories.

use super::node::{Owners, ROOT};
use super::server::{Limits, Server};
use super::wire::{DIRENT, ENTRY, Fields, OUT_HEADER, flag, opcode};
use super::{Cache, Export};
use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

struct Guest {
    server: Server,
    unique: u64,
}

/// What LOOKUP says: the number, and the attributes' mode, links and size.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Found {
    number: u64,
    seconds: u64,
    size: u64,
    mode: u32,
    nlink: u32,
    rdev: u32,
}

impl Guest {
    fn new(shares: &[(&str, &Path, Cache)]) -> Self {
        Self::limited(shares, Limits { nodes: 1000, files: 16 })
    }

    fn limited(shares: &[(&str, &Path, Cache)], limits: Limits) -> Self {
        let open = |dir: &Path| rustix::fs::openat(CWD, dir, OFlags::PATH, Mode::empty()).unwrap();
        let exports: Vec<_> = shares
            .iter()
            .map(|(name, dir, cache)| Export { name: (*name).to_owned(), root: open(dir), cache: *cache })
            .collect();
        let server = Server::new(&exports, Owners::default(), true, limits).unwrap();
        let mut guest = Self { server, unique: 0 };
        let can = flag::NO_OPEN_SUPPORT | flag::DO_READDIRPLUS;
        let init: Vec<u8> = [7u32, 38, 1 << 17, can].iter().flat_map(|word| word.to_le_bytes()).collect();
        let reply = guest.ask(opcode::INIT, 0, &init).unwrap();
        assert_eq!(reply.len(), 64);
        guest
    }

    fn raw(&mut self, bytes: &[u8], room: usize) -> Vec<u8> {
        let mut reply = Vec::new();
        self.server.answer(bytes, room, &mut reply);
        assert!(reply.len() <= room.max(OUT_HEADER), "{} of {room}", reply.len());
        reply
    }

    fn ask(&mut self, op: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        self.unique += 1;
        let reply = self.raw(&request(op, self.unique, node, body), 1 << 20);
        let mut fields = Fields(&reply);
        let (len, error, unique) = (fields.u32().unwrap(), fields.u32().unwrap() as i32, fields.u64().unwrap());
        assert_eq!((len as usize, unique), (reply.len(), self.unique));
        if error == 0 { Ok(reply[OUT_HEADER..].to_vec()) } else { Err(Errno::from_raw_os_error(-error)) }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<Found, Errno> {
        let reply = self.ask(opcode::LOOKUP, parent, &text(name))?;
        assert_eq!(reply.len(), ENTRY);
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
        Ok(Found {
            number: long(0),
            seconds: long(16),
            size: long(48),
            mode: word(100),
            nlink: word(104),
            rdev: word(116),
        })
    }

    /// Looks a path up, component by component.
    fn walk(&mut self, path: &str) -> Result<Found, Errno> {
        let mut at = None;
        for name in path.split('/') {
            let found = self.lookup(at.map_or(ROOT, |found: Found| found.number), name)?;
            if found.number == 0 {
                return Err(Errno::NOENT);
            }
            at = Some(found);
        }
        Ok(at.unwrap())
    }

    fn read(&mut self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.ask(opcode::READ, node, &range(offset, size))
    }

    fn list(&mut self, node: u64, plus: bool, size: u32) -> Vec<(String, u64, u64)> {
        let (op, skip) = if plus { (opcode::READDIRPLUS, ENTRY) } else { (opcode::READDIR, 0) };
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let reply = self.ask(op, node, &range(offset, size)).unwrap();
            if reply.is_empty() {
                return all;
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let told = if plus { Fields(rest).u64().unwrap() } else { 0 };
                let mut fields = Fields(&rest[skip..]);
                let (ino, next, len) = (fields.u64().unwrap(), fields.u64().unwrap(), fields.u32().unwrap() as usize);
                let name = String::from_utf8(rest[skip + DIRENT..][..len].to_vec()).unwrap();
                all.push((name, if plus { told } else { ino }, next));
                rest = &rest[skip + DIRENT + len.next_multiple_of(8)..];
                offset = next;
            }
        }
    }
}

fn request(op: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + body.len() as u32).to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn range(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body.extend([0; 20]);
    body
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("a"), "hello").unwrap();
    fs::hard_link(at("a"), at("d/b")).unwrap();
    fs::write(at("d/e/deep"), "deep").unwrap();
    symlink("/etc/passwd", at("out")).unwrap();
    symlink("/etc", at("etc")).unwrap();
    rustix::fs::mknodat(CWD, at("white"), rustix::fs::FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    dir
}

#[test]
fn what_is_there_is_seen_as_it_is() {
    let (one, two) = (tree(), tree());
    let mut guest = Guest::new(&[("one", one.path(), Cache::Always), ("two", two.path(), Cache::Auto)]);
    let names: Vec<String> = guest.list(ROOT, true, 4096).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, [".", "..", "one", "two"]);
    let a = guest.walk("one/a").unwrap();
    assert_eq!((a.size, a.nlink, a.mode & 0o170_000, a.seconds), (5, 2, 0o100_000, u64::from(u32::MAX)));
    assert_eq!(guest.walk("one/d/b").unwrap().number, a.number, "two names of one file");
    assert_ne!(guest.walk("two/a").unwrap().number, a.number);
    assert_eq!(guest.walk("two/a").unwrap().seconds, 1);
    let ino = fs::metadata(one.path().join("a")).unwrap().ino();
    assert_eq!(a.number & 0xffff_ffff, ino & 0xffff_ffff, "git keeps these bits in its index");
    let white = guest.walk("one/white").unwrap();
    assert_eq!((white.mode & 0o170_000, white.rdev), (0o020_000, 0));
    assert_eq!(guest.read(a.number, 1, 3).unwrap(), b"ell");
    assert_eq!(guest.read(a.number, 3, 1 << 30).unwrap(), b"lo");
    assert_eq!(guest.read(a.number, 1 << 40, 10).unwrap(), b"");
    assert_eq!(guest.read(a.number, u64::MAX, 10), Err(Errno::INVAL));
    let out = guest.walk("one/out").unwrap().number;
    assert_eq!(guest.ask(opcode::READLINK, out, &[]).unwrap(), b"/etc/passwd");
    // That a name is not there may be believed as long.
    let none = guest.lookup(a.number & !0xffff_ffff_ffff | fs::metadata(one.path()).unwrap().ino(), "none").unwrap();
    assert_eq!((none.number, none.seconds), (0, u64::from(u32::MAX)));
    assert_eq!(guest.lookup(ROOT, "none"), Err(Errno::NOENT));
}

#[test]
fn nothing_is_written() {
    let dir = tree();
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Always)]);
    let a = guest.walk("x/a").unwrap().number;
    // SETATTR to TMPFILE: what changes something, by any version of the protocol.
    for op in [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51] {
        for body in [&[][..], &[0; 200], &text("a")] {
            assert_eq!(guest.ask(op, a, body), Err(Errno::ROFS), "{op}");
        }
    }
    assert_eq!(guest.ask(opcode::OPENDIR, a, &[0; 8]).unwrap(), [0; 16], "no handle, nothing to keep");
    for op in [14, 20, 25, 30, 31, 32, 34, 36, 37, 39, 40, 48, 49, 50, 52, 53, 4096, u32::MAX] {
        assert_eq!(guest.ask(op, a, &[0; 64]), Err(Errno::NOSYS), "{op}");
    }
}

#[test]
fn nothing_leads_out() {
    let dir = tree();
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Auto)]);
    let top = guest.walk("x").unwrap().number;
    for name in ["..", ".", "", "../etc", "d/../../x", "/etc/passwd", "d/b"] {
        assert_eq!(guest.lookup(top, name), Err(Errno::INVAL), "{name}");
    }
    assert_eq!(guest.ask(opcode::LOOKUP, top, b"no end"), Err(Errno::INVAL));
    // A symlink is an end, never a way.
    let etc = guest.walk("x/etc").unwrap();
    assert_eq!(etc.mode & 0o170_000, 0o120_000);
    assert_eq!(guest.lookup(etc.number, "passwd"), Err(Errno::NOTDIR));
    assert_eq!(guest.read(etc.number, 0, 10), Err(Errno::INVAL));
    // A number that was never told is none.
    for number in [0, 2, top + 1, u64::MAX] {
        assert_eq!(guest.ask(opcode::GETATTR, number, &[0; 16]), Err(Errno::STALE), "{number}");
    }
}

#[test]
fn what_is_replaced_is_not_followed() {
    let dir = tree();
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Auto)]);
    let (d, deep, a) = (guest.walk("x/d").unwrap(), guest.walk("x/d/e/deep").unwrap(), guest.walk("x/a").unwrap());
    // Not open yet: their places are taken by something else.
    fs::rename(dir.path().join("d"), dir.path().join("moved")).unwrap();
    symlink("/etc", dir.path().join("d")).unwrap();
    let mut guest_with_no_room = Guest::new(&[("x", dir.path(), Cache::Auto)]);
    assert_eq!(guest_with_no_room.lookup(d.number, "passwd"), Err(Errno::STALE), "never told to this one");
    assert_eq!(guest.ask(opcode::GETATTR, d.number, &[0; 16]), Err(Errno::STALE));
    let _ = guest.read(deep.number, 0, 4).map(|bytes| assert_eq!(bytes, b"deep", "open before it was moved"));
    fs::remove_file(dir.path().join("a")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("a"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    // Neither waits for a writer of the FIFO.
    assert_eq!(guest.read(a.number, 0, 4), Err(Errno::STALE));
    let fifo = guest.walk("x/a").unwrap();
    assert_ne!(fifo.number, a.number);
    assert_eq!(guest.read(fifo.number, 0, 4), Err(Errno::INVAL));
    assert_eq!(guest.walk("x/moved/e/deep").unwrap().number, deep.number, "the same file by its new way");
    assert_eq!(guest.read(deep.number, 0, 4).unwrap(), b"deep");
}

#[test]
fn a_directory_is_listed_once_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let expected: BTreeSet<String> = (0..500).map(|n| format!("file-{n}")).collect();
    for name in &expected {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Always)]);
    let top = guest.walk("x").unwrap().number;
    for (plus, size) in [(false, 4096), (true, 4096), (false, 40), (true, 200), (true, 1 << 20)] {
        let listed = guest.list(top, plus, size);
        let names: Vec<String> = listed.iter().map(|(name, ..)| name.clone()).filter(|n| n.len() > 2).collect();
        assert_eq!(names.len(), 500, "{plus} {size}");
        assert_eq!(names.iter().cloned().collect::<BTreeSet<_>>(), expected);
        if plus {
            let (name, number, _) = listed.iter().find(|(name, ..)| name == "file-77").unwrap();
            assert_eq!(guest.read(*number, 0, 100).unwrap(), name.as_bytes());
        }
        // From the middle on, as after the list was put away.
        let (_, _, offset) = &listed[100];
        let reply = guest.ask(opcode::READDIR, top, &range(*offset, 4096)).unwrap();
        let mut fields = Fields(&reply[16..]);
        let len = fields.u32().unwrap() as usize;
        assert_eq!(reply[DIRENT..][..len], *listed[101].0.as_bytes());
    }
}

/// A walk as the guest's kernel makes it: what a listing tells counts as a lookup, but for the dots.
fn told(guest: &mut Guest, node: u64, all: &mut Vec<u64>) -> usize {
    let listed = guest.list(node, true, 4096);
    let numbers: Vec<u64> = listed.iter().map(|(_, number, _)| *number).filter(|number| *number != 0).collect();
    let mut count = numbers.len();
    all.extend(&numbers);
    for number in numbers {
        let attr = guest.ask(opcode::GETATTR, number, &[0; 16]).unwrap();
        let mode = u32::from_le_bytes(attr[16 + 60..16 + 64].try_into().unwrap());
        if mode & 0o170_000 == 0o040_000 {
            count += told(guest, number, all);
        }
    }
    count
}

#[test]
fn a_tree_is_the_same_after_the_guest_has_forgotten_it() {
    let dir = tempfile::tempdir().unwrap();
    for top in 0..333 {
        let below = dir.path().join(format!("directory-{top}"));
        fs::create_dir(&below).unwrap();
        for file in 0..60 {
            fs::write(below.join(format!("file-{file}")), "").unwrap();
        }
    }
    let limits = Limits { nodes: 1 << 20, files: 100 };
    let mut guest = Guest::limited(&[("x", dir.path(), Cache::Always)], limits);
    let mut before = Vec::new();
    for round in 0..4 {
        let top = guest.walk("x").unwrap().number;
        let mut all = Vec::new();
        // What was told the last time is forgotten late: while it is told again.
        if round % 2 == 1 {
            for number in before.iter().rev() {
                assert!(guest.raw(&request(opcode::FORGET, 1, *number, &1u64.to_le_bytes()), 100).is_empty());
            }
        }
        assert_eq!(told(&mut guest, top, &mut all), 333 * 61, "{round}");
        if round % 2 == 0 {
            before = all;
        } else {
            for number in all.iter().chain([&top]) {
                assert!(guest.raw(&request(opcode::FORGET, 1, *number, &1u64.to_le_bytes()), 100).is_empty());
            }
        }
    }
}

#[test]
fn what_is_forgotten_is_let_go_and_what_leads_to_a_file_is_kept() {
    let dir = tree();
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Always)]);
    let deep = guest.walk("x/d/e/deep").unwrap().number;
    let (d, e) = (guest.walk("x/d").unwrap().number, guest.walk("x/d/e").unwrap().number);
    // More than it was told: as good as all.
    let forget = |guest: &mut Guest, number: u64, count: u64| {
        assert!(guest.raw(&request(opcode::FORGET, 1, number, &count.to_le_bytes()), 100).is_empty());
    };
    forget(&mut guest, d, 1 << 60);
    forget(&mut guest, e, 3);
    assert_eq!(guest.read(deep, 0, 4).unwrap(), b"deep");
    forget(&mut guest, deep, 1);
    for number in [deep, d, e] {
        assert_eq!(guest.ask(opcode::GETATTR, number, &[0; 16]), Err(Errno::STALE));
    }
    let a = guest.walk("x/a").unwrap().number;
    let mut batch = 1000u32.to_le_bytes().to_vec();
    batch.extend([0; 4]);
    for number in [a, 7, u64::MAX, ROOT] {
        batch.extend(number.to_le_bytes());
        batch.extend(1u64.to_le_bytes());
    }
    assert!(guest.raw(&request(opcode::BATCH_FORGET, 1, 0, &batch), 100).is_empty());
    assert_eq!(guest.ask(opcode::GETATTR, a, &[0; 16]), Err(Errno::STALE));
    assert!(guest.walk("x/a").is_ok());
}

#[test]
fn inodes_are_no_more_than_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..50 {
        fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    let mut guest = Guest::limited(&[("x", dir.path(), Cache::Always)], Limits { nodes: 20, files: 8 });
    let top = guest.walk("x").unwrap().number;
    let found: Vec<_> = (0..50).map(|n| guest.lookup(top, &n.to_string())).collect();
    assert_eq!(found.iter().filter(|found| found.is_ok()).count(), 19);
    assert!(found[30..].iter().all(|found| *found == Err(Errno::NOMEM)));
    // Listing goes on: those that are too many come without a number.
    assert_eq!(guest.list(top, true, 4096).len(), 52);
}

#[test]
fn attributes_of_the_tree_are_shown_and_an_overlays_are_not() {
    let dir = tree();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(dir.path().join("a"), name, value, rustix::fs::XattrFlags::empty())
    };
    if set("user.color", b"blue").is_err() {
        println!("SKIP: '{}' has no extended attributes", dir.path().display());
        return;
    }
    set("user.overlay.opaque", b"y").unwrap();
    let mut guest = Guest::new(&[("x", dir.path(), Cache::Always)]);
    let a = guest.walk("x/a").unwrap().number;
    let get = |guest: &mut Guest, name: &str, size: u32| {
        let body = [&size.to_le_bytes()[..], &[0; 4], &text(name)].concat();
        guest.ask(opcode::GETXATTR, a, &body)
    };
    assert_eq!(get(&mut guest, "user.color", 0).unwrap(), [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(get(&mut guest, "user.color", 64).unwrap(), b"blue");
    assert_eq!(get(&mut guest, "user.color", u32::MAX).unwrap(), b"blue");
    assert_eq!(get(&mut guest, "user.color", 2), Err(Errno::RANGE));
    for name in ["user.overlay.opaque", "trusted.overlay.opaque", "security.selinux", "none"] {
        assert_eq!(get(&mut guest, name, 64), Err(Errno::NODATA), "{name}");
    }
    let list = guest.ask(opcode::LISTXATTR, a, &[255, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(list, b"user.color\0");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever a guest sends, it gets a reply of the right form, and the tree is what it was.
    #[test]
    fn any_requests_are_survived(
        requests in proptest::collection::vec(
            (0u32..54, 0usize..6, proptest::collection::vec(any::<u8>(), 0..80), 0usize..6, 0usize..5000), 1..60),
    ) {
        let dir = tree();
        let mut guest = Guest::limited(&[("x", dir.path(), Cache::Auto)], Limits { nodes: 8, files: 8 });
        let mut numbers = vec![0, ROOT, u64::MAX];
        for path in ["x", "x/a", "x/d", "x/out"] {
            numbers.extend(guest.walk(path).ok().map(|found| found.number));
        }
        let names = ["a", "d", "..", "etc", "white", "fifo"];
        for (op, node, body, name, room) in requests {
            let node = numbers[node % numbers.len()];
            let named = [&body[..body.len().min(8)], &text(names[name])].concat();
            for body in [&body, &named, &text(names[name])] {
                let reply = guest.raw(&request(op, 9, node, body), room);
                if !reply.is_empty() {
                    prop_assert_eq!(u32::from_le_bytes(reply[..4].try_into().unwrap()) as usize, reply.len());
                }
            }
        }
        prop_assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "hello");
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
