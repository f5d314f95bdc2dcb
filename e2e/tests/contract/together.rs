//! Several sandboxes at once: what collides, merging many, picking, and taking away as files.

use crate::Subject;
use sandbox_testkit::{Child, Repo, State, tree_digest, wait_until};
use std::process::Stdio;
use std::time::Duration;

over_views_at_length! {
    what_collides_is_told,
    many_are_told_as_a_list,
    uncommitted_work_collides_too,
    a_new_collision_is_told_once,
    many_are_merged_and_the_tree_changes_once,
    what_conflicts_is_left_out_and_told,
    all_or_nothing,
    an_octopus_has_all_as_parents,
    a_rebase_keeps_the_authors,
    uncommitted_work_here_is_kept_by_a_merge_of_many,
    commits_are_picked,
    a_bundle_is_a_file_to_fetch_from,
    two_sandboxes_are_compared,
    a_patch_is_for_other_tools,
    a_name_of_another_repository_is_refused,
}

/// A sandbox that replaces a line of `src/b.c` and commits.
fn line(subject: &Subject, repo: &Repo, name: &str, from: &str, to: &str) {
    subject.spawn(repo, &["-q", name], &format!("sed -i 's/^{from}$/{to}/' src/b.c; git commit -qam '{name}'")).ok();
}

fn what_collides_is_told(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let seen = repo.sandbox(&["conflicts"]).expect(0);
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("", "no sandbox of this repository has commits\n"));
    line(subject, &repo, "a", "line 1", "AAA");
    line(subject, &repo, "b", "line 1", "BBB");
    line(subject, &repo, "c", "line 20", "CCC");
    subject.spawn(&repo, &["-q", "none"], "true").ok();
    let objects = repo.git(&["count-objects"]).ok();
    let table = "               1      2       3
1 HEAD (main)
2 a            ahead
3 b            ahead  1 path
4 c            ahead  clean   clean

a and b collide:
  src/b.c
";
    let seen = repo.sandbox(&["conflicts"]).expect(1);
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), (table, "3 sandboxes: 1 pair collides\n"));
    // The same from the cache, and when that was lost or damaged.
    for damage in ["test -s", "rm", "sh -c 'echo x >$0'"] {
        let script = format!("for f in \"$GIT_SANDBOX_STATE\"/repos/*/conflicts.json; do {damage} \"$f\"; done");
        repo.env().run(repo.sh_command(&script).env("GIT_SANDBOX_STATE", repo.env().state())).ok();
        assert_eq!(repo.sandbox(&["conflicts"]).expect(1).stdout, table);
    }
    assert_eq!(repo.git(&["count-objects"]).ok(), objects, "nothing is left in the repository");
    let seen = repo.sandbox(&["conflicts", "a", "c", "none"]).expect(0);
    assert_eq!(seen.stderr, "no commits in 'none'\n2 sandboxes: nothing collides\n");
    let json = repo.sandbox(&["conflicts", "--json", "a", "b"]).expect(1).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["tips"][1]["commit"], repo.id("sandbox/a"));
    let pair = |a: &str, b: &str| {
        let pairs = json["pairs"].as_array().unwrap();
        pairs.iter().find(|pair| pair["a"] == a && pair["b"] == b).unwrap().clone()
    };
    assert_eq!(pair("a", "b")["paths"][0], "src/b.c");
    assert_eq!(pair("HEAD", "a")["kind"], "contained");
    // What was merged is in HEAD, and the other one collides with it.
    repo.git(&["merge", "-q", "sandbox/a"]).ok();
    let seen = repo.sandbox(&["conflicts", "a", "b"]).expect(1);
    assert!(seen.stdout.contains("2 a            same\n3 b            1 path"), "{seen}");
    assert!(seen.stderr.contains("2 pairs collide, 1 of them with HEAD"), "{seen}");
}

fn many_are_told_as_a_list(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    line(subject, &repo, "one", "line 1", "AAA");
    line(subject, &repo, "two", "line 1", "BBB");
    for n in 0..9 {
        // A name that would steer a terminal; the last of the nine makes a file of another name.
        let script = format!("mkdir d; echo {n} >\"d/$(printf 'x\\033[31m{}')\"; git add .; git commit -qm {n}", n / 8);
        subject.spawn(&repo, &["-q", &format!("s{n}")], &script).ok();
    }
    let seen = repo.sandbox(&["conflicts"]).expect(1);
    assert!(!seen.stdout.contains('\u{1b}') && seen.stdout.contains("  d/x\\u{1b}[31m0\n"), "{seen}");
    assert!(seen.stdout.starts_with("one and two collide:\n  src/b.c\n"), "{seen}");
    assert_eq!(seen.stderr, "11 sandboxes: 29 pairs collide\n");
}

