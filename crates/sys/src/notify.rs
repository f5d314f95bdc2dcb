//! Seccomp user notifications: receiving, reading arguments, answering. The listener comes from
//! [`crate::seccomp::load_with_listener`].
//!
//! ```text
//! filtered thread ──syscall──► stopped ──receive()──► Notification ──answer()──► goes on
//!                                                       │
//!                                       Memory::of(pid) + is_valid(id): read its arguments
//! ```

use std::ffi::{CStr, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

const RECV: c_ulong = 0xc050_2100;
const SEND: c_ulong = 0xc018_2101;
const ID_VALID: c_ulong = 0x4008_2102;
const SET_FLAGS: c_ulong = 0x4008_2104;
const FD_SYNC_WAKE_UP: u64 = 1;

/// A filter whose notifications are delivered here.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// One stopped system call.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Names it to [`Listener::answer`].
    pub id: u64,
    /// The calling thread, as the receiver's pid namespace sees it.
    pub pid: u32,
    /// Number of the system call.
    pub call: i64,
    /// Its arguments.
    pub args: [u64; 6],
}

/// How a stopped call goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel carries it out as if nothing had been.
    Continue,
    /// It returns this value.
    Return(i64),
    /// It fails with this error number.
    Error(i32),
}

impl Listener {
    /// Takes a new listener, its own or another process's.
    pub fn new(fd: OwnedFd) -> Self {
        // Wake the answering thread on the caller's CPU (Linux ≥ 6.6): a notification is a ping-pong.
        // SAFETY: the argument is a number; an older kernel refuses the request.
        unsafe { libc::ioctl(fd.as_raw_fd(), SET_FLAGS, FD_SYNC_WAKE_UP) };
        Self { fd }
    }

    /// Waits for the next notification; `None` when no process under the filter is left.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        loop {
            // SAFETY: all fields are numbers, for which zero is a value; the kernel demands zeros.
            let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: RECV writes one such structure.
            if unsafe { libc::ioctl(self.fd.as_raw_fd(), RECV, &mut raw) } == 0 {
                let data = raw.data;
                return Ok(Some(Notification { id: raw.id, pid: raw.pid, call: data.nr.into(), args: data.args }));
            }
            match io::Error::last_os_error() {
                // Interrupted, or the caller was gone before we took it; with nobody left, poll says so.
                error if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => {
                    if self.is_hung_up() {
                        return Ok(None);
                    }
                }
                error => return Err(error),
            }
        }
    }

    fn is_hung_up(&self) -> bool {
        let mut fd = libc::pollfd { fd: self.fd.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid structure; no wait.
        unsafe { libc::poll(&mut fd, 1, 0) > 0 && fd.revents & libc::POLLHUP != 0 }
    }

    /// Lets the call go on. A caller that is gone by now is fine.
    pub fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        let (val, error, flags) = match answer {
            Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Return(value) => (value, 0, 0),
            Answer::Error(number) => (0, -number.abs(), 0),
        };
        let response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: SEND reads one such structure.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), SEND, &response) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINPROGRESS)) => Ok(()),
            error => Err(error),
        }
    }

    /// True while that call still waits: its pid, and what was opened below `/proc/<pid>` before
    /// this was asked, are the caller's.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: ID_VALID reads one number.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), ID_VALID, &id) == 0 }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The memory of another process, for reading the strings that a call's arguments point to.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of a thread; needs the right to trace it.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/mem"))? })
    }

    /// Reads the string at `address` into `buffer`. `NAMETOOLONG` when it is longer, as the kernel
    /// would say.
    pub fn read_str<'b>(&self, address: u64, buffer: &'b mut [u8]) -> io::Result<&'b CStr> {
        const PAGE: u64 = 4096;
        let mut length = 0;
        while length < buffer.len() {
            let at = address.checked_add(length as u64).ok_or(io::ErrorKind::InvalidInput)?;
            // Never across a page border at once: the next page may not exist.
            let chunk = ((PAGE - at % PAGE) as usize).min(buffer.len() - length);
            match self.file.read_at(&mut buffer[length..length + chunk], at)? {
                0 => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                read => length += read,
            }
            if buffer[..length].contains(&0) {
                return CStr::from_bytes_until_nul(&buffer[..length])
                    .map_err(|_| io::Error::from_raw_os_error(libc::EFAULT));
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }
}

