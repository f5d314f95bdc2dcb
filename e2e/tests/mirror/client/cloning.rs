//! `mirror clone` and `mirror env`: healthy, dead, hung, cold, failing mirrors.

use super::kit::{Manner, Server, World};
use sandbox_testkit::{Output, TestEnv};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// A mirror that is well may take its time on a busy machine.
const PATIENT: &str = "5000";

/// `git sandbox mirror clone <url> <dir> --mirror <mirror> <args>`, in the home directory.
fn clone(env: &TestEnv, world: &World, mirror: &str, dir: &str, args: &[&str]) -> Output {
    env.sandbox(
        &env.home(),
        &[&["mirror", "clone", &world.url, dir, "--mirror", mirror, "--probe-ms", PATIENT], args].concat(),
    )
}

/// What it said, without what differs from run to run.
fn said(env: &TestEnv, out: &Output) -> String {
    env.filters().apply(&out.stderr)
}

/// Nothing half made is beside a clone.
#[track_caller]
fn nothing_left(env: &TestEnv, dirs: &[&str]) {
    let mut names: Vec<String> = fs::read_dir(env.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| ![".gitconfig", "src", "work"].contains(&name.as_str()))
        .collect();
    names.sort();
    assert_eq!(names, dirs);
}

fn count(env: &TestEnv, dir: &Path) -> String {
    env.git(dir, &["rev-list", "--count", "HEAD"]).ok().trim().to_owned()
}

#[test]
fn a_healthy_mirror_is_cloned_from_and_origin_is_the_upstream() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let at = mirror.url("");
    for (shape, commits) in [("tip", "1"), ("full", "20")] {
        let out = clone(&env, &world, &at, shape, &["--shape", shape]);
        assert_eq!((out.status, out.stdout.as_str()), (0, ""), "{out}");
        assert!(said(&env, &out).ends_with(&format!("cloned into '[HOME]/{shape}', from the mirror\n")), "{out}");
        let dir = env.home().join(shape);
        assert_eq!(count(&env, &dir), commits);
        assert_eq!(fs::read_to_string(dir.join("top")).unwrap(), "20\n");
        assert_eq!(env.git(&dir, &["remote", "get-url", "origin"]).ok().trim(), world.url);
        assert_eq!(env.git(&dir, &["config", "push.negotiate"]).ok().trim(), "true");
        assert_eq!(env.git(&dir, &["remote", "get-url", "mirror"]).ok().trim(), mirror.url(&world.name));
        assert_eq!(env.git(&dir, &["status", "--porcelain"]).ok(), "");
        let config = fs::read_to_string(dir.join(".git/config")).unwrap();
        assert!(!config.contains("insteadOf") && !config.contains("checkout"), "{config}");
    }
    assert_eq!(world.upstream.asked(""), 0, "the upstream was not needed");
    nothing_left(&env, &["full", "tip"]);
}

#[test]
fn a_sparse_clone_has_the_blobs_of_its_directories_alone() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let out = clone(&env, &world, &mirror.url(""), "sparse", &["--shape", "sparse=b/c", "--branch", "side"]);
    assert_eq!(out.status, 0, "{out}");
    let dir = env.home().join("sparse");
    assert_eq!(fs::read_to_string(dir.join("b/c/two")).unwrap(), "b17\n");
    assert!(!dir.join("a").exists());
    let missing = env.git(&dir, &["rev-list", "--objects", "--missing=print", "HEAD"]).ok();
    assert_eq!(missing.lines().filter(|line| line.starts_with('?')).count(), 1, "a/one is not here: {missing}");
    assert_eq!(world.upstream.asked(""), 0);
}

