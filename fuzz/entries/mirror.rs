// What must hold of any bytes; panics if it does not.

use sandbox_mirror::name::{LONGEST, RepoName, Upstream};
use sandbox_mirror::pktline::{self, Packet};
use sandbox_mirror::serve::ask;

/// A name that is accepted means nothing to a file system, and has one spelling.
pub fn repo_name(bytes: &[u8]) {
    let Ok(name) = RepoName::from_request_path(bytes) else { return };
    check(&name);
    assert_eq!(RepoName::from_request_path(name.url_path().as_bytes()).as_ref(), Ok(&name), "through a URL and back");
    assert_eq!(RepoName::parse(&format!("{name}.git")).as_ref(), Ok(&name));
}

fn check(name: &RepoName) {
    let text = name.as_str();
    assert!(text.len() <= LONGEST && text.contains('/'), "{text:?}");
    assert!(!text.chars().any(|c| c.is_control() || matches!(c, '\\' | '%')), "{text:?}");
    for part in text.split('/') {
        assert!(!matches!(part, "" | "." | "..") && !part.starts_with('-'), "{text:?}");
    }
    assert_eq!(name.host(), name.host().to_ascii_lowercase());
    assert_eq!(format!("{}/{}", name.host(), name.path()), text);
    assert_eq!(RepoName::parse(text).as_ref(), Ok(name), "one spelling");
}

/// A URL that is accepted starts no program, carries no password, and reads back as itself.
pub fn upstream(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let upstream = match Upstream::parse(text) {
        Ok(upstream) => upstream,
        Err(error) => return assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    };
    check(upstream.name());
    let url = upstream.url();
    assert!(!url.starts_with('-') && !url.chars().any(char::is_control), "{url:?}");
    // `ext::…` names a program (gitremote-helpers(7)).
    let scheme = url.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    assert!(!scheme.starts_with("::"), "{url:?}");
    assert_eq!(Upstream::parse(url).as_ref(), Ok(&upstream), "{url:?}");
}

/// Packets that are read are those that were written, more bytes change none of them, and what a request asks for is
/// found in any bytes.
pub fn pktline(bytes: &[u8]) {
    let (mut rest, mut again) = (bytes, Vec::new());
    loop {
        match pktline::read(rest) {
            Ok(Some((packet, length))) => {
                assert!((4..=pktline::LONGEST).contains(&length) && length <= rest.len());
                assert_eq!(pktline::read(&rest[..length]), Ok(Some((packet, length))), "it ends where it says");
                if let Packet::Data(data) = packet {
                    assert_eq!(data.len() + 4, length);
                    again.clear();
                    pktline::write(&mut again, data);
                    assert!(again.eq_ignore_ascii_case(&rest[..length]), "written as it was read");
                }
                rest = &rest[length..];
            }
            // More may come: what is there now must not be taken for anything else by then.
            Ok(None) => {
                assert!(rest.len() < pktline::LONGEST, "{} bytes are no part of one packet", rest.len());
                break;
            }
            Err(_) => {
                for more in [&b"0"[..], b"0000", b"x"] {
                    assert!(pktline::read(&[rest, more].concat()).is_err(), "an error stays one");
                }
                break;
            }
        }
    }
    for version in 0..=2 {
        let _ = ask::shape(bytes, version);
    }
    let most = bytes.len() / 4;
    assert!(ask::wants(bytes).len() <= most && ask::prefixes(bytes).len() <= most);
    let protocol = ask::Protocol::parse(bytes);
    assert!(protocol.version <= 2 && !protocol.text.chars().any(char::is_control), "{protocol:?}");
}
