//! A virtual machine whose processes are killed: nothing saved inside is lost, the list is true, it goes on.
//!
//! In few sandboxes, since each boot of an emulated guest costs seconds of processor time.

use crate::Subject;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_testkit::{Repo, State, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

over_guests! {
    a_killed_machine_has_what_was_synced,
    a_guest_reaches_what_is_listed_and_nothing_else,
}

over_guests_at_length! {
    whatever_is_killed_the_commits_that_were_reported_come_home,
    a_guest_is_forked_and_goes_back,
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
    let commit = "echo one >one; git add one; git commit -qm One; echo kept >kept.txt; echo home >~/home.txt; \
        : >.git/index.lock; : >.git/refs/heads/x.lock; sync";
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
    // Whoever had taken them is gone.
    let told = repo.sandbox(&["show", "s"]).ok();
    assert!(told.contains("/.git/index.lock'") && told.contains("cut off when the machine was killed"), "{told}");
    let look = "cat kept.txt ~/home.txt; git log -1 --format=%s; git status --porcelain";
    assert_eq!(subject.exec(&repo, "s", look).ok(), "kept\nhome\nOne\n?? kept.txt\n");
    // Both of its lives said so, and whoever looked at its disk in between.
    let console = repo.sandbox(&["show", "--console", "s"]).ok();
    assert!(console.matches("git-sandbox-guest: ready, Linux ").count() >= 2, "{console}");
    let json: Value = serde_json::from_str(&repo.sandbox(&["show", "--console", "--json", "s"]).ok()).unwrap();
    assert_eq!((&json["version"], json["console"].as_str()), (&1.into(), Some(&*console)));
}

/// A copy of the disk is of one instant, and a git command that has ended is whole in it.
fn a_guest_is_forked_and_goes_back(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    // Not synced: that is what the copy sees to.
    let work = "echo one >one; git add one; git commit -qm One; echo kept >kept.txt; mkdir -p d; mv src d/src; \
        echo talk >~/talk; echo t >/tmp/not-forked";
    subject.exec(&repo, "a", work).ok();
    let look = "git status --porcelain; git log -1 --format=%s; cat one kept.txt ~/talk; ls d/src; \
        ! test -e /tmp/not-forked || echo it was; git fsck";
    let seen = repo.sandbox(&["checkpoint", "a", "first"]).expect(0);
    assert!(
        seen.stderr.starts_with("checkpoint 1 'first' of 'a': its disk copied (")
            && seen.stderr.contains("), frozen for it\n"),
        "{seen}"
    );
    let writer = "n=0; while [ $n -lt 1000000 ]; do n=$((n+1)); echo $n >x.new; mv x.new x; done";
    let mut writing = subject.env.sandbox_command(repo.dir(), &["exec", "a", "--", "sh", "-c", writer]);
    let mut writing = writing.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("its first number", LONG, || subject.exec(&repo, "a", "test -s x").status == 0);
    let seen = repo.sandbox(&["fork", "-d", "a", "b"]).expect(0);
    assert!(
        seen.stderr.replace(" (no cgroup)", "").starts_with("sandbox 'b': as 'a' is now, its disk copied ("),
        "{seen}"
    );
    assert!(seen.stderr.contains("frozen for it"), "{seen}");
    let number = |name: &str| subject.exec(&repo, name, "cat x").ok().trim().parse::<u64>();
    let (forked, later) = (number("b").expect("a whole file"), number("a").expect("it goes on"));
    assert!(forked < later, "{forked} {later}");
    assert_eq!(number("b"), Ok(forked), "nothing writes in the fork");
    repo.sandbox(&["stop", "a"]).expect(0);
    writing.wait().unwrap();
    let child = subject.exec(&repo, "b", &format!("rm -f x x.new; {look}")).ok();
    let status = " D src/a.c\n D src/b.c\n D src/deep/er/c.c\n?? d/\n?? kept.txt\n";
    assert_eq!(child, format!("{status}One\none\nkept\ntalk\na.c\nb.c\ndeep\n"));
    // Back to the checkpoint, which no number is in; what it was is one too.
    repo.sandbox(&["drop", "--force", "b"]).expect(0);
    repo.sandbox(&["restore", "a", "first"]).expect(0);
    assert_eq!(subject.exec(&repo, "a", &format!("test ! -e x; {look}")).ok(), child);
    repo.sandbox(&["restore", "a", "2"]).expect(0);
    assert!(number("a").expect("it was whole") >= later);
    repo.sandbox(&["drop", "--force", "a"]).expect(0);
    ended(subject);
}

/// Answers each request with its body's length and a large body, for as long as the test's process lives.
fn server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let took = std::io::copy(&mut (&stream).take(length.unwrap_or(0)), &mut std::io::sink()).unwrap_or(0);
                let body = [format!("took {took}\n").into_bytes(), vec![b'x'; LARGE]].concat();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(&[answer.into_bytes(), body].concat());
            });
        }
    });
    port
}

