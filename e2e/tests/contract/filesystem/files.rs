//! Rows about what is in a file and what is known of it.

use super::probe::{Said, said};
use rustix::fs::{
    CWD, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags, Timespec, Timestamps, XattrFlags, inotify,
};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

fn writable(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

pub fn a_reader_sees_a_later_write(at: &Path) -> Said {
    let mut reader = File::open(at.join("f"))?;
    writable(&at.join("f"))?.write_all(b"THAT")?;
    let mut text = String::new();
    reader.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Runs a Python program: it maps memory and packs structures, which safe Rust does not.
fn python(at: &Path, program: &str) -> Said {
    let output = Command::new("/usr/bin/python3").args(["-c", program]).current_dir(at).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).trim().lines().last().unwrap_or_default().to_owned())
}

pub fn a_mapping_sees_a_later_write(at: &Path) -> Said {
    python(
        at,
        "import mmap
r = open('f')
m = mmap.mmap(r.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
m[0:4]
f = open('f', 'r+'); f.write('THAT'); f.flush()
print(m[0:4])",
    )
}

pub fn a_writable_mapping(at: &Path) -> Said {
    python(
        at,
        "import mmap
f = open('f', 'r+b')
m = mmap.mmap(f.fileno(), 0)
m[0:4] = b'THAT'
print(open('f').read().strip()); m.flush()",
    )
}

pub fn appends_and_truncation(at: &Path) -> Said {
    File::options().append(true).open(at.join("f"))?.write_all(b"more")?;
    let grown = fs::metadata(at.join("f"))?.len();
    File::options().write(true).open(at.join("g"))?.set_len(4)?;
    let file = writable(&at.join("dir/a"))?;
    file.set_len(2)?;
    file.set_len(5)?;
    file.write_all_at(b"end", 8)?;
    let kept = File::options().write(true).truncate(true).open(at.join("dir/b"))?.metadata()?.len();
    Ok(format!("{grown} {:?} {:?} {kept}", fs::read_to_string(at.join("g"))?, fs::read(at.join("dir/a"))?))
}

pub fn flock_excludes(at: &Path) -> Said {
    let (one, two) = (File::open(at.join("f"))?, File::open(at.join("f"))?);
    let lock = |file: &File, how| said(rustix::fs::flock(file, how));
    let first = lock(&one, FlockOperation::NonBlockingLockExclusive);
    let second = lock(&two, FlockOperation::NonBlockingLockShared);
    lock(&one, FlockOperation::Unlock);
    Ok(format!("{first}, {second}, {}", lock(&two, FlockOperation::NonBlockingLockExclusive)))
}

pub fn flock_lasts_over_the_first_write(at: &Path) -> Said {
    let one = File::open(at.join("f"))?;
    rustix::fs::flock(&one, FlockOperation::NonBlockingLockExclusive)?;
    let mut two = writable(&at.join("f"))?;
    two.write_all(b"first")?;
    let other = said(rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive));
    let third = said(rustix::fs::flock(&File::open(at.join("f"))?, FlockOperation::NonBlockingLockExclusive));
    Ok(format!("{other}, {third}"))
}

pub fn record_locks(at: &Path) -> Said {
    python(
        at,
        "import fcntl, os
f = open('f', 'r+')
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 0)
if os.fork() == 0:
    g = open('f', 'r+'); said = []
    for start in (0, 8):
        try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, start); said.append('ok')
        except OSError as e: said.append(e.strerror)
    print(said, flush=True); os._exit(0)
os.wait()",
    )
}

pub fn open_file_description_locks(at: &Path) -> Said {
    python(
        at,
        "import fcntl, os, struct
F_OFD_SETLK = 37
whole = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0)
f, g = open('f', 'r+'), open('f', 'r+')
fcntl.fcntl(f, F_OFD_SETLK, whole)
try: fcntl.fcntl(g, F_OFD_SETLK, whole); print('both')
except OSError as e: print(e.strerror)",
    )
}

fn events(watch: &rustix::fd::OwnedFd) -> io::Result<String> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut all = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                all.push(format!("{:x}:{name}", event.events().bits()));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(all.join(" ")),
            Err(error) => return Err(error.into()),
        }
    }
}

fn watch(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK)?;
    let kinds = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&watch, path, kinds)?;
    Ok(watch)
}

