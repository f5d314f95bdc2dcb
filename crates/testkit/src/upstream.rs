//! Servers of repositories for tests, on loopback: smart HTTP (with TLS, with a password, with faults) and `git://`.

use crate::env::TestEnv;
use crate::process::{Child, wait_until};
use crate::repo::Repo;
use crate::tls::Origin;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// What a server of repositories does wrong. Told to the running server; holds until it is told otherwise.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// It wants this `user:password` (HTTP's basic scheme), and says 401 without.
    pub auth: Option<String>,
    /// It answers with this status, whatever is asked.
    pub status: Option<u16>,
    /// With this many seconds in `Retry-After`.
    pub retry_after: Option<u64>,
    /// It sends everyone to this URL: what is asked for is put at the end.
    pub redirect: Option<String>,
    /// It waits so many milliseconds before it answers.
    pub delay_ms: u64,
    /// It breaks off after so many bytes of an answer's body.
    pub cut: Option<usize>,
    /// Only what has this in its path or query is concerned.
    pub only: Option<String>,
}

/// A web server that serves the repositories of one directory.
pub struct Upstream {
    origin: Origin,
    name: String,
}

impl Upstream {
    /// What it needs that is not there; `None` when all is.
    pub fn missing() -> Option<String> {
        Origin::missing()
    }

    /// Starts it; its certificate is for `name` alone.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(env: &TestEnv, name: &str) -> Self {
        Self { origin: Origin::start(env, &[name]), name: name.to_owned() }
    }

    /// Makes a bare repository that it serves; work is pushed there by its path.
    ///
    /// # Panics
    /// If git fails.
    #[track_caller]
    pub fn init(&self, env: &TestEnv, repo: &str, format: &str) -> PathBuf {
        let dir = self.origin.dir().join("git").join(repo);
        init(env, &dir, format);
        dir
    }

    /// The URL of a repository, in the clear.
    pub fn http(&self, repo: &str) -> String {
        format!("http://127.0.0.1:{}/git/{repo}", self.origin.http())
    }

    /// The URL of a repository by TLS, under this name.
    pub fn https(&self, name: &str, repo: &str) -> String {
        format!("https://{name}:{}/git/{repo}", self.origin.https())
    }

    /// The name that its certificate is for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.origin.ca()
    }

    /// Host and port in the clear, as in a URL.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.origin.http())
    }

    /// Tells it what to do wrong from now on.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn faults(&self, faults: &Faults) {
        let json = serde_json::json!({
            "auth": faults.auth,
            "status": faults.status,
            "retry_after": faults.retry_after,
            "redirect": faults.redirect,
            "delay_ms": faults.delay_ms,
            "cut": faults.cut,
            "only": faults.only,
        });
        let file = self.origin.dir().join("faults");
        fs::write(file.with_extension("new"), json.to_string()).expect("ours");
        fs::rename(file.with_extension("new"), file).expect("ours");
    }

    /// What it was asked so far: `http HOST METHOD PATH`, with ` auth=SCHEME` at the end if a credential came along.
    pub fn log(&self) -> Vec<String> {
        self.origin.log()
    }

    /// How often it was asked something with this in it.
    pub fn asked(&self, what: &str) -> usize {
        self.log().iter().filter(|line| line.contains(what)).count()
    }
}

#[track_caller]
fn init(env: &TestEnv, dir: &Path, format: &str) {
    fs::create_dir_all(dir).expect("ours");
    let format = format!("--object-format={format}");
    env.git(dir, &["init", "--quiet", "--bare", &format]).ok();
    env.git(dir, &["config", "uploadpack.allowFilter", "true"]).ok();
}

/// `git daemon`, for the repositories below one directory.
pub struct GitDaemon {
    dir: PathBuf,
    port: u16,
    _child: Child,
}

