//! Carries bytes between the channel and the agent.
//!
//! ```text
//!   host ◄── port ──► [ one buffer each way ] ◄── socket pair ──► agent (PID 1 of the inner namespaces)
//! ```

use super::pipe::Pipe;
use super::{Failure, during};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sandbox_core::driver::Machine;
use std::fs::File;
use std::os::fd::AsFd;

const ROOM: usize = 64 * 1024;

/// Runs until the agent has ended and all that it said is said, or until the host hangs up: `alone` then lets what
/// waits for the host go on.
pub fn run(channel: File, mut machine: Box<dyn Machine>, alone: impl Fn()) -> Result<(), Failure> {
    rustix::fs::fcntl_setfl(&channel, OFlags::NONBLOCK).map_err(during("prepare the channel"))?;
    machine.control().set_nonblocking(true).map_err(during("prepare the agent's socket"))?;
    let (mut to_agent, mut to_host) = (Pipe::new(ROOM), Pipe::new(ROOM));
    let mut alive = true;
    loop {
        let mut interest = [PollFlags::empty(); 2];
        interest[0].set(PollFlags::IN, to_agent.wants());
        interest[0].set(PollFlags::OUT, to_host.has());
        interest[1].set(PollFlags::IN, to_host.wants());
        interest[1].set(PollFlags::OUT, to_agent.has());
        if !alive && to_host.ended && !to_host.has() {
            return Ok(());
        }
        // What has ended is not looked at any more: it would be ready for ever.
        let over = to_host.ended && !to_agent.has();
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
            alone();
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
        if !over && ready[1].intersects(PollFlags::OUT | PollFlags::HUP) && to_agent.has() {
            to_agent.write(machine.control().as_fd()).map_err(during(step))?;
        }
        if alive && ready[2].contains(PollFlags::IN) {
            alive = false;
        }
    }
}
