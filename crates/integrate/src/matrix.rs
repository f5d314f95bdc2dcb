//! How many tips stand to each other: what `conflicts` shows, and what the order of a merge of several
//! is chosen by.
//!
//! ```text
//!   diff-tree            one process: paths whose merge attributes matter
//!   rev-list --parents   one process: which tip contains which, which have nothing in common
//!   merge-tree --stdin   one process: every pair that is left and not in the cache
//! ```

use crate::attributes::{self, Rules};
use crate::error::MergeError;
use crate::lineage::Lineage;
use crate::merger::{attribute_lines, changed};
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::Oid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How two commits stand to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Pair {
    /// They are one commit.
    Same,
    /// The first has all of the second.
    Contains,
    /// The second has all of the first.
    Contained,
    /// They merge without a conflict.
    Clean,
    /// They do not.
    Conflict {
        /// Where, in git's order; bytes that are not UTF-8 are replaced. Not safe for a terminal.
        paths: Vec<String>,
    },
    /// They have no commit in common.
    Unrelated,
}

impl Pair {
    /// The same, seen from the other one.
    fn turned(self) -> Self {
        match self {
            Self::Contains => Self::Contained,
            Self::Contained => Self::Contains,
            other => other,
        }
    }
}

/// Entries that a cache keeps.
const CACHED: usize = 20_000;

/// What is known of pairs. It can be thrown away at any time: everything in it is found out again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Cache {
    /// Digest of what else a result depends on: merge attributes, the end of a shallow history.
    context: String,
    /// `<lesser id> <greater id>`, and how they stand. The merge base needs no place in the key: it
    /// follows from the two ids and where a shallow history ends.
    pairs: BTreeMap<String, Pair>,
    #[serde(skip)]
    changed: bool,
}

impl Cache {
    /// How two commits stand to each other, if that is known: by the attributes of when it was found out.
    pub fn known(&self, a: Oid, b: Oid) -> Option<Pair> {
        if a == b {
            return Some(Pair::Same);
        }
        let (key, turned) = key(a, b);
        self.pairs.get(&key).map(|pair| if turned { pair.clone().turned() } else { pair.clone() })
    }

    /// Whether it differs from what was read.
    pub fn changed(&self) -> bool {
        self.changed
    }
}

/// How a list of commits stand to each other.
#[derive(Clone, Debug)]
pub struct Matrix {
    count: usize,
    pairs: Vec<Pair>,
}

impl Matrix {
    /// How the commit number `a` stands to the commit number `b`.
    ///
    /// # Panics
    /// If there is no such number.
    pub fn get(&self, a: usize, b: usize) -> Pair {
        let at = |a: usize, b: usize| self.pairs[a * self.count + b].clone();
        if a <= b { at(a, b) } else { at(b, a).turned() }
    }

    /// Pairs that conflict, the lesser number first, with their paths.
    pub fn conflicts(&self) -> impl Iterator<Item = (usize, usize, &[String])> {
        self.pairs.iter().enumerate().filter_map(|(at, pair)| match pair {
            Pair::Conflict { paths } => Some((at / self.count, at % self.count, paths.as_slice())),
            _ => None,
        })
    }
}

