//! What dead commands left: found, decided as a value, then applied.
//!
//! ```text
//! marker, lock free ─► journal: which step was reached ─┐
//!                      disk: where things are           ├─► Recovery (a value) ─► apply ─► end line, marker gone
//! ```
//!
//! The point of no return of an operation is one rename or one transaction: before it, what was done is taken back;
//! after it, the rest is done. That of a change of a working tree is HEAD's move; of several, see
//! [`together`](super::together). Nothing outside our own names is touched, but the working tree, index and branch that
//! a merge of ours had half changed.

use super::line::{End, Verb, path_of};
use super::op::Op;
use super::read::Operation;
use super::together::{self, InTheWay, Standing, Verdict};
use super::{Home, Journal, Marker, markers};
use crate::id::SandboxId;
use crate::record::SandboxRecord;
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, Store, StoreError, read_json, write_whole};
use crate::{kept, removal, trash};
use sandbox_sys::lock::FileLock;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the directory of a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among the sandboxes.
    Kept,
    /// In the trash.
    Trash,
    /// On its way out, to be deleted.
    Dropped,
    /// Nowhere.
    Gone,
}

/// What is on the disk of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Where its sandbox is.
    pub place: Place,
    /// Whether the state before a change of the host is there.
    pub undo: bool,
    /// How the working tree stands to that change; `None`: nobody looked.
    pub standing: Option<Standing>,
    /// Whether a change of several repositories was carried out in all of them.
    pub all: bool,
    /// Files of ours in the host's object store.
    pub temps: Vec<PathBuf>,
    /// Locks on refs of ours that a git of ours left.
    pub locks: Vec<PathBuf>,
    /// Directories that were on their way out.
    pub dropped: Vec<PathBuf>,
    /// A checkpoint is whole, or a restore was decided.
    pub swapped: bool,
}

/// A change of a host's working tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The working tree.
    pub worktree: PathBuf,
    /// Its git directory.
    pub git_dir: PathBuf,
    /// The state before.
    pub undo: PathBuf,
    /// Of a change of several repositories: the mark that all of it was carried out. Until it is there, none is.
    pub all: Option<PathBuf>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Takes a change of a working tree back.
    PutBack(Change),
    /// Removes what a change that was carried out left, and writes it down for `undo`.
    Finish(Vec<Change>),
    /// Makes the mark that a change was carried out in all repositories.
    Mark(PathBuf),
    /// Takes refs and name of a dropped sandbox away, which is in the trash.
    FinishTrash(SandboxId),
    /// Takes refs and name of a dropped sandbox away, then deletes it.
    FinishDrop(SandboxId),
    /// Deletes a directory that was on its way out.
    Delete(PathBuf),
    /// Carries out a restore of a sandbox that was decided, and removes checkpoints that are half-made.
    Settle(SandboxId),
    /// Removes a file of ours in the host's object store.
    RemoveTemp(PathBuf),
    /// Removes a lock on a ref of ours.
    RemoveLock(PathBuf),
}

/// What follows for one operation that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What it was for.
    pub verb: Verb,
    /// What it was about.
    pub of: Vec<String>,
    /// In order.
    pub deeds: Vec<Deed>,
    /// How it ends with that.
    pub end: End,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutBack(change) => write!(f, "put back '{}'", change.worktree.display()),
            Self::Finish(changes) => {
                let places: Vec<_> = changes.iter().map(|change| change.worktree.display().to_string()).collect();
                write!(f, "write down that '{}' was changed", places.join("', '"))
            }
            Self::Mark(path) => write!(f, "make '{}'", path.display()),
            Self::FinishTrash(id) => write!(f, "take away refs and name of sandbox {id}, which is in the trash"),
            Self::FinishDrop(id) => write!(f, "take away refs and name of sandbox {id}, and delete it"),
            Self::Settle(id) => write!(f, "settle the checkpoints of sandbox {id}"),
            Self::Delete(path) => write!(f, "delete '{}'", path.display()),
            Self::RemoveTemp(path) | Self::RemoveLock(path) => write!(f, "remove '{}'", path.display()),
        }
    }
}

impl fmt::Display for Recovery {
    /// The one line that is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a '{}'", self.verb)?;
        if !self.of.is_empty() {
            write!(f, " of '{}'", self.of.join("', '"))?;
        }
        f.write_str(match self.end {
            End::Finished => " was cut off: it was finished",
            End::Left => " was cut off: what was changed since is left as it is",
            _ => " was cut off: it was taken back",
        })
    }
}

