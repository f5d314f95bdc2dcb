//! Where a mirror is.

use hickory_resolver::TokioResolver;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Pause between two attempts on a Unix socket whose queue is full.
const FULL: Duration = Duration::from_millis(2);

/// A mirror's address: the value of `sandbox.mirror`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://HOST[:PORT]`.
    Tcp {
        /// A name or an address.
        host: String,
        /// 80 unless it is said.
        port: u16,
    },
    /// `unix:/PATH`.
    Unix(PathBuf),
}

/// What is wrong with the address of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not the address of a mirror")]
pub struct BadEndpoint {
    /// What was given.
    pub text: String,
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return path.is_absolute().then(|| Self::Unix(path.to_owned())).ok_or_else(bad);
        }
        let rest = text.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
        // Neither a path nor a name: what is said to whom is not a part of where it is.
        if rest.contains(['/', '@', '?', '#']) || rest.bytes().any(|b| b <= b' ' || b >= 0x7f) {
            return Err(bad());
        }
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port.strip_prefix(':')),
            Some(_) => return Err(bad()),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| bad()))?;
        if host.is_empty() || port == 0 {
            return Err(bad());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Either kind of connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Endpoint {
    /// What a request names as its host.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if *port == 80 { host } else { format!("{host}:{port}") }
            }
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The URL that git can use, if it can: it speaks HTTP over TCP only.
    pub fn url(&self) -> Option<String> {
        matches!(self, Self::Tcp { .. }).then(|| self.to_string())
    }

    /// Its addresses. A static program must not ask NSS: `/etc/hosts` and name servers are read here.
    pub(crate) fn addresses(host: &str, port: u16, until: Instant) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        if host == "localhost" {
            return Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let found = tokio::time::timeout(left(until)?, resolve(host)).await;
            let found = found.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
        })
    }

    /// Connects before an instant, whatever hangs.
    pub(crate) fn connect(&self, until: Instant) -> io::Result<Stream> {
        match self {
            Self::Tcp { host, port } => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in Self::addresses(host, *port, until)? {
                    match TcpStream::connect_timeout(&address, left(until)?) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Self::Unix(path) => {
                let address = SocketAddrUnix::new(path)?;
                // Where nobody accepts, the queue fills up, and a blocking connect would never come back.
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                loop {
                    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                    match connect(&socket, &address) {
                        Ok(()) => {
                            let stream = UnixStream::from(socket);
                            stream.set_nonblocking(false)?;
                            return Ok(Stream::Unix(stream));
                        }
                        Err(rustix::io::Errno::AGAIN) => std::thread::sleep(FULL.min(left(until)?)),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
}

/// The addresses of a name.
pub(crate) async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    let failed = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::NotFound, error.to_string());
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(|e| failed(&e))?;
    Ok(resolver.lookup_ip(host).await.map_err(|e| failed(&e))?.iter().collect())
}

/// The time that is left; an error when there is none.
pub(crate) fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Stream {
    /// Gives reads and writes until then.
    pub(crate) fn until(&self, until: Instant) -> io::Result<()> {
        let left = Some(left(until)?);
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.set_write_timeout(left)),
            Self::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.set_write_timeout(left)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_mirrors_are_read() {
        let shown = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        for (text, is) in [
            ("http://127.0.0.1:9480", "http://127.0.0.1:9480"),
            ("http://mirror.example/", "http://mirror.example"),
            ("http://mirror:80", "http://mirror"),
            ("http://[::1]:9480/", "http://[::1]:9480"),
            ("unix:/run/git-sandbox/mirror.sock", "unix:/run/git-sandbox/mirror.sock"),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(is), "{text}");
        }
        for text in [
            "",
            "http://",
            "https://mirror",
            "http://user@mirror",
            "http://mirror/path",
            "http://mirror:0",
            "http://mirror:65536",
            "http://[::1",
            "http://[mirror]:80",
            "http://a b",
            "unix:relative",
            "unix:",
            "git://mirror",
        ] {
            assert_eq!(
                shown(text).unwrap_err().to_string(),
                format!("'{text}' is not the address of a mirror"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_full_queue_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let endpoint = Endpoint::Unix(path);
        let until = || Instant::now() + Duration::from_millis(50);
        let mut kept = Vec::new();
        let error = loop {
            match endpoint.connect(until()) {
                Ok(stream) if kept.len() < 64 => kept.push(stream),
                Ok(_) => panic!("the queue has no end"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
