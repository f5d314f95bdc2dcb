//! The head of a request, read strictly before anybody else sees it.
//!
//! Whoever reads a message more leniently than the next one can be made to see another message. So
//! what is unusual is refused, not mended: bare line feeds and carriage returns, folded lines,
//! control and 8-bit bytes, two `Host`s, `Content-Length` together with `Transfer-Encoding`, names
//! with a user in front. What passes is given to hyper byte by byte as it came; both use httparse.
//!
//! HTTP/1.1 only, with one exception: `CONNECT … HTTP/1.0`, which has no body and no connection to
//! keep, so that nothing about it can be read in two ways. Python's `http.client` sends it up to 3.11.

use crate::policy::{Reason, Target};
use crate::rule::{canonical_host, parse_port};
use sha2::{Digest, Sha256};

/// Fields of the largest head.
pub(crate) const MAX_FIELDS: usize = 100;
/// Bytes of a method or of a process name in an event.
const MAX_WORD: usize = 32;
/// Bytes of a host in an event.
const MAX_HOST: usize = 255;

/// A head that can be decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `CONNECT`, or the method of a plain request.
    pub method: String,
    /// What is asked for.
    pub target: Target,
    /// Path and query of a plain request; `None` with `CONNECT`.
    pub path: Option<String>,
    /// The body that follows.
    pub body: Framing,
    /// The client would send another request over this connection.
    pub keep_alive: bool,
    /// The first word of `User-Agent`, without its version.
    pub agent: Option<String>,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length in bytes; 0 for none.
    Length(u64),
    /// By its chunks.
    Chunked,
}

/// A head that is refused as it is, with what could be read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Why.
    pub reason: Reason,
    /// The method, escaped and cut.
    pub method: String,
    /// The host that was asked for, escaped and cut.
    pub host: String,
    /// The port; 0 when there was none.
    pub port: u16,
    /// The first word of `User-Agent`.
    pub agent: Option<String>,
}

impl Wrong {
    fn new(reason: Reason) -> Self {
        Self { reason, method: String::new(), host: String::new(), port: 0, agent: None }
    }
}

/// Reads a head from the beginning of what has come: `None` if more must come, else the head and its
/// length in bytes. `max` is the number of bytes that a head may have.
pub fn read(bytes: &[u8], max: usize) -> Result<Option<(Head, usize)>, Box<Wrong>> {
    let end =
        find_end(&bytes[..bytes.len().min(max)]).map_err(|at| Box::new(described(Reason::Malformed, &bytes[..at])))?;
    match end {
        Some(end) => parse(&bytes[..end]).map(|head| Some((head, end))).map_err(Box::new),
        None if bytes.len() > max => Err(Box::new(described(Reason::TooLarge, &bytes[..max]))),
        None => Ok(None),
    }
}

/// A head that did not come to its end in time.
pub(crate) fn slow(bytes: &[u8]) -> Wrong {
    described(Reason::Slow, bytes)
}

/// The end of the empty line; an error is the place of a byte that no head has.
fn find_end(bytes: &[u8]) -> Result<Option<usize>, usize> {
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b' '..=b'~' => {}
            b'\r' if bytes.get(at + 1).is_none_or(|next| *next == b'\n') => {}
            b'\n' if at > 0 && bytes[at - 1] == b'\r' => {
                // An empty line in front of everything is the rest of something else.
                if at == 1 {
                    return Err(at);
                }
                if at >= 3 && bytes[at - 2] == b'\n' {
                    return Ok(Some(at + 1));
                }
            }
            _ => return Err(at),
        }
    }
    Ok(None)
}

/// What an event can say of a head that could not be read.
fn described(reason: Reason, bytes: &[u8]) -> Wrong {
    let line = bytes.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let mut wrong = Wrong::new(reason);
    wrong.method = shown(words.next().unwrap_or_default(), MAX_WORD);
    let target = words.next().unwrap_or_default();
    let target = target.strip_prefix(b"http://").unwrap_or(target);
    wrong.host = shown(target.split(|byte| *byte == b'/').next().unwrap_or_default(), MAX_HOST);
    wrong
}

fn shown(bytes: &[u8], max: usize) -> String {
    sandbox_protocol::escape_bytes(&bytes[..bytes.len().min(max)])
}

