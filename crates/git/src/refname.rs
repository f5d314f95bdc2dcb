//! Full names of refs, checked.

use std::fmt;

/// The full name of a ref (`refs/…`), valid by the rules of `git check-ref-format`.
///
/// Bytes, not text: git allows any bytes but a few in a name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefName(Vec<u8>);

impl RefName {
    /// Checks and wraps a full name.
    pub fn parse(name: impl AsRef<[u8]>) -> Option<Self> {
        let name = name.as_ref();
        (name.starts_with(b"refs/") && is_valid(name)).then(|| Self(name.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if it is UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// What follows `prefix`, if it starts so.
    pub fn strip_prefix(&self, prefix: &str) -> Option<&[u8]> {
        self.0.strip_prefix(prefix.as_bytes())
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::printable(&self.0))
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefName({self})")
    }
}

/// The rules of git-check-ref-format(1), without `--allow-onelevel`.
fn is_valid(name: &[u8]) -> bool {
    let component = |part: &[u8]| !part.is_empty() && part[0] != b'.' && !part.ends_with(b".lock");
    name.contains(&b'/')
        && name.split(|b| *b == b'/').all(component)
        && !name.ends_with(b".")
        && !name.windows(2).any(|pair| pair == b".." || pair == b"@{")
        && !name.iter().any(|b| *b < 0x20 || matches!(b, 0x7f | b' ' | b'~' | b'^' | b':' | b'?' | b'*' | b'[' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_check_ref_format() {
        for good in
            ["refs/heads/a", "refs/heads/a/b", "refs/heads/-x", "refs/heads/@", "refs/tags/v1.0", "refs/x/\u{202e}"]
        {
            assert!(RefName::parse(good).is_some(), "{good}");
        }
        let bad = [
            "HEAD",
            "refs/",
            "refs//a",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/heads/a.lock/b",
            "refs/heads/a..b",
            "refs/heads/a ",
            "refs/heads/a~",
            "refs/heads/a^",
            "refs/heads/a:b",
            "refs/heads/a?",
            "refs/heads/a*",
            "refs/heads/[a",
            "refs/heads/a\\b",
            "refs/heads/a@{b",
            "refs/heads/a.",
            "refs/heads/a/",
            "refs/heads/\x07",
            "heads/a",
            "/refs/heads/a",
        ];
        for bad in bad {
            assert!(RefName::parse(bad).is_none(), "{bad}");
        }
    }
}
