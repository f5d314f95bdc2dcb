//! A virtual machine whose processes are killed: nothing saved inside is lost, the list is true, it goes on.
//!
//! In few sandboxes, since each boot of an emulated guest costs seconds of processor time.

use crate::Subject;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_testkit::{Repo, State, wait_until};
use serde_json::Value;
use std::time::Duration;

over_guests! {
    a_killed_machine_has_what_was_synced,
}

/// Emulated, on a busy machine.
const LONG: Duration = Duration::from_secs(300);

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

/// The supervisor, or the first process of QEMU's namespace.
fn process(subject: &Subject, role: &str) -> u32 {
    let live = subject.env.live_processes();
    live.iter().find(|(is, _)| is == role).unwrap_or_else(|| panic!("no {role}: {live:?}")).1
}

fn child(of: u32, program: &str) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
    let is = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|words| String::from_utf8_lossy(&words).contains(program))
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).find(is).unwrap_or_else(|| panic!("no {program}"))
}

fn ended(subject: &Subject) {
    wait_until("nothing of it runs", LONG, || subject.env.live_processes().is_empty());
}

/// What `list` tells of the only sandbox.
fn row(repo: &Repo) -> Value {
    let list: Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
    list["sandboxes"][0].clone()
}

/// As a power cut: what was synced is there.
fn a_killed_machine_has_what_was_synced(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    assert_eq!(row(&repo)["state"], "running");
    let commit = "echo one >one; git add one; git commit -qm One; echo kept >kept.txt; echo home >~/home.txt; sync";
    subject.exec(&repo, "s", commit).ok();
    kill(child(process(subject, "init"), "qemu-system"));
    ended(subject);
    assert_eq!(row(&repo)["state"], "stopped (crashed)");
    // Nobody has asked its disk since.
    assert_eq!(row(&repo)["uncommitted_unknown"], true);
    let told = repo.sandbox(&["show", "s"]).ok();
    assert!(told.contains("is not known before `git sandbox diff s --uncommitted` asks"), "{told}");
    let refused = repo.sandbox(&["drop", "s"]);
    assert!(refused.status == 1 && refused.stderr.contains("kept.txt"), "{refused}");
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "One\n");
    repo.sandbox(&["start", "s"]).ok();
    let look = "cat kept.txt ~/home.txt; git log -1 --format=%s; git status --porcelain";
    assert_eq!(subject.exec(&repo, "s", look).ok(), "kept\nhome\nOne\n?? kept.txt\n");
}
