//! What a session pushes to a mirror: it alone reads it back, and it goes nowhere unless somebody has it elsewhere.

use crate::stand::{Mirror, Upstream, source};
use crate::way::repo;
use sandbox_testkit::TestEnv;
use std::fs;
use std::path::Path;

/// A session of the administrator's: settings that make git speak as it.
fn session(mirror: &Mirror, id: &str) -> String {
    let body = format!(r#"{{"id":"{id}","repos":["up.test/project"],"token":true}}"#);
    let (status, said) = mirror.admin_post("/v1/sessions", &body);
    assert_eq!(status, 201, "{said}");
    let granted: serde_json::Value = serde_json::from_str(&said).unwrap();
    format!("http.extraHeader=Authorization: Bearer {}", granted["token"].as_str().unwrap())
}

#[test]
fn what_a_session_pushed_is_its_own_and_is_not_lost() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    let forge = upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, "");
    let name = "up.test/project";
    mirror.verb(&["add", "--wait", "--name", name, &upstream.url("project")]).ok();
    let url = format!("{}/{name}", mirror.http);
    let (own, other) = (session(&mirror, "s42"), session(&mirror, "s43"));
    let as_one = |dir: &Path, who: &str, args: &[&str]| env.git(dir, &[&["-c", who], args].concat());

    // A commit on top of a clone of depth 1.
    let clone = env.root().join("clone");
    as_one(env.root(), &own, &["clone", "-q", "--depth=1", &url, "clone"]).ok();
    fs::write(clone.join("made"), "inside\n").unwrap();
    env.git(&clone, &["add", "made"]).ok();
    let commit = ["-c", "user.name=A\u{1b}[31m", "-c", "user.email=a@b", "commit", "-q", "-m", "made \u{1b}[2J inside"];
    env.git(&clone, &commit).ok();
    let tip = env.git(&clone, &["rev-parse", "HEAD"]).ok().trim().to_owned();
    let blob = env.git(&clone, &["rev-parse", "HEAD:made"]).ok().trim().to_owned();
    as_one(&clone, &own, &["push", "-q", &url, "HEAD:refs/agents/s42"]).ok();

    // The session reads it back, in every version of the protocol; beside it the mirror is as it is for all.
    for version in ["protocol.version=0", "protocol.version=2"] {
        let listed = as_one(&clone, &own, &["-c", version, "ls-remote", &url]).ok();
        let main = format!("{}\trefs/heads/main", source.id("HEAD"));
        assert!(listed.contains(&format!("{tip}\trefs/agents/s42")) && listed.contains(&main), "{listed}");
        assert!(!listed.contains("refs/base"), "{listed}");
        let again = format!("again-{}", &version[version.len() - 1..]);
        as_one(env.root(), &own, &["-c", version, "clone", "-q", "--depth=1", &url, &again]).ok();
        let again = env.root().join(again);
        as_one(&again, &own, &["-c", version, "fetch", "-q", &url, "refs/agents/s42"]).ok();
        assert_eq!(env.git(&again, &["show", "FETCH_HEAD:made"]).ok(), "inside\n");
    }
    // Another one, and who is none, gets it neither by name nor by id.
    let elsewhere = env.root().join("elsewhere");
    env.git(env.root(), &["clone", "-q", &url, "elsewhere"]).ok();
    let reader = "x.y=z";
    for (who, version) in [(&*other, "0"), (&*other, "2"), (reader, "0"), (reader, "2")] {
        let version = format!("protocol.version={version}");
        assert!(!as_one(&elsewhere, who, &["-c", &version, "ls-remote", &url]).ok().contains("agents"));
        for what in ["refs/agents/s42", &tip, &blob] {
            as_one(&elsewhere, who, &["-c", &version, "fetch", "-q", &url, what]).expect(128);
        }
    }

    // The administrator sees it, with nothing in it that moves a terminal.
    let listed = mirror.verb(&["scratch", "list"]).ok();
    assert!(listed.contains("s42") && listed.contains(name), "{listed}");
    let listed: serde_json::Value = serde_json::from_str(&mirror.verb(&["scratch", "list", "--json"]).ok()).unwrap();
    assert_eq!(listed[0]["refs"][0]["oid"], tip.as_str());
    assert_eq!((&listed[0]["session"], &listed[0]["saved"]), (&"s42".into(), &false.into()));
    let shown = mirror.verb(&["scratch", "show", name, "s42"]);
    assert!(shown.stdout.contains("refs/agents/s42") && shown.stdout.contains("inside"), "{shown}");
    assert!(!shown.stdout.contains('\u{1b}'), "{shown}");

    // It holds the repository until it was saved.
    let held = mirror.verb(&["rm", name]);
    insta::assert_snapshot!(held.to_string(), @r"
    ---- stderr
    error: 'up.test/project' has scratch refs that are nowhere else: s42
    hint: `git sandbox mirror scratch bundle` saves them, `… scratch drop` drops them
    ---- status 1
    ");
    insta::assert_snapshot!(mirror.verb(&["scratch", "drop", name, "s42"]).to_string(), @r"
    ---- stderr
    error: what session 's42' has pushed to 'up.test/project' is nowhere else
    hint: `git sandbox mirror scratch bundle` or `… fetch` saves it; `… drop --force` drops it without that
    ---- status 1
    ");
    insta::assert_snapshot!(mirror.verb(&["scratch", "show", name, "s1"]).to_string(), @r"
    ---- stderr
    error: session 's1' has pushed nothing to 'up.test/project'
    hint: `git sandbox mirror scratch list` has what there is
    ---- status 1
    ");
    assert_eq!(mirror.verb(&["scratch", "show", name, "S 1"]).status, 2);

    mirror.verb(&["scratch", "bundle", name, "s42", "s42.bundle"]).ok();
    let again = mirror.verb(&["scratch", "bundle", name, "s42", "s42.bundle"]);
    assert!(again.status == 1 && again.stderr.contains("'s42.bundle' exists already"), "{again}");
    env.git(env.root(), &["clone", "-q", "s42.bundle", "saved"]).ok();
    let saved = env.root().join("saved");
    assert_eq!(fs::read_to_string(saved.join("made")).unwrap(), "inside\n");
    assert_eq!(env.git(&saved, &["symbolic-ref", "HEAD"]).ok(), "refs/heads/s42\n");
    env.git(&saved, &["fsck"]).ok();
    let bundle = env.root().join("s42.bundle");
    env.git(&elsewhere, &["fetch", "-q", bundle.to_str().unwrap(), "refs/agents/s42"]).ok();

    // Whoever has it here may push it to the upstream, as a branch.
    let here = env.root().join("here");
    env.git(env.root(), &["clone", "-q", &upstream.url("project"), "here"]).ok();
    env.git(&here, &["remote", "set-url", "--push", "origin", forge.to_str().unwrap()]).ok();
    let admin = mirror.admin.to_str().unwrap();
    let scratch = |verb: &str, more: &[&str]| {
        env.sandbox(&here, &[&["mirror", "scratch", verb, "--admin", admin, name, "s42"], more].concat())
    };
    scratch("fetch", &[]).ok();
    assert_eq!(env.git(&here, &["rev-parse", "refs/agents/s42"]).ok().trim(), tip);
    env.git(&here, &["fsck", "--connectivity-only"]).ok();
    scratch("promote", &["agent/s42"]).ok();
    assert_eq!(env.git(&forge, &["rev-parse", "refs/heads/agent/s42"]).ok().trim(), tip);
    // What would take something away there is refused by git.
    assert_eq!(scratch("promote", &["-x"]).status, 2);

    // Pushed once more, it is not saved any more.
    fs::write(clone.join("made"), "more\n").unwrap();
    env.git(&clone, &["-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "more"]).ok();
    as_one(&clone, &own, &["push", "-q", &url, "HEAD:refs/agents/s42"]).ok();
    assert_eq!(mirror.verb(&["scratch", "drop", name, "s42"]).status, 1);
    scratch("fetch", &["--json"]).ok();
    assert_eq!(env.git(&here, &["show", "refs/agents/s42:made"]).ok(), "more\n");
    let dropped = mirror.verb(&["scratch", "drop", name, "s42"]);
    assert!(dropped.status == 0 && dropped.stdout.starts_with("dropped refs/agents/s42 ("), "{dropped}");
    assert_eq!(mirror.verb(&["scratch", "list", "--json"]).ok(), "[]\n");
    mirror.verb(&["rm", name]).ok();
}

#[test]
fn with_isolation_repo_it_is_in_the_mirror_and_held_the_same() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let config = format!("[scratch]\nisolation = \"repo\"\n{}", repo(&upstream.url("project"), "up.test/project"));
    let mirror = Mirror::start(&env, &config);
    let name = "up.test/project";
    mirror.wait_for(name, "refs/heads/main", &source.id("HEAD"));
    let url = format!("{}/{name}", mirror.http);
    let own = session(&mirror, "s42");
    source.commit("made", "inside\n");
    for to in ["HEAD:refs/agents/s42/one", "HEAD~1:refs/agents/s42/two"] {
        source.git(&["-c", &own, "push", "-q", &url, to]).expect(0);
    }
    let listed = env.git(env.root(), &["ls-remote", &url]).ok();
    assert!(listed.contains("refs/agents/s42/one"), "{listed}");
    let removal = mirror.verb(&["scratch", "drop", name, "s42"]);
    assert!(removal.status == 1 && removal.stderr.contains("is nowhere else"), "{removal}");
    mirror.verb(&["scratch", "bundle", name, "s42", "s42.bundle"]).ok();
    env.git(env.root(), &["clone", "-q", "--branch", "s42/one", "s42.bundle", "saved"]).ok();
    assert_eq!(fs::read_to_string(env.root().join("saved/made")).unwrap(), "inside\n");
    mirror.verb(&["scratch", "drop", name, "s42"]).ok();
    assert!(!env.git(env.root(), &["ls-remote", &url]).ok().contains("agents"));
    assert_eq!(mirror.verb(&["scratch", "list", "--json"]).ok(), "[]\n");
}
