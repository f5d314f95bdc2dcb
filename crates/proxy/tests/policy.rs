//! Rules as text, and the decision as a table.

use sandbox_proxy::policy::{Decision, Policy, PolicyError, Reason, Rules, Target, Watched, edit, read, write};
use sandbox_proxy::rule::{Host, Rule, canonical_host};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    let parse = |texts: &[&str]| texts.iter().map(|text| rule(text)).collect();
    Rules { allow: parse(allow), deny: parse(deny) }
}

#[test]
fn a_rule_has_one_text() {
    let cases = [
        ("example.com", "example.com"),
        ("Example.COM.", "example.com"),
        ("localhost", "localhost"),
        ("example.com:443", "example.com:443"),
        ("example.com:8443,443,8443", "example.com:443,8443"),
        ("*.Example.com", "*.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1:5432", "127.0.0.1:5432"),
        ("[::1]:8080", "[::1]:8080"),
        ("[0:0::1]", "[::1]"),
        ("[::ffff:10.0.0.1]", "10.0.0.1"),
        ("a.test=127.0.0.1", "a.test=127.0.0.1"),
        ("a.test:80=127.0.0.1:8080", "a.test:80=127.0.0.1:8080"),
        ("a.test=::1", "a.test=[::1]"),
        ("a.test=[::1]", "a.test=[::1]"),
        ("a.test=[::1]:8443", "a.test=[::1]:8443"),
        ("a.test=10.1.2.3/8", "a.test=10.0.0.0/8"),
        ("*.corp.test:443,80=fd00::1/8", "*.corp.test:80,443=fd00::/8"),
        ("10.0.0.1=127.0.0.1:1", "10.0.0.1=127.0.0.1:1"),
    ];
    for (text, canonical) in cases {
        let parsed = rule(text);
        assert_eq!(parsed.to_string(), canonical, "{text}");
        assert_eq!(rule(canonical), parsed, "{text}");
        let json = serde_json::to_string(&parsed).unwrap();
        assert_eq!(json, format!("{canonical:?}"));
        assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), parsed);
    }
}

#[test]
fn a_text_that_is_no_rule_says_why() {
    let cases = [
        ("", "the host is missing"),
        (":443", "the host is missing"),
        ("https://example.com", "it is a URL"),
        ("example.com/path", "only letters"),
        ("user@example.com", "only letters"),
        ("a b", "white space"),
        ("a\u{7}b", "control character"),
        ("a..b", "a label is empty"),
        (".a", "a label is empty"),
        ("a..", "a label is empty"),
        ("-a.test", "hyphen"),
        ("a-.test", "hyphen"),
        ("a_b.test", "only letters"),
        ("xn--.test", "hyphen"),
        ("xn--a.test", "Unicode"),
        ("*", "a star stands alone"),
        ("*.com", "at least two labels"),
        ("*.*.com", "only letters"),
        ("a.*.com", "a star stands alone"),
        ("*a.example.com", "a star stands alone"),
        ("*.10.0.0.1", "nothing is below an address"),
        ("a.test:", "'' is no port"),
        ("a.test:0", "'0' is no port"),
        ("a.test:65536", "'65536' is no port"),
        ("a.test:+80", "'+80' is no port"),
        ("a.test:80,", "'' is no port"),
        ("::1", "brackets"),
        ("[::1", "']' is missing"),
        ("[::1]443", "after ']'"),
        ("[fe80::1%eth0]", "no valid address"),
        ("1.2.3.400", "no valid address"),
        ("1.2.3.4.5", "no valid address"),
        ("a.test=", "no address and no range"),
        ("a.test=b.test", "no address and no range"),
        ("a.test=10.0.0.0/33", "no address and no range"),
        ("a.test=10.0.0.1:0", "'0' is no port"),
        ("a.test=[fe80::1%2]:80", "no address and no range"),
        ("a.test=1.2.3.4=5", "no address and no range"),
        ("10.0.0.1=10.0.0.0/8", "an address is not resolved"),
        ("\u{430}.\u{0}", "control character"),
        ("\u{ff0e}.test", "no domain name"),
    ];
    for (text, wrong) in cases {
        let error = text.parse::<Rule>().expect_err(text).to_string();
        assert!(error.contains(wrong), "{text:?}: {error}");
        assert!(error.contains(&format!("'{}'", text.escape_debug())) && error.contains("HOST[:PORT"), "{error}");
    }
    let long = format!("{}.test", "a".repeat(64));
    assert!(long.parse::<Rule>().unwrap_err().to_string().contains("too long"));
    let long = vec!["a".repeat(49); 6].join(".");
    assert!(long.parse::<Rule>().unwrap_err().to_string().contains("too long"));
}

