//! What is said in a sandbox.

use super::{plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::{Output, TestEnv};

#[test]
fn verbs_of_the_host() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["s", "-q"], "git sandbox spawn inner -- true"), @r#"
        ---- stderr
        error: already inside sandbox 's'
        hint: `git sandbox spawn` is for the host; inside there are `git sandbox push` and `git fetch host`
        ---- status 125
        "#);
    assert_snapshot!(spawn(&repo, &["t", "-q"], "git sandbox list"), @r#"
        ---- stderr
        error: already inside sandbox 't'
        hint: `git sandbox list` is for the host; inside there are `git sandbox push` and `git fetch host`
        ---- status 128
        "#);
    assert_snapshot!(spawn(&repo, &["u", "-q"], "git sandbox merge u"), @r#"
        ---- stderr
        error: already inside sandbox 'u'
        hint: `git sandbox merge` is for the host; inside there are `git sandbox push` and `git fetch host`
        ---- status 128
        "#);
    assert_snapshot!(spawn(&repo, &["v", "-q"], "git sandbox help spwan"), @r#"
        ---- stderr
        error: there is no verb 'spwan'
        hint: `git sandbox help` lists them
        ---- status 129
        "#);
}

/// Without git's own last line, which not every git writes.
fn own(seen: &Output) -> String {
    seen.to_string()
        .lines()
        .filter(|line| !line.starts_with("fatal: remote helper"))
        .map(|l| l.to_owned() + "\n")
        .collect()
}

#[test]
fn remotes_without_a_network() {
    let env = TestEnv::new();
    let repo = plain(&env);
    repo.git(&["remote", "add", "origin", "https://example.com/project.git"]).ok();
    repo.git(&["remote", "add", "ssh", "git@example.com:project.git"]).ok();
    assert_snapshot!(own(&spawn(&repo, &["s", "-q"], "git push origin HEAD")), @r#"
        ---- stderr
        error: no network in sandbox 's': cannot reach 'origin'
        hint: git push host brings your commits to the host
        hint: git fetch host brings newer commits of the host
        ---- status 128
        "#);
    assert_snapshot!(own(&spawn(&repo, &["t", "-q"], "git fetch ssh")), @r#"
        ---- stderr
        error: no network in sandbox 't': cannot reach 'ssh'
        hint: git push host brings your commits to the host
        hint: git fetch host brings newer commits of the host
        ---- status 128
        "#);
    assert_snapshot!(own(&spawn(&repo, &["u", "-q"], "git ls-remote sandbox::other")), @r#"
        ---- stderr
        error: inside a sandbox there is only 'sandbox::host', not 'sandbox::other'
        ---- status 128
        "#);
}

#[test]
fn pushing_what_the_host_does_not_take() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["s", "-q"], "git push host :main"), @r#"
        ---- stderr
        error: unable to delete 'main': remote ref does not exist
        error: failed to push some refs to 'sandbox::host'
        ---- status 1
        "#);
    assert_snapshot!(spawn(&repo, &["t", "-q"], "git push host HEAD"), @r#"
        ---- stderr
        the host has everything
        To sandbox::host
         * [new branch]      HEAD -> main
        ---- status 0
        "#);
    assert_snapshot!(spawn(&repo, &["u", "-q"], "git sandbox push"), @r#"
        ---- stderr
        the host has everything
        ---- status 0
        "#);
}
