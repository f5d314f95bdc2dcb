//! What tells about many agents at work: `logs` of several, `events`, `list`, `wait --any`, `allow`, `help agent`.

use crate::Subject;
use sandbox_testkit::{Pty, Repo, State, wait_until};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

over_views_at_length! {
    logs_of_several_are_whole_lines_with_a_name,
    logs_of_several_are_followed_to_the_last_end,
    logs_end_with_their_reader,
    events_tell_what_happened,
    events_are_followed_until_the_sandbox_stops,
    events_of_the_network_are_told_with_what_to_do,
    list_tells_who_ended_how,
    wait_for_any_returns_with_the_first,
    hosts_are_allowed_before_there_is_a_network,
    sets_of_hosts_are_allowed_as_their_rules,
    changes_at_once_all_count,
    a_refusal_is_told_at_once,
    a_refusal_does_not_spoil_a_full_screen,
    rules_act_on_a_running_sandbox,
    the_end_of_the_network_is_told,
    an_agent_is_told_where_it_is,
}

const LIMIT: Duration = Duration::from_secs(60);

/// A shell function that asks the proxy for a host and prints the first line of the answer.
const ASK: &str = r#"ask() {
    exec 3<>/dev/tcp/127.0.0.1/3128
    printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" "$1" >&3
    head -n 1 <&3; exec 3<&-
}
"#;

/// `log/events.jsonl` of a sandbox.
fn log_of(subject: &Subject, repo: &Repo, name: &str) -> PathBuf {
    let show: Value = serde_json::from_str(&repo.sandbox(&["show", name, "--json"]).ok()).expect("show prints JSON");
    subject.env.state().join("sandboxes").join(show["id"].as_str().expect("an id")).join("log/events.jsonl")
}

/// One sandbox as `list` tells it.
fn listed(repo: &Repo, name: &str) -> Value {
    let list: Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).expect("list prints JSON");
    let all = list["sandboxes"].as_array().expect("an array").clone();
    all.into_iter().find(|one| one["name"] == name).expect("it is listed")
}

fn logs_of_several_are_whole_lines_with_a_name(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["a"], "printf 'one\\ntwo\\r\\n'; printf '\\033[2J\\tno end'").ok();
    subject.spawn(&repo, &["other"], "echo three").ok();
    let all = "a     | one\na     | two\na     | \\u{1b}[2J\tno end\nother | three\n";
    assert_eq!(repo.sandbox(&["logs", "a", "other"]).ok(), all);
    assert_eq!(repo.sandbox(&["logs", "--all"]).ok(), all);
    assert_eq!(repo.sandbox(&["logs", "-f", "a", "other", "a"]).ok(), all, "each once");
    assert_eq!(repo.sandbox(&["logs", "-n", "1", "other", "a"]).ok(), "other | three\na     | \\u{1b}[2J\tno end\n");
    assert_eq!(repo.sandbox(&["logs", "a"]).ok(), "one\ntwo\n\\u{1b}[2J\tno end", "one as it is");
}

fn logs_of_several_are_followed_to_the_last_end(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // Each line is written in two halves, and the halves of the two sandboxes at the same time.
    for (name, half) in [("a", "aaaa"), ("b", "bbbb")] {
        let script = format!(
            "echo begin; until test -e go; do sleep 0.05; done; \
             for i in 1 2 3 4 5; do printf {half}; sleep 0.1; echo {half}; done; printf end"
        );
        subject.spawn(&repo, &["-d", name], &script).ok();
    }
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| repo.sandbox(&["logs", "-f", "a", "b"]).ok());
        for name in ["a", "b"] {
            subject.exec(&repo, name, "touch go").ok();
        }
        let seen = follower.join().expect("it ends");
        for (name, half) in [("a", "aaaa"), ("b", "bbbb")] {
            let own: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix(&format!("{name} | "))).collect();
            let whole = format!("{half}{half}");
            assert_eq!(own, [&["begin"], &[&*whole; 5][..], &["end"]].concat(), "{seen}");
        }
        assert_eq!(seen.lines().count(), 14, "{seen}");
    });
}

