//! Many clients at once, while the upstream is force-pushed and the mirror refreshes, repacks and cleans; and a
//! service that is killed at random.

use crate::stand::{Mirror, Upstream, source, wait};
use crate::way::repo;
use sandbox_testkit::{Dice, TestEnv};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Clients at the same time.
const CLIENTS: usize = 32;

/// A maintenance that is always at work.
const BUSY: &str = "[maintenance]\ngeometric_every = \"1s\"\nfull_every = \"1h\"\nwindow = \"always\"\n";

/// Lets clients clone for so long, in all shapes, by both protocols; none may fail.
fn clones_under(duration: Duration) {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, &(BUSY.to_owned() + &repo(&upstream.url("project"), "up.test/project")));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    let (over, clones, pushes) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (env, mirror, over, clones, failed) = (&env, &mirror, &over, &clones, &failed);
            scope.spawn(move || {
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let shapes =
                        [&["--depth=1"][..], &["--filter=blob:none"], &["--depth=1", "--filter=blob:none"], &[]];
                    let base = if (client + round) % 3 == 0 { &mirror.git } else { &mirror.http };
                    let dir = env.root().join(format!("clone-{client}"));
                    let mut command = crate::stand::git(env, env.root());
                    command.args(["clone", "-q", &format!("{base}/up.test/project")]).arg(&dir);
                    let output = command.args(shapes[(client + round) % 4]).stdin(Stdio::null()).output().unwrap();
                    let mut fsck = crate::stand::git(env, &dir);
                    let fsck = fsck.args(["fsck", "--no-dangling", "--no-progress"]).output();
                    let whole = fsck.is_ok_and(|fsck| fsck.status.success());
                    if !output.status.success() || !whole {
                        failed.lock().unwrap().push(String::from_utf8_lossy(&output.stderr).into_owned());
                    }
                    clones.fetch_add(1, Ordering::Relaxed);
                    let _ = fs::remove_dir_all(&dir);
                }
            });
        }
        // What an administrator may do by hand, beside the service's own maintenance.
        scope.spawn(|| {
            let mirrors: Vec<PathBuf> =
                fs::read_dir(env.root().join("store/mirrors")).unwrap().map(|entry| entry.unwrap().path()).collect();
            for n in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let verb =
                    [&["repack", "-dq", "--geometric=2", "--write-midx"][..], &["repack", "-adbq"], &["gc", "-q"]];
                for mirror in &mirrors {
                    let _ = crate::stand::git(&env, mirror).args(verb[n % 3]).output();
                }
            }
        });
        let start = Instant::now();
        let base = source.id("HEAD~2");
        while start.elapsed() < duration {
            let n = pushes.fetch_add(1, Ordering::Relaxed);
            if n % 3 == 0 {
                source.git(&["reset", "-q", "--hard", &base]).expect(0);
            }
            source.commit(&format!("src/d{}/file.txt", n % 5), &format!("{n}\n").repeat(300));
            let branch = format!("main:branch-{}", n % 7);
            source.git(&["push", "-q", "--force", "upstream", "main", &branch]).expect(0);
            mirror.get("/metrics");
        }
        over.store(true, Ordering::Relaxed);
    });
    let failed = failed.into_inner().unwrap();
    let log: Vec<_> = mirror.log().into_iter().filter(|line| line["level"] == "error").collect();
    assert!(
        failed.is_empty(),
        "{} of {clones:?} failed: {:#?}\n{log:#?}",
        failed.len(),
        &failed[..failed.len().min(3)]
    );
    println!("{} clones, {} pushes", clones.into_inner(), pushes.into_inner());
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    whole(&env);
}

/// Every mirror of the store is whole.
fn whole(env: &TestEnv) {
    let mirrors: Vec<PathBuf> =
        fs::read_dir(env.root().join("store/mirrors")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!mirrors.is_empty());
    for mirror in mirrors {
        env.git(&mirror, &["fsck", "--no-dangling", "--no-progress", "--connectivity-only"]).expect(0);
    }
    let quarantined = fs::read_dir(env.root().join("store/quarantine")).map_or(0, Iterator::count);
    assert_eq!(quarantined, 0, "a repository was taken for corrupt");
}

#[test]
fn many_clients_at_once_and_none_fails() {
    clones_under(Duration::from_secs(6));
}

#[test]
#[ignore = "a minute of load: `cargo xtask test --all`"]
fn many_clients_at_once_for_a_minute_and_none_fails() {
    clones_under(Duration::from_secs(60));
}

/// Kills the service so many times, at random moments of refreshes and clones.
fn killed(times: u32) {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mut mirror = Mirror::start(&env, &(BUSY.to_owned() + &repo(&upstream.url("project"), "up.test/project")));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    let mut dice = Dice::new(u64::from(times));
    let mut longest = Duration::ZERO;
    for n in 0..times {
        source.commit("src/d0/file.txt", &format!("{n}\n").repeat(500));
        source.git(&["push", "-q", "--force", "upstream", "main", &format!("main:branch-{n}")]).expect(0);
        let url = format!("{}/up.test/project", mirror.http);
        let mut clone = crate::stand::git(&env, env.root());
        clone.args(["clone", "-q", "--bare", &url, "cut"]).stdout(Stdio::null()).stderr(Stdio::null());
        let clone = sandbox_testkit::Child::spawn(&mut clone);
        std::thread::sleep(Duration::from_millis(dice.roll(1500)));
        // Half of the times a child of the service goes first, as the kernel does when memory is short.
        if n % 2 == 0 {
            for pid in crate::stand::children(mirror.pid()).into_iter().take(1) {
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let start = Instant::now();
        mirror.kill_and_start();
        // What was served before is served at once, whatever the refresh was at.
        let refs = env.git(env.root(), &["ls-remote", &url]).expect(0).stdout;
        longest = longest.max(start.elapsed());
        drop(clone);
        let _ = fs::remove_dir_all(env.root().join("cut"));
        // Every ref that is advertised has all of its objects.
        let dir = env.root().join("after");
        env.git(env.root(), &["clone", "-q", "--mirror", &url, dir.to_str().unwrap()]).expect(0);
        env.git(&dir, &["fsck", "--no-dangling", "--no-progress"]).expect(0);
        assert!(refs.contains("refs/heads/main"), "{refs}");
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("serving again after {longest:?} at most");
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    wait("what was half-made is put away", || {
        fs::read_dir(env.root().join("store/tmp")).map_or(0, Iterator::count) == 0
            || crate::stand::serving(mirror.pid()) > 0
    });
    whole(&env);
}

#[test]
fn killed_at_random_it_serves_again_and_nothing_half_made_is_seen() {
    killed(6);
}

#[test]
#[ignore = "fifty times: `cargo xtask test --all`"]
fn killed_at_random_fifty_times() {
    killed(50);
}
