//! A session reads what it pushed: its own repository is laid over the mirror, for it alone.
//!
//! ```text
//! which refs are there ─► the mirror's, and those of the session's repository
//! a fetch ─┬─ of what the mirror has ─► from the mirror (with its cache and bitmaps)
//!          └─ of anything else ───────► from the session's repository, which borrows the mirror's objects
//! ```

use super::{Isolation, PREFIX, Scratch};
use crate::pktline::{self, Packet};
use crate::repo::MirrorRepo;
use crate::serve::smart::{Ask, Refusal};
use sandbox_git::{Git, Oid};
use std::path::{Path, PathBuf};

/// Refs and ids are asked of git in a moment.
const SHORT: std::time::Duration = std::time::Duration::from_secs(30);

/// A session's own repository.
#[derive(Clone, Debug)]
pub struct Own {
    dir: PathBuf,
    refs: String,
}

impl Scratch {
    /// The repository of who asks over the one that is asked for, if there is one.
    pub fn own(&self, ask: &Ask) -> Option<Own> {
        let session = ask.asked.who.session().filter(|session| session.repos.contains_key(&ask.entry.name))?;
        if self.settings.isolation != Isolation::Session {
            return None;
        }
        let dir = self.layout.scratch(&ask.entry.name, &session.id);
        dir.join("HEAD").exists().then(|| Own { dir, refs: format!("{PREFIX}{}", session.id) })
    }
}

impl Own {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its refs as lines of an advertisement, of those that begin with one of these; of all if there are none.
    pub async fn lines(&self, git: &Git, prefixes: &[Vec<u8>]) -> Result<Vec<u8>, Refusal> {
        if !may_match(&self.refs, prefixes) {
            return Ok(Vec::new());
        }
        let command = MirrorRepo::at(&self.dir).git(git).timeout(SHORT);
        let command = command.args(["for-each-ref", "--format=%(objectname) %(refname)", &self.refs]);
        let out = tokio::task::spawn_blocking(move || command.output()).await;
        let out = out.map_err(|error| Refusal::Failed(error.to_string()))?;
        let out = out.map_err(|error| Refusal::Failed(error.to_string()))?.stdout;
        let mut lines = Vec::new();
        for line in out.split_inclusive(|byte| *byte == b'\n') {
            let name = line.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
            if prefixes.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                pktline::write(&mut lines, line);
            }
        }
        Ok(lines)
    }
}

/// Whether a ref that is `own` or below it can begin with one of these; any can when there are none. Most clients ask
/// for branches only, and a session may have very many refs.
fn may_match(own: &str, prefixes: &[Vec<u8>]) -> bool {
    let own = own.as_bytes();
    prefixes.is_empty() || prefixes.iter().any(|prefix| prefix.starts_with(own) || own.starts_with(prefix))
}

/// Whether a repository does not have all of these.
pub async fn lacks(git: &Git, dir: &Path, wants: Vec<Oid>) -> Result<bool, Refusal> {
    let input: String = wants.iter().map(|oid| format!("{oid}\n")).collect();
    let command = MirrorRepo::at(dir).git(git).timeout(SHORT);
    let command = command.args(["cat-file", "--batch-check=%(objecttype)"]).stdin(input);
    let out = tokio::task::spawn_blocking(move || command.output()).await;
    let out = out.map_err(|error| Refusal::Failed(error.to_string()))?;
    let out = out.map_err(|error| Refusal::Failed(error.to_string()))?.stdout;
    Ok(out.split(|byte| *byte == b'\n').any(|line| line.ends_with(b" missing")))
}

/// Puts refs behind those of an advertisement of the older protocols.
pub fn behind(mut advertised: Vec<u8>, lines: &[u8]) -> Vec<u8> {
    // `capabilities^{}` stands for no refs at all.
    let none = matches!(pktline::read(&advertised), Ok(Some((Packet::Data(first), _)))
        if first.windows(15).any(|part| part == b"capabilities^{}"));
    if advertised.ends_with(b"0000") && !none {
        advertised.truncate(advertised.len() - 4);
        advertised.extend_from_slice(lines);
        pktline::flush(&mut advertised);
    }
    advertised
}

#[cfg(test)]
mod tests {
    use super::{behind, may_match};

    #[test]
    fn own_refs_are_not_listed_for_who_asks_for_others() {
        let asks = |prefixes: &[&str]| {
            let prefixes: Vec<Vec<u8>> = prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect();
            may_match("refs/agents/s1", &prefixes)
        };
        for all in [&[][..], &["refs/"], &["refs/heads/", "refs/agents/"], &["refs/agents/s1/wip"], &[""]] {
            assert!(asks(all), "{all:?}");
        }
        assert!(!asks(&["HEAD", "refs/heads/", "refs/tags/", "refs/agents/s2"]));
    }

    #[test]
    fn refs_go_before_the_end_of_an_advertisement() {
        assert_eq!(behind(b"0008abcd0000".to_vec(), b"0006xy"), b"0008abcd0006xy0000");
        let none = b"0014capabilities^{}\n0000".to_vec();
        assert_eq!(behind(none.clone(), b"0006xy"), none);
    }
}
