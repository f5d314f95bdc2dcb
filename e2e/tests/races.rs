//! Commands that meet: each ends as if it had come before or after the other, and says so.

use sandbox_testkit::{Repo, State, TestEnv, wait_until};
use serde_json::Value;
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(600);

fn commit(repo: &Repo, name: &str) {
    let script = format!("echo {name} >{name}; git add {name}; git commit -qm {name}");
    repo.sandbox(&["spawn", "-q", name, "--", "sh", "-c", &script]).ok();
}

#[test]
fn whoever_drops_it_the_other_does_not_say_that_there_was_none() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for round in 0..6 {
        commit(&repo, "x");
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..3).map(|_| scope.spawn(|| repo.sandbox(&["drop", "--force", "x"]))).collect();
            let all: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
            let dropped = all.iter().filter(|one| one.stderr.contains("dropped 'x' into the trash")).count();
            assert_eq!(dropped, 1, "{round}: {all:?}");
            // One that only began when it was gone has nothing to do with it.
            for one in all.iter().filter(|one| !one.stderr.contains("no sandbox named")) {
                assert_eq!(one.status, 0, "{round}: {one}");
            }
        });
    }
    // While the other one is at what follows its rename, in any case.
    commit(&repo, "y");
    repo.sandbox(&["merge", "y"]).ok();
    let lock = repo.dir().join(".git/packed-refs.lock");
    fs::write(&lock, "").unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| repo.sandbox(&["drop", "y"]));
        let away = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("dropped-");
        wait_until("it is on its way out", LIMIT, || {
            fs::read_dir(env.state().join("tmp")).unwrap().flatten().any(away)
        });
        let second = scope.spawn(|| repo.sandbox(&["drop", "y"]));
        let spawn = repo.sandbox(&["spawn", "y", "--", "true"]).expect(125);
        assert!(
            spawn.stderr.starts_with("error: the sandbox 'y' is being dropped, and its name is not free yet\n"),
            "{spawn}"
        );
        assert!(spawn.stderr.contains("hint: try again when that has ended"), "{spawn}");
        fs::remove_file(&lock).unwrap();
        assert_eq!(first.join().unwrap().expect(0).stderr, "dropped 'y'\n");
        assert_eq!(second.join().unwrap().expect(0).stderr, "'y' was dropped by another command meanwhile\n");
    });
    repo.sandbox(&["spawn", "-q", "y", "--", "true"]).ok();
}

#[test]
fn a_merge_of_all_does_not_fail_for_one_that_is_dropped_meanwhile() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for round in 0..4 {
        let names: Vec<String> = (0..3).map(|n| format!("m{round}-{n}")).collect();
        names.iter().for_each(|name| commit(&repo, name));
        std::thread::scope(|scope| {
            let merge = scope.spawn(|| repo.sandbox(&["merge", "--all"]));
            std::thread::sleep(Duration::from_millis(60 * round));
            let drop = repo.sandbox(&["drop", "--force", &names[1]]);
            assert_eq!(drop.status, 0, "{drop}");
            let merge = merge.join().unwrap();
            assert_eq!(merge.status, 0, "{round}: {merge}");
        });
        for name in [&names[0], &names[2]] {
            assert!(repo.has(name), "{name} is merged");
        }
        repo.sandbox(&["drop", "--all"]).ok();
    }
    repo.git(&["fsck", "--no-dangling"]).ok();
}

#[test]
fn fifty_bring_their_commits_home_at_once() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let script = "while ! git fetch -q host; do sleep 0.1; done; echo $$ >mine; git add mine; git commit -qm mine";
    repo.sandbox(&["spawn", "-q", "-d", "--count", "50", "n", "--", "sh", "-c", script]).ok();
    let refs = || repo.git(&["for-each-ref", "--format=%(refname)", "refs/sandbox"]).ok().lines().count();
    wait_until("all fifty are home", LIMIT, || refs() == 50);
    for line in repo.git(&["for-each-ref", "--format=%(objectname)", "refs/sandbox"]).ok().lines() {
        repo.git(&["merge-base", "--is-ancestor", "main", line]).ok();
    }
    repo.git(&["fsck", "--full", "--no-dangling"]).ok();
    let listed: Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
    let ahead = |row: &Value| row["commits_ahead"] == 1;
    assert_eq!(listed["sandboxes"].as_array().unwrap().iter().filter(|row| ahead(row)).count(), 50);
    repo.sandbox(&["stop", "--all", "--grace", "0s"]).ok();
}

#[test]
fn a_clock_that_jumps_changes_no_order() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for name in ["c", "a", "b"] {
        repo.sandbox(&["spawn", "-q", name, "--", "true"]).ok();
    }
    for (n, dir) in fs::read_dir(env.state().join("sandboxes")).unwrap().flatten().enumerate() {
        let path = dir.path().join("sandbox.json");
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["created"] = (4_000_000_000 - 1000 * n as u64).into();
        fs::write(&path, record.to_string()).unwrap();
    }
    let listed: Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
    let names: Vec<&str> =
        listed["sandboxes"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "a", "b"]);
}

#[test]
fn a_copied_state_directory_takes_no_refs_of_the_original() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    commit(&repo, "x");
    let copy = env.root().join("copy");
    // As an ordinary user it cannot copy the work directories of an overlay, which nobody misses.
    env.run(env.command("cp", repo.dir()).arg("-a").arg(env.state()).arg(&copy));
    let there = |args: &[&str]| {
        let mut command = env.sandbox_command(repo.dir(), args);
        env.run(command.env("GIT_SANDBOX_STATE", &copy))
    };
    let tip = repo.id("sandbox/x");
    let refused = there(&["drop", "--force", "x"]);
    let list = repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).ok();
    assert!(list.contains(&tip), "{refused}: {list}");
    let refused = there(&["commit", "x", "-m", "y"]);
    assert!(refused.status != 0, "{refused}");
    let told = there(&["repair", "--dry-run"]).expect(0);
    assert!(told.stdout.contains("is a copy of '") && told.stdout.contains("', which is still there"), "{told}");
    there(&["repair"]);
    assert!(!there(&["repair", "--dry-run"]).stdout.contains("is a copy of"));
    // It has sandboxes of its own now; what both had is the original's.
    there(&["spawn", "-q", "own", "--", "sh", "-c", "echo o >o; git add o; git commit -qm o"]).ok();
    repo.git(&["rev-parse", "--verify", "sandbox/own"]).ok();
    assert_eq!(repo.id("sandbox/x"), tip);
    repo.sandbox(&["repair", "--dry-run"]);
    repo.sandbox(&["branch", "x", "kept"]).ok();
    repo.sandbox(&["drop", "x"]).ok();
}
