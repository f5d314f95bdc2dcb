//! The process that QEMU is a child of: it sees to it that a guest is not cut off in the middle of its writes.
//!
//! ```text
//!   supervisor ── leash ──► keeper (first process of QEMU's pid namespace) ──► QEMU
//!                             │
//!   let go, or killed ────────┤ hangs up the control channel: the guest writes its disk out and switches itself off
//!   told to end       ────────┤ the same, with less time
//!   a device gone     ────────┘ the same: what reads its files, or waits for its sockets, would wait for ever
//! ```
//! Whatever the guest does then, QEMU has ended when the time is over: it dies with this process at the latest.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use sandbox_sys::process;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a guest may take to end.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When nobody waits. Emulated, on a busy machine, it is slow.
    pub alone: Duration,
    /// When somebody does: less than after which a supervisor says that something hangs.
    pub asked: Duration,
}

/// What sandboxes have.
pub const TIMES: Times = Times { alone: Duration::from_secs(60), asked: Duration::from_secs(8) };

/// The supervisor's end.
#[derive(Debug)]
pub struct Leash(pub UnixStream);

impl Leash {
    /// Has the guest end, soon.
    pub fn end(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, b".") {
            // It has ended already.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the keeper has.
#[derive(Debug)]
pub struct Keeper {
    /// The other end of the [`Leash`].
    pub leash: OwnedFd,
    /// The supervisor's end of the control channel.
    pub control: OwnedFd,
    /// QEMU's pidfd, of a child.
    pub qemu: OwnedFd,
    /// Pidfds of the processes that serve its devices.
    pub devices: Vec<OwnedFd>,
}

impl Keeper {
    /// Runs until QEMU has ended.
    pub fn run(&self, times: Times) -> io::Result<()> {
        let (mut leash, mut devices) = (true, true);
        let mut until: Option<Instant> = None;
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let timeout =
                left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
            // What has ended would be ready for ever.
            let devices_now = self.devices.iter().filter(|_| devices);
            let leash_now = leash.then_some(&self.leash);
            let looked_at = std::iter::once(&self.qemu).chain(devices_now).chain(leash_now);
            let mut fds: Vec<PollFd<'_>> = looked_at.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let (ended, rest) = (ready[0], &ready[1..]);
            let (gone, called) = rest.split_at(if devices { self.devices.len() } else { 0 });
            let (gone, called) = (gone.contains(&true), called.contains(&true));
            if ended {
                break;
            }
            let mut limit = None;
            if called {
                leash = matches!(rustix::io::read(&self.leash, &mut [0u8; 64]), Ok(1..) | Err(Errno::INTR));
                limit = Some(if leash { times.asked } else { times.alone });
            }
            if gone {
                devices = false;
                limit = Some(limit.unwrap_or(times.alone));
            }
            if let Some(limit) = limit {
                let soon = Instant::now() + limit;
                until = Some(until.map_or(soon, |until| until.min(soon)));
                // Fails only when it is hung up already.
                let _ = rustix::net::shutdown(&self.control, Shutdown::Both);
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                process::kill(&self.qemu)?;
                break;
            }
        }
        // So that what it used is counted as this process's.
        while let Err(Errno::INTR) = waitid(WaitId::PidFd(self.qemu.as_fd()), WaitIdOptions::EXITED) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Child, Command, Stdio};

    fn pidfd(child: &Child) -> OwnedFd {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }

    /// A stand-in of QEMU, by a shell command whose standard input is the guest's end of the control channel.
    struct Scene {
        keeper: Keeper,
        leash: Leash,
        files: Child,
        second: Child,
        _control: UnixStream,
        qemu: Child,
    }

    fn scene(script: &str) -> Scene {
        let device = || Command::new("sleep").arg("1000").spawn().unwrap();
        let (files, second) = (device(), device());
        let (host, guest) = UnixStream::pair().unwrap();
        let (leash, other) = UnixStream::pair().unwrap();
        let stdin = Stdio::from(OwnedFd::from(guest));
        let qemu = Command::new("sh").args(["-c", script]).stdin(stdin).stdout(Stdio::piped()).spawn().unwrap();
        let keeper = Keeper {
            leash: other.into(),
            control: host.try_clone().unwrap().into(),
            qemu: pidfd(&qemu),
            devices: vec![pidfd(&second), pidfd(&files)],
        };
        Scene { keeper, leash: Leash(leash), files, second, _control: host, qemu }
    }

    /// What "QEMU" said before its end, when `ending` has happened.
    fn said(script: &str, times: Times, ending: impl FnOnce(Leash, &mut Child) -> Option<Leash>) -> String {
        let mut scene = scene(script);
        let held = ending(scene.leash, &mut scene.files);
        scene.keeper.run(times).unwrap();
        let mut said = String::new();
        scene.qemu.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        for device in [&mut scene.files, &mut scene.second] {
            let _ = device.kill();
            let _ = device.wait();
        }
        drop(held);
        said
    }

    const LONG: Times = Times { alone: Duration::from_secs(600), asked: Duration::from_secs(600) };

    #[test]
    fn whoever_lets_go_the_guest_writes_out_first() {
        // The control channel's end is the end of its input.
        let guest = "cat; echo written";
        assert_eq!(said(guest, LONG, |_, _| None), "written\n", "the supervisor was killed");
        let asked = |leash: Leash, _: &mut Child| {
            leash.end().unwrap();
            Some(leash)
        };
        assert_eq!(said(guest, LONG, asked), "written\n", "it was told to end");
        let killed = |leash: Leash, files: &mut Child| {
            files.kill().unwrap();
            Some(leash)
        };
        assert_eq!(said(guest, LONG, killed), "written\n", "the file server was killed");
    }

    #[test]
    fn a_guest_that_goes_on_ends_too() {
        let guest = "exec sleep 1000";
        let short = Duration::from_millis(10);
        assert_eq!(said(guest, Times { alone: short, ..LONG }, |_, _| None), "");
        let asked = |leash: Leash, _: &mut Child| {
            leash.end().unwrap();
            Some(leash)
        };
        assert_eq!(said(guest, Times { asked: short, ..LONG }, asked), "");
    }

    #[test]
    fn a_leash_whose_keeper_is_gone_is_no_error() {
        let (leash, other) = UnixStream::pair().unwrap();
        drop(other);
        Leash(leash).end().unwrap();
    }
}