#[test]
fn objects_of_a_store_on_this_machine_are_borrowed() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let store = env.root().join("store");
    let name = sandbox_mirror::name::RepoName::parse(&world.name).unwrap();
    let kept = sandbox_mirror::layout::Layout::new(&store).mirror(&name);
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    let from = world.mirrors.join(&world.name);
    env.git(env.root(), &["clone", "-q", "--mirror", from.to_str().unwrap(), kept.to_str().unwrap()]).ok();
    env.git(&env.home(), &["config", "--global", "sandbox.mirrorStore", store.to_str().unwrap()]).ok();
    env.git(&env.home(), &["config", "--global", "sandbox.mirror", &mirror.url("")]).ok();
    for (dir, args) in [("quickest", &[][..]), ("shared", &["--shape", "shared"])] {
        let out = env.sandbox(&env.home(), &[&["mirror", "clone", &world.url, dir], args].concat());
        assert_eq!(out.status, 0, "{out}");
        assert!(out.stderr.contains("with objects of the mirror's store"), "{out}");
        let dir = env.home().join(dir);
        assert_eq!(count(&env, &dir), "20");
        assert_eq!(fs::read_to_string(dir.join("top")).unwrap(), "20\n");
        assert_eq!(env.git(&dir, &["count-objects"]).ok().trim(), "0 objects, 0 kilobytes");
        assert_eq!(env.git(&dir, &["rev-parse", "--abbrev-ref", "HEAD@{upstream}"]).ok().trim(), "origin/main");
        assert_eq!(env.git(&dir, &["status", "--porcelain"]).ok(), "");
        env.git(&dir, &["fsck", "--connectivity-only"]).ok();
    }
    // A tag is checked out as such.
    let out = env.sandbox(&env.home(), &["mirror", "clone", &world.url, "tag", "--branch", "v1", "-q"]);
    assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{out}");
    assert_eq!(fs::read_to_string(env.home().join("tag/top")).unwrap(), "15\n");
    // Asked for its own objects, it has them.
    clone(&env, &world, &mirror.url(""), "full", &["--shape", "full"]).ok();
    assert!(!env.home().join("full/.git/objects/info/alternates").exists());
    assert_eq!(world.upstream.asked(""), 0);
}

#[test]
fn a_mirror_behind_a_unix_socket_is_cloned_from() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let path = env.root().join("m.sock");
    let mirror = Server::unix(&env, &world.mirrors, &path);
    let out = clone(&env, &world, &format!("unix:{}", path.display()), "tip", &[]);
    assert_eq!(out.status, 0, "{out}");
    assert!(out.stderr.ends_with("from the mirror\n"), "{out}");
    assert_eq!(world.upstream.asked(""), 0);
    assert!(mirror.asked("POST") > 0);
    // What was only for this command is not kept.
    let config = fs::read_to_string(env.home().join("tip/.git/config")).unwrap();
    assert!(!config.contains("127.0.0.1:0") && !config.contains("[remote \"mirror\"]"), "{config}");
    assert!(!config.to_lowercase().contains("extraheader"), "{config}");
}

/// A clone without a mirror is what others are measured by.
fn direct(env: &TestEnv, world: &World) -> Vec<String> {
    world.forget();
    let out = clone(env, world, "none", "direct", &["--shape", "tip"]);
    assert_eq!(out.status, 0, "{out}");
    assert_eq!(said(env, &out), "cloned into '[HOME]/direct', from the upstream\n");
    let requests = world.upstream.requests.lock().unwrap().clone();
    world.forget();
    requests
}

