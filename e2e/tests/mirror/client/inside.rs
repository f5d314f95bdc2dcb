//! What a sandbox reaches: the mirror that is set, and through it nothing else; what is recorded there.

use super::kit::{Administrator, Manner, Server, World};
use sandbox_testkit::{Output, Repo, TestEnv};
use std::fs;
use std::net::TcpListener;

/// A clone of the upstream on the host, whose sandboxes reach a mirror at `address`.
fn set_up<'e>(env: &'e TestEnv, world: &World, address: &str) -> Repo<'e> {
    let repo = env.repo_at("repo");
    env.git(&env.home(), &["clone", "-q", &world.url, repo.dir().to_str().unwrap()]).ok();
    env.git(&env.home(), &["config", "--global", "sandbox.mirror", address]).ok();
    world.forget();
    repo
}

#[track_caller]
fn spawn(repo: &Repo, args: &[&str], script: &str) -> Output {
    repo.sandbox(&[&["spawn", "-q"], args, &["--", "sh", "-c", script]].concat())
}

#[test]
fn without_a_network_the_mirror_is_reached_and_nothing_else() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let path = env.root().join("m.sock");
    let mirror = Server::unix(&env, &world.mirrors, &path);
    let repo = set_up(&env, &world, &format!("unix:{}", path.display()));
    // The mirror has seen what the host has not.
    let copy = world.mirrors.join(&world.name);
    let new = "git clone -q . ../w && cd ../w && echo new > new && git add new && git commit -q -m new && cd - >&2 && \
               git fetch -q ../w +HEAD:refs/heads/main && git rev-parse main";
    let new = env.run(env.command("sh", &copy).args(["-c", new])).ok().trim().to_owned();
    let script = "git fetch -q origin && git rev-parse origin/main && git remote get-url origin | cut -d: -f1";
    let out = spawn(&repo, &["in"], script);
    assert_eq!((out.status, out.stdout.clone()), (0, format!("{new}\nhttp\n")), "{out}");
    assert_eq!(world.upstream.asked(""), 0);
    assert!(mirror.asked("POST") > 0);
    // A clone of the upstream inside, as a recipe would do it.
    let out = spawn(&repo, &["recipe"], &format!("git clone -q --depth=1 {} /tmp/c && cat /tmp/c/new", world.url));
    assert_eq!((out.status, out.stdout.as_str()), (0, "new\n"), "{out}");
    // The service has more to say, to others.
    let curl = "for p in metrics v1/repos hooks/github; do curl -s -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:9480/$p; done";
    let before = mirror.asked("metrics") + mirror.asked("v1") + mirror.asked("hooks");
    let out = spawn(&repo, &["more"], curl);
    assert_eq!((out.status, out.stdout.as_str()), (0, "403\n403\n403\n"), "{out}");
    assert_eq!(mirror.asked("metrics") + mirror.asked("v1") + mirror.asked("hooks"), before);
    let out =
        spawn(&repo, &["out"], &format!("curl -s --max-time 5 http://127.0.0.1:{}/; echo $?", world.upstream.port));
    assert_eq!(out.stdout, "7\n", "{out}");
    // A sandbox that is started again reaches it again.
    repo.sandbox(&["start", "in"]).ok();
    let out = repo.sandbox(&["exec", "in", "--", "git", "ls-remote", "origin", "refs/heads/main"]);
    assert_eq!((out.status, out.stdout.clone()), (0, format!("{new}\trefs/heads/main\n")), "{out}");
}

#[test]
fn a_mirror_that_is_down_is_told_inside_and_used_again_when_it_is_back() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = env.root().join("m.sock");
    let repo = set_up(&env, &world, &format!("unix:{}", path.display()));
    repo.sandbox(&["spawn", "-q", "-d", "in"]).ok();
    let fetch = || repo.sandbox(&["exec", "in", "--", "git", "ls-remote", "origin", "HEAD"]);
    let out = fetch();
    assert_eq!(out.status, 128, "{out}");
    assert!(out.stderr.contains("503"), "{out}");
    let mirror = Server::unix(&env, &world.mirrors, &path);
    sandbox_testkit::wait_until("the mirror is used again", std::time::Duration::from_secs(30), || fetch().status == 0);
    assert!(mirror.asked("info/refs") > 0);
    drop((mirror, hole));
}

