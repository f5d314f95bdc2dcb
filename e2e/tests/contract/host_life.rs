//! What happens to the host's repository, state and clock while a sandbox is there.

use crate::Subject;
use rustix::process::{Pid, Signal, kill_process};
use sandbox_testkit::{Repo, State, is_root, skip, wait_until, which};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

over_drivers! {
    every_housekeeping_of_the_host_goes_unnoticed,
    refs_of_ours_that_somebody_deletes_come_back,
    a_repository_that_moves_while_it_runs,
    a_copied_repository_is_another_one,
    a_repository_that_is_deleted_takes_nothing_with_it,
    another_repository_at_the_same_place_gets_nothing,
    a_restored_repository_gets_its_sandboxes_back,
    a_newer_state_is_read_and_never_written,
    clocks_that_jump_disturb_nothing,
    a_policy_that_breaks_lets_nothing_out_and_starts_nothing,
    a_flipped_byte_is_found_and_harms_nobody_else,
    a_disk_that_goes_away_keeps_what_it_had,
}

const LIMIT: Duration = Duration::from_secs(60);

fn json(repo: &Repo, args: &[&str]) -> Value {
    serde_json::from_str(&repo.sandbox(args).ok()).expect("JSON")
}

/// THREATS rows 11 and 13: rounds of everything that git does to its own store, against commits inside.
fn every_housekeeping_of_the_host_goes_unnoticed(subject: &Subject) {
    const ROUNDS: usize = 8;
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.idle(&repo, "other");
    let look = "git log --format=%s | tail -n1; git cat-file -p HEAD~0:README.md; git status --porcelain";
    let before = subject.exec(&repo, "other", look).ok();
    let housekeeping = [
        "git gc -q --prune=now",
        "git repack -q -a -d -f && git prune --expire=now",
        "git maintenance run --quiet --task=gc --task=commit-graph --task=incremental-repack",
        "git commit-graph write --reachable && git multi-pack-index write",
        "git pack-refs --all --prune && git reflog expire --expire=now --all && git gc -q --prune=now",
        "git checkout -q -B moved && echo $RANDOM >>src/a.c && git stash -q && git stash drop -q",
        "git checkout -q main && git commit -q --amend --allow-empty -m Rewritten && git gc -q --prune=now",
        "git checkout -q other && git rebase -q -X theirs main; git checkout -q -f main; git branch -q -D moved || :",
    ];
    for round in 0..ROUNDS {
        let work = format!(
            "for n in 1 2 3; do echo {round} $n >f$n && git add f$n && git commit -q -m c{round}-$n || exit 1; done"
        );
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| subject.exec(&repo, "s", &work));
            let host = scope.spawn(|| repo.sh(housekeeping[round % housekeeping.len()]));
            let home = repo.sandbox(&["fetch", "s"]);
            assert_eq!(home.status, 0, "round {round}: {home}");
            inside.join().unwrap().expect(0);
            let host = host.join().unwrap();
            // Git 2.39's `gc` names each ref that is no commit, once there is a commit graph: our record of who owns
            // the refs is a blob. It does what it shall all the same, and fsck below finds nothing.
            let owner = repo.git(&["rev-parse", "-q", "--verify", "refs/sandbox-meta/s/owner"]).stdout;
            let owner = owner.trim();
            let said: Vec<&str> =
                host.stderr.lines().filter(|line| owner.is_empty() || !line.contains(owner)).collect();
            let bad = said.iter().any(|line| line.contains("fatal") || line.contains("error:"));
            assert!(!bad, "round {round}: {host}");
        });
        repo.sandbox(&["fetch", "s"]).ok();
        assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), format!("c{round}-3\n"));
    }
    assert_eq!(subject.exec(&repo, "other", look).ok(), before);
    subject.exec(&repo, "s", "git fsck --no-dangling").ok();
    assert_eq!(repo.git(&["fsck", "--no-dangling"]).ok(), "");
    let made: usize = repo.sh("git log --format=%s sandbox/s | grep -c '^c[0-9]-[123]$'").ok().trim().parse().unwrap();
    assert_eq!(made, 3 * ROUNDS, "each commit that was made inside is here");
    let merged = repo.git(&["merge-base", "main", "sandbox/s"]);
    assert!(merged.status == 0 || merged.stdout.is_empty(), "{merged}");
}