#[test]
fn whatever_is_wrong_with_a_mirror_the_clone_is_made_directly_and_costs_the_upstream_no_more() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let usual = direct(&env, &world);
    // Dead: nobody listens there.
    let dead = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://127.0.0.1:{}", gone.local_addr().unwrap().port())
    };
    // Hung: the kernel takes the connection, nobody answers.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung = format!("http://127.0.0.1:{}", hole.local_addr().unwrap().port());
    // Healthy, and does not have it.
    let empty = env.root().join("empty");
    fs::create_dir(&empty).unwrap();
    let without = Server::new(&env, &empty, Manner::Serves);
    // Healthy, and sends to the upstream.
    let cold = Server::new(&env, &empty, Manner::Sends(world.upstream.url("x")));
    let cases = [
        ("dead", dead, "the mirror cannot be reached (Connection refused (os error 111))"),
        ("hung", hung.clone(), "the mirror does not answer"),
        ("unknown", without.url(""), "the mirror does not have it"),
        ("cold", cold.url(""), "the mirror does not have it"),
        (
            "socket",
            "unix:/nowhere/sock".to_owned(),
            "the mirror cannot be reached (No such file or directory (os error 2))",
        ),
    ];
    let mut dirs: Vec<&str> = vec!["direct"];
    for (dir, mirror, why) in &cases {
        let out = clone(&env, &world, mirror, dir, &["--shape", "tip"]);
        assert_eq!(out.status, 0, "{out}");
        assert_eq!(said(&env, &out), format!("cloned into '[HOME]/{dir}', from the upstream: {why}\n"));
        assert_eq!(*world.upstream.requests.lock().unwrap(), usual, "{dir}");
        assert_eq!(env.git(&env.home().join(dir), &["remote", "get-url", "origin"]).ok().trim(), world.url);
        world.forget();
        let only = clone(&env, &world, mirror, "not", &["--shape", "tip", "--no-fallback"]);
        assert_eq!(only.status, 128, "{only}");
        assert!(
            only.stderr.contains(&format!("error: cannot clone '{}' from the mirror\ncaused by: {why}\n", world.url)),
            "{only}"
        );
        assert_eq!(world.upstream.asked(""), 0, "{only}");
        dirs.push(dir);
    }
    // One connection was tried at the one that hangs, each time: no second attempt.
    hole.set_nonblocking(true).unwrap();
    assert_eq!(std::iter::from_fn(|| hole.accept().ok()).count(), 2);
    dirs.sort();
    nothing_left(&env, &dirs);
}

#[test]
fn a_mirror_that_fails_in_the_middle_is_left_and_used_again_when_it_is_well() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let usual = direct(&env, &world);
    let failing = Server::new(&env, &world.mirrors, Manner::Fails);
    let out = clone(&env, &world, &failing.url(""), "one", &["--shape", "tip"]);
    assert_eq!(out.status, 0, "{out}");
    assert!(out.stderr.contains("warning: the mirror could not be cloned from: "), "{out}");
    assert!(
        out.stderr.ends_with("from the upstream: the mirror cannot be reached (it could not be cloned from)\n"),
        "{out}"
    );
    assert_eq!(*world.upstream.requests.lock().unwrap(), usual);
    world.forget();
    drop(failing);
    let well = Server::new(&env, &world.mirrors, Manner::Serves);
    let out = clone(&env, &world, &well.url(""), "two", &["--shape", "tip"]);
    assert!(out.stderr.ends_with("from the mirror\n"), "{out}");
    assert_eq!(world.upstream.asked(""), 0);
    nothing_left(&env, &["direct", "one", "two"]);
}

#[test]
fn a_required_commit_is_had_or_the_clone_is_not_made() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let old = env.git(&env.home().join("work"), &["rev-parse", "HEAD~9"]).ok().trim().to_owned();
    let out = clone(&env, &world, &mirror.url(""), "old", &["--shape", "tip", "--require-commit", &old]);
    assert_eq!(out.status, 0, "{out}");
    assert_eq!(mirror.asked("/ensure"), 1);
    assert_eq!(env.git(&env.home().join("old"), &["cat-file", "-t", &old]).ok(), "commit\n");
    assert_eq!(world.upstream.asked(""), 0);
    // One that the mirror has not seen: the upstream is asked.
    fs::write(env.home().join("work/new"), "new").unwrap();
    let bare = env.root().join("upstream/o/n");
    let script = format!(
        "git add new && git commit -q -m new && git push -q '{}' HEAD:main && git rev-parse HEAD",
        bare.display()
    );
    let new = env.run(env.command("sh", &env.home().join("work")).args(["-c", &script])).ok().trim().to_owned();
    let out = clone(&env, &world, &mirror.url(""), "new", &["--shape", "tip", "--require-commit", &new]);
    assert_eq!(out.status, 0, "{out}");
    assert!(
        out.stderr
            .contains(&format!("warning: the mirror could not be cloned from: '{}' has no commit '{new}'", world.url))
            || out.stderr.contains("warning: the mirror could not be cloned from"),
        "{out}"
    );
    assert_eq!(env.git(&env.home().join("new"), &["cat-file", "-t", &new]).ok(), "commit\n");
    let none = "1".repeat(40);
    let out = clone(&env, &world, &mirror.url(""), "none", &["--shape", "tip", "--require-commit", &none]);
    assert_eq!(out.status, 128, "{out}");
    assert!(out.stderr.contains(&format!("error: '{}' has no commit '{none}'\n", world.url)), "{out}");
    nothing_left(&env, &["new", "old"]);
}

