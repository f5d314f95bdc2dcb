//! Each command first finishes, or takes back, what a dead one left, and says so in one line. With
//! nothing left this is one look at an empty directory.

use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::commit_back;
use sandbox_core::id::RepoId;
use sandbox_core::journal::recover::{self, Change, Found, Hands, Which};
use sandbox_core::journal::together::{InTheWay, Standing};
use sandbox_core::journal::{End, Verb, markers};
use sandbox_core::ops::{Deed, Log, Operation};
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
    let drops = recover::under_way(&store).into_iter().filter(|operation| operation.verb == Verb::Drop);
    context.leaving.borrow_mut().extend(drops.flat_map(|operation| operation.of));
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
            if let Some(hint) = hint(error.as_ref()) {
                let of = found.recovery.of.join("', '");
                eprintln!("warning: a '{}' of '{}': {}", found.recovery.verb, escape(&of), failure.message);
                eprintln!("hint: {}", escape(&hint));
                return;
            }
            let why: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
            eprintln!(
                "warning: what a '{}' that was cut off left is still there: {}{why}; `git sandbox repair` tries again",
                found.recovery.verb, failure.message
            );
        }
    }
}

/// Says what a plan would do, doing nothing.
pub fn plan(context: &Context, store: &Store) -> Result<Vec<Found>, CliError> {
    Ok(recover::plan(store, &mut Worker { context, store, everywhere: true })?)
}

/// The next step, when something stands in the way.
pub fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    error.downcast_ref::<InTheWay>().map(InTheWay::hint)
}

struct Worker<'a> {
    context: &'a Context,
    store: &'a Store,
    everywhere: bool,
}

type Failure = Box<dyn Error + Send + Sync>;

impl Worker<'_> {
    fn open(&self, change: &Change) -> Result<Repo, Failure> {
        let git = self.context.git().map_err(|error| error.message)?;
        Ok(Repo::open(git, &change.worktree, &change.git_dir, &self.store.tmp())?)
    }

    /// The repository in whose `undo` the former state is, and its name there.
    fn kept(change: &Change) -> Option<(RepoId, String)> {
        let name = change.undo.file_name()?.to_str()?.to_owned();
        let repo = change.undo.parent().and_then(Path::parent).and_then(Path::file_name)?;
        Some((RepoId::parse(repo.to_str()?)?, name))
    }
}

impl Hands for Worker<'_> {
    fn put_back(&mut self, change: &Change) -> Result<bool, Failure> {
        match sandbox_integrate::restore(&self.open(change)?, &change.undo) {
            Ok(()) => {
                // It may have been cut after it was written down for `undo`.
                if let Some((repo, name)) = Self::kept(change) {
                    Log::of(&self.store.repo(&repo)).taken_back(&name)?;
                }
                Ok(true)
            }
            Err(MergeError::ChangedSince { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn standing(&mut self, change: &Change) -> Result<Standing, Failure> {
        use sandbox_integrate::Standing as Found;
        Ok(match sandbox_integrate::standing(&self.open(change)?, &change.undo)? {
            Found::Before => Standing::Before,
            Found::Cut => Standing::Cut,
            Found::CarriedOut { since } => Standing::CarriedOut { since },
            Found::Changed { what } => Standing::Changed { what },
        })
    }

    fn finish(&mut self, verb: Verb, of: &[String], changes: &[Change]) -> Result<(), Failure> {
        let mut deeds = Vec::new();
        for change in changes {
            sandbox_integrate::settle(&self.open(change)?, &change.undo)?;
            if let Some((repo, undo)) = Self::kept(change) {
                let (worktree, git_dir) = (change.worktree.clone(), change.git_dir.clone());
                deeds.push(Deed::Tree { repo, worktree, git_dir, undo });
            }
        }
        let told = format!("the {verb} of '{}', which was cut off and then finished", of.join("', '"));
        let operation = Operation::now(&verb.to_string(), told, deeds);
        for deed in &operation.deeds {
            if let Deed::Tree { repo, undo, .. } = deed {
                let log = Log::of(&self.store.repo(repo));
                if !log.has(undo)? {
                    log.add(&operation)?;
                }
            }
        }
        Ok(())
    }

    fn remove_refs(&mut self, sandbox: &Sandbox) -> Result<(), Failure> {
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