fn uncommitted_work_collides_too(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    line(subject, &repo, "a", "line 1", "AAA");
    subject.spawn(&repo, &["-q", "b"], "sed -i 's/^line 1$/BBB/' src/b.c; rm -r docs; echo f >docs").ok();
    repo.sandbox(&["conflicts", "a", "b"]).expect(0);
    let objects = repo.git(&["count-objects"]).ok();
    let seen = repo.sandbox(&["conflicts", "--uncommitted", "a", "b"]).expect(1);
    assert!(seen.stdout.ends_with("a and b collide:\n  src/b.c\n"), "{seen}");
    assert_eq!(repo.git(&["count-objects"]).ok(), objects);
}

fn a_new_collision_is_told_once(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    line(subject, &repo, "a", "line 1", "AAA");
    subject.idle(&repo, "b");
    let log = repo.env().root().join("watched");
    let mut command = repo.env().sandbox_command(repo.dir(), &["conflicts", "--watch"]);
    command.stdout(std::fs::File::create(&log).unwrap()).stderr(Stdio::null());
    let mut watching = Child::spawn(&mut command);
    let text = || std::fs::read_to_string(&log).unwrap();
    subject.exec(&repo, "b", "sed -i 's/^line 1$/BBB/' src/b.c; git commit -qam b").ok();
    let limit = Duration::from_secs(20);
    wait_until("the collision is told", limit, || text() == "a and b collide: src/b.c\n");
    subject.exec(&repo, "b", "git commit -q --allow-empty -m more").ok();
    line(subject, &repo, "c", "line 1", "CCC");
    let all = "a and b collide: src/b.c\na and c collide: src/b.c\nb and c collide: src/b.c\n";
    wait_until("the other two are told", limit, || text() == all);
    watching.kill();
    repo.sandbox(&["stop", "b"]).ok();
}

/// Four sandboxes: `a`, `b` and `d` fit together, `c` collides with `a`, and is named before it.
fn four<'e>(subject: &'e Subject) -> Repo<'e> {
    let repo = subject.repo(State::Plain);
    line(subject, &repo, "c", "line 1", "CCC");
    line(subject, &repo, "a", "line 1", "AAA");
    line(subject, &repo, "b", "line 10", "BBB");
    subject.spawn(&repo, &["-q", "d"], "echo d >d; git add d; git commit -qm d").ok();
    repo
}

fn many_are_merged_and_the_tree_changes_once(subject: &Subject) {
    let repo = four(subject);
    let start = repo.id("HEAD");
    let seen = repo.sandbox(&["merge", "--dry-run", "a", "b", "d"]).expect(0);
    assert!(seen.stdout.starts_with("merge 3 sandboxes into 'main': a b d\n"), "{seen}");
    assert_eq!((repo.id("HEAD"), repo.git(&["status", "--porcelain"]).ok()), (start.clone(), String::new()));
    let moves = repo.git(&["reflog"]).ok().lines().count();
    let seen = repo.sandbox(&["merge", "a", "b", "d"]).expect(0);
    assert!(seen.stderr.starts_with("merged 3 sandboxes from 'a', 'b', 'd' into 'main': now at "), "{seen}");
    assert_eq!(repo.git(&["reflog"]).ok().lines().count(), moves + 1, "HEAD moves once");
    assert_eq!(
        repo.git(&["log", "--first-parent", "--format=%s", &format!("{start}..")]).ok(),
        "Merge sandbox 'd'\nMerge sandbox 'b'\na\n"
    );
    let text = repo.read("src/b.c");
    assert!(text.contains("AAA\n") && text.contains("BBB\n") && repo.has("d"), "{text}");
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    assert_eq!(repo.git(&["fsck"]).status, 0);
    // What is merged is nothing to merge.
    let seen = repo.sandbox(&["merge", "a", "b"]).expect(1);
    assert_eq!(seen.stderr, "nothing to merge from 'a'\nnothing to merge from 'b'\nnothing to merge\n");
}

