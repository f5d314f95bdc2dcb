//! The whole way: registered, cloned, refreshed after a force-push, served without its upstream, started again.

use crate::stand::{Mirror, Upstream, source};
use sandbox_testkit::TestEnv;

/// A `[[repo]]` of the configuration.
pub fn repo(url: &str, name: &str) -> String {
    format!("[[repo]]\nurl = \"{url}\"\nname = \"{name}\"\ninterval = \"1s\"\n")
}

#[test]
fn what_is_pushed_to_the_upstream_is_served_and_what_was_served_stays() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let mut upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mut mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    let first = source.id("HEAD");
    mirror.wait_for("up.test/project", "refs/heads/main", &first);

    // Cloned by both protocols, whole and shallow, and the branch that HEAD names is checked out.
    for (n, url) in [&mirror.http, &mirror.git].into_iter().enumerate() {
        let url = format!("{url}/up.test/project");
        for (shape, args) in [("full", &[][..]), ("shallow", &["--depth=1"]), ("blobless", &["--filter=blob:none"])] {
            let dir = format!("clone-{n}-{shape}");
            env.git(env.root(), &[&["clone", "-q", &url, &dir], args].concat()).expect(0);
            let clone = env.root().join(&dir);
            assert_eq!(env.git(&clone, &["rev-parse", "HEAD"]).ok().trim(), first, "{dir}");
            assert_eq!(env.git(&clone, &["symbolic-ref", "HEAD"]).ok().trim(), "refs/heads/main");
            assert_eq!(env.git(&clone, &["status", "--porcelain"]).ok(), "", "{dir}");
            env.git(&clone, &["fsck", "--no-dangling"]).expect(0);
        }
    }

    // A new commit, a tag, and a branch below what was a branch.
    let second = source.commit("src/d0/file.txt", "new\n");
    source.git(&["tag", "v1"]).expect(0);
    source.git(&["push", "-q", "upstream", "main", "v1", "main:topic"]).expect(0);
    mirror.wait_for("up.test/project", "refs/tags/v1", &second);
    mirror.wait_for("up.test/project", "refs/heads/topic", &second);
    source.git(&["push", "-q", "upstream", ":topic"]).expect(0);
    source.git(&["push", "-q", "upstream", "main:topic/below"]).expect(0);
    mirror.wait_for("up.test/project", "refs/heads/topic/below", &second);

    // Force-pushed: the branch follows, and the commit that was served once can still be had by its id.
    source.git(&["reset", "-q", "--hard", &first]).expect(0);
    let third = source.commit("src/d1/file.txt", "another\n");
    source.git(&["push", "-q", "--force", "upstream", "main", ":v1", ":topic/below"]).expect(0);
    mirror.wait_for("up.test/project", "refs/heads/main", &third);
    let clone = env.root().join("clone-0-full");
    let url = format!("{}/up.test/project", mirror.http);
    env.git(&clone, &["fetch", "-q", &url, &second]).expect(0);
    assert_eq!(env.git(&clone, &["rev-parse", "FETCH_HEAD"]).ok().trim(), second);

    // Without its upstream, and started again meanwhile.
    upstream.go_away();
    mirror.kill_and_start();
    mirror.wait_for("up.test/project", "refs/heads/main", &third);
    let refs = env.git(env.root(), &["ls-remote", &url]).ok();
    assert!(!refs.contains("refs/keep") && !refs.contains("refs/agents"), "{refs}");
    upstream.come_back();
    let fourth = source.commit("src/d2/file.txt", "once more\n");
    source.git(&["push", "-q", "upstream", "main"]).expect(0);
    mirror.wait_for("up.test/project", "refs/heads/main", &fourth);
    assert_eq!(mirror.stop(), 0);
}

#[test]
fn a_client_that_goes_away_leaves_no_process_behind() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    // Large enough that a client can leave in the middle.
    source.sh("head -c 20000000 /dev/urandom > large && git add large && git commit -qm large").expect(0);
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    for url in [&mirror.http, &mirror.git] {
        let mut command = crate::stand::git(&env, env.root());
        let address = format!("{url}/up.test/project");
        command.args(["clone", "-q", "--bare", &address, "left"]).stdout(std::process::Stdio::null());
        let mut client = sandbox_testkit::Child::spawn(command.stderr(std::process::Stdio::null()));
        crate::stand::wait("a pack is on its way", || {
            crate::stand::serving(mirror.pid()) > 0 || client.try_ended().is_some()
        });
        client.kill();
        crate::stand::wait("no process is left", || crate::stand::serving(mirror.pid()) == 0);
        let _ = std::fs::remove_dir_all(env.root().join("left"));
    }
}
