//! The servers of one run, and what is asked of the mirror beside git.

use super::super::measure::time;
use super::peers::{self, Peer};
use super::{delay, input};
use sandbox_testkit::{Child, TestEnv};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Of a far forge.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// The inputs: the name of the repository and what it is.
pub const INPUTS: [&str; 2] = ["own", "generated"];
/// What the webhook is signed with.
const SECRET: &str = "bench";

/// The servers of one run.
pub struct Stage {
    /// `http://127.0.0.1:PORT`
    pub http: String,
    /// `git://127.0.0.1:PORT`
    git: String,
    /// The store of the mirror.
    pub store: PathBuf,
    upstreams: PathBuf,
    admin: PathBuf,
    mirror: Child,
    daemon: Peer,
    /// Why there is none, or it.
    apache: Result<Peer, String>,
    direct: SocketAddr,
    /// `own: 300 commits, …`
    pub about: Vec<String>,
    _upstream: Peer,
}

impl Stage {
    /// Makes the inputs, starts all servers, and waits until the mirror has everything.
    pub fn new(env: &TestEnv, files: usize) -> Result<Self, String> {
        let io = |error: std::io::Error| error.to_string();
        let (upstreams, store) = (env.root().join("upstream"), env.root().join("store"));
        let (packed, admin) = (env.root().join("peers"), env.root().join("admin.sock"));
        for dir in [&upstreams, &packed] {
            fs::create_dir_all(dir).map_err(io)?;
        }
        eprintln!("  making the repositories that are mirrored");
        input::own(env, &upstreams)?;
        input::generated(env, &upstreams, files)?;
        let about = INPUTS
            .iter()
            .map(|name| Ok(format!("'{name}' ({})", input::describe(env, &upstreams.join(format!("{name}.git")))?)));
        let about = about.collect::<Result<_, String>>()?;
        let upstream = peers::daemon(env, &upstreams, Some(0))?;
        let direct = delay::relay(upstream.address, ROUND_TRIP).map_err(io)?;

        let secret = env.root().join("secret");
        fs::write(&secret, SECRET).map_err(io)?;
        let mut config = format!(
            "[serve]\nhttp = \"127.0.0.1:0\"\ngit = \"127.0.0.1:0\"\nadmin = \"unix:{}\"\n[store]\nroot = \"{}\"\n\
             min_free = \"1MiB\"\n[upstream]\nallow_insecure = true\nallow_private = [\"127.0.0.0/8\"]\n\
             [webhook]\nsecret = \"file:{}\"\nproviders = [\"gitlab\"]\n",
            admin.display(),
            store.display(),
            secret.display()
        );
        for name in INPUTS {
            config.push_str(&format!("[[repo]]\nurl = \"git://{direct}/{name}.git\"\ninterval = \"1h\"\n"));
        }
        let (file, out) = (env.root().join("mirror.toml"), env.root().join("mirror.out"));
        let log = env.root().join("mirror.log");
        fs::write(&file, config).map_err(io)?;
        let mut command = env.sandbox_command(env.root(), &["mirror", "serve", "--json", "--config"]);
        command.arg(&file).stdin(Stdio::null()).stdout(fs::File::create(&out).map_err(io)?);
        let mut mirror = Child::spawn(command.stderr(fs::File::create(&log).map_err(io)?));
        let printed = until("the mirror listens", || {
            if let Some(status) = mirror.try_ended() {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Some(Err(format!("`git sandbox mirror serve` ended with {status}: {}", said.trim())));
            }
            fs::read_to_string(&out).ok().filter(|text| text.ends_with('\n')).map(Ok)
        })??;
        let printed: Value = serde_json::from_str(&printed).map_err(|error| error.to_string())?;
        let first = |key: &str| printed[key][0].as_str().unwrap_or_default().to_owned();
        let (http, git) = (first("http"), first("git"));
        for name in INPUTS {
            let url = format!("{http}/{direct}/{name}");
            until(&format!("'{name}' is mirrored"), || {
                time(git_in(env, env.root()).args(["ls-remote", "--exit-code", &url])).ok()
            })?;
            let found = mirrored(&store, direct, name)?;
            // The mirror's own packing is what the peers serve: what is compared is the serving.
            time(git_in(env, &found).args(["-c", "safe.bareRepository=all", "repack", "-adbq"]))?;
            time(Command::new("cp").arg("-R").arg(&found).arg(packed.join(format!("{name}.git"))))?;
        }
        let daemon = peers::daemon(env, &packed, None)?;
        let apache = peers::apache(env, &packed);
        if let Err(why) = &apache {
            eprintln!("  without Apache: {why}");
        }
        Ok(Self { http, git, store, upstreams, admin, mirror, daemon, apache, direct, about, _upstream: upstream })
    }