fn what_conflicts_is_left_out_and_told(subject: &Subject) {
    let repo = four(subject);
    line(subject, &repo, "e", "line 1", "CCC");
    let seen = repo.sandbox(&["merge", "a", "c", "b"]).expect(1);
    assert!(seen.stderr.contains("left out 'c': cannot merge 'c'\n  'src/b.c' conflicts in the commits: "), "{seen}");
    let told = |side: &str, name: &str| {
        seen.stderr.lines().any(|line| line.starts_with(&format!("  {side} ")) && line.ends_with(&format!(" {name}")))
    };
    assert!(told("here ", "a") && told("there", "c"), "both sides' commits: {seen}");
    assert!(repo.read("src/b.c").contains("AAA\n") && repo.read("src/b.c").contains("BBB\n"));
    // The order in which most fit is told, `--in-order` keeps the given one.
    repo.git(&["reset", "-q", "--hard", "ORIG_HEAD"]).ok();
    let seen = repo.sandbox(&["merge", "--json", "--dry-run", "a", "c", "e"]).expect(1);
    assert!(seen.stderr.starts_with("in this order, so that most of them merge: c, e, a\n"), "{seen}");
    let json: serde_json::Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!((&json["version"], &json["left_out"][0]["name"]), (&1.into(), &"a".into()));
    assert_eq!(json["left_out"][0]["conflicts"][0]["path"], "src/b.c");
    let seen = repo.sandbox(&["merge", "--in-order", "a", "c", "e"]).expect(1);
    assert!(seen.stderr.contains("left out 'c'") && seen.stderr.contains("left out 'e'"), "{seen}");
    assert!(repo.read("src/b.c").contains("AAA\n"));
}

fn all_or_nothing(subject: &Subject) {
    let repo = four(subject);
    let (before, head) = (tree_digest(repo.dir()), repo.id("HEAD"));
    for flag in ["--atomic", "--octopus"] {
        let seen = repo.sandbox(&["merge", flag, "--all"]).expect(1);
        let text = format!(
            "error: cannot merge all of them: 'c' would be left out\nhint: nothing was written; without `{flag}` the others are merged\n"
        );
        assert!(seen.stderr.ends_with(&text), "{seen}");
        assert_eq!((tree_digest(repo.dir()), repo.id("HEAD")), (before.clone(), head.clone()));
    }
    // One that is named twice is merged once.
    let seen = repo.sandbox(&["merge", "--atomic", "a", "b", "a"]).expect(0);
    assert!(seen.stderr.starts_with("merged 2 sandboxes from 'a', 'b' into"), "{seen}");
    repo.sandbox(&["merge", "--all", "x"]).expect(129);
    repo.sandbox(&["merge"]).expect(129);
}

fn an_octopus_has_all_as_parents(subject: &Subject) {
    let repo = four(subject);
    let parents = ["HEAD", "sandbox/a", "sandbox/b", "sandbox/d"].map(|name| repo.id(name)).join(" ");
    repo.sandbox(&["merge", "--octopus", "a", "b", "d"]).expect(0);
    assert_eq!(
        repo.git(&["log", "-1", "--format=%P%n%s"]).ok(),
        format!("{parents}\nMerge sandboxes 'a', 'b' and 'd'\n")
    );
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    assert!(repo.has("d") && repo.read("src/b.c").contains("AAA\n"));
}

fn a_rebase_keeps_the_authors(subject: &Subject) {
    let repo = four(subject);
    let script = "echo 1 >e; git add e; git commit -qm 'One\n\nBody' --author='Agent <a@example.com>' --date='@1000000000 +0200'; \
                  git commit -q --allow-empty -m empty; echo 2 >e; git commit -qam Two";
    subject.spawn(&repo, &["-q", "e"], script).ok();
    repo.commit("host.txt", "host\n");
    let start = repo.id("HEAD");
    let seen = repo.sandbox(&["merge", "--rebase", "e"]).expect(0);
    assert!(seen.stderr.starts_with("put 2 commits on top from 'e' into 'main'"), "{seen}");
    let log = repo.git(&["log", "--reverse", "--format=%s %an %ad %P", "--date=raw", &format!("{start}..")]).ok();
    assert!(log.starts_with(&format!("One Agent 1000000000 +0200 {start}\nTwo Dev ")), "{log}");
    repo.sandbox(&["merge", "--rebase", "a", "b"]).expect(0);
    assert_eq!(repo.git(&["rev-list", "--merges", "--count", &format!("{start}..")]).ok(), "0\n");
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
}

