//! A command that has to pass before a merge lands, and attempts of which a command tells the best.

use crate::Subject;
use sandbox_testkit::{Origin, Output, Pty, Repo, State, skip, tree_digest, wait_until, which};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

over_views_at_length! {
    what_passes_lands_and_what_does_not_is_shown,
    the_result_is_tested_as_it_lands,
    who_broke_it_is_found_and_the_others_land,
    all_or_nothing_is_said_before_anything_is_written,
    where_it_fails_anyway_nobody_is_blamed,
    a_host_that_moves_meanwhile_is_tested_again,
    what_takes_too_long_has_failed,
    an_interrupt_or_a_kill_leaves_nothing,
    a_setting_and_a_project_file_ask_for_it,
    what_is_taken_at_the_end_is_tested_too,
    the_settings_say_what_a_check_may_reach,
    the_best_of_several_is_told,
    what_is_not_kept_is_in_the_trash,
    each_attempt_has_its_own_name_and_number,
}

/// A sandbox that adds a file and commits.
fn adds(subject: &Subject, repo: &Repo, name: &str, file: &str) {
    subject.spawn(repo, &["-q", name], &format!("echo {name} >{file}; git add {file}; git commit -qm '{name}'")).ok();
}

/// Subjects of the newest commits that are no merges, the oldest of them first.
fn subjects(repo: &Repo, n: usize) -> String {
    repo.git(&["log", "--no-merges", "--topo-order", "--reverse", "--format=%s", &format!("-{n}")]).ok()
}

/// What checks leave: directories of sandboxes, temporary files, processes that run one or let one out.
fn left(subject: &Subject) -> (usize, usize, usize) {
    let entries = |part: &str| fs::read_dir(subject.env.state().join(part)).map_or(0, Iterator::count);
    let state = subject.env.state().to_string_lossy().into_owned();
    let runs = |entry: std::io::Result<fs::DirEntry>| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let ours = line.contains("__check") || line.contains("__proxy");
        (ours && line.contains(&state)).then_some(())
    };
    (entries("sandboxes"), entries("tmp"), fs::read_dir("/proc").unwrap().filter_map(runs).count())
}

fn logs(subject: &Subject) -> Vec<PathBuf> {
    let repos = fs::read_dir(subject.env.state().join("repos")).unwrap();
    let dirs = repos.filter_map(|repo| fs::read_dir(repo.unwrap().path().join("checks")).ok());
    dirs.flatten().map(|log| log.unwrap().path()).collect()
}

fn what_passes_lands_and_what_does_not_is_shown(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    adds(subject, &repo, "a", "new");
    let (before, digest) = (left(subject), tree_digest(repo.dir()));
    let seen =
        repo.sandbox(&["merge", "--check", "echo one; echo two >&2; printf '\\033[31mred\\n'; test ! -e new", "a"]);
    assert_eq!(seen.status, 1, "{seen}");
    assert!(seen.stderr.contains("checking 'a' with `echo one"), "{seen}");
    assert!(seen.stderr.contains("'a': status 1 after "), "{seen}");
    assert!(seen.stderr.contains("does not pass with it: status 1"), "{seen}");
    assert!(seen.stderr.contains("  | one\n  | two\n  | \\u{1b}[31mred\n  its output is in '"), "{seen}");
    let [log] = &logs(subject)[..] else { panic!("{:?}", logs(subject)) };
    assert_eq!(fs::read(log).unwrap(), b"one\ntwo\n\x1b[31mred\n");
    assert_eq!(tree_digest(repo.dir()), digest, "nothing was written");
    let seen = repo.sandbox(&["merge", "--check", "test -e new", "a"]).expect(0);
    assert!(seen.stderr.contains("'a': passed after ") && seen.stderr.contains("fast-forwarded by 1 commit"), "{seen}");
    assert_eq!(repo.read("new"), "a\n");
    assert_eq!(left(subject), before);
    let seen = repo.sandbox(&["merge", "--check", "true", "a"]).expect(1);
    assert!(seen.stderr.contains("nothing to merge"), "{seen}");
    repo.sandbox(&["undo"]).ok();
    assert!(!repo.has("new"));
}

