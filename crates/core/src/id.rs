//! Ids and names. Ids are random and 128 bit, never derived from names or paths.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Returns a new random id.
            pub fn random() -> Self {
                let mut bytes = [0u8; 16];
                getrandom::fill(&mut bytes).expect("the kernel's random source works after boot");
                Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
            }

            /// Parses 32 lower-case hex digits.
            pub fn parse(text: &str) -> Option<Self> {
                let ok = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                ok.then(|| Self(text.to_owned()))
            }

            /// Returns the hex digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

id!(
    /// A host repository (one common git directory).
    RepoId
);
id!(
    /// One sandbox.
    SandboxId
);
id!(
    /// A read-only directory tree in the store.
    LayerId
);
id!(
    /// An immutable capture: a stack of layers and what was known about git.
    SnapshotId
);

id!(
    /// One operation of a journal.
    OpId
);
id!(
    /// A state directory.
    StoreId
);

/// The longest name, in bytes.
pub const MAX_NAME: usize = 41;

/// A sandbox's name: `[a-z0-9][a-z0-9._-]{0,40}`, no `..`, no `.lock` and no `.` at the end, so that
/// `refs/sandbox/<name>` is a valid ref.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, thiserror::Error)]
#[error("'{name}' is not a valid sandbox name")]
pub struct NameError {
    /// The text.
    pub name: String,
}

impl Name {
    /// Checks and wraps a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let head = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let tail = |b: u8| head(b) || matches!(b, b'.' | b'_' | b'-');
        let bytes = text.as_bytes();
        let ok = bytes.first().is_some_and(|b| head(*b))
            && bytes.len() <= MAX_NAME
            && bytes.iter().all(|b| tail(*b))
            && !text.contains("..")
            && !text.ends_with(".lock")
            && !text.ends_with('.');
        if ok { Ok(Self(text.to_owned())) } else { Err(NameError { name: text.to_owned() }) }
    }

    /// Returns two short random words: what `spawn` uses when no name is given.
    pub fn random() -> Self {
        const FIRST: &[&str] = &[
            "amber", "bold", "brisk", "calm", "clear", "crisp", "deft", "eager", "fair", "fleet", "fond", "glad",
            "keen", "kind", "late", "lean", "light", "lucid", "mild", "neat", "odd", "plain", "proud", "quick",
            "quiet", "rapid", "sharp", "sly", "swift", "tidy", "vivid", "warm",
        ];
        const SECOND: &[&str] = &[
            "ant", "ash", "bay", "bee", "birch", "cove", "crane", "dune", "elm", "fern", "finch", "fox", "hare",
            "hawk", "heron", "ibex", "kelp", "lark", "lynx", "moss", "newt", "oak", "otter", "owl", "pine", "reed",
            "robin", "sage", "seal", "stoat", "vole", "wren",
        ];
        let mut r = [0u8; 2];
        getrandom::fill(&mut r).expect("the kernel's random source works after boot");
        Self(format!("{}-{}", FIRST[r[0] as usize % FIRST.len()], SECOND[r[1] as usize % SECOND.len()]))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_ref_components() {
        for good in ["a", "fix-login", "0x", "a.b_c-d", &"a".repeat(41)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a..b", "a.lock", "a.", "a/b", "a b", "é", &"a".repeat(42)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        for _ in 0..200 {
            Name::parse(Name::random().as_str()).unwrap();
        }
    }
}
