//! Command-line agents at work, shown by the stand-in of `examples/stand-in`: it is laid out like the real ones and
//! speaks HTTPS with an API on loopback, under a name that only the rule of its preset leads to.

use crate::Subject;
use crate::egress::{directory, events};
use sandbox_testkit::{Child, Output, Pty, Repo, StandIn, State, skip, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

over_views_at_length! {
    two_at_once_bring_their_work_home,
    three_of_one_command,
    the_login_goes_in_only_when_it_is_wanted,
    a_key_is_in_no_list_of_arguments_and_in_no_log,
    nothing_else_of_the_home_is_inside,
    a_conversation_outlives_stop_and_start_and_forks,
    what_an_agent_leaves_uncommitted_is_committed_on_request,
    it_is_told_where_it_is,
    it_reaches_its_api_and_nothing_else,
    without_a_network_it_is_refused_before_the_start,
    its_own_sandbox_is_named,
    a_launcher_leads_to_its_real_place,
}

const LIMIT: Duration = Duration::from_secs(60);

/// Skips the test when the stand-in cannot run here.
macro_rules! needs_python {
    () => {
        if let Some(missing) = StandIn::missing() {
            skip!("{missing}");
        }
    };
}

/// The product as a user with an agent on `PATH` runs it.
fn command(subject: &Subject, repo: &Repo, args: &[&str]) -> Command {
    let mut command = subject.env.sandbox_command(repo.dir(), args);
    let mut path = subject.env.home().join(".local/bin").into_os_string();
    path.push(":");
    path.push(subject.env.path());
    command.env("PATH", path);
    command
}

#[track_caller]
fn sandbox(subject: &Subject, repo: &Repo, args: &[&str]) -> Output {
    subject.env.run(&mut command(subject, repo, args))
}

/// `spawn` of the stand-in with its login.
#[track_caller]
fn spawn(subject: &Subject, repo: &Repo, args: &[&str], agent: &[&str]) -> Output {
    let head = ["spawn", "--driver", subject.driver, "--home-file", ".standin/credentials.json"];
    sandbox(subject, repo, &[&head, args, &["--", "standin"], agent].concat())
}

fn two_at_once_bring_their_work_home(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    for name in ["a", "b"] {
        let prompt = format!("write work of {name} to {name}.txt and wait");
        spawn(subject, &repo, &["-d", name], &["-p", &prompt]).ok();
    }
    wait_until("both have asked", LIMIT, || {
        agent.requests().iter().filter(|seen| seen["path"] == "/v1/hold").count() == 2
    });
    let listed: serde_json::Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
    let running = listed.to_string().matches("\"running\"").count();
    assert!(running >= 2, "both run: {listed}");

    // The output of both, whole lines with the name in front, for as long as they run.
    let following = repo.env().root().join("followed");
    let out = fs::File::create(&following).unwrap();
    let mut follow = command(subject, &repo, &["logs", "-f", "a", "b"]);
    let mut follow = Child::spawn(follow.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()));
    let followed = || fs::read_to_string(&following).unwrap();
    wait_until("both are followed", LIMIT, || followed().matches("thinking").count() == 2);

    let mut any = command(subject, &repo, &["wait", "--any", "a", "b"]);
    let any_out = repo.env().root().join("any");
    let mut any = Child::spawn(any.stdin(Stdio::null()).stdout(fs::File::create(&any_out).unwrap()));
    assert_eq!(any.try_ended(), None);
    agent.release(true);
    assert_eq!(any.wait(LIMIT), 0);
    sandbox(subject, &repo, &["wait", "a", "b"]).ok();
    assert_eq!(follow.wait(LIMIT), 0);
    let text = followed();
    for name in ["a", "b"] {
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with(name) && line.contains("committed")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0].contains(&format!("{name}.txt")), "each line has its own name: {text}");
    }
    assert!(text.lines().all(|line| line.starts_with('a') || line.starts_with('b')), "{text}");

    for name in ["a", "b"] {
        wait_until("the commit is home", LIMIT, || {
            repo.git(&["cat-file", "-e", &format!("sandbox/{name}:{name}.txt")]).status == 0
        });
        assert!(!repo.has(&format!("{name}.txt")), "nothing is in the work tree before it is merged");
        sandbox(subject, &repo, &["merge", name]).ok();
        assert_eq!(repo.read(&format!("{name}.txt")), format!("work of {name}\n"));
    }
    let subjects = repo.git(&["log", "--format=%s"]).ok();
    assert!(
        subjects.contains("Write work of a to a.txt") && subjects.contains("Write work of b to b.txt"),
        "{subjects}"
    );
    sandbox(subject, &repo, &["drop", "a", "b"]).ok();
}

