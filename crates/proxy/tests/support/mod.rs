//! A proxy on loopback, servers to reach through it, and clients that send raw bytes.
#![allow(dead_code, reason = "each test file uses its part")]

use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use sandbox_protocol::event::{Event, Happened, Network, Verdict};
use sandbox_proxy::policy::{self, Rules};
use sandbox_proxy::{Config, Limits, ServeError, Who, serve};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before the test fails. Nothing waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Events = Arc<(Mutex<Vec<Network>>, Condvar)>;

/// A running proxy, ended when it goes out of scope.
pub struct Proxy {
    pub address: SocketAddr,
    dir: TempDir,
    events: Events,
    stop: Option<OwnedFd>,
    reader: Option<JoinHandle<()>>,
    serving: Option<JoinHandle<Result<(), ServeError>>>,
}

pub fn rules(allow: &[String], deny: &[&str]) -> Rules {
    let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    Rules { allow, deny: deny.iter().map(|text| text.parse().unwrap()).collect() }
}

pub fn config(listener: OwnedFd, policy: PathBuf, events: OwnedFd, limits: Limits) -> Config {
    Config {
        listener,
        policy,
        events,
        who: Box::new(|_| None),
        marker: Some("X-Test: blocked"),
        advice: |event| Some(format!("ask for {}", event.host)),
        limits,
    }
}

impl Proxy {
    pub fn start(allow: &[String]) -> Self {
        Self::with(allow, &[], Limits::default(), Box::new(|_| None))
    }

    pub fn limited(allow: &[String], limits: Limits) -> Self {
        Self::with(allow, &[], limits, Box::new(|_| None))
    }

    pub fn with(allow: &[String], deny: &[&str], limits: Limits, who: Who) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        policy::write(&path, &rules(allow, deny)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (stopped, stop) = rustix::pipe::pipe().unwrap();
        let events = Events::default();
        let seen = events.clone();
        let reader = std::thread::spawn(move || collect(read, stopped, &seen));
        let config = Config { who, ..config(listener.into(), path, write, limits) };
        let serving = std::thread::spawn(move || serve(config));
        Self { address, dir, events, stop: Some(stop), reader: Some(reader), serving: Some(serving) }
    }

    pub fn policy(&self) -> PathBuf {
        self.dir.path().join("network.json")
    }

