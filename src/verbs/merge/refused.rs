//! A refusal to merge as the command line tells it: each path is a cause.

use crate::error::CliError;
use sandbox_integrate::MergeError;

impl From<MergeError> for CliError {
    fn from(error: MergeError) -> Self {
        let hint = error.hint();
        let failure = match &error {
            MergeError::Conflicts { conflicts, .. } | MergeError::PickConflicts { conflicts, .. } => {
                let mut failure = Self::new(error.to_string()).status(1);
                for line in conflicts.to_string().lines() {
                    failure = failure.cause(line.to_owned());
                }
                failure
            }
            MergeError::NotFastForward { .. } | MergeError::Unrelated { .. } => Self::chain(&error).status(1),
            error => Self::chain(error),
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