/// Finds out how commits stand to each other; `onto` is the commit whose attributes decide (HEAD).
pub fn matrix(repo: &Repo, onto: Option<Oid>, tips: &[Oid], cache: &mut Cache) -> Result<Matrix, MergeError> {
    let _working = repo.working();
    let count = tips.len();
    attributes::forget(repo);
    let lines = merge_attributes(repo, onto, tips)?;
    let mut context = Sha256::new();
    context.update(repo.shallow());
    context.update(b"\0");
    context.update(&lines);
    let context = crate::index::hex(&context.finalize());
    if cache.context != context {
        *cache = Cache { context, pairs: BTreeMap::new(), changed: true };
    }
    let mut pairs = vec![Pair::Same; count * count];
    let mut missing = Vec::new();
    let mut used = BTreeSet::new();
    for a in 0..count {
        for b in (a + 1..count).filter(|b| tips[*b] != tips[a]) {
            let (key, turned) = key(tips[a], tips[b]);
            match cache.pairs.get(&key) {
                Some(pair) => pairs[a * count + b] = if turned { pair.clone().turned() } else { pair.clone() },
                None => missing.push((a, b)),
            }
            used.insert(key);
        }
    }
    if missing.is_empty() {
        return Ok(Matrix { count, pairs });
    }
    let lineage = Lineage::read(repo, tips, None)?;
    let mut to_merge = Vec::new();
    for (a, b) in missing {
        match lineage.pair(a, b) {
            Some(pair) => pairs[a * count + b] = pair,
            None => to_merge.push((a, b)),
        }
    }
    repo.set_pure_attributes(&lines)?;
    let merged = merge_all(repo, tips, &to_merge);
    repo.set_pure_attributes(b"")?;
    for ((a, b), pair) in to_merge.into_iter().zip(merged?) {
        pairs[a * count + b] = pair;
    }
    remember(cache, tips, &pairs, &used);
    Ok(Matrix { count, pairs })
}

/// The name of a pair in the cache, and whether it is the other way round there.
fn key(a: Oid, b: Oid) -> (String, bool) {
    let (a, b) = (a.to_string(), b.to_string());
    if a <= b { (format!("{a} {b}"), false) } else { (format!("{b} {a}"), true) }
}

fn remember(cache: &mut Cache, tips: &[Oid], pairs: &[Pair], used: &BTreeSet<String>) {
    let count = tips.len();
    for a in 0..count {
        for b in (a + 1..count).filter(|b| tips[*b] != tips[a]) {
            let (key, turned) = key(tips[a], tips[b]);
            let pair = pairs[a * count + b].clone();
            cache.pairs.insert(key, if turned { pair.turned() } else { pair });
        }
    }
    // Which of the others are older is not known, and not worth knowing.
    let mut room = CACHED.saturating_sub(used.len());
    cache.pairs.retain(|key, _| {
        let kept = used.contains(key) || room > 0;
        if !used.contains(key) {
            room = room.saturating_sub(1);
        }
        kept
    });
    cache.changed = true;
}

/// The attribute lines for all paths in which any tip differs from `onto`: what two tips changed in
/// different ways is among them.
fn merge_attributes(repo: &Repo, onto: Option<Oid>, tips: &[Oid]) -> Result<Vec<u8>, MergeError> {
    let paths = changed(repo, onto, tips)?;
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let (lines, _) = attribute_lines(repo, &Rules::read(repo)?, &paths)?;
    Ok(lines)
}

/// Merges pairs, in one process.
fn merge_all(repo: &Repo, tips: &[Oid], pairs: &[(usize, usize)]) -> Result<Vec<Pair>, MergeError> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let input: String = pairs.iter().map(|(a, b)| format!("{} {}\n", tips[*a], tips[*b])).collect();
    let args = ["merge-tree", "--write-tree", "--stdin", "--name-only", "--no-messages"];
    let output = repo.pure().args(args).stdin(input).output()?.stdout;
    parse(&output).filter(|all| all.len() == pairs.len()).ok_or_else(|| unexpected("git merge-tree", &output).into())
}

/// `(status \0 tree \0 (path \0)* \0)*`; status 1 is a clean merge, 0 one with conflicts.
fn parse(output: &[u8]) -> Option<Vec<Pair>> {
    let mut fields = output.split(|b| *b == 0);
    let mut all = Vec::new();
    loop {
        let clean = match fields.next()? {
            b"" => return fields.next().is_none().then_some(all),
            b"0" => false,
            b"1" => true,
            _ => return None,
        };
        Oid::parse(fields.next()?)?;
        let mut paths = Vec::new();
        loop {
            match fields.next()? {
                b"" => break,
                path => paths.push(String::from_utf8_lossy(path).into_owned()),
            }
        }
        paths.dedup();
        all.push(if clean { Pair::Clean } else { Pair::Conflict { paths } });
    }
}

