//! Each command first finishes, or takes back, what a dead one left, and says so in one line. With
//! nothing left this is one look at an empty directory.

use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::commit_back;
use sandbox_core::id::RepoId;
use sandbox_core::journal::recover::{self, Change, Found, Hands, Which};
use sandbox_core::journal::{End, Verb, markers};
use sandbox_core::ops::Log;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_integrate::{MergeError, Repo};
use std::error::Error;
use std::path::Path;

/// What changes a working tree of the host.
pub const CHANGES: &[Verb] = &[Verb::Merge, Verb::Pick, Verb::Apply, Verb::Undo];

/// Mends what dead commands left, before this one begins. That it cannot be mended now stops nobody: it is told,
/// and the next command tries again.
pub fn first(context: &Context) {
    let Ok(dir) = context.state_dir() else { return };
    // Nothing is made by looking.
    if !std::fs::read_dir(dir.join("open")).is_ok_and(|mut entries| entries.next().is_some()) {
        return;
    }
    let Ok(store) = context.store() else { return };
    if store.writable().is_err() || markers(&store).is_empty() {
        return;
    }
    match mend(context, &store, Which::All, false) {
        Ok(found) => {
            found.iter().for_each(tell);
            let drops = found.into_iter().filter(|found| found.outcome.is_ok() && found.recovery.verb == Verb::Drop);
            let finished = drops.filter(|found| found.recovery.end == End::Finished);
            context.dropped.borrow_mut().extend(finished.flat_map(|found| found.recovery.of));
        }
        Err(error) => eprintln!("warning: {}", error.message),
    }
}

/// Finishes or takes back. `everywhere`: changes of other repositories' working trees too.
pub fn mend(context: &Context, store: &Store, which: Which<'_>, everywhere: bool) -> Result<Vec<Found>, CliError> {
    let mut hands = Worker { context, store, everywhere };
    Ok(recover::run(store, &mut hands, which)?)
}

/// One line of what was done, or why not.
pub fn tell(found: &Found) {
    match &found.outcome {
        Ok(()) => eprintln!("{}", escape(&found.recovery.to_string())),
        Err(error) => {
            let failure = CliError::chain(error.as_ref());
            let why: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
            eprintln!(
                "warning: what a '{}' that was cut off left is still there: {}{why}; `git sandbox repair` tries again",
                found.recovery.verb, failure.message
            );
        }
    }
}

struct Worker<'a> {
    context: &'a Context,
    store: &'a Store,
    everywhere: bool,
}

impl Hands for Worker<'_> {
    fn put_back(&mut self, change: &Change) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let git = self.context.git().map_err(|error| error.message)?;
        let repo = Repo::open(git, &change.worktree, &change.git_dir, &self.store.tmp())?;
        match sandbox_integrate::restore(&repo, &change.undo) {
            Ok(()) => {
                // It may have been cut after it was written down for `undo`.
                let name = change.undo.file_name().unwrap_or_default().to_string_lossy();
                let repo = change.undo.parent().and_then(Path::parent).and_then(Path::file_name);
                if let Some(repo) = repo.and_then(|name| RepoId::parse(name.to_str()?)) {
                    Log::of(&self.store.repo(&repo)).taken_back(&name)?;
                }
                Ok(true)
            }
            Err(MergeError::ChangedSince { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn remove_refs(&mut self, sandbox: &Sandbox) -> Result<(), Box<dyn Error + Send + Sync>> {
        let git = self.context.git().map_err(|error| error.message)?;
        Ok(commit_back::remove_refs_if_there(git, self.store, sandbox)?)
    }

    fn may_change(&self, change: &Change) -> bool {
        let here = self.context.maybe_repo();
        // One of several repositories is taken back in all of them.
        self.everywhere
            || change.all.is_some()
            || here.is_some_and(|repo| change.git_dir.starts_with(repo.common_dir()))
    }
}