/// `--count 3`: three names, three ends that `list` tells.
fn three_of_one_command(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    let printed = spawn(subject, &repo, &["-d", "try", "--count", "3"], &["-p", "compare three ways"]).ok();
    let names: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(names.len(), 3, "{printed}");
    sandbox(subject, &repo, &[&["wait"], &*names].concat()).ok();
    assert_eq!(agent.prompts().len(), 3);
    for name in &names {
        wait_until("its commit is home", LIMIT, || {
            repo.git(&["cat-file", "-e", &format!("sandbox/{name}:ideas/compare-three-ways.md")]).status == 0
        });
    }
    let listed = sandbox(subject, &repo, &["list"]).ok();
    assert_eq!(listed.matches("exited 0").count(), 3, "{listed}");
    // One whose agent cannot get its answer ends otherwise, and that is told too.
    let printed = spawn(subject, &repo, &["-d", "--quiet", "lost"], &["--resume", "nothing", "-p", "x"]).ok();
    assert_eq!(sandbox(subject, &repo, &["wait", printed.trim()]).status, 2);
    let listed = sandbox(subject, &repo, &["list"]).ok();
    assert!(listed.contains("exited 2"), "{listed}");
}

fn the_login_goes_in_only_when_it_is_wanted(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    let spawn = ["spawn", "--driver", subject.driver];
    let ask = |args: &[&str]| {
        let mut command = command(subject, &repo, &[&spawn, args, &["--", "standin", "-p", "say hello"]].concat());
        command.env("STANDIN_API_KEY", "standin-key-of-the-environment");
        command
    };
    let inside = "cat ~/.standin/credentials.json 2>/dev/null; echo key=$STANDIN_API_KEY";

    // Nobody can be asked: it stays out, and the agent says that it is not logged in.
    let seen = subject.env.run(&mut ask(&["unasked"]));
    assert_eq!(seen.status, 3, "{seen}");
    assert!(seen.stderr.contains("not logged in"), "{seen}");
    assert_eq!(subject.exec(&repo, "unasked", inside).ok(), "key=\n");
    assert_eq!(agent.requests().len(), 0);

    // Variable by its name, without its value in the arguments.
    subject.env.run(&mut ask(&["by-env", "--env", "STANDIN_API_KEY"])).ok();
    assert!(agent.requests().last().is_some_and(|seen| seen["authorised"] == true));
    // A file of the home.
    sandbox(
        subject,
        &repo,
        &[&spawn, &["by-file", "--home-file", ".standin/credentials.json"][..], &["--", "standin", "-p", "hi"]]
            .concat(),
    )
    .ok();
    assert_eq!(subject.exec(&repo, "by-file", inside).ok(), format!("{{\"api_key\": \"{}\"}}\nkey=\n", agent.key()));
    let hashes: Vec<_> = agent.requests().iter().map(|seen| seen["key"].clone()).collect();
    assert_ne!(hashes.first(), hashes.last(), "another key: {hashes:?}");

    // On a terminal the user is asked, and the answer holds for this repository.
    let mut terminal = Pty::spawn(&command(
        subject,
        &repo,
        &[&spawn, &["asked", "--on-exit", "keep"][..], &["--", "standin", "-p", "hi"]].concat(),
    ));
    terminal.expect("credentials.json");
    terminal.send("y\r");
    terminal.expect("done (1)");
    terminal.wait();
    let again = sandbox(subject, &repo, &[&spawn, &["again"][..], &["--", "standin", "-p", "hi"]].concat());
    assert_eq!(again.status, 0, "the answer is remembered: {again}");
    let other = State::Plain.build(&subject.env, "other");
    let elsewhere = sandbox(subject, &other, &[&spawn, &["other"][..], &["--", "standin", "-p", "hi"]].concat());
    assert_eq!(elsewhere.status, 3, "but only here: {elsewhere}");
    // The host's file is as it was: what is inside is a copy.
    subject.exec(&repo, "again", "echo changed >~/.standin/credentials.json").ok();
    assert!(agent.key().starts_with("standin-key-"));
}

