//! What happens to one path: the rule, apart from all reading and writing.
//!
//! ```text
//!   working tree                                index
//!     W = N   stays                               I = H   becomes N
//!     W = H   becomes N                           I = W   becomes what the working tree becomes
//!     else    merge(base; W, N)                   else    merge(H; I, N)
//!               base = S on top of H, if T was                    or N, if N has every line of I
//!               built on S, else H
//! ```
//!
//! *T was built on S* when T has the changes that were uncommitted at the capture:
//!
//! 1. merging S and T over B is clean and gives T; or
//! 2. T has every line of a file that was new in S; or
//! 3. S and T changed the same lines of B, and inside no uncommitted change of the path is left,
//!    neither in its working tree nor in its stash: then the sandbox went on from S.
//!
//! Where S and T changed *different* lines of B and T lacks those of S, the sandbox put them aside
//! (`stash`, `checkout`, `add -p`). They are the user's work and stay as uncommitted changes.

use crate::error::{MergeError, Reason};
use crate::plan::Why;
use crate::threeway::{Lines, Merged, Side, merge};

/// Everything that is known about one path. Contents are in the form that git stores.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sides {
    /// B: in the commit that the sandbox was spawned from.
    pub base: Side,
    /// T: in the sandbox's tip.
    pub tip: Side,
    /// H: in the host's HEAD.
    pub head: Side,
    /// N: in what HEAD becomes.
    pub next: Side,
    /// S: as it was captured.
    pub captured: Side,
    /// W: in the host's working tree.
    pub working: Side,
    /// I: in the host's index.
    pub index: Side,
    /// In the index as it was captured, if that is known.
    pub captured_index: Option<Side>,
}

/// What a path becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub working: Side,
    pub index: Side,
    pub why: Why,
}

/// Whether an uncommitted change of the path is left inside; `None` if nobody knows.
pub(crate) type LeftInside<'a> = &'a mut dyn FnMut() -> Result<Option<bool>, MergeError>;

