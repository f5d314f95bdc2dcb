//! States that a sandbox goes back to, and several forks of one moment.

use crate::Subject;
use sandbox_testkit::{Repo, State, wait_until};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

over_views! {
    a_sandbox_goes_back_and_forth,
    one_that_runs_is_stopped_and_goes_on,
    what_it_committed_is_home_and_its_refs_follow,
    they_are_listed_and_removed_only_when_it_is_said,
    they_go_to_the_trash_and_back,
    a_restore_is_undone,
    a_restore_that_is_cut_leaves_the_old_or_the_new,
    several_forks_are_of_one_moment,
    a_child_does_not_need_its_parent,
    further_repositories_come_along,
    what_is_wrong_is_said,
}

/// What a sandbox looks like, inside.
const LOOK: &str = "cd \"$(git rev-parse --show-toplevel)\"; git status --porcelain=v2 --branch; git log --format=%s -3; \
    find . -path ./.git -prune -o -printf '%P %m %y %l\\n' | sort; \
    find . -path ./.git -prune -o -type f -exec sha256sum {} + | sort; \
    find ~ -maxdepth 1 -type f -name 'home?' -exec cat {} +; git fsck 2>&1 | grep -v dangling; true";

/// All kinds of changes, so that each way of noting them is copied.
const CHANGE: &str = "set -e; echo one >one; git add one; git commit -qm one; rm -r docs; mv src moved; mkdir src; \
    echo staged >staged; git add staged; echo again >>staged; ln -s nowhere gone; chmod 751 one; echo 1 >~/home1";

const MORE: &str = "set -e; git commit -qam two; rm one; git checkout -q -b other; git add -A moved; git mv moved src/again; rm gone; \
    echo 2 >~/home1; echo two >two; git stash list";

fn look(subject: &Subject, repo: &Repo, name: &str) -> String {
    subject.exec(repo, name, LOOK).ok()
}

fn checkpoints(subject: &Subject) -> Vec<PathBuf> {
    let sandboxes = fs::read_dir(subject.env.state().join("sandboxes")).unwrap();
    let dirs = sandboxes.filter_map(|dir| fs::read_dir(dir.unwrap().path().join("checkpoints")).ok());
    let mut all: Vec<PathBuf> =
        dirs.flatten().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

fn numbers(subject: &Subject) -> Vec<u32> {
    let all = checkpoints(subject);
    let mut all: Vec<u32> =
        all.iter().map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect();
    all.sort_unstable();
    all
}

fn a_sandbox_goes_back_and_forth(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["-q", "a"], CHANGE).ok();
    let first = look(subject, &repo, "a");
    repo.sandbox(&["stop", "a"]);
    let seen = repo.sandbox(&["checkpoint", "a", "first try"]).expect(0);
    assert!(seen.stderr.starts_with("checkpoint 1 'first try' of 'a': ") && !seen.stderr.contains("frozen"), "{seen}");
    subject.exec(&repo, "a", MORE).ok();
    let second = look(subject, &repo, "a");
    assert_ne!(first, second);
    let seen = repo.sandbox(&["restore", "a", "first try"]).expect(0);
    assert!(seen.stderr.contains("restored 'a' to checkpoint 1 'first try'\n"), "{seen}");
    assert!(seen.stderr.contains("hint: what it was until now is checkpoint 2: `git sandbox restore a 2`"), "{seen}");
    assert_eq!(look(subject, &repo, "a"), first);
    // What is done there is in neither of the two.
    subject.exec(&repo, "a", "echo third >third; echo 3 >~/home3").ok();
    repo.sandbox(&["restore", "a", "2"]).expect(0);
    assert_eq!(look(subject, &repo, "a"), second, "nothing of what was replaced is lost");
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert_eq!(look(subject, &repo, "a"), first, "and what was restored can be restored again");
    repo.sandbox(&["restore", "a", "3"]).expect(0);
    assert_eq!(subject.exec(&repo, "a", "cat third ~/home3").ok(), "third\n3\n");
}

fn one_that_runs_is_stopped_and_goes_on(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    subject.exec(&repo, "a", CHANGE).ok();
    let first = look(subject, &repo, "a");
    let seen = repo.sandbox(&["checkpoint", "a"]).expect(0);
    assert!(seen.stderr.starts_with("checkpoint 1 of 'a': ") && seen.stderr.contains("frozen"), "{seen}");
    assert_eq!(look(subject, &repo, "a"), first, "it goes on as it was");
    subject.exec(&repo, "a", MORE).ok();
    let seen = repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert!(seen.stderr.contains("'a' was stopped for it and runs again, idle"), "{seen}");
    assert!(repo.sandbox(&["list"]).ok().contains("\na     running"), "{}", repo.sandbox(&["list"]));
    assert_eq!(look(subject, &repo, "a"), first);
    assert_eq!(subject.env.live_processes().len(), 2);
}

