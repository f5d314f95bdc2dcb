//! Questions about what reaches what, each one process for any number of ids.

use crate::host_repo::HostRepo;
use sandbox_git::{Git, GitError, Oid};
use std::collections::HashSet;
use std::ops::ControlFlow;

/// After so many commits that are not granted, the rest counts as not granted too: looking
/// further would cost more than packing anew.
const MAX_OUTSIDE: usize = 100_000;

/// The type of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A commit.
    Commit,
    /// A tree.
    Tree,
    /// A blob.
    Blob,
    /// An annotated tag.
    Tag,
}

/// An object that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub oid: Oid,
    /// Its type.
    pub kind: Kind,
}

/// Returns those of `candidates` that are commits but not reachable from `roots`, or that are
/// not commits at all. Ids of objects that do not exist count as outside only if they are asked for
/// with [`look_up`] first: git passes over them here.
pub fn outside<'a>(
    git: &Git,
    host: &HostRepo,
    roots: impl IntoIterator<Item = &'a Oid>,
    candidates: &HashSet<Oid>,
) -> Result<HashSet<Oid>, GitError> {
    // Peeled: a tag is granted by name only, so one that peels to something else stays outside.
    let list: Vec<Oid> = candidates.iter().copied().collect();
    let found = look_up(git, host, &list)?;
    let mut outside: HashSet<Oid> = HashSet::new();
    let mut input = String::new();
    let mut open = 0;
    for (oid, found) in list.iter().zip(found) {
        match found {
            Some(Found { kind: Kind::Commit, .. }) => {
                input.push_str(&format!("{oid}\n"));
                open += 1;
            }
            _ => {
                outside.insert(*oid);
            }
        }
    }
    if open == 0 {
        return Ok(outside);
    }
    // `--not` on standard input is newer than the oldest git that we run.
    input.extend(roots.into_iter().map(|oid| format!("^{oid}\n")));
    let mut seen = 0;
    let mut cut = false;
    host.read(git).args(["rev-list", "--ignore-missing", "--stdin"]).stdin(input).lines(|line| {
        if let Some(oid) = Oid::parse(line)
            && candidates.contains(&oid)
        {
            outside.insert(oid);
        }
        seen += 1;
        cut = seen >= MAX_OUTSIDE;
        if cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(if cut { candidates.clone() } else { outside })
}

/// Returns for each id the object's type, `None` where there is no such object.
pub fn look_up(git: &Git, host: &HostRepo, oids: &[Oid]) -> Result<Vec<Option<Found>>, GitError> {
    let specs: Vec<String> = oids.iter().map(Oid::to_string).collect();
    resolve(git, host, &specs)
}

/// As [`look_up`], for any spelling of an object (`abc123`, `<id>^{commit}`) without line breaks.
pub fn resolve(git: &Git, host: &HostRepo, specs: &[String]) -> Result<Vec<Option<Found>>, GitError> {
    if specs.is_empty() {
        return Ok(Vec::new());
    }
    let input: String = specs.iter().map(|spec| format!("{spec}\n")).collect();
    let out = host.read(git).args(["cat-file", "--batch-check"]).stdin(input).output()?;
    let answer = |line: &[u8]| {
        let mut words = line.split(|b| *b == b' ');
        let oid = Oid::parse(words.next()?)?;
        let kind = match words.next()? {
            b"commit" => Kind::Commit,
            b"tree" => Kind::Tree,
            b"blob" => Kind::Blob,
            b"tag" => Kind::Tag,
            _ => return None,
        };
        Some(Found { oid, kind })
    };
    let mut answers: Vec<Option<Found>> = out.stdout.split(|b| *b == b'\n').map(answer).collect();
    answers.resize(specs.len(), None);
    Ok(answers)
}