pub fn inotify_tells(at: &Path) -> Said {
    let watch = watch(&at.join("dir"))?;
    File::options().append(true).open(at.join("dir/a"))?.write_all(b"x")?;
    fs::set_permissions(at.join("dir/b"), fs::Permissions::from_mode(0o600))?;
    fs::write(at.join("dir/new"), "")?;
    fs::rename(at.join("dir/new"), at.join("dir/newer"))?;
    fs::remove_file(at.join("dir/b"))?;
    fs::rename(at.join("f"), at.join("dir/f"))?;
    fs::rename(at.join("dir/a"), at.join("a"))?;
    fs::create_dir(at.join("dir/d"))?;
    events(&watch)
}

pub fn inotify_of_a_file(at: &Path) -> Said {
    let watch = watch(&at.join("f"))?;
    writable(&at.join("f"))?.write_all(b"THAT")?;
    File::options().append(true).open(at.join("f"))?.write_all(b"more")?;
    events(&watch)
}

pub fn inode_over_first_write(at: &Path) -> Said {
    let open = File::open(at.join("f"))?;
    let before = open.metadata()?;
    writable(&at.join("f"))?.write_all(b"THAT")?;
    let after = fs::metadata(at.join("f"))?;
    let held = open.metadata()?;
    Ok(format!("{} {} {}", before.ino() == after.ino(), before.dev() == after.dev(), held.ino() == after.ino()))
}

pub fn one_device(at: &Path) -> Said {
    let dev = |name: &str| fs::symlink_metadata(at.join(name)).map(|meta| meta.dev());
    let top = fs::metadata(at)?.dev();
    fs::write(at.join("made-now"), "")?;
    writable(&at.join("g"))?.write_all(b"THAT")?;
    let all = ["f", "g", "dir", "dir/a", "link", "made-now"].map(|name| dev(name).is_ok_and(|dev| dev == top));
    Ok(format!("{all:?}"))
}

pub fn anonymous_files(at: &Path) -> Said {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = rustix::fs::open(at.join("dir"), flags, Mode::RUSR | Mode::WUSR)?;
    rustix::io::write(&file, b"no name")?;
    let links = rustix::fs::fstat(&file)?.st_nlink;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, &own, CWD, at.join("dir/named"), rustix::fs::AtFlags::SYMLINK_FOLLOW)?;
    let again = said(rustix::fs::linkat(CWD, &own, CWD, at.join("f"), rustix::fs::AtFlags::SYMLINK_FOLLOW));
    Ok(format!("{links} {} {again}", fs::read_to_string(at.join("dir/named"))?))
}

pub fn sockets(at: &Path) -> Said {
    // By a relative path: the whole one may be longer than a socket's address.
    let here = rustix::fs::open(at.join("dir"), OFlags::DIRECTORY, Mode::empty())?;
    let name = format!("/proc/self/fd/{}/s", here.as_raw_fd());
    let listener = UnixListener::bind(&name)?;
    let mut one = UnixStream::connect(&name)?;
    let (mut two, _) = listener.accept()?;
    one.write_all(b"through")?;
    drop(one);
    let mut text = String::new();
    two.read_to_string(&mut text)?;
    fs::rename(at.join("dir/s"), at.join("s"))?;
    let mode = fs::metadata(at.join("s"))?.mode() >> 12;
    Ok(format!("{text} {mode:o} {}", said(UnixListener::bind(format!("/proc/self/fd/{}/a", here.as_raw_fd())))))
}

pub fn pipes(at: &Path) -> Said {
    let path = at.join("dir/pipe");
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let nobody = said(rustix::fs::open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()));
    let text = std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read_to_string(&path));
        fs::write(&path, "through").and_then(|()| reader.join().expect("it does not panic"))
    })?;
    Ok(format!("{nobody}, {text}, {}", said(fs::remove_file(&path))))
}

fn data_and_holes(path: &Path) -> Said {
    let file = File::open(path)?;
    let data = rustix::fs::seek(&file, SeekFrom::Data(0))?;
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
    let end = said(rustix::fs::seek(&file, SeekFrom::Data(hole)));
    let meta = file.metadata()?;
    Ok(format!("{data}..{hole}, {end}, {} {}", meta.len(), meta.blocks() < 64))
}

pub fn holes(at: &Path) -> Said {
    data_and_holes(&at.join("sparse"))
}

