// What must hold of any name of a ref from inside; panics if it does not.

use sandbox_core::landing::{escape_ref, unescape_ref};
use sandbox_git::RefName;

/// A name is mapped to one that git takes, and back to itself; no other text is a mapped name.
pub fn ref_name(bytes: &[u8]) {
    let mapped = escape_ref(bytes);
    assert_eq!(unescape_ref(&mapped).as_deref(), Some(bytes), "{mapped}");
    assert!(mapped.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/+%".contains(&b)), "{mapped}");
    let full = |prefix: &str, name: &[u8]| RefName::parse([prefix.as_bytes(), name].concat());
    if full("refs/heads/", bytes).is_some() {
        assert!(full("refs/sandbox-meta/n/heads/", mapped.as_bytes()).is_some(), "{mapped}");
    }
    if let Some(parsed) = RefName::parse(bytes) {
        let shown = parsed.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert_eq!(parsed.as_bytes(), bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(inner) = unescape_ref(text)
    {
        assert_eq!(escape_ref(&inner), text, "one spelling");
    }
}
