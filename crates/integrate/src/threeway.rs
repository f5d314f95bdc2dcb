//! The three-way merge of one path.

use crate::attributes::MergeStyle;
use crate::error::{MergeError, Reason};
use crate::objects::Objects;
use crate::path::{Entry, Mode};
use crate::run::Answer;
use sandbox_git::Oid;

/// One side: what a path is, or nothing.
pub(crate) type Side = Option<Entry>;

/// A merged side, or why there is none.
pub(crate) type Merged<T> = Result<T, Reason>;

/// Merges the contents of files; a trait so that the rules are tested without git.
pub(crate) trait Lines {
    /// Merges by lines. With `theirs`, an overlap takes their side.
    fn merge(
        &mut self,
        base: Option<Oid>,
        ours: Oid,
        theirs: Oid,
        favor_theirs: bool,
    ) -> Result<Merged<Oid>, MergeError>;

    /// Whether every line of `ours` that `base` has not is in one of `others`.
    fn contained(&mut self, base: Option<Oid>, ours: Oid, others: &[Oid]) -> Result<bool, MergeError>;
}

/// Merges two sides over a base.
pub(crate) fn merge(
    lines: &mut dyn Lines,
    base: Side,
    ours: Side,
    theirs: Side,
    favor_theirs: bool,
) -> Result<Merged<Side>, MergeError> {
    if ours == theirs || base == theirs {
        return Ok(Ok(ours));
    }
    if base == ours {
        return Ok(Ok(theirs));
    }
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        _ if favor_theirs => return Ok(Ok(theirs)),
        (None, _) => return Ok(Err(Reason::DeletedHere)),
        (_, None) => return Ok(Err(Reason::DeletedThere)),
    };
    let same_kind = |a: Entry, b: Entry| a.mode == b.mode || (a.mode.is_file() && b.mode.is_file());
    if !same_kind(ours, theirs) || base.is_some_and(|base| !same_kind(base, theirs)) {
        return Ok(if favor_theirs { Ok(Some(theirs)) } else { Err(Reason::TypeChanged) });
    }
    let id = if ours.id == theirs.id || base.is_some_and(|base| base.id == theirs.id) {
        ours.id
    } else if base.is_some_and(|base| base.id == ours.id) {
        theirs.id
    } else if !ours.mode.is_file() {
        if !favor_theirs {
            return Ok(Err(Reason::ChangedBoth));
        }
        theirs.id
    } else {
        match lines.merge(base.map(|base| base.id), ours.id, theirs.id, favor_theirs)? {
            Ok(id) => id,
            Err(reason) => return Ok(Err(reason)),
        }
    };
    Ok(Ok(Some(Entry { mode: merge_mode(base.map(|base| base.mode), ours.mode, theirs.mode), id })))
}

/// The executable bit has two values, so two changes of it are the same change; without a base, ours
/// is kept: it then shows as a change that is not committed.
fn merge_mode(base: Option<Mode>, ours: Mode, theirs: Mode) -> Mode {
    if base == Some(ours) { theirs } else { ours }
}

/// Merges with `git merge-file`, which knows no drivers.
pub(crate) struct GitLines<'o, 'r> {
    pub objects: &'o mut Objects<'r>,
    pub style: MergeStyle,
}

/// As git: a NUL in the first 8000 bytes.
pub(crate) fn is_binary(content: &[u8]) -> bool {
    content[..content.len().min(8000)].contains(&0)
}

impl Lines for GitLines<'_, '_> {
    fn merge(
        &mut self,
        base: Option<Oid>,
        ours: Oid,
        theirs: Oid,
        favor_theirs: bool,
    ) -> Result<Merged<Oid>, MergeError> {
        let Some(base) = base else {
            return Ok(if favor_theirs { Ok(theirs) } else { Err(Reason::ChangedBoth) });
        };
        let contents = [self.objects.read(ours)?, self.objects.read(base)?, self.objects.read(theirs)?];
        let binary = self.style == MergeStyle::Binary || contents.iter().any(|content| is_binary(content));
        if binary {
            return Ok(if favor_theirs { Ok(theirs) } else { Err(Reason::Binary) });
        }
        if let MergeStyle::Driver(driver) = &self.style {
            return Ok(Err(Reason::Driver { driver: sandbox_git::printable(driver.as_bytes()) }));
        }
        let repo = self.objects.repo();
        let files = [repo.temp_file(&contents[0])?, repo.temp_file(&contents[1])?, repo.temp_file(&contents[2])?];
        let mut git = repo.pure().args(["merge-file", "-p", "-q"]);
        if favor_theirs {
            git = git.arg("--theirs");
        } else if self.style == MergeStyle::Union {
            git = git.arg("--union");
        }
        let answer = Answer::of(git.args(files.iter().map(|file| file.path())))?;
        match answer.code() {
            Some(0) => Ok(Ok(self.objects.remember(answer.stdout()))),
            Some(1..=127) => Ok(Err(Reason::ChangedBoth)),
            _ => Err(answer.failed().into()),
        }
    }

    fn contained(&mut self, base: Option<Oid>, ours: Oid, others: &[Oid]) -> Result<bool, MergeError> {
        let ours = self.objects.read(ours)?;
        let mut known = std::collections::HashSet::new();
        let base = base.map(|base| self.objects.read(base)).transpose()?;
        let others = others.iter().map(|id| self.objects.read(*id)).collect::<Result<Vec<_>, _>>()?;
        for content in base.iter().chain(&others) {
            if is_binary(content) {
                return Ok(false);
            }
            known.extend(content.split(|b| *b == b'\n'));
        }
        Ok(!is_binary(&ours) && ours.split(|b| *b == b'\n').all(|line| known.contains(line)))
    }
}
