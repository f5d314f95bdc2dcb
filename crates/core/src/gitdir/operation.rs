//! An operation in progress (merge, rebase, cherry-pick, revert, am, bisect): the files that are
//! its state, and the ids that it needs.
//!
//! Ids are read only from files that hold ids. Messages and patches are not searched: a commit
//! message that mentions a commit of another branch must not grant it.

use sandbox_git::{Oid, RefName};
use std::fs;
use std::path::Path;

/// Files of the git directory that are state of an operation; copied when they exist.
pub(super) const FILES: &[&str] = &[
    "MERGE_HEAD",
    "MERGE_MSG",
    "MERGE_MODE",
    "MERGE_RR",
    "MERGE_AUTOSTASH",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "AUTO_MERGE",
    "SQUASH_MSG",
    "BISECT_LOG",
    "BISECT_START",
    "BISECT_NAMES",
    "BISECT_TERMS",
    "BISECT_RUN",
    "BISECT_HEAD",
    "BISECT_EXPECTED_REV",
    "BISECT_ANCESTORS_OK",
    "BISECT_FIRST_PARENT",
];

/// Directories of the git directory that are state of an operation; copied whole.
pub(super) const DIRS: &[&str] = &["rebase-merge", "rebase-apply", "sequencer"];

/// Their presence means that an operation is in progress.
const MARKS: &[&str] =
    &["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_START", "rebase-merge", "rebase-apply", "sequencer"];

/// Files with nothing but ids (any number, between white space).
const ID_FILES: &[&str] = &[
    "MERGE_HEAD",
    "MERGE_AUTOSTASH",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "AUTO_MERGE",
    "BISECT_HEAD",
    "BISECT_EXPECTED_REV",
    "rebase-merge/onto",
    "rebase-merge/orig-head",
    "rebase-merge/stopped-sha",
    "rebase-merge/amend",
    "rebase-merge/autostash",
    "rebase-merge/squash-onto",
    "rebase-merge/rewritten-list",
    "rebase-merge/rewritten-pending",
    "rebase-apply/onto",
    "rebase-apply/orig-head",
    "rebase-apply/original-commit",
    "rebase-apply/abort-safety",
    "rebase-apply/autostash",
    "rebase-apply/rewritten",
    "sequencer/head",
    "sequencer/abort-safety",
];

/// Lists of instructions: an id is the first word after the command and its options.
const TODO_FILES: &[&str] =
    &["rebase-merge/git-rebase-todo", "rebase-merge/git-rebase-todo.backup", "rebase-merge/done", "sequencer/todo"];

/// Files with the name of the branch that the operation will return to.
const BRANCH_FILES: &[&str] = &["rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START"];

/// What an operation in progress needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operation {
    /// There is one.
    pub in_progress: bool,
    /// Ids, whole or abbreviated, as written.
    pub ids: Vec<String>,
    /// The branch that it returns to.
    pub branch: Option<RefName>,
}

impl Operation {
    /// Reads the state in a git directory.
    pub fn read(git_dir: &Path) -> Self {
        let mut operation =
            Self { in_progress: MARKS.iter().any(|mark| git_dir.join(mark).exists()), ..Self::default() };
        if !operation.in_progress {
            // A leftover AUTO_MERGE or REBASE_HEAD is nobody's business any more.
            return operation;
        }
        let text =
            |name: &str| fs::read(git_dir.join(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        for text in ID_FILES.iter().filter_map(|name| text(name)) {
            operation.ids.extend(text.split_whitespace().filter(|word| Oid::parse(word).is_some()).map(str::to_owned));
        }
        // The position before the operation, for `--abort`.
        operation
            .ids
            .extend(text("ORIG_HEAD").iter().filter_map(|text| Oid::parse(text.trim())).map(|oid| oid.to_string()));
        for text in TODO_FILES.iter().filter_map(|name| text(name)) {
            operation.ids.extend(text.lines().filter_map(todo_id).map(str::to_owned));
        }
        operation.branch = BRANCH_FILES.iter().filter_map(|name| text(name)).find_map(|text| {
            let name = text.trim();
            RefName::parse(name).or_else(|| RefName::parse(format!("refs/heads/{name}")))
        });
        operation.ids.sort();
        operation.ids.dedup();
        operation
    }
}

fn todo_id(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let command = words.next().filter(|word| !word.starts_with('#'))?;
    if matches!(command, "exec" | "x" | "break" | "b" | "label" | "l" | "reset" | "t" | "update-ref" | "u" | "noop") {
        return None;
    }
    let word = words.find(|word| !word.starts_with('-'))?;
    let hex = word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (hex && (7..=64).contains(&word.len())).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_instructions_and_never_from_subjects() {
        assert_eq!(todo_id("pick 1234567 deadbeef is private"), Some("1234567"));
        assert_eq!(todo_id("fixup -C abcdef0 # x"), Some("abcdef0"));
        assert_eq!(todo_id("merge -C abcdef0 topic # Merge"), Some("abcdef0"));
        assert_eq!(todo_id("# pick 1234567 x"), None);
        assert_eq!(todo_id("exec 1234567"), None);
        assert_eq!(todo_id("label 1234567"), None);
    }

    #[test]
    fn leftovers_of_a_finished_operation_grant_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let id = "1".repeat(40);
        fs::write(dir.path().join("ORIG_HEAD"), &id).unwrap();
        fs::write(dir.path().join("AUTO_MERGE"), &id).unwrap();
        assert_eq!(Operation::read(dir.path()), Operation::default());
        fs::write(dir.path().join("MERGE_HEAD"), "2".repeat(40)).unwrap();
        assert_eq!(Operation::read(dir.path()).ids, [id, "2".repeat(40)]);
    }
}