fn logs_end_with_their_reader(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "a"], "while :; do echo x; sleep 0.05; done").ok();
    subject.idle(&repo, "b");
    for names in ["a", "a b"] {
        let script = format!("git sandbox logs -f {names} | head -n 1 | wc -l");
        assert_eq!(repo.sh(&script).ok().trim(), "1");
    }
    repo.sandbox(&["stop", "--grace", "0s", "a"]).ok();
}

fn events_tell_what_happened(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["a"], "exit 3").expect(3);
    subject.spawn(&repo, &["b"], "exit 4").expect(4);
    let words = |seen: &str| -> Vec<String> {
        // The time: `2026-11-21 12:55:35Z  `
        seen.lines().map(|line| line.split_once("Z  ").expect("a time").1.to_owned()).collect()
    };
    let seen = repo.sandbox(&["events", "a"]).ok();
    assert_eq!(words(&seen), ["started: sh -c exit 3", "the command ended with status 3", "stopped"], "{seen}");
    assert_eq!(words(&repo.sandbox(&["events", "-n", "1", "a"]).ok()), ["stopped"]);
    let both = repo.sandbox(&["events", "b", "a"]).ok();
    assert!(both.lines().take(3).all(|line| line.starts_with("a | ")), "in the order of time: {both}");
    assert!(both.lines().skip(3).all(|line| line.starts_with("b | ")), "{both}");
    let json = repo.sandbox(&["events", "--json", "a"]).ok();
    assert_eq!(json, fs::read_to_string(log_of(subject, &repo, "a")).unwrap());
    for line in repo.sandbox(&["events", "--json", "--all"]).ok().lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert!(event["at"].is_u64() && event["event"].is_string() && event["sandbox"].is_string(), "{line}");
    }
}

fn events_are_followed_until_the_sandbox_stops(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| repo.sandbox(&["events", "-f", "--json", "a"]).ok());
        repo.sandbox(&["stop", "a"]).ok();
        let seen = follower.join().expect("it ends");
        assert!(seen.lines().last().is_some_and(|line| line.contains("\"stopped\"")), "{seen}");
    });
}

