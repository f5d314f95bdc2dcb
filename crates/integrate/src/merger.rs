//! Merging commits as trees, in the scratch repository and by the merge attributes of the host only: one
//! process, however many merges there are.
//!
//! ```text
//!   diff-tree            paths in which what is merged differs from where it goes
//!   check-attr           their merge attributes on the host ─► info/attributes of the scratch repository
//!   merge-tree --stdin   `[base --] ours theirs` in, tree and conflicts out
//! ```

use crate::attributes::{self, MergeStyle, Rules};
use crate::database::Stored;
use crate::error::{Conflict, MergeError, Reason};
use crate::objects::checked;
use crate::path::{Entry, Mode, RepoPath};
use crate::repo::Repo;
use crate::run::{Talk, unexpected};
use sandbox_git::{Oid, printable};
use std::collections::{BTreeMap, BTreeSet};

/// What two commits are merged over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Their best common ancestor.
    Found,
    /// This one; `None`: nothing.
    This(Option<Oid>),
}

/// What came of a merge that is not clean.
#[derive(Clone, Debug)]
pub(crate) struct Unclean {
    /// The tree with conflict markers.
    pub tree: Oid,
    /// Which paths, and why.
    pub conflicts: Vec<Conflict>,
    /// What there is of each conflicting path: in the base, here, there.
    pub stages: BTreeMap<RepoPath, [Option<Entry>; 3]>,
    /// What git calls each of them, e.g. `CONFLICT (contents)`.
    pub kinds: BTreeMap<RepoPath, BTreeSet<String>>,
}

/// Merges commits.
pub(crate) struct Merger<'r> {
    repo: &'r Repo,
    rules: &'r Rules,
    onto: Option<Oid>,
    /// Commits whose paths the attributes are known for.
    known: BTreeSet<Oid>,
    paths: BTreeSet<RepoPath>,
    /// Paths that a driver of the user would have to merge; they conflict instead.
    drivers: BTreeMap<RepoPath, String>,
    talk: Option<Talk>,
    /// The end of the last answer is still to come.
    behind: bool,
}

impl Drop for Merger<'_> {
    fn drop(&mut self) {
        self.talk = None;
        let _ = self.repo.set_pure_attributes(b"");
    }
}

impl<'r> Merger<'r> {
    /// Begins; `onto` is where everything goes.
    pub fn new(repo: &'r Repo, rules: &'r Rules, onto: Option<Oid>) -> Self {
        let (known, paths, drivers) = Default::default();
        Self { repo, rules, onto, known, paths, drivers, talk: None, behind: false }
    }

    pub fn repo(&self) -> &'r Repo {
        self.repo
    }

    pub fn rules(&self) -> &'r Rules {
        self.rules
    }

    /// Finds the attributes for what these commits change. Commits that are made of them need no more.
    pub fn know(&mut self, commits: impl IntoIterator<Item = Oid>) -> Result<(), MergeError> {
        let new: Vec<Oid> = commits.into_iter().filter(|commit| !self.known.contains(commit)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut more = changed(self.repo, self.onto, &new)?;
        self.known.extend(new);
        more.retain(|path| !self.paths.contains(path));
        if more.is_empty() {
            return Ok(());
        }
        self.paths.extend(more);
        let (lines, drivers) = attribute_lines(self.repo, self.rules, &self.paths)?;
        // A process reads them once.
        self.talk = None;
        self.drivers = drivers;
        self.repo.set_pure_attributes(&lines)
    }

    /// Merges `theirs` into `ours`. Returns the tree, or what is in the way.
    pub fn merge(&mut self, over: Over, ours: Oid, theirs: Oid) -> Result<Result<Oid, Unclean>, MergeError> {
        let line = match over {
            Over::Found => format!("{ours} {theirs}\n"),
            Over::This(base) if self.repo.merge_tree_has_base()? => {
                let base = match base {
                    Some(base) => base,
                    None => self.bare(None, &[])?,
                };
                format!("{base} -- {ours} {theirs}\n")
            }
            Over::This(base) => {
                // Two commits that have this one as their only parent.
                let base = self.bare(base, &[])?;
                format!("{} {}\n", self.bare(Some(ours), &[base])?, self.bare(Some(theirs), &[base])?)
            }
        };
        if self.talk.is_none() {
            let args = ["merge-tree", "--write-tree", "--stdin", "-z", "--messages"];
            self.talk = Some(Talk::start(self.repo.pure().args(args))?);
            self.behind = false;
        }
        let talk = self.talk.as_mut().expect("it was just started");
        // The end of an answer is written when the next one begins: a commit merged with itself brings it out.
        talk.send(format!("{line}{ours} {ours}\n").as_bytes())?;
        if std::mem::replace(&mut self.behind, true) {
            talk.field()?;
        }
        let found = Merged::read(talk)?;
        for _ in 0..3 {
            talk.field()?;
        }
        if found.clean {
            return Ok(Ok(found.tree));
        }
        let reason = |path: &RepoPath, message: String| match self.drivers.get(path) {
            Some(driver) => Reason::Driver { driver: driver.clone() },
            None => Reason::Commits { message },
        };
        let conflicts: Vec<Conflict> = found
            .conflicts
            .into_iter()
            .map(|(path, message)| Conflict { reason: reason(&path, message), path })
            .collect();
        if conflicts.is_empty() {
            return Err(unexpected("git merge-tree", b"a conflict without a path").into());
        }
        Ok(Err(Unclean { tree: found.tree, conflicts, stages: found.stages, kinds: found.kinds }))
    }

    /// A commit of the same tree with other parents.
    fn bare(&self, commit: Option<Oid>, parents: &[Oid]) -> Result<Oid, MergeError> {
        let tree = self.repo.tree(commit)?;
        let who = b"base <> 0 +0000".to_vec();
        let stored = Stored {
            tree,
            parents: parents.to_vec(),
            author: who.clone(),
            committer: who,
            encoded: false,
            message: b"base\n".to_vec(),
        };
        self.repo.write_commit(&stored)
    }
}

