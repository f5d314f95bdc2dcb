//! Signals as descriptors, and the set that a child starts with.

use rustix::process::{Pid, Signal};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Signals that are read from a descriptor in place of being delivered.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks these signals for the calling thread (and for threads that it starts later) and
    /// returns the descriptor on which they arrive. It does not block.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is an initialised signal set; a null old set is allowed.
        if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Returns the number of the next signal that has arrived, `None` when there is none.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut record) {
            // The signal's number is the first field of the record.
            Ok(length) if length == record.len() => {
                Ok(Some(u32::from_ne_bytes([record[0], record[1], record[2], record[3]]) as i32))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set; sigaddset of a number above 0 changes bits of it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal.as_raw());
        }
        set.assume_init()
    }
}

/// Blocks every signal that can be blocked: for a process that nothing inside may end or disturb
/// but KILL and STOP.
pub fn block_all() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set before it is used; a null old set is allowed.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Puts every signal back to its default action. The mask is left as it is.
pub fn default_actions() {
    // `struct sigaction` of the kernel with all fields zero: SIG_DFL, no flags, an empty mask.
    // By the system call, because libc keeps two signals for itself, and a program may have been
    // started with these ignored.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the structure is readable for the whole call, the set's size is the kernel's;
        // KILL and STOP are refused with EINVAL, which changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8) };
    }
}

/// Unblocks every signal: the last step before a child's exec.
pub fn unblock_all() {
    let set = set_of(&[]);
    // SAFETY: `set` is an initialised signal set; a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) };
}

/// Sends a signal to every process that the caller may signal, except itself and (inside a pid
/// namespace) its init. True when there was one.
pub fn send_to_all(signal: i32) -> bool {
    // SAFETY: takes two numbers.
    unsafe { libc::kill(-1, signal) == 0 }
}

/// Sends a signal by number to a process group; numbers that are not signals are an error.
pub fn send_to_group(group: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes two numbers.
    match unsafe { libc::kill(-group.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::fork;
    use rustix::process::{WaitOptions, getpid, kill_process, waitpid};

    #[test]
    fn a_signal_arrives_on_the_descriptor() {
        let pid = fork(|| {
            let Ok(fd) = SignalFd::new(&[Signal::TERM, Signal::USR1]) else { return 1 };
            if !matches!(fd.next(), Ok(None)) {
                return 2;
            }
            kill_process(getpid(), Signal::USR1).unwrap();
            match fd.next() {
                Ok(Some(number)) if number == Signal::USR1.as_raw() => 0,
                _ => 3,
            }
        })
        .unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn a_child_starts_with_defaults() {
        // Rust ignores SIGPIPE; after the reset it ends the process again, also when it was blocked.
        let pid = fork(|| {
            block_all();
            default_actions();
            unblock_all();
            kill_process(getpid(), Signal::PIPE).unwrap();
            0
        })
        .unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(Signal::PIPE.as_raw()));
    }
}
