//! Carries bytes between the channel and the agent.
//!
//! ```text
//!   host ◄── port ──► [ one buffer each way ] ◄── socket pair ──► agent (PID 1 of the inner namespaces)
//! ```

use super::{Failure, during};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sandbox_core::driver::Machine;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// What is under way in one direction.
#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    ended: bool,
}

const ROOM: usize = 64 * 1024;

impl Pipe {
    fn wants(&self) -> bool {
        !self.ended && self.bytes.len() < ROOM
    }

    /// Takes what is there.
    fn read(&mut self, from: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut chunk = [0u8; ROOM];
        match rustix::io::read(from, &mut chunk) {
            Ok(0) => self.ended = true,
            Ok(length) => self.bytes.extend_from_slice(&chunk[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::CONNRESET | Errno::PIPE | Errno::NODEV) => self.ended = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives what fits.
    fn write(&mut self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        match rustix::io::write(to, &self.bytes) {
            Ok(length) => drop(self.bytes.drain(..length)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Nobody will take the rest.
            Err(Errno::CONNRESET | Errno::PIPE | Errno::NODEV) => self.bytes.clear(),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Runs until the agent has ended and all that it said is said, or until the host hangs up.
pub fn run(channel: File, mut machine: Box<dyn Machine>) -> Result<(), Failure> {
    rustix::fs::fcntl_setfl(&channel, OFlags::NONBLOCK).map_err(during("prepare the channel"))?;
    machine.control().set_nonblocking(true).map_err(during("prepare the agent's socket"))?;
    let (mut to_agent, mut to_host) = (Pipe::default(), Pipe::default());
    let mut alive = true;
    loop {
        let mut interest = [PollFlags::empty(); 2];
        interest[0].set(PollFlags::IN, to_agent.wants());
        interest[0].set(PollFlags::OUT, !to_host.bytes.is_empty());
        interest[1].set(PollFlags::IN, to_host.wants());
        interest[1].set(PollFlags::OUT, !to_agent.bytes.is_empty());
        if !alive && to_host.ended && to_host.bytes.is_empty() {
            return Ok(());
        }
        // What has ended is not looked at any more: it would be ready for ever.
        let over = to_host.ended && to_agent.bytes.is_empty();
        let agent = if over { channel.as_fd() } else { machine.control().as_fd() };
        let process = if alive { machine.pidfd() } else { channel.as_fd() };
        let mut fds = [
            PollFd::new(&channel, interest[0]),
            PollFd::from_borrowed_fd(agent, if over { PollFlags::empty() } else { interest[1] }),
            PollFd::from_borrowed_fd(process, if alive { PollFlags::IN } else { PollFlags::empty() }),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(during("wait")(error)),
        }
        let ready = fds.each_ref().map(|fd| fd.revents());
        if ready[0].intersects(PollFlags::HUP | PollFlags::ERR) {
            // Nobody is there any more who could ask for anything.
            let _ = machine.kill();
            return Ok(());
        }
        let step = "carry what host and agent say";
        if ready[0].contains(PollFlags::IN) {
            to_agent.read(channel.as_fd()).map_err(during(step))?;
        }
        if !over && ready[1].intersects(PollFlags::IN | PollFlags::HUP) && to_host.wants() {
            to_host.read(machine.control().as_fd()).map_err(during(step))?;
        }
        if ready[0].contains(PollFlags::OUT) {
            to_host.write(channel.as_fd()).map_err(during(step))?;
        }
        if !over && ready[1].intersects(PollFlags::OUT | PollFlags::HUP) && !to_agent.bytes.is_empty() {
            to_agent.write(machine.control().as_fd()).map_err(during(step))?;
        }
        if alive && ready[2].contains(PollFlags::IN) {
            alive = false;
        }
    }
}
