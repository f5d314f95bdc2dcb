//! Who dies, hangs up, is suspended or stands still, and what goes on all the same.

use crate::Subject;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_testkit::{Child, Pty, Repo, State, is_root, skip, wait_until, which};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

over_drivers! {
    a_killed_client_leaves_the_sandbox_running,
    a_crashed_sandbox_keeps_its_files_and_its_logs,
    a_terminal_that_closes_leaves_the_sandbox_running,
    attaching_draws_a_full_screen_program_again,
    two_can_be_attached_at_once,
    an_interrupt_goes_on_and_a_second_one_stops,
    a_second_interrupt_of_exec_ends_only_its_command,
    a_suspended_client_gives_the_terminal_back_and_takes_it_again,
    the_terminal_is_as_before_however_it_ends,
    a_storm_of_window_sizes_ends_with_the_last_one,
    stop_ends_what_does_not_cooperate,
    stop_makes_no_process,
    a_state_directory_that_is_removed_ends_its_sandbox,
    a_time_limit_is_one_of_boot_time,
    an_exhausted_limit_is_named,
}

const LIMIT: Duration = Duration::from_secs(300);

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    let _ = kill_process(pid, signal);
}

/// The host's pid of a role of the only sandbox that runs.
fn process(subject: &Subject, role: &str) -> u32 {
    let live = subject.env.live_processes();
    live.iter().find(|(name, _)| name == role).unwrap_or_else(|| panic!("no {role} in {live:?}")).1
}

/// The directory of the only sandbox.
fn directory(subject: &Subject) -> PathBuf {
    let mut entries = fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten();
    entries.next().expect("a sandbox").path()
}

/// A command of ours in the background, its output in a file.
fn started(subject: &Subject, repo: &Repo, args: &[&str]) -> (Child, PathBuf) {
    let path = subject.env.root().join("output");
    let out = fs::File::create(&path).unwrap();
    let mut command = subject.env.sandbox_command(repo.dir(), args);
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    (Child::spawn(&mut command), path)
}

fn state(repo: &Repo) -> String {
    repo.sandbox(&["list"]).ok()
}

const TICKS: &str = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done";

fn a_killed_client_leaves_the_sandbox_running(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let (mut client, output) =
        started(subject, &repo, &["spawn", "--driver", subject.driver, "s", "--", "sh", "-c", TICKS]);
    wait_until("it runs", LIMIT, || fs::read_to_string(&output).unwrap().contains("tick 2\n"));
    client.kill();
    let before = repo.sandbox(&["logs", "s"]).ok().lines().count();
    wait_until("it goes on", LIMIT, || repo.sandbox(&["logs", "s"]).ok().lines().count() > before + 3);
    assert!(state(&repo).contains("running"), "{}", state(&repo));
    repo.sandbox(&["stop", "s"]).ok();
    assert!(subject.env.live_processes().is_empty());
}

fn a_crashed_sandbox_keeps_its_files_and_its_logs(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "s"], &format!("echo kept >kept; {TICKS}")).ok();
    wait_until("it works", LIMIT, || repo.sandbox(&["logs", "s"]).ok().contains("tick 3\n"));
    signal(process(subject, "supervisor"), Signal::KILL);
    wait_until("nothing of it runs", LIMIT, || subject.env.live_processes().is_empty());
    assert!(state(&repo).contains("stopped (crashed)"), "{}", state(&repo));
    let log = repo.sandbox(&["logs", "s"]).ok();
    assert!(log.contains("tick 3\n"), "{log}");
    repo.sandbox(&["start", "s"]).ok();
    assert!(state(&repo).contains("running"), "{}", state(&repo));
    assert_eq!(subject.exec(&repo, "s", "cat kept").ok(), "kept\n");
    assert_eq!(repo.sandbox(&["logs", "s"]).ok(), log, "the log of the life before is still there");
    repo.sandbox(&["stop", "s"]).ok();

    // The machine was started again since: nothing of before can run, and nothing has crashed.
    let status = directory(subject).join("status.json");
    repo.sandbox(&["start", "s"]).ok();
    signal(process(subject, "supervisor"), Signal::KILL);
    wait_until("nothing of it runs", LIMIT, || subject.env.live_processes().is_empty());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&status).unwrap();
    assert!(text.contains(boot.trim()));
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    // Without its sum it is one of an earlier version.
    record.as_object_mut().unwrap().remove("sum");
    let text = record.to_string().replace(boot.trim(), "11111111-2222-3333-4444-555555555555");
    fs::write(&status, text).unwrap();
    assert!(state(&repo).contains("stopped (rebooted)"), "{}", state(&repo));
    repo.sandbox(&["start", "s"]).ok();
    assert_eq!(subject.exec(&repo, "s", "cat kept").ok(), "kept\n");
}

