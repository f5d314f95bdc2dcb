//! One HTTP/1.1 exchange on a connection of its own, with a deadline for all of it.

use super::endpoint::{Endpoint, Stream, left};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// Bytes of an answer that are read at most.
const MOST: usize = 1 << 20;
/// Headers of an answer.
const HEADERS: usize = 64;

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// JSON.
    pub(crate) body: Option<&'a str>,
    pub(crate) bearer: Option<&'a str>,
    /// In the second version of git's protocol.
    pub(crate) git: bool,
}

impl<'a> Request<'a> {
    /// A plain question.
    pub(crate) fn get(path: &'a str) -> Self {
        Self { method: "GET", path, body: None, bearer: None, git: false }
    }

    fn text(&self, host: &str) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n", self.method, self.path);
        if let Some(bearer) = self.bearer {
            text.push_str(&format!("Authorization: Bearer {bearer}\r\n"));
        }
        if self.git {
            text.push_str("Git-Protocol: version=2\r\n");
        }
        if let Some(body) = self.body {
            text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        text + "\r\n" + self.body.unwrap_or_default()
    }
}

/// Sends one request and reads the answer.
pub(crate) fn exchange(endpoint: &Endpoint, request: &Request<'_>, limit: Duration) -> io::Result<Answer> {
    let until = Instant::now() + limit;
    let mut stream = sent(endpoint, request, until)?;
    let mut received = Vec::new();
    answer(&mut stream, &mut received, until)
}

/// Sends a request on any stream, whose single reads have limits of their own, and reads the answer.
pub(crate) fn over(stream: &mut (impl Read + Write), text: &str, until: Instant) -> io::Result<Answer> {
    stream.write_all(text.as_bytes())?;
    stream.flush()?;
    let (mut received, mut buffer) = (Vec::new(), [0u8; 8192]);
    loop {
        if let Some(answer) = parse(&received, false)? {
            return Ok(answer);
        }
        left(until)?;
        match stream.read(&mut buffer) {
            Ok(0) => return parse(&received, true)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if received.len() > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of more than 1 MiB"));
        }
    }
}

/// Sends one request, and writes the body of a 200 to `sink`, whatever its size; other answers are returned whole.
pub(crate) fn download(
    endpoint: &Endpoint,
    request: &Request<'_>,
    limit: Duration,
    sink: &mut dyn Write,
) -> io::Result<Answer> {
    let until = Instant::now() + limit;
    let mut stream = sent(endpoint, request, until)?;
    let (mut received, mut buffer) = (Vec::new(), vec![0u8; 64 << 10]);
    let (status, length, at) = loop {
        if let Some(head) = head(&received)? {
            break head;
        }
        match some(&mut stream, &mut buffer, until)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => received.extend_from_slice(&buffer[..n]),
        }
        if received.len() > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a head of more than 1 MiB"));
        }
    };
    if status != 200 {
        return answer(&mut stream, &mut received, until);
    }
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no length"))?;
    let rest = &received[at..];
    let mut left = length.checked_sub(rest.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
    sink.write_all(rest)?;
    while left > 0 {
        let n = some(&mut stream, &mut buffer, until)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.checked_sub(n as u64).ok_or(io::ErrorKind::InvalidData)?;
        sink.write_all(&buffer[..n])?;
    }
    Ok(Answer { status, body: Vec::new() })
}

fn sent(endpoint: &Endpoint, request: &Request<'_>, until: Instant) -> io::Result<Stream> {
    let mut stream = endpoint.connect(until)?;
    stream.until(until)?;
    stream.write_all(request.text(&endpoint.authority()).as_bytes())?;
    Ok(stream)
}

/// Reads some; 0 is the end. Each read gets what is left of the time: one byte at a time would never end else.
fn some(stream: &mut Stream, buffer: &mut [u8], until: Instant) -> io::Result<usize> {
    loop {
        stream.until(until)?;
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                left(until)?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            done => return done,
        }
    }
}

/// Reads a whole answer, of which some may be there.
fn answer(stream: &mut Stream, received: &mut Vec<u8>, until: Instant) -> io::Result<Answer> {
    let mut buffer = [0u8; 8192];
    loop {
        if let Some(answer) = parse(received, false)? {
            return Ok(answer);
        }
        match some(stream, &mut buffer, until)? {
            0 => return parse(received, true)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            n => received.extend_from_slice(&buffer[..n]),
        }
        if received.len() > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of more than 1 MiB"));
        }
    }
}

/// The status, the length that is said, and where the body begins, when all of the head is there.
fn head(received: &[u8]) -> io::Result<Option<(u16, Option<u64>, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(received);
    let parsed = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let httparse::Status::Complete(at) = parsed else { return Ok(None) };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
    Ok(Some((response.code.unwrap_or(0), length, at)))
}

/// The answer, when all of it is there. `ended`: nothing more comes.
fn parse(received: &[u8], ended: bool) -> io::Result<Option<Answer>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let at = match response.parse(received).map_err(|error| bad(&error.to_string()))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(at) => at,
    };
    let status = response.code.ok_or_else(|| bad("no status"))?;
    if status < 200 {
        return Ok(None);
    }
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    let rest = &received[at..];
    let body = if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        chunks(rest)?
    } else if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(|_| bad("no length"))?;
        (rest.len() >= length).then(|| rest[..length].to_vec())
    } else {
        ended.then(|| rest.to_vec())
    };
    Ok(body.map(|body| Answer { status, body }))
}

/// The chunks of a body (RFC 9112 §7.1), when the last one is there.
fn chunks(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let parsed = httparse::parse_chunk_size(rest);
        let parsed = parsed.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a chunk without a size"))?;
        let httparse::Status::Complete((at, size)) = parsed else { return Ok(None) };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size == 0 {
            return Ok(Some(body));
        }
        let Some(chunk) = at.checked_add(size).and_then(|end| rest.get(at..end)) else { return Ok(None) };
        body.extend_from_slice(chunk);
        let Some(after) = rest.get(at + size + 2..) else { return Ok(None) };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, ended: bool) -> Option<(u16, String)> {
        let answer = parse(text.as_bytes(), ended).unwrap()?;
        Some((answer.status, String::from_utf8(answer.body).unwrap()))
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let counted = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(parsed(counted, false), Some((200, "ok".into())));
        for cut in 0..counted.len() {
            assert_eq!(parsed(&counted[..cut], false), None, "{cut}");
        }
        let chunked =
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n3;x=y\r\n, n\r\n0\r\n\r\n";
        assert_eq!(parsed(chunked, false), Some((404, "no, n".into())));
        assert_eq!(parsed("HTTP/1.1 200 OK\r\n\r\nall", false), None);
        assert_eq!(parsed("HTTP/1.1 200 OK\r\n\r\nall", true), Some((200, "all".into())));
        assert!(parse(b"SSH-2.0-OpenSSH\r\n\r\n", false).is_err());
    }
}