/// Row 12.
fn refs_of_ours_that_somebody_deletes_come_back(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo 1 >one; git add one; git commit -qm one; git branch aside").ok();
    repo.sandbox(&["fetch", "s"]).ok();
    repo.sh("git for-each-ref --format='delete %(refname)' refs/sandbox refs/sandbox-meta | git update-ref --stdin")
        .ok();
    repo.git(&["gc", "-q", "--prune=now"]).ok();
    subject.exec(&repo, "s", "echo 2 >two; git add two; git commit -qm two").ok();
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.git(&["log", "-2", "--format=%s", "sandbox/s"]).ok(), "two\none\n");
    assert_eq!(repo.git(&["fsck", "--no-dangling"]).ok(), "");
    repo.sandbox(&["stop", "s"]).ok();
    repo.sh("git for-each-ref --format='delete %(refname)' refs/sandbox refs/sandbox-meta | git update-ref --stdin")
        .ok();
    repo.git(&["gc", "-q", "--prune=now"]).ok();
    assert_eq!(repo.sandbox(&["drop", "s"]).status, 1, "the host has not got its commits");
    repo.sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.git(&["log", "-2", "--format=%s", "sandbox/s"]).ok(), "two\none\n");
}

/// Row 15. A sandbox keeps the path that it was made with.
fn a_repository_that_moves_while_it_runs(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "s");
    let before = repo.dir().display().to_string();
    let moved = subject.env.repo_at("elsewhere");
    fs::rename(repo.dir(), moved.dir()).unwrap();
    let name = |verb: &[&str]| moved.sandbox(verb);
    let made = name(&["exec", "s", "--", "sh", "-c", "pwd; echo x >x; git add x; git commit -qm x"]).ok();
    assert_eq!(made, format!("{before}\n"));
    name(&["fetch", "s"]).ok();
    assert_eq!(moved.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "x\n");
    name(&["stop", "s"]).ok();
    name(&["start", "s"]).ok();
    assert_eq!(name(&["exec", "s", "--", "sh", "-c", "pwd; cat x"]).ok(), format!("{before}\nx\n"));
    // A new one has the new path.
    assert_eq!(
        name(&["spawn", "-q", "--driver", subject.driver, "t", "--", "pwd"]).ok(),
        format!("{}\n", moved.dir().display())
    );
    name(&["merge", "s"]).ok();
    assert_eq!(moved.read("x"), "x\n");
}

fn a_copied_repository_is_another_one(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x").ok();
    let copy = subject.env.repo_at("copy");
    fs::remove_dir_all(copy.dir()).ok();
    let status = std::process::Command::new("cp").arg("-a").arg(repo.dir()).arg(copy.dir()).status().unwrap();
    assert!(status.success());
    assert!(copy.sandbox(&["list"]).expect(0).stderr.contains("no sandboxes of this repository"));
    assert_eq!(copy.sandbox(&["exec", "s", "--", "true"]).status, 125);
    copy.sandbox(&["spawn", "-q", "--driver", subject.driver, "c", "--", "true"]).ok();
    let id = |repo: &Repo| fs::read_to_string(repo.dir().join(".git/sandbox-id")).unwrap();
    assert_ne!(id(&repo), id(&copy));
    let names = |repo: &Repo| -> Vec<String> {
        let all = json(repo, &["list", "--json"]);
        all["sandboxes"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names(&repo), names(&copy)), (vec!["s".to_owned()], vec!["c".to_owned()]));
}