/// Decides what follows. Looks at nothing but its arguments.
pub fn decide(operation: &Operation, home: &Home, facts: &Facts) -> Recovery {
    let mut deeds = Vec::new();
    let mut end = End::TakenBack;
    match operation.verb {
        Verb::Import => {
            deeds.extend(facts.temps.iter().cloned().map(Deed::RemoveTemp));
            deeds.extend(facts.locks.iter().cloned().map(Deed::RemoveLock));
            if operation.step("refs").is_some_and(|step| step.done) {
                end = End::Finished;
            }
        }
        Verb::Drop => {
            if let Home::Sandbox(id) = home {
                let deed = match facts.place {
                    Place::Kept | Place::Gone => None,
                    Place::Trash => Some(Deed::FinishTrash(id.clone())),
                    Place::Dropped => Some(Deed::FinishDrop(id.clone())),
                };
                if facts.place != Place::Kept {
                    end = End::Finished;
                }
                deeds.extend(deed);
            }
        }
        Verb::Checkpoint | Verb::Restore => {
            if let (Home::Sandbox(id), Place::Kept) = (home, facts.place) {
                deeds.push(Deed::Settle(id.clone()));
            }
            if facts.swapped {
                end = End::Finished;
            }
        }
        Verb::Empty | Verb::Gc => {
            deeds.extend(facts.dropped.iter().cloned().map(Deed::Delete));
            end = End::Finished;
        }
        // What changes a working tree says where.
        _ => match (operation.step("change"), change(operation)) {
            (Some(step), _) if step.done || facts.all => end = End::Finished,
            // Taking back is what it was for.
            (Some(_), Some(change)) if facts.undo && operation.verb == Verb::Undo => {
                deeds.push(Deed::PutBack(change));
                end = End::Finished;
            }
            (Some(_), Some(change)) if matches!(facts.standing, Some(Standing::CarriedOut { .. })) => {
                deeds.push(Deed::Finish(vec![change]));
                end = End::Finished;
            }
            (Some(_), Some(change)) if facts.undo => deeds.push(Deed::PutBack(change)),
            _ => {}
        },
    }
    Recovery { verb: operation.verb, of: operation.of.clone(), deeds, end }
}

/// Which working tree an operation changes, if it is one that does.
pub fn change(operation: &Operation) -> Option<Change> {
    let path = |key| operation.id(key).map(path_of);
    Some(Change { worktree: path("worktree")?, git_dir: path("git-dir")?, undo: path("undo")?, all: path("all") })
}

/// Looks at what [`decide`] needs to know.
fn look(store: &Store, operation: &Operation, home: &Home) -> Facts {
    let place = match home {
        Home::Sandbox(id) if store.sandbox(id).path().is_dir() => Place::Kept,
        Home::Sandbox(id) if store.trash(id).path().is_dir() => Place::Trash,
        Home::Sandbox(id) if store.dropped(id).is_dir() => Place::Dropped,
        _ => Place::Gone,
    };
    let common = operation.id("common-dir").map(path_of);
    let dropped = operation.step("delete").map(|step| {
        let ids = step.ids.keys().filter_map(|id| SandboxId::parse(id));
        ids.map(|id| store.dropped(&id)).filter(|path| path.is_dir()).collect()
    });
    Facts {
        place,
        undo: change(operation).is_some_and(|change| change.undo.is_dir()),
        standing: None,
        all: change(operation).and_then(|change| change.all).is_some_and(|all| all.exists()),
        temps: common.as_deref().map_or_else(Vec::new, |common| temps(common, operation)),
        locks: common.as_deref().map_or_else(Vec::new, |common| locks(common, operation)),
        dropped: dropped.unwrap_or_default(),
        swapped: matches!(home, Home::Sandbox(id) if crate::checkpoint::is_made(&store.sandbox(id), operation.id("made"))),
    }
}

/// Packs that were being copied into the host's object store, by the id in their names, and marks on packs, by the
/// id in them.
fn temps(common: &Path, operation: &Operation) -> Vec<PathBuf> {
    let prefix = format!("tmp_sandbox_{}_", operation.id);
    let entries = fs::read_dir(common.join("objects/pack")).into_iter().flatten().flatten();
    let is_mark = |path: &Path| {
        let whose = operation.id.to_string();
        path.extension().is_some_and(|extension| extension == "keep")
            && fs::read_to_string(path).is_ok_and(|text| sandbox_git::keep::is_of(&text, &whose))
    };
    let temp = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let paths = entries.map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(|path| temp(path) || is_mark(path)).collect();
    found.sort();
    found
}

/// Locks of refs that the operation was about to move and that hold what it was about to write: a git of ours
/// was killed with it. Any other lock is somebody else's.
fn locks(common: &Path, operation: &Operation) -> Vec<PathBuf> {
    let Some(step) = operation.step("refs") else { return Vec::new() };
    let ours = |(name, ids): (&String, &String)| {
        let inside = name.starts_with("refs/sandbox/") || name.starts_with("refs/sandbox-meta/");
        let (_, new) = ids.split_once("..").filter(|_| inside)?;
        let path = common.join(format!("{name}.lock"));
        let held = fs::read_to_string(&path).ok()?;
        (held.trim_end() == new).then_some(path)
    };
    step.ids.iter().filter_map(ours).collect()
}

/// What recovery needs of the room above: git, and the way back of a merge.
pub trait Hands {
    /// Takes a change of a working tree back; `Ok(false)`: it was changed since, and nothing was done.
    fn put_back(&mut self, change: &Change) -> Result<bool, Box<dyn Error + Send + Sync>>;
    /// Looks how a working tree stands to a change of it.
    fn standing(&mut self, change: &Change) -> Result<Standing, Box<dyn Error + Send + Sync>>;
    /// Removes what a change left that was carried out in all of these, and writes it down for `undo`, if it is not.
    fn finish(&mut self, verb: Verb, of: &[String], changes: &[Change]) -> Result<(), Box<dyn Error + Send + Sync>>;
    /// Takes the refs of a sandbox out of the host's repositories. One whose repository is gone has none.
    fn remove_refs(&mut self, sandbox: &Sandbox) -> Result<(), Box<dyn Error + Send + Sync>>;
    /// Whether changes of this working tree are for this command to take back.
    fn may_change(&self, change: &Change) -> bool;
}

