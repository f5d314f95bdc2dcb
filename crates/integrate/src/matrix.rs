//! How many tips stand to each other: what `conflicts` shows, and what the order of a merge of several
//! is chosen by.
//!
//! ```text
//!   rev-list --parents   one process: which tip contains which, which have nothing in common
//!   diff-tree --stdin    one process: paths whose merge attributes matter
//!   merge-tree --stdin   one process: every pair that is left and not in the cache
//! ```

use crate::attributes::Rules;
use crate::error::MergeError;
use crate::inspect::tree_of;
use crate::next::attribute_lines;
use crate::path::RepoPath;
use crate::repo::Repo;
use crate::run::{Answer, unexpected};
use sandbox_git::Oid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::ControlFlow;

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
    let count = tips.len();
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
    let graph = Graph::read(repo, tips)?;
    let mut to_merge = Vec::new();
    for (a, b) in missing {
        match graph.pair(a, b) {
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
        used.contains(key) || {
            room = room.saturating_sub(1);
            room > 0
        }
    });
    cache.changed = true;
}

/// The attribute lines for all paths in which any tip differs from `onto`: what two tips changed in
/// different ways is among them.
fn merge_attributes(repo: &Repo, onto: Option<Oid>, tips: &[Oid]) -> Result<Vec<u8>, MergeError> {
    if tips.is_empty() {
        return Ok(Vec::new());
    }
    let commits = std::iter::once(onto).chain(tips.iter().copied().map(Some));
    let names: Vec<String> = commits.map(|commit| tree_of(repo, commit)).collect();
    let trees = repo.pure().arg("rev-parse").args(&names).output()?.stdout;
    let trees = String::from_utf8_lossy(&trees).into_owned();
    let mut trees = trees.lines();
    let from = trees.next().unwrap_or_default();
    let input: String = trees.filter(|tree| *tree != from).map(|tree| format!("{from} {tree}\n")).collect();
    if input.is_empty() {
        return Ok(Vec::new());
    }
    let args = ["diff-tree", "--stdin", "-r", "-z", "--name-only", "--no-renames"];
    let output = repo.pure().args(args).stdin(input).output()?.stdout;
    let header = 2 * from.len() + 1;
    let mut paths = BTreeSet::new();
    for field in output.split(|b| *b == 0).filter(|field| !field.is_empty()) {
        // A line with the two trees is before the first path of each.
        let path = if field.get(header) == Some(&b'\n') { &field[header + 1..] } else { field };
        paths.extend(RepoPath::parse(path));
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

/// The part of the history in which tips differ.
struct Graph {
    /// Of each tip: the tips that reach it. `None`: all do.
    reached: Vec<Option<Bits>>,
    /// Of each tip: the tips that it has a commit in common with. `None`: all.
    related: Option<Vec<Bits>>,
}

type Bits = Vec<u64>;

fn set(bits: &mut Bits, n: usize) {
    bits[n / 64] |= 1 << (n % 64);
}

fn has(bits: &[u64], n: usize) -> bool {
    bits[n / 64] & (1 << (n % 64)) != 0
}

fn add(bits: &mut Bits, more: &[u64]) {
    bits.iter_mut().zip(more).for_each(|(bits, more)| *bits |= more);
}

impl Graph {
    fn read(repo: &Repo, tips: &[Oid]) -> Result<Self, MergeError> {
        let names: Vec<String> = tips.iter().map(Oid::to_string).collect();
        let common = Answer::of(repo.pure().args(["merge-base", "--octopus"]).args(&names))?;
        let common = match common.code() {
            Some(0) => Some(common.line()?),
            Some(1) => None,
            _ => return Err(common.failed().into()),
        };
        let mut git = repo.pure().args(["rev-list", "--topo-order", "--parents"]).args(&names);
        if let Some(common) = &common {
            git = git.arg(format!("^{common}"));
        }
        let words = tips.len().div_ceil(64);
        let mut marks: HashMap<Vec<u8>, Bits> = HashMap::new();
        let mut numbers: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (n, name) in names.iter().enumerate() {
            set(marks.entry(name.as_bytes().to_vec()).or_insert_with(|| vec![0; words]), n);
            numbers.entry(name.as_bytes()).or_default().push(n);
        }
        let mut reached = vec![None; tips.len()];
        let mut shared: BTreeSet<Bits> = BTreeSet::new();
        // Children come before their parents, so the marks of a commit are complete when it is met.
        git.arg("--").lines(|line| {
            let mut ids = line.split(|b| *b == b' ');
            let Some((id, mark)) = ids.next().and_then(|id| marks.remove_entry(id)) else {
                return ControlFlow::Continue(());
            };
            for parent in ids {
                add(marks.entry(parent.to_vec()).or_insert_with(|| vec![0; words]), &mark);
            }
            for n in numbers.get(id.as_slice()).into_iter().flatten() {
                reached[*n] = Some(mark.clone());
            }
            shared.insert(mark);
            ControlFlow::Continue(())
        })?;
        let related = common.is_none().then(|| {
            let mut related = vec![vec![0; words]; tips.len()];
            for mark in &shared {
                related.iter_mut().enumerate().filter(|(n, _)| has(mark, *n)).for_each(|(_, bits)| add(bits, mark));
            }
            related
        });
        Ok(Self { reached, related })
    }

    /// How two tips stand, as far as their history tells.
    fn pair(&self, a: usize, b: usize) -> Option<Pair> {
        let reaches = |from: usize, to: usize| self.reached[to].as_ref().is_none_or(|bits| has(bits, from));
        match (reaches(a, b), reaches(b, a)) {
            (true, true) => Some(Pair::Same),
            (true, false) => Some(Pair::Contains),
            (false, true) => Some(Pair::Contained),
            _ => match &self.related {
                Some(related) if !has(&related[a], b) => Some(Pair::Unrelated),
                _ => None,
            },
        }
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