/// Row 16, first half: everything that a sandbox has is still to be had.
fn a_repository_that_is_deleted_takes_nothing_with_it(subject: &Subject) {
    let repo = subject.repo(State::Dirty);
    subject.idle(&repo, "s");
    subject.exec(&repo, "s", "echo 1 >one; git add one; git commit -qm one; echo loose >loose.txt").ok();
    let away = subject.env.home();
    // Commits that come home at this moment are in the way of the first try.
    wait_until("the repository is gone", LIMIT, || {
        let _ = fs::remove_dir_all(repo.dir());
        !repo.dir().exists()
    });
    let run = |args: &[&str]| subject.env.sandbox(&away, args);
    let seen = run(&["exec", "s", "--", "sh", "-c", "cat one loose.txt; git log -1 --format=%s"]);
    assert_eq!(seen.ok(), "1\nloose\none\n", "it goes on");
    run(&["exec", "s", "--", "git", "commit", "-q", "--allow-empty", "-m", "two"]).ok();
    for running in [true, false] {
        let list = run(&["list", "-A"]).ok();
        assert!(list.contains(if running { "running" } else { "stopped" }), "{list}");
        assert!(run(&["show", "s"]).ok().contains("s"));
        run(&["cp", "s:loose.txt", "out.txt"]).ok();
        assert_eq!(fs::read_to_string(away.join("out.txt")).unwrap(), "loose\n");
        fs::remove_file(away.join("out.txt")).unwrap();
        run(&["bundle", "s", "out.bundle"]).ok();
        subject.env.git(&away, &["clone", "-q", "--bare", "out.bundle", "out.git"]).ok();
        let log = subject.env.git(&away.join("out.git"), &["log", "-2", "--all", "--format=%s"]).ok();
        assert_eq!(log, "two\none\n");
        fs::remove_dir_all(away.join("out.git")).unwrap();
        fs::remove_file(away.join("out.bundle")).unwrap();
        let refused = run(&["fetch", "s"]);
        assert!(refused.status != 0 && refused.stderr.contains("hint: it was moved or deleted"), "{refused}");
        if running {
            run(&["stop", "s"]).ok();
        }
    }
    run(&["start", "s"]).ok();
    assert_eq!(run(&["exec", "s", "--", "cat", "loose.txt"]).ok(), "loose\n");
    run(&["stop", "s"]).ok();
    let refused = run(&["drop", "s"]);
    assert!(refused.status != 0 && refused.stderr.contains("takes out the commits"), "{refused}");
    run(&["drop", "--force", "s"]).ok();
    run(&["trash", "restore", "s"]).ok();
    assert_eq!(run(&["exec", "s", "--", "sh", "-c", "cat loose.txt; git log -1 --format=%s"]).ok(), "loose\ntwo\n");
    run(&["drop", "--force", "s"]).ok();
}

