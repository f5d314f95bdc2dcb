//! Things that go wrong at the worst moment, and places that nobody expected: afterwards `list`
//! and `gc` find nothing half made, and no commit is lost.

use sandbox_testkit::{Child, Repo, State, TestEnv, wait_until};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Names in a directory of the state.
fn names(env: &TestEnv, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(env.state().join(dir)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn spawned(env: &TestEnv, repo: &Repo, args: &[&str]) -> Child {
    let mut command = env.sandbox_command(repo.dir(), args);
    Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    let _ = rustix::process::kill_process(pid, signal);
}

/// After `drop --all` and `gc` the store holds no sandbox, nothing half made, and no process.
#[track_caller]
fn nothing_left(env: &TestEnv, repo: &Repo) {
    repo.sandbox(&["list"]).ok();
    repo.sandbox(&["drop", "--all"]).ok();
    repo.sandbox(&["gc"]).ok();
    assert_eq!(names(env, "sandboxes"), [""; 0]);
    assert_eq!(names(env, "tmp"), [""; 0]);
    assert_eq!(names(env, "trash"), [""; 0]);
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).stdout, "");
    assert!(env.live_processes().is_empty());
}

#[test]
fn a_capture_that_is_interrupted() {
    let env = TestEnv::new();
    let repo = State::LargeIgnored.build(&env, "repo");
    for by in [rustix::process::Signal::INT, rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let mut child = spawned(&env, &repo, &["spawn", "x", "--", "true"]);
        wait_until("the capture has begun", LIMIT, || !names(&env, "tmp").is_empty() || child.try_ended().is_some());
        signal(child.pid(), by);
        let status = child.wait(LIMIT);
        // A machine may be so fast that it was over before.
        if status == 0 {
            repo.sandbox(&["drop", "x"]).ok();
        }
        if by != rustix::process::Signal::KILL {
            assert!(status == 0 || status == 130, "{status}");
            assert_eq!(names(&env, "tmp"), [""; 0], "it cleans up after itself");
        }
        repo.sandbox(&["gc"]).ok();
        nothing_left(&env, &repo);
    }
    assert_eq!(repo.sandbox(&["spawn", "-q", "x", "--", "cat", "build/d39/f74.o"]).ok(), "39 74\n");
}

/// A start empties `/tmp`: killed in the middle of that it leaves none, or one that is not the sandbox's own.
#[test]
fn a_start_that_was_cut_at_its_tmp() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["spawn", "-q", "x", "--", "touch", "/tmp/old"]).ok();
    let tmp = env.state().join("sandboxes").join(&names(&env, "sandboxes")[0]).join("tmp");
    fs::remove_dir_all(&tmp).unwrap();
    assert_eq!(
        repo.sandbox(&["exec", "x", "--", "sh", "-c", "test ! -e /tmp/old; echo 1 >/tmp/new; cat /tmp/new"]).ok(),
        "1\n"
    );
    repo.sandbox(&["stop", "x"]).ok();
    fs::remove_dir_all(&tmp).unwrap();
    // By whoever runs this: root is not who the sandbox runs as.
    fs::create_dir(&tmp).unwrap();
    assert_eq!(
        repo.sandbox(&["exec", "x", "--", "sh", "-c", "test ! -e /tmp/old; echo 1 >/tmp/new; cat /tmp/new"]).ok(),
        "1\n"
    );
    repo.sandbox(&["stop", "x"]).ok();
    nothing_left(&env, &repo);
}