fn a_key_is_in_no_list_of_arguments_and_in_no_log(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    const KEY: &str = "standin-key-canary-5e1f";
    let args = ["spawn", "--driver", subject.driver, "-d", "keyed", "--env", "STANDIN_API_KEY"];
    let args = [&args[..], &["--", "standin", "-p", "keep a secret and wait"]].concat();
    subject.env.run(command(subject, &repo, &args).env("STANDIN_API_KEY", KEY)).ok();
    spawn(subject, &repo, &["-d", "filed"], &["-p", "keep another and wait"]).ok();
    wait_until("both ask", LIMIT, || agent.requests().iter().filter(|seen| seen["path"] == "/v1/hold").count() == 2);
    let (key, filed) = (KEY.to_owned(), agent.key());
    let secret = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        text.contains(&key) || text.contains(&filed)
    };
    // The control: the probe finds what is in an argument.
    let control = Child::spawn(Command::new("sh").args(["-c", "sleep 60; :", KEY]).stdin(Stdio::null()));
    let mut found = Vec::new();
    // Looked at until the control is there: a process that has just begun to be another has no arguments yet.
    wait_until("the control is found", LIMIT, || {
        found.clear();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if fs::read(entry.path().join("cmdline")).is_ok_and(|line| secret(&line)) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        found.contains(&control.pid().to_string())
    });
    found.retain(|pid| *pid != control.pid().to_string() && !is_child_of(pid, control.pid()));
    assert_eq!(found, [""; 0], "in the arguments of a process");
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "keyed"],
        &["show", "keyed", "--json"],
        &["show", "filed", "--json"],
        &["logs", "keyed"],
        &["events", "keyed"],
        &["events", "--json", "filed"],
    ] {
        let seen = sandbox(subject, &repo, args);
        assert!(!secret(seen.stdout.as_bytes()) && !secret(seen.stderr.as_bytes()), "{args:?}: {seen}");
    }
    agent.release(true);
    sandbox(subject, &repo, &["wait", "keyed", "filed"]).ok();
    for name in ["keyed", "filed"] {
        for file in fs::read_dir(directory(subject, name).join("log")).unwrap().flatten() {
            assert!(!secret(&fs::read(file.path()).unwrap()), "{}", file.path().display());
        }
    }
    // It is kept for the next start, where nobody else can read.
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(subject.env.state()).unwrap().permissions().mode() & 0o077, 0);
    // What comes home has it neither.
    let home = repo.git(&["log", "-p", "--all"]).ok();
    assert!(!secret(home.as_bytes()));
}

fn is_child_of(pid: &str, parent: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&parent.to_string()))
}

fn nothing_else_of_the_home_is_inside(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    let home = subject.env.home();
    for path in [
        ".ssh/id_ed25519",
        ".netrc",
        ".config/gh/hosts.yml",
        ".config/standin/other.json",
        ".aws/credentials",
        ".gnupg/secring.gpg",
        ".npmrc",
        ".docker/config.json",
        ".claude/.credentials.json",
        ".codex/auth.json",
        ".standin/other-secret.json",
        ".standin/sessions/0ld.jsonl",
        ".bash_history",
        "Documents/letter.txt",
    ] {
        let file = home.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "gs-canary\n").unwrap();
    }
    spawn(subject, &repo, &["only"], &["-p", "look around"]).ok();
    let script = "grep -rlsF gs-canary ~ /tmp /etc /run /dev/shm 2>/dev/null; \
        env | grep -c canary; ls -A ~/.standin | sort | tr '\\n' ' '; ls ~/.standin/sessions | wc -l";
    let seen = subject.exec(&repo, "only", script);
    assert_eq!(seen.stdout, "0\nAGENT.md ca.crt config.json credentials.json sessions 1\n", "{seen}");
    // The control: the same search finds them where they are.
    let control =
        subject.env.run(subject.env.command("sh", repo.dir()).args(["-c", "grep -rlsF gs-canary ~ | wc -l"])).ok();
    assert_eq!(control.trim(), "14");
    // Configuration is a copy: writable inside, unchanged outside.
    let before = fs::read(agent.dot().join("config.json")).unwrap();
    subject.exec(&repo, "only", "echo '{}' >~/.standin/config.json && rm ~/.standin/ca.crt").ok();
    assert_eq!(fs::read(agent.dot().join("config.json")).unwrap(), before);
    assert!(agent.dot().join("ca.crt").exists());
}