#[test]
fn what_a_command_has_done_is_recorded_without_a_credential() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let admin = Administrator::new(&env);
    let repo = set_up(&env, &world, &mirror.url(""));
    env.git(&env.home(), &["config", "--global", "sandbox.mirrorAdmin", &admin.address]).ok();
    env.git(&env.home(), &["config", "--global", "sandbox.record", "mirror"]).ok();
    // Neither shallow nor partial clones fetch anything for it.
    for (n, shape) in [&["--depth=1"][..], &["--filter=blob:none", "--depth=1"], &[]].into_iter().enumerate() {
        let dir = env.home().join(format!("src/c{n}"));
        let clone = [&["clone", "-q"], shape, &[&world.url, dir.to_str().unwrap()]].concat();
        env.git(&env.home(), &clone).ok();
        world.forget();
        mirror.requests.lock().unwrap().clear();
        let name = format!("run{n}");
        let script = "echo done >> top && git commit -qam 'By the agent' && echo more > made && echo rest >> a/one";
        let out = env.sandbox(&dir, &["spawn", &name, "--", "sh", "-c", script]);
        assert_eq!(out.status, 0, "{out}");
        let session = admin.granted().into_iter().rfind(|id| id.starts_with(&format!("{name}-"))).expect("a session");
        let at = format!("refs/agents/{session}");
        assert!(out.stderr.contains(&format!("recorded on the mirror: {at} (")), "{out}");
        let copy = world.mirrors.join(&world.name);
        let log = env.git(&copy, &["log", "--format=%s", &at]).ok();
        let log: Vec<&str> = log.lines().take(3).collect();
        assert_eq!(log, [&format!("What '{name}' had not committed") as &str, "By the agent", "c20"]);
        assert_eq!(env.git(&copy, &["show", &format!("{at}:made")]).ok(), "more\n");
        assert_eq!(env.git(&copy, &["show", &format!("{at}:a/one")]).ok(), "a20\nrest\n");
        // The branch inside has no more than the agent committed, and the host got that.
        assert_eq!(
            env.git(&dir, &["log", "-1", "--format=%s", &format!("refs/sandbox/{name}")]).ok(),
            "By the agent\n"
        );
        // One pack was sent. What is posted to upload-pack is the negotiation: it finds the base, and asks for nothing.
        assert_eq!(mirror.asked(&format!("POST /{}/git-upload-pack", world.name)), 1, "{:?}", mirror.requests.lock());
        assert_eq!(mirror.asked(&format!("POST /{}/git-receive-pack", world.name)), 1);
        assert_eq!(world.upstream.asked(""), 0, "nothing was fetched for it");
    }
    // By hand, and what may not be written.
    let out = spawn(
        &repo,
        &["hand"],
        "git commit -q --allow-empty -m x && git push -q mirror && git push mirror HEAD:refs/heads/main; echo $?",
    );
    assert!(out.stdout.ends_with("1\n") && out.stderr.contains("[remote rejected] HEAD -> main"), "{out}");
}

#[test]
fn where_nothing_can_be_recorded_it_is_told() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let repo = set_up(&env, &world, &mirror.url(""));
    env.git(&env.home(), &["config", "--global", "sandbox.record", "mirror"]).ok();
    let out = repo.sandbox(&["spawn", "a", "--", "true"]);
    assert_eq!(out.status, 0, "{out}");
    let line = "note: nothing can be recorded on the mirror: sandbox.mirrorAdmin does not say who grants that\n";
    assert!(out.stderr.contains(line), "{out}");
    env.git(&env.home(), &["config", "--global", "sandbox.mirrorAdmin", "unix:/nowhere/admin"]).ok();
    let out = repo.sandbox(&["spawn", "b", "--", "true"]);
    assert!(
        out.stderr.contains("note: nothing can be recorded on the mirror: the mirror cannot be reached (No such file"),
        "{out}"
    );
    env.git(&env.home(), &["config", "--global", "sandbox.record", "everywhere"]).ok();
    let out = repo.sandbox(&["spawn", "c", "--", "true"]);
    assert_eq!(out.status, 125);
    assert_eq!(out.stderr, "error: 'everywhere' is not a value of sandbox.record\nhint: it is mirror or none\n");
    assert!(fs::read_dir(env.state().join("sandboxes")).unwrap().count() == 2);
}
