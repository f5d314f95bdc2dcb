//! What an administrator sees and does: health, numbers, the page, the log, the end.

use crate::stand::{Mirror, Upstream, source, wait};
use crate::way::repo;
use sandbox_testkit::TestEnv;
use std::fs;

#[test]
fn health_numbers_and_the_page_tell_what_is() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let private = format!("{}private = true\n", repo(&upstream.url("project"), "up.test/secret"));
    let mirror = Mirror::start(&env, &(repo(&upstream.url("project"), "up.test/project") + &private));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    env.git(env.root(), &["clone", "-q", "--depth=1", &format!("{}/up.test/project", mirror.http), "clone"]).expect(0);

    assert_eq!(mirror.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(mirror.get("/readyz"), (200, "ready\n".to_owned()));
    let (status, page) = mirror.get("/");
    assert_eq!(status, 200);
    assert!(page.contains("up.test/project") && page.contains("<td class=good>fresh"), "{page}");
    assert!(!page.contains("up.test/secret") && page.contains("And 1 private."), "{page}");
    assert!(!page.contains("<script"), "{page}");
    assert!(mirror.admin_get("/").1.contains("up.test/secret"));
    let json: serde_json::Value = serde_json::from_str(&mirror.get("/status.json").1).unwrap();
    assert_eq!(json["repos"][0]["name"], "up.test/project");

    let (status, numbers) = mirror.get("/metrics");
    assert_eq!(status, 200);
    for name in [
        "build_info{",
        "mirror_requests_total{",
        "mirror_ref_age_seconds{repo=\"up.test/project\"}",
        "mirror_inflight ",
    ] {
        assert!(numbers.lines().any(|line| line.starts_with(name)), "no {name} in {numbers}");
    }
    assert!(numbers.ends_with("# EOF\n") && !numbers.contains("secret"), "{numbers}");
    assert!(mirror.admin_get("/metrics").1.contains("secret"));
    // What a client says is no label: the numbers do not grow with it.
    for n in 0..20 {
        assert_eq!(mirror.get(&format!("/no.test/{n}/info/refs?service=git-upload-pack")).0, 404);
    }
    assert!(!mirror.get("/metrics").1.contains("no.test"));

    let requests: Vec<_> = mirror.log().into_iter().filter(|line| line["event"] == "request").collect();
    assert!(requests.iter().any(|line| line["repo"] == "up.test/project" && line["outcome"] == "ok"), "{requests:#?}");
}

#[test]
fn it_ends_when_it_is_asked_to_and_its_clients_are_served() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mut mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    assert_eq!(mirror.stop(), 0);
    assert!(!mirror.admin.exists(), "a socket that nobody listens on was left");
    mirror.start_again();
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
}

/// Nobody tells it: a client that misses something is enough. What was set aside is the administrator's to remove.
#[test]
fn what_is_damaged_is_set_aside_and_the_administrator_removes_it() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, &repo(&upstream.url("project"), "up.test/project"));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    let admin = mirror.admin.display().to_string();
    let run =
        |args: &[&str]| env.sandbox(env.root(), &[&["mirror", "quarantine"], args, &["--admin", &admin]].concat());
    insta::assert_snapshot!(run(&["list"]), @r"
    ---- stderr
    nothing is set aside
    ---- status 0
    ");
    let damaged = fs::read_dir(env.root().join("store/mirrors")).unwrap().next().unwrap().unwrap().path();
    for pack in fs::read_dir(damaged.join("objects/pack")).unwrap().flatten() {
        fs::remove_file(pack.path()).unwrap();
    }
    let url = format!("{}/up.test/project", mirror.http);
    let clone = |into: &str| env.git(env.root(), &["clone", "-q", "--depth=1", &url, into]).status;
    assert_ne!(clone("before"), 0);
    let set_aside = || run(&["list", "--json"]).ok();
    wait("it is set aside", || set_aside().contains("\"repo\": \"up.test/project\""));
    wait("it is cloned again", || clone("after") == 0);

    assert!(run(&["list"]).ok().contains("up.test/project"), "{}", set_aside());
    wait("the page names it", || mirror.get("/").1.contains("Set aside as damaged"));
    insta::assert_snapshot!(run(&["empty", "--older-than", "1d"]), @r"
    removed 0 directories
    ---- status 0
    ");
    let told = run(&["empty", "--dry-run"]).ok();
    assert!(told.starts_with("would remove 1 directory\n  up.test_project-"), "{told}");
    assert!(set_aside().contains("up.test/project"));
    assert!(run(&["empty"]).ok().starts_with("removed 1 directory\n  up.test_project-"));
    assert_eq!(set_aside().trim(), "[]");
    insta::assert_snapshot!(run(&["empty", "--older-than", "soon"]), @r"
    ---- stderr
    error: 'soon' is no time
    hint: a number and s, m, h or d: `--older-than 7d`
    ---- status 2
    ");
}

#[test]
fn a_hangup_makes_it_read_its_repositories_again() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, "");
    let config = env.root().join("mirror.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.clone() + &repo(&upstream.url("project"), "up.test/project")).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(mirror.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    // A file that is wrong changes nothing, and is told.
    fs::write(&config, text + "[[repo]]\nurk = 1\n").unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    wait("the file is refused", || mirror.log().iter().any(|line| line["what"].to_string().contains("repo.url")));
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
}

#[test]
fn a_service_manager_is_told_when_it_serves_and_when_it_ends() {
    let env = TestEnv::new();
    let path = env.root().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::stand::PATIENCE)).unwrap();
    let root = env.root().join("store");
    let mut command = env.sandbox_command(env.root(), &["mirror", "serve", "--http=127.0.0.1:0", "--root"]);
    command.arg(root).env("NOTIFY_SOCKET", &path).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = sandbox_testkit::Child::spawn(&mut command);
    let hear = || {
        let mut buffer = [0; 200];
        let length = socket.recv(&mut buffer).expect("it tells something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1\nSTATUS=serving");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(hear(), "STOPPING=1\nSTATUS=waiting for clients");
    assert_eq!(child.wait(crate::stand::PATIENCE), 0);
}

