//! What sessions may push, and what nobody may.

use crate::world::{PRIVATE, SHA1, SHA256, World, commit};
use sandbox_mirror::scratch;

const OWN: &str = "HEAD:refs/agents/s1";

fn urls(world: &World, name: &str) -> [String; 2] {
    [format!("http://{}/{name}", world.session), format!("git://{}/{name}", world.session_git)]
}

fn scratch_dir(world: &World, name: &str, session: &str) -> std::path::PathBuf {
    world.layout.scratch(&name.parse().unwrap(), &session.parse().unwrap())
}

#[test]
fn a_session_pushes_to_its_own_refs_from_clones_of_every_shape() {
    let world = World::new();
    let mut n = 0;
    for name in [SHA1, SHA256] {
        for url in urls(&world, name) {
            for shape in [
                &[][..],
                &["--depth=1"],
                &["--depth=1", "--filter=blob:none"],
                &["--filter=blob:none", "--no-checkout"],
            ] {
                n += 1;
                let dir = world.dir(&format!("push{n}"));
                world.run(&[&["clone", "-q"], shape, &[&url, dir.to_str().unwrap()]].concat()).ok();
                world.at(&dir, &["checkout", "-q", "main"]).ok();
                // The mirror goes on while the session works.
                commit(&world.env, &world.source(name), &format!("meanwhile {n}"));
                world.refresh(name);
                std::fs::write(dir.join("made"), n.to_string()).unwrap();
                let made = commit(&world.env, &dir, &format!("made {n}"));
                let to = format!("HEAD:refs/agents/s1/{n}");
                world.at(&dir, &["push", "-q", &url, &to]).ok();
                let got =
                    world.at(&scratch_dir(&world, name, "s1"), &["rev-parse", &format!("refs/agents/s1/{n}")]).ok();
                assert_eq!(got.trim(), made);
                world.at(&dir, &["push", "-q", &url, &format!(":refs/agents/s1/{n}")]).ok();
            }
        }
        let dir = scratch_dir(&world, name, "s1");
        assert_eq!(world.at(&dir, &["for-each-ref", "refs/agents"]).ok(), "");
        world.at(&dir, &["fsck", "--connectivity-only"]).ok();
        // Nothing of it is in the mirror.
        assert!(!world.at(&world.mirror(name), &["for-each-ref"]).ok().contains("agents"));
    }
}

#[test]
fn everything_else_is_refused_ref_by_ref_and_the_rest_applies() {
    let world = World::new();
    for (n, url) in urls(&world, SHA1).iter().enumerate() {
        let dir = world.worked_in(url, &format!("refused{n}"), &[]);
        let before = world.at(&world.mirror(SHA1), &["for-each-ref"]).ok();
        for to in [
            "HEAD:refs/heads/main",
            "HEAD:refs/tags/v2",
            ":refs/heads/side",
            "HEAD:refs/agents/s2",
            "HEAD:refs/agents/s10",
            "HEAD:refs/replace/1111111111111111111111111111111111111111",
            "HEAD:refs/keep/x",
            "HEAD:refs/base/x",
        ] {
            let said = world.at(&dir, &["push", url, to]).expect(1).stderr;
            let wanted = "(read-only mirror: push to refs/agents/s1)";
            assert!(said.contains("! [remote rejected]") && said.contains(wanted), "{to}: {said}");
        }
        let said = world.at(&dir, &["push", url, "HEAD:refs/heads/main", OWN]).expect(1).stderr;
        assert!(said.contains("! [remote rejected] HEAD -> main (read-only mirror: push to refs/agents/s1)"), "{said}");
        assert!(said.contains("* [new reference]   HEAD -> refs/agents/s1"), "{said}");
        let said = world
            .at(&dir, &["push", "--atomic", url, "HEAD:refs/heads/main", "HEAD:refs/agents/s1/x"])
            .expect(1)
            .stderr;
        assert!(said.contains("(atomic push: another ref was refused)"), "{said}");
        assert_eq!(world.at(&world.mirror(SHA1), &["for-each-ref"]).ok(), before);
        let own =
            world.at(&scratch_dir(&world, SHA1, "s1"), &["for-each-ref", "--format=%(refname)", "refs/agents"]).ok();
        assert_eq!(own, "refs/agents/s1\n");
        world.at(&dir, &["push", "-q", url, ":refs/agents/s1"]).ok();
    }
}

