//! One more sandbox, from the state that another one is in.

use crate::Subject;
use sandbox_testkit::{Repo, State, wait_until};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

over_views! {
    a_running_sandbox_is_forked_with_everything_in_it,
    a_stopped_sandbox_is_forked_with_everything_in_it,
    every_state_of_a_repository_is_the_same_in_the_fork,
    neither_sees_what_the_other_does,
    commits_of_the_parent_are_history_and_come_home_as_the_childs_own,
    the_layers_stay_as_long_as_the_fork_stands_on_them,
    it_is_one_instant_while_the_parent_writes,
    a_command_runs_in_it_and_the_end_is_as_after_a_spawn,
    what_it_may_reach_goes_along,
    what_is_wrong_is_said_and_nothing_is_left,
    a_killed_fork_leaves_nothing,
}

// Only over an overlay are directories renamed in steps.
mod overlay {
    over_drivers! { a_rename_that_was_cut_is_finished_in_the_fork }
    use super::a_rename_that_was_cut_is_finished_in_the_fork;
}

/// Everything that an upper directory can hold.
const CHANGE: &str = "set -e; \
    echo committed >committed.txt; git add committed.txt; git commit -qm 'In the parent'; \
    echo dirty >>README.md; echo staged >staged.txt; git add staged.txt; echo again >>staged.txt; \
    rm -r docs; rm src/a.c; mkdir -p sub/deep; mv src sub/moved; mkdir src; echo new >src/new.c; \
    echo one >one; ln one two; ln -s /nowhere/at-all link; ln -s README.md inside; mkfifo fifo; \
    printf x >\"$(printf 'no\\377utf8')\"; printf '#!/bin/sh\\n' >run.sh; chmod 751 run.sh; \
    truncate -s 20M sparse; printf tail >>sparse; \
    echo closed >closed-file; chmod 000 closed-file; mkdir closed; echo in >closed/in; chmod 000 closed; \
    touch -d '2001-02-03 04:05:06.789012345' old; chmod 500 sub/deep; \
    mkdir -p ~/.agent/sessions; echo talk >~/.agent/sessions/1; echo t >/tmp/not-forked; \
    head -c 300000 /dev/urandom >random; git stash list >/dev/null";

/// What a sandbox looks like from inside.
const LOOK: &str = "cd \"$(git rev-parse --show-toplevel)\"; git status --porcelain=v2 --branch; git log --format='%H %s'; \
    git diff | sha256sum; git diff --cached --stat; \
    chmod 700 closed; chmod 600 closed-file; cat closed/in closed-file; chmod 000 closed closed-file; \
    find . -path ./.git -prune -o -path ./closed -o -type d -printf '%P %m %U:%G\\n' -o \
      -printf '%P %m %U:%G %s %n %b %l\\n' | sort; \
    find . -path ./.git -prune -o -path ./closed -prune -o -name closed-file -o -printf '%P %T@\\n' | sort; \
    find . -path ./.git -prune -o -path ./closed -prune -o -type f -readable -exec sha256sum {} + | sort; \
    find ~/.agent -type f -printf '%p %T@ %m\\n' -exec cat {} +; \
    test one -ef two && echo linked; du -k sparse | cut -f1; git fsck 2>&1 | grep -v dangling; ls -A /tmp";

fn sandboxes(subject: &Subject) -> Vec<PathBuf> {
    let dir = subject.env.state().join("sandboxes");
    fs::read_dir(dir).map(|all| all.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

fn changed<'e>(subject: &'e Subject) -> Repo<'e> {
    let repo = subject.repo(State::Dirty);
    subject.idle(&repo, "a");
    subject.exec(&repo, "a", CHANGE).ok();
    repo
}

/// The two print the same. The parent's `/tmp` is not part of it.
#[track_caller]
fn same(subject: &Subject, repo: &Repo, a: &str, b: &str) {
    let child = subject.exec(repo, b, LOOK).ok();
    subject.exec(repo, a, "rm -f /tmp/not-forked").ok();
    let parent = subject.exec(repo, a, LOOK).ok();
    assert_eq!(child, parent);
    for part in ["In the parent", "committed.txt", "linked\n", "talk\n", "old 981173106.7890123450", "fifo 644"] {
        assert!(child.contains(part), "'{part}' is not in {child}");
    }
}

