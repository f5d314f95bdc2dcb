//! What writes on and on is frozen before it has taken what is kept for the host, or more than it may; it goes on
//! when there is room. What it committed comes home meanwhile.

use crate::kit::{LIMIT, Volume, host, nothing_left, refused, row, sound, wait_frozen, world};
use insta::assert_snapshot;
use rustix::process::{Pid, Signal};
use sandbox_testkit::{Child, Repo, TestEnv, skip, wait_until};
use std::fs;
use std::process::Stdio;

/// Commits, then writes without end, at a pace that a test can follow.
const WRITES: &str = "echo y >>a && git commit -qam made && mkdir big && n=0 && \
                      while :; do n=$((n+1)); head -c 512k /dev/zero >big/$n || echo full; sleep 0.01; done";

fn events(repo: &Repo<'_>, name: &str) -> String {
    let all = repo.sandbox(&["events", name]).ok();
    let time = regex::Regex::new(r"(?m)^\S+ \S+Z +").expect("it is a pattern");
    time.replace_all(&all, "").into_owned()
}

/// The sandbox's commits are asked for while it stands still, and come.
fn comes_home(repo: &Repo<'_>, name: &str) {
    repo.sandbox(&["fetch", name]).ok();
    let log = repo.git(&["log", "-1", "--format=%s", &format!("refs/sandbox/{name}")]).ok();
    assert_eq!(log, "made\n");
}