fn what_it_committed_is_home_and_its_refs_follow(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "echo one >one; git add one; git commit -qm one").ok();
    let one = repo.id("refs/sandbox/a");
    repo.sandbox(&["checkpoint", "-q", "a"]).expect(0);
    subject.exec(&repo, "a", "echo two >two; git add two; git commit -qm two").ok();
    repo.sandbox(&["fetch", "a"]).ok();
    let two = repo.id("refs/sandbox/a");
    assert_ne!(one, two);
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert_eq!(repo.id("refs/sandbox/a"), one, "what would be merged is what is there");
    let log = repo.git(&["reflog", "show", "--format=%H", "refs/sandbox/a"]).ok();
    assert!(log.contains(&two), "and the other is in the reflog: {log}");
    repo.sandbox(&["restore", "a", "2"]).expect(0);
    assert_eq!(repo.id("refs/sandbox/a"), two);
}

fn they_are_listed_and_removed_only_when_it_is_said(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "echo one >one").ok();
    let seen = repo.sandbox(&["checkpoint", "--list", "a"]).expect(0);
    assert_eq!(seen.stderr, "'a' has no checkpoint\n");
    repo.sandbox(&["checkpoint", "-q", "a", "so far"]).expect(0);
    let json = repo.sandbox(&["checkpoint", "--json", "-q", "a"]).ok();
    let made: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&made["number"], &made["label"]), (&2.into(), &serde_json::Value::Null));
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    let listed = repo.sandbox(&["checkpoint", "-l", "a"]).ok();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["CHECKPOINT", "AGE", "DISK", "LABEL"]);
    assert!(rows[1].ends_with(&["so", "far"]) && rows[2].ends_with(&["-"]), "{listed}");
    assert!(listed.trim_end().ends_with("(before 1 was restored)"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&repo.sandbox(&["checkpoint", "--list", "--json", "a"]).ok()).unwrap();
    assert_eq!((&json["version"], &json["checkpoints"][2]["before"]), (&1.into(), &1.into()));
    let shown = repo.sandbox(&["show", "a"]).ok();
    assert!(shown.contains("checkpoints so far, 2, 3 ("), "{shown}");
    assert!(repo.sandbox(&["list", "--json"]).ok().contains("\"checkpoints\": 3"));
    let seen = repo.sandbox(&["checkpoint", "--remove", "2", "a"]).expect(1);
    assert!(seen.stderr.contains("error: cannot remove checkpoint 2 of 'a' without being asked\n"), "{seen}");
    assert!(seen.stderr.contains("hint: nothing else may have what is in it: `--force` removes it"), "{seen}");
    repo.sandbox(&["checkpoint", "--remove", "2", "--force", "a"]).expect(0);
    repo.sandbox(&["checkpoint", "--remove", "3", "--force", "a"]).expect(0);
    assert_eq!(checkpoints(subject).len(), 1);
    // A number is not given twice.
    let seen = repo.sandbox(&["checkpoint", "a"]).expect(0);
    assert!(seen.stderr.starts_with("checkpoint 4 of 'a'"), "{seen}");
    repo.sandbox(&["gc"]).ok();
    assert_eq!(checkpoints(subject).len(), 2, "no gc takes them");
}

fn they_go_to_the_trash_and_back(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "echo one >one").ok();
    repo.sandbox(&["checkpoint", "-q", "a"]).expect(0);
    subject.exec(&repo, "a", "rm one").ok();
    repo.sandbox(&["stop", "a"]);
    // Nothing is left in it that the host has not got, but for what a checkpoint has.
    let seen = repo.sandbox(&["drop", "a"]).expect(0);
    assert!(seen.stderr.contains("dropped 'a' into the trash, with its 1 checkpoint\n"), "{seen}");
    repo.sandbox(&["trash", "restore", "a"]).ok();
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert_eq!(subject.exec(&repo, "a", "cat one").ok(), "one\n");
    // A fork begins with none.
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    assert_eq!(repo.sandbox(&["checkpoint", "--list", "b"]).expect(0).stderr, "'b' has no checkpoint\n");
}

