//! Which sandboxes land when a command has to pass on what the merge makes of them.
//!
//! ```text
//!   batch = all ──► passes: it lands
//!     │ fails
//!     ▼
//!   bisect its prefixes: [..good] passes, [..bad] fails, bad - good = 1
//!     │                                        │ good = 0: does it fail without any of them?
//!     ▼                                        ▼ yes: nobody is to blame, nothing lands
//!   batch[good] broke it: out of the batch, and on with the others
//! ```
//!
//! The queue is a function of what is known: [`next`] says what one who tests one thing after the other asks for
//! now, or how it ends. Whoever tests several things at once asks for what would be asked for next, whichever way
//! the present tests end ([`wanted`]): so the end is the same however many are tested at once, and in whatever
//! order they come back, even for a command that does not always judge alike.

use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// What is tested: members of the queue by their numbers, in their order. Empty: the branch without any of them.
pub type Candidate = Vec<usize>;

/// What is known: whether a candidate passed.
pub type Known = BTreeMap<Candidate, bool>;

/// What follows from what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This must be tested.
    Test(Candidate),
    /// It is decided.
    Done(Verdict),
}

/// How it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What passes together, in its order.
    pub lands: Vec<usize>,
    /// Each of these broke what passed without it, in the order in which that was found.
    pub broken: Vec<usize>,
    /// It fails without any of them too: nothing lands, and nobody is to blame.
    pub fails_alone: bool,
}

/// What one who tests one thing after the other does now.
pub fn next(count: usize, known: &Known) -> Step {
    let mut batch: Candidate = (0..count).collect();
    let mut broken = Vec::new();
    // So many of the first are known to pass together.
    let mut good = 0;
    while !batch.is_empty() {
        match known.get(&batch) {
            None => return Step::Test(batch),
            Some(true) => break,
            Some(false) => {}
        }
        let mut bad = batch.len();
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match known.get(&batch[..middle]) {
                None => return Step::Test(batch[..middle].to_vec()),
                Some(true) => good = middle,
                Some(false) => bad = middle,
            }
        }
        if good == 0 {
            match known.get([].as_slice()) {
                None => return Step::Test(Vec::new()),
                Some(true) => {}
                Some(false) => return Step::Done(Verdict { lands: Vec::new(), broken, fails_alone: true }),
            }
        }
        broken.push(batch.remove(bad - 1));
    }
    Step::Done(Verdict { lands: batch, broken, fails_alone: false })
}

/// At most so many states of knowledge are looked at to find what to test meanwhile.
const LOOKED_AT: usize = 512;

/// What is worth testing now, at most `jobs`, the most urgent first: what is asked for, and what will be asked for
/// if that passes, or fails.
pub fn wanted(count: usize, known: &Known, jobs: usize) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut states = VecDeque::from([known.clone()]);
    for _ in 0..LOOKED_AT {
        let Some(state) = states.pop_front().filter(|_| found.len() < jobs) else { break };
        let Step::Test(candidate) = next(count, &state) else { continue };
        if !found.contains(&candidate) {
            found.push(candidate.clone());
        }
        for passes in [false, true] {
            let mut state = state.clone();
            state.insert(candidate.clone(), passes);
            states.push_back(state);
        }
    }
    found
}

/// Who tests: the doing part of a queue.
pub trait Checker {
    /// What went wrong with testing itself.
    type Error;
    /// Begins to test.
    fn start(&mut self, candidate: &Candidate) -> Result<(), Self::Error>;
    /// Waits until one of those that were started has come to its end, and says how.
    fn finished(&mut self) -> Result<(Candidate, bool), Self::Error>;
    /// Ends a test whose outcome nobody needs any more.
    fn cancel(&mut self, candidate: &Candidate);
}

