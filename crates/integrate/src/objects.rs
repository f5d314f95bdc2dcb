//! Contents of the host's object database.

use crate::error::MergeError;
use crate::path::{Entry, Mode, RepoPath};
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::{ObjectFormat, Oid};
use sha1::Digest;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Reads and writes blobs; what the working tree has but no object holds yet is remembered beside.
pub(crate) struct Objects<'r> {
    repo: &'r Repo,
    loose: HashMap<Oid, Rc<[u8]>>,
}

/// Returns the id that git gives this content.
pub(crate) fn blob_id(format: ObjectFormat, content: &[u8]) -> Oid {
    let header = format!("blob {}\0", content.len());
    let id = match format {
        ObjectFormat::Sha1 => Oid::from_raw(&sha1::Sha1::new().chain_update(&header).chain_update(content).finalize()),
        ObjectFormat::Sha256 => {
            Oid::from_raw(&sha2::Sha256::new().chain_update(&header).chain_update(content).finalize())
        }
    };
    id.expect("a digest has the length of an id")
}

impl<'r> Objects<'r> {
    pub fn new(repo: &'r Repo) -> Self {
        Self { repo, loose: HashMap::new() }
    }

    pub fn repo(&self) -> &'r Repo {
        self.repo
    }

    /// Keeps content that is in no object, and returns the id that it would have.
    pub fn remember(&mut self, content: Vec<u8>) -> Oid {
        let id = blob_id(self.repo.format(), &content);
        self.loose.entry(id).or_insert_with(|| content.into());
        id
    }

    /// Reads a blob.
    pub fn read(&mut self, id: Oid) -> Result<Rc<[u8]>, MergeError> {
        if let Some(content) = self.loose.get(&id) {
            return Ok(content.clone());
        }
        let name = id.to_string();
        match self.look(&name, u64::MAX)? {
            Found::Whole { kind, bytes } if kind == "blob" => Ok(bytes),
            _ => Err(unexpected("git cat-file", name.as_bytes()).into()),
        }
    }

    /// Reads what `name` names if it has at most `most` bytes. Objects that are not in a partial clone are missing.
    pub fn look(&mut self, name: &str, most: u64) -> Result<Found, MergeError> {
        if let Some(content) = Oid::parse(name).and_then(|id| self.loose.get(&id)) {
            let size = content.len() as u64;
            return Ok(match size > most {
                true => Found::Large { size },
                false => Found::Whole { kind: "blob".to_owned(), bytes: content.clone() },
            });
        }
        if most < u64::MAX {
            match self.repo.object_size(name)? {
                None => return Ok(Found::Missing),
                Some(size) if size > most => return Ok(Found::Large { size }),
                Some(_) => {}
            }
        }
        Ok(match self.repo.object(name)? {
            Some((_, kind, bytes)) => Found::Whole { kind, bytes: bytes.into() },
            None => Found::Missing,
        })
    }

    /// Writes content as a blob.
    pub fn write(&mut self, content: &[u8]) -> Result<Oid, MergeError> {
        self.repo.write_blob(content)
    }

    /// Makes sure that what was remembered is an object.
    pub fn store(&mut self, id: Oid) -> Result<(), MergeError> {
        match self.loose.get(&id).cloned() {
            Some(content) => self.write(&content).map(drop),
            None => Ok(()),
        }
    }
}

/// What was looked up.
pub(crate) enum Found {
    /// All of it.
    Whole { kind: String, bytes: Rc<[u8]> },
    /// More than was asked for, in bytes.
    Large { size: u64 },
    /// No such object here.
    Missing,
}

/// A path that differs between two trees.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub path: RepoPath,
    pub old: Option<Entry>,
    pub new: Option<Entry>,
}

impl Difference {
    /// Parses `:<mode> <mode> <id> <id> <status>` and a path.
    pub fn parse(meta: &[u8], path: &[u8]) -> Result<Self, MergeError> {
        let words: Vec<_> = meta.strip_prefix(b":").unwrap_or(meta).split(|b| *b == b' ').collect();
        let [old_mode, new_mode, old_id, new_id, _] = words[..] else {
            return Err(unexpected("git diff-tree", meta).into());
        };
        Ok(Self { path: checked(path)?, old: entry(old_mode, old_id), new: entry(new_mode, new_id) })
    }
}

/// Returns the paths in which two trees differ, by any of their names, in git's order.
pub(crate) fn differences(repo: &Repo, old: &str, new: &str) -> Result<Vec<Difference>, MergeError> {
    repo.diff_trees(repo.tree_named(old)?, repo.tree_named(new)?)
}

/// Returns pairs (from, to) of files that were renamed between two trees.
pub(crate) fn renames(repo: &Repo, old: &str, new: &str) -> Result<Vec<(RepoPath, RepoPath)>, MergeError> {
    let args = ["diff-tree", "-r", "-z", "--name-status", "-M", "--diff-filter=R", old, new];
    let output = repo.pure().args(args).output()?.stdout;
    let mut fields = output.split(|b| *b == 0);
    let mut all = Vec::new();
    while fields.next().is_some_and(|status| !status.is_empty()) {
        let (Some(from), Some(to)) = (fields.next(), fields.next()) else {
            return Err(unexpected("git diff-tree", &output).into());
        };
        all.push((checked(from)?, checked(to)?));
    }
    Ok(all)
}

/// Longest list of paths on one command line, in bytes.
const ARGS: usize = 100_000;

/// Returns what a tree has at paths.
pub(crate) fn entries<'p>(
    repo: &Repo,
    tree: &str,
    paths: impl IntoIterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, Entry>, MergeError> {
    let mut found = BTreeMap::new();
    let mut paths = paths.into_iter().peekable();
    while paths.peek().is_some() {
        let mut git = repo.pure().args(["ls-tree", "-z", "--full-tree", tree, "--"]);
        let mut length = 0;
        while length < ARGS
            && let Some(path) = paths.next()
        {
            git = git.arg(path.as_path());
            length += path.as_bytes().len() + 1;
        }
        let output = git.output()?.stdout;
        for record in output.split(|b| *b == 0).filter(|record| !record.is_empty()) {
            let tab = record.iter().position(|b| *b == b'\t').ok_or_else(|| unexpected("git ls-tree", record))?;
            let words: Vec<_> = record[..tab].split(|b| *b == b' ').collect();
            if let [mode, _, id] = words[..]
                && let Some(entry) = entry(mode, id)
            {
                found.insert(checked(&record[tab + 1..])?, entry);
            }
        }
    }
    Ok(found)
}

fn entry(mode: &[u8], id: &[u8]) -> Option<Entry> {
    Some(Entry { mode: Mode::parse(mode)?, id: Oid::parse(id)? })
}

pub(crate) fn checked(path: &[u8]) -> Result<RepoPath, MergeError> {
    RepoPath::parse(path).ok_or_else(|| MergeError::BadPath { path: sandbox_git::printable(path) })
}