/// For operations of which nothing is left that needs hands.
#[derive(Debug)]
pub struct NoHands;

impl Hands for NoHands {
    fn put_back(&mut self, _change: &Change) -> Result<bool, Box<dyn Error + Send + Sync>> {
        Err("there is nobody here who could put it back".into())
    }
    fn standing(&mut self, _change: &Change) -> Result<Standing, Box<dyn Error + Send + Sync>> {
        Err("there is nobody here who could look".into())
    }
    fn finish(&mut self, _: Verb, _: &[String], _: &[Change]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Err("there is nobody here who could write it down".into())
    }
    fn remove_refs(&mut self, _sandbox: &Sandbox) -> Result<(), Box<dyn Error + Send + Sync>> {
        Err("there is nobody here who could remove refs".into())
    }
    fn may_change(&self, _change: &Change) -> bool {
        false
    }
}

/// What was found of one operation.
#[derive(Debug)]
pub struct Found {
    /// What follows.
    pub recovery: Recovery,
    /// Whether that was done; an error leaves the rest to the next command.
    pub outcome: Result<(), Box<dyn Error + Send + Sync>>,
}

/// Whom to look after.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All that is dead.
    All,
    /// What is dead of one journal and for one of these; one that is at its end now is waited for so long. The
    /// caller holds the lock under which such operations run.
    Of(&'a Home, &'a [Verb], Duration),
}

/// Finds operations that were cut and says what follows, doing nothing. What can only be left as it is comes with
/// why.
pub fn plan(store: &Store, hands: &mut dyn Hands) -> Result<Vec<Found>, StoreError> {
    let cuts = Cuts::take(store, Which::All, |cut| Ok(vec![cut]))?;
    let groups = cuts.singles.into_iter().chain(cuts.groups);
    let mut all: Vec<Found> = groups.filter_map(|cuts| decided(hands, &cuts)).collect();
    all.extend(cuts.unread.into_iter().map(unread));
    Ok(all)
}

/// Finds operations that were cut, and finishes them or takes them back. Returns those of which something was left
/// to do.
pub fn run(store: &Store, hands: &mut dyn Hands, which: Which<'_>) -> Result<Vec<Found>, StoreError> {
    let mut all = Vec::new();
    let cuts = Cuts::take(store, which, |cut| {
        all.extend(mend(store, hands, vec![cut]));
        Ok(Vec::new())
    })?;
    for group in cuts.groups {
        all.extend(mend(store, hands, group));
    }
    all.extend(cuts.unread.into_iter().map(unread));
    Ok(all)
}

/// One whose journal cannot be read: nothing is known of it, and it stays for the next command.
fn unread(error: StoreError) -> Found {
    let recovery = Recovery { verb: Verb::Unknown, of: Vec::new(), deeds: Vec::new(), end: End::Left };
    Found { recovery, outcome: Err(error.into()) }
}

/// Finishes one, or several that are one, or takes them back.
fn mend(store: &Store, hands: &mut dyn Hands, cuts: Vec<Cut>) -> Option<Found> {
    let others = |cut: &Cut| cut.change().is_some_and(|change| !hands.may_change(&change));
    if cuts.iter().any(others) {
        return None;
    }
    let Some(mut found) = decided(hands, &cuts) else {
        cuts.into_iter().for_each(|cut| cut.close(End::TakenBack));
        return None;
    };
    let together = cuts.len() > 1;
    if found.outcome.is_ok() {
        found.outcome = apply(store, hands, &mut found.recovery, together);
    }
    if found.outcome.is_ok() {
        cuts.into_iter().for_each(|cut| cut.close(found.recovery.end));
    }
    (found.outcome.is_err() || !found.recovery.deeds.is_empty()).then_some(found)
}

/// Looks and decides: for one, or for several that are one. `None`: nothing was begun, or all had ended.
fn decided(hands: &mut dyn Hands, cuts: &[Cut]) -> Option<Found> {
    let mut looked = Ok(());
    let mut all: Vec<(Change, Standing)> = Vec::new();
    let recoveries: Vec<Recovery> = cuts
        .iter()
        .filter_map(|cut| {
            let (Some(change), Some(facts)) = (cut.change(), &cut.facts) else { return cut.recovery(None) };
            let standing = match facts.undo {
                false => Standing::Before,
                true => hands.standing(&change).unwrap_or_else(|error| {
                    looked = Err(error);
                    Standing::Before
                }),
            };
            all.push((change, standing.clone()));
            cut.recovery(Some(standing))
        })
        .collect();
    let mut recovery = recoveries.first()?.clone();
    if let (Err(error), false) = (looked, recovery.verb == Verb::Undo) {
        return Some(Found { recovery, outcome: Err(error) });
    }
    // The mark is there: all of it was written down.
    if let Some(over) = recoveries.iter().find(|recovery| recovery.end == End::Finished && recovery.deeds.is_empty()) {
        return Some(Found { recovery: over.clone(), outcome: Ok(()) });
    }
    let Some(mark) = all.first().and_then(|(change, _)| change.all.clone()) else {
        return Some(Found { recovery, outcome: Ok(()) });
    };
    let mut outcome = Ok(());
    let all: Vec<(&Change, Standing)> = all.iter().map(|(change, standing)| (change, standing.clone())).collect();
    (recovery.deeds, recovery.end) = match together::decide(&all) {
        Verdict::Finish => {
            let changes = all.iter().map(|(change, _)| (*change).clone()).collect();
            (vec![Deed::Finish(changes), Deed::Mark(mark)], End::Finished)
        }
        Verdict::PutBack => {
            let there = all.iter().filter(|(change, _)| change.undo.is_dir());
            (there.map(|(change, _)| Deed::PutBack((*change).clone())).collect(), End::TakenBack)
        }
        Verdict::Leave(places) => {
            outcome = Err(InTheWay { places }.into());
            (Vec::new(), End::Left)
        }
    };
    Some(Found { recovery, outcome })
}

