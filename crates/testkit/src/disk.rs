//! A disk that remembers: one file, served over the kernel's own FUSE protocol, on which a loop device stands.
//!
//! ```text
//! file system (ext4, XFS) ─ loop device ─ the file `disk` ─ /dev/fuse ─ a thread of the test ─ a sparse image
//!                                                                        └ records writes and flushes, or fails
//! ```
//!
//! What a power cut leaves is then a value: all writes up to the last flush before the cut, and of the later ones
//! any. The protocol is that of `include/uapi/linux/fuse.h`, version 7.31; the root of the mount is a regular
//! file, so that nothing has to be looked up.

use crate::dice::Dice;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The largest write that the kernel may send.
const MAX_WRITE: usize = 128 * 1024;
/// What a disk writes whole, or not at all.
const BLOCK: usize = 4096;

/// Something that reached the disk.
enum Event {
    Write { at: u64, bytes: Vec<u8> },
    Flush,
}

struct Shared {
    image: File,
    size: u64,
    events: Mutex<Vec<Event>>,
    /// Writes until they fail with `errno`; negative is never.
    left: AtomicI64,
    errno: AtomicI64,
}

/// A file system on a disk that remembers its writes. Dropping it unmounts everything.
pub struct Disk {
    shared: Arc<Shared>,
    dir: PathBuf,
    device: String,
    cuts: AtomicU64,
    xfs: bool,
}