fn a_conversation_outlives_stop_and_start_and_forks(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    spawn(subject, &repo, &["talk"], &["-p", "first thing"]).ok();
    sandbox(subject, &repo, &["stop", "talk"]);
    let said = |name: &str, prompt: &str| {
        let seen = sandbox(subject, &repo, &["exec", name, "--", "standin", "--resume", "-p", prompt]);
        seen.expect(0).stdout
    };
    sandbox(subject, &repo, &["start", "talk"]).ok();
    let seen = said("talk", "second thing");
    assert!(seen.contains("done (2)"), "the API has heard both: {seen}");
    // A fork goes on with the same conversation, and from there each with its own.
    sandbox(subject, &repo, &["fork", "talk", "other"]).ok();
    assert!(said("other", "third thing, there").contains("done (3)"));
    assert!(said("talk", "third thing, here").contains("done (3)"));
    let prompts: Vec<_> = agent
        .requests()
        .iter()
        .filter_map(|seen| seen["prompts"].as_array().cloned())
        .filter(|said| !said.is_empty())
        .collect();
    assert_eq!(prompts.last().unwrap(), &["first thing", "second thing", "third thing, here"]);
    for (name, file) in [("talk", "third-thing-here"), ("other", "third-thing-there")] {
        let seen = subject.exec(&repo, name, "ls ideas").ok();
        assert!(seen.contains(file) && seen.contains("second-thing"), "{name}: {seen}");
        assert!(!seen.contains(if name == "talk" { "-there" } else { "-here" }), "{name}: {seen}");
    }
    // Nothing of it is on the host.
    assert!(!agent.dot().join("sessions").exists());
}

fn what_an_agent_leaves_uncommitted_is_committed_on_request(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    let words = ["--no-commit", "-p", "write left over to left.txt"];
    spawn(subject, &repo, &["plain"], &words);
    assert_ne!(repo.git(&["cat-file", "-e", "sandbox/plain:left.txt"]).status, 0, "without it nothing is committed");
    repo.git(&["config", "sandbox.autoCommit", "true"]).ok();
    spawn(subject, &repo, &["auto"], &words).ok();
    wait_until("the commit is home", LIMIT, || repo.git(&["cat-file", "-e", "sandbox/auto:left.txt"]).status == 0);
    assert_eq!(repo.git(&["show", "sandbox/auto:left.txt"]).ok(), "left over\n");
    let message = repo.git(&["log", "-1", "--format=%B", "sandbox/auto"]).ok();
    let (_, body) = message.split_once("\n\n").unwrap_or_default();
    assert!(body.contains("edited left.txt") && body.contains("done (1)"), "the log's last lines: {message}");
    // Detached too, with nobody there when it ends; and an agent that commits by itself gets no second commit.
    spawn(subject, &repo, &["-d", "away"], &words).ok();
    sandbox(subject, &repo, &["wait", "away"]).ok();
    wait_until("the commit is home", LIMIT, || repo.git(&["cat-file", "-e", "sandbox/away:left.txt"]).status == 0);
    spawn(subject, &repo, &["-d", "tidy"], &["-p", "write kept to kept.txt"]).ok();
    sandbox(subject, &repo, &["wait", "tidy"]).ok();
    wait_until("the commit is home", LIMIT, || repo.git(&["cat-file", "-e", "sandbox/tidy:kept.txt"]).status == 0);
    assert_eq!(repo.git(&["rev-list", "--count", "HEAD..sandbox/tidy"]).ok(), "1\n");
}

fn it_is_told_where_it_is(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    fs::write(agent.dot().join("AGENT.md"), "Always write in lower case.\n").unwrap();
    spawn(subject, &repo, &["told"], &["-p", "where are you"]).ok();
    let request = agent.requests().into_iter().find(|seen| seen["instructions"].is_string()).unwrap();
    let text = request["instructions"].as_str().unwrap();
    for word in [
        "Always write in lower case.",
        "'told'",
        "git push host",
        "refs/sandbox/told",
        "api.standin.test",
        "X-Git-Sandbox",
    ] {
        assert!(text.contains(word), "'{word}' is not in\n{text}");
    }
    let printed = subject.exec(&repo, "told", "git sandbox help agent").ok();
    assert!(printed.contains("git push host") && printed.contains("'told'"), "{printed}");
    assert_eq!(fs::read_to_string(agent.dot().join("AGENT.md")).unwrap(), "Always write in lower case.\n");
}