fn parse(bytes: &[u8]) -> Result<Head, Wrong> {
    let malformed = || described(Reason::Malformed, bytes);
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(described(Reason::TooLarge, bytes)),
        _ => return Err(malformed()),
    }
    let (Some(method), Some(uri), Some(version)) = (request.method, request.path, request.version) else {
        return Err(malformed());
    };
    // Exactly one space on each side, whatever the parser would forgive.
    let line = format!("{method} {uri} HTTP/1.{version}\r\n");
    if !bytes.starts_with(line.as_bytes()) {
        return Err(malformed());
    }
    let fields = Fields(request.headers);
    let agent = fields.first("user-agent").map(agent_word);
    let wrong = |reason| Wrong { agent: agent.clone(), ..described(reason, bytes) };

    let connect = method == "CONNECT";
    if version != 1 && !connect {
        return Err(wrong(Reason::Malformed));
    }
    if matches!(method, "TRACE" | "TRACK") {
        return Err(wrong(Reason::Method));
    }
    let body = fields.framing().ok_or_else(|| wrong(Reason::Malformed))?;
    if connect && body != Framing::Length(0) {
        return Err(wrong(Reason::Malformed));
    }
    let (authority, path) = if connect {
        (uri, None)
    } else {
        let (authority, path) = absolute(uri).ok_or_else(|| wrong(Reason::Malformed))?;
        (authority, Some(path))
    };
    let (host, port) = split_authority(authority);
    let wrong = |reason| {
        let port = port.and_then(|port| parse_port(port).ok()).or((!connect).then_some(80)).unwrap_or(0);
        Wrong { host: shown(host, MAX_HOST), port, ..wrong(reason) }
    };
    // A user in front would be one more way to write a name that reads like another.
    if host.contains(&b'@') {
        return Err(wrong(Reason::Malformed));
    }
    let canonical = canonical_host(host).map_err(|_| wrong(Reason::Name))?;
    let port = match port {
        // Not written with zeros, signs or nothing at all: one spelling here too.
        Some("0") => 0,
        Some(port) if !port.starts_with('0') => parse_port(port).map_err(|_| wrong(Reason::Malformed))?,
        None if !connect => 80,
        _ => return Err(wrong(Reason::Malformed)),
    };
    let target = Target { host: canonical, port };
    let named = |field: &[u8]| {
        let (host, port) = split_authority(std::str::from_utf8(field).ok()?);
        let port = match port {
            Some(port) => parse_port(port).ok()?,
            None if connect => target.port,
            None => 80,
        };
        Some(Target { host: canonical_host(host).ok()?, port })
    };
    match fields.all("host").as_slice() {
        [] if connect && version == 0 => {}
        [one] if named(one).as_ref() == Some(&target) => {}
        _ => return Err(wrong(Reason::HostHeader)),
    }
    let closes =
        |name| fields.all(name).iter().any(|value| tokens(value).any(|token| token.eq_ignore_ascii_case("close")));
    Ok(Head {
        method: method.to_owned(),
        target,
        path,
        body,
        keep_alive: version == 1 && !closes("connection") && !closes("proxy-connection"),
        agent,
    })
}

/// Authority, and path with query, of `http://AUTHORITY[PATH][?QUERY]`.
fn absolute(uri: &str) -> Option<(&str, String)> {
    let scheme = uri.get(..7)?;
    if !scheme.eq_ignore_ascii_case("http://") || uri.contains('#') {
        return None;
    }
    let rest = &uri[7..];
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Some((authority, if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }))
}

/// Host and port of an authority, as they are written.
fn split_authority(authority: &str) -> (&[u8], Option<&str>) {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_bracket..].find(':') {
        Some(colon) => {
            let at = after_bracket + colon;
            (&authority.as_bytes()[..at], Some(&authority[at + 1..]))
        }
        None => (authority.as_bytes(), None),
    }
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> Vec<&'a [u8]> {
        self.0.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    }

    fn first(&self, name: &str) -> Option<&'a [u8]> {
        self.0.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// One length in plain digits, or chunks and nothing else; `None` when it could be read in two ways.
    fn framing(&self) -> Option<Framing> {
        match (self.all("content-length").as_slice(), self.all("transfer-encoding").as_slice()) {
            ([], []) => Some(Framing::Length(0)),
            ([length], []) => {
                let digits = (1..=18).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
                digits.then(|| std::str::from_utf8(length).ok()?.parse().ok().map(Framing::Length))?
            }
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Some(Framing::Chunked),
            _ => None,
        }
    }
}

/// The members of a comma-separated field.
fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(value).unwrap_or_default().split(',').map(str::trim)
}

/// The first word of `User-Agent`, up to its version.
fn agent_word(value: &[u8]) -> String {
    let word = value.split(|byte| matches!(byte, b' ' | b'/' | b'(')).next().unwrap_or_default();
    word_shown(word)
}

/// The name of a process as an event has it: escaped, at most 32 characters.
pub(crate) fn word_shown(word: &[u8]) -> String {
    shown(word, MAX_WORD).chars().filter(|c| !c.is_control()).take(MAX_WORD).collect()
}

/// What tells requests apart without keeping them: the first eight bytes of the digest of path and query.
pub(crate) fn path_hash(path: &str) -> String {
    Sha256::digest(path.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