/// Neither a commit nor a file of a sandbox goes into a repository that only has the path of its own one.
fn another_repository_at_the_same_place_gets_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "runs");
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x; echo loose >loose").ok();
    let hidden = subject.env.repo_at("hidden");
    fs::rename(repo.dir(), hidden.dir()).unwrap();
    fs::create_dir_all(repo.dir()).unwrap();
    repo.sh("git init -q && git commit -q --allow-empty -m Mine").ok();
    let look =
        "git for-each-ref; git status --porcelain; git rev-parse HEAD; find .git -type f | sort; git count-objects";
    let before = repo.sh(look).ok();
    let home = subject.env.home();
    for name in ["runs", "s"] {
        // The second one runs: its own commit tries to come home at once.
        if name == "runs" {
            let commit = ["exec", name, "--", "git", "commit", "-q", "--allow-empty", "-m", "two"];
            subject.env.sandbox(&home, &commit).ok();
        }
        let verbs: [&[&str]; 6] = [
            &["fetch", name],
            &["merge", name],
            &["apply", name],
            &["branch", name, "b"],
            &["drop", name],
            &["log", name],
        ];
        for args in verbs {
            for at in [repo.dir(), home.as_path()] {
                let seen = subject.env.sandbox(at, args);
                let named = format!("is not the repository that the sandbox '{name}' was made from");
                let busy = args[0] == "drop" && seen.stderr.contains("a command runs in it");
                assert!(seen.status != 0 && (busy || seen.stderr.contains(&named)), "{args:?} in {at:?}: {seen}");
                assert_eq!(repo.sh(look).ok(), before, "{args:?} in {at:?}");
            }
        }
    }
    let told = repo.sandbox(&["repair"]);
    assert_eq!(told.status, 1, "{told}");
    assert!(told.stdout.contains("of 2 sandboxes is gone, and another one is in its place"), "{told}");
    assert_eq!(repo.sh(look).ok(), before, "repair");
    // Where the real one is, all of it is to be had.
    assert!(hidden.sandbox(&["list"]).ok().contains("runs"));
    for (name, subjects) in [("s", "x\n"), ("runs", "two\n")] {
        hidden.sandbox(&["fetch", name]).ok();
        assert_eq!(hidden.git(&["log", "-1", "--format=%s", &format!("sandbox/{name}")]).ok(), subjects);
    }
    hidden.sandbox(&["merge", "s"]).ok();
    assert_eq!(hidden.read("x"), "x\n");
    assert_eq!(repo.sh(look).ok(), before);
}

