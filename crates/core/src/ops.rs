//! The operation log of a repository: what was done to the host, so that `undo` can take it back.
//!
//! ```text
//! repos/<id>/ops/<number>.json     one operation that is over; written whole, never changed but for `undone`
//! repos/<id>/undo/<random>/        the former state of a working tree, which a deed names
//! ```
//!
//! A line is written after the deed. What was cut off before it is put back by the next command and is no operation,
//! or was carried out and gets its line then. `gc` takes both 30 days later.

use crate::id::{RepoId, SandboxId};
use crate::store::{Readable, RepoDir, Store, StoreError, keep_copy, make_dir, read_json, write_twice};
use sandbox_sys::clock::unix_seconds;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The version of a line. A newer one is shown and not undone.
pub const VERSION: u32 = 1;

/// One thing that a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// [`VERSION`].
    pub version: u32,
    /// Unix seconds; for people only.
    pub at: u64,
    /// The verb as it is typed.
    pub verb: String,
    /// What it said it did, in one line.
    pub told: String,
    /// What has to be taken back, in the order in which it was done.
    pub deeds: Vec<Deed>,
    /// The sandboxes whose work it brought. Earlier versions wrote none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<SandboxId>,
    /// Unix seconds at which it was undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<u64>,
}

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Deed {
    /// A working tree, its index and HEAD.
    Tree {
        /// Whose `undo` directory has the former state.
        repo: RepoId,
        /// The top of the working tree.
        worktree: PathBuf,
        /// Its own git directory.
        git_dir: PathBuf,
        /// The name of the directory below `undo`.
        undo: String,
    },
    /// A branch that was made.
    Branch {
        /// The full name of the ref.
        reference: String,
        /// Where it was made.
        commit: String,
    },
    /// A sandbox that was moved to the trash.
    Trashed {
        /// Which.
        sandbox: SandboxId,
    },
    /// A sandbox that was put back to a checkpoint.
    Restored {
        /// Which.
        sandbox: SandboxId,
        /// The checkpoint that has what it was before.
        before: u32,
    },
    /// A sandbox that was deleted: the host had all of its work.
    Deleted {
        /// Which.
        sandbox: SandboxId,
    },
    /// What a newer version wrote.
    #[serde(other)]
    Unknown,
}

impl Operation {
    /// An operation that is over now.
    pub fn now(verb: &str, told: impl Into<String>, deeds: Vec<Deed>) -> Self {
        let (of, undone) = Default::default();
        Self { version: VERSION, at: unix_seconds(), verb: verb.to_owned(), told: told.into(), deeds, of, undone }
    }

    /// The same, which brought work of these.
    pub fn of<'a>(mut self, sandboxes: impl IntoIterator<Item = &'a SandboxId>) -> Self {
        self.of = sandboxes.into_iter().cloned().collect();
        self.of.dedup();
        self
    }

    /// Whether it brought work of a sandbox. One that an earlier version wrote, or that was cut off and finished, says
    /// it by the name that it told.
    pub fn is_of(&self, sandbox: &SandboxId, name: &str) -> bool {
        if self.of.is_empty() { self.told.contains(&format!("'{name}'")) } else { self.of.contains(sandbox) }
    }

    /// It deleted a sandbox: that cannot be undone.
    pub fn deleted(&self) -> Option<&SandboxId> {
        self.deeds.iter().find_map(|deed| match deed {
            Deed::Deleted { sandbox } => Some(sandbox),
            _ => None,
        })
    }

    /// Whether it is one. A deletion is noted before it begins, so that a command that is killed on its way is known to
    /// have relied on what is here; one that was given up is none.
    pub fn came_about(&self, store: &Store) -> bool {
        self.deleted().is_none_or(|sandbox| !store.sandbox(sandbox).record().exists())
    }

    /// Whether it changed a working tree whose former state is in this directory.
    fn changed_from(&self, undo: &str) -> bool {
        self.deeds.iter().any(|deed| matches!(deed, Deed::Tree { undo: other, .. } if other == undo))
    }

    /// Seconds since it was over; 0 when the clock went back since.
    pub fn age_seconds(&self) -> u64 {
        unix_seconds().saturating_sub(self.at)
    }
}

/// The operations of one repository.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

impl Log {
    /// That of a repository.
    pub fn of(repo: &RepoDir) -> Self {
        Self(repo.path().join("ops"))
    }