fn it_reaches_its_api_and_nothing_else(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    spawn(subject, &repo, &["net"], &["-p", "hello"]).ok();
    let seen = events(subject, "net");
    let network: Vec<_> = seen.iter().filter(|event| event["event"] == "network").collect();
    assert!(
        network.iter().any(|event| event["verdict"] == "allowed" && event["host"] == "api.standin.test"),
        "{seen:?}"
    );
    assert!(network.iter().all(|event| event["host"] == "api.standin.test"), "{seen:?}");
    // A host that is not of the preset is refused, and an agent whose API is taken away says so.
    let script = "python3 -c 'import urllib.request as r; r.urlopen(\"https://elsewhere.test/\")' 2>&1 | tail -n1";
    assert!(subject.exec(&repo, "net", script).ok().contains("403"));
    sandbox(subject, &repo, &["deny", "net", "api.standin.test"]).ok();
    let seen = sandbox(subject, &repo, &["exec", "net", "--", "standin", "-p", "more"]);
    assert_eq!(seen.status, 4, "{seen}");
    assert!(seen.stderr.contains("api.standin.test"), "{seen}");
    // `--allow` adds to what the preset has.
    let rule = format!("second.test=127.0.0.1:{}", agent.port());
    spawn(subject, &repo, &["more", "--allow", &rule], &["-p", "hello"]).ok();
    let script = "python3 -c 'import urllib.request as r; r.urlopen(\"https://second.test/\")' 2>&1 | tail -n1";
    let seen = subject.exec(&repo, "more", script).ok();
    assert!(seen.contains("CERTIFICATE_VERIFY_FAILED"), "it got as far as the server: {seen}");
}

fn without_a_network_it_is_refused_before_the_start(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    let refused = |args: &[&str]| {
        let seen = spawn(subject, &repo, args, &["-p", "hello"]);
        assert!(seen.status >= 125, "{seen}");
        assert!(seen.stderr.contains("api.standin.test") && seen.stderr.contains("hint: "), "{seen}");
        assert!(seen.stderr.contains("allow"), "what to do: {seen}");
    };
    refused(&["never", "--net", "none"]);
    repo.git(&["config", "sandbox.net", "none"]).ok();
    refused(&["never"]);
    repo.git(&["config", "--unset", "sandbox.net"]).ok();
    repo.write(".sandbox.toml", "net = \"none\"\n");
    refused(&["never"]);
    assert_eq!(sandbox(subject, &repo, &["list", "--json"]).ok().matches("never").count(), 0);
    assert_eq!(agent.requests().len(), 0);
}

fn its_own_sandbox_is_named(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    agent.release(true);
    let config = fs::read_to_string(agent.dot().join("config.json")).unwrap();
    fs::write(agent.dot().join("config.json"), config.replacen('{', "{\"sandbox\": \"on\", ", 1)).unwrap();
    let seen = spawn(subject, &repo, &["nested"], &["-p", "hello"]);
    assert!(seen.stderr.contains("--no-inner-sandbox"), "{seen}");
    // It is as said: with it on it fails, with the flag it works, and then nothing is said.
    assert_eq!(seen.status, 7, "{seen}");
    let seen = spawn(subject, &repo, &["flat"], &["--no-inner-sandbox", "-p", "hello"]).expect(0);
    assert!(!seen.stderr.contains("--no-inner-sandbox"), "{seen}");
}

/// The command is found by the user's `PATH`, the link is followed to where the program really is, and both places
/// are as they are outside.
fn a_launcher_leads_to_its_real_place(subject: &Subject) {
    needs_python!();
    let repo = subject.repo(State::Plain);
    let agent = StandIn::install(&subject.env);
    let share = subject.env.home().join(".local/share/standin/versions/1.0.0");
    let script = "command -v standin; readlink -f $(command -v standin); standin --version; \
        touch $(readlink -f $(command -v standin)) 2>/dev/null || echo read-only";
    // A shell is not the agent; it is asked with the preset that the agent would have.
    spawn(subject, &repo, &["run"], &["--version"]).ok();
    let seen = subject.exec(&repo, "run", script).ok();
    let expected = format!("{}\n{}/standin\nstandin 1.0.0\nread-only\n", agent.launcher().display(), share.display());
    assert_eq!(seen, expected);
}