fn a_terminal_that_closes_leaves_the_sandbox_running(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "echo up; while read line; do echo \"got $line\"; echo $line >>lines; done";
    let mut pty = Pty::spawn(
        &subject.env.sandbox_command(repo.dir(), &["spawn", "--driver", subject.driver, "s", "--", "sh", "-c", script]),
    );
    pty.expect("up");
    pty.send("before\r");
    pty.expect("got before");
    pty.hang_up();
    assert_eq!(pty.wait().0, 0, "it left, as with Ctrl-P Ctrl-Q");
    assert!(state(&repo).contains("running"), "{}", state(&repo));
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["attach", "s"]));
    pty.expect("got before");
    pty.send("after\r");
    pty.expect("got after");
    pty.send("\x04");
    assert_eq!(pty.wait().0, 0);
    assert_eq!(subject.exec(&repo, "s", "cat lines").ok(), "before\nafter\n");
}

fn attaching_draws_a_full_screen_program_again(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // As an editor: another screen, no cursor, bracketed paste, and drawn only when the window's size is news.
    let script = r#"printf '\033[?1049h\033[?25l\033[?2004h'; last=$(stty size); echo "drawn $last"
        trap 'now=$(stty size); if [ "$now" != "$last" ]; then last=$now; echo "drawn $now"; fi' WINCH
        while :; do sleep 0.02; done"#;
    subject.spawn(&repo, &["-d", "-t", "s"], script).ok();
    wait_until("it has drawn", LIMIT, || repo.sandbox(&["logs", "s"]).ok().contains("drawn 24 80"));
    for (rows, cols) in [(24, 100), (24, 100)] {
        let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["attach", "s"]));
        pty.resize(rows, cols);
        pty.expect(&format!("drawn {rows} {cols}"));
        let shown = pty.raw();
        let has = |bytes: &[u8], what: &str| bytes.windows(what.len()).any(|part| part == what.as_bytes());
        assert!(["\x1b[?1049h", "\x1b[?25l", "\x1b[?2004h", "\x1b[2J"].iter().all(|mode| has(&shown, mode)));
        assert!(!has(&shown, "drawn 24 80"), "what was drawn before is not shown");
        pty.send("\x10\x11");
        assert_eq!(pty.wait().0, 0);
        let left = &pty.raw()[shown.len()..];
        assert!(["\x1b[?1049l", "\x1b[?25h", "\x1b[?2004l"].iter().all(|mode| has(left, mode)));
    }
}

fn two_can_be_attached_at_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "-t", "s"], "while read line; do echo \"got $line\"; done").ok();
    let attach = || Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["attach", "s"]));
    let (mut one, mut two) = (attach(), attach());
    one.expect("attached");
    two.expect("attached");
    one.send("first\r");
    one.expect("got first");
    two.expect("got first");
    two.send("second\r");
    one.expect("got second");
    two.expect("got second");
    one.send("\x10\x11");
    assert_eq!(one.wait().0, 0);
    two.send("third\r");
    two.expect("got third");
    two.send("\x04");
    assert_eq!(two.wait().0, 0);
}

