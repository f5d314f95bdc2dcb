//! A mirror follows its upstream through everything that upstreams do; they are real servers on loopback.

mod support;

use sandbox_mirror::catalog::State;
use sandbox_mirror::doubt::Doubt;
use sandbox_mirror::event::Trigger;
use sandbox_mirror::refresh::Waited;
use sandbox_testkit::{Faults, GitDaemon, TestEnv, Upstream, begin, push_commit, skip, wait_until};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use support::{Mirror, on_runtime, refs_of, until};

macro_rules! forge {
    ($env:ident, $name:literal) => {{
        if let Some(missing) = Upstream::missing() {
            skip!("{missing}");
        }
        Upstream::start(&$env, $name)
    }};
}

fn clean(env: &TestEnv, dir: &Path) {
    let fsck = env.git(dir, &["fsck", "--full", "--strict"]);
    assert_eq!(fsck.status, 0, "{}", fsck.stderr);
}

fn has(env: &TestEnv, dir: &Path, oid: &str) -> bool {
    // The directory may be away just now.
    let at = format!("--git-dir={}", dir.display());
    env.git(env.root(), &[&at, "cat-file", "-e", oid]).status == 0
}

#[test]
fn branches_come_move_and_go() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "o/r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    let first = push_commit(&work, &bare, &["refs/heads/main", "refs/heads/a"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("forge.test/o/r", &forge.http("o/r.git"), |_| {});
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.catalog.now().entry(&name).unwrap().state, State::Ready);

        // Nothing new: one question, no fetch.
        let before = forge.asked("git-upload-pack");
        mirror.fresh(&name).await;
        assert_eq!(forge.asked("git-upload-pack") - before, 2, "{:#?}", forge.log());

        // Forward, a tag, and `a` becomes `a/b`.
        env.git(&bare, &["update-ref", "-d", "refs/heads/a"]).ok();
        push_commit(&work, &bare, &["refs/heads/main", "refs/heads/a/b", "refs/tags/v1"], "two");
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.git(&env, &name, &["for-each-ref", "refs/keep"]), "", "one is part of two");

        // A force-push, and back from `a/b` to `a`.
        work.git(&["checkout", "--quiet", "--orphan", "other"]).ok();
        let left = work.id("main");
        env.git(&bare, &["update-ref", "-d", "refs/heads/a/b"]).ok();
        env.git(&bare, &["update-ref", "-d", "refs/tags/v1"]).ok();
        let forced = push_commit(&work, &bare, &["refs/heads/main", "refs/heads/a"], "forced");
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        let pins = mirror.git(&env, &name, &["for-each-ref", "--format=%(refname)", "refs/keep"]);
        assert_eq!(pins, format!("refs/keep/{left}\n"));
        assert!(has(&env, &mirror.dir(&name), &first), "what was served once stays");

        // The default branch gets another name.
        env.git(&bare, &["branch", "-m", "main", "trunk"]).ok();
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert!(mirror.refs(&env, &name).ends_with("HEAD refs/heads/trunk\n"));

        // Everything goes; pins stay.
        for branch in ["refs/heads/trunk", "refs/heads/a"] {
            env.git(&bare, &["update-ref", "-d", branch]).ok();
        }
        mirror.fresh(&name).await;
        assert!(mirror.refs(&env, &name).starts_with("HEAD "));
        assert!(has(&env, &mirror.dir(&name), &forced) && has(&env, &mirror.dir(&name), &left));
        clean(&env, &mirror.dir(&name));
        assert_eq!(std::fs::read_dir(mirror.layout.tmp()).unwrap().count(), 0);
        assert!(mirror.seen.refreshes().iter().all(|refresh| refresh.error.is_none()));
    });
}

#[test]
fn scratch_refs_are_never_touched() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
    // An upstream may have refs of these names: they are not the mirror's.
    env.git(&bare, &["update-ref", "refs/agents/s1", &tip]).ok();
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        mirror.git(&env, &name, &["update-ref", "refs/agents/s42/wip", &tip]);
        mirror.git(&env, &name, &["update-ref", "refs/base/s42", &tip]);
        env.git(&bare, &["update-ref", "-d", "refs/heads/main"]).ok();
        mirror.fresh(&name).await;
        let all = mirror.git(&env, &name, &["for-each-ref", "--format=%(refname)"]);
        assert_eq!(all, format!("refs/agents/s42/wip\nrefs/base/s42\nrefs/keep/{tip}\n"));
    });
}