/// The lines are what the proxy writes; whatever is in them was chosen inside.
fn events_of_the_network_are_told_with_what_to_do(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["a"], "true").ok();
    let path = log_of(subject, &repo, "a");
    let mut log = fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    let lines = [
        r#"alf a line of an older file"}"#,
        r#"{"at":1790000000123,"event":"network","verdict":"refused","method":"CONNECT","host":"api.example.com","port":443,"reason":"not-allowed","process":"curl"}"#,
        r#"{"at":1790000001000,"event":"network","verdict":"refused","method":"GET","host":"x`id`\u001b[2J","port":80,"reason":"name","process":"\u001b]0;x\u0007"}"#,
        r#"{"at":1790000002000,"event":"network","verdict":"allowed","host":"a.example","port":443,"rule":"*.example"}"#,
        r#"{"at":1790000003000,"event":"network","verdict":"closed","host":"a.example","port":443,"sent":1536,"received":10,"ms":2500}"#,
        "{\"at\":1790000004000,\"event\":\"later\",\"what\":\"\u{202e}evil\"}",
    ];
    writeln!(log, "{}", lines.join("\n")).unwrap();
    assert_eq!(
        repo.sandbox(&["events", "a"]).expect(0).stdout,
        "2026-09-21 14:13:20Z  blocked api.example.com:443 (curl) — allow it with: git sandbox allow a api.example.com\n\
         2026-09-21 14:13:21Z  blocked x`id`\\u{1b}[2J:80 (\\u{1b}]0;x\\u{7}): that is not a host name\n\
         2026-09-21 14:13:22Z  allowed a.example:443, by '*.example'\n\
         2026-09-21 14:13:23Z  closed a.example:443: 1.5 KiB sent, 10 B received, 2s\n\
         2026-09-21 14:13:24Z  'later', which this version does not know\n"
    );
    let json = repo.sandbox(&["events", "--json", "a"]).ok();
    assert_eq!(json.lines().count(), 5, "{json}");
    assert!(json.lines().last().unwrap().contains(r#""what":"\u202eevil""#), "{json}");
}

fn list_tells_who_ended_how(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["term"], "kill -TERM $$").expect(143);
    subject.spawn(&repo, &["three"], "exit 3").expect(3);
    subject.spawn(&repo, &["late", "--timeout", "1s"], "exec sleep 60").expect(124);
    subject.spawn(&repo, &["-d", "busy"], "sleep 60").ok();
    let list = repo.sandbox(&["list"]).ok();
    for (name, words) in
        [("term", "killed (TERM) [AGE] ago"), ("three", "exited 3 [AGE] ago"), ("late", "timed out [AGE] ago")]
    {
        let line = list.lines().find(|line| line.starts_with(name)).expect("it is listed");
        assert!(aged(line).contains(words), "{list}");
    }
    assert!(!list.contains("DRIVER"), "one driver needs no column: {list}");
    assert_eq!(listed(&repo, "term")["signal"], "TERM");
    assert_eq!(listed(&repo, "three")["signal"], Value::Null);
    assert!(listed(&repo, "busy")["silent_seconds"].is_u64(), "silent since its start");
    repo.sandbox(&["stop", "--grace", "0s", "busy"]).ok();

    // A driver that this program does not have is still a driver in use.
    let record =
        log_of(subject, &repo, "three").parent().and_then(Path::parent).expect("a directory").join("sandbox.json");
    let text = fs::read_to_string(&record).unwrap();
    // What a hand writes has no sum.
    let (unsealed, _) = text.split_once(",\n  \"sum\"").unwrap();
    let later = unsealed.replace(&format!("\"driver\": \"{}\"", subject.driver), "\"driver\": \"later\"");
    fs::write(&record, format!("{later}\n}}\n")).unwrap();
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.starts_with("NAME   STATE") && list.lines().next().unwrap().contains("  DRIVER  "), "{list}");
    let line = list.lines().find(|line| line.starts_with("three")).expect("it is listed");
    assert!(line.contains("ago  ") && line.contains("  later  "), "{list}");
    fs::write(&record, text).unwrap();
}

/// `3s ago` and the like as one word.
fn aged(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut out = Vec::new();
    for (n, word) in words.iter().enumerate() {
        let is_age = word.ends_with(['s', 'm']) && word[..word.len() - 1].parse::<u32>().is_ok();
        out.push(if is_age && words.get(n + 1) == Some(&"ago") { "[AGE]" } else { word });
    }
    out.join(" ")
}

fn wait_for_any_returns_with_the_first(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-d", "long"], "until test -e go; do sleep 0.05; done; exit 7").ok();
    subject.spawn(&repo, &["-d", "short"], "exit 5").ok();
    let seen = repo.sandbox(&["wait", "--any", "long", "short"]);
    assert_eq!((seen.status, &*seen.stdout), (5, "short\n"), "{seen}");
    let seen = repo.sandbox(&["wait", "--any", "long", "short"]);
    assert_eq!((seen.status, &*seen.stdout), (5, "short\n"), "it had ended before: {seen}");
    std::thread::scope(|scope| {
        let all = scope.spawn(|| repo.sandbox(&["wait", "long", "short"]));
        subject.exec(&repo, "long", "touch go").ok();
        assert_eq!(all.join().expect("it ends").status, 7, "the last one's");
    });
    subject.spawn(&repo, &["-d", "more"], "exec sleep 60").ok();
    subject.idle(&repo, "crash");
    let supervisor = listed(&repo, "crash")["id"].as_str().map(|id| {
        let status = fs::read(subject.env.state().join("sandboxes").join(id).join("status.json")).unwrap();
        let status: Value = serde_json::from_slice(&status).unwrap();
        i32::try_from(status["supervisor"]["pid"].as_i64().expect("it runs")).unwrap()
    });
    let pid = supervisor.and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let seen = repo.sandbox(&["wait", "--any", "more", "crash"]);
    assert_eq!((seen.status, &*seen.stdout), (137, "crash\n"), "{seen}");
    assert_eq!(repo.sandbox(&["wait", "--any", "more", "--timeout", "1s"]).status, 124);
    repo.sandbox(&["stop", "--grace", "0s", "more"]).ok();
    let seen = repo.sandbox(&["wait", "--any", "more"]);
    assert!([143, 137].contains(&seen.status) && seen.stdout == "more\n", "{seen}");
}

