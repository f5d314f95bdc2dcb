//! Names from inside below `refs/sandbox-meta/<name>/{heads,tags,notes}/`.
//!
//! ```text
//! a          a
//! a/b        a+/b          so that `a` and `a/b` of different times can coexist
//! x y@é      x%20y%40%C3%A9
//! ```

/// Returns the escaped form: bytes outside `[A-Za-z0-9._/-]` as `%XX`, every component but the last
/// with a `+` at its end.
pub fn escape_ref(inner: &[u8]) -> String {
    let mut out = String::with_capacity(inner.len());
    for byte in inner {
        match byte {
            b'/' => out.push_str("+/"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Returns the name that [`escape_ref`] made this of; `None` if it did not.
pub fn unescape_ref(escaped: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'+' => {
                rest = rest.strip_prefix(b"/")?;
                out.push(b'/');
            }
            b'%' => {
                let hex = rest.get(..2).filter(|hex| hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))?;
                out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
                rest = &rest[2..];
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(*byte),
            _ => return None,
        }
    }
    // Only the canonical spelling.
    (escape_ref(&out) == escaped).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandbox_git::RefName;

    #[test]
    fn the_documented_forms() {
        assert_eq!(escape_ref(b"a"), "a");
        assert_eq!(escape_ref(b"a/b/c"), "a+/b+/c");
        assert_eq!(escape_ref("x y@\u{e9}+%".as_bytes()), "x%20y%40%C3%A9%2B%25");
        for bad in ["a/b", "a+", "%4", "%zz", "%41", "a+/+/b%2f"] {
            assert_eq!(unescape_ref(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(unescape_ref(&escape_ref(&name)), Some(name));
        }

        #[test]
        fn valid_names_stay_valid_and_never_stand_in_each_others_way(
            a in "[a-z@{}~+% .-]{1,6}(/[a-z@+%é.-]{1,6}){0,3}",
            b in "[a-z@{}~+% .-]{1,6}(/[a-z@+%é.-]{1,6}){0,3}",
        ) {
            let (Some(_), Some(_)) = (RefName::parse(format!("refs/heads/{a}")), RefName::parse(format!("refs/heads/{b}")))
            else { return Ok(()) };
            let (x, y) = (escape_ref(a.as_bytes()), escape_ref(b.as_bytes()));
            let mapped = RefName::parse(format!("refs/sandbox-meta/n/heads/{x}"));
            prop_assert!(mapped.is_some());
            let inside = |short: &str, long: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('/'));
            prop_assert!(!inside(&x, &y) && !inside(&y, &x));
        }
    }
}