fn an_interrupt_goes_on_and_a_second_one_stops(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for by in [Signal::INT, Signal::TERM] {
        let script = "trap 'echo got it' INT TERM; echo made >made; git add made; git commit -qm made; echo up; while :; do sleep 0.05; done";
        let (mut client, output) =
            started(subject, &repo, &["spawn", "--driver", subject.driver, "s", "--", "sh", "-c", script]);
        let said = || fs::read_to_string(&output).unwrap();
        wait_until("it is up", LIMIT, || said().contains("up\n"));
        signal(client.pid(), by);
        wait_until("the command got it", LIMIT, || said().contains("got it\n"));
        assert!(client.try_ended().is_none() && state(&repo).contains("running"));
        std::thread::sleep(Duration::from_millis(150));
        signal(client.pid(), by);
        assert_eq!(client.wait(LIMIT), 130, "{}", said());
        assert!(said().contains("interrupted: 's' was stopped, its files stay"), "{}", said());
        assert!(subject.env.live_processes().is_empty(), "nothing is left behind");
        assert!(!state(&repo).contains("crashed") && !state(&repo).contains("running"), "{}", state(&repo));
        assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "made\n", "its commit is here");
        assert_eq!(subject.exec(&repo, "s", "cat made").ok(), "made\n");
        repo.sandbox(&["drop", "--force", "s"]).ok();
    }
}

fn a_second_interrupt_of_exec_ends_only_its_command(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "trap 'echo got it' INT; echo up; while :; do sleep 0.05; done";
    let (mut client, output) = started(subject, &repo, &["exec", "s", "--", "sh", "-c", script]);
    let said = || fs::read_to_string(&output).unwrap();
    wait_until("it is up", LIMIT, || said().contains("up\n"));
    signal(client.pid(), Signal::INT);
    wait_until("the command got it", LIMIT, || said().contains("got it\n"));
    std::thread::sleep(Duration::from_millis(150));
    signal(client.pid(), Signal::INT);
    assert_eq!(client.wait(LIMIT), 130);
    assert!(
        said().contains("interrupted: its command was killed; `git sandbox stop s` ends the sandbox"),
        "{}",
        said()
    );
    wait_until("it is gone", LIMIT, || subject.exec(&repo, "s", "! pgrep -f 'got it' | grep -v $$").status == 0);
    assert!(state(&repo).contains("running"));
}

/// What `/proc` says that a process does.
fn doing(pid: u32) -> char {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
}

fn a_suspended_client_gives_the_terminal_back_and_takes_it_again(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // More output than a terminal takes that nobody reads.
    let script = "printf '\\033[?2004h'; echo up; read go; echo >begun; until [ -e flood ]; do sleep 0.05; done; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"a line of output, the one with number $i\"; done; echo all >done; while read line; do echo \"got $line\"; done";
    let mut pty = Pty::spawn(&subject.env.sandbox_command(
        repo.dir(),
        &["spawn", "--driver", subject.driver, "--on-exit", "keep", "s", "--", "sh", "-c", script],
    ));
    pty.expect("up");
    wait_until("the terminal is raw", LIMIT, || pty.is_raw());
    pty.send("go\r");
    // What was typed has come to the command: a client that stands still passes nothing on.
    wait_until("the command has read", LIMIT, || subject.exec(&repo, "s", "test -e begun").status == 0);
    signal(pty.pid(), Signal::TSTP);
    wait_until("it stands still", LIMIT, || doing(pty.pid()) == 'T');
    assert!(!pty.is_raw(), "the shell that goes on has its terminal");
    assert!(pty.raw().windows(8).any(|part| part == b"\x1b[?2004l"));
    subject.exec(&repo, "s", ": >flood").ok();
    wait_until("the command goes on without it", 4 * LIMIT, || subject.exec(&repo, "s", "test -e done").status == 0);
    signal(pty.pid(), Signal::CONT);
    wait_until("the terminal is raw again", LIMIT, || pty.is_raw());
    pty.expect("the one with number 20000");
    pty.send("again\r");
    pty.expect("got again");
    pty.send("\x04");
    pty.wait();
    assert!(!pty.is_raw());
}