    /// What the mirror calls a repository.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.direct)
    }

    /// Where the mirror serves it by HTTP.
    pub fn ours(&self, name: &str) -> String {
        format!("{}/{}", self.http, self.name(name))
    }

    /// Where the mirror serves it by `git://`.
    pub fn ours_git(&self, name: &str) -> String {
        format!("{}/{}", self.git, self.name(name))
    }

    /// Where `git daemon` serves a copy of what the mirror has.
    pub fn daemon(&self, name: &str) -> String {
        format!("git://{}/{name}.git", self.daemon.address)
    }

    /// Where Apache does, if there is one.
    pub fn apache(&self, name: &str) -> Option<String> {
        self.apache.as_ref().ok().map(|peer| format!("http://{}/{name}.git", peer.address))
    }

    /// The upstream, 20 ms away: what users name.
    pub fn direct(&self, name: &str) -> String {
        format!("git://{}/{name}.git", self.direct)
    }

    /// The upstream's own repository.
    pub fn upstream(&self, name: &str) -> PathBuf {
        self.upstreams.join(format!("{name}.git"))
    }

    /// The mirror's repository.
    pub fn mirrored(&self, name: &str) -> Result<PathBuf, String> {
        mirrored(&self.store, self.direct, name)
    }

    /// The process of the service.
    pub fn pid(&self) -> u32 {
        self.mirror.pid()
    }

    /// Asks the administrator's socket; an answer that is not one of success is an error.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let stream = UnixStream::connect(&self.admin).map_err(|error| error.to_string())?;
        let answer = exchange(stream, method, path, "", &body.to_string())?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }

    /// Has the mirror look at its upstream, and waits for it.
    pub fn refresh(&self, name: &str) -> Result<(), String> {
        self.admin("POST", &format!("/v1/repos/{}/refresh", self.name(name)), &json!({})).map(drop)
    }

    /// A session that may push to a repository; returns the option of git that says who it is.
    pub fn session(&self, name: &str, id: &str) -> Result<String, String> {
        let asked = json!({ "id": id, "repos": [self.name(name)], "token": true });
        let granted = self.admin("POST", "/v1/sessions", &asked)?;
        let token = granted["token"].as_str().ok_or("no token")?;
        Ok(format!("http.extraHeader=Authorization: Bearer {token}"))
    }

    /// Tells the mirror, as a forge does, that something was pushed.
    pub fn hook(&self, name: &str) -> Result<(), String> {
        let address = self.http.trim_start_matches("http://");
        let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        let body = json!({ "project": { "git_http_url": self.direct(name) } });
        let token = format!("X-Gitlab-Token: {SECRET}\r\n");
        exchange(stream, "POST", "/hooks/gitlab", &token, &body.to_string()).map(drop)
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    header: &str,
    body: &str,
) -> Result<String, String> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n{header}");
    let mut answer = String::new();
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").map_err(|error| error.to_string())?;
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(body.to_owned()),
        _ => Err(format!("`{method} {path}`: {answer}")),
    }
}

fn mirrored(store: &Path, direct: SocketAddr, name: &str) -> Result<PathBuf, String> {
    let mirrors = fs::read_dir(store.join("mirrors")).map_err(|error| error.to_string())?;
    let prefix = format!("{}_{name}-", direct.to_string().replace(':', "_"));
    let mut mirrors = mirrors.flatten().map(|entry| entry.path());
    let found = mirrors.find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)));
    found.ok_or(format!("'{name}' is not in the store"))
}

/// Waits, two minutes at most, for something that comes.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if start.elapsed() > Duration::from_secs(120) {
            return Err(format!("not within two minutes: {what}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The environment's git.
pub fn git_in(env: &TestEnv, dir: &Path) -> Command {
    env.command(&env.git_used().path, dir)
}

/// What git prints, without the line's end.
pub fn printed(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
        false => Err(format!("{:?}: {}", command.get_args(), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