/// Nobody has to know of `gc`: a spawn starts it, at most daily, and sooner when something was left half made.
#[test]
fn what_nobody_needs_goes_by_itself() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    repo.sandbox(&["spawn", "-q", "--rm", "a", "--", "true"]).ok();
    let age = |path: PathBuf, time: &str| {
        let status = std::process::Command::new("touch").args(["-h", "-d", time]).arg(&path).status().unwrap();
        assert!(status.success(), "{}", path.display());
    };
    let stamp = env.state().join("last-gc");
    let modified = || fs::metadata(&stamp).unwrap().modified().unwrap();
    let first = modified();
    let left = env.state().join("tmp/git-0123456789abcdef0123456789abcdef");
    fs::create_dir_all(left.join("tree/x")).unwrap();

    // It may be somebody's: it stays.
    repo.sandbox(&["spawn", "-q", "--rm", "b", "--", "true"]).ok();
    assert!(left.exists());
    age(left.clone(), "1 hour ago");
    repo.sandbox(&["spawn", "-q", "--rm", "c", "--", "true"]).ok();
    wait_until("what was left is gone", LIMIT, || !left.exists());
    assert_eq!(modified(), first, "that was no whole gc");

    // A snapshot that nothing stands on, and a stamp of the day before yesterday.
    fs::write(repo.dir().join("more"), "x").unwrap();
    repo.sandbox(&["spawn", "-q", "--rm", "d", "--", "true"]).ok();
    let snapshots = || {
        let repos = fs::read_dir(env.state().join("repos")).unwrap().flatten();
        let all = repos.flat_map(|repo| fs::read_dir(repo.path().join("snapshots")).unwrap()).flatten();
        all.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "json")).count()
    };
    assert!(snapshots() > 1);
    age(stamp.clone(), "2 days ago");
    repo.sandbox(&["spawn", "-q", "--rm", "e", "--", "true"]).ok();
    wait_until("only the last snapshot is left", LIMIT, || snapshots() == 1);
    wait_until("the stamp is new", LIMIT, || modified() > first);
    nothing_left(&env, &repo);
}

/// What `drop` has found out is true until the sandbox is gone: a command that comes in between waits, and
/// then there is no sandbox, or it is refused.
#[test]
fn nothing_is_made_between_the_look_and_the_drop() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-c", "echo x >x && git add x && git commit -qm x"]).ok();
    repo.git(&["branch", "keep", "refs/sandbox/x"]).ok();
    // A git that is slow when it counts what only the sandbox has.
    let wrapper = env.root().join("slow");
    fs::create_dir(&wrapper).unwrap();
    let begun = env.root().join("begun");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *rev-list*--count*--stdin*) touch '{}'; sleep 2;; esac\nexec '{}' \"$@\"\n",
        begun.display(),
        env.git_used().path.display()
    );
    fs::write(wrapper.join("git"), script).unwrap();
    fs::set_permissions(wrapper.join("git"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = env.sandbox_command(repo.dir(), &["drop", "x"]);
    let path =
        std::env::join_paths([wrapper.clone(), "/usr/local/bin".into(), "/usr/bin".into(), "/bin".into()]).unwrap();
    command.env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut dropping = Child::spawn(&mut command);
    wait_until("drop looks at what is there", LIMIT, || begun.exists());
    let script = "echo late >late && git add late && git commit -qm late";
    let late = repo.sandbox(&["exec", "x", "--", "sh", "-c", script]);
    assert_eq!(dropping.wait(LIMIT), 0);
    assert!(late.status != 0, "it was made, and is gone: {late}");
    assert!(late.stderr.contains("no sandbox named 'x'") || late.stderr.contains("busy"), "{late}");
    nothing_left(&env, &repo);
}

/// Commits that the host has no place for, and files that no look at the tree finds, are told of.
#[test]
fn what_lies_beside_the_tree_is_not_dropped_in_silence() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    let made = |name: &str, script: &str| repo.sandbox(&["spawn", "-q", name, "--", "sh", "-ec", script]);
    let kept = |name: &str, why: &str| {
        let refused = repo.sandbox(&["drop", name]);
        assert_eq!(refused.status, 1, "{refused}");
        assert!(refused.stderr.contains(why), "{refused}");
        repo.sandbox(&["drop", "--force", name]).ok();
        repo.sandbox(&["trash", "restore", name]).ok();
        repo.sandbox(&["drop", "--force", name]).ok();
    };
    let nested = "mkdir -p build/n && cd build/n && git init -q && echo x >x && git add x && git commit -qm nested";
    made("ignored", nested).ok();
    kept("ignored", "'build/n' is a repository that the host does not have");
    made("linked", "git worktree add -q ~/fix -b fix && echo x >~/fix/new").ok();
    kept("linked", "is a worktree in the sandbox's home");
    made("staged", "echo staged >README.md && git add README.md && git show HEAD:README.md >README.md").ok();
    kept("staged", "'README.md' is staged with content that is in no commit and in no file");
    // What is no work is no reason.
    made("committed", "echo x >README.md && git add README.md && git commit -qm x").ok();
    repo.git(&["branch", "committed", "refs/sandbox/committed"]).ok();
    repo.sandbox(&["drop", "committed"]).ok();
    made("neither", "git worktree add -q ~/gone -b gone && git worktree remove ~/gone && git branch -qD gone").ok();
    repo.sandbox(&["drop", "neither"]).ok();

    // The outer repository was moved, and the inner one with it: what was brought to the inner one counts.
    let env = TestEnv::new();
    let repo = State::Submodule.build(&env, "repo");
    let script = "cd lib && git config user.name A && git config user.email a@b && git add -A && git commit -qm inner";
    repo.sandbox(&["spawn", "-q", "s", "--", "sh", "-ec", script]).ok();
    repo.sandbox(&["fetch", "s"]);
    let moved = repo.dir().with_file_name("moved");
    fs::rename(repo.dir(), &moved).unwrap();
    env.sandbox(&moved, &["list"]).ok();
    let refused = env.sandbox(&moved, &["drop", "s"]);
    assert_eq!(refused.status, 1, "{refused}");
    assert!(refused.stderr.contains("commits of 'lib' only at refs/sandbox/s"), "{refused}");
    fs::rename(&moved, repo.dir()).unwrap();
}