/// The paths in which two trees differ, of each pair.
pub(crate) fn changed_between(repo: &Repo, pairs: &[(Oid, Oid)]) -> Result<Vec<BTreeSet<RepoPath>>, MergeError> {
    let paths = |(old, new): &(Oid, Oid)| -> Result<BTreeSet<RepoPath>, MergeError> {
        Ok(repo.diff_trees(*old, *new)?.into_iter().map(|difference| difference.path).collect())
    };
    pairs.iter().map(paths).collect()
}

/// The paths in which commits differ from `onto`.
pub(crate) fn changed(repo: &Repo, onto: Option<Oid>, commits: &[Oid]) -> Result<BTreeSet<RepoPath>, MergeError> {
    let from = repo.tree(onto)?;
    let pairs = commits.iter().map(|commit| Ok((from, repo.commit(*commit)?.tree)));
    let pairs = pairs.collect::<Result<Vec<_>, MergeError>>()?;
    Ok(changed_between(repo, &pairs)?.into_iter().flatten().collect())
}

/// Returns the lines of an attributes file that have paths merged as the host would, and those paths that
/// a driver of the user would have to merge.
pub(crate) fn attribute_lines(
    repo: &Repo,
    rules: &Rules,
    paths: &BTreeSet<RepoPath>,
) -> Result<(Vec<u8>, BTreeMap<RepoPath, String>), MergeError> {
    let (mut lines, mut drivers) = (Vec::new(), BTreeMap::new());
    for (path, attributes) in &attributes::known(repo, paths)? {
        let attribute = match rules.merge_style(attributes) {
            MergeStyle::Text => continue,
            MergeStyle::Union => " merge=union\n",
            MergeStyle::Binary => " -merge\n",
            MergeStyle::Driver(driver) => {
                drivers.insert(path.clone(), printable(driver.as_bytes()));
                " -merge\n"
            }
        };
        lines.extend(attribute_pattern(path));
        lines.extend_from_slice(attribute.as_bytes());
    }
    Ok((lines, drivers))
}