fn the_result_is_tested_as_it_lands(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.write(".git/info/exclude", "deps/\n");
    repo.write("deps/lib", "dependency\n");
    adds(subject, &repo, "a", "new");
    repo.commit("here", "moved on\n");
    repo.write("README.md", "not committed\n");
    repo.write("untracked", "not committed\n");
    // Both sides, what is ignored, and nothing of what is not committed.
    let check = "test -e new && test -e here && cat deps/lib && ! test -e untracked && ! grep -q committed README.md && \
        test -z \"$(git status --porcelain)\" && git log -1 --format=%s && test \"$(git rev-parse HEAD^1)\" = ";
    let check = format!("{check}{}", repo.id("HEAD"));
    let seen = repo.sandbox(&["merge", "--check", &check, "a"]).expect(0);
    assert_eq!(repo.read("new"), "a\n", "{seen}");
    assert_eq!((repo.read("README.md"), repo.read("untracked")), ("not committed\n".into(), "not committed\n".into()));
    // A dry run tests nothing.
    adds(subject, &repo, "b", "other");
    let seen = repo.sandbox(&["merge", "--check", "false", "--dry-run", "b"]).expect(0);
    assert!(seen.stdout.ends_with("check     false\n") && !seen.stderr.contains("checking"), "{seen}");
    assert!(!repo.has("other"));
}

/// Five sandboxes, of which `c` breaks what is asked for.
fn queue<'e>(subject: &'e Subject) -> Repo<'e> {
    let repo = subject.repo(State::Plain);
    for name in ["a", "b", "c", "d", "e"] {
        adds(subject, &repo, name, &format!("{name}.txt"));
    }
    repo
}

fn who_broke_it_is_found_and_the_others_land(subject: &Subject) {
    let repo = queue(subject);
    let before = left(subject);
    let args = ["merge", "--in-order", "--jobs", "3", "--check", "ls *.txt; test ! -e c.txt", "--all"];
    let seen = repo.sandbox(&args).expect(1);
    assert!(
        seen.stderr.contains("left out 'c': `ls *.txt; test ! -e c.txt` does not pass with it: status 1"),
        "{seen}"
    );
    assert!(seen.stderr.contains("merged 4 sandboxes from 'a', 'b', 'd', 'e' into 'main'"), "{seen}");
    assert_eq!(subjects(&repo, 4), "a\nb\nd\ne\n");
    assert!(!repo.has("c.txt") && repo.has("e.txt"));
    assert_eq!(left(subject), before);
    assert_eq!(logs(subject).len(), 1, "only what is to blame is kept");
    // One that collides only with who broke it lands in its place.
    let repo = State::Plain.build(&subject.env, "second");
    for (name, text) in [("x", "bad"), ("y", "good")] {
        subject.spawn(&repo, &["-q", name], &format!("echo {text} >same; git add same; git commit -qm {name}")).ok();
    }
    let seen = repo.sandbox(&["merge", "--in-order", "--check", "! grep bad same", "x", "y"]).expect(1);
    assert_eq!(repo.read("same"), "good\n", "{seen}");
    assert!(seen.stderr.contains("left out 'x'") && !seen.stderr.contains("left out 'y'"), "{seen}");
}

fn all_or_nothing_is_said_before_anything_is_written(subject: &Subject) {
    let repo = queue(subject);
    let digest = tree_digest(repo.dir());
    let seen = repo.sandbox(&["merge", "--atomic", "--check", "test ! -e c.txt", "--all"]).expect(1);
    assert!(seen.stderr.contains("error: cannot merge all of them: 'c' would be left out"), "{seen}");
    assert_eq!(tree_digest(repo.dir()), digest);
    // What a script reads.
    let seen = repo.sandbox(&["merge", "--in-order", "--json", "--check", "test ! -e c.txt", "--all"]).expect(1);
    let lines: Vec<serde_json::Value> = seen.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(of("started")[0]["sandboxes"], serde_json::json!(["a", "b", "c", "d", "e"]));
    assert!(of("finished").iter().any(|line| line["passed"] == false && line["status"] == 1), "{seen}");
    let result = lines.last().unwrap();
    assert_eq!((&result["event"], &result["landed"], &result["version"]), (&"result".into(), &true.into(), &1.into()));
    assert_eq!((&result["broken"][0]["name"], &result["broken"][0]["status"]), (&"c".into(), &1.into()));
    assert_eq!(result["merged"].as_array().unwrap().len(), 4);
    assert!(PathBuf::from(result["broken"][0]["log"].as_str().unwrap()).is_file());
}

