//! What cannot come along with `--with`, and why.

use super::{nothing_half_made, plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{State, TestEnv, is_root, skip};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn places_that_are_not_there_or_no_directories() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["x", "--with", "../no-such"], "true"), @r#"
        ---- stderr
        error: there is no '[REPO]/../no-such'
        hint: `--with` names a directory that exists
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--with", "README.md"], "true"), @r#"
        ---- stderr
        error: '[REPO]/README.md' is not a directory
        hint: `git sandbox cp FILE NAME:PATH` copies a file into a sandbox
        ---- status 125
        "#);
    fs::write(env.home().join("file"), "").unwrap();
    symlink("nowhere", env.home().join("dangling")).unwrap();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../../dangling:ro"], "true"), @r#"
        ---- stderr
        error: there is no '[REPO]/../../dangling'
        hint: `--with` names a directory that exists
        ---- status 125
        "#);
    repo.git(&["config", "sandbox.with", "~/file"]).ok();
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '[HOME]/file' is not a directory
        caused by: `sandbox.with` names it
        hint: `git sandbox cp FILE NAME:PATH` copies a file into a sandbox
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn a_directory_that_cannot_be_read() {
    if is_root() {
        skip!("root may read everything");
    }
    let env = TestEnv::new();
    let repo = plain(&env);
    let closed = env.home().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let refused = spawn(&repo, &["x", "--with", closed.to_str().unwrap()], "true");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    assert_snapshot!(refused, @r#"
        ---- stderr
        error: cannot read '[HOME]/closed'
        caused by: Permission denied (os error 13)
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn places_that_the_working_tree_is_in_or_has() {
    let env = TestEnv::new();
    let repo = plain(&env);
    for inner in [".", "src", "docs:ro"] {
        let refused = spawn(&repo, &["x", "--with", inner], "true").to_string();
        assert!(
            refused.contains("is in the working tree already\nhint: `--with` is for what is outside of '[REPO]'"),
            "{refused}"
        );
    }
    assert_snapshot!(spawn(&repo, &["x", "--with", ".."], "true"), @r#"
        ---- stderr
        error: '[HOME]/src' holds the working tree '[REPO]'
        hint: name directories beside the working tree, or spawn up there
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--with", "../.."], "true"), @r#"
        ---- stderr
        error: '[HOME]' holds your home directory
        hint: a sandbox has a home of its own: name a directory below it
        ---- status 125
        "#);
    // From a link that leads there, too.
    symlink(repo.dir(), env.home().join("link")).unwrap();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../../link"], "true"), @r#"
        ---- stderr
        error: '[REPO]' is in the working tree already
        hint: `--with` is for what is outside of '[REPO]'
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn parts_of_the_system() {
    let env = TestEnv::new();
    let repo = plain(&env);
    for (place, why) in [
        ("/", "error: '/' cannot be a sandbox's working tree\ncaused by: it is part of the system's own view inside\n"),
        (
            "/etc",
            "error: '/etc' cannot be a sandbox's working tree\ncaused by: it is part of the system's own view inside\n",
        ),
        (
            "/proc/self/fd",
            "cannot come along\ncaused by: it is part of the system's own view inside\nhint: `--with` is for directories with files of yours\n",
        ),
    ] {
        let refused = spawn(&repo, &["x", "--with", place], "true");
        assert!(refused.stderr.contains(why) && refused.status == 125, "{refused}");
    }
    spawn(&repo, &["y"], "true").ok();
    repo.sandbox(&["drop", "y"]).ok();
    let inside = env.state().join("repos");
    assert_snapshot!(spawn(&repo, &["x", "--with", inside.to_str().unwrap()], "true"), @r#"
        ---- stderr
        error: '[STATE]/repos' is inside the state directory
        hint: use a repository outside of it
        ---- status 125
        "#);
    let around = env.state().parent().unwrap().to_owned();
    let refused = spawn(&repo, &["x", "--with", around.to_str().unwrap()], "true").to_string();
    assert!(refused.contains("error: the state directory '[STATE]' is inside the working tree"), "{refused}");
    nothing_half_made(&repo);
}

#[test]
fn places_that_are_two_at_once() {
    let env = TestEnv::new();
    let repo = plain(&env);
    fs::create_dir_all(env.home().join("data/deep")).unwrap();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../../data", "--with", "../../data/.:ro"], "true"), @r#"
        ---- stderr
        error: '[HOME]/data' is given twice
        hint: name it once
        ---- status 129
        "#);
    let refused = |first, second| spawn(&repo, &["x", "--with", first, "--with", second], "true").to_string();
    assert_snapshot!(refused("../../data", "../../data/deep"), @r#"
        ---- stderr
        error: '[HOME]/data/deep' is in '[HOME]/data', which comes along too
        hint: name one of the two
        ---- status 125
        "#);
    assert_eq!(refused("../../data/deep:ro", "../../data"), refused("../../data", "../../data/deep"));
    nothing_half_made(&repo);
}

#[test]
fn repositories_that_share_a_git_directory() {
    let env = TestEnv::new();
    let repo = State::Submodule.build(&env, "repo");
    repo.git(&["worktree", "add", "-q", "--detach", "../tree"]).ok();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../tree"], "true"), @r#"
        ---- stderr
        error: '[HOME]/src/tree' is another work tree of the repository of '[REPO]'
        hint: a sandbox has one work tree of a repository: `--grant BRANCH` makes a branch visible inside
        ---- status 125
        "#);
    let submodule = repo.sh("git submodule foreach --quiet 'echo $sm_path' | head -n1").ok();
    repo.sh(&format!("git -C '{}' worktree add -q --detach \"$PWD/../of-sub\"", submodule.trim())).ok();
    let refused = spawn(&repo, &["x", "--with", "../of-sub"], "true").to_string();
    assert!(
        refused.contains("error: '[HOME]/src/of-sub' shares its git directory with a repository inside '[REPO]'\nhint: that one comes along with its repository: work on it there"),
        "{refused}"
    );
    nothing_half_made(&repo);
}

#[test]
fn parts_of_repositories() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let lib = State::Plain.build(&env, "lib");
    assert_snapshot!(spawn(&repo, &["x", "--with", "../lib/src"], "true"), @r#"
        ---- stderr
        error: '[REPO:lib]/src' is part of the repository '[REPO:lib]'
        hint: `--with '[REPO:lib]'` takes all of it
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["x", "--with", "../lib/.git"], "true"), @r#"
        ---- stderr
        error: '[REPO:lib]/.git' is inside a git directory, not in a work tree
        hint: `cd` into the working tree
        ---- status 125
        "#);
    lib.git(&["clone", "-q", "--bare", ".", "../bare.git"]).ok();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../bare.git"], "true"), @r#"
        ---- stderr
        error: '[HOME]/src/bare.git' is a bare repository
        hint: `git clone` it, and take the clone along
        ---- status 125
        "#);
    lib.write(".sandbox.toml", "nonsense = 1\n");
    let refused = spawn(&repo, &["x", "--with", "../lib"], "true").to_string();
    assert!(
        refused.contains("error: '.sandbox.toml' is not valid\n")
            && refused.contains("caused by: it is in '[REPO:lib]'\n"),
        "{refused}"
    );
    // What a repository does not track is a directory.
    lib.sh("rm .sandbox.toml; mkdir untracked; echo x >untracked/x").ok();
    assert_eq!(spawn(&repo, &["z", "--rm", "--with", "../lib/untracked"], "cat ../lib/untracked/x").stdout, "x\n");
    nothing_half_made(&repo);
}

#[test]
fn a_repository_of_somebody_else() {
    if !is_root() {
        skip!("only root can make one");
    }
    let env = TestEnv::new();
    let repo = plain(&env);
    let lib = State::Plain.build(&env, "lib");
    lib.sh("chown -R 4321:4321 .").ok();
    assert_snapshot!(spawn(&repo, &["x", "--with", "../lib"], "true"), @r#"
        ---- stderr
        error: '[REPO:lib]' belongs to another user
        hint: if you trust it: `git config --global --add safe.directory '[REPO:lib]'`
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn what_a_repository_asks_for_is_blamed_on_it() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.write(".sandbox.toml", "with = [\"/etc\"]\n");
    let refused = spawn(&repo, &["x"], "true");
    assert!(refused.stderr.contains("caused by: '.sandbox.toml' asks for it\n") && refused.status == 125, "{refused}");
    repo.write(".sandbox.toml", "with = [\":ro\"]\n");
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '.sandbox.toml' is not valid
        caused by: with: ':ro' is not a path
        hint: it may have net, memory, disk, pids, timeout, carry-secrets, require, min-isolation and deny, each only to tighten your settings, and check and with, which you are asked about
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn git_that_was_told_which_repository() {
    let env = TestEnv::new();
    let repo = plain(&env);
    State::Plain.build(&env, "lib");
    let mut command = env.sandbox_command(repo.dir(), &["spawn", "x", "--with", "../lib", "--", "true"]);
    assert_snapshot!(env.run(command.env("GIT_DIR", repo.dir().join(".git"))), @r#"
        ---- stderr
        error: GIT_DIR is set, so that there is one repository only
        hint: `unset GIT_DIR`, and `-C DIR` to start elsewhere
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn a_repository_that_the_sandbox_has_not() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let lib = State::Plain.build(&env, "lib");
    spawn(&repo, &["x", "--with", "../lib"], "git commit -q --allow-empty -m x").ok();
    assert_snapshot!(repo.sandbox(&["merge", "x", "--only", "src"]), @r#"
        ---- stderr
        error: '[REPO]/src' is no repository of the sandbox 'x'
        hint: it has '[REPO]', '[REPO:lib]'
        ---- status 129
        "#);
    repo.sandbox(&["apply", "x", "--only", "src"]).expect(129);
    assert_snapshot!(lib.sandbox(&["branch", "x", "topic"]), @r#"
        ---- stderr
        note: 'x' has 1 commit in '[REPO]' too: `git sandbox -C '[REPO]' branch x BRANCH`
        error: the sandbox 'x' has no commit in '[REPO:lib]'
        hint: `git sandbox commit x -m MSG` makes one of its files
        ---- status 1
        "#);
}
