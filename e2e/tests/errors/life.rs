//! A sandbox that is not there, is there twice, or is in the wrong state.

use super::{plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{State, TestEnv};
use std::fs;

#[test]
fn a_name_that_two_repositories_have() {
    let env = TestEnv::new();
    let (a, b) = (State::Plain.build(&env, "a"), State::Plain.build(&env, "b"));
    spawn(&a, &["s"], "true").ok();
    spawn(&b, &["s"], "true").ok();
    assert_snapshot!(env.sandbox(&env.home(), &["show", "s"]), @r#"
        ---- stderr
        error: more than one repository has a sandbox named 's'
        hint: run this inside the repository that is meant
        ---- status 128
        "#);
    a.sandbox(&["show", "s"]).ok();
    assert_snapshot!(env.sandbox(&env.home(), &["drop", "--all"]), @r#"
        ---- stderr
        error: not a git repository: '[HOME]'
        hint: `cd` into a repository, or make one with `git init`
        ---- status 128
        "#);
}

#[test]
fn running_or_not() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.sandbox(&["spawn", "-d", "s"]).ok();
    assert_snapshot!(repo.sandbox(&["show", "--console", "s"]), @r#"
        ---- stderr
        error: 's' has no console: it is not in a virtual machine
        hint: `git sandbox logs s` prints what its command printed
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["start", "s"]), @r#"
        ---- stderr
        error: the sandbox 's' is running
        hint: `git sandbox stop s` stops it
        ---- status 125
        "#);
    repo.sandbox(&["stop", "s"]).ok();
    assert_snapshot!(repo.sandbox(&["stop", "s"]), @r#"
        ---- stderr
        's' was not running
        ---- status 0
        "#);
    assert_snapshot!(repo.sandbox(&["attach", "s"]), @r#"
        ---- stderr
        error: the sandbox 's' is not running
        hint: `git sandbox start s` starts it
        ---- status 125
        "#);
    assert_snapshot!(repo.sandbox(&["start", "s", "--", "no-such-command"]), @r#"
        ---- stderr
        error: cannot run 'no-such-command': No such file or directory
        hint: is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them
        ---- status 127
        "#);
    assert!(env.live_processes().is_empty());
}

#[test]
fn nothing_to_attach_to() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.sandbox(&["spawn", "-d", "s"]).ok();
    assert_snapshot!(repo.sandbox(&["attach", "s"]), @r#"
        ---- stderr
        error: no command was started in 's'
        hint: `git sandbox shell s` opens a shell in it
        ---- status 125
        "#);
}

#[test]
fn a_wait_that_takes_too_long() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.sandbox(&["spawn", "-d", "s", "--", "sleep", "60"]).ok();
    assert_snapshot!(repo.sandbox(&["wait", "s", "--timeout", "1s"]), @r#"
        ---- stderr
        error: 's' still runs
        hint: `git sandbox logs -f s` shows what it does, `git sandbox stop s` ends it
        ---- status 124
        "#);
    assert_snapshot!(repo.sandbox(&["wait", "no-such"]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox list` shows them all
        ---- status 128
        "#);
    repo.sandbox(&["stop", "s", "--grace", "0s"]).ok();
}

#[test]
fn a_command_that_takes_too_long() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["s", "--timeout", "1s"], "exec sleep 60"), @r#"
        ---- stderr
        sandbox 's': 13 files as they are here, 13 copied (282 B)
        timed out: the command was ended after [TIME]
        no changes in 's'
        ---- status 124
        "#);
}

#[test]
fn commands_that_cannot_be_started_in_one_that_exists() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "true").ok();
    assert_snapshot!(repo.sandbox(&["exec", "s", "--", "no-such-command"]), @r#"
        ---- stderr
        error: cannot run 'no-such-command': No such file or directory
        hint: is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them
        ---- status 127
        "#);
    assert_snapshot!(repo.sandbox(&["exec", "s", "--", "./README.md"]), @r#"
        ---- stderr
        error: cannot execute './README.md': Permission denied
        ---- status 126
        "#);
    assert_snapshot!(repo.sandbox(&["exec", "s", "--", "./src"]), @r#"
        ---- stderr
        error: cannot execute './src': Permission denied
        ---- status 126
        "#);
    assert_snapshot!(repo.sandbox(&["exec", "-w", "no/such", "s", "--", "true"]), @r#"
        ---- stderr
        error: cannot change to '[REPO]/no/such': No such file or directory
        hint: the directory is one inside the sandbox: `--workdir DIR` names another
        ---- status 125
        "#);
    assert_snapshot!(repo.sandbox(&["spawn", "-d", "t", "--", "no-such-command"]), @r#"
        ---- stderr
        sandbox 't': 13 files as they are here
        error: cannot run 'no-such-command': No such file or directory
        hint: is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them
        ---- status 127
        "#);
}

#[test]
fn a_branch_that_cannot_be_made_inside() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["s", "-b", "not..valid"], "true"), @r#"
        ---- stderr
        sandbox 's': 13 files as they are here, 13 copied (282 B)
        error: cannot check out a new branch 'not..valid' inside
        caused by: 'not..valid' is not a valid branch name
        hint: take another name for the branch; no sandbox was made
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["t", "-b", "main"], "true"), @r#"
        ---- stderr
        sandbox 't': 13 files as they are here
        error: cannot check out a new branch 'main' inside
        caused by: a branch named 'main' already exists
        hint: take another name for the branch; no sandbox was made
        ---- status 125
        "#);
}

#[test]
fn what_a_sandbox_stands_on_is_gone() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "echo work >work").ok();
    let repos = fs::read_dir(env.state().join("repos")).unwrap().flatten().next().unwrap().path();
    fs::rename(repos.join("layers"), repos.join("gone")).unwrap();
    assert_snapshot!(repo.sandbox(&["exec", "s", "--", "true"]), @r#"
        ---- stderr
        error: the sandbox 's' stands on '[STATE]/repos/[ID]/layers/[ID]/tree', which is gone
        hint: its own changes are still there: `git sandbox rescue s --to DIR` copies them
        ---- status 125
        "#);
    let show = repo.sandbox(&["show", "s"]).ok();
    assert!(show.contains("note        cannot tell what is not committed: No such file or directory"), "{show}");
    assert!(show.contains("\ndirectory   "), "{show}");
    assert_snapshot!(repo.sandbox(&["drop", "s"]), @r#"
        ---- stderr
        error: cannot read what was captured
        caused by: cannot read '[STATE]/repos/[ID]/layers/[ID]/manifest'
        caused by: No such file or directory (os error 2)
        hint: `git sandbox show NAME` names the directory of its own files; `git sandbox drop --force NAME` moves it to the trash
        ---- status 128
        "#);
    repo.sandbox(&["drop", "--force", "s"]).ok();
    fs::rename(repos.join("gone"), repos.join("layers")).unwrap();
    repo.sandbox(&["trash", "restore", "s"]).ok();
    assert_eq!(repo.sandbox(&["exec", "s", "--", "cat", "work"]).ok(), "work\n");
}
