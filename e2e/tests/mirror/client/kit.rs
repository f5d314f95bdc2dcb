//! Real servers on loopback for the tests of clients: smart HTTP by `git http-backend`, as an upstream and as a mirror.

use sandbox_testkit::TestEnv;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a server does with requests for repositories that it does not have, or with all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Serves what it has; else 404.
    Serves,
    /// Sends to this base for everything.
    Sends(String),
    /// Is healthy, and fails at every pack.
    Fails,
}

/// A server of repositories below a directory.
pub struct Server {
    pub port: u16,
    /// `GET /path`, one for each request.
    pub requests: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    wake: Wake,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    Tcp(u16),
    Unix(PathBuf),
}

trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

impl Server {
    /// Listens on a free port.
    pub fn new(env: &TestEnv, root: &Path, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        Self::with(env, root, manner, port, Wake::Tcp(port), move || {
            listener.accept().map(|(stream, _)| {
                let _ = stream.set_nodelay(true);
                Box::new(stream) as Box<dyn Both>
            })
        })
    }

    /// Listens on a Unix socket.
    pub fn unix(env: &TestEnv, root: &Path, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::with(env, root, Manner::Serves, 0, Wake::Unix(path.to_owned()), move || {
            listener.accept().map(|(stream, _)| Box::new(stream) as Box<dyn Both>)
        })
    }