/// Does what was decided. Each deed can be done again.
fn apply(
    store: &Store,
    hands: &mut dyn Hands,
    recovery: &mut Recovery,
    together: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let sandbox = |dir: PathBuf| -> Result<Option<Sandbox>, StoreError> {
        let dir = SandboxDir::at(dir);
        Ok(read_json::<SandboxRecord>(&dir.record())?.map(|record| Sandbox::new(dir, record)))
    };
    for deed in &recovery.deeds {
        match deed {
            Deed::PutBack(change) => {
                if !hands.put_back(change)? {
                    recovery.end = End::Left;
                    if together {
                        let places = vec![(change.worktree.clone(), "something".to_owned())];
                        return Err(InTheWay { places }.into());
                    }
                }
            }
            Deed::Finish(changes) => hands.finish(recovery.verb, &recovery.of, changes)?,
            Deed::Mark(path) => write_whole(path, b"", true)?,
            Deed::FinishTrash(id) => {
                if let Some(sandbox) = sandbox(store.trash(id).path().to_owned())? {
                    trash::note(&sandbox, None);
                    hands.remove_refs(&sandbox)?;
                    removal::take_names_back(store, &sandbox.record);
                }
            }
            Deed::FinishDrop(id) => {
                let dir = store.dropped(id);
                if let Some(sandbox) = sandbox(dir.clone())? {
                    hands.remove_refs(&sandbox)?;
                    // Before its name is free: what the vault has is under that name.
                    kept::forget(store, &sandbox.record)?;
                    removal::take_names_back(store, &sandbox.record);
                }
                remove_dir(&dir)?;
            }
            Deed::Settle(id) => crate::checkpoint::mend(store, id)?,
            Deed::Delete(dir) => remove_dir(dir)?,
            Deed::RemoveTemp(path) | Deed::RemoveLock(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            },
        }
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match sandbox_capture::remove_tree(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("delete", dir)(error)),
        _ => Ok(()),
    }
}

/// What is dead, in our hands.
#[derive(Default)]
struct Cuts {
    /// Those that `alone` handed back.
    singles: Vec<Vec<Cut>>,
    /// Those that are one change of several repositories.
    groups: Vec<Vec<Cut>>,
    /// Why others are not known.
    unread: Vec<StoreError>,
}

impl Cuts {
    /// Takes them in the order of their ids, so that two who do it at once do not wait for each other. What is alone
    /// is handed out at once. Of a change of several repositories all that is left is taken, or nothing.
    fn take(
        store: &Store,
        which: Which<'_>,
        mut alone: impl FnMut(Cut) -> Result<Vec<Cut>, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut cuts = Self::default();
        let markers = markers(store);
        let wanted: Vec<bool> = match which {
            Which::All => vec![true; markers.len()],
            Which::Of(home, verbs, _) => {
                let known: Vec<_> = markers.iter().map(|marker| peek(store, marker)).collect();
                let is_of = |known: &Option<(Home, Operation)>| {
                    known.as_ref().is_some_and(|(of, operation)| of == home && verbs.contains(&operation.verb))
                };
                let all = |known: &Option<(Home, Operation)>| known.as_ref().and_then(|(_, op)| change(op)?.all);
                let groups: BTreeSet<PathBuf> = known.iter().filter(|known| is_of(known)).filter_map(all).collect();
                known.iter().map(|known| is_of(known) || all(known).is_some_and(|all| groups.contains(&all))).collect()
            }
        };
        let mut groups: BTreeMap<PathBuf, Vec<Cut>> = BTreeMap::new();
        let mut held = BTreeSet::new();
        for (marker, _) in markers.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            let taken = match Cut::take(store, marker, which) {
                // Those after it are mended all the same.
                Err(error) if matches!(which, Which::All) => {
                    cuts.unread.push(error);
                    continue;
                }
                taken => taken?,
            };
            match taken {
                Taken::Over => {}
                Taken::Held => {
                    held.extend(peek(store, marker).and_then(|(_, operation)| change(&operation)?.all));
                }
                Taken::Cut(cut) => match cut.change().and_then(|change| change.all) {
                    Some(all) => groups.entry(all).or_default().push(*cut),
                    None => cuts.singles.push(alone(*cut)?),
                },
            }
        }
        // One of them lives, or is being mended by somebody else; one that cannot be read may be of any of them.
        let complete = |all: &PathBuf| !held.contains(all) && cuts.unread.is_empty();
        cuts.groups = groups.into_iter().filter(|(all, _)| complete(all)).map(|(_, group)| group).collect();
        cuts.singles.retain(|single| !single.is_empty());
        Ok(cuts)
    }
}