    /// Adds one and returns its number. Two at once get two numbers.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn add(&self, operation: &Operation) -> Result<u64, StoreError> {
        make_dir(&self.0)?;
        let failed = |error| StoreError::io("write", &self.0)(error);
        let mut json = serde_json::to_vec_pretty(operation).expect("an operation has string keys only");
        json.push(b'\n');
        let json = crate::sum::sealed(json);
        let mut file = tempfile::Builder::new().prefix(".new").tempfile_in(&self.0).map_err(failed)?;
        // What cannot be undone is only told: a power cut that takes the note takes nothing else.
        let durable = operation.deeds.iter().any(|deed| !matches!(deed, Deed::Deleted { .. }));
        let sync = |file: &fs::File| if durable { file.sync_all() } else { Ok(()) };
        file.write_all(&json).and_then(|()| sync(file.as_file())).map_err(failed)?;
        let mut number = self.numbers()?.last().map_or(1, |last| last + 1);
        loop {
            match file.persist_noclobber(self.path(number)) {
                Ok(_) => break,
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                    file = error.file;
                    number += 1;
                }
                Err(error) => return Err(failed(error.error)),
            }
        }
        fs::File::open(&self.0).and_then(|dir| sync(&dir)).map_err(failed)?;
        // Only `repair` needs it.
        let _ = keep_copy(&self.path(number));
        Ok(number)
    }

    /// Reads one; `None` when there is none of that number.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is damaged.
    pub fn get(&self, number: u64) -> Result<Option<Operation>, StoreError> {
        read_json(&self.path(number))
    }

    /// All that can be read, with their numbers, oldest first.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn all(&self) -> Result<Vec<(u64, Operation)>, StoreError> {
        self.read().map(|read| read.whole)
    }

    /// As [`all`](Self::all), and what cannot be read.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn read(&self) -> Result<Readable<(u64, Operation)>, StoreError> {
        let mut all = Readable::default();
        for number in self.numbers()? {
            // `gc` may take one while we look.
            all.add(self.get(number).map(|found| found.map(|operation| (number, operation))));
        }
        Ok(all)
    }

    /// Which operation a file of the log is.
    pub fn number_of(path: &Path) -> Option<u64> {
        path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
    }

    /// Notes that one was undone.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn undone(&self, number: u64, operation: &Operation) -> Result<(), StoreError> {
        let operation = Operation { undone: Some(unix_seconds()), ..operation.clone() };
        write_twice(&self.path(number), &operation, true)
    }

    /// Whether an operation is written down whose former state is in the directory `undo`.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn has(&self, undo: &str) -> Result<bool, StoreError> {
        Ok(self.all()?.iter().any(|(_, operation)| operation.changed_from(undo)))
    }

    /// Notes that the changes whose former state was in the directory `undo` were taken back: the command that
    /// made them was cut off after it had written its line, or it was an `undo` that was.
    ///
    /// # Errors
    ///
    /// When the log cannot be read or written.
    pub fn taken_back(&self, undo: &str) -> Result<(), StoreError> {
        for (number, operation) in self.all()? {
            if operation.undone.is_none() && operation.changed_from(undo) {
                self.undone(number, &operation)?;
            }
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number}.json"))
    }

    fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::io("list", &self.0))?,
        };
        let mut numbers = Vec::new();
        for entry in entries {
            numbers.extend(Self::number_of(&entry.map_err(StoreError::io("list", &self.0))?.path()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn log() -> (tempfile::TempDir, Log) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        let repo = store.repo(&RepoId::random());
        make_dir(repo.path()).unwrap();
        (root, Log::of(&repo))
    }

    fn branch() -> Operation {
        let deed = Deed::Branch { reference: "refs/heads/b".into(), commit: "0".repeat(40) };
        Operation::now("branch", "made the branch 'b'", vec![deed])
    }

    #[test]
    fn numbers_go_up_and_two_at_once_get_two() {
        let (_root, log) = log();
        assert!(log.all().unwrap().is_empty());
        assert_eq!(log.add(&branch()).unwrap(), 1);
        let numbers: Vec<u64> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| log.add(&branch()).unwrap())).collect();
            let mut all: Vec<u64> = all.into_iter().map(|thread| thread.join().unwrap()).collect();
            all.sort_unstable();
            all
        });
        assert_eq!(numbers, (2..=9).collect::<Vec<_>>());
        assert_eq!(log.all().unwrap().len(), 9);
        assert_eq!(fs::read_dir(&log.0).unwrap().count(), 18, "with a copy of each, and no temporary file is left");
    }

    #[test]
    fn what_was_undone_stays_so() {
        let (_root, log) = log();
        let number = log.add(&branch()).unwrap();
        log.undone(number, &branch()).unwrap();
        assert!(log.get(number).unwrap().unwrap().undone.is_some());
        assert!(log.get(number + 1).unwrap().is_none());
    }

    #[test]
    fn what_recovery_took_back_counts_as_undone() {
        let (_root, log) = log();
        let tree = |undo: &str| Deed::Tree {
            repo: RepoId::random(),
            worktree: "/w".into(),
            git_dir: "/w/.git".into(),
            undo: undo.into(),
        };
        for undo in ["a", "b"] {
            log.add(&Operation::now("merge", undo, vec![tree(undo)])).unwrap();
        }
        assert!(log.has("a").unwrap() && !log.has("c").unwrap());
        log.taken_back("b").unwrap();
        log.taken_back("c").unwrap();
        assert!(log.get(1).unwrap().unwrap().undone.is_none());
        assert!(log.get(2).unwrap().unwrap().undone.is_some());
    }

    #[test]
    fn a_deed_of_a_newer_version_is_known_as_unknown() {
        let text = r#"{"version":2,"at":5,"verb":"fold","told":"x","deeds":[{"kind":"fold","layer":"y"}]}"#;
        let operation: Operation = serde_json::from_str(text).unwrap();
        assert_eq!(operation.deeds, [Deed::Unknown]);
    }
}