    fn with(
        env: &TestEnv,
        root: &Path,
        manner: Manner,
        port: u16,
        wake: Wake,
        accept: impl Fn() -> std::io::Result<Box<dyn Both>> + Send + 'static,
    ) -> Self {
        let (end, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let shared = Arc::new(Shared {
            git: env.git_used().path.clone(),
            home: env.home(),
            root: root.to_owned(),
            manner,
            requests: requests.clone(),
        });
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            let mut all: Vec<JoinHandle<()>> = Vec::new();
            while let Ok(stream) = accept() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let shared = shared.clone();
                all.push(std::thread::spawn(move || shared.serve(stream)));
            }
            for one in all {
                let _ = one.join();
            }
        });
        Self { port, requests, end, wake, thread: Some(thread) }
    }

    /// The URL of what is below its directory.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What was asked so far whose path contains `part`.
    pub fn asked(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        match &self.wake {
            Wake::Tcp(port) => drop(TcpStream::connect(("127.0.0.1", *port))),
            Wake::Unix(path) => drop(UnixStream::connect(path)),
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Shared {
    git: PathBuf,
    home: PathBuf,
    root: PathBuf,
    manner: Manner,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Shared {
    /// One request; the connection is closed after it.
    fn serve(&self, stream: Box<dyn Both>) {
        let mut stream = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let found = lines.iter().filter_map(|line| line.split_once(": "));
            found.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let mut words = lines[0].split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        self.requests.lock().unwrap().push(format!("{method} {target}"));
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let answer = |stream: &mut BufReader<Box<dyn Both>>, head: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let out = stream.get_mut();
            let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
        };
        let body = body(&mut stream, &header);
        if path == "/healthz" {
            return answer(&mut stream, "200 OK", b"ok\n");
        }
        match &self.manner {
            Manner::Sends(base) => {
                return answer(&mut stream, &format!("302 Found\r\nLocation: {base}{target}"), b"");
            }
            Manner::Fails if method == "POST" => return answer(&mut stream, "500 Broken", b"broken\n"),
            _ => {}
        }
        let mut command = Command::new(&self.git);
        command
            .arg("http-backend")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", &method)
            .env("REMOTE_USER", "tester")
            .env("CONTENT_LENGTH", body.len().to_string());
        for (name, variable) in [
            ("content-type", "CONTENT_TYPE"),
            ("content-encoding", "HTTP_CONTENT_ENCODING"),
            ("git-protocol", "GIT_PROTOCOL"),
        ] {
            if let Some(value) = header(name) {
                command.env(variable, value);
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let fed = std::thread::spawn(move || drop(stdin.write_all(&body)));
        let mut out = Vec::new();
        let _ = child.stdout.take().unwrap().read_to_end(&mut out);
        let _ = (fed.join(), child.wait());
        let Some(at) = out.windows(4).position(|four| four == b"\r\n\r\n") else {
            return answer(&mut stream, "500 Silent", b"");
        };
        let head = String::from_utf8_lossy(&out[..at]).into_owned();
        let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
        let rest: Vec<&str> = head.lines().filter(|line| !line.starts_with("Status: ")).collect();
        answer(&mut stream, &[vec![status.as_str()], rest].concat().join("\r\n"), &out[at + 4..]);
    }
}

fn body(stream: &mut BufReader<Box<dyn Both>>, header: &impl Fn(&str) -> Option<String>) -> Vec<u8> {
    if header("expect").is_some() {
        let _ = stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let mut body = Vec::new();
    if header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            let _ = stream.read_line(&mut size);
            let size = u64::from_str_radix(size.trim(), 16).unwrap_or(0);
            let _ = stream.take(size).read_to_end(&mut body);
            let mut end = String::new();
            let _ = stream.read_line(&mut end);
            if size == 0 {
                return body;
            }
        }
    }
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let _ = stream.take(length).read_to_end(&mut body);
    body
}

/// An upstream with a repository `o/n` of 20 commits, and the directory of a mirror that has it.
pub struct World {
    pub upstream: Server,
    /// What recipes name.
    pub url: String,
    /// `host/owner/name`, as a mirror calls it.
    pub name: String,
    /// Where the mirrors are.
    pub mirrors: PathBuf,
}

impl World {
    /// Makes it.
    pub fn new(env: &TestEnv) -> Self {
        let root = env.root().join("upstream");
        let bare = root.join("o/n");
        std::fs::create_dir_all(&root).unwrap();
        let script = format!(
            "set -e; git init -q work; cd work; mkdir -p a b/c\n\
             for i in $(seq 1 20); do echo a$i > a/one; echo b$i > b/c/two; echo $i > top; git add .; \
             git commit -q -m \"c$i\"; done\n\
             git tag v1 HEAD~5; git branch side HEAD~3\n\
             git clone -q --bare . '{0}'\n\
             git -C '{0}' config http.receivepack true; git -C '{0}' config uploadpack.allowFilter true",
            bare.display()
        );
        env.run(env.command("sh", &env.home()).args(["-c", &script])).ok();
        let upstream = Server::new(env, &root, Manner::Serves);
        let name = format!("127.0.0.1:{}/o/n", upstream.port);
        let mirrors = env.root().join("mirrors");
        let copy = mirrors.join(&name);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        env.git(env.root(), &["clone", "-q", "--mirror", bare.to_str().unwrap(), copy.to_str().unwrap()]).ok();
        for (key, value) in [
            ("uploadpack.allowFilter", "true"),
            ("uploadpack.allowAnySHA1InWant", "true"),
            ("http.receivepack", "true"),
            ("receive.hideRefs", "refs"),
        ] {
            env.git(&copy, &["config", key, value]).ok();
        }
        env.git(&copy, &["config", "--add", "receive.hideRefs", "!refs/agents"]).ok();
        let url = upstream.url("o/n");
        Self { upstream, url, name, mirrors }
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        self.upstream.requests.lock().unwrap().clear();
    }
}

/// A mirror that answers the probe and the first question of git, and hangs from then on.
pub struct Hanging {
    pub url: String,
    reached: std::sync::mpsc::Receiver<()>,
    end: Arc<AtomicBool>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

/// Makes one.
pub fn hanging() -> Hanging {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (reach, reached) = std::sync::mpsc::channel();
    let end = Arc::new(AtomicBool::new(false));
    let ended = end.clone();
    let thread = std::thread::spawn(move || {
        let mut kept = Vec::new();
        for (n, stream) in listener.incoming().enumerate() {
            if ended.load(Ordering::SeqCst) {
                return;
            }
            let mut stream = stream.unwrap();
            // The probe, then our own look at what it has; from then on it is git.
            if n >= 2 {
                let _ = reach.send(());
                kept.push(stream);
                continue;
            }
            let mut head = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while head.read_line(&mut line).unwrap_or(0) > 2 {
                line.clear();
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        }
    });
    Hanging { url: format!("http://127.0.0.1:{port}"), reached, end, port, thread: Some(thread) }
}

impl Hanging {
    /// Waits until git has connected.
    pub fn wait_for_git(&self) {
        self.reached.recv_timeout(std::time::Duration::from_secs(60)).expect("git connects");
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An administrator's listener that grants every session that is asked for, by a token.
pub struct Administrator {
    /// `unix:/…`.
    pub address: String,
    granted: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Administrator {
    /// Listens.
    pub fn new(env: &TestEnv) -> Self {
        let path = env.root().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (end, granted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ended, all) = (end.clone(), granted.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = BufReader::new(stream.unwrap());
                let (mut length, mut line) = (0, String::new());
                while stream.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                if length == 0 {
                    let _ = stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
                    all.lock().unwrap().push("forgotten".to_owned());
                    continue;
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let id = asked["id"].as_str().unwrap().to_owned();
                let answer = format!("{{\"token\":\"t-{id}\"}}");
                all.lock().unwrap().push(id);
                let head = format!("HTTP/1.1 201 Created\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
                let _ = stream.get_mut().write_all(head.as_bytes());
            }
        });
        Self { address: format!("unix:{}", path.display()), granted, end, path, thread: Some(thread) }
    }

    /// The sessions so far.
    pub fn granted(&self) -> Vec<String> {
        self.granted.lock().unwrap().clone()
    }
}

impl Drop for Administrator {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