fn a_running_sandbox_is_forked_with_everything_in_it(subject: &Subject) {
    let repo = changed(subject);
    let seen = repo.sandbox(&["fork", "-d", "a", "b"]).expect(0);
    assert_eq!(seen.stdout, "b\n");
    assert!(seen.stderr.replace(" (no cgroup)", "").starts_with("sandbox 'b': as 'a' is now, "), "{seen}");
    assert!(seen.stderr.contains("frozen"), "{seen}");
    same(subject, &repo, "a", "b");
    let shown = repo.sandbox(&["list"]).ok();
    assert!(shown.contains("\na ") && shown.contains("\nb "), "{shown}");
}

fn a_stopped_sandbox_is_forked_with_everything_in_it(subject: &Subject) {
    let repo = changed(subject);
    repo.sandbox(&["stop", "a"]).ok();
    let seen = repo.sandbox(&["fork", "-d", "a", "b"]).expect(0);
    assert!(!seen.stderr.contains("frozen"), "{seen}");
    assert_eq!(subject.env.live_processes().len(), 2, "only the fork runs");
    same(subject, &repo, "a", "b");
    // A fork of a fork, without a name.
    assert_eq!(repo.sandbox(&["fork", "-d", "b"]).expect(0).stdout, "b-2\n");
    assert_eq!(repo.sandbox(&["fork", "-d", "b-2"]).expect(0).stdout, "b-3\n");
    same(subject, &repo, "a", "b-3");
}

fn every_state_of_a_repository_is_the_same_in_the_fork(subject: &Subject) {
    const STATUS: &str = "git status --porcelain=v2 --branch; git status; git stash list; git ls-files -s | sha256sum";
    for state in [State::Conflict, State::RebaseMerge, State::Stash, State::Detached, State::Submodule, State::Nested] {
        if let Some(why) = state.unavailable(&subject.env) {
            println!("SKIP: {state:?}: {why}");
            continue;
        }
        let repo = state.build(&subject.env, &format!("{state:?}").to_lowercase());
        subject.idle(&repo, "a");
        subject.exec(&repo, "a", "echo more >>README.md; echo new >new").ok();
        repo.sandbox(&["fork", "-d", "a", "b"]).ok();
        let child = subject.exec(&repo, "b", STATUS).ok();
        assert_eq!(child, subject.exec(&repo, "a", STATUS).ok(), "{state:?}");
        assert!(child.contains("new"), "{child}");
        repo.sandbox(&["drop", "--all", "--force"]).ok();
    }
}

fn neither_sees_what_the_other_does(subject: &Subject) {
    let repo = changed(subject);
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    subject.exec(&repo, "a", "echo a >one; echo a >>src/new.c; rm README.md; touch ~/in-a; git commit -qam A").ok();
    subject.exec(&repo, "b", "echo b >one; rm -r src; touch ~/in-b; git checkout -q -b only-b").ok();
    let look = "cat one two; ls src/new.c README.md 2>/dev/null; ls ~ | grep in-; git branch --format='%(refname)'; git log -1 --format=%s";
    let (a, b) = (subject.exec(&repo, "a", look).ok(), subject.exec(&repo, "b", look).ok());
    assert_eq!(a, "a\na\nsrc/new.c\nin-a\nrefs/heads/main\nA\n");
    assert_eq!(b, "b\nb\nREADME.md\nin-b\nrefs/heads/main\nrefs/heads/only-b\nIn the parent\n");
}

