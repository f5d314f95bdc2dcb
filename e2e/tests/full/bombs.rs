//! What fills a machine on purpose. The host goes on: git, and a sandbox beside it; and the bomb can be stopped.
//! How long a stop took is printed, not compared.

use crate::kit::{row, sound, world};
use sandbox_testkit::{Repo, TestEnv, wait_until, which};
use std::fs;
use std::time::{Duration, Instant};

/// Lets a bomb go off in a sandbox of its own, waits for its sign, looks whether the host is usable, stops it.
fn survives(what: &str, args: &[&str], script: &str, went_off: impl Fn(&Repo<'_>) -> bool) {
    let env = TestEnv::new();
    let repo = world(&env);
    repo.sandbox(&[&["spawn", "-q", "-d"], args, &["bomb", "--", "sh", "-c", script]].concat()).ok();
    wait_until(&format!("{what} went off"), Duration::from_secs(300), || went_off(&repo));
    // The host is usable, and so is a sandbox beside it.
    sound(&repo, what);
    repo.git(&["status"]).ok();
    let beside = repo.sandbox(&["spawn", "-q", "--rm", "beside", "--", "echo", "alive"]).ok();
    assert_eq!(beside, "alive\n");
    let began = Instant::now();
    repo.sandbox(&["stop", "--grace", "0", "bomb"]);
    println!("{what}: stopped after {} ms", began.elapsed().as_millis());
    wait_until("it is stopped", Duration::from_secs(30), || env.live_processes().is_empty());
    assert!(row(&repo, "bomb")["state"].as_str().is_some_and(|state| state.starts_with("stopped")));
}

/// Processes of this user on the host whose arguments say that they are of the bomb.
fn processes(mark: &str) -> usize {
    let is_ours = |pid: &std::path::Path| {
        fs::read(pid.join("cmdline")).is_ok_and(|words| String::from_utf8_lossy(&words).contains(mark))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
        .filter(|entry| is_ours(&entry.path()))
        .count()
}

/// A word that is in no other process's arguments.
fn mark(what: &str) -> String {
    format!("{what}-{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "")
}

#[test]
fn a_fork_bomb() {
    if which("perl").is_none() {
        sandbox_testkit::skip!("no perl");
    }
    let mark = mark("fork");
    let script = format!("exec perl -e '$0 = \"{mark}\"; fork while 1'");
    survives("a fork bomb", &["--pids", "200"], &script, |_| processes(&mark) >= 100);
}

#[test]
fn a_memory_bomb() {
    if which("perl").is_none() {
        sandbox_testkit::skip!("no perl");
    }
    // Whoever is killed for it is made again.
    let script = "while :; do perl -e 'push @a, \"x\" x (8 << 20) while 1'; echo again; done";
    let killed = |repo: &Repo<'_>| repo.sandbox(&["logs", "bomb"]).stdout.contains("again") || !running(repo);
    survives("a memory bomb", &["--memory", "192m"], script, killed);
}

fn running(repo: &Repo<'_>) -> bool {
    row(repo, "bomb")["state"] == "running"
}

#[test]
fn a_disk_fill() {
    let script = "n=0; while :; do n=$((n+1)); head -c 4m /dev/zero >$n; done";
    let frozen = |repo: &Repo<'_>| row(repo, "bomb")["frozen"]["why"] == "limit";
    survives("a disk fill", &["--disk", "64m"], script, frozen);
}

#[test]
fn an_inode_fill() {
    let script = "n=0; while :; do n=$((n+1)); : >$n; done";
    let frozen = |repo: &Repo<'_>| row(repo, "bomb")["frozen"]["why"] == "limit";
    survives("an inode fill", &["--disk", "16m"], script, frozen);
}

#[test]
fn an_output_flood() {
    let flood = |repo: &Repo<'_>| {
        let shown = repo.sandbox(&["show", "--json", "bomb"]).ok();
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
        let log = std::path::Path::new(shown["directory"].as_str().expect("it has one")).join("log");
        // The ring has gone round.
        let size = |name: &str| fs::metadata(log.join(name)).map_or(0, |meta| meta.len());
        assert!(size("main.log") + size("main.log.1") <= 20 << 20, "the log is not bounded");
        size("main.log.1") > 0
    };
    survives("an output flood", &[], "exec yes 'a line of the flood that nobody reads'", flood);
}

/// A tree of processes, each the child of another or of the first.
fn tree(processes_in_it: usize) {
    if which("perl").is_none() {
        sandbox_testkit::skip!("no perl");
    }
    let mark = mark("tree");
    let script = format!(
        "exec perl -e '$0 = \"{mark}\"; for (1..{}) {{ for (1..100) {{ fork or do {{ sleep 600; exit }} }} fork and sleep 600 }} sleep 600'",
        processes_in_it / 101 + 1
    );
    let pids = (processes_in_it * 2).to_string();
    let args = ["--pids", &pids, "--memory", "none"];
    survives(&format!("{processes_in_it} processes"), &args, &script, |_| processes(&mark) >= processes_in_it);
}

#[test]
fn a_large_tree_of_processes() {
    tree(1_000);
}

#[test]
#[ignore = "takes some GiB of memory: 10 000 processes at once"]
fn ten_thousand_processes() {
    tree(10_000);
}
