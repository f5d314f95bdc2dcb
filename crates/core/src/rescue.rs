//! Rescue: what a sandbox has not committed becomes commits in the vault, without touching anything in it.
//!
//! ```text
//!  anything uncommitted?       read from outside, the upper directory only      no ──► noted, nothing else
//!    for each repository ◄── `__rescue-inside`: a commit in the form of a stash entry, in a scratch
//!                             directory inside (untrusted)
//!  the same trees as last time?                                                 yes ─► nothing
//!    for each repository ◄── `git upload-pack` inside ─ landing, fsck, budget   (as commits come home)
//!      ─► packs into the vault, then refs/<name>/rescue                         (kept.rs)
//! ```
//!
//! One function for a sandbox that runs, was stopped, or crashed: the connection leads to its supervisor, or
//! to a read-only helper over its directories, whose scratch directory is in memory. Everything that comes
//! from inside is judged as commits are; what is refused is told by name and keeps nothing else back.

use crate::commit_back::{CommitBackError, bring_lock, landing_dir, receive, ref_lock};
use crate::connection::{Connection, ConnectionError};
use crate::kept::{self, DropError, Kept, KeptError, Part, Rescue, remove_packs};
use crate::landing::{Bounds, Landing, LandingError, Want};
use crate::launch::INSIDE;
use crate::record::{Snapshot, ViewRecord};
use crate::sandbox::Sandbox;
use crate::store::{RepoDir, Store, StoreError, make_dir};
use crate::view::View;
use crate::work;
use sandbox_git::{Git, Oid, RefName, printable};
use sandbox_protocol::{Exec, ExitStatus, RESCUE_VERB, RescueAnswer, RescueQuestion, escape_bytes};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Bytes of an answer at most.
const MAX_ANSWER: usize = 1 << 20;

/// Bytes of the largest file that is taken.
const FILE: u64 = 256 << 20;

/// Lines about what is left out that are written down.
const MOST_TOLD: usize = 100;