fn the_terminal_is_as_before_however_it_ends(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let begin = |name: &str| {
        let script = "printf '\\033[?1049h\\033[?1000h'; echo ready; while read line; do :; done";
        let args = ["spawn", "--driver", subject.driver, name, "--on-exit", "keep", "--", "sh", "-c", script];
        let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args));
        pty.expect("ready");
        wait_until("the terminal is raw", LIMIT, || pty.is_raw());
        pty
    };
    let ended = |mut pty: Pty, why: &str| {
        pty.wait();
        assert!(!pty.is_raw(), "{why}");
        let shown = pty.raw();
        let has = |what: &[u8]| shown.windows(what.len()).any(|part| part == what);
        assert!(has(b"\x1b[?1049l") && has(b"\x1b[?1000l"), "{why}: {:?}", String::from_utf8_lossy(&shown));
    };
    let mut pty = begin("end");
    pty.send("\x04");
    ended(pty, "its command ended");
    let mut pty = begin("leave");
    pty.send("\x10\x11");
    ended(pty, "it was left");
    repo.sandbox(&["drop", "--force", "leave"]).ok();
    let pty = begin("hup");
    signal(pty.pid(), Signal::HUP);
    ended(pty, "HUP");
    repo.sandbox(&["drop", "--force", "hup"]).ok();
    let pty = begin("stop");
    repo.sandbox(&["stop", "stop"]).ok();
    ended(pty, "somebody stopped it");
    let pty = begin("crash");
    signal(process(subject, "supervisor"), Signal::KILL);
    ended(pty, "the supervisor was killed");
    let pty = begin("term");
    // A shell ignores TERM at its prompt, and this one reads.
    signal(pty.pid(), Signal::TERM);
    std::thread::sleep(Duration::from_millis(150));
    signal(pty.pid(), Signal::TERM);
    ended(pty, "TERM");
}

fn a_storm_of_window_sizes_ends_with_the_last_one(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["exec", "-t", "s", "--", "sh"]));
    pty.send("PS1='in> '\r");
    pty.expect("in> ");
    for n in 0..2000u16 {
        pty.resize(20 + n % 50, 60 + n % 90);
    }
    pty.resize(33, 77);
    pty.send("sleep 0.3; stty size\r");
    pty.expect("33 77");
    pty.send("exit\r");
    assert_eq!(pty.wait().0, 0);
}

fn stop_ends_what_does_not_cooperate(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let commit = "echo x >x; git add x; git commit -qm kept";
    // The first process is stopped, again and again.
    subject.idle(&repo, "s");
    let init = process(subject, "init");
    subject.exec(&repo, "s", commit).ok();
    signal(init, Signal::STOP);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                signal(init, Signal::STOP);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let stopped = repo.sandbox(&["stop", "s"]);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        stopped.ok();
    });
    assert!(subject.env.live_processes().is_empty());
    assert!(!state(&repo).contains("crashed"), "{}", state(&repo));
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "kept\n");
    // It was stopped once, from outside: then it ends as any other.
    repo.sandbox(&["start", "s"]).ok();
    signal(process(subject, "init"), Signal::STOP);
    repo.sandbox(&["stop", "s"]).ok();
    assert!(subject.env.live_processes().is_empty());
    // Somebody traces it, and keeps it.
    if which("gdb").is_none() || !is_root() {
        skip!("stopped was seen; traced needs gdb, and root");
    }
    repo.sandbox(&["start", "s"]).ok();
    let init = process(subject, "init");
    let mut gdb = subject.env.command("gdb", repo.dir());
    gdb.args(["-q", "-nx", "-p", &init.to_string(), "-ex", "shell sleep 60"]);
    let mut gdb = Child::spawn(gdb.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("it is traced", LIMIT, || doing(init) == 't');
    repo.sandbox(&["stop", "s"]).ok();
    gdb.kill();
    assert!(!state(&repo).contains("running"), "{}", state(&repo));
}

