//! The limit of memory where no control group holds it: what all processes inside take is looked at as often as it
//! could grow to the limit, and over it the largest is killed, as the kernel would.
//!
//! Less than a limit of the kernel: what is taken and given back between two looks is not seen, and what lies in
//! `/dev/shm` counts only while somebody has it mapped.

use crate::rescue::descendants;
use crate::supervise::{Phase, Route, Supervisor, after};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_protocol::event::Happened;
use std::fs;
use std::time::{Duration, Instant};

/// The time between two looks, at least and at most, while somebody works inside.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The same where nobody does.
const IDLE: Duration = Duration::from_secs(5);
/// Bytes that are taken in a second, at most.
const RATE: f64 = (4u64 << 30) as f64;
/// The time between two looks as a multiple of how long one takes.
const COST: u32 = 20;

/// The limit that is held here.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Bytes; `None`: there is none, or the machine holds it.
    limit: Option<u64>,
    next: Instant,
}

/// A process inside and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    pid: u32,
    bytes: u64,
}

impl Memory {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, next: Instant::now() }
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.limit.map(|_| self.next)
    }
}

/// All of a process's pages that are in memory.
fn resident(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Its share of them: pages that several have are divided. Of a process that may not be looked at, those that are
/// its own alone (which forks may share all the same).
fn share(pid: u32) -> Option<u64> {
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        return Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024);
    }
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = text.split(' ').skip(1).map_while(|field| field.parse::<u64>().ok());
    let (all, shared) = (fields.next()?, fields.next()?);
    Some(all.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// Of all processes, by one of the measures above.
fn taken(pids: &[u32], measure: impl Fn(u32) -> Option<u64>) -> Vec<Taken> {
    pids.iter().filter_map(|pid| Some(Taken { pid: *pid, bytes: measure(*pid)? })).collect()
}

fn sum(all: &[Taken]) -> u64 {
    all.iter().map(|one| one.bytes).sum()
}

impl Supervisor {
    /// Somebody starts to work in it.
    pub(crate) fn memory_touched(&mut self) {
        self.memory.next = self.memory.next.min(after(LOOK.0));
    }

    pub(crate) fn memory_timer(&mut self, now: Instant) {
        let Some(limit) = self.memory.limit.filter(|_| self.memory.next <= now) else { return };
        if matches!(self.phase, Phase::Dying { .. }) {
            self.memory.next = after(IDLE);
            return;
        }
        let init = self.machine.process().pid;
        let pids = descendants(init);
        // Shared pages counted in full first: cheap, and never too little.
        let mut used = sum(&taken(&pids, resident));
        if used > limit {
            let shares = taken(&pids, share);
            used = sum(&shares);
            if used > limit {
                self.memory_kill(init, shares, used, limit);
            }
        }
        let busy = self.routes.values().any(|route| matches!(route, Route::Main | Route::Session(_))) || pids.len() > 1;
        let until = Duration::from_secs_f64(limit.saturating_sub(used) as f64 / RATE).clamp(LOOK.0, LOOK.1);
        let pause = if busy { until.max(now.elapsed() * COST) } else { IDLE };
        self.memory.next = after(pause);
    }

    /// Kills the largest.
    fn memory_kill(&mut self, init: u32, shares: Vec<Taken>, used: u64, limit: u64) {
        let Some(largest) = shares.into_iter().max_by_key(|one| one.bytes) else { return };
        let pid = i32::try_from(largest.pid).ok().and_then(Pid::from_raw);
        let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
        // Opened first, then looked for: what this pid is now, is in the sandbox.
        if !descendants(init).contains(&largest.pid) {
            return;
        }
        let name = fs::read_to_string(format!("/proc/{}/comm", largest.pid)).unwrap_or_default();
        if pidfd_send_signal(&process, Signal::KILL).is_ok() {
            self.happened(Happened::MemoryKilled { process: name.trim_end().to_owned(), used, limit });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Of a process of its own: what else runs in this one takes and gives back at the same time.
    #[test]
    fn what_a_process_takes_is_seen() {
        let mut large = Command::new("dd")
            .args(["if=/dev/zero", "bs=64M", "count=1", "status=none"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first byte comes when the whole buffer is full; the rest does not fit into the pipe.
        large.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = large.id();
        let (resident, share) = (resident(pid).unwrap(), share(pid).unwrap());
        let all = taken(&[pid, u32::MAX], super::resident);
        large.kill().unwrap();
        large.wait().unwrap();
        for seen in [resident, share] {
            assert!((64 << 20..80 << 20).contains(&seen), "{seen}");
        }
        assert_eq!(all.iter().map(|one| one.pid).collect::<Vec<_>>(), [pid]);
    }
}
