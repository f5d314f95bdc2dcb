//! What a failure while serving says about the mirror itself.
//!
//! An ordinary refresh does not look whether what refs name is there: that would cost something each time, and it is
//! there. Whoever serves sees first that it is not, and says so; then it is looked at.
//!
//! ```text
//! upload-pack, pack-objects ─► what git said ─► Doubt ─► Live ─┬─ Tips ────► are all tips there? ─ no ─► a refresh
//!                                                             └─ Objects ─► also: fsck                 that looks
//! ```
//!
//! A client can make git say that it wants what is not there: a look stays on this machine, is cheap, and is not done
//! again for a while.

use crate::refresh::is_corrupt;

/// What is doubted of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// That what its refs name is there.
    Tips,
    /// That every object is there and can be read.
    Objects,
}

/// Texts of git where a tip may be gone.
const TIPS: &[&str] = &["does not point to a valid object", "bad object "];

/// Texts of git where any object may be, beside those of a store that is broken for certain.
const OBJECTS: &[&str] = &[
    "git-pack-objects died with error",
    "unable to read tree",
    "bad tree object",
    "bad commit object",
    "Could not read ",
    "unable to read ",
    "Failed to traverse parents",
];

impl Doubt {
    /// The doubt that a line of `git upload-pack` or `git pack-objects` raises, if any.
    pub fn of(said: &str) -> Option<Self> {
        // What it says of a client has words of the client in it.
        if let Some(said) = said.strip_prefix("fatal: git upload-pack: ") {
            return match said {
                _ if said.starts_with("not our ref ") => Some(Self::Tips),
                _ if said.starts_with("aborting due to possible repository corruption") => Some(Self::Objects),
                _ => None,
            };
        }
        let has = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        match () {
            () if has(OBJECTS) || is_corrupt(said) => Some(Self::Objects),
            () if has(TIPS) => Some(Self::Tips),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_git_says_of_the_store_raises_doubts() {
        for (said, doubt) in [
            ("fatal: git upload-pack: not our ref 1234", Some(Doubt::Tips)),
            ("error: refs/heads/main does not point to a valid object!", Some(Doubt::Tips)),
            ("fatal: bad object 1234", Some(Doubt::Tips)),
            ("error: git upload-pack: git-pack-objects died with error.", Some(Doubt::Objects)),
            ("fatal: unable to read tree (1234)", Some(Doubt::Objects)),
            ("error: inflate: data stream error (incorrect header check)", Some(Doubt::Objects)),
            ("fatal: git upload-pack: protocol error, expected to get object ID, not 'want missing blob'", None),
            ("fatal: git upload-pack: unknown object type bad object ", None),
            ("fatal: the remote end hung up unexpectedly", None),
            ("", None),
        ] {
            assert_eq!(Doubt::of(said), doubt, "{said}");
        }
    }
}