fn commits_of_the_parent_are_history_and_come_home_as_the_childs_own(subject: &Subject) {
    let repo = changed(subject);
    repo.sandbox(&["fetch", "a"]).ok();
    let parent = repo.id("refs/sandbox/a");
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    let of = |name: &str| repo.git(&["for-each-ref", "--format=%(objectname)", &format!("refs/sandbox/{name}")]).ok();
    assert_eq!(of("b"), "", "nothing moved in it");
    let list = repo.sandbox(&["list", "--json"]).ok();
    let rows: serde_json::Value = serde_json::from_str(&list).unwrap();
    let uncommitted: Vec<_> = rows["sandboxes"].as_array().unwrap().iter().map(|row| &row["uncommitted"]).collect();
    assert_eq!(uncommitted[0], uncommitted[1], "what the parent committed is committed: {list}");
    repo.sandbox(&["fetch", "b"]).ok();
    assert_eq!(of("b").trim(), parent);
    subject.exec(&repo, "b", "git commit -q --allow-empty -m 'In the child'").ok();
    repo.sandbox(&["fetch", "b"]).ok();
    assert_eq!(repo.git(&["log", "-2", "--format=%s", "refs/sandbox/b"]).ok(), "In the child\nIn the parent\n");
    assert_eq!(repo.id("refs/sandbox/a"), parent);
    // Dropping one takes only its own refs.
    repo.sandbox(&["drop", "--force", "a"]).ok();
    assert_eq!(of("a"), "");
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "refs/sandbox/b"]).ok(), "In the child\n");
}

fn the_layers_stay_as_long_as_the_fork_stands_on_them(subject: &Subject) {
    let repo = changed(subject);
    let snapshots = || {
        let repos = fs::read_dir(subject.env.state().join("repos")).unwrap();
        let all = repos.flat_map(|repo| fs::read_dir(repo.unwrap().path().join("snapshots")).unwrap());
        all.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ext| ext == "json")).count()
    };
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    repo.sandbox(&["stop", "b"]).ok();
    repo.sandbox(&["drop", "--force", "a"]).ok();
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    // A newer capture: nothing but the fork needs the old one.
    repo.write("README.md", "newer\n");
    subject.spawn(&repo, &["c"], "true").ok();
    repo.sandbox(&["drop", "--force", "c"]).ok();
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    repo.sandbox(&["gc"]).ok();
    assert_eq!(snapshots(), 2);
    let seen = subject.exec(&repo, "b", "cat README.md committed.txt; git fsck").ok();
    assert!(seen.contains("dirty\ncommitted\n"), "{seen}");
    repo.sandbox(&["drop", "--force", "b"]).ok();
    repo.sandbox(&["trash", "empty", "--yes"]).ok();
    repo.sandbox(&["gc"]).ok();
    assert_eq!(snapshots(), 1, "now it goes");
}

fn it_is_one_instant_while_the_parent_writes(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    // `y` is written after `x`: they are equal, or `x` is one ahead.
    let script = "echo 0 >x; echo 0 >y; n=0; while [ $n -lt 1000000 ]; do n=$((n+1)); \
        echo $n >x.new; mv x.new x; echo $n >y.new; mv y.new y; done";
    subject.spawn(&repo, &["-d", "a"], script).ok();
    wait_until("its first numbers", Duration::from_secs(20), || subject.exec(&repo, "a", "test -s y").status == 0);
    let mut told = 0;
    for n in 0..5 {
        let name = format!("b{n}");
        let seen = repo.sandbox(&["fork", "a", &name, "--", "sh", "-c", "cat x y"]).expect(0);
        if seen.stderr.contains("kept changing while it was copied: ") {
            assert!(seen.stderr.contains("not frozen"), "{seen}");
            told += 1;
            continue;
        }
        let numbers: Vec<u32> = seen.stdout.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1, "{seen}");
    }
    eprintln!("{told} of 5 could not be frozen, and said so");
    // And it goes on.
    let before = subject.exec(&repo, "a", "cat y").ok();
    wait_until("it to go on", Duration::from_secs(20), || subject.exec(&repo, "a", "cat y").ok() != before);
}

fn a_rename_that_was_cut_is_finished_in_the_fork(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    subject
        .exec(
            &repo,
            "a",
            "mkdir -p made .gs-rename/new; echo one >made/one; echo two >.gs-rename/new/two; \
        ln -s made .gs-rename/source; ln -s other .gs-rename/target",
        )
        .ok();
    repo.sandbox(&["stop", "a"]).ok();
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    let seen =
        subject.exec(&repo, "b", "cat made/* other/* 2>/dev/null | sort; ls -d .gs-rename 2>/dev/null; true").ok();
    assert_eq!(seen, "one\ntwo\n");
}