#[test]
fn the_command_is_killed_at_any_moment_of_a_spawn() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    for n in 0..20u64 {
        let mut child = spawned(&env, &repo, &["spawn", &format!("k{n}"), "--", "true"]);
        // Spread over what a spawn takes here, in an order that is not that of time.
        std::thread::sleep(Duration::from_millis(n * 37 % 100));
        signal(child.pid(), rustix::process::Signal::KILL);
        child.wait(LIMIT);
    }
    wait_until("what was started has ended", LIMIT, || env.live_processes().is_empty());
    nothing_left(&env, &repo);
    repo.sandbox(&["spawn", "k0", "--", "true"]).ok();
}

#[test]
fn a_supervisor_is_killed_while_its_command_commits() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let script = "n=0; while :; do n=$((n+1)); echo $n >n; git add n; git commit -qm c$n; echo $n >done; done";
    repo.sandbox(&["spawn", "-d", "s", "--", "sh", "-c", script]).ok();
    let dir = env.state().join("sandboxes").join(&names(&env, "sandboxes")[0]);
    let counted = || {
        let text = fs::read_to_string(dir.join("trees/0/upper/done")).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    wait_until("it has made commits", LIMIT, || counted() >= 5);
    let supervisor = env.live_processes().into_iter().find(|(role, _)| role == "supervisor").expect("it runs").1;
    signal(supervisor, rustix::process::Signal::KILL);
    wait_until("everything of it is gone", LIMIT, || env.live_processes().is_empty());
    wait_until("its end is seen", LIMIT, || !repo.sandbox(&["list"]).ok().contains("running"));
    let made = counted();
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.contains("stopped (crashed)"), "{list}");
    assert_eq!(repo.sandbox(&["wait", "s"]).status, 137);
    repo.sandbox(&["fetch", "s"]).ok();
    let tip = repo.git(&["log", "-1", "--format=%s", "sandbox/s"]).ok();
    let tip: u32 = tip.trim().trim_start_matches('c').parse().expect("one of its commits");
    assert!(tip >= made, "c{tip} came home, c{made} was made");
    repo.sandbox(&["start", "s"]).ok();
    repo.sandbox(&["exec", "s", "--", "git", "fsck"]).ok();
    let inside = repo.sandbox(&["exec", "s", "--", "git", "log", "-1", "--format=%s"]).ok();
    assert_eq!(inside.trim(), format!("c{tip}"));
}

#[test]
fn two_of_one_name_at_once() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for _ in 0..5 {
        let mut both: Vec<Child> = (0..2).map(|_| spawned(&env, &repo, &["spawn", "-d", "same"])).collect();
        let mut ends: Vec<i32> = both.iter_mut().map(|child| child.wait(LIMIT)).collect();
        ends.sort_unstable();
        assert_eq!(ends, [0, 125]);
        assert_eq!(names(&env, "sandboxes").len(), 1);
        nothing_left(&env, &repo);
    }
}

#[test]
fn many_at_once() {
    let env = TestEnv::new();
    let repo = State::Dirty.build(&env, "repo");
    let script = "echo $GIT_SANDBOX >who; git add who; git commit -qm $GIT_SANDBOX";
    let name = |n: usize| format!("m{n}");
    let mut all: Vec<Child> =
        (0..20).map(|n| spawned(&env, &repo, &["spawn", &name(n), "--", "sh", "-c", script])).collect();
    for child in &mut all {
        assert_eq!(child.wait(LIMIT), 0);
    }
    for n in 0..20 {
        let tip = repo.git(&["show", &format!("sandbox/{}:who", name(n))]).ok();
        assert_eq!(tip.trim(), name(n));
    }
    assert_eq!(repo.git(&["fsck", "--no-dangling"]).ok(), "");
    assert_eq!(names(&env, "sandboxes").len(), 20);
}

