//! What is said about logs, events, and what a network may reach.

use super::{plain, spawn};
use insta::assert_snapshot;
use sandbox_testkit::TestEnv;
use std::fs;

#[test]
fn logs_and_events_of_nothing() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["a"], "echo x").ok();
    spawn(&repo, &["b"], "echo y").ok();
    assert_snapshot!(repo.sandbox(&["logs", "--raw", "a", "b"]), @r#"
        ---- stderr
        error: --raw is for one sandbox: control characters of several would mix
        hint: `git sandbox logs --raw NAME` prints one as it is, without --raw several are printed
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["logs", "--raw", "--all"]), @r#"
        ---- stderr
        error: --raw is for one sandbox: control characters of several would mix
        hint: `git sandbox logs --raw NAME` prints one as it is, without --raw several are printed
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["logs"]), @r#"
        ---- stderr
        error: the following required arguments were not provided:
          <NAME>...
        usage: git sandbox logs <NAME>...
        hint: `git sandbox list` shows the sandboxes and their names
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["logs", "--all", "a"]), @r#"
        ---- stderr
        error: the argument '--all' cannot be used with '[NAME]...'
        usage: git sandbox logs --all [NAME]...
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["logs", "a", "no-such"]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox list` shows them all
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["events"]), @r#"
        ---- stderr
        error: the following required arguments were not provided:
          <NAME>...
        usage: git sandbox events <NAME>...
        hint: `git sandbox list` shows the sandboxes and their names
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["events", "no-such"]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox list` shows them all
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["events", "a", "-n", "few"]), @r#"
        ---- stderr
        error: invalid value 'few' for '--lines <N>': invalid digit found in string
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
}

