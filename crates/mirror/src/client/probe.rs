//! Whether a mirror answers, and what it has of one repository.

use super::endpoint::Endpoint;
use super::request::{Request, exchange};
use crate::layout::Layout;
use crate::name::RepoName;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a mirror may take to say that it is healthy, unless the user says otherwise.
pub const PROBE: Duration = Duration::from_millis(100);
/// How long it may take to say what it has; it has just said that it is healthy.
const STATUS: Duration = Duration::from_millis(250);

/// Why a mirror is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// None is set.
    None,
    /// Nobody listens there, or it cannot be reached.
    Unreachable(String),
    /// It did not answer in time.
    Silent,
    /// It answers, and is not well.
    Unwell(u16),
    /// It does not have this repository, or not yet.
    Without,
    /// The repository has no name on a mirror: a path, or a scheme that mirrors do not fetch from.
    Unnamed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no mirror is set"),
            Self::Unreachable(said) => write!(f, "the mirror cannot be reached ({said})"),
            Self::Silent => f.write_str("the mirror does not answer"),
            Self::Unwell(status) => write!(f, "the mirror is not well (status {status})"),
            Self::Without => f.write_str("the mirror does not have it"),
            Self::Unnamed => f.write_str("a mirror does not have repositories of this kind"),
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Silent,
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

/// Asks whether it is healthy; `limit` is for everything, name service included.
pub fn probe(endpoint: &Endpoint, limit: Duration) -> Result<(), Why> {
    match exchange(endpoint, &Request::get("/healthz"), limit)?.status {
        200 => Ok(()),
        status => Err(Why::Unwell(status)),
    }
}

/// What a mirror has of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Where its objects are, if that is on this machine and can be read.
    pub store: Option<PathBuf>,
}

/// Who asks a mirror, and where.
#[derive(Clone, Debug)]
pub struct Asker<'a> {
    /// Where it is.
    pub endpoint: &'a Endpoint,
    /// The token of a session.
    pub bearer: Option<&'a str>,
    /// The root of its store, if that is on this machine (`sandbox.mirrorStore`).
    pub store: Option<&'a Path>,
}

/// Asks what it has of a repository.
pub fn offer(asker: &Asker<'_>, name: &RepoName) -> Result<Offer, Why> {
    // What git asks first: whoever answers this has the repository, whatever else it is able to do.
    let path = format!("/{}/info/refs?service=git-upload-pack", name.url_path());
    let request = Request { bearer: asker.bearer, git: true, ..Request::get(&path) };
    match exchange(asker.endpoint, &request, STATUS)?.status {
        200 => {
            let store = asker.store.map(|root| Layout::new(root).mirror(name));
            // Another machine's, or another user's, is none.
            let readable = |store: &PathBuf| store.join("objects").read_dir().is_ok() && store.join("HEAD").is_file();
            Ok(Offer { store: store.filter(readable) })
        }
        300..=499 => Err(Why::Without),
        status => Err(Why::Unwell(status)),
    }
}

/// Asks it to have commits and refs, and waits for them; whether they are there then is looked at in the clone.
pub fn ensure(asker: &Asker<'_>, name: &RepoName, commits: &[&str], patience: Duration) -> Result<(), Why> {
    let body = serde_json::json!({ "commits": commits, "timeout_ms": patience.as_millis() as u64 }).to_string();
    let path = format!("/{}/ensure", name.url_path());
    let request = Request { method: "POST", body: Some(&body), bearer: asker.bearer, ..Request::get(&path) };
    exchange(asker.endpoint, &request, patience + STATUS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A mirror of one answer.
    fn answering(text: &'static str) -> (Endpoint, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut byte = [0u8; 1];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                head.push(byte[0]);
            }
            stream.write_all(text.as_bytes()).unwrap();
            String::from_utf8(head).unwrap()
        });
        (Endpoint::Tcp { host: "127.0.0.1".into(), port }, served)
    }

    #[test]
    fn a_healthy_one_is_told_from_others() {
        let long = Duration::from_secs(20);
        let (endpoint, served) = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(probe(&endpoint, long), Ok(()));
        assert!(served.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"));
        let (endpoint, served) = answering("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(probe(&endpoint, long), Err(Why::Unwell(503)));
        served.join().unwrap();
        // Nobody listens there any more.
        assert!(matches!(probe(&endpoint, long), Err(Why::Unreachable(_))));
        // The kernel accepts, nobody answers.
        let hole = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = hole.local_addr().unwrap().port();
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port };
        assert_eq!(probe(&endpoint, Duration::from_millis(30)), Err(Why::Silent));
    }

    #[test]
    fn what_it_has_is_asked_as_git_asks_and_a_foreign_store_is_none() {
        let name: RepoName = "h/o/n".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Layout::new(dir.path()).mirror(&name);
        for readable in [false, true] {
            if readable {
                std::fs::create_dir_all(store.join("objects")).unwrap();
                std::fs::write(store.join("HEAD"), "ref: refs/heads/main\n").unwrap();
            }
            let (endpoint, served) = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            let asker = Asker { endpoint: &endpoint, bearer: Some("s3cret"), store: Some(dir.path()) };
            assert_eq!(offer(&asker, &name), Ok(Offer { store: readable.then(|| store.clone()) }));
            let head = served.join().unwrap();
            assert!(head.starts_with("GET /h/o/n/info/refs?service=git-upload-pack HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nAuthorization: Bearer s3cret\r\nGit-Protocol: version=2\r\n"), "{head}");
        }
        let (endpoint, served) = answering("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n");
        let asker = Asker { endpoint: &endpoint, bearer: None, store: None };
        assert_eq!(offer(&asker, &name), Err(Why::Without));
        served.join().unwrap();
    }

    #[test]
    fn each_reason_is_said() {
        let all = [
            Why::None,
            Why::Unreachable("Connection refused".into()),
            Why::Silent,
            Why::Unwell(503),
            Why::Without,
            Why::Unnamed,
        ];
        insta::assert_snapshot!(all.map(|why| why.to_string()).join("\n"), @"
        no mirror is set
        the mirror cannot be reached (Connection refused)
        the mirror does not answer
        the mirror is not well (status 503)
        the mirror does not have it
        a mirror does not have repositories of this kind
        ");
    }
}