fn hosts_are_allowed_before_there_is_a_network(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "true").ok();
    let says = |args: &[&str]| repo.sandbox(args).expect(0).to_string();
    assert_eq!(
        says(&["deny", "s", "evil.example"]),
        "---- stderr\ndenied for 's': evil.example\nnote: 's' has no network at all until something is allowed\n---- status 0\n"
    );
    assert_eq!(
        says(&["allow", "s", "API.example.com.", "*.example.org:8443,443"]),
        "---- stderr\nallowed for 's': api.example.com, *.example.org:443,8443\n---- status 0\n"
    );
    assert_eq!(
        says(&["allow", "s", "api.example.com"]),
        "---- stderr\nalready allowed for 's': api.example.com\n---- status 0\n"
    );
    assert_eq!(
        repo.sandbox(&["allow", "s", "--list"]).ok(),
        "allow  api.example.com\nallow  *.example.org:443,8443\ndeny   evil.example\n"
    );
    // The contrary of a rule takes its place; a rule of another shape stays, and what wins is said.
    assert_eq!(
        says(&["deny", "s", "api.example.com"]),
        "---- stderr\ndenied for 's': api.example.com\n---- status 0\n"
    );
    assert_eq!(says(&["deny", "s", "*.example.com"]), "---- stderr\ndenied for 's': *.example.com\n---- status 0\n");
    assert_eq!(
        says(&["allow", "s", "api.example.com"]),
        "---- stderr\nallowed for 's': api.example.com\n\
         note: '*.example.com' is denied all the same, and that wins over 'api.example.com'\n\
         hint: `git sandbox deny --remove s '*.example.com'` takes that back\n---- status 0\n"
    );
    assert_eq!(
        says(&["deny", "--remove", "s", "*.example.com", "evil.example"]),
        "---- stderr\nno longer denied for 's': *.example.com, evil.example\n---- status 0\n"
    );
    assert_eq!(
        says(&["allow", "--remove", "s", "nowhere.example"]),
        "---- stderr\nwas not allowed for 's': nowhere.example\n---- status 0\n"
    );
    let json: Value = serde_json::from_str(&repo.sandbox(&["allow", "s", "--json"]).ok()).expect("JSON");
    assert_eq!(json["network"], "allow");
    assert_eq!(json["allow"], serde_json::json!(["*.example.org:443,8443", "api.example.com"]));
    assert_eq!(json["deny"], serde_json::json!([]));
    let show = repo.sandbox(&["show", "s", "--json"]).ok();
    assert!(show.contains("\"network\": \"allow\""), "{show}");
    let show = repo.sandbox(&["show", "s"]).ok();
    let network = "network     only *.example.org:443,8443, api.example.com (`git sandbox allow s --list`)\n";
    assert!(show.contains(network), "{show}");

    // One that runs without has it from its next start.
    subject.idle(&repo, "live");
    let seen = says(&["allow", "live", "a.example"]);
    assert_eq!(
        seen,
        "---- stderr\nallowed for 'live' from its next start: a.example\n\
         hint: it runs without this network: `git sandbox stop live`, then `git sandbox start live`\n---- status 0\n"
    );
    let again = says(&["allow", "live", "b.example"]);
    assert!(again.contains("from its next start"), "{again}");
}

fn sets_of_hosts_are_allowed_as_their_rules(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "true").ok();
    let dir = subject.env.root().join("config/git-sandbox/hosts");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("mine.toml"), "hosts = [\"a.example\", \"*.b.example:8443\"]\n").unwrap();
    repo.sandbox(&["allow", "s", "@mine", "a.example,c.example:80,81"]).ok();
    let all = "allow  a.example\nallow  *.b.example:8443\nallow  c.example:80,81\n";
    assert_eq!(repo.sandbox(&["allow", "s", "--list"]).ok(), all);
    repo.sandbox(&["allow", "--remove", "s", "@mine"]).ok();
    assert_eq!(repo.sandbox(&["allow", "s"]).ok(), "allow  c.example:80,81\n");
}