pub fn holes_after_a_write(at: &Path) -> Said {
    writable(&at.join("sparse"))?.write_all_at(b"y", (4 << 20) + 10)?;
    data_and_holes(&at.join("sparse"))
}

pub fn fallocate(at: &Path) -> Said {
    let file = writable(&at.join("f"))?;
    let before = file.metadata()?.len();
    let keep = said(rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20));
    let kept = file.metadata()?.len() == before && file.metadata()?.blocks() >= 2048;
    let grow = said(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 16));
    Ok(format!("{keep} {kept} {grow} {}", file.metadata()?.len()))
}

pub fn punch_and_zero(at: &Path) -> Said {
    let file = writable(&at.join("big"))?;
    let call = |flags, from, len| said(rustix::fs::fallocate(&file, flags, from, len));
    let punched = call(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 64 << 10);
    let zeroed = call(FallocateFlags::ZERO_RANGE, 64 << 10, 64 << 10);
    let collapsed = call(FallocateFlags::COLLAPSE_RANGE, 128 << 10, 64 << 10);
    let mut bytes = Vec::new();
    (&file).rewind()?;
    (&file).read_to_end(&mut bytes)?;
    let dots = bytes.iter().filter(|byte| **byte == b'.').count();
    Ok(format!("{punched}, {zeroed}, {collapsed}, {} {dots}", bytes.len()))
}

pub fn copy_range(at: &Path) -> Said {
    let (from, to) = (File::open(at.join("big"))?, writable(&at.join("f"))?);
    let (mut start, mut end) = (10, 0);
    let copied = rustix::fs::copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 1000);
    let clone = said(rustix::fs::ioctl_ficlone(&to, &from));
    Ok(format!("{copied:?} {} {clone}", to.metadata()?.len()))
}

pub fn times(at: &Path) -> Said {
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time(1, 1), last_modification: time(4_000_000_000, 123_456_789) };
    for name in ["f", "dir", "link"] {
        rustix::fs::utimensat(CWD, at.join(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let told = ["f", "dir", "link"].map(|name| {
        let meta = fs::symlink_metadata(at.join(name));
        meta.map(|meta| (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec())).unwrap_or_default()
    });
    Ok(format!("{told:?}"))
}

pub fn change_time_moves(at: &Path) -> Said {
    let ctime = || fs::metadata(at.join("f")).map(|meta| (meta.ctime(), meta.ctime_nsec()));
    let before = ctime()?;
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    pause();
    fs::set_permissions(at.join("f"), fs::Permissions::from_mode(0o600))?;
    let after_mode = ctime()?;
    pause();
    fs::hard_link(at.join("f"), at.join("f2"))?;
    let after_link = ctime()?;
    pause();
    fs::read(at.join("f"))?;
    Ok(format!("{} {} {}", after_mode > before, after_link > after_mode, ctime()? == after_link))
}

pub fn birth_time(at: &Path) -> Said {
    let asked = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let mut all = Vec::new();
    writable(&at.join("g"))?.write_all(b"THAT")?;
    for name in ["f", "g", "dir"] {
        let stat = rustix::fs::statx(CWD, at.join(name), rustix::fs::AtFlags::empty(), asked)?;
        all.push(StatxFlags::from_bits_retain(stat.stx_mask).contains(asked) && stat.stx_btime.tv_sec > 0);
    }
    Ok(format!("{all:?}"))
}

pub fn user_attributes(at: &Path) -> Said {
    let mut said_all = Vec::new();
    for name in ["f", "dir"] {
        let path = at.join(name);
        let set = |name: &str, flags| said(rustix::fs::setxattr(&path, name, b"value", flags));
        said_all.push(set("user.one", XattrFlags::CREATE));
        said_all.push(set("user.one", XattrFlags::CREATE));
        said_all.push(set("user.two", XattrFlags::REPLACE));
        said_all.push(set("user.overlay.opaque", XattrFlags::empty()));
        said_all.push(set("trusted.one", XattrFlags::empty()));
        let mut buffer = [0u8; 256];
        let len = rustix::fs::listxattr(&path, &mut buffer[..])?;
        let mut names: Vec<_> = buffer[..len].split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        names.sort();
        said_all.push(names.join(" "));
        said_all.push(said(rustix::fs::removexattr(&path, "user.one")));
        said_all.push(said(rustix::fs::getxattr(&path, "user.one", &mut buffer[..])));
    }
    said_all.push(super::probe::list(&at.join("dir"))?);
    Ok(said_all.join(", "))
}

pub fn access_control_lists(at: &Path) -> Said {
    let me = rustix::process::geteuid().as_raw();
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1u16, 7u16, u32::MAX), (2, 4, me), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let set = |path: &str, name: &str| said(rustix::fs::setxattr(at.join(path), name, &list, XattrFlags::empty()));
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let both = format!("{} {} {}", set("f", access), set("dir", default), set("f", default));
    fs::write(at.join("dir/heir"), "x")?;
    let mut value = [0u8; 256];
    let len = rustix::fs::getxattr(at.join("dir/heir"), access, &mut value[..])?;
    fs::set_permissions(at.join("f"), fs::Permissions::from_mode(0o700))?;
    let mode = fs::metadata(at.join("f"))?.mode();
    Ok(format!("{both} {:?} {mode:o} {:o}", &value[4..len], fs::metadata(at.join("dir/heir"))?.mode()))
}

pub fn modes(at: &Path) -> Said {
    let set = |name: &str, mode| said(fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)));
    let denied = {
        set("dir", 0o555);
        let made = said(fs::write(at.join("dir/new"), ""));
        let removed = said(fs::remove_file(at.join("dir/a")));
        set("dir", 0o000);
        let listed = said(fs::read_dir(at.join("dir")));
        let passed = said(fs::read(at.join("dir/a")));
        set("dir", 0o755);
        set("f", 0o000);
        format!("{made}, {removed}, {listed}, {passed}, {}", said(File::open(at.join("f"))))
    };
    set("g", 0o400);
    let read_only = said(writable(&at.join("g")));
    set("f", 0o640);
    Ok(format!("{denied}; {read_only}; {:o}", fs::metadata(at.join("f"))?.mode()))
}

