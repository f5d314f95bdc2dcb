//! A mirror and its upstream, both real and on loopback.
//!
//! ```text
//! source (a work tree) ── push ──► upstream/NAME.git ◄── git daemon ◄── mirror serve ◄── clients
//! ```

use sandbox_testkit::{Child, Repo, TestEnv, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Long enough for a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server of upstreams: `git daemon`.
pub struct Upstream<'e> {
    env: &'e TestEnv,
    root: PathBuf,
    port: u16,
    daemon: Option<Child>,
}

impl<'e> Upstream<'e> {
    /// Starts it, with no repository.
    pub fn start(env: &'e TestEnv) -> Self {
        let root = env.root().join("upstream");
        fs::create_dir_all(&root).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut this = Self { env, root, port, daemon: None };
        this.come_back();
        this
    }

    /// Ends the server: nothing answers any more.
    pub fn go_away(&mut self) {
        self.daemon = None;
    }

    /// Starts it again at the same address.
    pub fn come_back(&mut self) {
        // The program itself: a `git daemon` that is killed leaves it behind.
        let exec = self.env.git(&self.root, &["--exec-path"]).ok();
        let mut command = self.env.command(Path::new(exec.trim()).join("git-daemon"), &self.root);
        command.args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", "--max-connections=0"]);
        command.args([format!("--port={}", self.port), format!("--base-path={}", self.root.display())]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemon = Some(Child::spawn(&mut command));
        wait_until("the upstream listens", PATIENCE, || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// A bare repository with this work tree's branch `main`, and `upstream` as a remote there.
    pub fn publish(&self, source: &Repo, name: &str) -> PathBuf {
        let bare = self.root.join(format!("{name}.git"));
        self.env.git(&self.root, &["init", "-q", "--bare", bare.to_str().unwrap()]).expect(0);
        source.git(&["remote", "add", "upstream", bare.to_str().unwrap()]).expect(0);
        source.git(&["push", "-q", "upstream", "main"]).expect(0);
        self.env.git(&bare, &["config", "uploadpack.allowAnySHA1InWant", "true"]).expect(0);
        bare
    }

    /// Where a repository is cloned from without the mirror.
    pub fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}.git", self.port)
    }
}

/// A running mirror.
pub struct Mirror<'e> {
    env: &'e TestEnv,
    config: PathBuf,
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub http: String,
    /// `git://127.0.0.1:PORT`
    pub git: String,
    /// The administrator's socket.
    pub admin: PathBuf,
}

impl<'e> Mirror<'e> {
    /// Starts one with a short interval, upstreams on loopback, and more configuration.
    pub fn start(env: &'e TestEnv, more: &str) -> Self {
        let (root, config) = (env.root().join("store"), env.root().join("mirror.toml"));
        let text = format!(
            "[serve]\nhttp = \"127.0.0.1:0\"\ngit = \"127.0.0.1:0\"\nadmin = \"unix:{}\"\n\
             [store]\nroot = \"{}\"\nmin_free = \"1MiB\"\n\
             [upstream]\nallow_insecure = true\nallow_private = [\"127.0.0.0/8\"]\n{more}",
            env.root().join("admin.sock").display(),
            root.display(),
        );
        fs::write(&config, text).unwrap();
        let (child, listening) = Self::run(env, &config).unwrap_or_else(|log| panic!("it ended: {log}"));
        let first = |key: &str| listening[key][0].as_str().unwrap_or_default().to_owned();
        let (http, git) = (first("http"), first("git"));
        Self { env, config, child, http, git, admin: env.root().join("admin.sock") }
    }

