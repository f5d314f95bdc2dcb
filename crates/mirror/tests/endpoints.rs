//! What clients, forges and the administrator ask of a service that runs: ensure, webhooks, the admin API.

mod support;

use sandbox_mirror::admin::{Admin, Failure, Granted, Removed, Repo, Repos};
use sandbox_mirror::catalog::State;
use sandbox_mirror::config::Config;
use sandbox_mirror::credential::Keeper;
use sandbox_mirror::desk::Desk;
use sandbox_mirror::ensure::{Ensure, Ensured};
use sandbox_mirror::event::Trigger;
use sandbox_mirror::identity::Gate;
use sandbox_mirror::maintain::{Maintainer, Packs};
use sandbox_mirror::serve::Settings;
use sandbox_mirror::serve::listen::{Listener, Socket, Speaks};
use sandbox_mirror::service::{self, Service};
use sandbox_mirror::webhook::Hooks;
use sandbox_testkit::{Faults, TestEnv, Upstream, begin, push_commit, skip};
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Mirror, on_runtime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

struct Running {
    mirror: Mirror,
    service: Service,
    http: SocketAddr,
    admin: PathBuf,
}

const WEBHOOK: &str = "[webhook]\nsecret = 'env:HOOK'\n";

async fn running(env: &TestEnv) -> Running {
    let mirror = Mirror::start(env, "", &[]);
    let config = Config::parse(WEBHOOK, false).unwrap();
    let keeper = Keeper::new([("HOOK".to_owned(), "s3cret".to_owned())].into(), env.path());
    let webhook = config.webhook.map(|webhook| (webhook, keeper));
    let desk = Desk::new(mirror.git.clone(), mirror.layout.clone(), mirror.registry.clone(), webhook);
    let api = Arc::new(Admin::new(desk.clone(), Vec::new()));
    let service = Service::start(service::Parts {
        git: mirror.git.clone(),
        program: "/nowhere".into(),
        layout: mirror.layout.clone(),
        catalog: mirror.catalog.clone(),
        observer: mirror.seen.clone(),
        serve: Settings::default(),
        cache: sandbox_mirror::cache::Settings::default(),
        scratch: sandbox_mirror::scratch::Settings::default(),
        endpoints: vec![api.clone(), Arc::new(Ensure(desk.clone())), Arc::new(Hooks(desk.clone()))],
    })
    .unwrap();
    desk.running(mirror.refresher.clone(), service.clone());
    api.maintained_by(Maintainer::start(
        mirror.refresher.clone(),
        config.maintenance,
        config.scratch.ttl,
        service.stopping(),
    ));
    let socket = Socket::tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let http = socket.address().unwrap();
    service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Anyone, tls: None });
    let admin = mirror.layout.run().join("admin.sock");
    let socket = Socket::unix(&admin, 0o600).unwrap();
    service.listen(Listener { socket, speaks: Speaks::Http, gate: Gate::Admin, tls: None });
    Running { mirror, service, http, admin }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    more: &str,
    body: &str,
) -> (u16, String) {
    let head = format!(
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

impl Running {
    async fn http(&self, request: &str, more: &str, body: &str) -> (u16, String) {
        exchange(TcpStream::connect(self.http).await.unwrap(), request, more, body).await
    }

    async fn api<T: DeserializeOwned>(&self, request: &str, body: &str) -> (u16, T) {
        let (status, body) = at(&self.admin, request, body).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    async fn ensure(&self, repo: &str, body: &str) -> Ensured {
        let (status, answer) = self.http(&format!("POST /{repo}/ensure"), "", body).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

async fn at(socket: &Path, request: &str, body: &str) -> (u16, String) {
    exchange(UnixStream::connect(socket).await.unwrap(), request, "", body).await
}

#[test]
fn ensure_waits_for_what_is_not_there_and_for_nothing_else() {
    if let Some(missing) = Upstream::missing() {
        skip!("{missing}");
    }
    let env = TestEnv::new();
    let forge = Upstream::start(&env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    let one = push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let running = running(&env).await;
        let name = running.mirror.add("h/o/r", &forge.http("r.git"), |_| {});
        running.mirror.fresh(&name).await;
        let asked = forge.log().len();
        let there = running.ensure("h/o/r", &format!(r#"{{"refs":{{"main":"{one}"}},"commits":["{one}"]}}"#)).await;
        assert_eq!((there.resolved["main"].to_string(), there.fetched), (one.clone(), false));
        assert!(there.missing.is_empty() && there.age_ms.is_some());
        assert_eq!(forge.log().len(), asked, "what is there is not asked for");

        let two = push_commit(&work, &bare, &["refs/heads/main"], "two");
        let newest = running.ensure("h/o/r.git", r#"{"refs":{"main":"","gone":""}}"#).await;
        assert_eq!((newest.resolved["main"].to_string(), newest.fetched), (two, true));
        assert_eq!(newest.missing, ["gone"]);

        let pull = push_commit(&work, &bare, &["refs/pull/7/head"], "three");
        let got = running.ensure("h/o/r", &format!(r#"{{"commits":["{pull}","{}"]}}"#, "cd".repeat(20))).await;
        assert_eq!(got.missing, ["cd".repeat(20)]);

        forge.faults(&Faults { delay_ms: 3_000, ..Faults::default() });
        let late = running.ensure("h/o/r", r#"{"refs":{"main":""},"timeout_ms":200}"#).await;
        assert_eq!(late.missing, ["main"], "what it is upstream now is not known");
        assert_eq!(late.error.as_deref(), Some("the upstream took longer than 200 ms"));

        // What may not be read is not there.
        let hidden = running.mirror.add("h/hidden", &forge.http("r.git"), |spec| spec.private = true);
        for name in [hidden.as_str(), "h/nothing", "h/../x"] {
            let (status, said) = running.http(&format!("POST /{name}/ensure"), "", "{}").await;
            assert_eq!((status, said.as_str()), (404, "no such repository\n"));
        }
        let (status, said) = running.http("POST /h/o/r/ensure", "", r#"{"refs":{"refs/agents/x":""}}"#).await;
        assert_eq!((status, said.as_str()), (400, "'refs/agents/x' is neither a branch nor a tag\n"));
        forge.faults(&Faults::default());
        running.service.stop(Duration::from_secs(1)).await;
    });
}

#[test]
fn a_webhook_is_seen_at_once_and_only_with_its_secret() {
    if let Some(missing) = Upstream::missing() {
        skip!("{missing}");
    }
    let env = TestEnv::new();
    let forge = Upstream::start(&env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let running = running(&env).await;
        let name = running.mirror.add("h/o/r", &forge.http("r.git"), |_| {});
        running.mirror.fresh(&name).await;
        let two = push_commit(&work, &bare, &["refs/heads/main"], "two");
        let body = format!(r#"{{"project":{{"git_http_url":"{}"}}}}"#, forge.http("r.git"));
        for (path, token, status) in
            [("gitlab", "wrong", 401), ("gitlab", "", 401), ("github", "s3cret", 401), ("svn", "s3cret", 404)]
        {
            let (told, _) =
                running.http(&format!("POST /hooks/{path}"), &format!("X-Gitlab-Token: {token}\r\n"), &body).await;
            assert_eq!(told, status, "{path} {token}");
        }
        let started = Instant::now();
        let (status, said) = running.http("POST /hooks/gitlab", "X-Gitlab-Token: s3cret\r\n", &body).await;
        assert_eq!((status, said.contains("\"h/o/r\"")), (202, true), "{said}");
        while running.mirror.git(&env, &name, &["rev-parse", "main"]).trim() != two {
            assert!(started.elapsed() < Duration::from_secs(60), "it was not refreshed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("visible after {:?}", started.elapsed());
        let last = || running.mirror.seen.refreshes().last().unwrap().trigger;
        while last() != Trigger::Webhook {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}", last());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Twice, or for what is not here: no harm.
        for body in [body.as_str(), r#"{"project":{"git_http_url":"https://elsewhere/x"}}"#] {
            assert_eq!(running.http("POST /hooks/gitlab", "X-Gitlab-Token: s3cret\r\n", body).await.0, 202);
        }
        running.service.stop(Duration::from_secs(1)).await;
    });
}

#[test]
fn the_administrator_does_everything_on_one_socket() {
    if let Some(missing) = Upstream::missing() {
        skip!("{missing}");
    }
    let env = TestEnv::new();
    let forge = Upstream::start(&env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    let tip = push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let running = running(&env).await;
        assert_eq!(running.http("GET /v1/repos", "", "").await.0, 404, "not on the readers' listener");
        let add = format!(r#"{{"url":"{}","name":"h/o/r"}}"#, forge.http("r.git"));
        let (status, repo): (_, Repo) = running.api("POST /v1/repos", &add).await;
        assert_eq!((status, repo.spec.name.as_str()), (201, "h/o/r"));
        let name = repo.spec.name.clone();
        running.mirror.fresh(&name).await;
        let (status, repo): (_, Repo) = running.api("POST /v1/repos/h/o/r/refresh", "").await;
        assert_eq!((status, repo.status.state), (200, State::Ready));

        for verb in ["verify", "repack", "repack?full"] {
            let (status, _): (_, Repo) = running.api(&format!("POST /v1/repos/h/o/r/{verb}"), "").await;
            assert_eq!(status, 200, "{verb}");
        }
        assert!(Packs::of(&running.mirror.dir(&name)).bitmap);
        let (_, repo): (_, Repo) = running.api("GET /v1/repos/h/o/r", "").await;
        assert!(repo.status.repacked.is_some() && repo.status.repacked_whole.is_some());

        let (_, paused): (_, Repo) = running.api("POST /v1/repos/h/o/r/pause", "").await;
        assert!(paused.paused);
        let (status, failure): (_, Failure) = running.api("POST /v1/repos/h/o/r/refresh", "").await;
        assert_eq!((status, failure.error.as_str()), (409, "'h/o/r' is paused"));
        let (_, resumed): (_, Repo) = running.api("POST /v1/repos/h/o/r/resume", "").await;
        assert!(!resumed.paused);
        running.mirror.fresh(&name).await;

        // Sessions: a socket of its own, or a token that is told once.
        let (status, granted): (_, Granted) =
            running.api("POST /v1/sessions", r#"{"id":"s42","repos":["h/o/r"]}"#).await;
        assert_eq!(status, 201);
        let (status, _) = at(granted.socket.as_deref().unwrap(), "POST /h/o/r/ensure", "{}").await;
        assert_eq!(status, 200);
        let (_, granted): (_, Granted) =
            running.api("POST /v1/sessions", r#"{"id":"s43","repos":["h/o/r"],"token":true,"ttl":60}"#).await;
        let token = granted.token.unwrap();
        assert_eq!(
            running.http("POST /h/o/r/ensure", &format!("Authorization: Bearer {token}\r\n"), "{}").await.0,
            200
        );
        let (_, sessions) = at(&running.admin, "GET /v1/sessions", "").await;
        assert!(sessions.contains("s42") && sessions.contains("s43") && !sessions.contains(&token));
        let (status, _) = at(&running.admin, "DELETE /v1/sessions/s43", "").await;
        assert_eq!(status, 204);
        assert_eq!(
            running.http("POST /h/o/r/ensure", &format!("Authorization: Bearer {token}\r\n"), "{}").await.0,
            401
        );

        // Scratch refs hold it.
        running.mirror.git(&env, &name, &["update-ref", "refs/agents/s42", &tip]);
        let (status, failure): (_, Failure) = running.api("DELETE /v1/repos/h/o/r", "").await;
        assert_eq!(
            (status, failure.error.as_str(), failure.hint.as_deref()),
            (
                409,
                "'h/o/r' has scratch refs that are nowhere else: refs/agents/s42",
                Some("`git sandbox mirror scratch bundle` saves them, `… scratch drop` drops them")
            )
        );
        let (_, plan): (_, Removed) = running.api("DELETE /v1/repos/h/o/r?dry_run", "").await;
        assert_eq!((plan.scratch, plan.done), (vec!["refs/agents/s42".to_owned()], false));
        running.mirror.git(&env, &name, &["update-ref", "-d", "refs/agents/s42"]);
        let (_, removed): (_, Removed) = running.api("DELETE /v1/repos/h/o/r", "").await;
        assert!(removed.done && !running.mirror.dir(&name).exists());
        let (_, repos): (_, Repos) = running.api("GET /v1/repos", "").await;
        assert!(repos.repos.is_empty());

        for (request, body, status, said) in [
            ("GET /v1/repos/h/x", "", 404, "no repository named 'h/x'"),
            ("GET /v1/repos/h/../x", "", 400, "an empty part, '.', '..' or '.git' is no name"),
            ("POST /v1/repos/h/x/explode", "", 404, "no such path"),
            (
                "POST /v1/repos",
                r#"{"url":"ext::sh"}"#,
                400,
                "'ext::sh': this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path",
            ),
            (
                "POST /v1/repos",
                r#"{"url":"https://me:hunter2@h/x"}"#,
                400,
                "a URL with a password in it is refused: give the mirror a credential instead",
            ),
            ("GET /v1/scratch/s1/h/x", "", 404, "no repository named 'h/x'"),
            ("POST /v1/repos", r#"{"url":"https://h/x","credential":"gh"}"#, 400, "there is no credential 'gh'"),
            ("POST /v1/repos", r#"{"url":"https://h/x","interval_ms":5}"#, 400, "an interval is at least 1 s"),
            ("POST /v1/sessions", r#"{"id":"s","repos":["h/x"]}"#, 404, "no repository named 'h/x'"),
            ("DELETE /v1/sessions/s99", "", 404, "no session 's99'"),
        ] {
            let (told, failure): (_, Failure) = running.api(request, body).await;
            assert_eq!((told, failure.error.as_str()), (status, said), "{request} {body}");
        }
        running.service.stop(Duration::from_secs(1)).await;
    });
}

#[test]
fn a_broken_object_is_found_by_verify_and_the_mirror_made_again() {
    if let Some(missing) = Upstream::missing() {
        skip!("{missing}");
    }
    let env = TestEnv::new();
    let forge = Upstream::start(&env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let running = running(&env).await;
        let name = running.mirror.add("h/o/r", &forge.http("r.git"), |_| {});
        running.mirror.fresh(&name).await;
        let packs = running.mirror.dir(&name).join("objects/pack");
        let pack = std::fs::read_dir(packs)
            .unwrap()
            .flatten()
            .find(|file| file.path().extension().unwrap() == "pack")
            .unwrap();
        let mut bytes = std::fs::read(pack.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::remove_file(pack.path()).unwrap();
        std::fs::write(pack.path(), bytes).unwrap();
        let (status, failure): (_, Failure) = running.api("POST /v1/repos/h/o/r/verify", "").await;
        assert_eq!(status, 500);
        assert!(failure.error.starts_with("'h/o/r' is corrupt, and is cloned again: "), "{}", failure.error);
        running.mirror.fresh(&name).await;
        let (status, _): (_, Repo) = running.api("POST /v1/repos/h/o/r/verify", "").await;
        assert_eq!(status, 200);
        assert_eq!(std::fs::read_dir(running.mirror.layout.root().join("quarantine")).unwrap().count(), 1);
        running.service.stop(Duration::from_secs(1)).await;
    });
}