fn where_it_fails_anyway_nobody_is_blamed(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    adds(subject, &repo, "a", "new");
    adds(subject, &repo, "b", "other");
    let digest = tree_digest(repo.dir());
    let seen = repo.sandbox(&["merge", "--check", "echo broken; exit 3", "a", "b"]).expect(1);
    assert!(seen.stderr.contains("error: `echo broken; exit 3` does not pass on 'main' as it is\n"), "{seen}");
    assert!(seen.stderr.contains("caused by: status 3 after "), "{seen}");
    assert!(seen.stderr.contains("hint: no sandbox can be blamed, and nothing was merged"), "{seen}");
    assert!(!seen.stderr.contains("left out"), "{seen}");
    assert_eq!(tree_digest(repo.dir()), digest);
    // What mends the branch lands, with or without others.
    repo.sandbox(&["merge", "--check", "test -e new", "a", "b"]).expect(0);
}

fn a_host_that_moves_meanwhile_is_tested_again(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    adds(subject, &repo, "a", "new");
    // Long enough for the host to move meanwhile; the second time it is over at once.
    let mut merge = subject.env.start(repo.dir(), &["merge", "--check", "test -e moved || sleep 3", "a"]);
    wait_until("the check to begin", Duration::from_secs(60), || left(subject).0 > 1);
    repo.commit("moved", "on\n");
    assert_eq!(merge.wait(Duration::from_secs(90)), 0);
    assert_eq!((repo.read("new"), repo.read("moved")), ("a\n".into(), "on\n".into()));
    assert_eq!(repo.git(&["log", "--format=%s", "--first-parent", "-2"]).ok().lines().count(), 2);
    // What is tested again and does not pass then does not land.
    adds(subject, &repo, "b", "other");
    let mut merge = subject.env.start(repo.dir(), &["merge", "--check", "test ! -e later && sleep 3", "b"]);
    wait_until("the check to begin", Duration::from_secs(60), || left(subject).0 > 2);
    repo.commit("later", "on\n");
    assert_eq!(merge.wait(Duration::from_secs(90)), 1);
    assert!(!repo.has("other"));
}

fn what_takes_too_long_has_failed(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    adds(subject, &repo, "a", "slow");
    let before = left(subject);
    let check = "echo begun; test ! -e slow || sleep 100";
    let seen = repo.sandbox(&["merge", "--check", check, "--check-timeout", "1s", "a"]).expect(1);
    assert!(seen.stderr.contains("'a': ended after 1s: that was its time\n"), "{seen}");
    assert!(seen.stderr.contains("  | begun\n"), "{seen}");
    assert_eq!(left(subject), before);
    for (args, what) in [
        (&["merge", "--check", "true", "--check-timeout", "soon", "a"][..], "error: 'soon' is not a time\n"),
        (&["merge", "--check", " ", "a"], "error: --check needs a command\n"),
        (&["merge", "--check", "true", "--no-check", "a"], "cannot be used with"),
        (&["merge", "--check", "true", "--jobs", "0", "a"], "invalid value '0'"),
        (&["run", "--best-of", "2", "--", "true"], "error: --best-of needs a check to tell which is best\n"),
    ] {
        let seen = repo.sandbox(args).expect(129);
        assert!(seen.stderr.contains(what), "{seen}");
    }
    // A command that is not there.
    let seen = repo.sandbox(&["merge", "--check", "no-such-command", "a"]).expect(1);
    assert!(seen.stderr.contains("status 127") && seen.stderr.contains("no-such-command: not found"), "{seen}");
}