fn a_command_runs_in_it_and_the_end_is_as_after_a_spawn(subject: &Subject) {
    let repo = changed(subject);
    let seen = repo.sandbox(&["fork", "a", "b", "--", "sh", "-c", "basename $PWD; cat ~/.agent/sessions/1; exit 7"]);
    assert_eq!((seen.status, &*seen.stdout), (7, "repo\ntalk\n"), "{seen}");
    assert!(seen.stderr.contains("1 new commit on sandbox/b"), "what the parent committed came home: {seen}");
    let seen =
        repo.sandbox(&["fork", "-d", "-b", "topic", "a", "c", "--", "git", "branch", "--show-current"]).expect(0);
    assert_eq!(seen.stdout, "c\n");
    assert_eq!(repo.sandbox(&["wait", "c"]).status, 0);
    assert_eq!(repo.sandbox(&["logs", "c"]).ok(), "topic\n");
    let seen = repo.sandbox(&["fork", "a", "d", "--", "no-such-command"]);
    assert_eq!(seen.status, 127, "{seen}");
}

fn what_it_may_reach_goes_along(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let args = ["spawn", "--driver", subject.driver, "-d", "--allow", "api.example.com", "a"];
    repo.sandbox(&args).ok();
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    let rules = |name: &str| repo.sandbox(&["allow", name]).ok();
    assert!(rules("b").contains("api.example.com"));
    assert_eq!(rules("a"), rules("b"));
    repo.sandbox(&["allow", "b", "only-b.example.com"]).ok();
    repo.sandbox(&["deny", "a", "only-a.example.com"]).ok();
    assert!(rules("b").contains("only-b.example.com") && !rules("a").contains("only-b.example.com"));
    assert!(rules("a").contains("only-a.example.com") && !rules("b").contains("only-a.example.com"));
    // It has a proxy of its own, which decides by its own rules.
    let seen = subject.exec(&repo, "b", "env | grep -i https_proxy").ok();
    assert!(seen.contains("127.0.0.1:3128"), "{seen}");
}

fn what_is_wrong_is_said_and_nothing_is_left(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    let before = sandboxes(subject).len();
    for (args, status, what) in [
        (&["fork", "-d", "a", "a"][..], 125, "there is a sandbox named 'a' already"),
        (&["fork", "-d", "nobody", "b"], 125, "no sandbox named 'nobody'"),
        (&["fork", "-d", "a", "Not/a name"], 129, "'Not/a name' is not a valid sandbox name"),
        (&["fork", "-d", "-b", "bad..branch", "a", "b"], 125, "cannot check out a new branch"),
        (&["fork"], 129, "required"),
    ] {
        let seen = repo.sandbox(args);
        assert_eq!(seen.status, status, "{seen}");
        assert!(seen.stderr.contains(what), "{seen}");
        assert_eq!(sandboxes(subject).len(), before, "{seen}");
    }
    assert_eq!(subject.exec(&repo, "a", "echo alive").ok(), "alive\n");
}

fn a_killed_fork_leaves_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "a");
    let many = "mkdir ~/many; cd ~/many; for d in $(seq 60); do mkdir $d; (cd $d; seq 250 | xargs touch); done";
    subject.exec(&repo, "a", many).ok();
    let before = sandboxes(subject);
    let mut fork = subject.env.start(repo.dir(), &["fork", "-d", "a", "b"]);
    let mut half = PathBuf::new();
    wait_until("the copy to begin", Duration::from_secs(20), || {
        let new = sandboxes(subject).into_iter().find(|dir| !before.contains(dir));
        half = new.unwrap_or_default();
        half.join("home/many").exists() || half.join("sandbox.json").exists()
    });
    fork.kill();
    fork.wait(Duration::from_secs(10));
    if half.join("sandbox.json").exists() {
        // Too late: then it is a whole one.
        repo.sandbox(&["show", "b"]).ok();
        return;
    }
    assert_eq!(subject.exec(&repo, "a", "echo alive; ls ~/many | wc -l").ok(), "alive\n60\n", "it was thawed");
    assert!(!repo.sandbox(&["list"]).ok().contains("\nb "));
    // The name is free at once, and the rest is swept.
    repo.sandbox(&["fork", "-d", "a", "b"]).ok();
    assert_eq!(subject.exec(&repo, "b", "ls ~/many | wc -l").ok(), "60\n");
    repo.sandbox(&["gc"]).ok();
    assert!(!half.exists());
    assert_eq!(sandboxes(subject).len(), before.len() + 1);
}