fn uncommitted_work_here_is_kept_by_a_merge_of_many(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let edit = |from: &str, to: &str| {
        let text = repo.read("src/b.c").replace(&format!("{from}\n"), &format!("{to}\n"));
        repo.write("src/b.c", text);
    };
    edit("line 20", "USER EDIT");
    repo.write("new.txt", "untracked\n");
    line(subject, &repo, "a", "line 1", "AAA");
    subject.spawn(&repo, &["-q", "b"], "echo b >b; git add b; git commit -qm b -- b").ok();
    subject.spawn(&repo, &["-q", "c"], "echo agent >new.txt; git add new.txt; git commit -qm c -- new.txt").ok();
    repo.write("new.txt", "mine, later\n");
    let seen = repo.sandbox(&["merge", "--all"]).expect(1);
    assert!(seen.stderr.contains("left out 'c': cannot merge 'c'\n  'new.txt' is untracked here"), "{seen}");
    let text = repo.read("src/b.c");
    assert!(text.starts_with("AAA\n") && text.ends_with("USER EDIT\n"), "{text}");
    // `a` committed the user's edit too, and went on from it; `b` has nothing to do with it.
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "?? new.txt\n");
    assert_eq!((&*repo.read("new.txt"), &*repo.read("b")), ("mine, later\n", "b\n"));
    // In a file that two of them changed, an edit of the user's stops the later one.
    line(subject, &repo, "d", "line 5", "DDD");
    line(subject, &repo, "e", "line 10", "EEE");
    edit("line 10", "LATER EDIT");
    edit("line 5", "LATER EDIT 5");
    let (before, head) = (tree_digest(repo.dir()), repo.id("HEAD"));
    let seen = repo.sandbox(&["merge", "d", "e"]).expect(1);
    assert!(seen.stderr.contains("left out 'd'") && seen.stderr.contains("left out 'e'"), "{seen}");
    assert_eq!((tree_digest(repo.dir()), repo.id("HEAD")), (before, head), "nothing is written");
}

fn commits_are_picked(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let script = "for n in 1 2 3; do echo $n >f$n; git add .; git commit -qm \"Number $n\" --author='Agent <a@example.com>'; done";
    subject.spawn(&repo, &["-q", "s"], script).ok();
    let start = repo.commit("host.txt", "host\n");
    repo.write("host.txt", "host, uncommitted\n");
    let two = repo.id("sandbox/s~1");
    let seen = repo.sandbox(&["pick", "-x", "s", &two[..8]]).expect(0);
    assert!(seen.stderr.starts_with("picked 1 commit from 's' into 'main'"), "{seen}");
    assert_eq!(
        repo.git(&["log", "-1", "--format=%B%an%n%cn"]).ok(),
        format!("Number 2\n\n(cherry picked from commit {two})\nAgent\nDev\n")
    );
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), " M host.txt\n");
    assert!(!repo.has("f1") && repo.has("f2") && !repo.has("f3"));
    repo.write("f1", "untracked\n");
    let seen = repo.sandbox(&["pick", "s"]).expect(1);
    let error = "error: cannot pick from 's'\ncaused by: 'f1' is untracked here and has another content there\n\
                 hint: nothing was written; commit or stash the files named and pick again\n";
    assert_eq!(seen.stderr, error);
    std::fs::remove_file(repo.dir().join("f1")).unwrap();
    // All of them: what is here already is left out.
    repo.sandbox(&["pick", "s"]).expect(0);
    assert_eq!(repo.git(&["log", "--format=%s", &format!("{start}..")]).ok(), "Number 3\nNumber 1\nNumber 2\n");
    assert_eq!(
        repo.sandbox(&["pick", "s", "HEAD~3..HEAD"]).expect(1).stderr,
        "nothing to pick from 's': it is all here\n"
    );
    for rev in ["HEAD~3", "main", "--all", "HEAD^2", &start[..8], "zzzz", "..x"] {
        let seen = repo.sandbox(&["pick", "s", "--", rev]).expect(1);
        assert!(
            seen.stderr.contains("is not a commit that 's' made\nhint: `git sandbox log s` lists them"),
            "{rev}: {seen}"
        );
    }
    subject
        .spawn(&repo, &["-q", "t"], "git checkout -q host.txt; sed -i 's/^line 1$/T/' src/b.c; git commit -qam t")
        .ok();
    repo.git(&["checkout", "-q", "host.txt"]).ok();
    let text = repo.read("src/b.c").replace("line 1\n", "H\n");
    repo.commit("src/b.c", &text);
    let before = (tree_digest(repo.dir()), repo.id("HEAD"));
    let seen = repo.sandbox(&["pick", "t"]).expect(1);
    assert!(
        seen.stderr.starts_with("error: cannot pick ") && seen.stderr.contains("'src/b.c' conflicts in the commits"),
        "{seen}"
    );
    assert_eq!((tree_digest(repo.dir()), repo.id("HEAD")), before, "nothing is written");
    subject.spawn(&repo, &["-q", "m"], "git checkout -qb x; git commit -q --allow-empty -m x; git checkout -q main; git commit -q --allow-empty -m y; git merge -q x").ok();
    let seen = repo.sandbox(&["pick", "m"]).expect(128);
    assert!(
        seen.stderr.contains("is a merge commit, and cannot be picked\nhint: `git sandbox merge m` takes all of 'm'"),
        "{seen}"
    );
}

