// What must hold of any bytes; panics if it does not.

use sandbox_proxy::head::{self, Framing};
use sandbox_proxy::policy::{Decision, Policy, Rules, Target};
use sandbox_proxy::rule::{Host, Pattern, Rule, canonical_host as read_host};
use std::net::{IpAddr, ToSocketAddrs};

/// A host from inside has one spelling, and no name can be taken for an address.
pub fn canonical_host(bytes: &[u8]) {
    let Ok(host) = read_host(bytes) else { return };
    assert!(bytes.is_ascii(), "{bytes:?}");
    check(&host);
    // The same in another case is the same.
    assert_eq!(read_host(&bytes.to_ascii_uppercase()), Ok(host));
}

fn check(host: &Host) {
    assert_eq!(read_host(host.to_string().as_bytes()).as_ref(), Ok(host), "one spelling");
    match host {
        Host::Name(name) => {
            assert!((1..=253).contains(&name.len()), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)), "{name}");
            assert!(name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
            assert!(name.parse::<IpAddr>().is_err(), "{name}");
            // What a URL parser would take for an IPv4 address: the last label is a number.
            let last = name.rsplit('.').next().unwrap();
            let hex = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(!hex && !last.bytes().all(|b| b.is_ascii_digit()), "{name}");
        }
        Host::Address(address) => {
            assert_eq!(*address, address.to_canonical());
            assert_eq!((*address, 1).to_socket_addrs().unwrap().next().unwrap().ip(), *address);
        }
    }
}

/// A rule has one text, and covers what it names and nothing that only reads like it.
pub fn rule(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let rule: Rule = match text.parse() {
        Ok(rule) => rule,
        Err(error) => return assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    };
    assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(&rule), "one text");
    let host = match &rule.host {
        Pattern::Exact(host) => host.clone(),
        Pattern::Below(parent) => {
            assert!(!rule.host.covers(&Host::Name(parent.clone())));
            assert!(!rule.host.covers(&Host::Name(format!("x{parent}"))));
            Host::Name(format!("x.{parent}"))
        }
    };
    if let Pattern::Exact(host) = &rule.host {
        check(host);
    }
    assert!(rule.host.covers(&host));
    let target = Target { host, port: rule.ports.first().copied().unwrap_or(443) };
    let allow = Rules { allow: vec![rule.clone()], deny: vec![] };
    assert_eq!(Policy::from(allow.clone()).decide(&target), Decision::Allowed(rule.clone()));
    let both = Rules { deny: vec![rule], ..allow };
    assert!(matches!(Policy::from(both).decide(&target), Decision::Refused(..)), "deny wins");
}

/// A head that is accepted can be read in one way only.
pub fn connect_head(bytes: &[u8]) {
    const MAX: usize = 4096;
    let (head, length) = match head::read(bytes, MAX) {
        Ok(Some(read)) => read,
        Ok(None) => return assert!(bytes.len() <= MAX),
        Err(wrong) => return assert!(wrong.method.len() <= 4 * 32 && wrong.host.len() <= 4 * 255),
    };
    let (own, rest) = bytes.split_at(length);
    assert!(length <= MAX && own.ends_with(b"\r\n\r\n"));
    // It does not depend on what follows, nor was it whole before its end.
    assert_eq!(head::read(own, MAX), Ok(Some((head.clone(), length))), "{rest:?}");
    assert_eq!(head::read(&own[..length - 1], MAX), Ok(None));
    let text = std::str::from_utf8(own).unwrap();
    assert!(text.split("\r\n").all(|line| line.bytes().all(|byte| (b' '..=b'~').contains(&byte))), "{text:?}");
    // Read once more, by hand and by nothing that it was read by.
    let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
    let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert_eq!((first.len(), first[0]), (3, head.method.as_str()));
    let mut count = [0; 3];
    for line in lines {
        assert!(!line.starts_with([' ', '\t']), "{line:?}");
        let (name, value) = line.split_once(':').unwrap();
        let at = ["host", "content-length", "transfer-encoding"].iter().position(|own| name.eq_ignore_ascii_case(own));
        let Some(at) = at else { continue };
        count[at] += 1;
        match at {
            1 => assert_eq!(head.body, Framing::Length(value.trim().parse().unwrap())),
            2 => assert_eq!(head.body, Framing::Chunked),
            _ => {}
        }
    }
    assert!(count[0] <= 1 && count[1] + count[2] <= 1, "{text:?}");
    assert!(count[0] == 1 || first[2] == "HTTP/1.0", "{text:?}");
    assert!(first[2] == "HTTP/1.1" || (first[2] == "HTTP/1.0" && head.method == "CONNECT"), "{text:?}");
    assert_eq!(head.method == "CONNECT", head.path.is_none());
    check(&head.target.host);
    assert!(!first[1].contains('@') || head.path.as_deref().is_some_and(|path| path.contains('@')), "{text:?}");
}
