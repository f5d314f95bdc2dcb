//! What tips have in common, from one walk over the part of the history in which they differ.

use crate::error::MergeError;
use crate::inspect::{Relation, common_of};
use crate::matrix::Pair;
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::Oid;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

/// The part of the history in which tips differ.
pub(crate) struct Lineage {
    /// Of each tip: the tips that reach it. `None`: all do.
    reached: Vec<Option<Bits>>,
    /// Of each tip: the tips that it has a commit in common with. `None`: all.
    related: Option<Vec<Bits>>,
    /// How many commits are reached by exactly these tips.
    counts: BTreeMap<Bits, u64>,
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

impl Lineage {
    /// `guess`: a commit that all of them may have, such as the one that they began with. If they do, nobody has to be
    /// asked for one.
    pub fn read(repo: &Repo, tips: &[Oid], guess: Option<Oid>) -> Result<Self, MergeError> {
        let names: Vec<String> = tips.iter().map(Oid::to_string).collect();
        if let Some(guess) = guess
            && let Ok(Some(lineage)) = Self::walk(repo, &names, Some(&guess.to_string()))
        {
            return Ok(lineage);
        }
        let common = common_of(repo, &names)?;
        let walked = Self::walk(repo, &names, common.as_deref())?;
        walked.ok_or_else(|| unexpected("git merge-base", common.unwrap_or_default().as_bytes()).into())
    }

    /// Walks down to `common`; `None` if not all of them lead there.
    fn walk(repo: &Repo, names: &[String], common: Option<&str>) -> Result<Option<Self>, MergeError> {
        let mut git = repo.pure().args(["rev-list", "--topo-order", "--parents"]).args(names);
        if let Some(common) = common {
            git = git.arg(format!("^{common}"));
        }
        let words = names.len().div_ceil(64);
        let mut marks: HashMap<Vec<u8>, Bits> = HashMap::new();
        let mut numbers: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (n, name) in names.iter().enumerate() {
            set(marks.entry(name.as_bytes().to_vec()).or_insert_with(|| vec![0; words]), n);
            numbers.entry(name.as_bytes()).or_default().push(n);
        }
        let mut reached = vec![None; names.len()];
        let mut counts: BTreeMap<Bits, u64> = BTreeMap::new();
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
            *counts.entry(mark).or_default() += 1;
            ControlFlow::Continue(())
        })?;
        // A way down to it meets nothing before that it reaches itself: the marks that it has now are all.
        let leads = |n: usize, common: &str| {
            names[n] == common || marks.get(common.as_bytes()).is_some_and(|bits| has(bits, n))
        };
        if common.is_some_and(|common| !(0..names.len()).all(|n| leads(n, common))) {
            return Ok(None);
        }
        let related = common.is_none().then(|| {
            let mut related = vec![vec![0; words]; names.len()];
            for mark in counts.keys() {
                related.iter_mut().enumerate().filter(|(n, _)| has(mark, *n)).for_each(|(_, bits)| add(bits, mark));
            }
            related
        });
        Ok(Some(Self { reached, related, counts }))
    }

    /// How two tips stand, as far as their history tells.
    pub fn pair(&self, a: usize, b: usize) -> Option<Pair> {
        match (self.reaches(a, b), self.reaches(b, a)) {
            (true, true) => Some(Pair::Same),
            (true, false) => Some(Pair::Contains),
            (false, true) => Some(Pair::Contained),
            _ if !self.are_related(a, b) => Some(Pair::Unrelated),
            _ => None,
        }
    }

    /// How a tip stands to a commit that has all of the tips in `have`, which are not none, and `made` commits
    /// more that no tip has.
    pub fn relation(&self, have: &[usize], made: u64, tip: usize) -> Relation {
        if have.iter().any(|n| self.reaches(*n, tip)) {
            return Relation::Contained;
        }
        let count = |wanted: &dyn Fn(bool, bool) -> bool| -> u64 {
            let fits = |bits: &&Bits| wanted(have.iter().any(|n| has(bits, *n)), has(bits, tip));
            self.counts.iter().filter(|(bits, _)| fits(bits)).map(|(_, count)| count).sum()
        };
        let ahead = count(&|here, there| there && !here);
        match made + count(&|here, there| here && !there) {
            0 => Relation::FastForward { ahead },
            _ if !have.iter().any(|n| self.are_related(*n, tip)) => Relation::Unrelated,
            behind => Relation::Diverged { ahead, behind },
        }
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        self.reached[to].as_ref().is_none_or(|bits| has(bits, from))
    }

    fn are_related(&self, a: usize, b: usize) -> bool {
        self.related.as_ref().is_none_or(|related| has(&related[a], b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::World;

    #[test]
    fn a_guess_is_believed_only_where_all_lead_there() {
        let world = World::new(&[("a", "1\n")]);
        let commit = |parents: &[Oid]| {
            let mut args =
                vec!["commit-tree".to_owned(), "-m".into(), format!("{}", parents.len()), "HEAD^{tree}".into()];
            args.extend(parents.iter().flat_map(|parent| ["-p".to_owned(), parent.to_string()]));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Oid::parse(world.git(&args).trim()).unwrap()
        };
        let base = Oid::parse(world.git(&["rev-parse", "HEAD"]).trim()).unwrap();
        let here = commit(&[base]);
        let (there, beside) = (commit(&[here]), commit(&[here, base]));
        let onward = commit(&[there, beside]);
        let other = commit(&[]);
        let repo = world.repo();
        let tips = [here, there, beside, onward, base];
        let asked = Lineage::read(&repo, &tips, None).unwrap();
        // Right; not an ancestor of all; a stranger; no such commit.
        for guess in [base, there, other, Oid::parse("1".repeat(40)).unwrap()] {
            let guessed = Lineage::read(&repo, &tips, Some(guess)).unwrap();
            for a in 0..tips.len() {
                for b in (0..tips.len()).filter(|b| *b != a) {
                    assert_eq!(guessed.pair(a, b), asked.pair(a, b), "{guess} {a} {b}");
                    assert_eq!(guessed.relation(&[a], 0, b), asked.relation(&[a], 0, b), "{guess} {a} {b}");
                }
            }
        }
        let names: Vec<String> = tips.iter().map(Oid::to_string).collect();
        let is_known = |guess: Oid| Lineage::walk(&repo, &names, Some(&guess.to_string())).unwrap().is_some();
        assert!(is_known(base) && !is_known(there) && !is_known(other) && !is_known(here));
        let names = [there.to_string(), other.to_string()];
        assert!(Lineage::walk(&repo, &names, Some(&base.to_string())).unwrap().is_none());
    }
}
