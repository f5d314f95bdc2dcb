//! `refs/sandbox-meta/<name>/owner`: a blob that says whose refs of that name are, without the state directory.
//!
//! ```text
//! git-sandbox 1
//! repository 0f…        its id
//! sandbox 3a…
//! store 9c…             the state directory; blobs of older programs have none
//! ```

use crate::id::{RepoId, SandboxId, StoreId};

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The repository.
    pub repo: RepoId,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The state directory that the sandbox is in.
    pub store: Option<StoreId>,
}

impl Owner {
    /// Reads one; `None`: it is none of ours, or of a newer program.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        let mut next = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        (next("git-sandbox")? == "1").then_some(())?;
        let (repo, sandbox) = (RepoId::parse(next("repository")?)?, SandboxId::parse(next("sandbox")?)?);
        let store = next("store").and_then(StoreId::parse);
        let owner = Self { repo, sandbox, store };
        (owner.bytes() == bytes).then_some(owner)
    }

    /// Its contents.
    pub fn bytes(&self) -> Vec<u8> {
        let store = self.store.as_ref().map(|id| format!("store {id}\n")).unwrap_or_default();
        format!("git-sandbox 1\nrepository {}\nsandbox {}\n{store}", self.repo, self.sandbox).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_is_read() {
        let with = Owner { repo: RepoId::random(), sandbox: SandboxId::random(), store: Some(StoreId::random()) };
        for owner in [Owner { store: None, ..with.clone() }, with] {
            let bytes = owner.bytes();
            assert_eq!(Owner::parse(&bytes), Some(owner));
            for bad in [&bytes[1..], &bytes[..bytes.len() - 1], &[&bytes[..], b"more\n"].concat(), b""] {
                assert_eq!(Owner::parse(bad), None);
            }
        }
    }
}