/// What may be spent on one.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Time for all of it.
    pub time: Duration,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Effort {
    /// In a running sandbox; its disk has room or has not.
    pub fn live(time: Duration) -> Self {
        Self { time, bytes: 1 << 30 }
    }

    /// In a helper, where the scratch directory is memory.
    pub fn helper(time: Duration) -> Self {
        Self { time, bytes: 256 << 20 }
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing is uncommitted.
    Clean,
    /// Nothing has changed since the newest one.
    Same(Rescue),
    /// A new one.
    Made(Rescue),
}

impl Outcome {
    /// The newest rescue, if it holds what is there now.
    pub fn rescue(&self) -> Option<&Rescue> {
        match self {
            Self::Clean => None,
            Self::Same(rescue) | Self::Made(rescue) => Some(rescue),
        }
    }
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The sandbox, or its landing.
    #[error(transparent)]
    Sandbox(#[from] CommitBackError),
    /// The vault.
    #[error("cannot keep it in the vault")]
    Kept(#[from] KeptError),
    /// No repository in it could be rescued.
    #[error("{0}")]
    Refused(String),
}

impl From<LandingError> for RescueError {
    fn from(error: LandingError) -> Self {
        Self::Sandbox(error.into())
    }
}

impl From<DropError> for RescueError {
    fn from(error: DropError) -> Self {
        match error {
            DropError::Sandbox(error) => Self::Sandbox(error),
            DropError::Kept(error) => Self::Kept(error),
            DropError::Git(_) | DropError::Place(_) => Self::Refused(words(&error)),
        }
    }
}

impl From<StoreError> for RescueError {
    fn from(error: StoreError) -> Self {
        Self::Kept(error.into())
    }
}

type Result<T> = std::result::Result<T, RescueError>;

/// As [`run`], of all trees of a sandbox, within the time of one. All are tried; the first failure is told.
pub fn run_all(
    connection: &mut Connection,
    git: &Git,
    store: &Store,
    sandbox: &Sandbox,
    effort: Effort,
) -> Result<Vec<Outcome>> {
    let until = Instant::now() + effort.time;
    let each: Vec<Result<Outcome>> = sandbox
        .trees()
        .filter(|tree| tree.mount().has_commits())
        .map(|tree| {
            let time = until.saturating_duration_since(Instant::now());
            run(connection, git, store, &tree, Effort { time, ..effort })
        })
        .collect();
    each.into_iter().collect()
}

/// Makes one if there is anything to be rescued. Its committed work should have been brought home before: a
/// file that is committed there is not uncommitted. That it failed, and why, is written down too.
pub fn run(
    connection: &mut Connection,
    git: &Git,
    store: &Store,
    sandbox: &Sandbox,
    effort: Effort,
) -> Result<Outcome> {
    let repo = store.repo(&sandbox.mount().repo);
    let load = || Kept::load(&repo, &sandbox.record.id);
    let is_dropped = |kept: &Option<Kept>| kept.as_ref().is_some_and(|kept| kept.trash.is_some());
    let was_dropped = is_dropped(&load()?);
    let _lock = rescue_lock(sandbox)?;
    let mut kept = load()?;
    if is_dropped(&kept) {
        if !was_dropped {
            // While this one waited: what the trash keeps is not taken out of it.
            return Ok(Outcome::Clean);
        }
        // A drop was cut before the sandbox itself was in the trash.
        kept::taken_out(git, store, sandbox)?;
        kept = load()?;
    }
    let mut kept = kept.unwrap_or_else(|| Kept::new(&sandbox.record));
    // What is not known is found out inside.
    crate::picture::see(connection, store, sandbox);
    if !anything(git, store, sandbox) {
        return clean(kept, &repo);
    }
    let scratch = format!("/tmp/.git-sandbox-rescue-{}", crate::id::SandboxId::random());
    let mut job =
        Job { connection, git, store, sandbox, scratch, until: Instant::now() + effort.time, bytes: effort.bytes };
    let result = job.rescue(&mut kept);
    if let Err(error) = &result {
        kept.failed = Some((unix_seconds(), words(error)));
        // Written or not: the error is told. Before the rest: at the sandbox's end there is little time.
        let _ = kept.save(&repo);
    }
    job.clean_up();
    match &result {
        Err(_) => result,
        // It was committed, and is on its way home.
        Ok(Outcome::Clean) => clean(kept, &repo),
        Ok(_) => result,
    }
}

/// Nothing is uncommitted: what was rescued before is kept, and is no news.
fn clean(mut kept: Kept, repo: &RepoDir) -> Result<Outcome> {
    if kept.failed.is_some() || (kept.clean.is_none() && !kept.rescues.is_empty()) {
        (kept.clean, kept.failed) = (Some(unix_seconds()), None);
        kept.save(repo)?;
    }
    Ok(Outcome::Clean)
}

/// Serialises rescues of one sandbox. Not the lock of commit-backs: who wants commits home now does not wait
/// until a large work tree was read.
pub(crate) fn rescue_lock(sandbox: &Sandbox) -> std::result::Result<FileLock, CommitBackError> {
    let path = sandbox.dir.path().join("rescue.lock");
    FileLock::exclusive(&path).map_err(|source| CommitBackError::Lock { path, source })
}

/// The whole chain of causes, in one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    printable(text.as_bytes()).chars().take(1000).collect()
}

/// Whether anything is uncommitted. What cannot be found out from here is found out inside.
fn anything(git: &Git, store: &Store, sandbox: &Sandbox) -> bool {
    match work::uncommitted_now(git, store, sandbox) {
        Ok(left) if left.files.is_empty() => {
            !work::staged_only(git, store, sandbox).is_ok_and(|staged| staged.is_empty())
        }
        _ => true,
    }
}

struct Job<'a> {
    connection: &'a mut Connection,
    git: &'a Git,
    store: &'a Store,
    sandbox: &'a Sandbox,
    scratch: String,
    until: Instant,
    bytes: u64,
}

/// A repository that has something.
struct Wanted<'a> {
    number: usize,
    view: &'a ViewRecord,
    commit: Oid,
    answer: RescueAnswer,
}

