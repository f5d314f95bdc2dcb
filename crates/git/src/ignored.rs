//! Which paths the ignore rules of a working tree hide: one `git check-ignore` for all of them.
//!
//! The paths come from inside a sandbox, and git would read two kinds of them as something else: one that begins with a
//! colon as pathspec magic (so each goes in behind `./`), and one below what is a symlink on the host, at which git
//! gives up (so it is not asked: no rule of the host is about what is behind a link).

use crate::command::{GitCommand, GitError};
use crate::escape::printable;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns those of `paths`, relative to the top `top` of a working tree, that its ignore rules hide, tracked or not.
/// `git` is a command in that tree, without a verb.
///
/// # Errors
///
/// When git cannot be run, or refuses.
pub fn ignored<'p>(
    git: GitCommand,
    top: &Path,
    paths: impl IntoIterator<Item = &'p [u8]>,
) -> Result<BTreeSet<&'p [u8]>, GitError> {
    let mut links = Links { top, known: BTreeMap::new() };
    let asked: Vec<&[u8]> = paths.into_iter().filter(|path| !path.is_empty() && !links.leads(path)).collect();
    if asked.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut input = Vec::new();
    for path in &asked {
        input.extend([b"./", *path, b"\0"].concat());
    }
    // check-ignore refuses to work where pathspecs are literal.
    let git = git.env("GIT_LITERAL_PATHSPECS", "0").args(["check-ignore", "--no-index", "--stdin", "-z"]);
    let command = git.name();
    let (status, output) = git.stdin(input).try_output()?;
    // 1 is "none of them".
    if !matches!(status.code(), Some(0 | 1)) {
        return Err(GitError::Unexpected { command, what: printable(output.stderr.trim_ascii()) });
    }
    let named: BTreeSet<&[u8]> = output.stdout.split(|b| *b == 0).filter_map(|path| path.strip_prefix(b"./")).collect();
    Ok(asked.into_iter().filter(|path| named.contains(path)).collect())
}

/// Which directories of the working tree are symlinks, each looked at once.
struct Links<'a> {
    top: &'a Path,
    known: BTreeMap<Vec<u8>, bool>,
}

impl Links<'_> {
    /// Whether a symlink is on the way to a path.
    fn leads(&mut self, path: &[u8]) -> bool {
        let Some(slash) = path.iter().rposition(|b| *b == b'/') else { return false };
        let dir = &path[..slash];
        if let Some(known) = self.known.get(dir) {
            return *known;
        }
        let leads = self.leads(dir)
            || fs::symlink_metadata(self.top.join(OsStr::from_bytes(dir))).is_ok_and(|facts| facts.is_symlink());
        self.known.insert(dir.to_vec(), leads);
        leads
    }
}
