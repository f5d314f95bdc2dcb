//! A fuzz target without a fuzzer: its seeds, and some thousand changed ones from a fixed start, so that each run is
//! the same run.

use crate::Dice;
use std::panic::{catch_unwind, resume_unwind};
use std::path::Path;

/// The seeds of a target, and what parsers of its kind trip over.
pub struct Corpus<'a> {
    target: &'a str,
    seeds: Vec<Vec<u8>>,
    pieces: &'a [&'a [u8]],
}

impl<'a> Corpus<'a> {
    /// Reads `fuzz/seeds/<target>`; `pieces` are put anywhere.
    ///
    /// # Panics
    /// If there are not at least 20 seeds.
    pub fn new(target: &'a str, pieces: &'a [&'a [u8]]) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("'{}': {error}", dir.display()));
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        assert!(paths.len() >= 20, "{} seeds of {target}", paths.len());
        let seeds = paths.iter().map(|path| std::fs::read(path).expect("a seed can be read")).collect();
        Self { target, seeds, pieces }
    }

    /// Calls `entry` with each seed and `rounds` changed ones.
    ///
    /// # Panics
    /// If `entry` does; the input is printed.
    pub fn run(&self, rounds: usize, entry: fn(&[u8])) {
        let mut dice = Dice::new(0x5eed_0000_0000_0001);
        for bytes in &self.seeds {
            entry(bytes);
        }
        for _ in 0..rounds {
            let bytes = self.changed(&mut dice);
            if let Err(panic) = catch_unwind(|| entry(&bytes)) {
                eprintln!("{}: {}", self.target, bytes.escape_ascii());
                resume_unwind(panic);
            }
        }
    }

    fn changed(&self, dice: &mut Dice) -> Vec<u8> {
        let mut next = |below: usize| dice.roll(below as u64) as usize;
        let mut bytes = self.seeds[next(self.seeds.len())].clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len() + 1);
            match next(6) {
                0 => bytes.truncate(at),
                1 => drop(bytes.splice(at..at, self.pieces[next(self.pieces.len())].iter().copied())),
                2 if at < bytes.len() => bytes[at] = next(256) as u8,
                3 if at < bytes.len() => bytes[at] ^= 1 << next(8),
                4 if at < bytes.len() => drop(bytes.remove(at)),
                _ => {
                    let other = &self.seeds[next(self.seeds.len())];
                    let from = next(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
        }
        bytes
    }
}
