//! `watch`: a spawn with a watcher carries what one without it does, and asks for less.

use insta::assert_snapshot;
use sandbox_testkit::{Repo, State, TestEnv, skip, wait_until, which};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// A process by its number, for the signals that tests send.
fn signal(pid: u64, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn status(repo: &Repo) -> serde_json::Value {
    serde_json::from_str(&repo.sandbox(&["watch", "--status", "--json"]).stdout).unwrap()
}

/// What `sh` prints inside a fresh sandbox.
fn inside(repo: &Repo, script: &str) -> String {
    repo.sandbox(&["spawn", "--rm", "-q", "--", "sh", "-c", script]).ok()
}

/// Spawns until a question is answered: a file that was just written is racy, and is looked at twice.
fn settled(repo: &Repo) {
    inside(repo, "true");
    inside(repo, "true");
}

struct Watching<'r, 'e>(&'r Repo<'e>);

impl<'r, 'e> Watching<'r, 'e> {
    fn start(repo: &'r Repo<'e>) -> Self {
        repo.sandbox(&["watch"]).ok();
        Self(repo)
    }
}

impl Drop for Watching<'_, '_> {
    fn drop(&mut self) {
        self.0.sandbox(&["watch", "--stop"]);
    }
}

#[test]
fn what_changes_is_carried_and_nothing_else_is_looked_at() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for n in 0..300 {
        repo.write(&format!("many/d{}/f{n}", n % 10), "x");
    }
    settled(&repo);
    let _watching = Watching::start(&repo);
    settled(&repo);
    let doubts = status(&repo)["doubts"].as_u64().unwrap();
    assert_eq!(inside(&repo, "cat many/d3/f13"), "x");
    repo.write("many/d3/f13", "new");
    repo.write("new/deep/er/file", "also");
    fs::rename(repo.dir().join("many/d4"), repo.dir().join("moved")).unwrap();
    fs::remove_dir_all(repo.dir().join("many/d5")).unwrap();
    assert_eq!(inside(&repo, "cat many/d3/f13 new/deep/er/file moved/f14; ls many | wc -l"), "newalsox8\n");
    let now = status(&repo);
    assert_eq!(now["doubts"].as_u64().unwrap(), doubts, "it knew all of it: {now}");
    if which("strace").is_none() {
        skip!("no strace: what is looked at is not counted");
    }
    let trace = env.root().join("tmp/trace");
    inside(&repo, "true");
    let plain = env.sandbox_command(repo.dir(), &["spawn", "--rm", "-q", "--", "true"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=%stat,%lstat,%fstat,openat", "-o"]).arg(&trace);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(repo.dir()).env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    env.run(&mut command).ok();
    let text = fs::read_to_string(&trace).unwrap();
    let looked: Vec<&str> = text.lines().filter(|line| line.contains("\"f1") || line.contains("many")).collect();
    assert!(looked.is_empty(), "{looked:#?}");
}

#[test]
fn a_watcher_that_is_dead_or_stands_still_costs_a_scan() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let watching = Watching::start(&repo);
    settled(&repo);
    let pid = status(&repo)["pid"].as_u64().unwrap();
    signal(pid, "-STOP");
    repo.write("while-it-stood", "1");
    assert_eq!(inside(&repo, "cat while-it-stood"), "1");
    signal(pid, "-CONT");
    settled(&repo);
    repo.write("after", "2");
    assert_eq!(inside(&repo, "cat while-it-stood after"), "12");
    signal(pid, "-KILL");
    repo.write("dead", "3");
    assert_eq!(inside(&repo, "cat while-it-stood after dead"), "123");
    // Another one does not answer for what the first one's token meant.
    drop(watching);
    let _watching = Watching::start(&repo);
    repo.write("again", "4");
    assert_eq!(inside(&repo, "cat dead again"), "34");
    let _ = fs::remove_file(repo.dir().join("dead"));
    assert_eq!(inside(&repo, "cat dead again || true"), "4");
}

#[test]
fn what_it_says() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    assert_snapshot!(repo.sandbox(&["watch", "--status"]), @r#"
        ---- stderr
        no watcher runs
        ---- status 1
        "#);
    assert_snapshot!(repo.sandbox(&["watch", "--stop"]), @r#"
        ---- stderr
        no watcher runs
        ---- status 1
        "#);
    let watching = Watching::start(&repo);
    assert_snapshot!(repo.sandbox(&["watch"]), @r#"
        ---- stderr
        watching '[REPO]': 6 directories
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["watch", "--foreground"]), @r#"
        ---- stderr
        error: '[REPO]' is watched already
        hint: `git sandbox watch --status` tells about the watcher
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["watch", "--stop"]), @r#"
        ---- stderr
        stopped
        ---- status 0
        "#);
    drop(watching);
    repo.git(&["config", "sandbox.watch", "sometimes"]).ok();
    assert_snapshot!(repo.sandbox(&["spawn", "--rm", "--", "true"]), @r#"
        ---- stderr
        error: 'sometimes' is not a value of sandbox.watch
        hint: it is auto, always or never
        ---- status 125
        "#);
    repo.git(&["config", "--unset", "sandbox.watch"]).ok();
    repo.git(&["config", "core.fsmonitor", "mine"]).ok();
    assert_snapshot!(repo.sandbox(&["watch", "--fsmonitor"]), @r#"
        ---- stderr
        error: core.fsmonitor is 'mine' already
        hint: it stays as it is; `git config --unset core.fsmonitor` takes it away, if you want this one instead
        ---- status 128
        "#);
    assert_eq!(repo.git(&["config", "core.fsmonitor"]).ok(), "mine\n");
}

/// The watcher in a user namespace of its own, where limits can be set, and with mounts of its own.
fn in_namespace(repo: &Repo, script: &str) -> Option<sandbox_testkit::Output> {
    let env = repo.env();
    let mut probe = env.command("unshare", repo.dir());
    if env.run(probe.args(["-Urm", "true"])).status != 0 {
        return None;
    }
    let product = env.sandbox_command(repo.dir(), &[]);
    let head = format!("gs() {{ '{}' \"$@\"; }}\n", product.get_program().to_string_lossy());
    let mut command = env.command("unshare", repo.dir());
    Some(env.run(command.args(["-Urm", "sh", "-ec", &(head + script)])))
}

#[test]
fn what_cannot_be_watched_is_named_and_spawns_go_on() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let Some(out) = in_namespace(&repo, "echo 3 >/proc/sys/user/max_inotify_watches; gs watch") else {
        skip!("no user namespaces");
    };
    assert_snapshot!(out, @r#"
        ---- stderr
        error: cannot watch '[REPO]'
        caused by: the limit of inotify watches is reached after 3 directories and 0 files: 'user.max_inotify_watches' is 3
        hint: `sudo sysctl user.max_inotify_watches=1024` raises the limit; without a watcher a spawn looks at every file
        ---- status 128
        "#);
    let out = in_namespace(&repo, "echo 0 >/proc/sys/user/max_inotify_instances; gs watch").unwrap();
    assert_snapshot!(out, @r#"
        ---- stderr
        error: cannot watch '[REPO]'
        caused by: the limit of inotify instances is reached: 'user.max_inotify_instances' is 0
        hint: `sudo sysctl user.max_inotify_instances=1024` raises the limit; without a watcher a spawn looks at every file
        ---- status 128
        "#);
    let out = in_namespace(&repo, "mount -t tmpfs tmpfs src/deep; gs watch").unwrap();
    assert_snapshot!(out, @r#"
        ---- stderr
        error: cannot watch '[REPO]'
        caused by: another file system is mounted at 'src/deep'
        hint: a spawn works without a watcher too: it looks at every file
        ---- status 128
        "#);
    repo.git(&["config", "sandbox.watch", "always"]).ok();
    repo.write("f", "1");
    assert_eq!(inside(&repo, "cat f"), "1");
    repo.sandbox(&["watch", "--stop"]);
}

#[test]
fn the_next_one_begins_when_the_last_was_stopped() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let _watching = Watching::start(&repo);
    for _ in 0..20 {
        assert_eq!(repo.sh("git sandbox watch --stop && git sandbox watch").status, 0);
    }
    // Two that begin at once are one.
    repo.sandbox(&["watch", "--stop"]).ok();
    let both = repo.sh("git sandbox watch & git sandbox watch; a=$?; wait $!; exit $((a + $?))");
    assert_eq!(both.status, 0, "{both}");
    assert_eq!(status(&repo)["running"], true);
}

#[test]
fn doctor_tells_of_it_and_setup_takes_it_away() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let line = || {
        let said = repo.sandbox(&["doctor"]).stdout;
        said.lines().find(|line| line.contains("watcher")).unwrap_or_default().to_owned()
    };
    assert!(line().contains("none runs here; "), "{}", line());
    repo.sandbox(&["watch", "--fsmonitor"]).ok();
    let _watching = Watching(&repo);
    let told = line();
    assert!(told.contains("6 directories watched here; "), "{told}");
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    assert!(told.contains(&format!("and {} directories in all are allowed to each user", limit.trim())), "{told}");
    assert!(repo.git(&["config", "core.fsmonitor"]).ok().contains("__fsmonitor"));
    let removed = repo.sandbox(&["setup", "--remove"]).expect(0);
    assert!(removed.stderr.contains("core.fsmonitor is unset again\n"), "{removed}");
    repo.git(&["config", "core.fsmonitor"]).expect(1);
    // What somebody else set stays.
    repo.git(&["config", "core.fsmonitor", "mine"]).ok();
    assert!(!repo.sandbox(&["setup", "--remove"]).expect(0).stderr.contains("core.fsmonitor"));
    assert_eq!(repo.git(&["config", "core.fsmonitor"]).ok(), "mine\n");
}

#[test]
fn always_starts_one_with_the_first_spawn() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.git(&["config", "sandbox.watch", "always"]).ok();
    inside(&repo, "true");
    wait_until("a watcher", Duration::from_secs(30), || status(&repo)["ready"] == true);
    let _watching = Watching(&repo);
    settled(&repo);
    repo.write("f", "1");
    assert_eq!(inside(&repo, "cat f"), "1");
    assert_eq!(status(&repo)["doubts"], 1);
    repo.git(&["config", "sandbox.watch", "never"]).ok();
    let questions = status(&repo)["questions"].clone();
    repo.write("f", "2");
    assert_eq!(inside(&repo, "cat f"), "2");
    assert_eq!(status(&repo)["questions"], questions);
    // What was not asked meanwhile is not lost on whoever asks next.
    repo.git(&["config", "sandbox.watch", "auto"]).ok();
    assert_eq!(inside(&repo, "cat f"), "2");
}

#[test]
fn git_status_asks_it_and_looks_at_less() {
    if which("strace").is_none() {
        skip!("no strace");
    }
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for n in 0..200 {
        repo.write(&format!("many/d{}/f{n}", n % 10), "x");
    }
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-qm", "many"]).ok();
    let looked = || {
        let trace = env.root().join("tmp/status");
        let script = format!("strace -qq -o '{}' git status --porcelain", trace.display());
        let said = repo.sh(&script).ok();
        let text = fs::read_to_string(&trace).unwrap();
        (said, text.lines().filter(|line| line.contains("stat") && line.contains("many/d")).count())
    };
    repo.git(&["status"]).ok();
    let (_, without) = looked();
    assert!(without >= 200, "{without}");
    repo.sandbox(&["watch", "--fsmonitor"]).ok();
    let watching = Watching(&repo);
    repo.git(&["status"]).ok();
    let (said, with) = looked();
    assert_eq!(said, "");
    assert!(with < 20, "{with} of {without}");
    for (path, text) in [("many/d1/f1", "changed"), ("many/d2/new", "untracked"), ("fresh/one", "in a new directory")] {
        repo.write(path, text);
    }
    fs::remove_file(repo.dir().join("many/d3/f3")).unwrap();
    fs::rename(repo.dir().join("many/d4"), repo.dir().join("elsewhere")).unwrap();
    let with = repo.git(&["status", "--porcelain", "-uall"]).ok();
    let without = repo.git(&["-c", "core.fsmonitor=false", "status", "--porcelain", "-uall"]).ok();
    assert_eq!(with, without);
    assert!(with.contains(" M many/d1/f1") && with.contains("?? fresh/one") && with.contains(" D many/d4/"), "{with}");
    // Inside nobody asks it.
    assert_eq!(inside(&repo, "git config core.fsmonitor || echo none"), "none\n");
    drop(watching);
    assert_eq!(repo.git(&["config", "core.fsmonitor"]).expect(1).stdout, "");
}

/// Work trees of one repository share its configuration, and a copy brings it along, with the token in its index.
#[test]
fn git_in_another_work_tree_is_told_nothing_about_this_one() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["watch", "--fsmonitor"]).ok();
    let _watching = Watching(&repo);
    for _ in 0..2 {
        repo.git(&["status"]).ok();
    }
    let (linked, copy) = (env.root().join("linked"), env.root().join("copy"));
    repo.git(&["worktree", "add", "-q", linked.to_str().unwrap()]).ok();
    env.run(Command::new("cp").arg("-a").arg(repo.dir()).arg(&copy)).ok();
    for other in [&linked, &copy] {
        let status = || {
            let with = env.git(other, &["status", "--porcelain", "-uall"]).ok();
            let without = env.git(other, &["-c", "core.fsmonitor=false", "status", "--porcelain", "-uall"]).ok();
            assert_eq!(with, without, "'{}'", other.display());
            with
        };
        // Until each index has the token that it would ask with.
        for _ in 0..3 {
            env.git(other, &["status"]).ok();
        }
        status();
        fs::write(other.join("src/b.c"), "changed here, and only here\n").unwrap();
        assert!(status().contains("M src/b.c\n"));
        fs::write(other.join("src/untracked"), "also\n").unwrap();
        assert!(status().contains("?? src/untracked\n"));
    }
}

