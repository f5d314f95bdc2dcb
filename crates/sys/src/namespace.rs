//! New namespaces and id maps, and the first process in them.
//!
//! ```text
//!   fork_into(flags)──┬──► Forked::Parent { pid, pidfd }   write_id_map(pid, …)
//!                     └──► Forked::Child  … switch_user(uid, gid) … fork::exec(program)
//! ```

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Gid, Uid};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which namespaces are made new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces(u64);

impl Namespaces {
    /// User ids.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// Process ids.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// Network devices, addresses, abstract sockets.
    pub const NET: Self = Self(libc::CLONE_NEWNET as u64);
    /// The root of the control group tree.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);

    /// Returns both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The process that forked.
    Parent {
        /// The child's pid in this pid namespace.
        pid: u32,
        /// Its pidfd.
        pidfd: OwnedFd,
    },
    /// The new process, with default signal handlers and no signal blocked.
    Child,
}

/// Forks the calling process into new namespaces, optionally into a cgroup (a directory of cgroup v2).
///
/// Refused with `EDEADLK` when the process has more than one thread: a lock that another thread
/// holds would stay locked in the child for ever.
pub fn fork_into(namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    if threads()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid `clone_args` (plain integers).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // CLONE_CLEAR_SIGHAND: handlers of the parent must not run in the child.
    args.flags = namespaces.0 | libc::CLONE_PIDFD as u64 | 0x1_0000_0000;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of this address space, as after fork(2), and the
    // calling thread is the only one, so no lock of libc can be held by a thread that is not copied.
    // `args` and `pidfd` live over the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            unblock_signals();
            Ok(Forked::Child)
        }
        // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor that nobody else has.
        pid => Ok(Forked::Parent { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Returns how many threads this process has.
fn threads() -> io::Result<u64> {
    // A directory has a link for itself, one from its parent, and one for each subdirectory.
    let tasks = rustix::fs::stat("/proc/self/task")?;
    Ok(u64::from(tasks.st_nlink as u32).saturating_sub(2))
}

fn unblock_signals() {
    // SAFETY: an empty `sigset_t` is initialised by sigemptyset before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Moves the calling process into new namespaces (not a pid namespace). A user namespace needs a process
/// with one thread, and then an id map.
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    let flags = rustix::thread::UnshareFlags::from_bits_retain(namespaces.0 as u32);
    // SAFETY: namespaces leave the descriptor table and the address space alone.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Maps one id: uid `outside.0` and gid `outside.1` of this namespace are `inside.0` and `inside.1`
/// in the user namespace of process `pid`. Supplementary groups can never be set there again.
pub fn write_id_map(pid: u32, inside: (u32, u32), outside: (u32, u32)) -> io::Result<()> {
    let dir = openat(CWD, format!("/proc/{pid}"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("gid_map", format!("{} {} 1", inside.1, outside.1)),
        ("uid_map", format!("{} {} 1", inside.0, outside.0)),
    ] {
        let fd = openat(&dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&fd, text.as_bytes())?;
    }
    Ok(())
}

/// Returns the supplementary groups of the calling process.
pub fn groups() -> io::Result<Vec<Gid>> {
    Ok(rustix::process::getgroups()?)
}

/// Sets the supplementary groups of the calling process, which must have one thread only.
pub fn set_groups(groups: &[Gid]) -> io::Result<()> {
    rustix::thread::set_thread_groups(groups)?;
    Ok(())
}

/// Becomes another user for good (real, effective and saved ids). In a user namespace without a
/// mapped uid 0 the capabilities stay. The calling process must have one thread only.
pub fn switch_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Switches the loopback device on in this network namespace.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid `ifreq` (integers and byte arrays).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is an initialised `ifreq` that lives over the call, which only reads it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts descriptors at fixed numbers, open over an exec; every other one from `first_free` on is
/// marked to close at the exec. `placed` must name each number below `first_free` that shall be open.
pub fn place_descriptors(placed: &[(BorrowedFd<'_>, RawFd)], first_free: RawFd) -> io::Result<()> {
    // Two steps, so that no source is overwritten before it was copied.
    let mut copies = Vec::with_capacity(placed.len());
    for (source, target) in placed {
        copies.push((fcntl_dupfd_cloexec(source, first_free)?, *target));
    }
    for (copy, target) in &copies {
        // SAFETY: the numbers below `first_free` are this function's to replace, as its contract says;
        // after it the process only goes on to exec.
        if unsafe { libc::dup2(copy.as_raw_fd(), *target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    crate::fork::cloexec_from(first_free as u32)
}

/// Ends this process at once, running no destructor and no exit handler of the process it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Lowers the priority of the calling process by `by`, for good.
pub fn nice(by: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, by) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets a resource limit of the calling process by the platform's number, never above the hard limit that
/// it has, since raising that needs a privilege. `None` is no limit.
pub fn limit(resource: u32, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` lives over the call; an unknown resource is refused with EINVAL.
    if unsafe { libc::getrlimit64(resource as _, &raw mut now) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let hard = hard.unwrap_or(libc::RLIM64_INFINITY).min(now.rlim_max);
    let soft = soft.unwrap_or(libc::RLIM64_INFINITY).min(hard);
    crate::fork::set_rlimit(resource, Some(soft), Some(hard))
}

/// The numbers of [`limit`]: those that the driver sets.
pub mod resource {
    #![allow(missing_docs, reason = "the names are those of setrlimit(2)")]
    pub const FSIZE: u32 = libc::RLIMIT_FSIZE;
    pub const DATA: u32 = libc::RLIMIT_DATA;
    pub const STACK: u32 = libc::RLIMIT_STACK;
    pub const CORE: u32 = libc::RLIMIT_CORE;
    pub const NPROC: u32 = libc::RLIMIT_NPROC;
    pub const NOFILE: u32 = libc::RLIMIT_NOFILE;
    pub const MEMLOCK: u32 = libc::RLIMIT_MEMLOCK;
    pub const MSGQUEUE: u32 = libc::RLIMIT_MSGQUEUE;
    pub const NICE: u32 = libc::RLIMIT_NICE;
    pub const RTPRIO: u32 = libc::RLIMIT_RTPRIO;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness itself runs tests in threads.
        let error = fork_into(Namespaces::UTS, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDEADLK));
    }

    #[test]
    fn flags_add_up() {
        let both = Namespaces::USER.and(Namespaces::NET);
        assert_eq!(both.0, 0x5000_0000);
    }
}