/// Decides about one path.
pub(crate) fn decide(
    lines: &mut dyn Lines,
    sides: &Sides,
    left_inside: LeftInside<'_>,
) -> Result<Merged<Decision>, MergeError> {
    let (working, why) = match decide_working(lines, sides, left_inside)? {
        Ok(decided) => decided,
        Err(reason) => return Ok(Err(reason)),
    };
    let index = match decide_index(lines, sides, working)? {
        Ok(index) => index,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(Ok(Decision { working, index, why }))
}

fn decide_working(
    lines: &mut dyn Lines,
    sides: &Sides,
    left_inside: LeftInside<'_>,
) -> Result<Merged<(Side, Why)>, MergeError> {
    let Sides { head, next, working, .. } = *sides;
    if working == next {
        return Ok(Ok((working, Why::Already)));
    }
    if working == head {
        return Ok(Ok((next, Why::Unchanged)));
    }
    if next.is_none() {
        // Even if the sandbox deleted it on purpose: the change is nowhere else.
        return Ok(Err(Reason::DeletedThere));
    }
    let captured = built_on_captured(lines, sides, left_inside)?;
    let (base, theirs) = captured.unwrap_or((head, next));
    match merge(lines, base, working, theirs, false)? {
        Ok(merged) if merged == next => Ok(Ok((merged, Why::Continued))),
        Ok(merged) => Ok(Ok((merged, Why::Merged))),
        Err(Reason::ChangedBoth | Reason::Binary | Reason::TypeChanged) if head.is_none() && sides.index.is_none() => {
            Ok(Err(Reason::Untracked))
        }
        Err(reason) => Ok(Err(reason)),
    }
}

/// Returns the merge base made of S and what to merge, if T was built on S.
fn built_on_captured(
    lines: &mut dyn Lines,
    sides: &Sides,
    left_inside: LeftInside<'_>,
) -> Result<Option<(Side, Side)>, MergeError> {
    let Sides { base, tip, head, next, captured, .. } = *sides;
    if captured == base {
        return Ok(None);
    }
    let mut theirs = next;
    match merge(lines, base, captured, tip, false)? {
        Ok(both) if both == tip => {}
        Ok(_) => return Ok(None),
        Err(_) if is_grown(lines, base, captured, tip)? => {}
        Err(_) if left_inside()? == Some(false) => {
            // Lines of S that T did not touch, in a file where it touched others, are kept.
            let Ok(kept) = merge(lines, base, captured, tip, true)? else { return Ok(None) };
            if kept != tip {
                let Ok(with_kept) = merge(lines, tip, next, kept, false)? else { return Ok(None) };
                theirs = with_kept;
            }
        }
        Err(_) => return Ok(None),
    }
    Ok(merge(lines, base, head, captured, false)?.ok().map(|on_head| (on_head, theirs)))
}

/// Whether a file that was new in S is in T with lines added only.
fn is_grown(lines: &mut dyn Lines, base: Side, captured: Side, tip: Side) -> Result<bool, MergeError> {
    match (base, captured, tip) {
        (None, Some(captured), Some(tip)) if captured.mode.is_file() && tip.mode.is_file() => {
            lines.contained(None, captured.id, &[tip.id])
        }
        _ => Ok(false),
    }
}

fn decide_index(lines: &mut dyn Lines, sides: &Sides, working_becomes: Side) -> Result<Merged<Side>, MergeError> {
    let Sides { head, next, working, index, .. } = *sides;
    if index == head || index == next {
        return Ok(Ok(next));
    }
    if index == working {
        return Ok(Ok(working_becomes));
    }
    if let Ok(merged) = merge(lines, head, index, next, false)? {
        return Ok(Ok(merged));
    }
    // The user staged a file and edited it further; the sandbox committed the later state.
    let is_later = sides.captured_index == Some(index) && working == sides.captured && working_becomes == next;
    if is_later && working.is_some() && next.is_some() {
        return Ok(Ok(next));
    }
    if let (Some(index), Some(next)) = (index, next)
        && index.mode.is_file()
        && next.mode.is_file()
        && lines.contained(head.map(|head| head.id), index.id, &[next.id])?
    {
        return Ok(Ok(Some(next)));
    }
    Ok(Err(Reason::Staged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Entry, Mode};
    use sandbox_git::{ObjectFormat, Oid};
    use std::collections::HashMap;

    /// Contents are texts of comma-separated lines; a line is merged by its position.
    #[derive(Default)]
    struct Fake(HashMap<Oid, String>);

    impl Fake {
        fn side(&mut self, text: &str) -> Side {
            let (mode, text) = match text.strip_prefix("+x ") {
                Some(text) => (Mode::Executable, text),
                None => (Mode::File, text),
            };
            (text != "-").then(|| Entry { mode, id: self.id(text) })
        }

        fn id(&mut self, text: &str) -> Oid {
            let id = crate::objects::blob_id(ObjectFormat::Sha1, text.as_bytes());
            self.0.insert(id, text.to_owned());
            id
        }

        fn text(&self, side: Side) -> String {
            match side {
                None => "-".into(),
                Some(Entry { mode: Mode::Executable, id }) => format!("+x {}", self.0[&id]),
                Some(Entry { id, .. }) => self.0[&id].clone(),
            }
        }
    }

    impl Lines for Fake {
        fn merge(&mut self, base: Option<Oid>, ours: Oid, theirs: Oid, favor: bool) -> Result<Merged<Oid>, MergeError> {
            let text = |id: Oid| self.0[&id].split(',').map(str::to_owned).collect::<Vec<_>>();
            let Some(base) = base.map(text) else {
                return Ok(if favor { Ok(theirs) } else { Err(Reason::ChangedBoth) });
            };
            let (ours, theirs) = (text(ours), text(theirs));
            let mut out = Vec::new();
            for ((b, o), t) in base.iter().zip(&ours).zip(&theirs) {
                out.push(match (o == b, t == b) {
                    (_, true) => o.clone(),
                    (true, _) => t.clone(),
                    _ if o == t || favor => t.clone(),
                    _ => return Ok(Err(Reason::ChangedBoth)),
                });
            }
            Ok(Ok(self.id(&out.join(","))))
        }

        fn contained(&mut self, base: Option<Oid>, ours: Oid, others: &[Oid]) -> Result<bool, MergeError> {
            let known: Vec<_> = base.iter().chain(others).flat_map(|id| self.0[id].split(',')).collect();
            Ok(self.0[&ours].split(',').all(|line| known.contains(&line)))
        }
    }

    /// `b t s w i` and what is left inside → `w i`, or the reason. The host has not moved: H = B, N = T.
    fn run(sides: [&str; 5], left: Option<bool>) -> String {
        run_all(sides, sides[0], sides[1], None, left)
    }

    fn run_moved(sides: [&str; 5], h: &str, n: &str, left: Option<bool>) -> String {
        run_all(sides, h, n, None, left)
    }

    fn run_all([b, t, s, w, i]: [&str; 5], h: &str, n: &str, staged: Option<&str>, left: Option<bool>) -> String {
        let mut fake = Fake::default();
        let sides = Sides {
            base: fake.side(b),
            tip: fake.side(t),
            head: fake.side(h),
            next: fake.side(n),
            captured: fake.side(s),
            working: fake.side(w),
            index: fake.side(i),
            captured_index: staged.map(|text| fake.side(text)),
        };
        match decide(&mut fake, &sides, &mut || Ok(left)).unwrap() {
            Ok(decision) => format!("{} | {}", fake.text(decision.working), fake.text(decision.index)),
            Err(reason) => format!("{reason:?}"),
        }
    }

    #[test]
    fn clean_paths_take_what_the_sandbox_made() {
        assert_eq!(run(["1,2", "1,X", "1,2", "1,2", "1,2"], None), "1,X | 1,X");
        assert_eq!(run(["1,2", "-", "1,2", "1,2", "1,2"], None), "- | -");
        assert_eq!(run(["-", "n", "-", "-", "-"], None), "n | n");
        assert_eq!(run(["1", "+x 1", "1", "1", "1"], None), "+x 1 | +x 1");
    }

    #[test]
    fn what_the_sandbox_committed_of_the_users_changes_is_clean_afterwards() {
        // all of it, then with more on top, in other lines and in the same
        assert_eq!(run(["1,2", "1,U", "1,U", "1,U", "1,2"], None), "1,U | 1,U");
        assert_eq!(run(["1,2", "X,U", "1,U", "1,U", "1,2"], None), "X,U | X,U");
        assert_eq!(run(["1,2", "1,UX", "1,U", "1,U", "1,2"], Some(false)), "1,UX | 1,UX");
        // some hunks: the rest stays uncommitted
        assert_eq!(run(["1,2,3", "U,2,3", "U,2,V", "U,2,V", "1,2,3"], Some(true)), "U,2,V | U,2,3");
    }

    #[test]
    fn changes_that_were_put_aside_inside_stay() {
        assert_eq!(run(["1,2", "X,2", "1,U", "1,U", "1,2"], Some(false)), "X,U | X,2");
        assert_eq!(run(["1,2", "X,2", "1,U", "1,U", "1,2"], Some(true)), "X,U | X,2");
        // the same line, still in the sandbox's stash or tree, or nobody knows
        assert_eq!(run(["1,2", "1,X", "1,U", "1,U", "1,2"], Some(true)), "ChangedBoth");
        assert_eq!(run(["1,2", "1,X", "1,U", "1,U", "1,2"], None), "ChangedBoth");
        // one line went on, the other was put aside
        assert_eq!(run(["1,2,3", "1,UX,3", "V,U,3", "V,U,3", "1,2,3"], Some(false)), "V,UX,3 | 1,UX,3");
    }

    #[test]
    fn edits_made_after_the_spawn_are_merged_or_stop() {
        assert_eq!(run(["1,2,3", "1,U,X", "1,U,3", "W,U,3", "1,2,3"], None), "W,U,X | 1,U,X");
        assert_eq!(run(["1,2", "1,X", "1,2", "W,2", "1,2"], None), "W,X | 1,X");
        assert_eq!(run(["1,2", "1,X", "1,2", "1,W", "1,2"], Some(false)), "ChangedBoth");
        // put aside here after the spawn: a clean tree gets what `git merge` gives
        assert_eq!(run(["1,2", "X,U", "1,U", "1,2", "1,2"], None), "X,U | X,U");
    }

    #[test]
    fn staged_and_unstaged_stay_apart() {
        assert_eq!(run(["1,2,3", "X,2,3", "1,2,3", "1,S,U", "1,S,3"], None), "X,S,U | X,S,3");
        assert_eq!(run(["1,2,3", "X,2,3", "1,2,3", "1,S,3", "1,S,3"], None), "X,S,3 | X,S,3");
        // staged, then edited further: the sandbox committed the later state
        assert_eq!(run(["1", "SU", "SU", "SU", "S"], None), "Staged");
        assert_eq!(run_all(["1", "SU", "SU", "SU", "S"], "1", "SU", Some("S"), None), "SU | SU");
        assert_eq!(run_all(["1", "SU", "SU", "SU", "S"], "1", "SU", Some("1"), None), "Staged");
        // staged, then deleted: the staged content is nowhere else
        assert_eq!(run_all(["1", "-", "-", "-", "S"], "1", "-", Some("S"), Some(false)), "Staged");
        assert_eq!(run(["1,2", "U,X", "U,2", "U,2", "U,2"], None), "U,X | U,X");
    }

    #[test]
    fn new_files_that_the_sandbox_tracks() {
        assert_eq!(run(["-", "n", "n", "n", "-"], None), "n | n");
        assert_eq!(run(["-", "n,x", "n", "n", "-"], None), "n,x | n,x");
        assert_eq!(run(["-", "m", "n", "n", "-"], None), "Untracked");
        assert_eq!(run(["-", "m", "n", "n", "-"], Some(false)), "m | m");
        assert_eq!(run(["-", "m", "-", "n", "-"], Some(false)), "Untracked");
        assert_eq!(run(["-", "n", "-", "+x n", "-"], None), "+x n | n");
    }

    #[test]
    fn deletions_never_take_uncommitted_work_along() {
        assert_eq!(run(["1,2", "-", "1,U", "1,U", "1,2"], Some(false)), "DeletedThere");
        assert_eq!(run(["1,2", "1,X", "1,2", "-", "1,2"], Some(false)), "DeletedHere");
        assert_eq!(run(["1,2", "-", "1,2", "-", "1,2"], None), "- | -");
        assert_eq!(run(["1,2", "1,X", "-", "-", "1,2"], Some(false)), "1,X | 1,X");
    }

    #[test]
    fn a_host_that_moved_on_has_the_captured_state_on_top() {
        // H changed line 1, the user's uncommitted line 2 is in T
        assert_eq!(run_moved(["1,2,3", "1,U,X", "1,U,3", "H,U,3", "H,2,3"], "H,2,3", "H,U,X", None), "H,U,X | H,U,X");
        // the user committed the change
        assert_eq!(run_moved(["1,2,3", "1,U,X", "1,U,3", "1,U,3", "1,U,3"], "1,U,3", "1,U,X", None), "1,U,X | 1,U,X");
    }
}