/// Operations that have a marker and no end: somebody is at work on them, or was.
pub fn under_way(store: &Store) -> Vec<Operation> {
    let known = markers(store).iter().filter_map(|marker| peek(store, marker)).collect::<Vec<_>>();
    known.into_iter().map(|(_, operation)| operation).filter(|operation| operation.end.is_none()).collect()
}

/// What a marker is of, without taking it.
fn peek(store: &Store, marker: &Marker) -> Option<(Home, Operation)> {
    let home = read_home(&marker.path)?;
    let operation = Journal::of(store, home.clone()).read().ok()?.find(&marker.op)?.clone();
    Some((home, operation))
}

/// An operation whose owner is dead, in our hands.
struct Cut {
    journal: Journal,
    home: Home,
    operation: Option<Operation>,
    op: Op,
    facts: Option<Facts>,
}

enum Taken {
    Cut(Box<Cut>),
    /// Its owner lives.
    Held,
    /// It came to its end meanwhile, or is left to others.
    Over,
}

impl Cut {
    fn take(store: &Store, marker: &Marker, which: Which<'_>) -> Result<Taken, StoreError> {
        let until = match which {
            Which::All => None,
            Which::Of(.., patience) => Some(std::time::Instant::now() + patience),
        };
        let lock = loop {
            match FileLock::try_existing(&marker.path).map_err(StoreError::io("lock", &marker.path))? {
                sandbox_sys::lock::Tried::Taken(lock) => break lock,
                sandbox_sys::lock::Tried::Gone => return Ok(Taken::Over),
                sandbox_sys::lock::Tried::Held if until.is_some_and(|until| std::time::Instant::now() < until) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                sandbox_sys::lock::Tried::Held => return Ok(Taken::Held),
            }
        };
        let Some(home) = read_home(&marker.path) else {
            // It died before it said what it was: nothing was done.
            let _ = fs::remove_file(&marker.path);
            return Ok(Taken::Over);
        };
        let journal = Journal::of(store, home.clone());
        let operation = journal.read()?.find(&marker.op).cloned();
        // What a newer program began is left to it.
        if operation.as_ref().is_some_and(|operation| operation.newer) {
            return Ok(Taken::Over);
        }
        let facts = operation.as_ref().map(|operation| look(store, operation, &home));
        let op = Op::adopt(&journal, marker, lock);
        Ok(Taken::Cut(Box::new(Self { journal, home, operation, op, facts })))
    }

    /// The change of a working tree that may be there of it.
    fn change(&self) -> Option<Change> {
        let operation = self.operation.as_ref().filter(|operation| operation.end.is_none())?;
        change(operation).filter(|_| {
            !matches!(
                operation.verb,
                Verb::Import | Verb::Drop | Verb::Empty | Verb::Gc | Verb::Checkpoint | Verb::Restore
            )
        })
    }

    /// What follows; `None`: it had not begun, or had ended.
    fn recovery(&self, standing: Option<Standing>) -> Option<Recovery> {
        match (&self.operation, &self.facts) {
            (Some(operation), Some(facts)) if operation.end.is_none() => {
                Some(decide(operation, &self.home, &Facts { standing, ..facts.clone() }))
            }
            // Its journal was deleted with its directory, and that not to the end.
            (None, _) if self.journal.dir().is_dir() => match &self.home {
                Home::Sandbox(id) if self.journal.dir().ends_with(format!("dropped-{id}")) => Some(Recovery {
                    verb: Verb::Drop,
                    of: Vec::new(),
                    deeds: vec![Deed::FinishDrop(id.clone())],
                    end: End::Finished,
                }),
                _ => None,
            },
            _ => None,
        }
    }

    fn close(self, how: End) {
        if self.operation.is_some_and(|operation| operation.end.is_none()) && self.journal.dir().is_dir() {
            self.op.end_late(how);
        } else {
            self.op.end(how);
        }
    }
}

