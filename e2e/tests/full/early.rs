//! Refused before anything is made, when it can be known that it does not fit; and made once there is room.

use crate::kit::{Volume, host, nothing_left, world};
use insta::assert_snapshot;
use sandbox_testkit::{Repo, TestEnv, skip};
use std::fs;
use std::path::PathBuf;

/// A file that leaves less free than what is kept for the host.
fn ballast(env: &TestEnv, mebibytes: usize) -> PathBuf {
    let path = env.state().parent().expect("it has one").join("ballast");
    fs::write(&path, vec![1; mebibytes << 20]).expect("there is room");
    path
}

fn same_after(repo: &Repo<'_>, args: &[&str]) -> String {
    let env = repo.env();
    let before = host(repo);
    let out = repo.sandbox(args);
    assert_eq!(host(repo), before, "{out}");
    nothing_left(repo, &env.state(), &args.join(" "));
    let number = regex::Regex::new(r"\d+ inodes").expect("it is a pattern");
    number.replace_all(&out.to_string(), "[N] inodes").into_owned()
}

#[test]
fn with_the_reserve_used_up_nothing_is_begun() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=64m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-c", "echo y >>a && git commit -qam made"]).ok();
    let ballast = ballast(&env, 62);
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are free, and [SIZE] are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    assert_snapshot!(same_after(&repo, &["fork", "-q", "-d", "x", "z"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are free, and [SIZE] are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    assert_snapshot!(same_after(&repo, &["start", "x"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are free, and [SIZE] are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    assert_snapshot!(same_after(&repo, &["exec", "x", "--", "true"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are free, and [SIZE] are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    // What brings work home, and what makes room, is done.
    for args in [&["fetch", "x"][..], &["show", "x"], &["diff", "x"], &["cp", "x:a", "copy"], &["gc"]] {
        repo.sandbox(args).ok();
    }
    repo.sh("rm -f copy").ok();
    fs::remove_file(ballast).expect("it is ours");
    repo.sandbox(&["spawn", "-q", "y", "--", "true"]).ok();
    repo.sandbox(&["fork", "-q", "-d", "x", "z"]).ok();
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    drop(volume);
}

#[test]
fn a_capture_that_does_not_fit_is_not_begun() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=32m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.sandbox(&["spawn", "-q", "--rm", "x", "--", "true"]).ok();
    repo.sh("head -c 40m /dev/urandom >large").ok();
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are needed, [SIZE] are free, and [SIZE] of them are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    // A first capture as well, and objects.
    repo.sh("git add large && git commit -qm large && rm large && git rm -q --cached large && git commit -qm small")
        .ok();
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are needed, [SIZE] are free, and [SIZE] of them are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    repo.sh("git reset -q --soft HEAD~2 && git reflog expire --all --expire=now && git gc -q --prune=now").ok();
    repo.sandbox(&["spawn", "-q", "y", "--", "true"]).ok();
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    drop(volume);
}

#[test]
fn a_fork_that_does_not_fit_is_not_begun() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=64m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-c", "head -c 40m /dev/zero >large"]).ok();
    assert_snapshot!(same_after(&repo, &["fork", "-q", "-d", "x", "y"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [SIZE] are needed, [SIZE] are free, and [SIZE] of them are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    volume.remount("size=128m").expect("a tmpfs can grow");
    repo.sandbox(&["fork", "-q", "-d", "x", "y"]).ok();
    repo.sandbox(&["drop", "--all", "--force"]).ok();
}

#[test]
fn inodes_count_too() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=64m,nr_inodes=1000") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    repo.sh("mkdir many && cd many && seq 1200 | xargs touch").ok();
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: there is too little room on the disk of '[STATE]'
    caused by: [N] inodes are needed, [N] inodes are free, and [N] inodes of them are kept for the host
    hint: make room on that disk (`git sandbox gc`, `git sandbox trash empty`), or keep less of it for the host: `git config --global sandbox.diskReserve SIZE`
    ---- status 125
    ");
    volume.remount("nr_inodes=4000").expect("a tmpfs can grow");
    repo.sandbox(&["spawn", "-q", "y", "--", "true"]).ok();
    repo.sandbox(&["drop", "--all", "--force"]).ok();
}

/// What comes home is as large as the host's disk has room for, or nothing of it comes.
#[test]
fn an_import_that_does_not_fit_is_not_begun() {
    let env = TestEnv::new();
    let repo = world(&env);
    let volume = match Volume::tmpfs(&env, "size=256m") {
        Ok(volume) => volume,
        Err(why) => skip!("{why}"),
    };
    // The host's objects on a disk of their own.
    let objects = repo.dir().join(".git/objects");
    let packs = env.root().join("packs");
    fs::create_dir(&packs).expect("it is new");
    crate::kit::run("cp", &["-a", crate::kit::text(&objects), crate::kit::text(&packs)]).expect("there is room");
    crate::kit::run("mount", &["-t", "tmpfs", "-o", "size=8m,mode=755", "none", crate::kit::text(&objects)])
        .expect("root can mount");
    let small = Unmount(objects.clone());
    crate::kit::run("sh", &["-c", &format!("cp -a '{}'/objects/. '{}'", packs.display(), objects.display())])
        .expect("there is room");
    let work = "head -c 12m /dev/urandom >large && git add large && git commit -qm large";
    let made = repo.sandbox(&["spawn", "-q", "x", "--", "sh", "-c", work]);
    assert_snapshot!(env.filters().apply(&made.stderr), @r"
    error: cannot bring commits home
    caused by: there is too little room on the disk of '[REPO]/.git'
    caused by: [SIZE] are needed, and [SIZE] are free
    hint: make room on that disk and run the command again; the commits stay in the sandbox
    ");
    assert_snapshot!(same_after(&repo, &["fetch", "x"]), @r"
    ---- stderr
    error: cannot bring commits home
    caused by: there is too little room on the disk of '[REPO]/.git'
    caused by: [SIZE] are needed, and [SIZE] are free
    hint: make room on that disk and run the command again; the commits stay in the sandbox
    ---- status 128
    ");
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox"]).ok(), "");
    crate::kit::run("mount", &["-o", "remount,size=64m", crate::kit::text(&objects)]).expect("a tmpfs can grow");
    repo.sandbox(&["fetch", "x"]).ok();
    assert_ne!(repo.git(&["for-each-ref", "refs/sandbox"]).ok(), "");
    repo.sandbox(&["drop", "--all", "--force"]).ok();
    drop((volume, small));
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = crate::kit::run("umount", &["-l", crate::kit::text(&self.0)]);
    }
}

#[test]
fn settings_that_are_none() {
    let env = TestEnv::new();
    let repo = world(&env);
    repo.git(&["config", "sandbox.diskReserve", "much"]).ok();
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: 'much' is not a value of sandbox.diskReserve
    hint: it is a size such as 2g, auto (a twentieth of the disk, at most [SIZE]), or none
    ---- status 125
    ");
    repo.git(&["config", "sandbox.diskReserve", "none"]).ok();
    repo.git(&["config", "sandbox.disk", "much"]).ok();
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "y", "--", "true"]), @r"
    ---- stderr
    error: 'much' is not a value of sandbox.disk
    hint: it is a size such as 20g, or none
    ---- status 125
    ");
    assert_snapshot!(same_after(&repo, &["spawn", "-q", "--disk", "lots", "y", "--", "true"]), @r"
    ---- stderr
    error: 'lots' is not a size
    hint: for example 512m, 20g, or none
    ---- status 129
    ");
}