#[test]
fn what_is_there_is_not_touched_and_an_upstream_that_fails_leaves_nothing() {
    let env = TestEnv::new();
    let world = World::new(&env);
    fs::create_dir(env.home().join("full-of-it")).unwrap();
    fs::write(env.home().join("full-of-it/mine"), "mine").unwrap();
    let out = clone(&env, &world, "none", "full-of-it", &[]);
    assert_eq!(out.status, 128);
    assert_eq!(
        said(&env, &out),
        "error: '[HOME]/full-of-it' exists already and is not an empty directory\n\
         hint: name another directory, or remove that one\n"
    );
    assert_eq!(world.upstream.asked(""), 0);
    let out = env.sandbox(&env.home(), &["mirror", "clone", &world.upstream.url("o/none"), "--mirror", "none"]);
    assert_eq!(out.status, 128, "{out}");
    assert!(out.stderr.contains("hint: nothing was cloned; the upstream was asked last\n"), "{out}");
    nothing_left(&env, &["full-of-it"]);
    // An empty directory is taken.
    fs::create_dir(env.home().join("empty")).unwrap();
    clone(&env, &world, "none", "empty", &[]).ok();
    nothing_left(&env, &["empty", "full-of-it"]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let env = TestEnv::new();
    let world = World::new(&env);
    // Answers the probe and what git asks first, then hangs: for as long as the test holds the connection.
    let hung = super::kit::hanging();
    let mut command =
        env.sandbox_command(&env.home(), &["mirror", "clone", &world.url, "never", "--mirror", &hung.url]);
    let mut child = sandbox_testkit::Child::spawn(&mut command);
    hung.wait_for_git();
    let pid = rustix::process::Pid::from_raw(child.pid() as i32).unwrap();
    let temp = || {
        let entries = fs::read_dir(env.home()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".git-sandbox-clone.")).count()
    };
    assert_eq!(temp(), 1);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // What a terminal sends goes to git as well; here git learns it by the end of its connection.
    drop(hung);
    assert_eq!(child.wait(std::time::Duration::from_secs(60)), 130);
    nothing_left(&env, &[]);
}