fn a_bundle_is_a_file_to_fetch_from(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    let clone = repo.env().home().join("clone");
    repo.git(&["clone", "-q", ".", clone.to_str().unwrap()]).ok();
    subject
        .spawn(
            &repo,
            &["-q", "s"],
            "git commit -q --allow-empty -m One; git checkout -qb topic; git commit -q --allow-empty -m Two",
        )
        .ok();
    repo.sandbox(&["bundle", "s", "../../s.bundle"]).expect(0);
    repo.env()
        .git(&clone, &["fetch", "-q", "../s.bundle", "refs/sandbox/s:s", "refs/sandbox-meta/s/heads/topic:topic"])
        .ok();
    assert_eq!(repo.env().git(&clone, &["rev-parse", "s", "topic"]).ok(), format!("{0}\n{0}\n", repo.id("sandbox/s")));
    let seen = repo.sandbox(&["bundle", "s", "../../s.bundle"]).expect(128);
    assert_eq!(
        seen.stderr,
        "error: '../../s.bundle' exists already\nhint: take another name, or `--force` writes over it\n"
    );
    repo.sandbox(&["bundle", "--force", "s", "../../s.bundle"]).expect(0);
    let entries = std::fs::read_dir(repo.env().home()).unwrap().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".git-sandbox."));
    assert_eq!(left.count(), 0, "nothing is left beside it");
    repo.sandbox(&["bundle", "s", "no/such/dir/x"]).expect(128);
    subject.spawn(&repo, &["-q", "none"], "true").ok();
    assert_eq!(repo.sandbox(&["bundle", "none", "x"]).expect(1).stderr, "no commits in 'none'\n");
}

fn two_sandboxes_are_compared(subject: &Subject) {
    let repo = four(subject);
    let seen = repo.sandbox(&["diff", "a", "c"]).expect(0);
    assert!(seen.stdout.contains("\n-AAA\n+CCC\n"), "{seen}");
    let seen = repo.sandbox(&["diff", "--stat", "a", "d"]).expect(0);
    assert_eq!(seen.stdout, " d       |   1 +\n src/b.c |   2 +-\n 2 files changed, 2 insertions(+), 1 deletion(-)\n");
    let seen = repo.sandbox(&["diff", "a", "a"]).expect(0);
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("", "nothing differs between 'a' and 'a'\n"));
    repo.sandbox(&["diff", "--uncommitted", "a", "c"]).expect(129);
}

fn a_patch_is_for_other_tools(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject
        .spawn(&repo, &["-q", "s"], "printf 'a\\033\\0b' >bin; echo text >>src/b.c; git add -A; git commit -qm s")
        .ok();
    let patch = repo.env().root().join("s.patch");
    let mut command = repo.env().sandbox_command(repo.dir(), &["diff", "--patch", "s"]);
    command.stdout(std::fs::File::create(&patch).unwrap());
    Child::spawn(&mut command).wait(Duration::from_secs(20));
    repo.git(&["apply", "--index", patch.to_str().unwrap()]).ok();
    assert_eq!(repo.git(&["write-tree"]).ok(), repo.git(&["rev-parse", "sandbox/s^{tree}"]).ok());
}

fn a_name_of_another_repository_is_refused(subject: &Subject) {
    let (one, two) = (State::Plain.build(&subject.env, "one"), State::Plain.build(&subject.env, "two"));
    line(subject, &one, "a", "line 1", "AAA");
    line(subject, &two, "b", "line 1", "BBB");
    for args in [&["conflicts", "a", "b"][..], &["merge", "a", "b"], &["diff", "a", "b"]] {
        let seen = subject.env.sandbox(&subject.env.home(), args).expect(129);
        let text =
            "error: 'a' and 'b' are of different repositories\nhint: run this inside the repository that is meant\n";
        assert_eq!(seen.stderr, text);
    }
    // Inside one of them the other's name is unknown.
    assert!(one.sandbox(&["conflicts", "a", "b"]).expect(128).stderr.starts_with("error: no sandbox named 'b'"));
}