    /// Runs it until it listens; its log if it ends before.
    fn run(env: &TestEnv, config: &Path) -> Result<(Child, Value), String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(env.root().join("mirror.log")).unwrap();
        let out = env.root().join("mirror.out");
        let mut command = env.sandbox_command(env.root(), &["mirror", "serve", "--json", "--verbose", "--config"]);
        command.arg(config).stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(log);
        let mut child = Child::spawn(&mut command);
        let mut line = String::new();
        let mut ended = None;
        wait_until("the mirror listens", PATIENCE, || {
            ended = child.try_ended();
            line = fs::read_to_string(&out).unwrap_or_default();
            ended.is_some() || line.ends_with('\n')
        });
        match ended {
            Some(_) => Err(fs::read_to_string(env.root().join("mirror.log")).unwrap()),
            None => Ok((child, serde_json::from_str(&line).unwrap())),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Ends it as a power cut would, and starts it again on the same store at the same addresses.
    pub fn kill_and_start(&mut self) {
        self.child.kill();
        self.start_again();
    }

    /// Starts it on the same store at the same addresses.
    pub fn start_again(&mut self) {
        let text = fs::read_to_string(&self.config).unwrap();
        let place = |url: &str| url.rsplit('/').next().unwrap().to_owned();
        let text = text.replace("http = \"127.0.0.1:0\"", &format!("http = \"{}\"", place(&self.http)));
        let text = text.replace("git = \"127.0.0.1:0\"", &format!("git = \"{}\"", place(&self.git)));
        fs::write(&self.config, text).unwrap();
        // Meanwhile its port may have become another connection's.
        wait_until("the mirror listens again", PATIENCE, || match Self::run(self.env, &self.config) {
            Ok((child, _)) => {
                self.child = child;
                true
            }
            Err(log) if log.trim_end().lines().last().is_some_and(|line| line.contains("in use")) => false,
            Err(log) => panic!("it ended: {log}"),
        });
    }

    /// Asks it to end, and returns its status.
    pub fn stop(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait(PATIENCE)
    }

    /// Its log.
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.env.root().join("mirror.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!(line))).collect()
    }

    /// `GET` on the public listener: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.http.trim_start_matches("http://")).unwrap();
        exchange(stream, &format!("GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n"))
    }

    /// `GET` on the administrator's socket.
    pub fn admin_get(&self, path: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.admin).unwrap();
        exchange(stream, &format!("GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n"))
    }

    /// `POST` of JSON on the administrator's socket.
    pub fn admin_post(&self, path: &str, body: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.admin).unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n");
        exchange(stream, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// Runs `git sandbox mirror VERB --admin …`, `scratch` with its own verb before that.
    pub fn verb(&self, args: &[&str]) -> sandbox_testkit::Output {
        let admin = self.admin.to_str().unwrap();
        let (verb, rest) = args.split_at(if args[0] == "scratch" { 2 } else { 1 });
        self.env.sandbox(self.env.root(), &[&["mirror"], verb, &["--admin", admin], rest].concat())
    }

    /// Waits until a ref is served as this commit.
    #[track_caller]
    pub fn wait_for(&self, repo: &str, name: &str, id: &str) {
        let url = format!("{}/{repo}", self.http);
        let mut said = String::new();
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            let output = self.env.git(self.env.root(), &["ls-remote", &url, name]);
            if output.stdout.starts_with(id) {
                return;
            }
            said = output.to_string();
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("'{name}' of '{repo}' is not {id}:\n{said}");
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    (status, rest.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

/// A repository with a few commits, files in directories, a tag and a second branch.
pub fn source<'e>(env: &'e TestEnv, name: &str) -> Repo<'e> {
    let repo = env.repo_at(name);
    fs::create_dir_all(repo.dir()).unwrap();
    repo.git(&["init", "-q"]).expect(0);
    for n in 0..5 {
        repo.commit(&format!("src/d{n}/file.txt"), &format!("{n}\n").repeat(200));
    }
    repo
}

/// A `git` of the environment, quiet.
pub fn git(env: &TestEnv, dir: &Path) -> Command {
    env.command(&env.git_used().path, dir)
}

/// Waits for something that comes for sure.
#[track_caller]
pub fn wait(what: &str, done: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, done);
}

/// The processes that a process has started.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.flat_map(|task| of(task).split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

/// How many processes that serve objects a service has started, at any depth.
pub fn serving(pid: u32) -> usize {
    let packs = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("pack"));
    let mut waiting = children(pid);
    let mut found = 0;
    while let Some(pid) = waiting.pop() {
        found += usize::from(packs(pid));
        waiting.extend(children(pid));
    }
    found
}