#[test]
fn what_cannot_be_is_said() {
    let env = TestEnv::new();
    let check = |text: &str| {
        let file = env.root().join("m.toml");
        fs::write(&file, text).unwrap();
        env.sandbox(env.root(), &["mirror", "serve", "--check", "--config", "m.toml"]).to_string()
    };
    insta::assert_snapshot!(check("[store]\nroot = \"/srv/mirrors\"\n"), @r"
    the configuration is right: 0 repositories, 0 credentials
    ---- status 0
    ");
    insta::assert_snapshot!(check("[refresh]\nintervall = \"30s\"\n"), @r"
    ---- stderr
    error: cannot use 'm.toml'
    caused by: unknown key 'refresh.intervall'
    hint: did you mean 'refresh.interval'?
    ---- status 1
    ");
    insta::assert_snapshot!(check("[serve]\nhttp = \"0.0.0.0:9480\"\n"), @r"
    ---- stderr
    error: cannot use 'm.toml'
    caused by: 'serve.http' = 0.0.0.0:9480 is not on loopback and takes tokens: it needs 'serve.tls_cert' and 'serve.tls_key'
    hint: 'serve.insecure = true' (or `--insecure`) if the network between is trusted
    ---- status 1
    ");
    let run = |args: &[&str]| env.sandbox(env.root(), &[&["mirror", "serve"], args].concat()).to_string();
    insta::assert_snapshot!(run(&["--config", "absent.toml"]), @r"
    ---- stderr
    error: cannot read 'absent.toml'
    caused by: No such file or directory (os error 2)
    ---- status 1
    ");
    insta::assert_snapshot!(run(&["--http", "0.0.0.0:0"]), @r"
    ---- stderr
    error: '--http' = 0.0.0.0:0 is not on loopback and takes tokens: it needs 'serve.tls_cert' and 'serve.tls_key'
    hint: 'serve.insecure = true' (or `--insecure`) if the network between is trusted
    ---- status 1
    ");
    insta::assert_snapshot!(run(&["--http", "nowhere"]), @r"
    ---- stderr
    error: invalid value 'nowhere' for '--http <ADDRESS:PORT>': invalid socket address syntax
    hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one
    ---- status 2
    ");
    let mirror = Mirror::start(&env, "");
    insta::assert_snapshot!(run(&["--root", "store", "--http", "127.0.0.1:0"]), @r"
    ---- stderr
    error: another mirror runs on '[ROOT]/store'
    ---- status 1
    ");
    drop(mirror);
}

#[test]
fn the_configurations_that_are_shipped_are_right() {
    let env = TestEnv::new();
    let check = |name: &str, text: &str| {
        fs::write(env.root().join(name), text).unwrap();
        env.sandbox(env.root(), &["mirror", "serve", "--check", "--config", name]).expect(0);
    };
    let uncommented = |text: &str| -> String {
        // What is commented out is right too: '#key = …' and '#[[table]]', and no sentence.
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let shipped = include_str!("../../../deploy/mirror/mirror.toml");
    check("shipped.toml", shipped);
    check("uncommented.toml", &uncommented(shipped));
    let manifests = include_str!("../../../deploy/mirror/kubernetes/mirror.yaml");
    let config = manifests.split("mirror.toml: |\n").nth(1).unwrap().split("\n---\n").next().unwrap();
    let config: String =
        config.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    check("manifest.toml", &config);
    check("manifest-uncommented.toml", &uncommented(&config));
}

#[test]
fn repositories_are_added_shown_paused_and_removed_while_it_runs() {
    let env = TestEnv::new();
    let source = source(&env, "project");
    let upstream = Upstream::start(&env);
    upstream.publish(&source, "project");
    let mirror = Mirror::start(&env, "");
    let url = upstream.url("project");
    let says = |args: &[&str]| mirror.verb(args).to_string();
    assert_eq!(
        says(&["list"]),
        "---- stderr\nno repository is mirrored\nhint: `git sandbox mirror add URL` registers one\n---- status 0\n"
    );
    assert_eq!(says(&["add", &url, "--name", "up.test/project", "--wait"]), "mirrors up.test/project\n---- status 0\n");
    mirror.wait_for("up.test/project", "refs/heads/main", &source.id("HEAD"));
    let listed = mirror.verb(&["ls"]).ok();
    assert!(listed.contains("up.test/project") && listed.contains("fresh"), "{listed}");
    let shown = mirror.verb(&["show", "up.test/project"]).ok();
    assert!(shown.contains(&format!("upstream    {url}")) && shown.contains("`mirror add`"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&mirror.verb(&["list", "--json"]).ok()).unwrap();
    assert_eq!(json[0]["name"], "up.test/project");

    // What is pushed while it is paused is not seen; then it is.
    assert_eq!(says(&["pause", "up.test/project"]), "up.test/project is not refreshed any more\n---- status 0\n");
    let second = source.commit("src/d0/file.txt", "new\n");
    source.git(&["push", "-q", "upstream", "main"]).expect(0);
    assert!(mirror.verb(&["show", "up.test/project"]).ok().contains("paused"));
    assert_eq!(says(&["resume", "up.test/project"]), "up.test/project is refreshed again\n---- status 0\n");
    assert_eq!(says(&["refresh", "up.test/project"]), "up.test/project is as its upstream is\n---- status 0\n");
    mirror.wait_for("up.test/project", "refs/heads/main", &second);
    assert_eq!(says(&["verify", "up.test/project"]), "up.test/project is whole\n---- status 0\n");
    assert_eq!(says(&["repack", "--full", "up.test/project"]), "up.test/project is packed anew\n---- status 0\n");
    let clone = format!("{}/up.test/project", mirror.http);
    env.git(env.root(), &["clone", "-q", &clone, "after"]).expect(0);

    assert!(mirror.verb(&["rm", "--dry-run", "up.test/project"]).ok().starts_with("would remove up.test/project\n"));
    assert!(mirror.verb(&["rm", "up.test/project"]).ok().starts_with("removed up.test/project\n"));
    env.git(env.root(), &["ls-remote", &clone]).expect(128);
}

#[test]
fn what_an_administrator_asks_for_in_vain_is_told() {
    let env = TestEnv::new();
    let mirror = Mirror::start(&env, "");
    let says = |args: &[&str]| mirror.verb(args).to_string();
    insta::assert_snapshot!(says(&["show", "up.test/absent"]), @r"
    ---- stderr
    error: no repository named 'up.test/absent'
    hint: `git sandbox mirror ls` shows them all
    ---- status 1
    ");
    insta::assert_snapshot!(says(&["add", "not_a_url"]), @r"
    ---- stderr
    error: 'not_a_url': this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path
    hint: https://HOST/OWNER/NAME.git, or another URL that git fetches from
    ---- status 2
    ");
    insta::assert_snapshot!(says(&["add", "https://me:secret@up.test/o/r"]), @r"
    ---- stderr
    error: a URL with a password in it is refused: give the mirror a credential instead
    hint: `[[credential]]` in its configuration, and `--credential ID`
    ---- status 2
    ");
    insta::assert_snapshot!(says(&["add", "https://up.test/o/r", "--interval", "often"]), @r"
    ---- stderr
    error: 'often' is no time
    hint: a number and s, m, h or d: `--interval [TIME]`
    ---- status 2
    ");
    insta::assert_snapshot!(says(&["add", "https://up.test/o/r", "--credential", "none"]), @r"
    ---- stderr
    error: there is no credential 'none'
    hint: `[[credential]]` in the configuration file adds one
    ---- status 1
    ");
    insta::assert_snapshot!(says(&["add", "https://up.test/o/r", "--refs", "refs/agents/*"]), @r"
    ---- stderr
    error: 'refs/agents/*' is not below 'refs/heads/' or 'refs/tags/'
    ---- status 1
    ");
    let away = env.sandbox(env.root(), &["mirror", "list", "--admin", "nowhere.sock"]);
    insta::assert_snapshot!(away.to_string(), @r"
    ---- stderr
    error: cannot reach the mirror at '[ROOT]/nowhere.sock'
    caused by: No such file or directory (os error 2)
    hint: `git sandbox mirror serve` is not running, or has its socket elsewhere (`--admin PATH`, sandbox.mirrorAdmin)
    ---- status 3
    ");
}