#[test]
fn readers_and_sessions_without_a_grant_push_nothing() {
    let world = World::new();
    let url = world.url(SHA1);
    let dir = world.worked_in(&url, "reader", &[]);
    for url in [url, format!("git://{}/{SHA1}", world.git)] {
        let said = world.at(&dir, &["push", &url, OWN]).expect(1).stderr;
        assert!(
            said.contains("! [remote rejected]") && said.contains("(read-only mirror: only a session can push)"),
            "{said}"
        );
    }
    let said = world.at(&dir, &["push", &format!("http://{}/{PRIVATE}", world.other), OWN]).expect(128).stderr;
    assert!(said.contains("not found"), "{said}");
    assert!(!world.layout.root().join("scratch").read_dir().unwrap().any(|_| true));
}

/// Hand-made requests: what no git would send must not get further.
#[test]
fn commands_that_lie_change_nothing() {
    let world = World::new();
    let url = format!("http://{}/{SHA1}", world.session);
    let dir = world.worked_in(&url, "liar", &[]);
    let tip = world.at(&dir, &["rev-parse", "HEAD"]).ok().trim().to_owned();
    let pack = world.dir("pack");
    let script = format!("git rev-list --objects HEAD~1..HEAD | git pack-objects --stdout -q > {}", pack.display());
    world.env.run(world.env.command("sh", &dir).args(["-c", &script])).ok();
    let pack = std::fs::read(pack).unwrap();
    let zero = "0".repeat(40);
    let before = world.at(&world.mirror(SHA1), &["for-each-ref"]).ok();
    for name in [
        "refs/heads/main",
        "refs/agents/s1/../../heads/main",
        "HEAD",
        "refs/agents/s1/../s2",
        "refs/agents/s1\nrefs/heads/x",
    ] {
        let mut bytes = Vec::new();
        let line = format!("{zero} {tip} {name}\0report-status");
        sandbox_mirror::pktline::write(&mut bytes, line.as_bytes());
        sandbox_mirror::pktline::flush(&mut bytes);
        bytes.extend_from_slice(&pack);
        let file = world.dir("request");
        std::fs::write(&file, bytes).unwrap();
        let answer = crate::world::curl(
            &world.env,
            &[
                "-H",
                "Content-Type: application/x-git-receive-pack-request",
                "--data-binary",
                &format!("@{}", file.display()),
                &format!("{url}/git-receive-pack"),
            ],
        )
        .ok();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.contains("read-only mirror: push to refs/agents/s1"),
            "{answer}"
        );
    }
    assert_eq!(world.at(&world.mirror(SHA1), &["for-each-ref"]).ok(), before);
    assert_eq!(world.at(&scratch_dir(&world, SHA1, "s1"), &["for-each-ref", "refs/agents", "refs/heads"]).ok(), "");
    assert!(world.seen.served().iter().all(|one| one.said.is_empty()));
}

/// What one session pushed, another cannot get: neither by name nor by id.
#[test]
fn sessions_do_not_see_one_another() {
    let world = World::new();
    let url = format!("http://{}/{SHA1}", world.session);
    let dir = world.worked_in(&url, "secret", &[]);
    world.at(&dir, &["push", "-q", &url, OWN]).ok();
    let tip = world.at(&dir, &["rev-parse", "HEAD"]).ok().trim().to_owned();
    let blob = world.at(&dir, &["rev-parse", "HEAD:made"]).ok().trim().to_owned();
    let other = format!("http://{}/{SHA1}", world.other);
    let elsewhere = world.dir("other");
    world.run(&["clone", "-q", &other, elsewhere.to_str().unwrap()]).ok();
    for version in ["0", "2"] {
        let config = format!("protocol.version={version}");
        assert!(!world.run(&["-c", &config, "ls-remote", &other]).ok().contains("agents"));
        for what in ["refs/agents/s1", &tip, &blob] {
            world.at(&elsewhere, &["-c", &config, "fetch", "-q", &other, what]).expect(128);
        }
    }
    // Nor is it told on a push of the other's what the first has: only what both began from.
    let refs = world.at(&elsewhere, &["ls-remote", &other, "refs/agents/*"]).ok();
    assert_eq!(refs, "");
    let advertised = crate::world::curl(&world.env, &[&format!("{other}/info/refs?service=git-receive-pack")]).ok();
    assert!(!advertised.contains(&tip), "{advertised}");
}