/// More than all buffers on the way together.
const LARGE: usize = 2 << 20;

/// `ask HOST [BYTES]`: the whole answer of what is at this name.
const ASK: &str = r#"
ask() {
    exec 3<>/dev/tcp/127.0.0.1/3128
    printf "POST http://$1/ HTTP/1.1\r\nHost: $1\r\nConnection: close\r\nContent-Length: ${2:-0}\r\n\r\n" >&3
    head -c "${2:-0}" /dev/zero >&3
    cat <&3
    exec 3>&-
}
"#;

/// There is no network device: one socket of the host is all that a guest can have connections to.
fn a_guest_reaches_what_is_listed_and_nothing_else(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let rule = format!("api.test:80=127.0.0.1:{}", server());
    repo.sandbox(&["spawn", "--driver", subject.driver, "-d", "s", "--net", "allow", "--allow", &rule]).ok();
    let exec = |script: &str| repo.sandbox(&["exec", "s", "--", "bash", "-c", &format!("{ASK}{script}")]).ok();
    let asked = exec(&format!(
        "grep -c : /proc/net/dev; ask api.test {LARGE} >answer; head -1 answer; grep -a ^took answer; wc -c <answer
        ask evil.test; exec 4<>/dev/tcp/127.0.0.1/9480 || echo no mirror; rm answer"
    ));
    let lines: Vec<&str> = asked.lines().map(str::trim_end).collect();
    assert_eq!(lines[..3], ["1", "HTTP/1.1 200 OK", &format!("took {LARGE}")], "{asked}");
    assert!(lines[3].parse::<usize>().unwrap() > LARGE, "{asked}");
    assert_eq!(lines[4], "HTTP/1.1 403 Forbidden");
    assert!(lines.contains(&"X-Git-Sandbox: blocked") && lines.contains(&"no mirror"), "{asked}");
    // What is denied from now on is refused at once.
    repo.sandbox(&["deny", "s", "api.test"]).ok();
    let denied = exec("ask api.test | head -1");
    assert_eq!(denied.trim_end(), "HTTP/1.1 403 Forbidden");
    let events = repo.sandbox(&["events", "s", "--json"]).ok();
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<String> = events
        .filter(|event| event["event"] == "network" && event["verdict"] != "closed")
        .map(|event| format!("{} {}", event["verdict"].as_str().unwrap(), event["host"].as_str().unwrap()))
        .collect();
    assert_eq!(told, ["allowed api.test", "refused evil.test", "refused api.test"]);
}

/// At a moment of chance, while commits are made: what git reported, and was synced, is there.
fn whatever_is_killed_the_commits_that_were_reported_come_home(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let script = "n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo $n >f; git add f && git commit -qm $n && sync && \
        git rev-parse HEAD; done";
    let mut reported: Vec<String> = Vec::new();
    for who in ["qemu", "files", "supervisor", "qemu"] {
        let mut command = subject.env.sandbox_command(repo.dir(), &["exec", "s", "--", "sh", "-c", script]);
        let mut working = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(working.stdout.take().unwrap()).lines();
        let before = reported.len();
        reported.extend(lines.by_ref().take(2).map(|line| line.unwrap()));
        assert_eq!(reported.len(), before + 2, "{who}: git works in it again, whatever was left locked");
        let chance = u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()) / 1000 % 700;
        std::thread::sleep(Duration::from_millis(chance));
        let supervisor = process(subject, "supervisor");
        kill(match who {
            "qemu" => child(process(subject, "init"), "qemu-system"),
            "files" => child(supervisor, "__vm-fs"),
            _ => supervisor,
        });
        // A last line may be cut.
        reported.extend(lines.map_while(Result::ok).filter(|line| line.len() == 40));
        working.wait().unwrap();
        ended(subject);
        assert_eq!(row(&repo)["state"], "stopped (crashed)", "{who}");
        repo.sandbox(&["fetch", "s"]).expect(0);
        let home = repo.git(&["log", "--format=%H", "sandbox/s"]).ok();
        let lost: Vec<&String> = reported.iter().filter(|id| !home.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "{who} after {chance} ms: {lost:?} of {reported:?}");
        repo.sandbox(&["start", "s"]).ok();
    }
    repo.sandbox(&["drop", "--force", "s"]).expect(0);
}