fn an_interrupt_or_a_kill_leaves_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    adds(subject, &repo, "a", "new");
    adds(subject, &repo, "b", "other");
    let (before, digest) = (left(subject), tree_digest(repo.dir()));
    let args = ["merge", "--jobs", "2", "--check", "sleep 100", "a", "b"];
    let mut terminal = Pty::spawn(&subject.env.sandbox_command(repo.dir(), &args));
    terminal.expect("checking");
    wait_until("both to run", Duration::from_secs(60), || left(subject).2 == 2);
    terminal.send("\x03");
    let (status, text) = terminal.wait();
    assert_eq!(status, 130, "{text}");
    assert!(text.contains("interrupted: nothing was merged, and nothing of the checks is left"), "{text}");
    assert_eq!(left(subject), before);
    // Killed, what ran ends by itself and takes its sandbox with it.
    let mut merge = subject.env.start(repo.dir(), &args);
    wait_until("both to run", Duration::from_secs(60), || left(subject).2 == 2);
    merge.kill();
    merge.wait(Duration::from_secs(10));
    wait_until("all to end", Duration::from_secs(30), || left(subject).2 == 0);
    repo.sandbox(&["gc"]).ok();
    assert_eq!(left(subject), before);
    assert_eq!(tree_digest(repo.dir()), digest);
}

fn a_setting_and_a_project_file_ask_for_it(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    for name in ["a", "b", "c", "d"] {
        adds(subject, &repo, name, &format!("{name}.txt"));
    }
    // What a repository asks for runs only if somebody agreed.
    repo.write(".sandbox.toml", "check = \"test ! -e a.txt\"\n");
    let seen = repo.sandbox(&["merge", "a"]).expect(0);
    assert!(
        seen.stderr.contains("not checked: '.sandbox.toml' asks for `test ! -e a.txt`, and nobody agreed"),
        "{seen}"
    );
    let merge = |name: &str| Pty::spawn(&subject.env.sandbox_command(repo.dir(), &["merge", name]));
    let mut asked = merge("b");
    asked.expect("shall it run, in a sandbox, before each merge here? [y/N]");
    asked.send("y\n");
    let (status, text) = asked.wait();
    assert!(status == 1 && text.contains("remembered: `--no-check` merges without it"), "{text}");
    assert!(text.contains("does not pass on 'main' as it is"), "a.txt is here: {text}");
    // Nobody is asked again, and another command is another question.
    let seen = repo.sandbox(&["merge", "b"]).expect(1);
    assert!(seen.stderr.contains("does not pass on 'main' as it is"), "{seen}");
    repo.sandbox(&["merge", "--no-check", "b"]).expect(0);
    repo.write(".sandbox.toml", "check = \"false\"\n");
    let mut asked = merge("c");
    asked.expect("[y/N]");
    asked.send("n\n");
    let (status, text) = asked.wait();
    assert!(status == 0 && text.contains("remembered: `--check CMD` checks all the same"), "{text}");
    let seen = repo.sandbox(&["merge", "--dry-run", "d"]).expect(0);
    assert!(seen.stderr.contains("not checked, as you said: '.sandbox.toml' asks for `false`"), "{seen}");
    // The user's own setting comes first.
    repo.git(&["config", "sandbox.check", "test -e d.txt"]).ok();
    let seen = repo.sandbox(&["merge", "d"]).expect(0);
    assert!(seen.stderr.contains("checking 'd' with `test -e d.txt`") && !seen.stderr.contains("toml"), "{seen}");
    repo.git(&["config", "sandbox.checkTimeout", "soon"]).ok();
    let seen = repo.sandbox(&["merge", "a"]).expect(128);
    assert!(seen.stderr.contains("error: 'soon' is not a value of sandbox.checkTimeout\n"), "{seen}");
}