#[test]
fn every_spelling_of_an_address_is_the_address() {
    for spelling in [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0X7F.0x0.0.1",
        "017700000001",
        "0177.0.0.01",
        "[::ffff:127.0.0.1]",
        "[::FFFF:7f00:1]",
    ] {
        assert_eq!(canonical_host(spelling.as_bytes()), Ok(Host::Address("127.0.0.1".parse().unwrap())), "{spelling}");
    }
    assert_eq!(canonical_host(b"0"), Ok(Host::Address("0.0.0.0".parse().unwrap())));
    assert_eq!(canonical_host(b"1.0x"), Ok(Host::Address("1.0.0.0".parse().unwrap())));
    for none in [
        "256.1.1.1.1",
        "1.2.3.4.5",
        "4294967296",
        "08",
        "1.256.1",
        "a.1",
        "a.0x1",
        "[::1",
        "[1.2.3.4]",
        "[::1%lo]",
        "1..2",
    ] {
        assert!(canonical_host(none.as_bytes()).is_err(), "{none}");
    }
    for name in ["a1", "1a", "0x1g", "1.2.3.4a", "127.0.0.1.test", "r3---sn-4g5e.example"] {
        assert_eq!(canonical_host(name.as_bytes()), Ok(Host::Name(name.to_owned())));
    }
}

#[test]
fn the_decision_table() {
    use Reason::*;
    let policy: Policy = rules(
        &[
            "allow.test",
            "ports.test:80,8443",
            "*.wild.test",
            "special.wild.test=127.0.0.1:9",
            "both.test",
            "*.wild.test:8080",
            "192.0.2.7",
            "[2001:db8::7]:8443",
            "*.denied.test",
            "dial.test",
            "dial.test=127.0.0.1:7",
        ],
        &["both.test", "x.denied.test:443", "*.deep.denied.test", "203.0.113.1"],
    )
    .into();
    let allowed = |rule: &str| Ok(rule.to_owned());
    let cases = [
        ("allow.test", 443, allowed("allow.test")),
        ("ALLOW.test.", 443, allowed("allow.test")),
        ("allow.test", 22, Err(Port)),
        ("allow.test", 25, Err(Port)),
        ("allow.test", 80, Err(Port)),
        ("allow.test", 0, Err(Port)),
        ("ports.test", 80, allowed("ports.test:80,8443")),
        ("ports.test", 443, Err(Port)),
        ("sub.allow.test", 443, Err(NotAllowed)),
        ("evilallow.test", 443, Err(NotAllowed)),
        ("allow.test.evil.test", 443, Err(NotAllowed)),
        ("evil.test", 22, Err(NotAllowed)),
        ("wild.test", 443, Err(NotAllowed)),
        ("evilwild.test", 443, Err(NotAllowed)),
        ("a.wild.test", 443, allowed("*.wild.test")),
        ("a.b.wild.test", 443, allowed("*.wild.test")),
        ("a.wild.test", 8080, allowed("*.wild.test:8080")),
        ("a.wild.test", 8081, Err(Port)),
        ("special.wild.test", 443, allowed("special.wild.test=127.0.0.1:9")),
        ("dial.test", 443, allowed("dial.test=127.0.0.1:7")),
        ("both.test", 443, Err(Denied)),
        ("both.test", 80, Err(Denied)),
        ("x.denied.test", 443, Err(Denied)),
        ("y.denied.test", 443, allowed("*.denied.test")),
        ("a.deep.denied.test", 443, Err(Denied)),
        ("deep.denied.test", 443, allowed("*.denied.test")),
        ("192.0.2.7", 443, allowed("192.0.2.7")),
        ("0xc0.0.2.7", 443, allowed("192.0.2.7")),
        ("[::ffff:192.0.2.7]", 443, allowed("192.0.2.7")),
        ("192.0.2.7", 80, Err(Port)),
        ("192.0.2.8", 443, Err(Literal)),
        ("203.0.113.1", 443, Err(Denied)),
        ("[2001:db8::7]", 8443, allowed("[2001:db8::7]:8443")),
        ("[2001:db8:0::7]", 443, Err(Port)),
        ("[64:ff9b::c000:207]", 443, Err(Literal)),
        ("2130706433", 443, Err(Literal)),
    ];
    for (host, port, expected) in cases {
        let target = Target { host: canonical_host(host.as_bytes()).unwrap(), port };
        let decided = match policy.decide(&target) {
            Decision::Allowed(rule) => Ok(rule.to_string()),
            Decision::Refused(reason, _) => Err(reason),
        };
        assert_eq!(decided, expected, "{host}:{port}");
        for (name, nothing) in [("empty", Policy::from(Rules::default())), ("gone", Policy::gone())] {
            assert!(matches!(nothing.decide(&target), Decision::Refused(..)), "{name}: {host}:{port}");
        }
    }
}