pub fn set_id_bits(at: &Path) -> Said {
    let mode = |name: &str| fs::metadata(at.join(name)).map(|meta| meta.mode());
    fs::set_permissions(at.join("f"), fs::Permissions::from_mode(0o6755))?;
    let set = mode("f")?;
    writable(&at.join("f"))?.write_all(b"THAT")?;
    let written = mode("f")?;
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o3755))?;
    fs::create_dir(at.join("dir/heir"))?;
    Ok(format!("{set:o} {written:o} {:o} {:o}", mode("dir")?, mode("dir/heir")?))
}

pub fn owners(at: &Path) -> Said {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let own = |uid, gid| said(rustix::fs::chown(at.join("f"), uid, gid));
    let meta = fs::metadata(at.join("f"))?;
    let mine = (meta.uid(), meta.gid()) == (uid.as_raw(), gid.as_raw());
    let other = rustix::fs::Uid::from_raw(uid.as_raw() ^ 1);
    Ok(format!("{mine}, {}, {}, {}", own(Some(uid), None), own(None, Some(gid)), said_denied(own(Some(other), None))))
}

/// A number that exists nowhere inside is refused as wrong, outside as not permitted.
fn said_denied(text: String) -> String {
    if text.contains("os error 1)") || text.contains("os error 22)") { "refused".to_owned() } else { text }
}

pub fn running_programs_are_not_written(at: &Path) -> Said {
    let mut child = Command::new(at.join("program")).arg("30").spawn()?;
    let busy = said(writable(&at.join("program")));
    let replaced =
        fs::write(at.join("program.new"), "").and_then(|()| fs::rename(at.join("program.new"), at.join("program")));
    let _ = child.kill();
    child.wait()?;
    Ok(format!("{busy}, {}", said(replaced)))
}

pub fn syncing(at: &Path) -> Said {
    let dir = File::open(at.join("dir"))?;
    let file = writable(&at.join("dir/a"))?;
    Ok([said(file.sync_all()), said(file.sync_data()), said(dir.sync_all()), said(rustix::fs::syncfs(&dir))].join(", "))
}

pub fn direct_io(at: &Path) -> Said {
    let opened = rustix::fs::open(at.join("big"), OFlags::RDONLY | OFlags::DIRECT, Mode::empty());
    Ok(said(opened))
}

pub fn pathconf_like_limits(at: &Path) -> Said {
    let stat = rustix::fs::statvfs(at)?;
    Ok(format!("{} {} {}", stat.f_namemax, stat.f_bsize, stat.f_flag.bits() & 1))
}
