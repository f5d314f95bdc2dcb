//! The files between the process that waits for a check and the one that runs it, in the check's own directory.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is to be done.
pub const TASK: &str = "task.json";
/// What the sandbox has not got of the commit that is tested.
pub const PACK: &str = "result.pack";
/// How it ended.
pub const OUTCOME: &str = "outcome.json";
/// What the command printed, its end.
pub const OUTPUT: &str = "output";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The driver that launches it.
    pub driver: String,
    /// The command, for `sh -c`.
    pub command: String,
    /// Where it starts: the top of the tree.
    pub cwd: PathBuf,
    /// The commit that is checked out first; `None`: the tree as it is.
    pub commit: Option<String>,
    /// Seconds after which it has failed.
    pub seconds: Option<u64>,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command's status as a shell shows it.
    pub status: Option<i32>,
    /// It took too long, and was ended.
    pub timed_out: bool,
    /// How long the command ran.
    pub seconds: f64,
    /// It could not be run: an error of ours, as JSON.
    pub error: Option<String>,
}

impl Outcome {
    /// The command said yes.
    pub fn passed(&self) -> bool {
        self.status == Some(0)
    }

    /// In words: `passed after 3s`, `status 101 after 12s`.
    pub fn words(&self) -> String {
        let after = crate::text::age(self.seconds.round() as u64);
        match (self.status, self.timed_out) {
            (Some(0), _) => format!("passed after {after}"),
            (Some(status), _) => format!("status {status} after {after}"),
            (None, true) => format!("ended after {after}: that was its time"),
            (None, false) => "it did not run".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_says_how_it_ended() {
        let of = |status, timed_out| Outcome { status, timed_out, seconds: 12.3, error: None };
        assert!(of(Some(0), false).passed() && !of(None, true).passed() && !Outcome::default().passed());
        let words = [of(Some(0), false), of(Some(101), false), of(None, true), Outcome::default()].map(|o| o.words());
        assert_eq!(
            words,
            ["passed after 12s", "status 101 after 12s", "ended after 12s: that was its time", "it did not run"]
        );
    }
}
