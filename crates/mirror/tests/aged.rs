//! What sessions pushed, in a store that grows old: it goes after its time, and loses nothing before that.

mod support;

use sandbox_mirror::event::Event;
use sandbox_mirror::identity::SessionId;
use sandbox_mirror::maintain::Task;
use sandbox_mirror::name::RepoName;
use sandbox_mirror::scratch::held::{Expired, Holdings};
use sandbox_testkit::{Repo, TestEnv, begin, push_commit};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use support::{Mirror, on_runtime};

const DAY: Duration = Duration::from_secs(86_400);

/// A mirror of an upstream on disk, and a clone of it to work in.
fn stage<'e>(env: &'e TestEnv, mirror: &Mirror) -> (RepoName, PathBuf, Repo<'e>) {
    let bare = env.root().join("upstream.git");
    env.git(env.root(), &["init", "-q", "--bare", "-b", "main", bare.to_str().unwrap()]).ok();
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    (mirror.add("forge.test/o/r", &format!("file://{}", bare.display()), |_| {}), bare, work)
}

/// A session's repository over the mirror, as the service makes it, with this pushed to it: a pack that has only what
/// the mirror has not.
fn pushed(env: &TestEnv, mirror: &Mirror, name: &RepoName, id: &str, from: &Path) -> PathBuf {
    let session: SessionId = id.parse().unwrap();
    let dir = mirror.layout.scratch(name, &session);
    env.git(env.root(), &["init", "-q", "--bare", dir.to_str().unwrap()]).ok();
    let line = format!("{}\n", mirror.dir(name).join("objects").display());
    std::fs::write(dir.join("objects/info/alternates"), line).unwrap();
    env.git(&dir, &["config", "receive.unpackLimit", "1"]).ok();
    env.git(from, &["push", "-q", dir.to_str().unwrap(), &format!("HEAD:refs/agents/{id}")]).ok();
    dir
}

fn has(env: &TestEnv, dir: &Path, oid: &str) -> bool {
    env.git(dir, &["cat-file", "-e", oid]).status == 0
}

#[test]
fn what_nobody_pushes_to_any_more_goes_and_nothing_else_does() {
    let env = TestEnv::new();
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let (name, _, work) = stage(&env, &mirror);
        mirror.fresh(&name).await;
        let work = work.dir();
        let (old, new) = (pushed(&env, &mirror, &name, "old", work), pushed(&env, &mirror, &name, "new", work));
        let mut find = env.command("find", &old);
        env.run(find.args([".", "-exec", "touch", "-d", "15 days ago", "{}", "+"])).ok();
        let holdings = Holdings::new(mirror.git.clone(), mirror.layout.clone());
        let expire = |ttl| holdings.expire(&name, ttl, SystemTime::now()).unwrap();
        assert_eq!(expire(16 * DAY), []);
        let gone = Expired { session: "old".parse().unwrap(), refs: 1, saved: false };
        assert_eq!(expire(14 * DAY), [gone]);
        assert_eq!((old.exists(), new.exists()), (false, true));
        assert_eq!(expire(14 * DAY), []);
        // The service does it by itself, and says so.
        let later = pushed(&env, &mirror, &name, "later", work);
        let mut find = env.command("find", &later);
        env.run(find.args([".", "-exec", "touch", "-d", "15 days ago", "{}", "+"])).ok();
        let maintained = mirror.maintained(14 * DAY);
        let told = || mirror.seen.all().iter().any(|event| matches!(event, Event::Expired { .. }));
        support::until("the service takes it away", told).await;
        drop(maintained);
        assert_eq!((later.exists(), new.exists()), (false, true));
    });
}

#[test]
fn what_a_mirror_prunes_stays_with_who_stands_on_it() {
    let env = TestEnv::new();
    on_runtime(async {
        let mirror = Mirror::start(&env, "", &[]);
        let (name, bare, work) = stage(&env, &mirror);
        let base = push_commit(&work, &bare, &["refs/heads/main"], "base");
        mirror.fresh(&name).await;
        let made = work.commit("made", "by a session\n");
        let own = pushed(&env, &mirror, &name, "s1", work.dir());
        let packed = |dir: &Path| {
            let list = env.git(dir, &["count-objects", "-v"]).ok();
            list.lines().find_map(|line| line.strip_prefix("in-pack: ")).unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(packed(&own), 3, "a commit, a tree, a file");

        // The upstream goes back behind what the session stands on, and the mirror forgets that it was served.
        work.git(&["reset", "-q", "--hard", "HEAD~2"]).ok();
        push_commit(&work, &bare, &["refs/heads/main"], "another");
        mirror.fresh(&name).await;
        mirror.git(&env, &name, &["update-ref", "-d", &format!("refs/keep/{base}")]);
        let (maintainer, _stop) = mirror.maintained(14 * DAY);
        maintainer.run(&name, Task::Full).await.unwrap();
        let after = packed(&own);
        assert!(after > 3, "the session has its own copy: {after}");
        let holdings = Holdings::new(mirror.git.clone(), mirror.layout.clone());
        assert_eq!(holdings.settle(&name).unwrap(), 0, "once is enough");

        // Fourteen days later.
        let dir = mirror.dir(&name);
        env.git(&dir, &["repack", "-q", "-a", "-d"]).ok();
        env.git(&dir, &["prune", "--expire=now"]).ok();
        assert!(!has(&env, &dir, &base), "the mirror has lost it");
        assert!(has(&env, &own, &base) && has(&env, &own, &made));
        env.git(&own, &["fsck", "--no-dangling"]).ok();
        let clone = env.root().join("clone");
        env.git(env.root(), &["init", "-q", clone.to_str().unwrap()]).ok();
        env.git(&clone, &["fetch", "-q", &format!("file://{}", own.display()), "refs/agents/s1"]).ok();
        assert_eq!(env.git(&clone, &["show", "FETCH_HEAD:made"]).ok(), "by a session\n");
    });
}
