//! A plan as text.

use crate::plan::{FileAction, HeadMove, IndexAction, MergePlan, PathPlan, What, Why};
use std::fmt::Write;

impl MergePlan {
    /// Returns what will be done, a line for each path.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        let commits = |n: u64| format!("{n} commit{}", if n == 1 { "" } else { "s" });
        let onto = self.head.reference.as_deref().unwrap_or("HEAD");
        let onto = onto.strip_prefix("refs/heads/").unwrap_or(onto);
        let name = &self.name;
        match self.what {
            What::UpToDate => return format!("nothing to merge: '{onto}' has all of '{name}'\n"),
            What::FastForward { commits: n } => {
                out.push_str(&format!("fast-forward '{onto}' to '{name}', {}", commits(n)))
            }
            What::Merge { commits: n, behind } => {
                let _ = write!(out, "merge '{name}' into '{onto}', {}", commits(n));
                if behind > 0 {
                    let _ = write!(out, " beside {}", commits(behind));
                }
            }
            What::Rebase { commits: n } => {
                let _ = write!(out, "put {} of '{name}' on top of '{onto}'", commits(n));
            }
            What::Pick { commits: n } => {
                let _ = write!(out, "pick {} of '{name}' onto '{onto}'", commits(n));
            }
            What::Several { sandboxes } => {
                let _ = write!(out, "merge {sandboxes} sandboxes into '{onto}': {name}");
            }
            What::Octopus { sandboxes } => {
                let _ = write!(out, "merge {sandboxes} sandboxes into '{onto}' in one commit: {name}");
            }
            What::Squash { commits: n } => {
                let _ = write!(out, "squash '{name}' into one commit on '{onto}', {}", commits(n));
            }
        }
        out.push('\n');
        for path in &self.paths {
            path.describe(&mut out);
        }
        self.head.describe(&mut out);
        out
    }
}

impl PathPlan {
    pub(crate) fn describe(&self, out: &mut String) {
        let file = match (self.file, self.why) {
            (FileAction::Write { .. }, Why::Merged) => "merge",
            (FileAction::Write { .. }, _) => "write",
            (FileAction::Delete, _) => "delete",
            (FileAction::Keep, _) => "keep",
            (FileAction::MakeDir, _) => "mkdir",
            (FileAction::RemoveDir, _) => "rmdir",
        };
        let _ = write!(out, "  {file:6} {}", self.path);
        let note = match (self.file, self.why) {
            (FileAction::Delete, Why::Merged) => "uncommitted changes move to its new name",
            (FileAction::Write { .. } | FileAction::Keep, Why::Merged) => "uncommitted changes are kept",
            (_, Why::Continued) => "goes on from the uncommitted changes here",
            (FileAction::Keep, Why::Already) => "is so already",
            (_, Why::Sparse) => "outside the sparse checkout",
            _ => "",
        };
        let staged = match (self.index, self.file) {
            (IndexAction::Set { entry, .. }, FileAction::Write { entry: written }) if entry != written => "index apart",
            _ => "",
        };
        let from = self.from.as_ref().map_or(String::new(), |from| format!("from {from}"));
        let notes: Vec<_> = [from.as_str(), note, staged].into_iter().filter(|note| !note.is_empty()).collect();
        if !notes.is_empty() {
            let _ = write!(out, "  ({})", notes.join("; "));
        }
        out.push('\n');
    }
}

impl HeadMove {
    fn describe(&self, out: &mut String) {
        let name = self.reference.as_deref().unwrap_or("HEAD");
        let old = self.old.map_or("nothing".to_owned(), |old| old.short());
        let _ = writeln!(out, "move {name} from {old} to {}", self.new.short());
    }
}
