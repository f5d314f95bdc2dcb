//! Credentials stay on the mirror's side (X1), and only upstreams that may be asked are asked (X7).

mod support;

use sandbox_mirror::catalog::{Found, State};
use sandbox_mirror::identity::Identity;
use sandbox_testkit::{Faults, TestEnv, Upstream, begin, push_commit, skip};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::{Mirror, on_runtime, refs_of};

const TOKEN: &str = "tok-5f2a91c0e7";

macro_rules! forge {
    ($env:ident, $name:literal) => {{
        if let Some(missing) = Upstream::missing() {
            skip!("{missing}");
        }
        Upstream::start(&$env, $name)
    }};
}

fn credential(host: &str) -> String {
    format!("[[credential]]\nid = 'gh'\nhost = '{host}'\nsource = 'env:TOKEN'\n")
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Files below a directory that hold a text.
fn files_with(dir: &Path, needle: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_with(&path, needle, found);
        } else if std::fs::read(&path).is_ok_and(|bytes| contains(&bytes, needle)) {
            found.push(path.display().to_string());
        }
    }
}

/// Arguments and environments of all processes that can be read and run git for this store.
fn processes_with(root: &Path, needles: &[&str], found: &mut Vec<String>) -> usize {
    let mut looked = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (cmdline, environ) = (read("cmdline"), read("environ"));
        let ours = contains(&environ, "GIT_CONFIG_NOSYSTEM") && contains(&environ, &root.display().to_string());
        looked += usize::from(ours && contains(&cmdline, "remote-http"));
        for needle in needles.iter().filter(|needle| contains(&cmdline, needle) || contains(&environ, needle)) {
            found.push(format!("{pid}: {needle} in {}", String::from_utf8_lossy(&cmdline).replace('\0', " ")));
        }
    }
    looked
}

#[test]
fn a_token_is_nowhere_but_in_the_request() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    forge.faults(&Faults { auth: Some(format!("x-access-token:{TOKEN}")), delay_ms: 700, ..Faults::default() });
    // How `x-access-token:TOKEN` stands in the header.
    let basic = "dG9rLTVmMmE5MWMwZTc";
    let done = Arc::new(AtomicBool::new(false));
    let looked = Arc::new(AtomicUsize::new(0));
    let root = env.root().to_owned();
    let watcher = {
        let (done, looked) = (done.clone(), looked.clone());
        std::thread::spawn(move || {
            let mut found = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let some = processes_with(&root, &[TOKEN, basic], &mut found);
                looked.fetch_add(some, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            found
        })
    };
    on_runtime(async {
        let mirror = Mirror::start(&env, &credential(&forge.host()), &[("TOKEN", TOKEN)]);
        let name = mirror.add("h/r", &forge.http("r.git"), |spec| spec.credential = Some("gh".to_owned()));
        mirror.fresh(&name).await;
        assert_eq!(mirror.refs(&env, &name), refs_of(&env, &bare));
        done.store(true, Ordering::Relaxed);
        assert!(forge.log().iter().any(|line| line.ends_with("auth=Basic")), "{:#?}", forge.log());

        // Refused, and told so without it.
        forge.faults(&Faults { auth: Some("other:one".to_owned()), ..Faults::default() });
        assert_eq!(mirror.fails(&name).await, "the upstream does not let us read it (401)");
        assert!(!mirror.seen.text().contains(TOKEN));
        let mut found = Vec::new();
        files_with(mirror.layout.root(), TOKEN, &mut found);
        files_with(mirror.layout.root(), basic, &mut found);
        assert_eq!(found, [""; 0]);
    });
    let found = watcher.join().unwrap();
    assert_eq!(found, [""; 0]);
    assert!(looked.load(Ordering::Relaxed) > 0, "no git was seen at work");
}

