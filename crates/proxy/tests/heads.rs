//! Heads of requests as bytes: what is read, and what is refused because it could be read in two ways.

use sandbox_proxy::head::{Framing, read};
use sandbox_proxy::policy::Reason;

const MAX: usize = 64 * 1024;

fn refused(bytes: &[u8]) -> Option<Reason> {
    match read(bytes, MAX) {
        Ok(Some(_)) => None,
        Ok(None) => panic!("unfinished: {}", String::from_utf8_lossy(bytes)),
        Err(wrong) => Some(wrong.reason),
    }
}

#[test]
fn what_clients_send_is_read() {
    let connect = [
        // curl, git, cargo
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nUser-Agent: curl/8.5.0\r\nProxy-Connection: Keep-Alive\r\n\r\n",
        // Python up to 3.11
        "CONNECT a.test:443 HTTP/1.0\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.0\r\nUser-Agent: pip/24 {}\r\n\r\n",
        // Node
        "CONNECT a.test:443 HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n",
        "CONNECT A.TEST.:443 HTTP/1.1\r\nHost: a.test:443\r\ncontent-length: 0\r\n\r\n",
    ];
    for text in connect {
        let (head, length) = read(text.as_bytes(), MAX).unwrap_or_else(|w| panic!("{text}: {w:?}")).expect(text);
        assert_eq!(
            (head.method.as_str(), head.target.host.to_string().as_str(), head.target.port),
            ("CONNECT", "a.test", 443)
        );
        assert_eq!((head.path, head.body, length), (None, Framing::Length(0), text.len()));
    }
    let text = "POST HTTP://A.test:80/b?c=http://x/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nUser-Agent: Debian APT-HTTP/1.3 (2.6)\r\n\r\nabcGET";
    let (head, length) = read(text.as_bytes(), MAX).unwrap().unwrap();
    assert_eq!(head.path.as_deref(), Some("/b?c=http://x/"));
    assert_eq!((head.body, head.keep_alive, head.agent.as_deref()), (Framing::Length(3), true, Some("Debian")));
    assert_eq!(&text[length..], "abcGET");
    for (uri, path) in [("http://a.test", "/"), ("http://a.test?q", "/?q"), ("http://a.test/%2e%2e/", "/%2e%2e/")] {
        let text = format!("GET {uri} HTTP/1.1\r\nHost: a.test\r\nConnection: x, Close\r\n\r\n");
        let (head, _) = read(text.as_bytes(), MAX).unwrap().unwrap();
        assert_eq!((head.path.as_deref(), head.keep_alive), (Some(path), false));
    }
    let chunked = "PUT http://a.test/ HTTP/1.1\r\nHost: a.test:80\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(read(chunked.as_bytes(), MAX).unwrap().unwrap().0.body, Framing::Chunked);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    use Reason::*;
    let get = |fields: &str| format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
    assert_eq!(refused(get("").as_bytes()), None, "the control of all below");
    let cases: Vec<(Reason, Vec<u8>)> = vec![
        // Lines
        (Malformed, get("A: b\r\n c\r\n").into()),
        (Malformed, get("A: b\r\n\tc\r\n").into()),
        (Malformed, get("A: b\nX: c\r\n").into()),
        (Malformed, get("A: b\rX: c\r\n").into()),
        (Malformed, get("A: b\0c\r\n").into()),
        (Malformed, get("A: b\tc\r\n").into()),
        (Malformed, get("A: b\x7f\r\n").into()),
        (Malformed, get("A: \u{e4}\r\n").into()),
        (Malformed, get("A : b\r\n").into()),
        (Malformed, get("A\r\n").into()),
        (Malformed, get(": b\r\n").into()),
        (Malformed, b"\r\nGET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"\nGET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/ HTTP/1.1\nHost: a.test\n\n".into()),
        (Malformed, b" GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET  http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/  HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/ b HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/ HTTP/1.1 \r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"G(T http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        // Versions
        (Malformed, b"GET http://a.test/ HTTP/1.0\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/ HTTP/2.0\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"PRI * HTTP/2.0\r\n\r\n".into()),
        // Bodies
        (Malformed, get("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n").into()),
        (Malformed, get("Content-Length: 3\r\nContent-Length: 3\r\n").into()),
        (Malformed, get("Content-Length: 3, 3\r\n").into()),
        (Malformed, get("Content-Length: +3\r\n").into()),
        (Malformed, get("Content-Length: -1\r\n").into()),
        (Malformed, get("Content-Length: 0x3\r\n").into()),
        (Malformed, get("Content-Length:\r\n").into()),
        (Malformed, get("Content-Length: 99999999999999999999\r\n").into()),
        (Malformed, get("Transfer-Encoding: gzip, chunked\r\n").into()),
        (Malformed, get("Transfer-Encoding: identity\r\n").into()),
        (Malformed, get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n").into()),
        (Malformed, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 3\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test:443 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        // Targets
        (Malformed, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET a.test:80 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test/#x HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test#@evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://user@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test@evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n".into()),
        (Name, b"GET http:///x HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test\\@evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test:/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"GET http://a.test:080/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test: HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test:443:80 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test:65536 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test:443\rHost: b.test HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Malformed, b"CONNECT a.test:443\r\nHost: a.test HTTP/1.1\r\n\r\n".into()),
        (Name, b"CONNECT :443 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Name, b"CONNECT a/b:443 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Name, b"CONNECT [::1%25lo]:443 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Name, b"CONNECT ::1:443 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        // Host
        (HostHeader, b"GET http://a.test/ HTTP/1.1\r\n\r\n".into()),
        (HostHeader, b"CONNECT a.test:443 HTTP/1.1\r\n\r\n".into()),
        (HostHeader, get("Host: a.test\r\n").into()),
        (HostHeader, get("hOST: b.test\r\n").into()),
        (HostHeader, b"GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n".into()),
        (HostHeader, b"GET http://a.test/ HTTP/1.1\r\nHost: a.test:81\r\n\r\n".into()),
        (HostHeader, b"GET http://a.test:81/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (HostHeader, b"GET http://a.test/ HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n".into()),
        (HostHeader, b"GET http://a.test/ HTTP/1.1\r\nHost:\r\n\r\n".into()),
        (HostHeader, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:80\r\n\r\n".into()),
        (HostHeader, b"CONNECT a.test:443 HTTP/1.0\r\nHost: b.test\r\n\r\n".into()),
        // Methods
        (Method, b"TRACE http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        (Method, b"TRACK http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
    ];
    for (reason, bytes) in cases {
        assert_eq!(refused(&bytes), Some(reason), "{}", String::from_utf8_lossy(&bytes).escape_debug());
    }
}

#[test]
fn a_head_may_come_in_pieces() {
    let text = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(read(&text[..end], MAX), Ok(None), "{end}");
    }
    assert!(read(text, MAX).unwrap().is_some());
    // One byte too many is too large, whether or not the end has come.
    assert!(read(text, text.len()).unwrap().is_some());
    assert_eq!(read(text, text.len() - 1).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn what_is_said_of_a_refused_head_is_cut_and_escaped() {
    let long = format!("{} http://{}/ HTTP/1.1\r\nA: \x01", "M".repeat(100), "h".repeat(1000));
    let wrong = read(long.as_bytes(), MAX).unwrap_err();
    assert_eq!((wrong.reason, wrong.method.len(), wrong.host.len()), (Reason::Malformed, 32, 255));
    let wrong = read(b"GET http://\xff\\/ HTTP/1.1\r\n\r\n", MAX).unwrap_err();
    assert_eq!(wrong.reason, Reason::Malformed);
    let wrong = read(b"CONNECT a\\b:443 HTTP/1.1\r\nUser-Agent: curl/8\r\n\r\n", MAX).unwrap_err();
    assert_eq!((wrong.host.as_str(), wrong.port, wrong.agent.as_deref()), ("a\\x5cb", 443, Some("curl")));
}