#[test]
fn rules_that_are_none() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "true").ok();
    for rule in ["https://example.com/x", "*.com", "a b", "example.com:0", "example.com=10.0.0.0/99", "::1"] {
        let seen = repo.sandbox(&["allow", "s", rule]);
        assert_eq!(seen.status, 129, "{seen}");
        assert!(seen.stderr.starts_with(&format!("error: '{rule}' is not a host\ncaused by: ")), "{seen}");
        assert!(seen.stderr.contains("\nhint: "), "{seen}");
    }
    assert_snapshot!(repo.sandbox(&["deny", "s", "https://example.com/"]), @r#"
        ---- stderr
        error: 'https://example.com/' is not a host
        caused by: it is a URL; only its host is meant
        hint: for example example.com, '*.example.com', example.com:8443, or a set: @github
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["allow", "s", "bad\u{1b}[2J.example"]), @r#"
        ---- stderr
        error: 'bad\u{1b}[2J.example' is not a host
        caused by: it has white space or a control character
        hint: for example example.com, '*.example.com', example.com:8443, or a set: @github
        ---- status 129
        "#);
    let seen = repo.sandbox(&["allow", "s", "@no-such"]).expect(129);
    assert!(seen.stderr.starts_with("error: there is no set of hosts '@no-such'\nhint: there are @"), "{seen}");
    assert_snapshot!(repo.sandbox(&["allow", "s", "--remove"]), @r#"
        ---- stderr
        error: which host?
        hint: `git sandbox allow --list s` shows the rules, `git sandbox allow --remove s HOST` takes one back
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["deny"]), @r#"
        ---- stderr
        error: the following required arguments were not provided:
          <NAME>
        usage: git sandbox deny <NAME> [HOST]...
        hint: `git sandbox list` shows the sandboxes and their names
        hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
        ---- status 129
        "#);
    assert_snapshot!(repo.sandbox(&["allow", "no-such", "a.example"]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox list` shows them all
        ---- status 128
        "#);
    // One bad rule, and none of the others is taken.
    repo.sandbox(&["allow", "s", "good.example", "bad host"]).expect(129);
    assert_snapshot!(repo.sandbox(&["allow", "s"]), @r#"
        ---- stderr
        's' has no network: nothing can be reached
        ---- status 0
        "#);
}

#[test]
fn a_network_without_a_filter() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s", "--net", "host"], "true").ok();
    assert_snapshot!(repo.sandbox(&["allow", "s", "a.example"]), @r#"
        ---- stderr
        error: the network of 's' is the host's: nothing is filtered
        hint: `git sandbox spawn --net allow --allow HOST` makes one that reaches only what is listed
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["deny", "s", "a.example"]), @r#"
        ---- stderr
        error: the network of 's' is the host's: nothing is filtered
        hint: `git sandbox spawn --net allow --allow HOST` makes one that reaches only what is listed
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["allow", "s", "--list"]), @r#"
        ---- stderr
        the network of 's' is the host's: everything can be reached
        ---- status 0
        "#);
}

#[test]
fn a_policy_that_is_damaged() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["s"], "true").ok();
    repo.sandbox(&["allow", "s", "a.example"]).ok();
    let sandboxes = fs::read_dir(env.state().join("sandboxes")).unwrap().flatten().next().unwrap().path();
    fs::write(sandboxes.join("network.json"), "{").unwrap();
    assert_snapshot!(repo.sandbox(&["allow", "s", "b.example"]), @r#"
        ---- stderr
        error: '[STATE]/sandboxes/[ID]/network.json' is no policy
        caused by: EOF while parsing an object at line 1 column 1
        hint: while it is like this nothing of 's' is let out: `rm '[STATE]/sandboxes/[ID]/network.json'` begins a new policy
        ---- status 128
        "#);
    assert_eq!(fs::read_to_string(sandboxes.join("network.json")).unwrap(), "{", "it stays as it is");
    fs::write(sandboxes.join("network.json"), r#"{"version":7,"allow":["a.example"],"deny":[]}"#).unwrap();
    assert_snapshot!(repo.sandbox(&["allow", "s", "--list"]), @r#"
        ---- stderr
        error: the policy '[STATE]/sandboxes/[ID]/network.json' has version 7, this program knows 1
        hint: while it is like this nothing of 's' is let out: `rm '[STATE]/sandboxes/[ID]/network.json'` begins a new policy
        ---- status 128
        "#);
}

#[test]
fn help_for_nobody() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(repo.sandbox(&["help", "agent", "no-such"]), @r#"
        ---- stderr
        error: no sandbox named 'no-such'
        hint: `git sandbox spawn` makes one
        ---- status 128
        "#);
    assert_snapshot!(repo.sandbox(&["help", "merge", "x"]), @r#"
        ---- stderr
        error: unexpected argument 'x'
        hint: `git sandbox help VERB` tells about one verb, `git sandbox help agent NAME` about one sandbox
        ---- status 129
        "#);
}

#[test]
fn inside_nothing_is_allowed() {
    let env = TestEnv::new();
    let repo = plain(&env);
    assert_snapshot!(spawn(&repo, &["s", "-q"], "git sandbox allow s a.example"), @r#"
        ---- stderr
        error: already inside sandbox 's'
        hint: `git sandbox allow` is for the host; inside there are `git sandbox push` and `git fetch host`
        ---- status 128
        "#);
}

/// What `git sandbox help agent` says, and presets put where their agent looks.
#[test]
fn what_an_agent_is_told() {
    let env = TestEnv::new();
    let repo = plain(&env);
    spawn(&repo, &["fix-login"], "true").ok();
    assert_snapshot!(repo.sandbox(&["help", "agent", "fix-login"]), @r#"
        You are in the sandbox 'fix-login' of git-sandbox: an isolated copy of a user's git working tree, at the same
        path. The user's own tree is out of reach: nothing that is done here changes it.

        What stays
        - The working tree and the home directory, also over a stop and start of the sandbox.
        - /tmp is emptied at each start. Processes end when the sandbox is stopped.

        How work comes back
        - Commit. Commits on any branch go to the user's repository by themselves: the branch that is checked out
          becomes refs/sandbox/fix-login there. `git push host HEAD` does it at once and says whether it worked.
        - What is not committed is kept here, but only commits travel: commit before you end.
        - `git fetch host` brings commits that the user has made since this copy was taken.
        - `origin` and other remotes may be unreachable, and no credentials for them are here. Do not push there:
          the user does that.

        Network
        - There is none, only a loopback device. Downloads, package installs and web requests fail; do not try
          to work around it. If the task needs a host, tell the user which one and why: after
          `git sandbox allow fix-login HOST`, a stop and a start, it can be reached.

        What does not work
        - sudo, apt and other things that need root do not work, unless the sandbox was made with --root. Install
          into the home directory or the working tree.
        - Other files of the user (their home, keys, other projects) are not here. Ask for what is missing.
        - `git sandbox` inside knows push, sync (the same as `git fetch host`) and help.
        ---- status 0
        "#);
    repo.sandbox(&["allow", "fix-login", "api.example.com", "*.example.org:8443"]).ok();
    assert_snapshot!(repo.sandbox(&["help", "agent", "fix-login"]), @r#"
        You are in the sandbox 'fix-login' of git-sandbox: an isolated copy of a user's git working tree, at the same
        path. The user's own tree is out of reach: nothing that is done here changes it.

        What stays
        - The working tree and the home directory, also over a stop and start of the sandbox.
        - /tmp is emptied at each start. Processes end when the sandbox is stopped.

        How work comes back
        - Commit. Commits on any branch go to the user's repository by themselves: the branch that is checked out
          becomes refs/sandbox/fix-login there. `git push host HEAD` does it at once and says whether it worked.
        - What is not committed is kept here, but only commits travel: commit before you end.
        - `git fetch host` brings commits that the user has made since this copy was taken.
        - `origin` and other remotes may be unreachable, and no credentials for them are here. Do not push there:
          the user does that.

        Network
        - Only listed hosts, through the HTTP proxy of the variables https_proxy and http_proxy; no DNS, no other way.
          Allowed when this was written: api.example.com, *.example.org:8443.
        - A refused host looks like this: HTTP status 403 with a header `X-Git-Sandbox: blocked` (for HTTPS:
          "CONNECT tunnel failed, response 403"). Do not try to work around it. Tell the user which host is needed
          and why: `git sandbox allow fix-login HOST` on their side works at once, then try again.

        What does not work
        - sudo, apt and other things that need root do not work, unless the sandbox was made with --root. Install
          into the home directory or the working tree.
        - Other files of the user (their home, keys, other projects) are not here. Ask for what is missing.
        - `git sandbox` inside knows push, sync (the same as `git fetch host`) and help.
        ---- status 0
        "#);
}
