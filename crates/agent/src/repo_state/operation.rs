//! The operation that a repository is in the middle of, from the files that git keeps of it.
//!
//! | files in the git directory | operation | its branch |
//! |---|---|---|
//! | `rebase-merge/{msgnum,end,head-name}` | `rebase 3/7` | `head-name` |
//! | `rebase-apply/{next,last,head-name}` | `rebase 3/7` | `head-name` |
//! | `rebase-apply/{next,last,applying}` | `am 3/7` | – (HEAD stays on it) |
//! | `BISECT_LOG`, `BISECT_START` | `bisect` | what `BISECT_START` names |
//! | `MERGE_HEAD`, `CHERRY_PICK_HEAD`, `REVERT_HEAD`, `sequencer/todo` | `merge` … | – |

use sandbox_protocol::{RepoState, escape_bytes};
use std::path::Path;

/// Returns the operation in words and the branch that it came from.
pub fn in_progress(gitdir: &Path, state: &RepoState) -> (Option<String>, Option<String>) {
    let read = |name: &str| -> Option<Vec<u8>> {
        let bytes = super::read_regular(&gitdir.join(name), 1 << 20)?;
        Some(bytes.trim_ascii_end().to_vec())
    };
    let number = |name: &str| read(name).and_then(|text| String::from_utf8(text).ok()?.parse::<u32>().ok());
    let counted = |what: &str, at: &str, of: &str| match (number(at), number(of)) {
        (Some(at), Some(of)) => format!("{what} {at}/{of}"),
        _ => what.to_owned(),
    };
    let branch = |name: &str| read(name).filter(|name| name.starts_with(b"refs/")).map(|name| escape_bytes(&name));
    let exists = |name: &str| gitdir.join(name).symlink_metadata().is_ok();

    if exists("rebase-merge") {
        let words = counted("rebase", "rebase-merge/msgnum", "rebase-merge/end");
        return (Some(words), branch("rebase-merge/head-name"));
    }
    if exists("rebase-apply") {
        let what = if exists("rebase-apply/applying") { "am" } else { "rebase" };
        let words = counted(what, "rebase-apply/next", "rebase-apply/last");
        return (Some(words), branch("rebase-apply/head-name"));
    }
    let simple = if exists("MERGE_HEAD") {
        Some("merge")
    } else if exists("CHERRY_PICK_HEAD") {
        Some("cherry-pick")
    } else if exists("REVERT_HEAD") {
        Some("revert")
    } else {
        // Between two steps of several there is no *_HEAD.
        read("sequencer/todo").map(|todo| if todo.starts_with(b"revert") { "revert" } else { "cherry-pick" })
    };
    if exists("BISECT_LOG") {
        // A branch's short name, or the id of a commit.
        let start = read("BISECT_START").map(|name| escape_bytes(&[b"refs/heads/", &name[..]].concat()));
        let start = start.filter(|name| state.refs.iter().any(|(known, _)| known == name));
        return (Some("bisect".into()), start);
    }
    (simple.map(str::to_owned), None)
}