/// Runs a queue of `count` members to its end, testing at most `jobs` candidates at once.
pub fn run<C: Checker>(count: usize, jobs: usize, known: &mut Known, checker: &mut C) -> Result<Verdict, C::Error> {
    let mut running: Vec<Candidate> = Vec::new();
    loop {
        if let Step::Done(verdict) = next(count, known) {
            running.iter().for_each(|candidate| checker.cancel(candidate));
            return Ok(verdict);
        }
        let wanted = wanted(count, known, jobs.max(1));
        running.retain(|candidate| {
            let needed = wanted.contains(candidate);
            if !needed {
                checker.cancel(candidate);
            }
            needed
        });
        for candidate in &wanted {
            if !running.contains(candidate) {
                checker.start(candidate)?;
                running.push(candidate.clone());
            }
        }
        let (candidate, passed) = checker.finished()?;
        running.retain(|other| *other != candidate);
        known.insert(candidate, passed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A checker whose judgements and order of coming back are written down before.
    struct Scripted<F> {
        passes: F,
        dice: u64,
        running: Vec<Candidate>,
        most: usize,
        finished: usize,
    }

    impl<F: Fn(&[usize]) -> bool> Scripted<F> {
        fn new(dice: u64, passes: F) -> Self {
            Self { passes, dice: dice * 2 + 1, running: Vec::new(), most: 0, finished: 0 }
        }
    }

    impl<F: Fn(&[usize]) -> bool> Checker for Scripted<F> {
        type Error = Infallible;
        fn start(&mut self, candidate: &Candidate) -> Result<(), Infallible> {
            assert!(!self.running.contains(candidate), "{candidate:?} runs already");
            self.running.push(candidate.clone());
            self.most = self.most.max(self.running.len());
            Ok(())
        }
        fn finished(&mut self) -> Result<(Candidate, bool), Infallible> {
            self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = (self.dice >> 33) as usize % self.running.len();
            let candidate = self.running.swap_remove(n);
            self.finished += 1;
            let passed = (self.passes)(&candidate);
            Ok((candidate, passed))
        }
        fn cancel(&mut self, candidate: &Candidate) {
            let n = self.running.iter().position(|other| other == candidate);
            self.running.swap_remove(n.expect("only what runs is cancelled"));
        }
    }

    fn verdict(count: usize, jobs: usize, dice: u64, passes: impl Fn(&[usize]) -> bool) -> (Verdict, usize) {
        let mut checker = Scripted::new(dice, passes);
        let verdict = run(count, jobs, &mut Known::new(), &mut checker).unwrap();
        assert!(checker.running.is_empty(), "{:?} still run", checker.running);
        assert!(checker.most <= jobs);
        (verdict, checker.finished)
    }

    #[test]
    fn all_that_pass_together_land_after_one_test() {
        let all = Verdict { lands: (0..9).collect(), broken: vec![], fails_alone: false };
        assert_eq!(verdict(9, 1, 0, |_| true), (all, 1));
        assert_eq!(verdict(0, 4, 0, |_| true), (Verdict::default(), 0));
    }

    #[test]
    fn who_broke_it_is_found_by_bisection_and_the_others_land() {
        let (found, tests) = verdict(16, 1, 0, |batch| !batch.contains(&9));
        assert_eq!(found.broken, [9]);
        assert_eq!(found.lands, (0..16).filter(|n| *n != 9).collect::<Vec<_>>());
        assert_eq!(tests, 6, "all, four to find it, all others");
        let (found, _) = verdict(8, 2, 1, |batch| !batch.contains(&0) && !batch.contains(&7) && !batch.contains(&3));
        assert_eq!((found.broken, found.lands), (vec![0, 3, 7], vec![1, 2, 4, 5, 6]));
    }

    #[test]
    fn two_that_break_each_other_cost_only_the_later_one() {
        let (found, _) = verdict(5, 3, 2, |batch| !(batch.contains(&1) && batch.contains(&3)));
        assert_eq!((found.broken, found.lands), (vec![3], vec![0, 1, 2, 4]));
    }

    #[test]
    fn where_it_fails_without_any_nobody_is_blamed() {
        let (found, tests) = verdict(1, 1, 0, |_| false);
        assert_eq!((found, tests), (Verdict { lands: vec![], broken: vec![], fails_alone: true }, 2));
        // One that mends it lands, and one that breaks it again does not.
        let (found, _) = verdict(3, 2, 3, |batch| batch.contains(&0) && !batch.contains(&2));
        assert_eq!((found.lands, found.broken, found.fails_alone), (vec![0, 1], vec![2], false));
    }

    /// Whatever a command says of each batch (all functions of up to four members): with any number of jobs, and in
    /// any order of coming back, the end is that of one test after the other; and what lands has passed as it lands.
    #[test]
    fn how_many_are_tested_at_once_changes_nothing() {
        for count in 0..=3usize {
            let batches = 1u32 << count;
            for table in 0..1u64 << batches {
                let passes = |batch: &[usize]| {
                    let set = batch.iter().fold(0u32, |set, n| set | 1 << n);
                    table >> set & 1 == 1
                };
                let (expected, tests) = verdict(count, 1, 0, passes);
                assert!(expected.lands.is_empty() || passes(&expected.lands), "{count} {table:b}: {expected:?}");
                assert!(expected.lands.is_sorted());
                assert!(tests <= 2 * count * count + 2, "{count} {table:b}: {tests} tests");
                for jobs in 2..=4 {
                    for dice in 0..3 {
                        assert_eq!(verdict(count, jobs, dice, passes).0, expected, "{count} {table:b} jobs {jobs}");
                    }
                }
            }
        }
        // Of more members, some functions.
        for table in 0..3000u64 {
            let passes = |batch: &[usize]| {
                let set = batch.iter().fold(0u64, |set, n| set | 1 << n);
                (set.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ table.wrapping_mul(0xff51_afd7_ed55_8ccd)).count_ones() % 5
                    > 0
            };
            let expected = verdict(6, 1, 0, passes).0;
            assert_eq!(verdict(6, 3, table, passes).0, expected);
            assert!(expected.lands.is_empty() || passes(&expected.lands));
        }
    }

    #[test]
    fn what_is_tested_meanwhile_is_what_is_needed_next() {
        let known = Known::new();
        assert_eq!(wanted(4, &known, 1), [vec![0, 1, 2, 3]]);
        // If all of them fail: the first half, then its half, or the first three.
        assert_eq!(wanted(4, &known, 4), [vec![0, 1, 2, 3], vec![0, 1], vec![0], vec![0, 1, 2]]);
        assert!(wanted(4, &Known::from([((0..4).collect(), true)]), 4).is_empty());
        assert!(wanted(200, &known, 1000).len() <= LOOKED_AT, "it ends");
    }
}