#[test]
fn drop_right_after_the_end_of_a_command() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    for _ in 0..5 {
        repo.sandbox(&["spawn", "s", "--", "true"]).ok();
        repo.sandbox(&["exec", "s", "--", "true"]).ok();
        repo.sandbox(&["drop", "s"]).ok();
    }
    nothing_left(&env, &repo);
}

#[test]
fn places_with_odd_names() {
    let env = TestEnv::new();
    let odd: [&[u8]; 10] = [
        b"with space",
        b"tab\tx",
        b"-dash",
        b"quote\"x",
        b"it's",
        b"co:lon",
        b"com,ma",
        b"back\\slash",
        "\u{fc}ber \u{65e5}\u{672c}".as_bytes(),
        b"$HOME `id` *",
    ];
    for name in odd {
        let repo = env.repo_at(OsStr::from_bytes(name).to_str().expect("this one is UTF-8"));
        fs::create_dir_all(repo.dir().join("sub dir")).unwrap();
        repo.git(&["init", "-q"]).ok();
        repo.commit("sub dir/a", "a\n");
        let script = "pwd; cat a; echo b >b; git add b; git commit -qm b";
        let seen = env.sandbox(&repo.dir().join("sub dir"), &["spawn", "-q", "s", "--", "sh", "-c", script]).ok();
        assert_eq!(seen, format!("{}/sub dir\na\n", repo.dir().display()));
        repo.git(&["merge", "-q", "sandbox/s"]).ok();
        assert_eq!(repo.read("sub dir/b"), "b\n");
        repo.sandbox(&["drop", "s"]).ok();
    }
    // What cannot be a path in a record is refused, and nothing is made.
    for (name, why) in
        [(&b"new\nline"[..], "error: there is a line break in the path"), (b"n\xff", "is not valid UTF-8")]
    {
        let dir: PathBuf = env.home().join("src").join(OsStr::from_bytes(name));
        fs::create_dir_all(&dir).unwrap();
        env.git(&dir, &["init", "-q"]).ok();
        let seen = env.sandbox(&dir, &["spawn", "x", "--", "true"]);
        assert_eq!(seen.status, 125, "{seen}");
        assert!(seen.stderr.contains(why) && seen.stderr.contains("\nhint: rename the directory"), "{seen}");
    }
    assert_eq!(names(&env, "sandboxes"), [""; 0]);
}

#[test]
fn through_a_symlink() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let link = env.home().join("link");
    symlink(repo.dir(), &link).unwrap();
    let seen = env.sandbox(&link.join("src"), &["spawn", "-q", "s", "--", "sh", "-c", "cat a.c >b.c; ls"]).ok();
    assert_eq!(seen, "a.c\nb.c\ndeep\n");
    env.sandbox(&link.join("src"), &["apply", "s"]).ok();
    assert_eq!(repo.read("src/b.c"), repo.read("src/a.c"));
}

#[test]
fn an_environment_with_little_in_it() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let state = env.root().join("state/git-sandbox");
    let mut command = env.sandbox_command(repo.dir(), &["spawn", "-q", "s", "--", "cat", "README.md"]);
    let path = env.path();
    command.env_clear().env("PATH", path).env("GIT_SANDBOX_STATE", &state);
    assert_eq!(env.run(&mut command).ok(), "A small project.\n");
    let list = repo.sandbox(&["list"]).ok();
    assert!(list.contains("exited 0"), "{list}");
}

#[test]
fn nobody_reads_the_output() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i >>f; done; git add f; git commit -qm f";
    repo.sandbox(&["spawn", "s", "--", "sh", "-c", script]).ok();
    for verb in [
        "list",
        "list --json",
        "show s",
        "show s --json",
        "log s",
        "diff s",
        "doctor",
        "help",
        "help spawn",
        "completions bash",
        "trash",
        "--help",
        "--version",
    ] {
        let seen = repo.sh(&format!(
            "git-sandbox {verb} 2>&1 >&- | cat; git-sandbox {verb} | true; git-sandbox {verb} 2>&1 | head -1"
        ));
        assert!(!seen.stdout.contains("panicked") && !seen.stderr.contains("panicked"), "{verb}: {seen}");
        assert!(!seen.stderr.contains("error:"), "{verb}: {seen}");
    }
}
