//! Forks without exec, and an exec that says exactly why it failed.
//!
//! The child of a fork here shares our program image, so it may run ordinary code. In a process
//! with other threads it must not wait for what those threads held: glibc makes its own allocator
//! whole again after `fork`, and that is the only lock a child of ours needs.

use rustix::process::Pid;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Ends the process when the child's work panics, so that it never runs its parent's code.
struct NeverReturn;

impl Drop for NeverReturn {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn run(child: impl FnOnce() -> u8) -> ! {
    let guard = NeverReturn;
    let status = child();
    std::mem::forget(guard);
    // SAFETY: _exit ends the process without running anything of the parent's (atexit, destructors).
    unsafe { libc::_exit(i32::from(status)) }
}

/// Forks; the child runs `child` and ends with the status that it returns.
pub fn fork(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: fork itself has no preconditions; what the child may do is said in the module's doc.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => run(child),
        pid => Ok(Pid::from_raw(pid).expect("fork returns a pid above 0")),
    }
}

/// Forks a *sibling*: the child's parent is the caller's parent, which gets its SIGCHLD and its
/// exit status. Only for a process with one thread, and not for the init of a pid namespace.
pub fn fork_sibling(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork: the child goes on here with a copy of this stack.
    // glibc's fork handlers are not run, which matters only when other threads hold its locks.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => run(child),
        pid => Ok(Pid::from_raw(pid as i32).expect("clone returns a pid above 0")),
    }
}

/// Replaces the program. Returns only to say why it could not.
pub fn exec(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and all strings in them outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes every descriptor from `first` on, but `keep`.
pub fn close_from(first: u32, keep: Option<u32>) -> io::Result<()> {
    match keep.filter(|keep| *keep >= first) {
        None => close_range(first, u32::MAX, 0),
        Some(keep) => {
            if keep > first {
                close_range(first, keep - 1, 0)?;
            }
            close_range(keep + 1, u32::MAX, 0)
        }
    }
}

/// Takes a descriptor that the program was started with, and marks it to be closed by an exec.
/// Ask once for each number: the value owns it.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes numbers, and refuses one that is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and the caller says that nobody else in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from `first` on to be closed by an exec.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: takes three numbers. A caller that closes what a value owns must not drop that value
    // later: used only in children that end by exec or _exit.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a resource limit by the platform's number; `None` is no limit.
pub fn set_rlimit(resource: u32, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft.unwrap_or(libc::RLIM64_INFINITY),
        rlim_max: hard.unwrap_or(libc::RLIM64_INFINITY),
    };
    // SAFETY: `limit` is a valid structure for the whole call; a null old limit is allowed.
    match unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &limit, std::ptr::null::<libc::rlimit64>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    #[test]
    fn the_child_runs_and_ends_with_its_status() {
        let pid = fork(|| 7).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }

    #[test]
    fn exec_passes_arguments_and_environment() {
        let pid = fork(|| {
            let script = c"test \"$0$1$X\" = abc && test -z \"$HOME\"";
            let argv = [c"sh", c"-c", script, c"a", c"b"].map(CString::from);
            exec(c"/bin/sh", &argv, &[c"X=c".into()]);
            1
        })
        .unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn a_failed_exec_says_why() {
        let error = exec(c"/does/not/exist", &[c"x".into()], &[]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
