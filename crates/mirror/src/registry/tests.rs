use super::plan::{Change, Removal, of_file};
use super::*;
use crate::catalog;
use crate::identity::TokenHash;
use sandbox_testkit::TestEnv;
use std::time::SystemTime;

fn spec(url: &str) -> Spec {
    Spec::of(Upstream::parse(url).unwrap())
}

fn put(url: &str) -> Change {
    Change::Put(spec(url), Origin::Api)
}

fn open(dir: &std::path::Path) -> (Registry, catalog::Reader) {
    let layout = Layout::new(dir);
    layout.create().unwrap();
    let (publisher, reader) = catalog::channel(Catalog::default());
    (Registry::open(layout.registry(), layout, publisher, Vec::new()).unwrap(), reader)
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.repos.keys().map(RepoName::as_str).collect()
}

#[test]
fn what_was_registered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, reader) = open(dir.path());
    let mut full = spec("git@h:o/b");
    full.credential = Some("gh".to_owned());
    full.interval_ms = Some(7000);
    full.refs = vec![Pattern::parse("refs/heads/*").unwrap()];
    full.private = true;
    registry.apply(vec![put("https://h/o/a"), Change::Put(full, Origin::File)]).unwrap();
    registry.status(&"h/o/a".parse().unwrap(), |status| status.state = State::Ready).unwrap();
    registry.pause(&"h/o/b".parse().unwrap(), true).unwrap();
    let session = Session {
        id: "s1".parse().unwrap(),
        repos: [("h/o/a".parse().unwrap(), None)].into(),
        token: Some(TokenHash::of(b"t")),
        expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000)),
    };
    registry.put_session(session.clone()).unwrap();
    assert_eq!(reader.now().entry(&"h/o/a".parse().unwrap()).unwrap().state, State::Ready);
    let before = registry.now();
    drop(registry);

    let (registry, reader) = open(dir.path());
    let after = registry.now();
    assert_eq!(before.repos, after.repos);
    assert_eq!(after.sessions[&session.id].as_ref(), &session);
    assert!(registry.trouble().is_none());
    assert_eq!(reader.now().entries().count(), 2);
    assert!(registry.end_session(&session.id).unwrap() && !registry.end_session(&session.id).unwrap());
}

#[test]
fn the_file_and_the_api_are_reconciled_by_the_same_plan() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _reader) = open(dir.path());
    registry.apply(vec![put("https://h/api")]).unwrap();
    registry.apply(of_file(&registry.now(), vec![spec("https://h/one"), spec("https://h/two")])).unwrap();
    assert_eq!(names(&registry.now()), ["h/api", "h/one", "h/two"]);
    let again = registry.apply(of_file(&registry.now(), vec![spec("https://h/one"), spec("https://h/two")])).unwrap();
    assert!(again.is_empty());
    let mut changed = spec("https://h/one");
    changed.private = true;
    let plan = registry.apply(of_file(&registry.now(), vec![changed])).unwrap();
    assert_eq!((plan.put.len(), plan.removed.len()), (1, 1));
    assert_eq!(names(&registry.now()), ["h/api", "h/one"]);
    assert!(registry.record(&"h/one".parse().unwrap()).unwrap().spec.private);
}

#[test]
fn what_cannot_be_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _reader) = open(dir.path());
    registry.apply(vec![put("https://h/a"), Change::Put(spec("https://h/f"), Origin::File)]).unwrap();
    let refused = |changes: Vec<Change>| {
        let error = registry.apply(changes).unwrap_err();
        let RegistryError::Refused(why) = &error else { panic!("{error}") };
        format!("{error}\nhint: {}", why.hint())
    };
    let other = Spec { name: "h/a".parse().unwrap(), ..spec("https://elsewhere/a") };
    assert_eq!(
        refused(vec![put("https://h/new"), Change::Put(other, Origin::Api)]),
        "'h/a' is registered already, from 'https://h/a'\nhint: remove it first, or give the new one a `--name`"
    );
    assert_eq!(
        refused(vec![Change::Remove("h/x".parse().unwrap(), Origin::Api)]),
        "no repository named 'h/x'\nhint: `git sandbox mirror ls` shows them all"
    );
    assert_eq!(
        refused(vec![Change::Remove("h/f".parse().unwrap(), Origin::Api)]),
        "'h/f' is in the configuration file\nhint: change it there, and send the service SIGHUP"
    );
    assert_eq!(names(&registry.now()), ["h/a", "h/f"]);
}