impl Disk {
    /// Makes a disk of `size` bytes below `dir`, formats it with `mkfs` (a program and its arguments) and mounts
    /// it at `dir/mounted`. Needs root. What it says when the machine cannot do it.
    ///
    /// # Errors
    /// The step that failed, as text.
    pub fn new(dir: &Path, size: u64, mkfs: &[&str]) -> Result<Self, String> {
        let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        fs::create_dir_all(dir.join("mounted")).map_err(io("mkdir"))?;
        let image = dir.join("image");
        File::create(&image).and_then(|file| file.set_len(size)).map_err(io("image"))?;
        let image_text = image.to_string_lossy().into_owned();
        run(mkfs[0], &[&mkfs[1..], &[&image_text]].concat())?;
        run("cp", &["--sparse=always", &image_text, &dir.join("base").to_string_lossy()])?;
        let image = OpenOptions::new().read(true).write(true).open(&image).map_err(io("image"))?;
        let file = dir.join("disk");
        File::create(&file).map_err(io("disk"))?;
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(io("/dev/fuse"))?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
        let data = std::ffi::CString::new(options).expect("no NUL");
        rustix::mount::mount("disk", &file, "fuse", rustix::mount::MountFlags::empty(), data.as_c_str())
            .map_err(|errno| format!("mount of fuse: {errno}"))?;
        let (left, errno) = (AtomicI64::new(-1), AtomicI64::new(0));
        let shared = Arc::new(Shared { image, size, events: Mutex::default(), left, errno });
        let server = shared.clone();
        std::thread::spawn(move || server.serve(fuse));
        let mut disk = Self {
            shared,
            dir: dir.to_owned(),
            device: String::new(),
            cuts: AtomicU64::new(0),
            xfs: mkfs[0].ends_with("xfs"),
        };
        disk.device = run("losetup", &["-f", "--show", &file.to_string_lossy()])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where the file system is.
    pub fn root(&self) -> PathBuf {
        self.dir.join("mounted")
    }

    /// Mounts it (again).
    ///
    /// # Errors
    /// What `mount` said.
    pub fn mount(&self) -> Result<(), String> {
        run("mount", &[&self.device, &self.root().to_string_lossy()]).map(drop)
    }

    /// Takes the file system away, when nobody uses it any more.
    ///
    /// # Errors
    /// What `umount` said last, after 20 s.
    pub fn unmount(&self) -> Result<(), String> {
        unmount(&self.root())
    }

    /// How much has reached the disk so far: a moment.
    pub fn now(&self) -> usize {
        self.shared.events.lock().expect("the server does not panic").len()
    }

    /// Lets `writes` more succeed; from then on each write and flush fails with this error number.
    pub fn fail_after(&self, writes: u32, errno: i32) {
        self.shared.errno.store(errno.into(), Ordering::SeqCst);
        self.shared.left.store(writes.into(), Ordering::SeqCst);
    }

    /// Makes it a good disk again.
    pub fn mend(&self) {
        self.shared.left.store(-1, Ordering::SeqCst);
    }

    /// Makes the image that a power cut at this moment leaves, and returns its path: up to the last flush all is
    /// there, of what came later the dice decide, block by block.
    ///
    /// # Errors
    /// What could not be written.
    pub fn cut(&self, moment: usize, dice: &mut Dice) -> Result<PathBuf, String> {
        // A new file each time: `mount` uses a loop device again that still holds the old one.
        let number = self.cuts.fetch_add(1, Ordering::Relaxed);
        let _ = fs::remove_file(self.dir.join(format!("cut{}", number.wrapping_sub(1))));
        let path = self.dir.join(format!("cut{number}"));
        run("cp", &["--sparse=always", &self.dir.join("base").to_string_lossy(), &path.to_string_lossy()])?;
        let image = OpenOptions::new().write(true).open(&path).map_err(|error| error.to_string())?;
        let events = self.shared.events.lock().expect("the server does not panic");
        let events = &events[..moment];
        let sure = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        // Nothing, everything, or a part of what the disk had not been told to keep.
        let chance = [0, 1, 2, 2, 3, 4][dice.roll(6) as usize];
        for (n, event) in events.iter().enumerate() {
            let Event::Write { at, bytes } = event else { continue };
            for (block, bytes) in bytes.chunks(BLOCK).enumerate() {
                if n < sure || dice.roll(4) < chance {
                    let at = at + (block * BLOCK) as u64;
                    image.write_all_at(bytes, at).map_err(|error| error.to_string())?;
                }
            }
        }
        Ok(path)
    }

    /// Mounts an image in the place of the disk, which must be unmounted.
    ///
    /// # Errors
    /// What `mount` said.
    pub fn mount_image(&self, image: &Path) -> Result<Image, String> {
        // Two XFS with one id cannot be mounted at once, and one may be unmounted yet by a namespace that ends.
        let options = if self.xfs { "loop,nouuid" } else { "loop" };
        run("mount", &["-o", options, &image.to_string_lossy(), &self.root().to_string_lossy()])?;
        Ok(Image(self.root()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.mend();
        let _ = Command::new("umount").arg("-l").arg(self.root()).output();
        if !self.device.is_empty() {
            let _ = Command::new("losetup").args(["-d", &self.device]).output();
        }
        let _ = Command::new("umount").arg("-l").arg(self.dir.join("disk")).output();
    }
}

/// A mounted image.
pub struct Image(PathBuf);

impl Image {
    /// Unmounts it.
    ///
    /// # Errors
    /// What `umount` said last, after 20 s.
    pub fn unmount(self) -> Result<(), String> {
        unmount(&self.0)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

fn unmount(at: &Path) -> Result<(), String> {
    let mut said = Ok(());
    for _ in 0..200 {
        match run("umount", &[&at.to_string_lossy()]) {
            Ok(_) => return Ok(()),
            Err(why) => said = Err(why),
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    said
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let out = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let said = if out.status.success() { &out.stdout } else { &out.stderr };
    let said = String::from_utf8_lossy(said).trim().to_owned();
    if out.status.success() { Ok(said) } else { Err(format!("{program} {args:?}: {said}")) }
}

impl Shared {
    /// Answers until the mount is gone.
    fn serve(&self, mut fuse: File) {
        let mut request = vec![0; MAX_WRITE + 8192];
        loop {
            let length = match fuse.read(&mut request) {
                Ok(length) if length >= 40 => length,
                Err(error) if [libc_errno::EINTR, libc_errno::EAGAIN].contains(&error.raw_os_error().unwrap_or(0)) => {
                    continue;
                }
                _ => return,
            };
            let request = &request[..length];
            let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
            let Some(answer) = self.answer(opcode, &request[40..]) else { continue };
            let (errno, body) = match answer {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend(u32::try_from(16 + body.len()).expect("small").to_ne_bytes());
            reply.extend(errno.to_ne_bytes());
            reply.extend(unique.to_ne_bytes());
            reply.extend(body);
            // The asker may be gone: that is its affair.
            let _ = fuse.write(&reply);
        }
    }

    /// The body of the reply or an error number; `None` where no reply is wanted.
    fn answer(&self, opcode: u32, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        Some(match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // GETATTR, SETATTR
            3 | 4 => Ok(self.attributes()),
            // OPEN
            14 => Ok(vec![0; 16]),
            // READ
            15 => {
                let mut bytes = vec![0; u32_at(body, 16) as usize];
                let all = self.image.read_at(&mut bytes, u64_at(body, 8));
                all.map(|read| bytes[..read].to_vec()).map_err(|_| libc_errno::EIO)
            }
            // WRITE
            16 => self.allowed().and_then(|()| {
                let (at, size) = (u64_at(body, 8), u32_at(body, 16));
                let bytes = body[40..40 + size as usize].to_vec();
                self.image.write_all_at(&bytes, at).map_err(|_| libc_errno::EIO)?;
                self.events.lock().expect("nobody panics with it").push(Event::Write { at, bytes });
                Ok([size.to_ne_bytes(), [0; 4]].concat())
            }),
            // FSYNC
            20 => self.allowed().map(|()| {
                self.events.lock().expect("nobody panics with it").push(Event::Flush);
                Vec::new()
            }),
            // RELEASE, FLUSH, DESTROY
            18 | 25 | 38 => Ok(Vec::new()),
            // INIT: no more than it must be (1 << 5: writes larger than a page, 1 << 22: of this many pages)
            26 => {
                let mut out = Vec::new();
                for word in [7, 31, 128 * 1024, 1 << 5 | 1 << 22] {
                    out.extend(u32::to_ne_bytes(word));
                }
                out.extend([16u16.to_ne_bytes(), 12u16.to_ne_bytes()].concat());
                out.extend([(MAX_WRITE as u32).to_ne_bytes(), 1u32.to_ne_bytes()].concat());
                out.extend(((MAX_WRITE / 4096) as u16).to_ne_bytes());
                out.resize(64, 0);
                Ok(out)
            }
            _ => Err(libc_errno::ENOSYS),
        })
    }

    /// Whether this write or flush succeeds.
    fn allowed(&self) -> Result<(), i32> {
        match self.left.load(Ordering::SeqCst) {
            0 => Err(self.errno.load(Ordering::SeqCst) as i32),
            left => {
                if left > 0 {
                    self.left.store(left - 1, Ordering::SeqCst);
                }
                Ok(())
            }
        }
    }

    /// `struct fuse_attr_out` of the file.
    fn attributes(&self) -> Vec<u8> {
        let mut out = vec![0; 16];
        out[0] = 60;
        for word in [1, self.size, self.size / 512, 0, 0, 0] {
            out.extend(u64::to_ne_bytes(word));
        }
        for word in [0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
            out.extend(u32::to_ne_bytes(word));
        }
        out
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Error numbers that the kernel hears.
mod libc_errno {
    pub const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
    pub const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
    pub const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
    pub const ENOSYS: i32 = rustix::io::Errno::NOSYS.raw_os_error();
}