#[test]
fn an_empty_upstream_may_be_of_either_hash_later() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha256");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), "HEAD refs/heads/main\n");
        let work = env.repo_at("work");
        std::fs::create_dir_all(work.dir()).unwrap();
        work.git(&["init", "--quiet", "--object-format=sha256"]).ok();
        let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
        assert_eq!(tip.len(), 64);
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.status(&name).format, sandbox_git::ObjectFormat::Sha256);
    });
}

#[test]
fn fifteen_thousand_deleted_refs_are_one_step() {
    let env = TestEnv::new();
    let daemon = GitDaemon::start(&env);
    let bare = daemon.init(&env, "r.git");
    let work = env.repo_at("work");
    begin(&work);
    let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
    let refs: String = (0..15_000).map(|i| format!("create refs/heads/x/{i} {tip}\n")).collect();
    let mut command = env.command(&env.git_used().path, &bare);
    env.run_with_input(command.args(["update-ref", "--stdin"]), refs.as_bytes()).ok();
    env.git(&bare, &["pack-refs", "--all"]).ok();
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &daemon.url("r.git"), |_| {});
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        let mut command = env.command(&env.git_used().path, &bare);
        let refs: String = (0..15_000).map(|i| format!("delete refs/heads/x/{i}\n")).collect();
        env.run_with_input(command.args(["update-ref", "--stdin"]), refs.as_bytes()).ok();
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.seen.refreshes().last().unwrap().changed, 15_000);
    });
}

#[test]
fn what_fails_is_named_and_the_mirror_stays() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        let served = mirror.refs(&env, &name);
        push_commit(&work, &bare, &["refs/heads/main"], &"much ".repeat(20_000));
        let url = forge.http("r.git/");
        for (faults, said) in [
            (
                Faults { status: Some(500), ..Faults::default() },
                format!(
                    "the upstream cannot be reached: unable to access '{url}': The requested URL returned error: 500"
                ),
            ),
            (
                Faults { status: Some(404), ..Faults::default() },
                "the upstream does not let us read it (404)".to_owned(),
            ),
            (
                Faults { auth: Some("u:p".to_owned()), ..Faults::default() },
                "the upstream does not let us read it (401)".to_owned(),
            ),
            (
                Faults { redirect: Some("https://127.0.0.2:1/x".to_owned()), ..Faults::default() },
                "the upstream cannot be reached: ".to_owned(),
            ),
            (
                Faults { redirect: Some("file:///etc".to_owned()), ..Faults::default() },
                "the upstream says that it has moved to 'file:///etc/info/refs'".to_owned(),
            ),
            (
                Faults { redirect: Some(forge.http("r.git")), ..Faults::default() },
                "the upstream says that it has moved to 'a circle of redirects'".to_owned(),
            ),
            (
                Faults { cut: Some(100), only: Some("git-upload-pack".to_owned()), ..Faults::default() },
                "the upstream cannot be reached: ".to_owned(),
            ),
        ] {
            forge.faults(&faults);
            let told = mirror.fails(&name).await;
            assert!(told.starts_with(&said), "{faults:?}\n{told}\n{said}");
            assert_eq!(mirror.refs(&env, &name), served);
            assert_eq!(mirror.status(&name).error.as_deref(), Some(told.as_str()));
        }
        assert_eq!(mirror.catalog.now().entry(&name).unwrap().state, State::Ready);
        forge.faults(&Faults::default());
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.status(&name).error, None);
        clean(&env, &mirror.dir(&name));
        assert_eq!(std::fs::read_dir(mirror.layout.tmp()).unwrap().count(), 0);
    });
}

#[test]
fn a_pack_that_breaks_off_leaves_nothing() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        work.write("big", (0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        work.git(&["add", "big"]).ok();
        let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
        // The answers to the questions are short; the pack is not.
        forge.faults(&Faults { cut: Some(4096), ..Faults::default() });
        mirror.fails(&name).await;
        assert!(!has(&env, &mirror.dir(&name), &tip));
        forge.faults(&Faults::default());
        mirror.fresh(&name).await;
        assert!(has(&env, &mirror.dir(&name), &tip));
    });
}