fn a_restore_is_undone(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "echo one >one").ok();
    repo.sandbox(&["checkpoint", "-q", "a"]).expect(0);
    subject.exec(&repo, "a", "echo two >one").ok();
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert!(repo.sandbox(&["ops"]).ok().contains("restored 'a' to checkpoint 1"));
    assert_eq!(repo.sandbox(&["undo", "--dry-run"]).ok(), "put 'a' back to checkpoint 2\n");
    let seen = repo.sandbox(&["undo"]).expect(0);
    assert!(seen.stderr.contains("undone: restored 'a' to checkpoint 1"), "{seen}");
    assert_eq!(subject.exec(&repo, "a", "cat one").ok(), "two\n");
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    let before = repo.sandbox(&["checkpoint", "--list", "--json", "a"]).ok();
    let before: serde_json::Value = serde_json::from_str(&before).unwrap();
    let last = before["checkpoints"].as_array().unwrap().last().unwrap()["number"].to_string();
    repo.sandbox(&["checkpoint", "--remove", &last, "--force", "a"]).expect(0);
    let seen = repo.sandbox(&["undo"]).expect(1);
    assert!(seen.stderr.contains(&format!("checkpoint {last}, which has what it was, was removed since")), "{seen}");
}

fn a_restore_that_is_cut_leaves_the_old_or_the_new(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], CHANGE).ok();
    let old = look(subject, &repo, "a");
    repo.sandbox(&["stop", "a"]);
    repo.sandbox(&["checkpoint", "-q", "a", "old"]).expect(0);
    subject.exec(&repo, "a", MORE).ok();
    let new = look(subject, &repo, "a");
    repo.sandbox(&["stop", "a"]);
    repo.sandbox(&["checkpoint", "-q", "a", "new"]).expect(0);
    for (fault, back) in [
        ("restore.copy:1:kill", false),
        ("restore.copy:1:enospc", false),
        ("restore.swap:1:kill", false),
        ("restore.away:1:kill", true),
        ("restore.in:1:kill", true),
        ("restore.away:2:kill", true),
        ("restore.in:2:enospc", true),
        ("restore.record:1:kill", true),
        ("restore.done:1:kill", true),
    ] {
        let before = checkpoints(subject).len();
        let mut command = subject.env.sandbox_command(repo.dir(), &["restore", "a", "old"]);
        let status = command.env("GIT_SANDBOX_FAULT", fault).stdin(Stdio::null()).output().unwrap().status;
        assert!(!status.success(), "{fault}: nothing happened");
        // Whatever comes next, a start too, sees one or the other, and never a part.
        let now = look(subject, &repo, "a");
        repo.sandbox(&["stop", "a"]);
        assert!(now == if back { &*old } else { &*new }, "{fault}: {now}");
        assert_eq!(checkpoints(subject).len(), before + usize::from(back), "{fault}");
        let newest = numbers(subject).last().unwrap().to_string();
        if back {
            repo.sandbox(&["restore", "a", &newest]).expect(0);
            assert_eq!(look(subject, &repo, "a"), new, "{fault}: what was replaced is kept");
            repo.sandbox(&["stop", "a"]);
        }
        for number in numbers(subject).into_iter().filter(|number| *number > 2) {
            repo.sandbox(&["checkpoint", "--remove", &number.to_string(), "--force", "a"]).expect(0);
        }
    }
    let seen = repo.sandbox(&["repair"]).expect(0);
    assert!(!seen.stdout.contains("error"), "{seen}");
}

fn several_forks_are_of_one_moment(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "n=0; while [ $n -lt 1000000 ]; do n=$((n+1)); echo $n >x.new; mv x.new x; done";
    subject.spawn(&repo, &["-d", "a"], script).ok();
    wait_until("its first number", Duration::from_secs(20), || subject.exec(&repo, "a", "test -s x").status == 0);
    let seen =
        repo.sandbox(&["fork", "--count", "3", "a", "t{index}", "--", "sh", "-c", "echo {name} $(cat x)"]).expect(0);
    assert_eq!(seen.stdout, "t1\nt2\nt3\n", "{seen}");
    assert!(seen.stderr.replace(" (no cgroup)", "").starts_with("3 sandboxes, each: as 'a' is now, "), "{seen}");
    repo.sandbox(&["wait", "t1", "t2", "t3"]).expect(0);
    let said = |name: &str| repo.sandbox(&["logs", name]).ok();
    let number = said("t1").trim().strip_prefix("t1 ").unwrap().to_owned();
    assert!(number.parse::<u32>().is_ok(), "{number}");
    assert_eq!((said("t2"), said("t3")), (format!("t2 {number}\n"), format!("t3 {number}\n")));
    // By their names; and each has the other one's parent.
    let seen = repo.sandbox(&["fork", "t1", "u", "v", "--json"]).expect(0);
    let rows: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    let names: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["u", "v"]);
    let seen = repo.sandbox(&["fork", "--count", "2", "t1", "y", "z"]).expect(129);
    assert!(seen.stderr.contains("error: --count makes names of one\n"), "{seen}");
    // One that is taken: none is made.
    let seen = repo.sandbox(&["fork", "t1", "w", "v"]);
    assert!(seen.status == 125 && seen.stderr.contains("there is a sandbox named 'v' already"), "{seen}");
    assert!(!repo.sandbox(&["list"]).ok().contains("\nw "), "{}", repo.sandbox(&["list"]));
}

