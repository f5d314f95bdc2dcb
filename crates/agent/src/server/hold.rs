//! Everything that users run inside stands still, because there is no room for what it writes.
//!
//! `kill(-1)` reaches every process of the pid namespace but us, and none that it reaches can fork before it
//! stops: a fork is refused while a signal waits. What works for the supervisor goes on: the nursery, commit-back,
//! rescue, the helper of a rename that is under way.
//!
//! A shell that still runs when its child stops, or runs again before the child does, takes that for a stop by
//! `^Z`, says so and gives the child up. So parents are stopped first and go on last.

use super::Server;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_sys::process::{state, state_and_parent};
use sandbox_sys::signals;
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// Above so many processes parents are not stopped first: what writes would write for too long.
const FEW: usize = 256;
/// How long that may take.
const FIRST: Duration = Duration::from_millis(50);

impl Server {
    pub(super) fn hold(&mut self, on: bool) {
        if !on {
            return go_on();
        }
        let own: Vec<Pid> =
            self.nursery.as_ref().map(|nursery| nursery.pid).into_iter().chain(self.worker.pid()).collect();
        stop_parents(&own);
        signals::send_to_all(Signal::STOP.as_raw());
        for pid in own {
            // It may have ended.
            let _ = kill_process(pid, Signal::CONT);
        }
        for pid in self.internal.iter().filter_map(|stream| self.sessions.get(stream)?.pid()) {
            // Its leader leads a group, and what it started is mostly in that.
            let _ = signals::send_to_group(pid, Signal::CONT.as_raw());
        }
    }
}

/// All processes but the first, the oldest first. That is also parents before their children, mostly: pids begin anew
/// when they are used up.
fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.retain(|pid| *pid > 1);
    pids.sort_unstable();
    pids.into_iter().filter_map(Pid::from_raw).collect()
}

/// Stops whoever waits for children, each before the next, but `own`: as well as it can be done in a short time.
fn stop_parents(own: &[Pid]) {
    let all = processes();
    if all.len() > FEW {
        return;
    }
    let number = |pid: &Pid| pid.as_raw_nonzero().get().unsigned_abs();
    let parents: BTreeSet<u32> =
        all.iter().filter_map(|pid| state_and_parent(number(pid)).ok()).map(|(_, parent)| parent).collect();
    let deadline = Instant::now() + FIRST;
    for pid in all.iter().filter(|pid| parents.contains(&number(pid)) && !own.contains(pid)) {
        // It may have ended.
        let _ = kill_process(*pid, Signal::STOP);
        // A stop is taken when it is next to run, which one that hangs in the kernel is not.
        while Instant::now() < deadline && matches!(state(number(pid)), Ok('R' | 'S')) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn go_on() {
    for pid in processes().into_iter().rev() {
        let _ = kill_process(pid, Signal::CONT);
    }
    signals::send_to_all(Signal::CONT.as_raw());
}