fn read_home(marker: &Path) -> Option<Home> {
    Home::parse(&fs::read_to_string(marker).ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::{End, Ids, Plan};
    use super::*;
    use crate::id::RepoId;

    /// Nothing of what is found here needs hands, or it is written down.
    #[derive(Default)]
    struct Noted(Vec<String>);

    impl Hands for Noted {
        fn put_back(&mut self, change: &Change) -> Result<bool, Box<dyn Error + Send + Sync>> {
            self.0.push(format!("put back {}", change.worktree.display()));
            Ok(!change.worktree.ends_with("changed"))
        }
        fn standing(&mut self, change: &Change) -> Result<Standing, Box<dyn Error + Send + Sync>> {
            let name = change.worktree.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(match &*name {
                "done" => Standing::CarriedOut { since: None },
                "later" => Standing::CarriedOut { since: Some("'f'".into()) },
                _ => Standing::Cut,
            })
        }
        fn finish(
            &mut self,
            verb: Verb,
            of: &[String],
            changes: &[Change],
        ) -> Result<(), Box<dyn Error + Send + Sync>> {
            let places: Vec<_> = changes.iter().map(|change| change.worktree.display().to_string()).collect();
            self.0.push(format!("finish {verb} {} {}", of.join(" "), places.join(" ")));
            Ok(())
        }
        fn remove_refs(&mut self, sandbox: &Sandbox) -> Result<(), Box<dyn Error + Send + Sync>> {
            self.0.push(format!("refs of {}", sandbox.record.name));
            Ok(())
        }
        fn may_change(&self, change: &Change) -> bool {
            !change.worktree.ends_with("other")
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("s")).unwrap();
        (root, store)
    }

    fn ids(pairs: &[(&str, &str)]) -> Ids {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// The plan as it is told, the deeds indented.
    fn text(recovery: &Recovery) -> String {
        std::iter::once(recovery.to_string())
            .chain(recovery.deeds.iter().map(|deed| format!("  {deed}")))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn repo(store: &Store) -> RepoId {
        let id = RepoId::random();
        crate::store::make_dir(store.repo(&id).path()).unwrap();
        id
    }

    fn merge(store: &Store, worktree: &str, done: bool) -> RepoId {
        begin(store, worktree, None, done)
    }

    /// One repository's part of a merge, cut.
    fn begin(store: &Store, worktree: &str, all: Option<&Path>, done: bool) -> RepoId {
        let id = repo(store);
        let undo = store.repo(&id).path().join("undo/x");
        crate::store::make_dir(&undo).unwrap();
        let mut op = Journal::of_repo(store, &id).start(Plan::new(Verb::Merge).of("fix")).unwrap();
        let undo = super::super::path_id(&undo);
        let mut named = ids(&[("worktree", worktree), ("git-dir", "/w/.git"), ("undo", &undo)]);
        named.extend(all.map(|all| ("all".to_owned(), super::super::path_id(all))));
        op.begin_durably("change", named).unwrap();
        if done {
            op.done("change").unwrap();
        }
        id
    }

    #[test]
    fn a_merge_that_was_cut_is_put_back_once() {
        let (_root, store) = store();
        let id = merge(&store, "/w", false);
        let plan = super::plan(&store, &mut Noted::default()).unwrap();
        assert_eq!(text(&plan[0].recovery), "a 'merge' of 'fix' was cut off: it was taken back\n  put back '/w'");
        let mut hands = Noted::default();
        assert_eq!(run(&store, &mut hands, Which::All).unwrap().len(), 1);
        assert!(run(&store, &mut hands, Which::All).unwrap().is_empty());
        assert_eq!(hands.0, ["put back /w"]);
        let history = Journal::of_repo(&store, &id).read().unwrap();
        assert_eq!(history.operations[0].end, Some(End::TakenBack));
        assert!(markers(&store).is_empty());
    }

    #[test]
    fn what_was_changed_since_is_left_and_said() {
        let (_root, store) = store();
        let id = merge(&store, "/changed", false);
        let found = run(&store, &mut Noted::default(), Which::All).unwrap();
        assert_eq!(
            found[0].recovery.to_string(),
            "a 'merge' of 'fix' was cut off: what was changed since is left as it is"
        );
        assert_eq!(Journal::of_repo(&store, &id).read().unwrap().operations[0].end, Some(End::Left));
    }

    #[test]
    fn a_merge_that_was_carried_out_is_finished_and_not_taken_back() {
        let (_root, store) = store();
        let id = merge(&store, "/done", false);
        let plan = super::plan(&store, &mut Noted::default()).unwrap();
        assert_eq!(
            text(&plan[0].recovery),
            "a 'merge' of 'fix' was cut off: it was finished\n  write down that '/done' was changed"
        );
        let mut hands = Noted::default();
        assert_eq!(run(&store, &mut hands, Which::All).unwrap().len(), 1);
        assert_eq!(hands.0, ["finish merge fix /done"]);
        assert_eq!(Journal::of_repo(&store, &id).read().unwrap().operations[0].end, Some(End::Finished));
        assert!(markers(&store).is_empty());
    }

    /// What is done with the parts of one merge, and how each ends.
    fn several(worktrees: &[&str], only: Option<usize>) -> (Vec<String>, Vec<Option<End>>, bool) {
        let (root, store) = store();
        let all = root.path().join("x.all");
        let parts: Vec<RepoId> = worktrees.iter().map(|worktree| begin(&store, worktree, Some(&all), false)).collect();
        let mut hands = Noted::default();
        let home = only.map(|n| Home::Repo(parts[n].clone()));
        let which = home.as_ref().map_or(Which::All, |home| Which::Of(home, &[Verb::Merge], Duration::ZERO));
        let found = run(&store, &mut hands, which).unwrap();
        hands.0.extend(found.iter().filter_map(|found| found.outcome.as_ref().err().map(ToString::to_string)));
        hands.0.sort();
        let ends = parts.iter().map(|id| Journal::of_repo(&store, id).read().unwrap().operations[0].end);
        (hands.0, ends.collect(), all.exists())
    }

    #[test]
    fn a_merge_of_several_is_finished_or_taken_back_in_all_of_them() {
        let (calls, ends, mark) = several(&["/w1", "/done"], None);
        assert_eq!((calls, mark), (vec!["put back /done".to_owned(), "put back /w1".to_owned()], false));
        assert_eq!(ends, [Some(End::TakenBack), Some(End::TakenBack)]);
        // Who looks after one of them looks after all.
        for only in [None, Some(0), Some(1)] {
            let (calls, ends, mark) = several(&["/1/done", "/2/later"], only);
            assert!(calls.len() == 1 && calls[0].starts_with("finish merge fix /"), "{calls:?}");
            assert!(calls[0].contains("/1/done") && calls[0].contains("/2/later") && mark, "{calls:?}");
            assert_eq!(ends, [Some(End::Finished), Some(End::Finished)]);
        }
    }

    #[test]
    fn a_merge_of_several_that_can_be_neither_stays_open() {
        for only in [None, Some(0), Some(1)] {
            let (calls, ends, mark) = several(&["/later", "/w"], only);
            assert_eq!(
                calls,
                [
                    "it was cut between its repositories, and all of them are left as they are: in '/later' 'f' changed since"
                ]
            );
            assert_eq!((ends, mark), (vec![None, None], false));
        }
    }

    #[test]
    fn a_merge_that_was_done_needs_nothing() {
        let (_root, store) = store();
        let id = merge(&store, "/w", true);
        let mut hands = Noted::default();
        assert!(run(&store, &mut hands, Which::All).unwrap().is_empty());
        assert!(hands.0.is_empty());
        assert_eq!(Journal::of_repo(&store, &id).read().unwrap().operations[0].end, Some(End::Finished));
    }

    #[test]
    fn another_working_tree_is_left_to_its_own_commands() {
        let (_root, store) = store();
        merge(&store, "/other", false);
        assert!(run(&store, &mut Noted::default(), Which::All).unwrap().is_empty());
        assert_eq!(markers(&store).len(), 1);
    }

    #[test]
    fn a_journal_that_cannot_be_read_keeps_nobody_else_waiting() {
        for n in 0..3 {
            let (_root, store) = store();
            let ids: Vec<RepoId> = (0..3).map(|n| merge(&store, &format!("/w{n}"), false)).collect();
            let journal = Journal::of_repo(&store, &ids[n]).path();
            let kept = journal.with_extension("kept");
            fs::rename(&journal, &kept).unwrap();
            // A directory cannot be read, whoever tries.
            fs::create_dir(&journal).unwrap();
            let mut hands = Noted::default();
            let found = run(&store, &mut hands, Which::All).unwrap();
            let failed: Vec<String> =
                found.iter().filter_map(|found| found.outcome.as_ref().err().map(ToString::to_string)).collect();
            assert_eq!(failed, [format!("cannot read '{}'", journal.display())]);
            assert_eq!(hands.0.len(), 2);
            fs::remove_dir(&journal).unwrap();
            fs::rename(&kept, &journal).unwrap();
            assert_eq!(run(&store, &mut hands, Which::All).unwrap().len(), 1);
            assert!(hands.0.contains(&format!("put back /w{n}")) && markers(&store).is_empty());
        }
    }

    #[test]
    fn one_that_lives_is_not_touched() {
        let (_root, store) = store();
        let id = repo(&store);
        let op = Journal::of_repo(&store, &id).start(Plan::new(Verb::Merge)).unwrap();
        assert!(super::plan(&store, &mut Noted::default()).unwrap().is_empty());
        // A child that holds the marker is at work as well.
        let child = op.hold().unwrap();
        drop(op);
        assert!(run(&store, &mut Noted::default(), Which::All).unwrap().is_empty());
        assert_eq!(markers(&store).len(), 1);
        drop(child);
        assert!(run(&store, &mut Noted::default(), Which::All).unwrap().is_empty(), "nothing was begun");
        assert!(markers(&store).is_empty());
    }

    #[test]
    fn an_import_removes_what_is_its_own() {
        let (root, store) = store();
        let sandbox = SandboxId::random();
        crate::store::make_dir(store.sandbox(&sandbox).path()).unwrap();
        let git = root.path().join("repo/.git");
        fs::create_dir_all(git.join("objects/pack")).unwrap();
        fs::create_dir_all(git.join("refs/sandbox")).unwrap();
        let mut op = Journal::of_sandbox(&store, &sandbox).start(Plan::new(Verb::Import).of("fix")).unwrap();
        let ours = git.join(format!("objects/pack/tmp_sandbox_{}_pack-1.pack", op.id()));
        for file in [ours.clone(), git.join("objects/pack/tmp_pack_other")] {
            fs::write(file, "x").unwrap();
        }
        // A mark of its own, and one of an operation that another state knows.
        let marks = ["pack-1.keep", "pack-2.keep"].map(|name| git.join("objects/pack").join(name));
        for (mark, whose) in marks.iter().zip([op.id().to_string(), "other".into()]) {
            fs::write(mark, sandbox_git::keep::text(&whose).unwrap() + "\n").unwrap();
        }
        let lock = |name: &str, text: &str| fs::write(git.join(format!("refs/sandbox/{name}.lock")), text).unwrap();
        lock("fix", "2222\n");
        lock("else", "3333\n");
        fs::create_dir_all(git.join("refs/heads")).unwrap();
        fs::write(git.join("refs/heads/main.lock"), "2222\n").unwrap();
        op.begin("give", ids(&[("common-dir", &super::super::path_id(&git))])).unwrap();
        let refs =
            [("refs/sandbox/fix", "1111..2222"), ("refs/sandbox/else", "1111..2222"), ("refs/heads/main", "1..2222")];
        op.begin("refs", ids(&refs)).unwrap();
        drop(op);
        let found = run(&store, &mut Noted::default(), Which::All).unwrap();
        let shown = text(&found[0].recovery).replace(root.path().to_str().unwrap(), "");
        let shown = shown.replace(&ours.file_name().unwrap().to_string_lossy().into_owned(), "TEMP");
        assert_eq!(
            shown,
            "a 'import' of 'fix' was cut off: it was taken back\n  \
             remove '/repo/.git/objects/pack/pack-1.keep'\n  remove '/repo/.git/objects/pack/TEMP'\n  remove '/repo/.git/refs/sandbox/fix.lock'"
        );
        assert!(!ours.exists() && git.join("objects/pack/tmp_pack_other").exists());
        assert!(!git.join("refs/sandbox/fix.lock").exists() && git.join("refs/sandbox/else.lock").exists());
        assert!(git.join("refs/heads/main.lock").exists());
        assert!(!marks[0].exists() && marks[1].exists());
    }

    fn sandbox(store: &Store) -> Sandbox {
        let record: SandboxRecord = serde_json::from_value(serde_json::json!({
            "id": SandboxId::random().to_string(), "name": "full", "unnamed": false, "driver": "namespace",
            "repos": [], "created": 0, "argv": [], "cwd": "/", "home": "/",
            "user": {"name": "u", "group": "u", "uid": 1000, "gid": 1000, "shell": "/bin/sh", "root": false},
            "env": [], "network": "none", "limits": {},
        }))
        .unwrap();
        let dir = store.sandbox(&record.id);
        crate::store::make_dir(dir.path()).unwrap();
        crate::store::write_json(&dir.record(), &record, false).unwrap();
        Sandbox::new(dir, record)
    }

    #[test]
    fn a_drop_goes_on_from_where_its_directory_is() {
        for (place, told, called) in [
            (Place::Kept, None, 0),
            (Place::Trash, Some("a 'drop' of 'full' was cut off: it was finished"), 1),
            (Place::Dropped, Some("a 'drop' of 'full' was cut off: it was finished"), 1),
            (Place::Gone, None, 0),
        ] {
            let (_root, store) = store();
            let sandbox = sandbox(&store);
            let id = sandbox.record.id.clone();
            let plan = Plan::new(Verb::Drop).of("full").makes_room();
            let mut op = Journal::of_sandbox(&store, &id).start(plan).unwrap();
            op.begin_durably("away", ids(&[])).unwrap();
            drop(op);
            match place {
                Place::Kept => {}
                Place::Trash => fs::rename(sandbox.dir.path(), store.trash(&id).path()).unwrap(),
                Place::Dropped => fs::rename(sandbox.dir.path(), store.dropped(&id)).unwrap(),
                Place::Gone => fs::remove_dir_all(sandbox.dir.path()).unwrap(),
            }
            let mut hands = Noted::default();
            let found = run(&store, &mut hands, Which::All).unwrap();
            assert_eq!(found.first().map(|found| found.recovery.to_string()).as_deref(), told, "{place:?}");
            assert_eq!(hands.0.len(), called, "{place:?}");
            assert!(markers(&store).is_empty(), "{place:?}");
            assert!(!store.dropped(&id).exists());
            assert_eq!(store.trash(&id).path().join("dropped.json").exists(), place == Place::Trash);
        }
    }

    #[test]
    fn what_a_newer_program_began_is_left_to_it() {
        let (_root, store) = store();
        let id = merge(&store, "/w", false);
        let journal = Journal::of_repo(&store, &id);
        let text = fs::read_to_string(journal.path()).unwrap();
        fs::write(journal.path(), text.replace("\"v\":1", "\"v\":2")).unwrap();
        assert!(run(&store, &mut Noted::default(), Which::All).unwrap().is_empty());
        assert_eq!(markers(&store).len(), 1);
        assert_eq!(journal.read().unwrap().newer, Some(2));
        let refused = journal.start(Plan::new(Verb::Merge)).unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 2, .. }), "{refused}");
        assert_eq!(markers(&store).len(), 1);
    }

    #[test]
    fn an_operation_that_came_to_its_end_is_remembered_and_leaves_no_marker() {
        let (_root, store) = store();
        let id = repo(&store);
        let mut op = Journal::of_repo(&store, &id).start(Plan::new(Verb::Branch).of("fix")).unwrap();
        let many: Ids = (0..500).map(|n| (format!("refs/heads/{n:0100}"), "x".repeat(80))).collect();
        op.begin("change", many.clone()).unwrap();
        op.done("change").unwrap();
        op.end(End::Done);
        let journal = Journal::of_repo(&store, &id);
        let bytes = fs::read(journal.path()).unwrap();
        assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() < super::super::MAX_LINE));
        let history = journal.read().unwrap();
        assert_eq!(history.operations[0].step("change").unwrap().ids, many);
        assert_eq!(history.operations[0].end, Some(End::Done));
        assert!(markers(&store).is_empty());
        // Wherever a crash cuts it, what is left is read, and the next operation is not harmed by it.
        for cut in (0..bytes.len()).step_by(997).chain(bytes.len() - 70..bytes.len()) {
            fs::write(journal.path(), &bytes[..cut]).unwrap();
            let cut_short = journal.read().unwrap();
            assert!(cut_short.operations.len() <= 1 && cut_short.damaged <= 1);
            journal.start(Plan::new(Verb::Merge)).unwrap().end(End::Done);
            let after = journal.read().unwrap();
            assert_eq!(after.operations.len(), cut_short.operations.len() + 1, "{cut}");
            assert_eq!(after.operations.last().unwrap().end, Some(End::Done), "{cut}");
        }
    }
}