fn changes_at_once_all_count(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "true").ok();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let repo = &repo;
            scope.spawn(move || {
                repo.sandbox(&["allow", "s", &format!("allowed{n}.example")]).ok();
                repo.sandbox(&["deny", "s", &format!("denied{n}.example")]).ok();
            });
        }
    });
    let json: Value = serde_json::from_str(&repo.sandbox(&["allow", "s", "--json"]).ok()).expect("JSON");
    assert_eq!(json["network"], "allow");
    for verb in ["allow", "deny"] {
        assert_eq!(json[verb].as_array().map(Vec::len), Some(8), "{json}");
    }
}

fn a_refusal_is_told_at_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script =
        format!("{ASK} printf begun >&2; ask x.example:443; ask x.example:443; ask y.example:8443; echo end >&2");
    let head = ["spawn", "-q", "--driver", subject.driver, "--net", "allow", "s", "--", "bash", "-c", &script];
    let seen = repo.sandbox(&head).expect(0);
    assert_eq!(seen.stdout.matches(" 403 ").count(), 3, "{seen}");
    let told = |host: &str, rule: &str| {
        let lines = seen.stderr.lines().filter(|line| line.starts_with(&format!("blocked {host} ")));
        let lines: Vec<&str> = lines.collect();
        assert_eq!(lines.len(), 1, "once: {seen}");
        assert!(lines[0].ends_with(&format!(" — allow it with: git sandbox allow s {rule}")), "{seen}");
    };
    told("x.example:443", "x.example");
    told("y.example:8443", "y.example:8443");
    assert!(!seen.stderr.contains("begunblocked"), "a line of its own: {seen}");
    let events = repo.sandbox(&["events", "s"]).ok();
    assert_eq!(events.matches("blocked x.example:443").count(), 2, "every decision is written down: {events}");
    assert!(repo.sandbox(&["list"]).ok().contains("ago, blocked 2  "), "{}", repo.sandbox(&["list"]));
    assert_eq!(listed(&repo, "s")["blocked"], 2);
}

fn a_refusal_does_not_spoil_a_full_screen(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sandbox(&["spawn", "--driver", subject.driver, "--net", "allow", "-d", "s"]).ok();
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["exec", "-t", "s", "--", "bash", "--norc"]));
    let script = format!(
        "{ASK} full() {{ printf '\\e[?1049hfull screen\\n'; read line; ask y.example:443; read line; echo with \"$line\"; \
         printf '\\e[?10'; printf '49l'; }}\n"
    );
    fs::write(repo.dir().join("script"), &script).unwrap();
    repo.sandbox(&["cp", "script", "s:script"]).ok();
    pty.send("PS1='in> '; . ./script\r");
    pty.expect("in> ");
    pty.send("ask x.example:443\r");
    pty.expect("blocked x.example:443");
    pty.expect("allow it with: git sandbox allow s x.example\n");
    pty.send("full\r");
    pty.expect("full screen\n");
    pty.send("\r");
    wait_until("the refusal is written down", LIMIT, || {
        repo.sandbox(&["events", "s"]).ok().contains("blocked y.example:443")
    });
    // Told to the client in the same moment; what follows comes after it on the same connection.
    pty.send("typed\r");
    let full = pty.expect("with typed");
    assert!(!full.contains("blocked y.example"), "{full}");
    pty.expect("blocked y.example:443");
    pty.send("exit\r");
    assert_eq!(pty.wait().0, 0);
    let seen = repo.sandbox(&["allow", "s", "x.example"]).expect(0);
    assert_eq!(seen.stderr, "allowed for 's', at once: x.example\n");
}