/// Above this number of candidates the best set is approximated.
const EXACT: usize = 24;

/// Chooses the order in which the most of `count` sandboxes merge cleanly: those that fit together
/// first, as given; then those that would not fit. `collide` tells whether two of them collide, and
/// `hopeless` whether one collides with what is there already.
pub fn best_order(
    count: usize,
    collide: impl Fn(usize, usize) -> bool,
    hopeless: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let candidates: Vec<usize> = (0..count).filter(|n| !hopeless(*n)).collect();
    let chosen = if candidates.len() <= EXACT {
        let mut best = Vec::new();
        largest(&candidates, &collide, &mut Vec::new(), &mut best);
        best
    } else {
        greedy(&candidates, &collide)
    };
    let rest = (0..count).filter(|n| !chosen.contains(n));
    chosen.iter().copied().chain(rest).collect()
}

/// The largest set of candidates without a collision; of equal ones that with the earliest.
fn largest(left: &[usize], collide: &impl Fn(usize, usize) -> bool, chosen: &mut Vec<usize>, best: &mut Vec<usize>) {
    if chosen.len() > best.len() {
        best.clone_from(chosen);
    }
    let Some((first, rest)) = left.split_first() else { return };
    if chosen.len() + left.len() <= best.len() {
        return;
    }
    let fit: Vec<usize> = rest.iter().copied().filter(|n| !collide(*first, *n)).collect();
    let free = fit.len() == rest.len();
    chosen.push(*first);
    largest(&fit, collide, chosen, best);
    chosen.pop();
    // One that collides with nobody is in some largest set.
    if !free {
        largest(rest, collide, chosen, best);
    }
}

/// Takes the one with the fewest collisions, again and again.
fn greedy(candidates: &[usize], collide: &impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut left: VecDeque<usize> = candidates.iter().copied().collect();
    let mut chosen = Vec::new();
    let collisions = |left: &VecDeque<usize>, n: usize| left.iter().filter(|o| **o != n && collide(n, **o)).count();
    while let Some(next) = left.iter().copied().min_by_key(|n| (collisions(&left, *n), *n)) {
        chosen.push(next);
        left.retain(|other| *other != next && !collide(next, *other));
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_git_writes_them() {
        let id = "d3a0ac4db630f50359a9722e6ae403db088a6538";
        let text = format!("0\0{id}\0a b\0a b\0c\0\x001\0{id}\0\0");
        let paths = vec!["a b".to_owned(), "c".to_owned()];
        assert_eq!(parse(text.as_bytes()), Some(vec![Pair::Conflict { paths }, Pair::Clean]));
        assert_eq!(parse(b""), Some(vec![]));
        assert_eq!(parse(b"0\0x\0\0"), None);
        assert_eq!(parse(format!("1\0{id}\0").as_bytes()), None, "cut off");
    }

    #[test]
    fn the_most_that_fit_come_first() {
        // 0 collides with 1 and 2; 3 with nobody; 4 with what is there.
        let collide = |a: usize, b: usize| [(0, 1), (0, 2)].contains(&(a.min(b), a.max(b)));
        assert_eq!(best_order(5, collide, |n| n == 4), [1, 2, 3, 0, 4]);
        assert_eq!(best_order(3, |_, _| false, |_| false), [0, 1, 2]);
        assert_eq!(best_order(3, |_, _| true, |_| false), [0, 1, 2]);
        // A star of 30: all but its centre.
        let many = best_order(30, |a, b| a.min(b) == 0, |_| false);
        assert_eq!((many[0], many[29]), (1, 0));
        assert_eq!(many.len(), 30);
    }
}