#[test]
fn who_asks_for_patience_is_not_asked_again() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    forge.init(&env, "r.git", "sha1");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        forge.faults(&Faults { status: Some(429), retry_after: Some(3000), ..Faults::default() });
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        // Whether this is its first refresh or the one that its registration began.
        mirror.refresh(&name).await;
        wait_until("the answer was noted", Duration::from_secs(60), || mirror.status(&name).error.is_some());
        let first = mirror.status(&name).error.unwrap();
        assert_eq!(first, "the upstream asks for patience (3000 s)");
        let asked = forge.log().len();
        forge.faults(&Faults::default());
        let Waited::Patience(left) = mirror.refresh(&name).await else { panic!("it was asked") };
        assert!(left > Duration::from_secs(2000));
        assert_eq!(forge.log().len(), asked);
    });
}

#[test]
fn who_asks_while_the_host_asks_for_patience_is_told() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    forge.init(&env, "r.git", "sha1");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let slow = 1000;
        forge.faults(&Faults { status: Some(429), retry_after: Some(3000), delay_ms: slow, ..Faults::default() });
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        let later = async {
            while forge.log().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            mirror.refresh(&name).await
        };
        let both = async { tokio::join!(mirror.refresh(&name), later) };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        let Ok((first, second)) = both else { panic!("{} {:?}", mirror.seen.text(), forge.log()) };
        for told in [first, second] {
            match told {
                Waited::Failed(trouble) => {
                    assert!(trouble.to_string().starts_with("the upstream asks for patience ("), "{trouble}");
                }
                // So late that it was not asked for any more.
                Waited::Patience(left) => assert!(left > Duration::from_secs(2000)),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_moved_repository_is_followed_on_its_host() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "new.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    forge.faults(&Faults { redirect: Some(forge.http("new.git")), only: Some("/old".to_owned()), ..Faults::default() });
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/old", &forge.http("old.git"), |_| {});
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        assert_eq!(mirror.status(&name).moved_to, Some(forge.http("new.git")));
    });
}

#[test]
fn requests_together_are_one_refresh() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        let before = mirror.seen.refreshes().len();
        forge.faults(&Faults { delay_ms: 500, ..Faults::default() });
        let all = (0..50).map(|_| {
            let (refresher, name) = (mirror.refresher.clone(), name.clone());
            tokio::spawn(async move { refresher.refresh(&name, BTreeSet::new(), Trigger::Ensure).await })
        });
        for one in all.collect::<Vec<_>>() {
            assert!(matches!(one.await.unwrap(), Waited::Fresh(_)));
        }
        let runs = mirror.seen.refreshes().len() - before;
        assert!((1..=2).contains(&runs), "{runs}");
    });
}

#[test]
fn a_commit_that_nothing_advertises_can_be_asked_for() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    let pull = push_commit(&work, &bare, &["refs/pull/1/head"], "two");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        assert!(!has(&env, &mirror.dir(&name), &pull));
        let nowhere = "ab".repeat(20);
        let wanted = [pull.parse().unwrap(), nowhere.parse().unwrap()].into();
        let Waited::Fresh(done) = mirror.refresher.refresh(&name, wanted, Trigger::Ensure).await else { panic!() };
        assert_eq!(done.refused, [nowhere.parse().unwrap()].into());
        assert!(has(&env, &mirror.dir(&name), &pull));
        assert!(mirror.git(&env, &name, &["for-each-ref", "refs/keep"]).contains(&pull));
    });
}

/// As an administrator does by hand: what no ref names is thrown away, just before refs name what came.
#[test]
fn a_repack_by_hand_takes_nothing_that_comes_in() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let script = "for arg; do case $arg in --git-dir=*) dir=$arg ;; esac; done
            case \"$dir $*\" in */mirrors/*update-ref*) \"$git\" \"$dir\" repack -adq && : >\"$0.ran\" ;; esac";
        let mirror = Mirror::start_before(&env, script);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        push_commit(&work, &bare, &["refs/heads/main"], "two");
        mirror.fresh(&name).await;
        assert!(env.root().join("git-before.ran").exists());
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        clean(&env, &mirror.dir(&name));
        let kept = std::fs::read_dir(mirror.dir(&name).join("objects/pack")).unwrap().flatten();
        assert_eq!(kept.filter(|file| file.path().extension().is_some_and(|kind| kind == "keep")).count(), 0);
    });
}