#[test]
fn an_older_database_is_brought_forward_and_a_newer_one_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.sqlite");
    let old = schema::older(&path, 1);
    old.execute("INSERT INTO repo (name, url, origin) VALUES ('h/a', 'https://h/a', 'api')", []).unwrap();
    drop(old);
    let (registry, _reader) = open(dir.path());
    assert_eq!(names(&registry.now()), ["h/a"]);
    registry.apply(vec![put("https://h/b")]).unwrap();
    drop(registry);

    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.execute_batch("ALTER TABLE repo ADD COLUMN colour TEXT").unwrap();
    newer.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    newer.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(newer);
    let before = std::fs::read(&path).unwrap();
    let (registry, reader) = open(dir.path());
    assert_eq!(names(&registry.now()), ["h/a", "h/b"]);
    assert_eq!(reader.now().entries().count(), 2);
    let error = registry.apply(vec![put("https://h/c")]).unwrap_err().to_string();
    assert_eq!(error, "the registry has version 3, and this program writes version 2: it is only read");
    assert_eq!(registry.trouble(), Some(error.as_str()));
    // What is found out about a repository is known all the same.
    registry.status(&"h/a".parse().unwrap(), |status| status.state = State::Ready).unwrap();
    assert_eq!(reader.now().entry(&"h/a".parse().unwrap()).unwrap().state, State::Ready);
    drop(registry);
    assert!(std::fs::read(&path).unwrap() == before, "it was written");
}

#[test]
fn a_corrupt_database_is_set_aside_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _reader) = open(dir.path());
    registry.apply(vec![put("https://h/a"), put("https://h/b")]).unwrap();
    registry.status(&"h/a".parse().unwrap(), |status| status.state = State::Ready).unwrap();
    drop(registry);
    let path = dir.path().join("registry.sqlite");
    for tail in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{tail}", path.display()));
    }
    std::fs::write(&path, b"this is no database, and it is longer than a header of one hundred bytes. ".repeat(4))
        .unwrap();
    let (registry, reader) = open(dir.path());
    let said = registry.trouble().unwrap();
    assert!(
        said.starts_with("the registry was corrupt (") && said.ends_with("made again from registry.json"),
        "{said}"
    );
    assert_eq!(names(&registry.now()), ["h/a", "h/b"]);
    assert_eq!(reader.now().entry(&"h/a".parse().unwrap()).unwrap().state, State::Ready);
    assert!(rows::has(&path, "h/b"));
    let aside = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert!(aside.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("sqlite.corrupt-")));
}

#[test]
fn while_it_is_locked_what_was_published_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, reader) = open(dir.path());
    registry.apply(vec![put("https://h/a")]).unwrap();
    let other = rusqlite::Connection::open(dir.path().join("registry.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = registry.apply(vec![put("https://h/b")]).unwrap_err().to_string();
    assert_eq!(error, "the registry is locked by another program");
    assert_eq!(reader.now().entries().count(), 1);
    registry.status(&"h/a".parse().unwrap(), |status| status.state = State::Ready).unwrap();
    assert_eq!(reader.now().entry(&"h/a".parse().unwrap()).unwrap().state, State::Ready);
    other.execute_batch("ROLLBACK").unwrap();
    registry.apply(vec![put("https://h/b")]).unwrap();
    assert_eq!(reader.now().entries().count(), 2);
}

#[test]
fn scratch_refs_keep_a_repository() {
    let env = TestEnv::new();
    let git = Git::new(sandbox_git::HostEnv { path: env.path(), ..Default::default() }).unwrap();
    let layout = Layout::new(env.root().join("store"));
    layout.create().unwrap();
    let name: RepoName = "h/a".parse().unwrap();
    let upstream = Upstream::parse("https://h/a").unwrap();
    let repo = MirrorRepo::create(&git, &layout.mirror(&name), ObjectFormat::Sha1, &upstream).unwrap();
    let tree = repo.git(&git).args(["hash-object", "-w", "-t", "tree", "--stdin"]).line().unwrap();
    let commit = repo
        .git(&git)
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@a")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@a")
        .args(["commit-tree", "-m", "x", &tree])
        .line()
        .unwrap();
    repo.git(&git).args(["update-ref", "refs/agents/s42/wip", &commit]).run().unwrap();
    std::fs::create_dir_all(layout.scratch(&name, &"s43".parse().unwrap())).unwrap();

    let removal = Removal::look(&git, &layout, &name).unwrap();
    assert_eq!(
        removal.apply(&layout).unwrap_err().to_string(),
        "'h/a' has scratch refs that are nowhere else: refs/agents/s42/wip, s43"
    );
    assert!(removal.to_string().contains("  lost for good: s43\n"));
    repo.git(&git).args(["update-ref", "-d", "refs/agents/s42/wip"]).run().unwrap();
    std::fs::remove_dir_all(layout.scratch_dir(&name)).unwrap();
    Removal::look(&git, &layout, &name).unwrap().apply(&layout).unwrap();
    assert!(!repo.dir().exists());
    assert_eq!(std::fs::read_dir(layout.tmp()).unwrap().count(), 0);
}

use crate::repo::MirrorRepo;
use sandbox_git::Git;
