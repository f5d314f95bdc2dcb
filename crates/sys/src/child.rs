//! What a child process gets between fork and exec that `std::process::Command` cannot give:
//! resource limits, and descriptors that only it inherits.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Resource limits of one child; `None` leaves the inherited limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildLimits {
    /// Bytes of address space.
    pub address_space: Option<u64>,
    /// Seconds of CPU time.
    pub cpu_seconds: Option<u64>,
    /// Bytes of the largest file that it may write.
    pub file_size: Option<u64>,
    /// How far it stands back for others on the processor: 0 to 19, as nice(1) has it.
    pub nice: Option<i32>,
}

/// Applies limits to the child (soft and hard; never above an inherited hard limit).
pub fn limit(command: &mut Command, limits: ChildLimits) {
    let set = move |resource, value: Option<u64>| -> io::Result<()> {
        let Some(value) = value else { return Ok(()) };
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `now` outlives the call, which writes one `rlimit` to it.
        if unsafe { libc::getrlimit(resource, &mut now) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let value = value.min(now.rlim_max);
        let new = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `new` outlives the call, which only reads it.
        if unsafe { libc::setrlimit(resource, &new) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes only async-signal-safe system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set(libc::RLIMIT_AS, limits.address_space)?;
            set(libc::RLIMIT_CPU, limits.cpu_seconds)?;
            set(libc::RLIMIT_FSIZE, limits.file_size)?;
            if let Some(nice) = limits.nice {
                // Standing back is always allowed; where it is not, nothing is lost.
                libc::setpriority(libc::PRIO_PROCESS, 0, nice);
            }
            Ok(())
        });
    }
}

/// Lets the child inherit `fd` under its own number (which is returned); other children of this
/// process do not get it, and the parent's copy goes with the command.
pub fn inherit(command: &mut Command, fd: OwnedFd) -> i32 {
    let number = fd.as_raw_fd();
    // SAFETY: the closure makes one async-signal-safe system call on a descriptor that it owns.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    number
}

/// Ends the child when the thread that starts it ends, however that happens; nothing that the child executes may
/// change its credentials, which would undo it.
pub fn die_with_us(command: &mut Command) {
    let us = std::process::id();
    // SAFETY: the closure makes only async-signal-safe system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It may have happened before.
            if libc::getppid() as u32 != us {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_is_inherited_by_one_child() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"x\n").unwrap();
        // Not sh: dash knows no descriptors of two digits.
        let mut command = Command::new("/bin/bash");
        let fd = inherit(&mut command, theirs.into());
        command.args(["-c", &format!("head -c2 <&{fd} >&{fd}")]);
        assert!(command.status().unwrap().success());
        drop(command);
        let mut back = String::new();
        ours.read_to_string(&mut back).unwrap();
        assert_eq!(back, "x\n");
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("/bin/sleep");
            die_with_us(&mut command);
            command.arg("1000").spawn().unwrap()
        })
        .join()
        .unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_nice_child_stands_back() {
        let nice = || std::fs::read_to_string("/proc/self/stat").unwrap();
        let of =
            |stat: &str| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap();
        let own = of(&nice());
        let mut command = Command::new("/bin/cat");
        limit(&mut command, ChildLimits { nice: Some(19), ..Default::default() });
        let out = command.arg("/proc/self/stat").output().unwrap();
        assert_eq!((of(&String::from_utf8(out.stdout).unwrap()), of(&nice())), (19, own));
    }

    #[test]
    fn limits_hold_in_the_child_only() {
        let mut command = Command::new("/bin/sh");
        limit(&mut command, ChildLimits { cpu_seconds: Some(7), ..Default::default() });
        let out = command.args(["-c", "ulimit -t"]).output().unwrap();
        assert_eq!(out.stdout, b"7\n");
    }
}