/// With no process or descriptor to be had, a sandbox can still be stopped.
fn stop_makes_no_process(subject: &Subject) {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let trace = subject.env.root().join("trace");
    // Where no process can be made, git cannot be asked anything either: as if there were none.
    let script = format!(
        "exec strace -f -qq -e trace=fork,vfork,clone,clone3 -o '{}' env PATH=/nowhere '{}' stop s",
        trace.display(),
        subject.env.root().join("bin/git-sandbox").display()
    );
    let seen = subject.env.run(&mut repo.sh_command(&script));
    assert_eq!(seen.status, 0, "{seen}");
    assert_eq!(fs::read_to_string(&trace).unwrap(), "");
    if !is_root() {
        repo.sandbox(&["start", "s"]).ok();
        let seen = subject.env.run(&mut repo.sh_command("ulimit -u 1; exec git-sandbox stop s"));
        assert_eq!(seen.status, 0, "{seen}");
    }
    // Eight descriptors: three are given, one is the kernel's way to itself.
    repo.sandbox(&["start", "s"]).ok();
    let mut few = repo.sh_command("ulimit -n 8; exec git-sandbox stop s");
    let seen = subject.env.run(&mut few);
    assert_eq!(seen.status, 0, "{seen}");
    assert!(subject.env.live_processes().is_empty());
}

fn a_state_directory_that_is_removed_ends_its_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let before = repo.sh("git for-each-ref; git status --porcelain; git fsck").ok();
    let (mut client, output) =
        started(subject, &repo, &["spawn", "--driver", subject.driver, "s", "--", "sh", "-c", TICKS]);
    wait_until("it runs", LIMIT, || fs::read_to_string(&output).unwrap().contains("tick 2\n"));
    let dir = directory(subject);
    // An overlay's work directory has mode 0.
    for n in fs::read_dir(dir.join("trees")).unwrap().flatten() {
        let work = n.path().join("work/work");
        if work.exists() {
            fs::set_permissions(work, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    fs::remove_dir_all(&dir).unwrap();
    client.wait(LIMIT);
    let said = fs::read_to_string(&output).unwrap();
    assert!(said.contains("was removed: the sandbox is stopped, its files are gone"), "{said}");
    wait_until("nothing of it runs", LIMIT, || subject.env.live_processes().is_empty());
    assert_eq!(repo.sh("git for-each-ref; git status --porcelain; git fsck").ok(), before);
    assert!(!state(&repo).contains("running"), "{}", state(&repo));
    subject.spawn(&repo, &["s"], "true").ok();
}

/// A machine that was suspended has not stood still for its user.
fn a_time_limit_is_one_of_boot_time(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "--timeout", "1h", "s"], "sleep 1000").ok();
    let supervisor = process(subject, "supervisor");
    let entries = fs::read_dir(format!("/proc/{supervisor}/fdinfo")).unwrap().flatten();
    let timers: Vec<String> = entries
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| text.lines().find_map(|line| Some(line.strip_prefix("clockid: ")?.to_owned())))
        .collect();
    assert_eq!(timers, ["7"], "CLOCK_BOOTTIME");
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{supervisor}/oom_score_adj")).unwrap(), own);
    assert_eq!(subject.exec(&repo, "s", "cat /proc/self/oom_score_adj").ok(), "500\n");
}

fn an_exhausted_limit_is_named(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = subject.env.run(&mut repo.sh_command("ulimit -n 12; exec git-sandbox spawn -q s -- true"));
    assert_eq!(seen.status, 125, "{seen}");
    assert!(seen.stderr.contains("open files (`ulimit -n`)"), "{seen}");
    assert!(subject.env.live_processes().is_empty());
    let list = state(&repo);
    assert!(!list.contains(" s "), "{list}");
    subject.spawn(&repo, &["s"], "true").ok();
}