#[test]
fn a_push_has_limits() {
    let settings = scratch::Settings { max_push: 100_000, quota: 150_000, ..Default::default() };
    let world = World::with(Default::default(), settings);
    let url = format!("http://{}/{SHA1}", world.session);
    let dir = world.worked_in(&url, "large", &[]);
    let noise = |bytes: usize, name: &str| {
        let mut noise = vec![0; bytes];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut noise).unwrap();
        std::fs::write(dir.join(name), noise).unwrap();
        commit(&world.env, &dir, name);
    };
    noise(80_000, "one");
    world.at(&dir, &["push", "-q", &url, OWN]).ok();
    noise(200_000, "two");
    let said = world.at(&dir, &["push", &url, OWN]).expect(1).stderr;
    assert!(said.contains("! [remote rejected]"), "{said}");
    world.at(&dir, &["reset", "-q", "--hard", "HEAD~1"]).ok();
    noise(80_000, "three");
    world.at(&dir, &["push", "-q", &url, OWN]).ok();
    noise(10, "four");
    let said = world.at(&dir, &["push", &url, OWN]).expect(1).stderr;
    assert!(said.contains("(the 150000 bytes for refs/agents/s1 are used up: delete refs below it)"), "{said}");
    world.at(&dir, &["push", "-q", &url, ":refs/agents/s1"]).ok();
}

#[test]
fn a_disk_that_is_nearly_full_takes_no_push_and_serves_on() {
    let settings = scratch::Settings { min_free: u64::MAX, ..Default::default() };
    let world = World::with(Default::default(), settings);
    let url = format!("http://{}/{SHA1}", world.session);
    let dir = world.worked_in(&url, "full", &[]);
    let said = world.at(&dir, &["push", &url, OWN]).expect(1).stderr;
    assert!(said.contains("(the mirror's disk is nearly full: try again later)"), "{said}");
    world.at(&dir, &["fetch", "-q", &url, "main"]).ok();
}

/// A push runs nothing: neither hooks of the repository nor what it brought.
#[test]
fn nothing_that_was_pushed_runs() {
    let world = World::new();
    let url = format!("http://{}/{SHA1}", world.session);
    let dir = world.worked_in(&url, "first", &[]);
    world.at(&dir, &["push", "-q", &url, OWN]).ok();
    let scratch = scratch_dir(&world, SHA1, "s1");
    let mark = world.dir("ran");
    std::fs::create_dir_all(scratch.join("hooks")).unwrap();
    for hook in ["pre-receive", "update", "post-receive", "post-update", "reference-transaction", "proc-receive"] {
        use std::os::unix::fs::PermissionsExt;
        let path = scratch.join("hooks").join(hook);
        std::fs::write(&path, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    commit(&world.env, &dir, "again");
    world.at(&dir, &["push", "-q", &url, OWN]).ok();
    assert!(!mark.exists());
    // And what git itself must never check out is not taken.
    let tree = world.env.run_with_input(
        world.env.command(&world.env.git_used().path, &dir).args(["mktree"]),
        format!("100644 blob {}\t.git\n", world.at(&dir, &["rev-parse", "HEAD:made"]).ok().trim()).as_bytes(),
    );
    let tree = tree.ok();
    let bad =
        world.at(&dir, &["-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", "x", tree.trim()]).ok();
    let said = world.at(&dir, &["push", &url, &format!("{}:refs/agents/s1/bad", bad.trim())]).expect(1).stderr;
    assert!(said.contains("! [remote rejected]") || said.contains("hasDotgit"), "{said}");
}
