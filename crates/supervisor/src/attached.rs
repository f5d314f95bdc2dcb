//! Terminals that look on: what they are shown first, and those that stand still.
//!
//! ```text
//!   in step ── too far behind for 2 s, and a terminal ──► left out (output is counted, the session goes on)
//!      ▲                                                      │ it has taken all that waited for it
//!      └────────────── the last part of what it missed ◄──────┘
//! ```
//!
//! A client whose output is a pipe or a file is waited for, as every pipe waits for its reader. One
//! whose output is a terminal (the feature `screen`) may be suspended, or behind a dead line: its
//! main session does not stand still with it.

use crate::log::RingLog;
use crate::main_session::Main;
use crate::supervise::{ClientStream, SLOW_CLIENT, Supervisor};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use sandbox_protocol::{FrameType, MAX_PAYLOAD, Message};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a terminal may hold up the main session.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of what it missed that a terminal is shown when it goes on.
const CATCH_UP: u64 = 64 * 1024;
/// Bytes of past output that are sent to a new client at most.
const MOST_REPLAYED: u64 = 1024 * 1024;
/// Bytes after which a line that was cut off is not looked for the end of.
const LONGEST_LINE: usize = 4096;
/// Between TERM and KILL when `--timeout` ends the command.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// The end of a main session that may only take so long. The time that the machine is suspended counts: its
/// user thinks of a clock on the wall; but no change of that clock does.
#[derive(Debug)]
pub(crate) struct TimeLimit {
    /// Readable when it is over: a timer of `CLOCK_BOOTTIME`.
    pub(crate) fd: OwnedFd,
    /// TERM was sent.
    warned: bool,
}

impl TimeLimit {
    pub(crate) fn new(limit: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let new = Self { fd: rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?, warned: false };
        new.set(limit)?;
        Ok(new)
    }

    fn set(&self, limit: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).min(100 * 365 * 86_400);
        // All zeros would switch it off.
        let value = Timespec { tv_sec: seconds, tv_nsec: i64::from(limit.subsec_nanos().max(1)) };
        rustix::time::timerfd_settime(
            &self.fd,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        )?;
        Ok(())
    }
}

/// What of past output begins at a place where a terminal can begin: behind the last full-screen program, and at
/// a line's begin when its own was cut off.
fn replayable(past: &[u8], cut: bool) -> &[u8] {
    let ends = [&b"\x1b[?1049l"[..], b"\x1b[?1047l", b"\x1b[?47l"];
    let left = ends.iter().filter_map(|end| Some(past.windows(end.len()).rposition(|part| part == *end)? + end.len()));
    match left.max() {
        Some(left) => &past[left..],
        None => match past.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n').filter(|_| cut) {
            Some(at) => &past[at + 1..],
            None => past,
        },
    }
}

impl Main {
    /// Follows the terminal, and counts what the log has of this session.
    pub(crate) fn watch(&mut self, bytes: &[u8]) {
        self.logged += bytes.len() as u64;
        if self.tty {
            self.screen.watch(bytes);
        }
    }

    /// What brings a terminal that saw nothing (or not everything) to where this session is: modes, and what was
    /// written last. A full-screen program draws by itself when it is told of the window.
    pub(crate) fn redraw(&self, log: &std::path::Path, most: u64) -> Vec<u8> {
        let modes = self.screen.enter();
        if self.screen.is_alternate() {
            return format!("{modes}\x1b[2J\x1b[H").into_bytes();
        }
        let most = most.min(MOST_REPLAYED).min(self.logged);
        let past = RingLog::tail(log, most).unwrap_or_default();
        let mut out = replayable(&past, most < self.logged).to_vec();
        out.extend_from_slice(modes.as_bytes());
        out
    }
}

impl Supervisor {
    /// Leaves out terminals that have stood still for too long, and takes back those that go on.
    pub(crate) fn look_after_viewers(&mut self) {
        let Some(main) = &mut self.main else { return };
        let now = Instant::now();
        for viewer in &main.attached {
            let Some(client) = self.clients.get_mut(&viewer.0) else { continue };
            if main.left_out.contains_key(viewer) {
                continue;
            }
            let slow = client.backlog() > SLOW_CLIENT;
            let patient = now.saturating_duration_since(client.moved) < PATIENCE;
            if slow && !patient && self.screens.contains(&viewer.0) {
                main.left_out.insert(*viewer, 0);
            }
        }
        let ready: Vec<ClientStream> = main
            .left_out
            .keys()
            .filter(|viewer| self.clients.get(&viewer.0).is_none_or(|client| client.backlog() == 0))
            .copied()
            .collect();
        for viewer in ready {
            self.catch_up(viewer);
        }
    }

    /// Shows a terminal that goes on the last part of what it missed.
    pub(crate) fn catch_up(&mut self, viewer: ClientStream) {
        let Some(main) = &mut self.main else { return };
        let Some(missed) = main.left_out.remove(&viewer) else { return };
        if missed == 0 {
            return;
        }
        let bytes = main.redraw(&self.dir.log(), missed.min(CATCH_UP));
        let Some(client) = self.clients.get_mut(&viewer.0) else { return };
        if missed > CATCH_UP && !main.screen.is_alternate() {
            let words = format!("\r\n[{} KiB of output were not shown here]\r\n", (missed - CATCH_UP) / 1024);
            client.data(FrameType::Stdout, viewer.1, words.as_bytes());
        }
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            client.data(FrameType::Stdout, viewer.1, chunk);
        }
    }

    /// When a terminal has held up the main session for too long.
    pub(crate) fn next_of_viewers(&self) -> Option<Instant> {
        let main = self.main.as_ref().filter(|main| main.exit.is_none())?;
        let slow = main.attached.iter().filter(|viewer| !main.left_out.contains_key(viewer));
        slow.filter(|viewer| self.screens.contains(&viewer.0))
            .filter_map(|viewer| self.clients.get(&viewer.0))
            .filter(|client| client.backlog() > SLOW_CLIENT)
            .map(|client| client.moved + PATIENCE)
            .min()
    }

    /// `--timeout` is over: TERM, and KILL a while later.
    pub(crate) fn time_is_up(&mut self) {
        let Some(main) = &mut self.main else { return };
        let Some(mut limit) = main.limit.take().filter(|_| main.exit.is_none()) else { return };
        self.status.timed_out = true;
        let signal = if limit.warned { 9 } else { 15 };
        if !std::mem::replace(&mut limit.warned, true) && limit.set(TIMEOUT_GRACE).is_ok() {
            main.limit = Some(limit);
        }
        self.agent.control(main.stream, &Message::Signal { signal });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_again_begins_where_a_terminal_can_begin() {
        assert_eq!(replayable(b"one\ntwo\n", false), b"one\ntwo\n");
        assert_eq!(replayable(b"[31m half\ntwo\n", true), b"two\n");
        assert_eq!(replayable(b"no line's end", true), b"no line's end");
        assert_eq!(replayable(b"of vim\x1b[3;4Hx\x1b[?1049lafter\n", true), b"after\n");
        assert_eq!(replayable(b"a\x1b[?1049hx\x1b[?1049lb\x1b[?47hy\x1b[?47lc", false), b"c");
    }
}