fn what_is_taken_at_the_end_is_tested_too(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let start = repo.id("HEAD");
    let script = "echo x >x.txt; git add x.txt; git commit -qm x";
    repo.git(&["config", "sandbox.check", "test ! -e x.txt"]).ok();
    let seen = subject.spawn(&repo, &["s", "--on-exit", "merge"], script).expect(0);
    assert!(seen.stderr.contains("kept: `git sandbox merge s` takes them later\n"), "{seen}");
    assert_eq!(repo.id("HEAD"), start);
    repo.git(&["config", "sandbox.check", "test -e x.txt"]).ok();
    let seen = subject.spawn(&repo, &["t", "--on-exit", "merge"], script).expect(0);
    assert!(seen.stderr.contains("checking 't' with `test -e x.txt`"), "{seen}");
    assert_eq!((repo.id("HEAD"), repo.read("x.txt")), (repo.id("sandbox/t"), "x\n".to_owned()), "{seen}");
}

/// As of any other sandbox here that has no flags of its own.
fn the_settings_say_what_a_check_may_reach(subject: &Subject) {
    if let Some(missing) = Origin::missing() {
        skip!("{missing}");
    }
    if which("curl").is_none() {
        skip!("no curl");
    }
    let repo = subject.repo(State::Plain);
    let origin = Origin::start(&subject.env, &["allow.test"]);
    repo.write(".git/info/exclude", "deps/\n");
    repo.write("deps/trust.txt", fs::read(origin.ca()).unwrap());
    adds(subject, &repo, "a", "new");
    adds(subject, &repo, "b", "other");
    let before = left(subject);
    let asked = || origin.log().iter().filter(|line| line.contains("https allow.test GET /")).count();
    let get = "curl -fsS --cacert deps/trust.txt https://allow.test/";
    let seen = repo.sandbox(&["merge", "--check", get, "a"]).expect(1);
    assert!(!seen.stderr.contains("not let out"), "there is no proxy: {seen}");
    repo.git(&["config", "sandbox.net", "allow"]).ok();
    let seen = repo.sandbox(&["merge", "--check", get, "a"]).expect(1);
    assert!(seen.stderr.contains("  | [not let out: allow.test]\n"), "{seen}");
    assert_eq!(origin.log(), [""; 0]);
    repo.git(&["config", "sandbox.allow", &origin.rule("allow.test")]).ok();
    let seen = repo.sandbox(&["merge", "--check", get, "a"]).expect(0);
    assert!(repo.has("new") && asked() == 1, "{seen}{:?}", origin.log());
    // The repository may only tighten it.
    repo.write(".sandbox.toml", "net = \"none\"\n");
    let seen = repo.sandbox(&["merge", "--check", get, "b"]).expect(1);
    assert!(!repo.has("other") && asked() == 1, "{seen}");
    fs::remove_file(repo.dir().join(".sandbox.toml")).unwrap();
    assert_eq!(left(subject), before, "no proxy goes on, and no directory is left");
    // What an attempt may reach, its check may reach.
    repo.git(&["config", "--unset-all", "sandbox.net"]).ok();
    repo.git(&["config", "--unset-all", "sandbox.allow"]).ok();
    let head = ["run", "--driver", subject.driver, "--best-of", "2", "--check", get, "--allow"];
    let attempt = ["try", "--", "sh", "-c", "echo made >made"];
    let seen = repo.sandbox(&[&head[..], &[&origin.rule("allow.test")], &attempt].concat()).expect(0);
    assert_eq!(asked(), 3, "{seen}");
    repo.git(&["config", "sandbox.net", "wifi"]).ok();
    let seen = repo.sandbox(&["merge", "--check", "true", "b"]).expect(128);
    assert!(seen.stderr.contains("error: 'wifi' is not a value of sandbox.net\n"), "{seen}");
}

/// Three attempts: the first changes much and passes, the second little and passes, the third does not pass.
fn best_of(subject: &Subject, repo: &Repo, args: &[&str], script: &str) -> Output {
    let head = ["run", "--driver", subject.driver, "--best-of", "3", "--check", "test -e done"];
    repo.sandbox(&[&head, args, &["--", "sh", "-c", script]].concat())
}

const ATTEMPT: &str = "case {index} in \
    1) seq 30 >done; git add done; git commit -qm much;; \
    2) echo {name} >done; git add done; git commit -qm little; echo more >extra;; \
    3) echo no >not-done; exit 4;; esac";

