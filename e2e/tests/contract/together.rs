//! Several sandboxes at once: what collides, merging many, picking, and taking away as files.

use crate::Subject;
use sandbox_testkit::{Child, Repo, State, wait_until};
use std::process::Stdio;
use std::time::Duration;

over_drivers! {
    what_collides_is_told,
    many_are_told_as_a_list,
    uncommitted_work_collides_too,
    a_new_collision_is_told_once,
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