/// `repair --repo NEW`: with its id and without, wrong ones, copies, twice.
fn a_restored_repository_gets_its_sandboxes_back(subject: &Subject) {
    let env = &subject.env;
    let repo = subject.repo(State::Plain);
    let work = "echo x >x; git add x; git commit -qm x";
    subject.spawn(&repo, &["s"], work).ok();
    let home = env.home();
    let run = |args: &[&str]| env.sandbox(&home, args);
    let wrong = State::Unborn.build(env, "wrong");
    let here = repo.dir().display().to_string();
    // Nothing is missing.
    assert_eq!(run(&["repair", "--repo", &here]).expect(0).stderr, "everything is as it should be\n");
    let refused = |path: &Path, text: &str| {
        let seen = run(&["repair", "--repo", &path.display().to_string()]);
        assert!(seen.status == 1 && seen.stderr.contains(text), "{seen}");
        assert!(!path.join(".git/sandbox-id").exists() || text.contains("copy") || text.contains("id of its own"));
    };
    refused(wrong.dir(), "no repository of a sandbox is missing");
    let (copy, moved) = (env.repo_at("copy"), env.repo_at("moved"));
    let status = std::process::Command::new("cp").arg("-a").arg(repo.dir()).arg(copy.dir()).status().unwrap();
    assert!(status.success());
    refused(copy.dir(), &format!("is a copy of '{here}/.git', which has the sandboxes"));
    // Moved: compared by its id. Looked at, done, done again.
    fs::rename(repo.dir(), moved.dir()).unwrap();
    fs::remove_dir_all(copy.dir()).unwrap();
    refused(wrong.dir(), "has not got commit");
    let there = moved.dir().display().to_string();
    let what = format!("the repository '{here}/.git' of 1 sandbox is '{there}' now\n");
    assert!(run(&["repair", "-n", "--repo", &there]).ok().starts_with(&format!("found    {what}")));
    assert!(run(&["fetch", "s"]).stderr.contains("`git sandbox repair --repo NEW` does"));
    assert_eq!(run(&["repair", "--repo", &there]).ok(), format!("repaired {what}"));
    assert_eq!(run(&["repair", "--repo", &there]).expect(0).stderr, "everything is as it should be\n");
    run(&["fetch", "s"]).ok();
    assert_eq!(moved.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "x\n");
    // A clone has neither the id nor a ref of ours, but the commits.
    let clone = env.repo_at("clone");
    moved.git(&["clone", "-q", "--no-local", ".", &clone.dir().display().to_string()]).ok();
    fs::remove_dir_all(moved.dir()).unwrap();
    let seen = json(&clone, &["repair", "--json", "--repo", "."]);
    assert_eq!(seen["findings"][0]["kind"], "place");
    assert_eq!(
        (&seen["findings"][0]["repaired"], seen["findings"].as_array().unwrap().len()),
        (&true.into(), 1),
        "{seen}"
    );
    clone.sandbox(&["fetch", "s"]).ok();
    assert_eq!(clone.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "x\n");
    // From a backup at its own place, without the id: our refs in it are enough.
    fs::remove_file(clone.dir().join(".git/sandbox-id")).unwrap();
    let refused = clone.sandbox(&["fetch", "s"]);
    assert!(
        refused.status != 0 && refused.stderr.contains("if it is the same one from a backup or a clone"),
        "{refused}"
    );
    clone.sandbox(&["repair", "--repo", "."]).ok();
    clone.sandbox(&["merge", "s"]).ok();
    assert_eq!(clone.read("x"), "x\n");
    // With sandboxes of its own it is none that is missing.
    let other = env.repo_at("other");
    clone.git(&["clone", "-q", "--no-local", ".", &other.dir().display().to_string()]).ok();
    other.sandbox(&["spawn", "-q", "--driver", subject.driver, "o", "--", "true"]).ok();
    let id = fs::read_to_string(other.dir().join(".git/sandbox-id")).unwrap();
    fs::write(wrong.dir().join(".git/sandbox-id"), "0".repeat(32) + "\n").unwrap();
    let seen = run(&["repair", "--repo", &wrong.dir().display().to_string()]);
    assert!(seen.status == 1 && seen.stderr.contains("has an id of its own, 0000"), "{seen}");
    fs::remove_file(wrong.dir().join(".git/sandbox-id")).unwrap();
    // Two are missing, and both were made from the same commit.
    fs::remove_file(clone.dir().join(".git/sandbox-id")).unwrap();
    fs::remove_file(other.dir().join(".git/sandbox-id")).unwrap();
    let both = env.repo_at("both");
    other.git(&["clone", "-q", "--no-local", ".", &both.dir().display().to_string()]).ok();
    let seen = both.sandbox(&["repair", "--repo", "."]);
    assert!(seen.status == 1 && seen.stderr.contains(" may be '") && seen.stderr.contains(id.trim()), "{seen}");
    assert!(seen.stderr.contains("/sandbox-id\"` says which"), "{seen}");
}

