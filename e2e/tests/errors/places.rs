//! Where a command is started, and what is there.

use super::{nothing_half_made, plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{State, TestEnv, is_root, skip};
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn inside_the_git_directory() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(env.sandbox(&repo.dir().join(".git"), &["spawn", "x", "--", "true"]), @r#"
        ---- stderr
        error: '[REPO]/.git' is inside a git directory, not in a work tree
        hint: `cd` into the working tree
        ---- status 125
        "#);
    nothing_half_made(&repo);
}

#[test]
fn a_bare_repository_gives_the_files_of_a_revision() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let bare = env.repo_at("bare.git");
    repo.git(&["clone", "-q", "--bare", ".", &bare.dir().to_string_lossy()]).ok();
    assert_snapshot!(spawn(&bare, &["x", "--from", "no-such"], "true"), @r#"
        ---- stderr
        error: 'no-such' is not a commit
        hint: `git log --oneline --all` shows what there is
        ---- status 125
        "#);
    nothing_half_made(&bare);
}

#[test]
fn a_directory_that_is_not_there() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(repo.sandbox(&["-C", "no/such", "list"]), @r#"
        ---- stderr
        error: cannot change to 'no/such'
        caused by: No such file or directory (os error 2)
        ---- status 128
        "#);
    let gone = repo.sh("mkdir gone && cd gone && rmdir ../gone && git-sandbox list");
    assert_snapshot!(gone, @r#"
        ---- stderr
        error: the current directory is gone
        caused by: No such file or directory (os error 2)
        hint: `cd` to a directory that exists
        ---- status 128
        "#);
}

#[test]
fn a_repository_of_another_user() {
    if !is_root() {
        skip!("only root can make one");
    }
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.sh("chown -R 4321:4321 .").ok();
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: '[REPO]' belongs to another user
        hint: if you trust it: `git config --global --add safe.directory '[REPO]'`
        ---- status 125
        "#);
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    if is_root() {
        skip!("root may write everywhere");
    }
    let env = TestEnv::new();
    let repo = plain(&env);
    let state = env.root().join("state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o500)).unwrap();
    let seen = spawn(&repo, &["x"], "true");
    let list = repo.sandbox(&["list"]);
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    assert_snapshot!(seen, @r#"
        ---- stderr
        error: cannot create '[STATE]'
        caused by: Permission denied (os error 13)
        hint: the state directory must be writable: `git config --global sandbox.stateDir DIR` names another one
        ---- status 125
        "#);
    assert_eq!(list.stderr, seen.stderr);
    assert_eq!(list.status, 128);
    nothing_half_made(&repo);
}

#[test]
fn a_state_directory_that_is_a_file() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.write("file", "");
    repo.git(&["config", "sandbox.stateDir", &repo.dir().join("file").to_string_lossy()]).ok();
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: cannot read '[REPO]/file/format'
        caused by: Not a directory (os error 20)
        hint: `git config --global sandbox.stateDir DIR` names a directory
        ---- status 125
        "#);
    assert_eq!(repo.read("file"), "");
}

#[test]
fn setup_into_a_place_that_is_none() {
    let env = TestEnv::new();
    let repo = plain(&env);
    let prefix = repo.dir().join("README.md");
    assert_snapshot!(repo.sandbox(&["setup", "--prefix", &prefix.to_string_lossy()]), @r#"
        ---- stderr
        error: cannot create '[REPO]/README.md/share/man/man1'
        caused by: Not a directory (os error 20)
        ---- status 128
        "#);
}

#[test]
fn git_does_not_know_the_user() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo s >s; git add s; git commit -qm s").ok();
    repo.commit("here", "here\n");
    fs::write(env.home().join(".gitconfig"), "[user]\n\tuseConfigOnly = true\n").unwrap();
    assert_snapshot!(repo.sandbox(&["merge", "s"]), @r#"
        ---- stderr
        error: git does not know who you are
        caused by: no email was given and auto-detection is disabled
        hint: `git config --global user.name NAME` and `git config --global user.email ADDRESS`
        ---- status 128
        "#);
}

#[test]
fn an_object_that_is_missing() {
    let env = TestEnv::new();
    let repo = State::Plain.build(&env, "repo");
    let blob = repo.id("HEAD:src/b.c");
    fs::remove_file(repo.dir().join(format!(".git/objects/{}/{}", &blob[..2], &blob[2..]))).unwrap();
    assert_snapshot!(spawn(&repo, &["x"], "true"), @r#"
        ---- stderr
        error: cannot make the view of the object store
        caused by: cannot collect the granted objects
        caused by: `git pack-objects` failed (status 128): unable to read [OID]
        hint: `git fsck` tells whether the repository is damaged
        ---- status 125
        "#);
    nothing_half_made(&repo);
}