/// The rename calls of this platform, with where their arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenameCall {
    /// Directory descriptor of the source, `AT_FDCWD` without one.
    pub old_dir: i32,
    /// Address of the source's path.
    pub old_path: u64,
    /// Directory descriptor of the target.
    pub new_dir: i32,
    /// Address of the target's path.
    pub new_path: u64,
    /// `RENAME_*`.
    pub flags: u32,
}

impl RenameCall {
    /// Understands a notification as a rename; `None` when it is another call.
    pub fn of(notification: &Notification) -> Option<Self> {
        let args = notification.args;
        #[cfg(target_arch = "x86_64")]
        if notification.call == libc::SYS_rename {
            return Some(Self {
                old_dir: libc::AT_FDCWD,
                old_path: args[0],
                new_dir: libc::AT_FDCWD,
                new_path: args[1],
                flags: 0,
            });
        }
        let flags = match notification.call {
            libc::SYS_renameat => 0,
            libc::SYS_renameat2 => args[4] as u32,
            _ => return None,
        };
        // The kernel takes a descriptor's low 32 bits.
        Some(Self { old_dir: args[0] as i32, old_path: args[1], new_dir: args[2] as i32, new_path: args[3], flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::fork;
    use crate::seccomp::{Program, load_with_listener};
    use crate::socket;
    use rustix::process::{WaitOptions, waitpid};

    /// Notifies `mkdirat`, allows everything else: load nr; jeq; ret NOTIF; ret ALLOW.
    fn program() -> Program {
        let code: [(u16, u8, u8, u32); 4] = [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, libc::SYS_mkdirat as u32),
            (0x06, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let mut bytes = Vec::new();
        for (code, jt, jf, k) in code {
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&[jt, jf]);
            bytes.extend_from_slice(&k.to_ne_bytes());
        }
        Program::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn a_call_is_seen_read_and_answered() {
        let (ours, theirs) = socket::message_pair().unwrap();
        let pid = fork(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            let Ok(listener) = load_with_listener(&program()) else { return 9 };
            socket::send(&theirs, b"listener", &[listener.as_fd()]).unwrap();
            drop(listener);
            let mkdir = |path: &CStr| rustix::fs::mkdirat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU);
            if mkdir(c"/proc/never made") != Err(rustix::io::Errno::XDEV) {
                return 1;
            }
            // Continued: the kernel refuses a directory in /proc by itself.
            if mkdir(c"/proc/let through") != Err(rustix::io::Errno::NOENT) { 2 } else { 0 }
        })
        .unwrap();
        let mut buffer = [0; 16];
        let (_, fds) = socket::receive(&ours, &mut buffer, true).unwrap();
        let listener = Listener::new(fds.into_iter().next().expect("a listener"));
        let mut seen = Vec::new();
        while let Some(call) = listener.receive().unwrap() {
            let mut buffer = [0; 4096];
            let memory = Memory::of(call.pid).unwrap();
            assert!(listener.is_valid(call.id));
            let path = memory.read_str(call.args[1], &mut buffer).unwrap().to_str().unwrap().to_owned();
            let answer = if path.contains("never") { Answer::Error(libc::EXDEV) } else { Answer::Continue };
            seen.push(path);
            listener.answer(call.id, answer).unwrap();
            assert!(!listener.is_valid(call.id));
        }
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        assert_eq!(seen, ["/proc/never made", "/proc/let through"]);
    }

    #[test]
    fn strings_end_where_memory_ends() {
        let memory = Memory::of(std::process::id()).unwrap();
        let text = c"some text";
        let mut buffer = [0; 64];
        assert_eq!(memory.read_str(text.as_ptr() as u64, &mut buffer).unwrap(), text);
        let mut short = [0; 4];
        let error = memory.read_str(text.as_ptr() as u64, &mut short).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
        assert!(memory.read_str(8, &mut buffer).is_err());
    }
}