#[test]
fn variables_lead_git_to_a_mirror_that_is_well_and_pushes_go_where_they_went() {
    let env = TestEnv::new();
    let world = World::new(&env);
    let mirror = Server::new(&env, &world.mirrors, Manner::Serves);
    let at = mirror.url("");
    let script = format!(
        "set -e; export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=Other\n\
         eval \"$(git sandbox mirror env '{0}' --mirror {at})\"\n\
         git clone -q '{0}' here; cd here; git config user.name; git config remote.origin.url\n\
         git commit -q --allow-empty -m new; git push -q origin HEAD:pushed",
        world.url
    );
    let out = env.run(env.command("sh", &env.home()).args(["-c", &script]));
    assert_eq!(out.stdout, format!("Other\n{}\n", world.url), "{out}");
    assert_eq!(out.status, 0, "{out}");
    assert!(mirror.asked("POST /") > 0 && world.upstream.asked("upload-pack") == 0, "fetched from the mirror");
    assert_eq!(mirror.asked("receive-pack"), 0, "pushed to the upstream");
    assert_eq!(world.upstream.asked("POST /o/n/git-receive-pack"), 1);
    // In a repository it is about its remotes.
    let lines = env.sandbox(&env.home().join("here"), &["mirror", "env", "--mirror", &at]).ok();
    assert!(lines.contains(&format!("='url.{}.insteadOf'\n", mirror.url(&world.name))), "{lines}");
    // Nothing, and 3: not well, none set, nothing that it has.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung = format!("http://127.0.0.1:{}", hole.local_addr().unwrap().port());
    let other = world.upstream.url("o/other");
    for args in [
        &["mirror", "env", &world.url, "--mirror", &hung, "--probe-ms", "20"][..],
        &["mirror", "env", &world.url],
        &["mirror", "env", &other, "--mirror", &at],
    ] {
        let out = env.sandbox(&env.home(), args);
        assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (3, "", ""), "{out}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    let env = TestEnv::new();
    let url = "https://forge.test/o/n";
    let mut all = String::new();
    let mut ask = |args: &[&str]| {
        let out = env.sandbox(&env.home(), &[&["mirror"], args].concat());
        all.push_str(&format!("$ mirror {}\n{out}\n", args.join(" ")));
    };
    ask(&["clone", url, "d", "--mirror", "ftp://m"]);
    ask(&["clone", url, "d", "--shape", "deep"]);
    ask(&["clone", url, "d", "--require-commit", "HEAD"]);
    ask(&["clone", "https://forge.test/.."]);
    ask(&["clone", url, "d", "--no-fallback"]);
    ask(&["clone", "--", "-x", "d"]);
    ask(&["env"]);
    ask(&["env", "no-url"]);
    ask(&["env", url, "--for", "No"]);
    env.git(&env.home(), &["config", "--global", "sandbox.mirror", "mirror.test"]).ok();
    ask(&["clone", url, "d"]);
    insta::assert_snapshot!(all, @"
    $ mirror clone https://forge.test/o/n d --mirror ftp://m
    ---- stderr
    error: 'ftp://m' is not the address of a mirror
    hint: it is http://HOST:PORT or unix:/PATH (`git config sandbox.mirror`)
    ---- status 129

    $ mirror clone https://forge.test/o/n d --shape deep
    ---- stderr
    error: 'deep' is not a shape of a clone
    hint: it is tip, sparse=DIR,DIR, full or shared
    ---- status 129

    $ mirror clone https://forge.test/o/n d --require-commit HEAD
    ---- stderr
    error: 'HEAD' is not the whole id of a commit
    hint: `git rev-parse REV` prints it
    ---- status 129

    $ mirror clone https://forge.test/..
    ---- stderr
    error: 'https://forge.test/..' has no name for a directory
    hint: name one: `git sandbox mirror clone URL DIR`
    ---- status 129

    $ mirror clone https://forge.test/o/n d --no-fallback
    ---- stderr
    error: cannot clone 'https://forge.test/o/n' from the mirror
    caused by: no mirror is set
    hint: `git config --global sandbox.mirror http://HOST:PORT` names one
    ---- status 128

    $ mirror clone -- -x d
    ---- stderr
    error: neither a URL nor a branch begins with '-'
    ---- status 129

    $ mirror env
    ---- stderr
    error: which upstream?
    hint: `git sandbox mirror env URL`, or in a repository with a remote
    ---- status 129

    $ mirror env no-url
    ---- stderr
    error: 'no-url' is not a URL of an upstream
    caused by: this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path
    ---- status 129

    $ mirror env https://forge.test/o/n --for No
    ---- stderr
    error: 'No' is not the id of a session
    caused by: the id of a session is 1 to 64 of 'a-z', '0-9', '.', '_' and '-', begins with a letter or digit, has no '..' and no '.lock' or '.' at its end
    ---- status 129

    $ mirror clone https://forge.test/o/n d
    ---- stderr
    error: 'mirror.test' is not the address of a mirror
    hint: it is http://HOST:PORT or unix:/PATH (`git config sandbox.mirror`)
    ---- status 128
    ");
}
