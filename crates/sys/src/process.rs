//! Processes that cannot be mistaken for one another: pidfds, start times, the boot id.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Returns the kernel's id of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Returns when process `pid` was started: field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may contain anything: count from its end.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    rest.split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/<pid>/stat"))
}

/// Returns what process `pid` is doing: field 3 of `/proc/<pid>/stat` (`R`, `S`, `D` = hangs in the kernel,
/// `T` = stopped, `t` = traced, `Z` = ended).
pub fn state(pid: u32) -> io::Result<char> {
    Ok(state_and_parent(pid)?.0)
}

/// Returns what process `pid` is doing, as [`state`], and its parent's pid: fields 3 and 4 of `/proc/<pid>/stat`.
pub fn state_and_parent(pid: u32) -> io::Result<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    read_state_and_parent(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no state and parent in /proc/<pid>/stat"))
}

/// Reads the same from the text of such a file.
pub fn read_state_and_parent(stat: &str) -> Option<(char, u32)> {
    // The second field is the command in parentheses and may contain anything: count from its end.
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Opens a process if it is still the one that had this start time in this boot; `None` when it is gone.
pub fn open_identified(pid: u32, started: u64, boot: &str) -> io::Result<Option<OwnedFd>> {
    if boot_id()? != boot {
        return Ok(None);
    }
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let fd = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Opened first, then compared: the pid cannot be used again while we hold the descriptor of its owner.
    match start_time(pid) {
        // One that has ended and that nobody waits for is gone too.
        Ok(now) if now == started => Ok((!wait_gone(&fd, Some(Duration::ZERO))?).then_some(fd)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until the process of a pidfd has ended; false when `limit` passed first.
pub fn wait_gone(pidfd: &OwnedFd, limit: Option<Duration>) -> io::Result<bool> {
    let deadline = limit.map(|limit| std::time::Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends KILL through a pidfd; a process that has already ended is fine.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a child and all that it has waited for have used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Used {
    /// Processor time in programs.
    pub user: Duration,
    /// Processor time in the kernel for them.
    pub system: Duration,
    /// The most resident memory of one of them, in bytes.
    pub largest: u64,
}

/// Takes the status of a child that has ended; `None` when it has not, or when its status was taken before.
pub fn reap(pid: u32) -> io::Result<Option<Used>> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all-zero bytes are a valid `rusage`: it is numbers.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: no status is wanted, and `used` lives over the call.
    let result = unsafe { libc::wait4(pid, std::ptr::null_mut(), libc::WNOHANG, &raw mut used) };
    match result {
        0 => Ok(None),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        },
        _ => {
            let time = |t: libc::timeval| {
                Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0))
                    + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
            };
            // `ru_maxrss` is in KiB (getrusage(2)).
            let largest = u64::try_from(used.ru_maxrss).unwrap_or(0) << 10;
            Ok(Some(Used { user: time(used.ru_utime), system: time(used.ru_stime), largest }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_used_is_told_once() {
        let work =
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 20000000 /dev/zero | tail -c 19000000 | wc -c";
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", work])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let fd = pidfd_open(Pid::from_raw(child.id() as i32).unwrap(), PidfdFlags::empty()).unwrap();
        assert!(wait_gone(&fd, None).unwrap());
        let used = reap(child.id()).unwrap().expect("it has ended");
        assert!(used.largest > 10 << 20 && used.user + used.system > Duration::ZERO, "{used:?}");
        assert_eq!(reap(child.id()).unwrap(), None);
        assert!(child.wait().is_err(), "its status was taken");
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let pid = std::process::id();
        let (start, boot) = (start_time(pid).unwrap(), boot_id().unwrap());
        let fd = open_identified(pid, start, &boot).unwrap().expect("we live");
        assert!(!wait_gone(&fd, Some(Duration::from_millis(1))).unwrap());
        assert!(matches!(state(pid), Ok('R' | 'S')));
        assert!(open_identified(pid, start + 1, &boot).unwrap().is_none());
        assert!(open_identified(pid, start, "another boot").unwrap().is_none());
    }

    #[test]
    fn a_gone_process_is_none() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let (pid, boot) = (child.id(), boot_id().unwrap());
        let start = start_time(pid).unwrap();
        let fd = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
        assert!(wait_gone(&fd, None).unwrap());
        assert!(open_identified(pid, start, &boot).unwrap().is_none(), "a zombie");
        child.wait().unwrap();
        assert!(open_identified(pid, start, &boot).unwrap().is_none());
    }
}