#[test]
fn a_corrupt_mirror_is_set_aside_and_cloned_again() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        lose(&mirror.dir(&name));
        push_commit(&work, &bare, &["refs/heads/main"], "two");
        let told = mirror.fails(&name).await;
        assert!(told.starts_with("the mirror is corrupt: "), "{told}");
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        clean(&env, &mirror.dir(&name));
        assert_eq!(std::fs::read_dir(mirror.layout.root().join("quarantine")).unwrap().count(), 1);
    });
}

/// Takes all packs away.
fn lose(dir: &Path) {
    for pack in std::fs::read_dir(dir.join("objects/pack")).unwrap().flatten() {
        std::fs::remove_file(pack.path()).unwrap();
    }
}

/// Refs name what is not there, and the upstream does not change: nothing but a client that wants it can tell.
#[test]
fn a_tip_that_is_gone_comes_back_by_itself() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let doubt = |name| mirror.catalog.now().entry(name).unwrap().live.doubt(Doubt::Tips);
        let healed = |name| mirror.status(name).state == State::Ready && has(&env, &mirror.dir(name), &tip);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        lose(&mirror.dir(&name));
        doubt(&name);
        until("it was cloned again", || healed(&name)).await;
        let ended: Vec<_> = mirror.seen.refreshes().iter().map(|one| (one.trigger, one.outcome)).collect();
        assert!(ended.contains(&(Trigger::Doubt, "corrupt")), "{ended:?}");
        clean(&env, &mirror.dir(&name));
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));

        // While the upstream is away, what is left is served; then the doubt is not forgotten.
        let name = mirror.add("h/other", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        forge.faults(&Faults { status: Some(502), ..Faults::default() });
        lose(&mirror.dir(&name));
        doubt(&name);
        until("it was asked for", || mirror.status(&name).error.is_some()).await;
        assert_eq!(mirror.status(&name).state, State::Ready);
        forge.faults(&Faults::default());
        mirror.refresh(&name).await;
        until("it was cloned again", || healed(&name)).await;
        assert_eq!(std::fs::read_dir(mirror.layout.root().join("quarantine")).unwrap().count(), 2);
    });
}

/// Every tip is there, and something below is not.
#[test]
fn an_object_that_is_gone_comes_back_by_itself() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    let blob = work.git(&["rev-parse", "HEAD:file.txt"]).ok().trim().to_owned();
    on_runtime(async {
        let mirror = Mirror::start(&env, "[maintenance]\ngeometric_every = '1s'\nwindow = 'always'\n", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        let dir = mirror.dir(&name);
        for pack in std::fs::read_dir(dir.join("objects/pack")).unwrap().flatten() {
            let away = env.root().join(pack.file_name());
            std::fs::rename(pack.path(), &away).unwrap();
            if away.extension().is_some_and(|kind| kind == "pack") {
                let mut unpack = env.command(&env.git_used().path, &dir);
                env.run_with_input(unpack.args(["unpack-objects", "-q"]), &std::fs::read(away).unwrap()).ok();
            }
        }
        std::fs::remove_file(dir.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
        let _maintained = mirror.maintained(Duration::from_secs(86_400));
        mirror.catalog.now().entry(&name).unwrap().live.doubt(Doubt::Objects);
        until("it was cloned again", || has(&env, &dir, &blob)).await;
        clean(&env, &dir);
    });
}

#[test]
fn objects_that_git_refuses_do_not_come_in() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        let served = mirror.refs(&env, &name);
        let blob = work.git(&["hash-object", "-w", "file.txt"]).ok().trim().to_owned();
        let mut mktree = env.command(&env.git_used().path, work.dir());
        let entry = format!("100644 blob {blob}\t.git\n");
        let tree = env.run_with_input(mktree.arg("mktree"), entry.as_bytes()).ok().trim().to_owned();
        let evil = work.git(&["commit-tree", "-m", "evil", &tree]).ok().trim().to_owned();
        work.git(&["push", "--quiet", bare.to_str().unwrap(), &format!("{evil}:refs/heads/evil")]).ok();
        let told = mirror.fails(&name).await;
        assert!(told.starts_with("the upstream sent objects that are refused: "), "{told}");
        assert_eq!(mirror.refs(&env, &name), served);
        assert!(!has(&env, &mirror.dir(&name), &evil) && !has(&env, &mirror.dir(&name), &tree));
    });
}
