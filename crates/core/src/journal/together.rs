//! A change of several repositories that was cut: decided for all of them together.
//!
//! ```text
//! m1  begin ─► files, index, HEAD ─┐
//! m2  begin ─► files, index, HEAD ─┴─► lines for `undo` ─► <undo>.all ─► done ─► end
//! ```
//!
//! Until the mark `.all` is there, the change is one only if it was carried out everywhere. Then it is finished; if
//! it can be taken back everywhere, it is; else all stay as they are and none is over: the next command tries again.

use super::recover::Change;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// How a working tree stands to a change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of it is there.
    Before,
    /// Some of it is there, and can be taken back.
    Cut,
    /// It came past its last step.
    CarriedOut {
        /// What was changed later, so that it cannot be taken back.
        since: Option<String>,
    },
    /// Some of it is there, and what came later.
    Changed {
        /// What that is.
        what: String,
    },
}

impl Standing {
    /// What keeps it from being taken back.
    fn in_the_way(&self) -> Option<&str> {
        match self {
            Self::CarriedOut { since } => since.as_deref(),
            Self::Changed { what } => Some(what),
            Self::Before | Self::Cut => None,
        }
    }
}

/// What follows for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was carried out everywhere.
    Finish,
    /// It can be taken back everywhere.
    PutBack,
    /// Neither: where it was changed since, and what.
    Leave(Vec<(PathBuf, String)>),
}

/// Decides. Looks at nothing but its arguments.
pub fn decide(all: &[(&Change, Standing)]) -> Verdict {
    if all.iter().all(|(_, standing)| matches!(standing, Standing::CarriedOut { .. })) {
        return Verdict::Finish;
    }
    let place = |(change, standing): &(&Change, Standing)| {
        standing.in_the_way().map(|what| (change.worktree.clone(), what.to_owned()))
    };
    let places: Vec<_> = all.iter().filter_map(place).collect();
    if places.is_empty() { Verdict::PutBack } else { Verdict::Leave(places) }
}

/// Why a change of several repositories can be neither finished nor taken back now.
#[derive(Debug)]
pub struct InTheWay {
    /// Where, and what was changed there.
    pub places: Vec<(PathBuf, String)>,
}

impl fmt::Display for InTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it was cut between its repositories, and all of them are left as they are:")?;
        for (n, (place, what)) in self.places.iter().enumerate() {
            write!(f, "{} in '{}' {what} changed since", if n == 0 { "" } else { "," }, place.display())?;
        }
        Ok(())
    }
}

impl InTheWay {
    /// The next step.
    pub fn hint(&self) -> String {
        let places: Vec<String> = self.places.iter().map(|(place, _)| format!("'{}'", place.display())).collect();
        format!(
            "move that out of the way in {} (`git stash` for edits, another branch for commits), and the next command takes it back everywhere",
            places.join(" and ")
        )
    }
}

impl Error for InTheWay {}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(all: &[Standing]) -> String {
        let changes: Vec<Change> = (1..=all.len())
            .map(|n| {
                let worktree = PathBuf::from(format!("/m{n}"));
                Change { git_dir: worktree.join(".git"), worktree, undo: "/undo".into(), all: Some("/all".into()) }
            })
            .collect();
        let all: Vec<_> = changes.iter().zip(all.iter().cloned()).collect();
        match decide(&all) {
            Verdict::Leave(places) => InTheWay { places }.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn all_or_none() {
        let done = || Standing::CarriedOut { since: None };
        let later = || Standing::CarriedOut { since: Some("'f'".into()) };
        let changed = || Standing::Changed { what: "the index".into() };
        assert_eq!(verdict(&[done(), done()]), "Finish");
        // What came later does not make it less done.
        assert_eq!(verdict(&[done(), later()]), "Finish");
        assert_eq!(verdict(&[done(), Standing::Before]), "PutBack");
        assert_eq!(verdict(&[done(), Standing::Cut]), "PutBack");
        assert_eq!(verdict(&[Standing::Before, Standing::Before]), "PutBack");
        assert_eq!(
            verdict(&[later(), Standing::Cut]),
            "it was cut between its repositories, and all of them are left as they are: in '/m1' 'f' changed since"
        );
        assert_eq!(
            verdict(&[later(), done(), changed()]),
            "it was cut between its repositories, and all of them are left as they are: in '/m1' 'f' changed since, in \
             '/m3' the index changed since"
        );
    }

    #[test]
    fn the_hint_names_the_place() {
        let hint = InTheWay { places: vec![("/m1".into(), "'f'".into())] }.hint();
        assert!(hint.starts_with("move that out of the way in '/m1' (`git stash`"), "{hint}");
    }
}
