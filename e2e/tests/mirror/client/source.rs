//! `spawn --from-mirror URL@REF`, in a repository of that upstream and outside of any.

use super::kit::{Administrator, Manner, Server, World};
use sandbox_testkit::{Output, TestEnv};
use std::fs;
use std::path::Path;

#[track_caller]
fn spawn(env: &TestEnv, dir: &Path, from: &str, args: &[&str], script: &str) -> Output {
    let out = env.sandbox(dir, &[&["spawn", "--from-mirror", from], args, &["--", "sh", "-c", script]].concat());
    assert_eq!(out.status, 0, "{out}");
    out
}

/// Drops them: outside of a repository there is no `--all`.
fn drop_all(env: &TestEnv, names: &[&str]) {
    env.sandbox(&env.home(), &[&["drop", "--force"], names].concat()).ok();
}

#[test]
fn outside_of_any_repository_an_upstream_is_enough() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    env.git(&env.home(), &["config", "--global", "sandbox.mirror", &mirror.url("")]).ok();
    let home = env.home();
    let out =
        spawn(&env, &home, &world.url, &["a", "-q"], "cat top && git status -sb && git log --oneline | wc -l && pwd");
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[..3], ["20", "## main", "1"], "{out}");
    assert!(lines[3].starts_with(&*env.state().to_string_lossy()) && lines[3].ends_with("/n"), "{out}");
    assert_eq!(world.upstream.asked(""), 0);
    // A branch, a tag and a commit of it; what is there already is not fetched again.
    let out = spawn(&env, &home, &format!("{}@side", world.url), &["b", "-q"], "cat top; git branch --show-current");
    assert_eq!(out.stdout, "17\nside\n");
    let out = spawn(&env, &home, &format!("{}@v1", world.url), &["c", "-q"], "cat top");
    assert_eq!(out.stdout, "15\n");
    let packs = mirror.asked("POST");
    let oid = env.git(&home.join("work"), &["rev-parse", "side"]).ok().trim().to_owned();
    let out = spawn(&env, &home, &format!("{}@{oid}", world.url), &["d", "-q"], "cat top");
    assert_eq!((out.stdout.as_str(), mirror.asked("POST")), ("17\n", packs));
    assert_eq!(world.upstream.asked(""), 0);
    // It is listed by what it was made from.
    let list = env.sandbox(&home, &["list", "-A"]).ok();
    assert!(list.contains(&format!("{}@main", world.url)) && list.contains(&format!("{}@side", world.url)), "{list}");
    let rows: serde_json::Value = serde_json::from_str(&env.sandbox(&home, &["list", "-A", "--json"]).ok()).unwrap();
    assert!(rows.to_string().contains(&format!("\"upstream\":\"{}@main\"", world.url)), "{rows}");
    let shown = env.sandbox(&home, &["show", "b"]).ok();
    assert!(shown.contains(&format!("repository  {}@side\n", world.url)), "{shown}");
    // Its commits come home to a repository of ours; there is nothing that they could be merged into.
    spawn(&env, &home, &world.url, &["e", "-q"], "echo x > made && git add made && git commit -qm made");
    let log = env.sandbox(&home, &["log", "e"]).ok();
    assert!(log.contains("made"), "{log}");
    for verb in ["merge", "apply"] {
        let out = env.sandbox(&home, &[verb, "e"]);
        assert_eq!(out.status, 128, "{out}");
        let begins = format!(
            "error: cannot {verb} 'e'\ncaused by: it is of '{}@main', which has no working tree here\n\
             hint: in a clone of it, `git fetch '",
            world.url
        );
        assert!(out.stderr.starts_with(&begins), "{out}");
        // What the hint says is so.
        let fetch = out.stderr.split('`').nth(1).unwrap().replace("git fetch", "git fetch -q --update-shallow");
        env.run(
            env.command("sh", &home.join("work"))
                .args(["-c", &format!("{fetch} && git merge -q FETCH_HEAD && cat made && git reset -q --hard HEAD~1")]),
        )
        .ok();
    }
    drop_all(&env, &["a", "b", "c", "d", "e"]);
}

