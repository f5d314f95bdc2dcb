//! Everything that users run inside stands still, because there is no room for what it writes.
//!
//! `kill(-1)` reaches every process of the pid namespace but us, and none that it reaches can fork before it
//! stops: a fork is refused while a signal waits. What works for the supervisor goes on: the nursery, commit-back,
//! rescue, the helper of a rename that is under way.

use super::Server;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_sys::signals;
use std::fs;

impl Server {
    pub(super) fn hold(&mut self, on: bool) {
        if !on {
            return go_on();
        }
        signals::send_to_all(Signal::STOP.as_raw());
        let own = self.nursery.as_ref().map(|nursery| nursery.pid).into_iter().chain(self.worker.pid());
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

/// The youngest first: a shell that goes on before its child takes that for stopped, and says so.
fn go_on() {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    for pid in pids.into_iter().rev().filter(|pid| *pid > 1).filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::CONT);
    }
    signals::send_to_all(Signal::CONT.as_raw());
}