fn rules_act_on_a_running_sandbox(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let says = |args: &[&str]| repo.sandbox(args).expect(0).stderr;
    // Nothing is at port 1 of the loopback: allowed, it is tried, and nobody else hears of it.
    assert!(says(&["allow", "s", "x.example=127.0.0.1:1"]).starts_with("allowed for 's' from its next start: "));
    repo.sandbox(&["stop", "s"]).ok();
    repo.sandbox(&["start", "s"]).ok();
    let ask = || {
        let script = format!("{ASK} ask x.example:443");
        repo.sandbox(&["exec", "s", "--", "bash", "-c", &script]).expect(0).stdout.split(' ').nth(1).map(str::to_owned)
    };
    assert_eq!(ask().as_deref(), Some("502"), "allowed, and not there");
    assert_eq!(says(&["deny", "s", "x.example"]), "denied for 's', at once: x.example\n");
    assert_eq!(ask().as_deref(), Some("403"));
    let events = repo.sandbox(&["events", "-n", "1", "s"]).ok();
    assert!(
        events.ends_with(": 'x.example' is denied — no longer with: git sandbox deny --remove s x.example\n"),
        "{events}"
    );
    says(&["allow", "s", "x.example=127.0.0.1:1"]);
    assert_eq!(ask().as_deref(), Some("502"), "the contrary of the rule took its place");
    says(&["allow", "s", "--remove", "x.example"]);
    assert_eq!(ask().as_deref(), Some("403"));
    assert_eq!(listed(&repo, "s")["blocked"], 1, "what is not there was not blocked");
    let told = subject.exec(&repo, "s", "git sandbox help agent").ok();
    assert!(told.contains("- Only listed hosts, through the HTTP proxy"), "{told}");
}

fn the_end_of_the_network_is_told(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sandbox(&["spawn", "--driver", subject.driver, "--net", "allow", "-d", "s"]).ok();
    let mut pty = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["exec", "-t", "s", "--", "cat"]));
    pty.send("there\r");
    pty.expect("there\nthere\n");
    // It is started again three times in a minute, then no more.
    for times in 1..=4 {
        let proxy = proxy_of(subject, &repo, "s");
        rustix::process::kill_process(proxy, rustix::process::Signal::KILL).unwrap();
        if times < 4 {
            wait_until("it is there again", Duration::from_secs(10), || {
                let told = repo.sandbox(&["events", "s"]).ok();
                told.matches("the network of 's' was cut and is there again: ").count() == times
            });
        }
    }
    pty.expect("the network of 's' was cut and is there again: its proxy ended (signal: 9 (SIGKILL))");
    pty.expect("the network of 's' has ended: ");
    assert!(repo.sandbox(&["events", "s"]).ok().contains("the network of 's' has ended: "));
    pty.send("\x04");
    assert_eq!(pty.wait().0, 0, "the session goes on without");
}

/// The child of a sandbox's supervisor that is its proxy.
fn proxy_of(subject: &Subject, repo: &Repo, name: &str) -> rustix::process::Pid {
    let dir = log_of(subject, repo, name);
    let policy = dir.parent().and_then(Path::parent).expect("a directory").join("network.json");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()) else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        if words.nth(1) == Some(b"__proxy") && words.next() == Some(policy.to_string_lossy().as_bytes()) {
            found.extend(rustix::process::Pid::from_raw(pid));
        }
    }
    assert_eq!(found.len(), 1, "one proxy");
    found[0]
}

fn an_agent_is_told_where_it_is(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let inside = subject.spawn(&repo, &["s"], "git sandbox help agent").ok();
    assert!(inside.starts_with("You are in the sandbox 's'"), "{inside}");
    assert!(inside.contains("- There is none, only a loopback device."), "{inside}");
    assert!(inside.contains("`git sandbox allow s HOST`"), "{inside}");
    assert_eq!(repo.sandbox(&["help", "agent", "s"]).ok(), inside, "outside it is the same");
    let inside = subject.spawn(&repo, &["h", "--net", "host"], "git sandbox help agent").ok();
    assert!(inside.contains("- It is the network of the user's machine"), "{inside}");
    repo.sandbox(&["allow", "s", "a.example"]).ok();
    let rules = repo.sandbox(&["help", "agent", "s"]).ok();
    assert!(rules.contains("  Allowed when this was written: a.example.\n"), "{rules}");
    assert!(repo.sandbox(&["help", "agent"]).ok().contains("What the network allows is not known here"));
}