#[test]
fn in_a_repository_of_the_upstream_the_sandbox_is_that_repositorys() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    env.git(&env.home(), &["config", "--global", "sandbox.mirror", &mirror.url("")]).ok();
    let repo = env.repo_at("repo");
    env.git(&env.home(), &["clone", "-q", "--branch", "v1", &world.url, repo.dir().to_str().unwrap()]).ok();
    repo.git(&["checkout", "-q", "-b", "mine"]).ok();
    // The mirror is ahead of it.
    let copy = world.mirrors.join(&world.name);
    let script = "git clone -q . ../w && cd ../w && echo new > new && git add new && git commit -q -m new && cd - >&2 && git fetch -q ../w +HEAD:refs/heads/main";
    env.run(env.command("sh", &copy).args(["-c", script])).ok();
    world.forget();
    let out = spawn(
        &env,
        repo.dir(),
        &format!("{}@main", world.url),
        &["a", "-q"],
        "cat new && echo x > made && git add made && git commit -qm made",
    );
    assert_eq!(out.stdout, "new\n", "{out}");
    assert_eq!(world.upstream.asked(""), 0);
    assert!(!env.state().join("mirrored").exists());
    let out = repo.sandbox(&["merge", "a"]);
    assert_eq!(out.status, 0, "{out}");
    assert!(repo.has("made") && repo.has("new"));
    // Of another upstream it is not.
    let other = env.root().join("upstream/o/other");
    env.git(env.root(), &["clone", "-q", "--bare", env.home().join("work").to_str().unwrap(), other.to_str().unwrap()])
        .ok();
    let out = spawn(&env, repo.dir(), &format!("{}@side", world.upstream.url("o/other")), &["b"], "cat top");
    assert!(
        out.stdout == "17\n" && out.stderr.contains("note: from the upstream: the mirror does not have it\n"),
        "{out}"
    );
    assert!(env.state().join("mirrored").exists());
    drop_all(&env, &["b"]);
}

#[test]
fn a_recorded_run_is_replayed() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let admin = Administrator::new(&env);
    let home = env.home();
    for (key, value) in [("sandbox.mirror", mirror.url("")), ("sandbox.mirrorAdmin", admin.address.clone())] {
        env.git(&home, &["config", "--global", key, &value]).ok();
    }
    // Without a working tree it is recorded unless that is set otherwise.
    let out = spawn(&env, &home, &world.url, &["run"], "echo x > made");
    let at =
        out.stderr.split("recorded on the mirror: ").nth(1).expect(&out.stderr).split(' ').next().unwrap().to_owned();
    assert!(at.starts_with("refs/agents/run-"), "{out}");
    let out = env.sandbox(&home, &["merge", "run"]);
    assert!(out.stderr.contains(&format!("hint: what was recorded is {at} on the mirror\n")), "{out}");
    drop_all(&env, &["run"]);
    assert_eq!(admin.granted().last().map(String::as_str), Some("forgotten"), "its session is given back");
    let out = spawn(&env, &home, &format!("{}@{at}", world.url), &["replay", "-q"], "cat made; git log -1 --format=%s");
    assert_eq!(out.stdout, "x\nWhat 'run' had not committed\n");
    assert_eq!(world.upstream.asked(""), 0);
    drop_all(&env, &["replay"]);
    // It is nowhere else.
    drop(mirror);
    let out = env.sandbox(&home, &["spawn", "--from-mirror", &format!("{}@{at}", world.url), "--", "true"]);
    assert_eq!(out.status, 125, "{out}");
    assert!(out.stderr.contains("hint: what sessions recorded is on the mirror alone"), "{out}");
    assert_eq!(world.upstream.asked(""), 0);
}

#[test]
fn without_a_mirror_the_upstream_is_asked_and_what_is_not_there_is_told() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let home = env.home();
    let out = spawn(&env, &home, &world.url, &["a", "-q"], "cat top");
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("20\n", ""), "{out}");
    drop_all(&env, &["a"]);
    let url = "http://127.0.0.1:1/o/n";
    for (from, words) in [
        (format!("{}@none", world.url), format!("error: '{}' has no 'none'\nhint: `git ls-remote {}` lists what it has\n", world.url, world.url)),
        ("no-url".into(), "error: 'no-url' is not an upstream and a ref of it\ncaused by: this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path\nhint: for example https://github.com/git/git@master\n".into()),
        (format!("{url}@-x"), format!("error: '{url}@-x' is not an upstream and a ref of it\ncaused by: '-x' is not the name of a ref\nhint: for example https://github.com/git/git@master\n")),
    ] {
        let out = env.sandbox(&home, &["spawn", "--from-mirror", &from, "--", "true"]);
        assert!(out.status == 125 || out.status == 129, "{out}");
        assert_eq!(out.stderr, words);
    }
    assert_eq!(fs::read_dir(env.state().join("sandboxes")).unwrap().count(), 0);
}