#[test]
fn what_is_resolved_is_decided_too() {
    let policy: Policy =
        rules(&["a.test", "b.test=10.0.0.0/8", "c.test=127.0.0.1:8443"], &["93.184.216.34", "10.0.0.9:443"]).into();
    let own = ["198.51.100.1".parse().unwrap()];
    let may = |address: &str, by: &str| policy.may_dial(address.parse().unwrap(), &rule(by), &own);
    assert!(may("93.184.216.33:443", "a.test"));
    assert!(!may("93.184.216.34:443", "a.test"), "denied as an address");
    assert!(!may("198.51.100.1:443", "a.test"), "our own");
    assert!(!may("10.0.0.8:443", "a.test"));
    assert!(may("10.0.0.8:443", "b.test=10.0.0.0/8"));
    assert!(!may("10.0.0.9:443", "b.test=10.0.0.0/8"), "denied as an address");

    let still = |host: &str, dialled: &str| {
        let target = Target { host: Host::Name(host.to_owned()), port: 443 };
        policy.still_allows(&target, dialled.parse().unwrap(), &own)
    };
    assert!(still("a.test", "93.184.216.33:443"));
    assert!(!still("a.test", "93.184.216.34:443"));
    assert!(!still("d.test", "93.184.216.33:443"));
    assert!(still("c.test", "127.0.0.1:8443"));
    assert!(!still("c.test", "127.0.0.1:8444"), "another way than the rule has now");
}

#[test]
fn the_file_appears_whole_and_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.json");
    assert!(matches!(read(&path), Err(PolicyError::Read { .. })));
    let some = rules(&["a.test", "*.b.test:80"], &["c.b.test"]);
    write(&path, &some).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"version\":1,\"allow\":[\"a.test\",\"*.b.test:80\"],\"deny\":[\"c.b.test\"]}\n"
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(read(&path).unwrap(), some);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_file_that_is_no_policy_allows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.json");
    let mut watched = Watched::new(path.clone());
    assert_eq!(*watched.now(), Policy::gone());
    let good = r#"{"version":1,"allow":["a.test"],"deny":[]}"#;
    for bad in [
        "",
        "{}",
        r#"{"version":2,"allow":[]}"#,
        r#"{"version":1,"allow":["a b"]}"#,
        r#"{"version":1,"allow":["a.test"]"#,
    ] {
        fs::write(&path, good).unwrap();
        assert_eq!(*watched.now(), rules(&["a.test"], &[]).into());
        fs::write(&path, bad).unwrap();
        assert_eq!(*watched.now(), Policy::gone(), "{bad}");
        assert!(matches!(read(&path), Err(PolicyError::Syntax { .. } | PolicyError::Version { .. })), "{bad}");
    }
    fs::write(&path, r#"{"version":1}"#).unwrap();
    assert_eq!(*watched.now(), Rules::default().into());
    fs::remove_file(&path).unwrap();
    assert_eq!(*watched.now(), Policy::gone());
}

#[test]
fn changes_at_once_all_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.json");
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (path, barrier) = (&path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for m in 0..5 {
                    edit(path, |rules| rules.allow.push(rule(&format!("h{n}-{m}.test")))).unwrap();
                }
            });
        }
    });
    assert_eq!(read(&path).unwrap().allow.len(), 40);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(edit(&path, |rules| rules.allow.len()).unwrap(), 40);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "no change is no write");
    fs::write(&path, "nonsense").unwrap();
    edit(&path, |_| ()).expect_err("what cannot be read is not thrown away");
    assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
}