#[test]
fn another_tree_at_the_same_path_is_not_taken_for_this_one() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.write("f", "one");
    let _watching = Watching::start(&repo);
    settled(&repo);
    let away = env.root().join("away");
    // The same files in other directories; then the first ones again.
    env.run(Command::new("cp").arg("-al").arg(repo.dir()).arg(env.root().join("copy"))).ok();
    fs::rename(repo.dir(), &away).unwrap();
    fs::rename(env.root().join("copy"), repo.dir()).unwrap();
    fs::remove_file(repo.dir().join("f")).unwrap();
    repo.write("f", "two");
    settled(&repo);
    assert_eq!(inside(&repo, "cat f"), "two");
    fs::rename(repo.dir(), env.root().join("copy")).unwrap();
    fs::rename(&away, repo.dir()).unwrap();
    assert_eq!(inside(&repo, "cat f"), "one");
    repo.write("f", "three");
    assert_eq!(inside(&repo, "cat f"), "three");
}

#[test]
fn gc_takes_what_watchers_of_trees_that_are_gone_have_left() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let linked = env.root().join("linked");
    repo.git(&["worktree", "add", "-q", linked.to_str().unwrap()]).ok();
    let _watching = Watching::start(&repo);
    settled(&repo);
    let dir = fs::read_dir(env.state().join("repos")).unwrap().next().unwrap().unwrap().path().join("watch");
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let ours = names();
    env.sandbox(&linked, &["watch"]).ok();
    for _ in 0..2 {
        env.sandbox(&linked, &["spawn", "--rm", "-q", "--", "true"]).ok();
    }
    env.sandbox(&linked, &["watch", "--stop"]).ok();
    wait_until("its end", Duration::from_secs(30), || names().len() == 2 * ours.len() - 1);
    repo.sandbox(&["gc"]).ok();
    assert_eq!(names().len(), 2 * ours.len() - 1, "its work tree is there");
    repo.git(&["worktree", "remove", "--force", linked.to_str().unwrap()]).ok();
    let plan = repo.sandbox(&["gc", "-n"]).ok();
    assert!(plan.contains("what a watcher left whose work tree is gone"), "{plan}");
    repo.sandbox(&["gc"]).ok();
    assert_eq!(names(), ours);
    let doubts = status(&repo)["doubts"].clone();
    repo.write("f", "1");
    assert_eq!(inside(&repo, "cat f"), "1");
    assert_eq!(status(&repo)["doubts"], doubts);
}