fn the_best_of_several_is_told(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = best_of(subject, &repo, &["fix"], ATTEMPT).expect(0);
    let rows: Vec<Vec<&str>> = seen.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["RANK", "NAME", "CHECK", "CHANGED", "COMMAND"]);
    assert_eq!((rows[1][1], rows[1][2]), ("fix-2", "passed"));
    assert_eq!((rows[2][1], rows[2][2]), ("fix-1", "passed"));
    assert_eq!((rows[3][1], rows[3][2], *rows[3].last().unwrap()), ("fix-3", "failed", "4"));
    assert!(seen.stderr.contains("hint: `git sandbox merge fix-2` takes the best"), "{seen}");
    assert!(seen.stderr.contains("1 file is not committed in it"), "{seen}");
    // The check has left nothing in what is merged, nor beside it.
    assert_eq!(subject.exec(&repo, "fix-2", "cat done; git status --porcelain").ok(), "fix-2\n?? extra\n");
    assert_eq!(left(subject).0, 3);
    repo.sandbox(&["merge", "fix-2"]).ok();
    assert_eq!(repo.read("done"), "fix-2\n");
    // None passes: status 1, and what the check printed is kept.
    let seen = best_of(subject, &repo, &["none", "--json", "--keep", "best"], "rm done; echo {index} >x").expect(1);
    let told: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!((&told["version"], &told["best"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(told["attempts"].as_array().unwrap().iter().filter(|row| row["kept"] == true).count(), 3);
    assert!(seen.stderr.contains("none passes: all are kept"), "{seen}");
}

fn what_is_not_kept_is_in_the_trash(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = best_of(subject, &repo, &["fix", "--keep", "passing", "--jobs", "1"], ATTEMPT).expect(0);
    assert!(seen.stderr.contains("dropped 'fix-3' into the trash"), "{seen}");
    let names = || repo.sandbox(&["list", "--json"]).ok().matches("\"name\": \"").count();
    assert_eq!(names(), 2);
    repo.sandbox(&["trash", "restore", "fix-3"]).ok();
    assert_eq!(subject.exec(&repo, "fix-3", "cat not-done").ok(), "no\n", "nothing of it is lost");
    repo.sandbox(&["drop", "--all", "--force"]).expect(0);
    let seen = best_of(subject, &repo, &["t{index}x", "--keep", "best", "-q"], ATTEMPT).expect(0);
    assert!(seen.stderr.contains("dropped 't1x' into the trash"), "{seen}");
    assert!(repo.sandbox(&["list"]).ok().contains("\nt2x ") && names() == 1);
}

fn each_attempt_has_its_own_name_and_number(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "name=shell; echo {name} {index} ${name} $1";
    let args = ["spawn", "--driver", subject.driver, "-d", "--count", "2", "w-{index}", "--"];
    let seen = repo.sandbox(&[&args[..], &["sh", "-c", script, "sh", "--seed={index}"]].concat()).expect(0);
    assert_eq!(seen.stdout, "w-1\nw-2\n");
    assert_eq!(repo.sandbox(&["wait", "w-1", "w-2"]).status, 0);
    assert_eq!(repo.sandbox(&["logs", "w-2"]).ok(), "w-2 2 shell --seed=2\n");
    assert!(repo.sandbox(&["show", "w-1"]).ok().contains("echo w-1 1 ${name}"));
    // Whoever is ready first.
    let args = [
        "spawn",
        "--driver",
        subject.driver,
        "-d",
        "--count",
        "2",
        "r",
        "--",
        "sh",
        "-c",
        "test {index} = 2 || sleep 60",
    ];
    repo.sandbox(&args).ok();
    assert_eq!(repo.sandbox(&["wait", "--any", "r-1", "r-2"]).expect(0).stdout, "r-2\n");
    // A lone command is what it is.
    assert_eq!(subject.spawn(&repo, &["-q"], "echo {name} {index}").ok(), "{name} {index}\n");
    let seen = repo.sandbox(&["spawn", "--count", "2", "{name}", "--", "true"]).expect(129);
    assert!(seen.stderr.contains("is not a valid sandbox name"), "{seen}");
}
