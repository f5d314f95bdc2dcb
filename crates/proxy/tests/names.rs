//! Names from inside against a URL parser: whatever we take for a name it takes for the same name, and
//! whatever it takes for an address we never take for a name.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sandbox_proxy::rule::{Host, Rule, canonical_host};
use std::net::IpAddr;

fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
    let ours = canonical_host(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        prop_assert!(ours.is_err());
        return Ok(());
    };
    let theirs = url::Host::parse(text);
    match (&ours, &theirs) {
        (Ok(Host::Name(name)), Ok(url::Host::Domain(theirs))) => {
            prop_assert_eq!(name.as_str(), theirs.strip_suffix('.').unwrap_or(theirs), "{:?}", text);
        }
        (Ok(Host::Address(address)), Ok(url::Host::Ipv4(theirs))) => prop_assert_eq!(*address, IpAddr::V4(*theirs)),
        (Ok(Host::Address(address)), Ok(url::Host::Ipv6(theirs))) => {
            prop_assert_eq!(*address, IpAddr::V6(*theirs).to_canonical());
        }
        (Ok(ours), theirs) => prop_assert!(false, "{:?}: {:?} here, {:?} there", text, ours, theirs),
        (Err(_), _) => {}
    }
    if let Ok(host) = ours {
        let again = host.to_string();
        prop_assert_eq!(canonical_host(again.as_bytes()), Ok(host.clone()), "one spelling");
        let rule: Rule = again.parse().unwrap();
        prop_assert!(rule.host.covers(&host));
    }
    Ok(())
}

/// Pieces that parsers have been at odds about.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9-]{1,6}",
        2 => prop::sample::select(vec![
            "xn--", "xn--a", "xn--bcher-kva", "XN--BCHER-KVA", "xn--ls8h", "xn--0", "xn--a-ecp", "xn--mgba", "xn--zca",
            "0x", "0x7f", "0X7F", "0177", "08", "256", "4294967295", "4294967296", "127", "1", "0", "00", "0x0", "0xg",
            "allow", "test", "localhost", "::1", "[::1]", "[", "]", "ffff", "-", "--", "a-", "-a", "%2e", "%00", "*", "_", "@", "#",
            "/", "\\", "?", ":", ":80", " ", "\t", "\0", "\u{ad}", "\u{200d}", "\u{3002}", "\u{ff0e}", "\u{ff11}", "\u{430}", "ß", "İ",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ]
}

fn hostile() -> impl Strategy<Value = String> {
    let joined = prop::collection::vec((piece(), prop::sample::select(vec!["", ".", ".", ".", ".."])), 1..8);
    joined.prop_map(|pieces| pieces.into_iter().map(|(piece, joint)| piece + joint).collect())
}

/// Something that is often an address.
fn address_like() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<u8>().prop_map(|n| n.to_string()),
        any::<u32>().prop_map(|n| format!("{n:#x}")),
        any::<u16>().prop_map(|n| format!("0{n:o}")),
        any::<u64>().prop_map(|n| n.to_string()),
        any::<u8>().prop_map(|n| format!("0X{n:X}")),
    ];
    let dotted = (prop::collection::vec(number, 1..6), prop::sample::select(vec!["", "."]))
        .prop_map(|(parts, end)| parts.join(".") + end);
    let v6 = any::<[u16; 8]>().prop_map(|s| format!("[{}]", std::net::Ipv6Addr::from(s)));
    let mapped = any::<u32>().prop_map(|n| format!("[::ffff:{}]", std::net::Ipv4Addr::from(n)));
    prop_oneof![4 => dotted, 1 => v6, 1 => mapped]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_names(text in hostile()) {
        agrees(text.as_bytes())?;
    }

    #[test]
    fn addresses(text in address_like()) {
        agrees(text.as_bytes())?;
    }

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        agrees(&bytes)?;
    }

    #[test]
    fn rules_never_panic_and_have_one_text(text in "\\PC{0,40}", host in hostile()) {
        for text in [text.clone(), host.clone(), format!("*.{host}:80,443=10.0.0.0/8"), format!("{host}={text}")] {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
            }
        }
    }
}

#[test]
fn the_generators_reach_every_outcome() {
    // A property that only ever meets errors would say nothing.
    let (mut names, mut addresses, mut errors) = (0, 0, 0);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..2000 {
        for text in [
            hostile().new_tree(&mut runner).unwrap().current(),
            address_like().new_tree(&mut runner).unwrap().current(),
        ] {
            match canonical_host(text.as_bytes()) {
                Ok(Host::Name(_)) => names += 1,
                Ok(Host::Address(_)) => addresses += 1,
                Err(_) => errors += 1,
            }
        }
    }
    assert!(names > 100 && addresses > 300 && errors > 300, "{names} names, {addresses} addresses, {errors} errors");
}