impl GitDaemon {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(env: &TestEnv) -> Self {
        let dir = env.root().join("daemon");
        fs::create_dir_all(&dir).expect("ours");
        // It cannot tell a port that it chose; one that was free a moment ago may be taken, which is tried again.
        for _ in 0..20 {
            let port =
                std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
            let mut command = env.command(&env.git_used().path, &dir);
            command
                .args(["daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", &format!("--port={port}")])
                .arg(format!("--base-path={}", dir.display()))
                .arg(&dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = Child::spawn(&mut command);
            let mut ended = false;
            wait_until("git daemon listens or has ended", Duration::from_secs(20), || {
                ended = child.try_ended().is_some();
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !ended {
                return Self { dir, port, _child: child };
            }
        }
        panic!("git daemon finds no free port");
    }

    /// Makes a bare repository that it serves.
    ///
    /// # Panics
    /// If git fails.
    #[track_caller]
    pub fn init(&self, env: &TestEnv, repo: &str) -> PathBuf {
        let dir = self.dir.join(repo);
        init(env, &dir, "sha1");
        dir
    }

    /// The URL of a repository.
    pub fn url(&self, repo: &str) -> String {
        format!("git://127.0.0.1:{}/{repo}", self.port)
    }
}

/// Makes an empty repository to push from.
///
/// # Panics
/// If git fails.
#[track_caller]
pub fn begin(repo: &Repo<'_>) {
    fs::create_dir_all(repo.dir()).expect("ours");
    repo.git(&["init", "--quiet"]).ok();
}

/// Pushes a commit that changes one file to `refs` of a bare repository; returns its id.
///
/// # Panics
/// If git fails.
#[track_caller]
pub fn push_commit(repo: &Repo<'_>, to: &Path, refs: &[&str], text: &str) -> String {
    repo.write("file.txt", text);
    repo.git(&["add", "file.txt"]).ok();
    repo.git(&["commit", "--quiet", "-m", text]).ok();
    let mut args = vec!["push".to_owned(), "--quiet".to_owned(), "--force".to_owned(), to.display().to_string()];
    args.extend(refs.iter().map(|name| format!("HEAD:{name}")));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    repo.git(&args).ok();
    repo.git(&["rev-parse", "HEAD"]).ok().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_serves_with_and_without_faults() {
        if let Some(missing) = Upstream::missing() {
            crate::skip!("{missing}");
        }
        let env = TestEnv::new();
        let upstream = Upstream::start(&env, "forge.test");
        let bare = upstream.init(&env, "o/r.git", "sha1");
        let repo = env.repo_at("work");
        begin(&repo);
        let tip = push_commit(&repo, &bare, &["refs/heads/main"], "one");
        let ask = || env.git(env.root(), &["ls-remote", &upstream.http("o/r.git"), "refs/heads/main"]);
        assert_eq!(ask().ok(), format!("{tip}\trefs/heads/main\n"));
        for (faults, said) in [
            (Faults { status: Some(503), ..Faults::default() }, "error: 503"),
            (Faults { auth: Some("u:p".to_owned()), ..Faults::default() }, "could not read Username"),
            (Faults { cut: Some(20), ..Faults::default() }, "fatal: "),
        ] {
            upstream.faults(&faults);
            let refused = ask();
            assert!(refused.status != 0 && refused.stderr.contains(said), "{}", refused.stderr);
        }
        upstream.faults(&Faults {
            redirect: Some(upstream.http("o/r.git")),
            only: Some("/old".to_owned()),
            ..Faults::default()
        });
        let moved = env.git(env.root(), &["ls-remote", &upstream.http("old")]);
        assert!(moved.ok().contains("refs/heads/main"));

        let daemon = GitDaemon::start(&env);
        let bare = daemon.init(&env, "x.git");
        let tip = push_commit(&repo, &bare, &["refs/heads/main"], "two");
        assert!(env.git(env.root(), &["ls-remote", &daemon.url("x.git")]).ok().contains(&tip));
    }
}