/// A line's start in an attributes file that matches exactly one path.
fn attribute_pattern(path: &RepoPath) -> Vec<u8> {
    let mut out = b"\"/".to_vec();
    for byte in path.as_bytes() {
        match byte {
            b'*' | b'?' | b'[' => out.extend([b'\\', b'\\', *byte]),
            b'\\' => out.extend(b"\\\\\\\\"),
            b'"' => out.extend(b"\\\""),
            0..=31 | 127 => out.extend(format!("\\{byte:03o}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}

/// What `git merge-tree --stdin -z` prints of one merge.
struct Merged {
    clean: bool,
    tree: Oid,
    /// Path and what is said about it.
    conflicts: BTreeMap<RepoPath, String>,
    stages: BTreeMap<RepoPath, [Option<Entry>; 3]>,
    kinds: BTreeMap<RepoPath, BTreeSet<String>>,
}

impl Merged {
    fn read(talk: &mut Talk) -> Result<Self, MergeError> {
        let mut said = Vec::new();
        let mut field = || -> Result<Vec<u8>, MergeError> {
            let field = talk.field()?;
            said.extend_from_slice(&field);
            said.push(0);
            Ok(field)
        };
        Self::parse(&mut field)?.ok_or_else(|| unexpected("git merge-tree", &said).into())
    }

    /// `status \0 tree \0 (mode id stage \t path \0)* \0 (count \0 path… \0 kind \0 message \0)* \0`: status 1
    /// is a clean merge, 0 one with conflicts. Without records there is one part less.
    fn parse(field: &mut dyn FnMut() -> Result<Vec<u8>, MergeError>) -> Result<Option<Self>, MergeError> {
        let clean = match &*field()? {
            b"0" => false,
            b"1" => true,
            _ => return Ok(None),
        };
        let Some(tree) = Oid::parse(field()?) else { return Ok(None) };
        let (conflicts, stages, kinds) = Default::default();
        let mut merged = Self { clean, tree, conflicts, stages, kinds };
        if !clean {
            loop {
                let record = field()?;
                if record.is_empty() {
                    break;
                }
                if merged.record(&record)?.is_none() {
                    return Ok(None);
                }
            }
        }
        // With `--messages` a clean merge has them too, behind an empty field.
        if clean && !field()?.is_empty() {
            return Ok(None);
        }
        loop {
            let count = field()?;
            if count.is_empty() {
                return Ok(Some(merged));
            }
            let Some(count) = std::str::from_utf8(&count).ok().and_then(|count| count.parse::<usize>().ok()) else {
                return Ok(None);
            };
            let paths = (0..count).map(|_| field()).collect::<Result<Vec<_>, _>>()?;
            let (kind, message) = (field()?, field()?);
            if kind.starts_with(b"CONFLICT") {
                let text = String::from_utf8_lossy(&message);
                let text = text.trim().split_once("): ").map_or(text.trim(), |(_, text)| text);
                for path in paths {
                    let path = checked(&path)?;
                    merged.kinds.entry(path.clone()).or_default().insert(String::from_utf8_lossy(&kind).into_owned());
                    merged.conflicts.insert(path, printable(text.as_bytes()));
                }
            }
        }
    }

    /// One side of a conflicting path.
    fn record(&mut self, record: &[u8]) -> Result<Option<()>, MergeError> {
        let Some(tab) = record.iter().position(|b| *b == b'\t') else { return Ok(None) };
        let words: Vec<&[u8]> = record[..tab].split(|b| *b == b' ').collect();
        let [mode, id, stage] = words[..] else { return Ok(None) };
        let (Some(mode), Some(id), [stage @ b'1'..=b'3']) = (Mode::parse(mode), Oid::parse(id), stage) else {
            return Ok(None);
        };
        let path = checked(&record[tab + 1..])?;
        self.conflicts.insert(path.clone(), "both sides changed it".to_owned());
        self.stages.entry(path).or_default()[usize::from(stage - b'1')] = Some(Entry { mode, id });
        Ok(Some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_line_matches_its_path_only() {
        let pattern = |text: &[u8]| String::from_utf8(attribute_pattern(&RepoPath::parse(text).unwrap())).unwrap();
        assert_eq!(pattern(b"a b"), r#""/a b""#);
        assert_eq!(pattern(b"a*\n"), r#""/a\\*\012""#);
        assert_eq!(pattern(br#"a\""#), r#""/a\\\\\"""#);
    }

    fn parse(text: &str) -> Option<Merged> {
        let mut fields = text.strip_suffix('\0').unwrap_or(text).split('\0');
        let mut field = || Ok(fields.next().unwrap_or("?").as_bytes().to_vec());
        let merged = Merged::parse(&mut field).unwrap();
        assert!(merged.is_none() || fields.next().is_none(), "all of it is read");
        merged
    }

    #[test]
    fn conflicts_have_the_words_of_git() {
        let id = "d3a0ac4db630f50359a9722e6ae403db088a6538";
        let text = format!(
            "0\x00{id}\x00100644 {id} 1\ta\x00100644 {id} 2\ta\x00\x001\x00a\x00Auto-merging\x00Auto-merging a\n\x001\x00a\x00CONFLICT (contents)\x00CONFLICT (content): Merge conflict in a\n\x00\x00"
        );
        let merged = parse(&text).unwrap();
        let path = RepoPath::parse(b"a").unwrap();
        assert!(!merged.clean && merged.kinds[&path].contains("CONFLICT (contents)"));
        assert!(merged.stages[&path][0].is_some() && merged.stages[&path][2].is_none());
        assert_eq!(merged.conflicts.into_iter().collect::<Vec<_>>(), [(path, "Merge conflict in a".to_owned())]);
        let clean = parse(&format!("1\0{id}\0\01\0a\0Auto-merging\0Auto-merging a\n\0\0")).unwrap();
        assert!(clean.clean && clean.conflicts.is_empty());
        assert!(parse(&format!("1\0{id}\0\0\0")).unwrap().clean);
        assert!(parse(&format!("2\0{id}\0\0")).is_none());
    }
}