/// Row 30: who wrote it is newer. Nothing is written, by no verb; what only reads works.
fn a_newer_state_is_read_and_never_written(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.spawn(&repo, &["s"], "echo x >x; git add x; git commit -qm x; echo y >y").ok();
    subject.spawn(&repo, &["gone"], "echo x >x").ok();
    repo.sandbox(&["drop", "--force", "gone"]).ok();
    repo.sandbox(&["gc"]).ok();
    let state = subject.env.state();
    fs::write(state.join("format"), "git-sandbox 99\n").unwrap();
    let before = (stamps(&state), repo.git(&["for-each-ref"]).ok());
    let writing: &[&[&str]] = &[
        &["spawn", "new", "--", "true"],
        &["start", "s"],
        &["exec", "s", "--", "true"],
        &["shell", "s"],
        &["fork", "s", "t"],
        &["fetch", "s"],
        &["commit", "s", "-m", "m"],
        &["drop", "s"],
        &["drop", "--force", "s"],
        &["trash", "restore", "gone"],
        &["trash", "empty"],
        &["gc"],
        &["allow", "s", "a.example"],
        &["deny", "s", "a.example"],
        &["push", "s"],
        &["merge", "s"],
        &["pick", "s"],
        &["apply", "s"],
        &["branch", "s", "b"],
    ];
    for args in writing {
        let seen = repo.sandbox(args);
        let newer = "has format 99, this program writes 1";
        assert!(seen.status >= 125 && seen.stderr.contains(newer), "{args:?}: {seen}");
        assert!(seen.stderr.contains("hint: it was written by a newer git-sandbox: upgrade this one"), "{seen}");
        assert_eq!((stamps(&state), repo.git(&["for-each-ref"]).ok()), before, "{args:?}");
    }
    let out = subject.env.home().join("y").display().to_string();
    let reading: &[&[&str]] = &[
        &["list"],
        &["list", "--json"],
        &["list", "-A"],
        &["show", "s"],
        &["show", "s", "--json"],
        &["log", "s"],
        &["diff", "s"],
        &["logs", "s"],
        &["events", "s"],
        &["wait", "s"],
        &["stop", "s"],
        &["trash", "list"],
        &["cp", "s:y", &out],
        &["doctor"],
    ];
    for args in reading {
        let seen = repo.sandbox(args);
        assert!(!seen.stderr.contains("has format 99"), "{args:?}: {seen}");
        assert!(seen.status < 125, "{args:?}: {seen}");
        assert_eq!((stamps(&state), repo.git(&["for-each-ref"]).ok()), before, "{args:?}");
    }
    fs::write(state.join("format"), "git-sandbox 1\n").unwrap();
}

/// Every file below a directory with size and modification time; a lock says who has it, and that is no state.
fn stamps(dir: &Path) -> Vec<(PathBuf, u64, i64, i64)> {
    let mut all = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else if entry.file_name() != "format" && !entry.file_name().to_string_lossy().ends_with("lock") {
                all.push((entry.path(), meta.len(), meta.mtime(), meta.mtime_nsec()));
            }
        }
    }
    all.sort();
    all
}