    /// Waits until there is an event like this and returns it.
    pub fn event(&self, like: impl Fn(&Network) -> bool) -> Network {
        let (events, changed) = &*self.events;
        let until = Instant::now() + PATIENCE;
        let mut guard = events.lock().unwrap();
        loop {
            if let Some(event) = guard.iter().find(|event| like(event)) {
                return event.clone();
            }
            let left = until.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("only {guard:#?}"));
            guard = changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    /// Waits until there are so many events like this.
    pub fn events_like(&self, count: usize, like: impl Fn(&Network) -> bool) -> Vec<Network> {
        let (events, changed) = &*self.events;
        let guard = events.lock().unwrap();
        let enough = |events: &mut Vec<Network>| events.iter().filter(|event| like(event)).count() < count;
        let (guard, late) = changed.wait_timeout_while(guard, PATIENCE, enough).unwrap();
        assert!(!late.timed_out(), "only {guard:#?}");
        guard.iter().filter(|event| like(event)).cloned().collect()
    }

    /// All that was written so far.
    pub fn events(&self) -> Vec<Network> {
        self.events.0.lock().unwrap().clone()
    }

    /// Sends bytes and reads what comes until the end.
    pub fn talk(&self, bytes: &[u8]) -> String {
        let mut client = connect(self.address);
        client.write_all(bytes).unwrap();
        to_end(&mut client)
    }

    /// Asks for a tunnel and returns it with the status that was answered.
    pub fn tunnel(&self, target: &str) -> (TcpStream, u16) {
        let mut client = connect(self.address);
        client.write_all(connect_request(target).as_bytes()).unwrap();
        let head = head(&mut client);
        let status = status(&head);
        (client, status)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The reader goes, and with it the proxy.
        self.stop = None;
        self.reader.take().unwrap().join().unwrap();
        let ended = self.serving.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn collect(read: OwnedFd, stopped: OwnedFd, events: &Events) {
    let mut file = File::from(read);
    let mut text = Vec::new();
    loop {
        let mut fds = [PollFd::new(&file, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        if !fds[1].revents().is_empty() {
            return;
        }
        let mut bytes = [0; 4096];
        let n = file.read(&mut bytes).unwrap();
        if n == 0 {
            return;
        }
        text.extend_from_slice(&bytes[..n]);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            events.0.lock().unwrap().push(parsed(&line));
            events.1.notify_all();
        }
    }
}

pub fn parsed(line: &[u8]) -> Network {
    match serde_json::from_slice::<Event>(line).unwrap_or_else(|error| panic!("{error}: {line:?}")).what {
        Happened::Network(network) => network,
        other => panic!("{other:?}"),
    }
}

pub fn refused(reason: &str) -> impl Fn(&Network) -> bool + '_ {
    move |event| event.verdict == Verdict::Refused && event.reason.as_deref() == Some(reason)
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub fn connect_request(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: probe/1.0\r\n\r\n")
}

/// What comes until the end; a reset is one.
pub fn to_end(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One head, not a byte more.
pub fn head(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).unwrap() {
            0 => break,
            _ => bytes.push(byte[0]),
        }
    }
    String::from_utf8(bytes).unwrap()
}

pub fn status(answer: &str) -> u16 {
    let code = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// A server on loopback that does this with each connection, until the test's process ends.
pub fn server(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let handle = handle.clone();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// What a server has seen, in the order in which its connections have ended.
pub type Seen = Arc<(Mutex<Vec<Vec<u8>>>, Condvar)>;

/// A server that keeps what it is sent until the end, says `answer` and ends.
pub fn sink(answer: &'static [u8]) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let kept = seen.clone();
    let address = server(move |mut stream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = stream.write_all(answer);
        kept.0.lock().unwrap().push(bytes);
        kept.1.notify_all();
    });
    (address, seen)
}

/// Waits for so many ended connections.
pub fn wait_seen(seen: &Seen, count: usize) -> Vec<Vec<u8>> {
    let guard = seen.0.lock().unwrap();
    let (guard, late) = seen.1.wait_timeout_while(guard, PATIENCE, |seen| seen.len() < count).unwrap();
    assert!(!late.timed_out(), "{} of {count}", guard.len());
    guard.clone()
}

/// A plain server: answers each request of a connection with `reached METHOD TARGET HOST BODY-LENGTH`;
/// `/redirect` with a 302 to evil.test.
pub fn plain() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let kept = requests.clone();
    let address = server(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some((head, body)) = request(&mut reader) {
            kept.lock().unwrap().push(head.clone());
            let line = head.lines().next().unwrap().to_owned();
            let host = field(&head, "host").unwrap_or_default();
            let text = format!("reached {line} {host} {}\n", body.len());
            let answer = if line.contains("/redirect") {
                "HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n".to_owned()
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n{text}",
                    text.len()
                )
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

pub fn field(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn request(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let mut body = Vec::new();
    if field(&head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk).ok()?;
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    } else if let Some(length) = field(&head, "content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    }
    Some((head, body))
}

/// A certificate for these names, and the one authority of a client that believes it.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub fn new(names: &[&str]) -> Self {
        let made =
            rcgen::generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        Self { certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.clone()).unwrap();
        Arc::new(
            ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(vec![self.certificate.clone()], key)
                .unwrap(),
        )
    }

    pub fn client(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }
}

/// A TLS server that answers `reached NAME` to each request head.
pub fn tls(identity: &Identity) -> SocketAddr {
    let config = identity.server();
    server(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        let mut reader = BufReader::new(&mut tls);
        while let Some((head, body)) = request(&mut reader) {
            let text = format!("reached {} {}\n", field(&head, "host").unwrap_or_default(), body.len());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub fn over(stream: TcpStream, name: &str, config: Arc<ClientConfig>) -> Tls {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream)
}

/// One request over a TLS connection, and its whole answer.
pub fn get(tls: &mut Tls, host: &str, body: &[u8]) -> io::Result<String> {
    let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
    tls.write_all(head.as_bytes())?;
    tls.write_all(body)?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        match tls.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
    Ok(String::from_utf8(answer).unwrap())
}

/// The first flight of a client that asks for `name`, an address for none.
pub fn hello(name: &str) -> Vec<u8> {
    let config = Identity::new(&["unused.test"]).client();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(config, name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// The same in records of at most so many bytes.
pub fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let (header, message) = hello.split_at(5);
    let record = |part: &[u8]| [&header[..3], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(size).flat_map(record).collect()
}
