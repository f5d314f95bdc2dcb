//! Which of several attempts is the best: one that passes before one that does not, what is small before what is
//! large. One that changed nothing is none.

use serde::Serialize;

/// How much an attempt changed, committed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size {
    /// Lines added and deleted.
    pub lines: u64,
    /// Files.
    pub files: u64,
}

/// What is known of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The check passed.
    pub passed: bool,
    /// What it changed.
    pub size: Size,
}

impl Attempt {
    /// It can be taken: there is something, and it passes.
    pub fn good(&self) -> bool {
        self.passed && self.size.files > 0
    }
}

/// The attempts by their numbers, the best first; those that are alike in their own order.
pub fn ranked(attempts: &[Attempt]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..attempts.len()).collect();
    order.sort_by_key(|n| {
        let attempt = &attempts[*n];
        (!attempt.good(), attempt.size.files == 0, attempt.size)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(passed: bool, lines: u64, files: u64) -> Attempt {
        Attempt { passed, size: Size { lines, files } }
    }

    #[test]
    fn what_passes_comes_first_then_what_is_small() {
        let attempts =
            [of(true, 90, 2), of(false, 1, 1), of(true, 10, 3), of(true, 0, 0), of(true, 10, 1), of(false, 0, 0)];
        assert_eq!(ranked(&attempts), [4, 2, 0, 1, 3, 5]);
        assert!(attempts[4].good() && !attempts[3].good() && !attempts[1].good());
        // A binary file has no lines, and is a change all the same.
        assert_eq!(ranked(&[of(true, 0, 0), of(true, 0, 1)]), [1, 0]);
        // Of two alike the earlier one.
        assert_eq!(ranked(&[of(true, 5, 1), of(true, 5, 1)]), [0, 1]);
    }
}