/// Row 23: what was written at other times. Ages are never negative, nothing takes a record for another.
fn clocks_that_jump_disturb_nothing(subject: &Subject) {
    const YEARS: u64 = 10 * 365 * 86_400;
    let repo = subject.repo(State::Plain);
    for name in ["past", "future", "now"] {
        subject.spawn(&repo, &[name], "echo x >x; git add x; git commit -qm x").ok();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for dir in fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten() {
        let mut record: Value = serde_json::from_slice(&fs::read(dir.path().join("sandbox.json")).unwrap()).unwrap();
        let at = match record["name"].as_str().unwrap() {
            "past" => 1,
            "future" => now + YEARS,
            _ => continue,
        };
        record["created"] = at.into();
        fs::write(dir.path().join("sandbox.json"), record.to_string()).unwrap();
        let mut status: Value = serde_json::from_slice(&fs::read(dir.path().join("status.json")).unwrap()).unwrap();
        (status["started"], status["exited"][1]) = (at.into(), at.into());
        fs::write(dir.path().join("status.json"), status.to_string()).unwrap();
    }
    let list = repo.sandbox(&["list"]).ok();
    assert!(!list.contains('-') || !list.contains("-1"), "{list}");
    assert!(list.contains("exited 0 0s ago"), "{list}");
    let all = json(&repo, &["list", "--json"]);
    let ages: Vec<(String, u64)> = all["sandboxes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap().to_owned(), one["age_seconds"].as_u64().expect("never negative")))
        .collect();
    let age = |name: &str| ages.iter().find(|(one, _)| one == name).unwrap().1;
    assert!(age("future") == 0 && age("past") > now / 2 && age("now") < 3600, "{ages:?}");
    for name in ["past", "future", "now"] {
        assert_eq!(repo.sandbox(&["wait", name]).status, 0);
        assert_eq!(subject.exec(&repo, name, "cat x").ok(), "x\n");
        repo.sandbox(&["fetch", name]).ok();
    }
    // Inside, time has jumped as well: what is committed comes home all the same.
    let script = "GIT_COMMITTER_DATE='1970-01-01T00:00:01Z' git commit -q --allow-empty -m early && \
                  GIT_COMMITTER_DATE='2099-01-01T00:00:00Z' git commit -q --allow-empty -m late";
    subject.exec(&repo, "now", script).ok();
    repo.sandbox(&["fetch", "now"]).ok();
    assert_eq!(repo.git(&["log", "-2", "--format=%s", "sandbox/now"]).ok(), "late\nearly\n");
}

/// Row 31. The decision is to fail closed: a rule may just have been taken back.
fn a_policy_that_breaks_lets_nothing_out_and_starts_nothing(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    repo.sandbox(&["spawn", "--driver", subject.driver, "-d", "--net", "allow", "--allow", "a.example", "s"]).ok();
    let dir = fs::read_dir(subject.env.state().join("sandboxes")).unwrap().flatten().next().unwrap().path();
    let policy = dir.join("network.json");
    let whole = fs::read(&policy).unwrap();
    fs::write(&policy, &whole[..whole.len() / 2]).unwrap();
    let ask = "exec 3<>/dev/tcp/127.0.0.1/3128 && printf 'CONNECT a.example:443 HTTP/1.1\\r\\nHost: a.example:443\\r\\n\\r\\n' >&3 && head -n1 <&3";
    let seen = repo.sandbox(&["exec", "s", "--", "bash", "-c", ask]);
    assert!(seen.stdout.contains("403"), "{seen}");
    let events = repo.sandbox(&["events", "s"]).ok();
    assert!(events.contains("policy"), "{events}");
    // Another start is refused by name, and works again when the file does.
    repo.sandbox(&["stop", "s"]).ok();
    let refused = repo.sandbox(&["start", "s"]);
    assert!(refused.status != 0 && refused.stderr.contains("network.json"), "{refused}");
    fs::write(&policy, &whole).unwrap();
    repo.sandbox(&["start", "s"]).ok();
}

/// Row 34.
fn a_flipped_byte_is_found_and_harms_nobody_else(subject: &Subject) {
    let repo = subject.repo(State::Plain);
    subject.idle(&repo, "bad");
    subject.idle(&repo, "good");
    // Packed, and not yet on any ref: nothing of it has come here before it is damaged.
    let pack = "set -e; echo x >x; git add x; c=$(git commit-tree -p HEAD -m x $(git write-tree))
        printf '%s\\n^HEAD\\n' $c | git pack-objects -q --revs .git/objects/pack/pack; git prune-packed; echo $c";
    let out = subject.exec(&repo, "bad", pack).ok();
    let (name, commit) = out.trim().split_once('\n').unwrap();
    let upper = find(&subject.env.state().join("sandboxes"), &format!("pack-{name}.pack"));
    repo.sandbox(&["stop", "bad"]).ok();
    let whole = flip(&upper);
    subject.exec(&repo, "bad", &format!("echo {commit} >.git/refs/heads/main")).ok();
    let refused = repo.sandbox(&["fetch", "bad"]);
    assert_ne!(refused.status, 0, "{refused}");
    assert!(refused.stderr.contains("error: "), "{refused}");
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox/bad"]).ok(), "");
    assert!(upper.exists(), "it is not mended by deleting");
    assert_eq!(repo.git(&["fsck", "--no-dangling"]).ok(), "");
    // The other one does not mind.
    subject.exec(&repo, "good", "echo y >y; git add y; git commit -qm y; git fsck").ok();
    repo.sandbox(&["fetch", "good"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/good"]).ok(), "y\n");
    // Put back, it is as if nothing had been.
    fs::write(&upper, whole).unwrap();
    repo.sandbox(&["fetch", "bad"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/bad"]).ok(), "x\n");
}

fn find(dir: &Path, name: &str) -> PathBuf {
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir {
                open.push(entry.path());
            } else if entry.file_name() == name {
                return entry.path();
            }
        }
    }
    panic!("no {name} in {}", dir.display());
}

/// Flips one bit in the middle of a file, and returns what it was.
fn flip(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::PermissionsExt;
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    whole
}

/// Row 16, second half: the state is on a disk that goes away under a running sandbox, and comes back.
fn a_disk_that_goes_away_keeps_what_it_had(subject: &Subject) {
    if !is_root() || which("mkfs.ext4").is_none() {
        skip!("a disk of its own needs root and mkfs.ext4");
    }
    let env = &subject.env;
    let repo = subject.repo(State::Plain);
    let (image, at) = (env.root().join("disk"), env.root().join("mounted"));
    fs::create_dir(&at).unwrap();
    let run = |program: &str, args: &[&str]| {
        let out = std::process::Command::new(program).args(args).output().unwrap();
        assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let (image, at) = (image.to_str().unwrap().to_owned(), at.to_str().unwrap().to_owned());
    run("mkfs.ext4", &["-q", "-F", &image]);
    let device = run("losetup", &["-f", "--show", &image]);
    let _device = Undo("losetup", vec!["-d".into(), device.clone()]);
    run("mount", &[&device, &at]);
    let _mount = Undo("umount", vec!["-l".into(), at.clone()]);
    let state = format!("{at}/state");
    let sandbox = |args: &[&str]| {
        let mut command = env.sandbox_command(repo.dir(), args);
        env.run(command.env("GIT_SANDBOX_STATE", &state))
    };
    sandbox(&["spawn", "--driver", subject.driver, "-d", "s"]).ok();
    sandbox(&["exec", "s", "--", "sh", "-c", "echo x >x; git add x; git commit -qm x; echo loose >loose; sync"]).ok();
    let dir = fs::read_dir(format!("{state}/sandboxes")).unwrap().flatten().next().unwrap().path();
    let status: Value = serde_json::from_slice(&fs::read(dir.join("status.json")).unwrap()).unwrap();
    let pids: Vec<i32> = ["supervisor", "init"].iter().map(|who| status[who]["pid"].as_i64().unwrap() as i32).collect();
    let lives = || pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists());
    // The mount is gone from everybody's view: the supervisor finds no directory any more.
    run("umount", &["-l", &at]);
    wait_until("it has stopped", LIMIT, || !lives());
    run("mount", &[&device, &at]);
    let list = sandbox(&["list"]).ok();
    assert!(list.contains("stopped"), "{list}");
    sandbox(&["fetch", "s"]).ok();
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok(), "x\n");
    sandbox(&["start", "s"]).ok();
    assert_eq!(sandbox(&["exec", "s", "--", "cat", "loose"]).ok(), "loose\n");
    sandbox(&["stop", "s"]).ok();
    // Every block beyond a point fails (EIO): what is asked for fails by name, and the host repository is whole.
    sandbox(&["start", "s"]).ok();
    let status: Value = serde_json::from_slice(&fs::read(dir.join("status.json")).unwrap()).unwrap();
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    let _ = fs::write("/proc/sys/vm/drop_caches", "1");
    let failed = sandbox(&["exec", "s", "--", "sh", "-c", "head -c 40000000 /dev/urandom >big && sync big"]);
    assert_ne!(failed.status, 0, "{failed}");
    let _ = sandbox(&["stop", "s"]);
    for who in ["supervisor", "init"] {
        let pid = status[who]["pid"].as_i64().unwrap() as i32;
        if let Some(pid) = Pid::from_raw(pid) {
            // Whatever stop could do: nothing of it stays behind the test.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    assert_eq!(repo.git(&["fsck", "--no-dangling"]).ok(), "");
    assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
}

/// A command that puts something back, whatever happens.
struct Undo(&'static str, Vec<String>);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = std::process::Command::new(self.0).args(&self.1).output();
    }
}