#[test]
fn the_reserve_of_the_host_is_not_written() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=64m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.git(&["config", "sandbox.diskReserve", "24m"]).ok();
    let ballast = volume.at().join("ballast");
    fs::write(&ballast, vec![1; 16 << 20]).expect("there is room");
    let before = host(&repo);
    repo.sandbox(&["spawn", "-q", "-d", "w", "--", "sh", "-c", WRITES]).ok();
    wait_frozen(&repo, "w", Some("disk-full"));
    // It does stand still: nothing more is written.
    let taken = || rustix::fs::statvfs(volume.at()).expect("it is mounted").f_bavail;
    let free = taken();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(taken() >= free, "it goes on writing");
    assert!(free > 0, "nothing is left for the host");
    assert_snapshot!(repo.sandbox(&["exec", "w", "--", "true"]), @r"
    ---- stderr
    error: the sandbox is frozen: its disk is full but for what is kept for the host
    hint: make room on that disk, and it goes on by itself; `git sandbox show` tells how much
    ---- status 125
    ");
    assert_snapshot!(repo.sandbox(&["start", "w"]), @r"
    ---- stderr
    error: 'w' is frozen: [SIZE] are free on its disk, and [SIZE] are kept for the host
    hint: make room, and it goes on by itself
    ---- status 125
    ");
    let listed = repo.sandbox(&["list"]).ok();
    assert!(listed.contains("running, frozen (disk full)"), "{listed}");
    let shown = repo.sandbox(&["show", "w"]).ok();
    assert!(shown.lines().any(|line| line.starts_with("frozen      'w' is frozen: ")), "{shown}");
    comes_home(&repo, "w");
    assert_eq!(host(&repo), before);
    // Room is made: it goes on by itself, until it is there again.
    fs::remove_file(&ballast).expect("it is ours");
    wait_until("it goes on", LIMIT, || events(&repo, "w").matches("'w' goes on").count() >= 1);
    wait_until("it is frozen again", LIMIT, || events(&repo, "w").matches("'w' is frozen: ").count() >= 2);
    repo.sandbox(&["stop", "w"]).ok();
    assert_eq!(row(&repo, "w")["frozen"].as_str(), None);
    // Its files are all there.
    repo.sandbox(&["cp", "w:big/1", "first"]).ok();
    assert_eq!(fs::metadata(repo.dir().join("first")).expect("it was copied").len(), 512 << 10);
    repo.sandbox(&["drop", "--force", "w"]).ok();
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    nothing_left(&repo, &env.state(), "a full disk");
    sound(&repo, "a full disk");
    drop(volume);
}

#[test]
fn the_last_inodes_are_kept() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::of(&env, 64 << 20, &["mkfs.ext4", "-q", "-N", "3000", "-m", "0"]) {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    let script = "echo y >>a && git commit -qam made && mkdir many && n=0 && \
                  while :; do n=$((n+1)); for m in 1 2 3 4 5; do : >many/$n.$m; done; sleep 0.02; done";
    repo.sandbox(&["spawn", "-q", "-d", "w", "--", "sh", "-c", script]).ok();
    wait_frozen(&repo, "w", Some("no-inodes"));
    assert!(rustix::fs::statvfs(volume.at()).expect("it is mounted").f_favail > 0);
    assert_snapshot!(repo.sandbox(&["exec", "w", "--", "true"]), @r"
    ---- stderr
    error: the sandbox is frozen: its disk has no inodes left but those kept for the host
    hint: make room on that disk, and it goes on by itself; `git sandbox show` tells how much
    ---- status 125
    ");
    comes_home(&repo, "w");
    repo.sandbox(&["stop", "w"]).ok();
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    drop(volume);
}

#[test]
fn one_sandbox_has_a_limit() {
    let env = TestEnv::new();
    let repo = world(&env);
    repo.sandbox(&["spawn", "-q", "-d", "--disk", "24m", "w", "--", "sh", "-c", WRITES]).ok();
    wait_frozen(&repo, "w", Some("limit"));
    let listed = repo.sandbox(&["list"]).ok();
    assert!(listed.contains("running, frozen (disk limit)"), "{listed}");
    let said = events(&repo, "w");
    assert!(
        said.contains("'w' has written ") && said.contains(" of 24.0 MiB that it may: at that it is frozen"),
        "{said}"
    );
    comes_home(&repo, "w");
    assert_snapshot!(repo.sandbox(&["start", "w"]), @r"
    ---- stderr
    error: 'w' is frozen: it has written [SIZE] and may write [SIZE]
    hint: `git sandbox exec w -- rm …` makes room, `git sandbox start --disk SIZE w` allows more
    ---- status 125
    ");
    // Whoever comes to make room is let in, and it goes on by itself.
    repo.sandbox(&["exec", "w", "--", "sh", "-c", "rm big/*"]).ok();
    wait_until("it goes on", LIMIT, || events(&repo, "w").matches("'w' goes on").count() >= 1);
    wait_until("it is frozen again", LIMIT, || events(&repo, "w").matches("'w' is frozen: ").count() >= 2);
    // Or it may write more.
    assert_snapshot!(repo.sandbox(&["start", "--disk", "160m", "w"]), @r"
    ---- stderr
    'w' may write [SIZE]
    'w' goes on
    ---- status 0
    ");
    wait_until("it is frozen again", LIMIT, || events(&repo, "w").matches("'w' is frozen: ").count() >= 3);
    let shown = repo.sandbox(&["show", "w"]).ok();
    assert!(shown.contains(", may write 160 MiB\n"), "{shown}");
    repo.sandbox(&["start", "--disk", "none", "w"]).ok();
    wait_frozen(&repo, "w", None);
    repo.sandbox(&["stop", "w"]).ok();
    // One file alone is never larger.
    let large = repo.sandbox(&["spawn", "-q", "--disk", "8m", "v", "--", "sh", "-c", "head -c 16m /dev/zero >one"]);
    assert_ne!(large.status, 0, "{large}");
}

/// Files without a block take inodes: they are not nothing.
#[test]
fn empty_files_count() {
    let env = TestEnv::new();
    let repo = world(&env);
    let script = "mkdir many && n=0 && while :; do n=$((n+1)); for m in 1 2 3 4 5 6 7 8 9; do : >many/$n.$m; done; sleep 0.01; done";
    repo.sandbox(&["spawn", "-q", "-d", "--disk", "2m", "w", "--", "sh", "-c", script]).ok();
    wait_frozen(&repo, "w", Some("limit"));
    repo.sandbox(&["stop", "w"]).ok();
}

/// Without a reserve it is as on any disk: programs inside are told that it is full, and go on.
#[test]
fn without_a_reserve_programs_are_told() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=32m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.git(&["config", "sandbox.diskReserve", "none"]).ok();
    let script =
        "echo y >>a && git commit -qam made && said=$(head -c 64m /dev/zero 2>&1 >big); rm big; echo \"$said\"";
    let said = repo.sandbox(&["spawn", "-q", "w", "--", "sh", "-c", script]).ok();
    assert!(said.contains("No space left on device"), "{said}");
    comes_home(&repo, "w");
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    drop(volume);
}

/// A shell that was frozen and goes on does not take its command for stopped.
#[test]
fn a_shell_goes_on_where_it_was() {
    let env = TestEnv::new();
    let repo = world(&env);
    let mut command =
        env.sandbox_command(repo.dir(), &["spawn", "-q", "--disk", "16m", "w", "--", "bash", "--norc", "-i"]);
    command.env("PS1", "$ ");
    let mut pty = sandbox_testkit::Pty::spawn(&command);
    pty.expect("$ ");
    // It waits for a child whenever that is.
    pty.send("head -c 15m /dev/zero >one; head -c 12m /dev/zero >two; until test -e go; do sleep 0.1; done; echo went-$((40+2))\r");
    pty.expect("'w' is frozen: ");
    repo.sandbox(&["start", "--disk", "none", "w"]).ok();
    repo.sandbox(&["exec", "w", "--", "touch", "go"]).ok();
    let seen = pty.expect("went-42");
    assert!(!seen.contains("Stopped"), "{seen}");
    pty.send("exit\r");
}

/// `timeout` and CI ask once, and nobody inside could hear it.
#[test]
fn one_interrupt_stops_what_is_frozen() {
    let env = TestEnv::new();
    let repo = world(&env);
    let said = env.root().join("said");
    let out = fs::File::create(&said).expect("a directory of the test");
    let mut command = env.sandbox_command(repo.dir(), &["spawn", "-q", "--disk", "24m", "w", "--", "sh", "-c", WRITES]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
    let mut client = Child::spawn(&mut command);
    let told = || fs::read_to_string(&said).expect("it was made");
    wait_until("it is told", LIMIT, || told().contains("'w' is frozen: "));
    let pid = Pid::from_raw(client.pid().cast_signed()).expect("a process");
    rustix::process::kill_process(pid, Signal::TERM).expect("our child");
    assert_eq!(client.wait(LIMIT), 130, "{}", told());
    assert!(told().contains("interrupted: 'w' was stopped, its files stay"), "{}", told());
    repo.sandbox(&["cp", "w:big/1", "first"]).ok();
    assert_eq!(fs::metadata(repo.dir().join("first")).expect("it was copied").len(), 512 << 10);
}

/// What is said where it is refused has the words that are looked for elsewhere.
#[test]
fn a_sandbox_that_is_not_frozen_runs() {
    let env = TestEnv::new();
    let repo = world(&env);
    repo.sandbox(&["spawn", "-q", "-d", "w"]).ok();
    refused(&repo.sandbox(&["start", "w"]), &["is running"]);
    assert_snapshot!(repo.sandbox(&["start", "--disk", "10g", "w"]), @r"
    ---- stderr
    'w' may write [SIZE]
    ---- status 0
    ");
    assert_eq!(row(&repo, "w")["disk_limit"].as_u64(), Some(10 << 30));
}
