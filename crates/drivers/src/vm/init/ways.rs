//! The ways out of a guest: what connects to a port of the inner loopback is connected to the same port of the
//! host, where nobody is but who serves it (the proxy, what leads to the mirror).
//!
//! ```text
//!   program ──► 127.0.0.1:3128 ──► [ this thread ] ──► vsock 2:3128 ──► device on the host ──► its socket
//! ```
//! There is no network device, and no program inside can open a vsock socket (the filter): all that leaves the guest
//! goes through here. Nothing here decides, so nothing here need be trusted.

use super::pipe::Pipe;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown, sockopt};
use rustix::process::{Resource, Rlimit, setrlimit};
use sandbox_sys::vsock;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Connections at a time; others wait. More than the proxy takes, so that it is the proxy that says no, and less
/// than the device has.
const MOST: usize = 768;
/// Bytes of one connection that wait here, in each direction.
const ROOM: usize = 16 * 1024;
/// Bytes of one connection that wait in the guest's kernel.
const KERNEL_ROOM: u64 = 64 * 1024;
/// The host answers at once, unless the machine is very busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way out.
#[derive(Debug)]
pub struct Way {
    /// Listens on the inner loopback.
    pub listener: OwnedFd,
    /// The host's port.
    pub port: u32,
}

/// One connection.
struct Link {
    inside: OwnedFd,
    outside: OwnedFd,
    connecting: bool,
    out: Half,
    back: Half,
}

struct Half {
    pipe: Pipe,
    /// Its end was passed on, or nobody would hear of it.
    over: bool,
}

impl Half {
    fn new() -> Self {
        Self { pipe: Pipe::new(ROOM), over: false }
    }

    /// Does what can be done now.
    fn carry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, can: (bool, bool)) -> Result<(), Errno> {
        if can.0 && self.pipe.wants() {
            self.pipe.read(from)?;
        }
        // What was just read will most likely fit.
        if self.pipe.has() && (can.0 || can.1) {
            self.pipe.write(to)?;
        }
        if self.pipe.refused {
            self.pipe.ended = true;
            self.over = true;
        }
        if self.pipe.ended && !self.pipe.has() && !self.over {
            self.over = true;
            // Fails only for one that is gone.
            let _ = shutdown(to, Shutdown::Write);
        }
        Ok(())
    }
}

impl Link {
    fn new(inside: OwnedFd, port: u32) -> io::Result<Self> {
        // Small records would wait for one another.
        sockopt::set_tcp_nodelay(&inside, true)?;
        let outside = vsock::begin_connect(vsock::HOST, port, PATIENCE, KERNEL_ROOM)?;
        Ok(Self { inside, outside, connecting: true, out: Half::new(), back: Half::new() })
    }

    /// What to wait for at the inner and at the outer end.
    fn interest(&self) -> (PollFlags, PollFlags) {
        let flags = |read: bool, write: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read);
            flags.set(PollFlags::OUT, write);
            flags
        };
        if self.connecting {
            return (PollFlags::empty(), PollFlags::OUT);
        }
        let (out, back) = (&self.out.pipe, &self.back.pipe);
        (flags(out.wants(), back.has()), flags(back.wants(), out.has()))
    }

    /// Goes on after a wait; false when it is over.
    fn go_on(&mut self, inside: PollFlags, outside: PollFlags) -> bool {
        if self.connecting {
            if outside.is_empty() {
                return true;
            }
            self.connecting = false;
            if !matches!(sockopt::socket_error(&self.outside), Ok(Ok(()))) {
                return false;
            }
        }
        // An end that hung up is heard of by trying.
        let hung = PollFlags::HUP | PollFlags::ERR;
        let can = |flags: PollFlags, what: PollFlags| flags.intersects(what | hung);
        let (inner, outer) = (self.inside.as_fd(), self.outside.as_fd());
        let carried = self
            .out
            .carry(inner, outer, (can(inside, PollFlags::IN), can(outside, PollFlags::OUT)))
            .and_then(|()| self.back.carry(outer, inner, (can(outside, PollFlags::IN), can(inside, PollFlags::OUT))));
        // Cut off inside, nobody is there any more for what comes back.
        carried.is_ok() && !self.out.pipe.reset && !(self.out.over && self.back.over)
    }
}

/// Serves them for ever.
pub fn run(ways: &[Way]) -> io::Result<()> {
    let most = Some(2 * MOST as u64 + 64);
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    for way in ways {
        rustix::io::ioctl_fionbio(&way.listener, true)?;
    }
    let mut links: Vec<Link> = Vec::new();
    loop {
        turn(ways, &mut links)?;
    }
}

/// Waits until something can be done, and does it.
fn turn(ways: &[Way], links: &mut Vec<Link>) -> io::Result<()> {
    let wanted: Vec<_> = links.iter().map(Link::interest).collect();
    let mut fds = Vec::with_capacity(ways.len() + 2 * links.len());
    // What is not looked at would be ready for ever once it has ended, so it is left out.
    let mut at = |fd, flags: PollFlags| {
        (!flags.is_empty()).then(|| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            fds.len() - 1
        })
    };
    let takes = if links.len() < MOST { PollFlags::IN } else { PollFlags::empty() };
    let listeners: Vec<_> = ways.iter().map(|way| at(way.listener.as_fd(), takes)).collect();
    let ends: Vec<_> = links
        .iter()
        .zip(wanted)
        .map(|(link, (inside, outside))| (at(link.inside.as_fd(), inside), at(link.outside.as_fd(), outside)))
        .collect();
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let ready = |at: Option<usize>| at.map_or(PollFlags::empty(), |at| fds[at].revents());
    let ends: Vec<_> = ends.into_iter().map(|(inside, outside)| (ready(inside), ready(outside))).collect();
    let asked: Vec<bool> = listeners.into_iter().map(|at| !ready(at).is_empty()).collect();
    drop(fds);
    let mut ends = ends.into_iter();
    links.retain_mut(|link| {
        let (inside, outside) = ends.next().unwrap_or((PollFlags::empty(), PollFlags::empty()));
        link.go_on(inside, outside)
    });
    for (way, _) in ways.iter().zip(asked).filter(|(_, asked)| *asked) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // One that has gone already is no error of the listener's.
        if let Ok(inside) = accept_with(&way.listener, flags) {
            // Where nobody takes it, its end is all that can be said.
            links.extend(Link::new(inside, way.port).ok());
        }
    }
    Ok(())
}