fn a_child_does_not_need_its_parent(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.spawn(&repo, &["-q", "a"], CHANGE).ok();
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    repo.sandbox(&["fork", "-d", "b", "c", "d"]).expect(0);
    let before = look(subject, &repo, "c");
    for name in ["a", "b", "d"] {
        repo.sandbox(&["drop", "--force", name]).ok();
    }
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    repo.write("README.md", "newer\n");
    subject.spawn(&repo, &["-q", "--rm", "e"], "true").ok();
    repo.sandbox(&["gc"]).ok();
    repo.sandbox(&["stop", "c"]).ok();
    assert_eq!(look(subject, &repo, "c"), before);
}

fn further_repositories_come_along(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let other = repo.dir().with_file_name("other");
    let path = other.to_str().unwrap();
    repo.git(&["clone", "-q", ".", path]).ok();
    let work = format!("cd '{path}'; echo one >one; git add one; git commit -qm one; echo left >left");
    subject.spawn(&repo, &["-q", "--with", path, "a"], &work).ok();
    repo.sandbox(&["checkpoint", "-q", "a"]).expect(0);
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    let look = format!("cd '{path}'; cat one left; git log -1 --format=%s");
    assert_eq!(subject.exec(&repo, "b", &look).ok(), "one\nleft\none\n");
    subject.exec(&repo, "a", &format!("cd '{path}'; rm left; echo two >one; git commit -qam two")).ok();
    repo.sandbox(&["restore", "a", "1"]).expect(0);
    assert_eq!(subject.exec(&repo, "a", &look).ok(), "one\nleft\none\n");
    assert_eq!(subject.exec(&repo, "b", &look).ok(), "one\nleft\none\n");
}

fn what_is_wrong_is_said(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["-q", "a"], "echo one >one").ok();
    for (args, status, error, hint) in [
        (
            &["restore", "a", "1"][..],
            128,
            "'a' has no checkpoint '1'",
            "it has none: `git sandbox checkpoint a` makes one",
        ),
        (&["checkpoint", "a", "12"], 129, "'12' cannot be the name of a checkpoint", "is not only a number"),
        (&["checkpoint", "a", "two\nlines"], 129, "'two\\u{a}lines' cannot be the name", "a label is a line"),
        (&["checkpoint", "nobody"], 128, "no sandbox named 'nobody'", "list"),
    ] {
        let seen = repo.sandbox(args);
        assert_eq!(seen.status, status, "{seen}");
        assert!(seen.stderr.contains(error) && seen.stderr.contains(hint), "{seen}");
    }
    repo.sandbox(&["checkpoint", "-q", "a", "x"]).expect(0);
    let seen = repo.sandbox(&["checkpoint", "a", "x"]).expect(128);
    assert!(seen.stderr.contains("error: 'a' has a checkpoint 'x' already\n"), "{seen}");
    let seen = repo.sandbox(&["restore", "a", "y"]).expect(128);
    assert!(seen.stderr.contains("error: 'a' has no checkpoint 'y'\nhint: it has x\n"), "{seen}");
    assert_eq!(checkpoints(subject).len(), 1, "nothing is left of what was refused");
    // A full disk: no checkpoint, and the next one is made.
    let mut command = subject.env.sandbox_command(repo.dir(), &["checkpoint", "a"]);
    let status = command.env("GIT_SANDBOX_FAULT", "checkpoint.record:1:enospc").output().unwrap().status;
    assert_eq!(status.code(), Some(128));
    assert_eq!(checkpoints(subject).len(), 1);
    repo.sandbox(&["checkpoint", "a"]).expect(0);
    assert_eq!(checkpoints(subject).len(), 2);
}