#[test]
fn a_redirect_to_another_host_is_not_followed_with_a_credential() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let other = Upstream::start(&env, "other.test");
    let bare = other.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    forge.faults(&Faults { redirect: Some(other.http("r.git")), ..Faults::default() });
    on_runtime(async {
        let mirror = Mirror::start(&env, &credential(&forge.host()), &[("TOKEN", TOKEN)]);
        let name = mirror.add("h/r", &forge.http("r.git"), |spec| spec.credential = Some("gh".to_owned()));
        let told = mirror.fails(&name).await;
        assert!(told.starts_with("the upstream says that it has moved to 'http://127.0.0.1:"), "{told}");
        assert_eq!(other.log(), [""; 0], "it was not even asked");
        // Without one it is followed.
        let open = mirror.add("h/open", &forge.http("r.git"), |_| {});
        mirror.fresh(&open).await;
        assert!(other.log().iter().all(|line| !line.contains("auth=")), "{:#?}", other.log());
        // A credential is for its host alone, whatever the registry says.
        let wrong = mirror.add("h/wrong", &other.http("r.git"), |spec| spec.credential = Some("gh".to_owned()));
        let told = mirror.fails(&wrong).await;
        assert!(told.starts_with("credential 'gh' is for '127.0.0.1:"), "{told}");
        let none = mirror.add("h/none", &other.http("r.git"), |spec| spec.credential = Some("nope".to_owned()));
        assert_eq!(mirror.fails(&none).await, "no credential: there is no credential 'nope'");
    });
}

#[test]
fn an_address_that_may_not_be_asked_is_not_connected_to() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    forge.init(&env, "r.git", "sha1");
    on_runtime(async {
        let strict = Mirror::start_with(&env, "[upstream]\nallow_insecure = true\n", &[]);
        let name = strict.add("h/r", &forge.http("r.git"), |_| {});
        let said = "'127.0.0.1' is at 127.0.0.1, which is not public: 'upstream.allow_private' can name its range";
        assert_eq!(strict.fails(&name).await, said);
        let local = strict.add("h/l", &forge.http("r.git").replace("127.0.0.1", "localhost"), |_| {});
        assert!(strict.fails(&local).await.starts_with("'localhost' is at "));
        assert_eq!(forge.log(), [""; 0]);
    });
}

#[test]
fn tls_is_checked() {
    let env = TestEnv::new();
    let good = forge!(env, "localhost");
    let bad = Upstream::start(&env, "elsewhere.test");
    let work = env.repo_at("work");
    begin(&work);
    for forge in [&good, &bad] {
        let bare = forge.init(&env, "r.git", "sha1");
        push_commit(&work, &bare, &["refs/heads/main"], forge.name());
    }
    on_runtime(async {
        let mirror = Mirror::start(&env, &format!("ca_file = '{}'\n", good.ca().display()), &[]);
        let name = mirror.add("h/good", &good.https("localhost", "r.git"), |_| {});
        mirror.fresh(&name).await;
        let wrong = mirror.add("h/bad", &bad.https("localhost", "r.git"), |_| {});
        let told = mirror.fails(&wrong).await;
        assert!(
            told.starts_with("the upstream cannot be reached: ") && told.to_lowercase().contains("certificate"),
            "{told}"
        );
        assert_eq!(bad.asked("GET"), 0);
    });
}

#[test]
fn what_the_upstream_denies_is_not_served_any_more_until_it_allows_it() {
    let env = TestEnv::new();
    let forge = forge!(env, "forge.test");
    let bare = forge.init(&env, "r.git", "sha1");
    let work = env.repo_at("work");
    begin(&work);
    push_commit(&work, &bare, &["refs/heads/main"], "one");
    on_runtime(async {
        let config = "[refresh]\ninterval = '1h'\nmax_stale = '0s'\n[upstream]\nallow_insecure = true\n\
                      allow_private = ['127.0.0.0/8']\n";
        let mirror = Mirror::start_with(&env, config, &[]);
        let name = mirror.add("h/r", &forge.http("r.git"), |_| {});
        mirror.fresh(&name).await;
        let found = || mirror.catalog.now().find(&name, &Identity::Reader);
        assert!(matches!(found(), Found::Serve(_)));
        // Away is not denied.
        forge.faults(&Faults { status: Some(502), ..Faults::default() });
        mirror.fails(&name).await;
        assert!(matches!(found(), Found::Serve(_)));
        forge.faults(&Faults { status: Some(404), ..Faults::default() });
        mirror.fails(&name).await;
        assert!(matches!(found(), Found::Gone));
        assert_eq!(mirror.status(&name).state, State::Gone);
        forge.faults(&Faults::default());
        mirror.fresh(&name).await;
        assert!(matches!(found(), Found::Serve(_)));
    });
}