impl Job<'_> {
    fn rescue(&mut self, kept: &mut Kept) -> Result<Outcome> {
        let repo = self.store.repo(&self.sandbox.mount().repo);
        let snapshot = self.sandbox.snapshot(self.store).map_err(CommitBackError::from)?;
        let mut left_out = Vec::new();
        let mut failures = Vec::new();
        let mut wanted = Vec::new();
        for (number, view) in snapshot.git.views.iter().enumerate() {
            match self.ask(number, view, &snapshot) {
                Ok(answer) => {
                    left_out.extend(answer.left_out.iter().map(|line| named(view, &printable(line.as_bytes()))));
                    if answer.left_out_more > 0 {
                        left_out.push(named(view, &format!("and {} more", answer.left_out_more)));
                    }
                    let format = view.object_format.as_str();
                    let commit = answer.commit.as_ref().and_then(Oid::parse);
                    match commit.filter(|oid| format.is_empty() || oid.format().to_string() == format) {
                        Some(commit) => wanted.push(Wanted { number, view, commit, answer }),
                        None if answer.commit.is_some() => failures.push(named(view, "no commit was told")),
                        None => {}
                    }
                }
                Err(why) => failures.push(named(view, &why)),
            }
        }
        let same = |last: &Rescue| {
            failures.is_empty()
                && last.parts.len() == wanted.len()
                && last.parts.iter().zip(&wanted).all(|(part, new)| {
                    part.path == new.view.path.as_os_str().as_bytes() && part.trees == new.answer.trees
                })
        };
        if let Some(last) = kept.newest().filter(|last| same(last)).cloned() {
            if kept.failed.take().is_some() | kept.clean.take().is_some() {
                kept.save(&repo)?;
            }
            // Whoever wrote the record may have been killed before its refs were there.
            let _lock = ref_lock(self.store, self.sandbox)?;
            kept.set_refs(self.git, &repo)?;
            return Ok(Outcome::Same(last));
        }
        let mut rescue = Rescue {
            n: kept.newest().map_or(0, |last| last.n + 1),
            at: unix_seconds(),
            files: wanted.iter().map(|wanted| wanted.answer.files).sum(),
            bytes: 0,
            parts: Vec::new(),
            left_out: Vec::new(),
        };
        for wanted in &wanted {
            match self.receive(wanted, kept, &mut rescue) {
                Ok(part) => rescue.parts.push(part),
                Err(error) => failures.push(named(wanted.view, &words(&error))),
            }
        }
        if rescue.parts.is_empty() {
            kept.placing.clear();
            return match failures.is_empty() {
                // What differs is all left out: it is told, and there is no commit.
                true if left_out.is_empty() => Ok(Outcome::Clean),
                true => Err(RescueError::Refused(left_out.join("; "))),
                false => Err(RescueError::Refused(failures.join("; "))),
            };
        }
        rescue.left_out = failures.into_iter().chain(left_out).take(MOST_TOLD).collect();
        let before = kept.packs();
        kept.rescues.push(rescue.clone());
        kept.trim();
        kept.placing.clear();
        (kept.clean, kept.failed) = (None, None);
        let _lock = ref_lock(self.store, self.sandbox)?;
        kept.name.clone_from(&self.sandbox.record.name);
        stop("rescue.record", &repo)?;
        kept.save(&repo)?;
        stop("rescue.refs", &repo)?;
        kept.set_refs(self.git, &repo)?;
        stop("rescue.trim", &repo)?;
        let needed = kept.packs();
        remove_packs(&repo, before.into_iter().filter(|pack| !needed.contains(pack)).collect())?;
        Ok(Outcome::Made(rescue))
    }

    fn scratch(&self, number: usize) -> String {
        format!("{}-{number}", self.scratch)
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Has the commit of one repository made, inside. What is wrong is said in words.
    fn ask(
        &mut self,
        number: usize,
        view: &ViewRecord,
        snapshot: &Snapshot,
    ) -> std::result::Result<RescueAnswer, String> {
        if view.object_format != snapshot.git.object_format {
            return Err("its object format is not that of the main repository".into());
        }
        let left = self.left();
        if left.is_zero() {
            return Err("there was no time left".into());
        }
        let nested = snapshot.git.views.iter().filter(|other| other.path != view.path);
        let nested = nested.filter_map(|other| other.path.strip_prefix(&view.path).ok());
        let work_tree = self.sandbox.mount().worktree.join(&view.path);
        let question = RescueQuestion {
            gitdir: escape_bytes(view.inside_gitdir.as_os_str().as_bytes()),
            work_tree: escape_bytes(work_tree.as_os_str().as_bytes()),
            scratch: self.scratch(number),
            remove: false,
            nested: nested.map(|path| escape_bytes(path.as_os_str().as_bytes())).collect(),
            seconds: left.as_secs().max(1),
            file_bytes: FILE.min(self.bytes),
            total_bytes: self.bytes,
        };
        let cwd = if work_tree.starts_with("/") { question.work_tree.clone() } else { "/".into() };
        match self.run(&question, cwd, left + Duration::from_secs(1)) {
            Ok((ExitStatus::Code(0), out, _)) => {
                serde_json::from_slice(&out).map_err(|error| format!("its answer is not readable: {error}"))
            }
            Ok((status, _, err)) => {
                let text = String::from_utf8_lossy(&err);
                let line = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
                let line: String = printable(line.as_bytes()).chars().take(300).collect();
                Err(if line.is_empty() { format!("status {}", status.shell()) } else { line })
            }
            // A work tree that is not there has no files.
            Err(ConnectionError::Refused(failure)) if failure.kind == sandbox_protocol::FailureKind::NoDirectory => {
                Ok(RescueAnswer::default())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn run(
        &mut self,
        question: &RescueQuestion,
        cwd: String,
        time: Duration,
    ) -> std::result::Result<(ExitStatus, Vec<u8>, Vec<u8>), ConnectionError> {
        let input = serde_json::to_vec(question).unwrap_or_default();
        let argv = vec![format!("{INSIDE}/bin/git-sandbox"), RESCUE_VERB.into()];
        let exec = Exec { argv, cwd, internal: true, ..Exec::default() };
        self.connection.run_within(exec, &input, MAX_ANSWER, time)
    }

    /// Receives one commit and puts it into the vault.
    fn receive(&mut self, wanted: &Wanted<'_>, kept: &mut Kept, rescue: &mut Rescue) -> Result<Part> {
        let repo = self.store.repo(&self.sandbox.mount().repo);
        let view = View::open(&repo, &wanted.view.key).map_err(CommitBackError::from)?;
        let view = view.ok_or_else(|| CommitBackError::NoView { key: wanted.view.key.clone() })?;
        let dir = landing_dir(self.sandbox, wanted.number);
        make_dir(dir.parent().unwrap_or(&dir))?;
        // The landing is that of commits, which it has already.
        let _lock = bring_lock(self.sandbox)?;
        let bounds = Bounds { time: self.left().max(Duration::from_secs(2)), ..Bounds::default() };
        let landing = Landing::create(self.git, &dir, &view, bounds)?;
        let before = landing.packs();
        let tips = BTreeSet::from([wanted.commit]);
        let name = RefName::parse(format!("refs/{}/rescue", self.sandbox.name())).expect("a name is valid in refs");
        let gitdir = format!("{}/repo.git", self.scratch(wanted.number));
        let landed = receive(self.connection, &landing, &gitdir, &[Want { name, oid: wanted.commit }])?;
        if let Some((_, reason)) = landed.refused.first() {
            return Err(RescueError::Refused(format!("refused: {reason}")));
        }
        let mut packs = Vec::new();
        landing.move_to_vault(&repo.vault(), &tips, |named| -> Result<()> {
            packs = named.iter().map(|(name, _)| name.clone()).collect();
            rescue.bytes += named.iter().map(|(_, bytes)| bytes).sum::<u64>();
            kept.placing.extend(packs.iter().cloned());
            stop("rescue.place", &repo)?;
            Ok(kept.save(&repo)?)
        })?;
        landing.forget(&tips, &before);
        Ok(Part {
            path: wanted.view.path.as_os_str().as_bytes().to_vec(),
            view: wanted.view.key.clone(),
            commit: wanted.commit.to_string(),
            trees: wanted.answer.trees.clone(),
            packs,
        })
    }

    /// What is left in `/tmp` inside goes at the next start at the latest.
    fn clean_up(&mut self) {
        let Ok(snapshot) = self.sandbox.snapshot(self.store) else { return };
        for number in 0..snapshot.git.views.len() {
            let question = RescueQuestion { scratch: self.scratch(number), remove: true, ..RescueQuestion::default() };
            let _ = self.run(&question, "/".into(), Duration::from_secs(5));
        }
    }
}

fn stop(name: &'static str, repo: &RepoDir) -> std::result::Result<(), StoreError> {
    fault::point(name).map_err(StoreError::io("write", repo.vault()))
}

fn named(view: &ViewRecord, what: &str) -> String {
    match view.path.as_os_str().as_bytes() {
        b"" => what.to_owned(),
        path => format!("{}: {what}", printable(path)),
    }
}
