//! What sessions push: `refs/agents/<session>` and below, without a credential, and nothing else.
//!
//! ```text
//! mirrors/<stem>.git ◄── objects/info/alternates ── scratch/<stem>/<session>.git
//!                                                     refs/agents/<session>…   the only data that
//!                                                                              cannot be made again
//!                                                     refs/base/<oid>          what the session began
//!                                                                              from: a shallow push is
//!                                                                              taken only over these
//!                                                     base                     the same as lines, told as
//!                                                                              `.have` and as known objects
//! ```
//!
//! With [`Isolation::Session`] nobody else can get at a session's objects: they are in a repository of
//! their own (X4). With [`Isolation::Repo`] they are in the mirror, for all its readers.
//! Nothing that was pushed is ever executed: hooks are off for every command (X5).

mod commands;
pub mod held;
mod own;
mod report;

pub use commands::{Command, Commands, PREFIX, Plan};
pub use own::{Own, behind, lacks};
pub use report::{REPORT, nothing, report};

use crate::identity::{Identity, Session, SessionId};
use crate::layout::Layout;
use crate::name::RepoName;
use crate::repo::{MirrorRepo, RepoError};
use crate::serve::relay::Source;
use crate::serve::smart::{Ask, Refusal};
use sandbox_git::refs::{Head, parse_head};
use sandbox_git::{Git, GitCommand, Oid};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Ends of a shallow history that are looked at in one push.
const SHALLOW: usize = 256;

/// Who can read what a session pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The session, and the administrator.
    Session,
    /// Whoever may read the repository.
    Repo,
}

/// What sessions may push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether they may at all.
    pub enabled: bool,
    /// Who can read it.
    pub isolation: Isolation,
    /// Bytes of one push.
    pub max_push: u64,
    /// Bytes of all that one session has pushed to one repository (with [`Isolation::Session`]).
    pub quota: u64,
    /// Bytes that must be free on the disk for another push to be taken.
    pub min_free: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let (enabled, isolation) = (true, Isolation::Session);
        Self { enabled, isolation, max_push: 256 << 20, quota: 1 << 30, min_free: 0 }
    }
}

/// Where sessions push to.
#[derive(Clone, Debug)]
pub struct Scratch {
    settings: Settings,
    layout: Layout,
    git: Git,
}

/// The repository that one push goes to.
#[derive(Clone, Debug)]
pub struct Target {
    dir: PathBuf,
    session: SessionId,
    /// The mirror below, if this is not it.
    mirror: Option<PathBuf>,
    max_push: u64,
}

impl Target {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn base_file(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// `git receive-pack` that could not write anything but the session's own refs if it wanted to.
    pub fn receive_pack(&self, git: &Git) -> GitCommand {
        let mut command = MirrorRepo::at(&self.dir)
            .serving(git)
            .config("receive.hideRefs=refs")
            .config(format!("receive.hideRefs=!{PREFIX}{}", self.session))
            .config(format!("receive.maxInputSize={}", self.max_push));
        if self.mirror.is_some() {
            // The path of the alternate that git adds is of no use to it.
            let file = self.base_file().display().to_string().replace('\'', "'\\''");
            command = command.config(format!("core.alternateRefsCommand=cat '{file}' #"));
        }
        command.args(["receive-pack", "--stateless-rpc"])
    }
}

impl From<RepoError> for Refusal {
    fn from(error: RepoError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Scratch {
    /// Below this store.
    pub fn new(settings: Settings, layout: Layout, git: Git) -> Self {
        Self { settings, layout, git }
    }

    /// Whether what was pushed is shown to readers of the mirror.
    pub fn shows_in_mirror(&self) -> bool {
        self.settings.enabled && self.settings.isolation == Isolation::Repo
    }

    /// The most that a push may bring, with what precedes its pack.
    pub fn most(&self) -> u64 {
        self.settings.max_push.saturating_add(16 << 20)
    }

    /// The repository that who asks may push to, made if it is not there; `None` if there is none: it is
    /// no session, or the repository was not granted to it.
    pub async fn target(&self, ask: &Ask) -> Result<Option<Target>, Refusal> {
        let Identity::Session(session) = &ask.asked.who else { return Ok(None) };
        let Some(granted) = session.repos.get(&ask.entry.name) else { return Ok(None) };
        if !self.settings.enabled {
            return Ok(None);
        }
        let (scratch, session, entry) = (self.clone(), Session::clone(session), ask.entry.clone());
        let granted = *granted;
        let made = tokio::task::spawn_blocking(move || {
            let max_push = scratch.settings.max_push;
            if scratch.settings.isolation == Isolation::Repo {
                return Ok(Target { dir: entry.dir.clone(), session: session.id, mirror: None, max_push });
            }
            let dir = scratch.layout.scratch(&entry.name, &session.id);
            let target = Target { dir, session: session.id, mirror: Some(entry.dir.clone()), max_push };
            if !target.dir.join("HEAD").exists() {
                scratch.create(&target, &entry.name, &entry.dir, entry.format)?;
            }
            let mut base: BTreeSet<Oid> = head_tip(&entry.dir).into_iter().collect();
            base.extend(granted);
            scratch.add_base(&target, base)?;
            Ok::<_, RepoError>(target)
        });
        let made = made.await.map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(Some(made?))
    }

    /// Makes a session's repository beside its place, and moves it there.
    fn create(
        &self,
        target: &Target,
        name: &RepoName,
        mirror: &Path,
        format: sandbox_git::ObjectFormat,
    ) -> Result<(), RepoError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| RepoError::Write { path, source }
        };
        let parent = self.layout.scratch_dir(name);
        std::fs::create_dir_all(&parent).map_err(write(&parent))?;
        let tmp = self.layout.tmp();
        let beside = tempfile::Builder::new().prefix("scratch-").tempdir_in(&tmp).map_err(write(&tmp))?;
        let made = beside.path().join("repo.git");
        MirrorRepo::create_plain(&self.git, &made, format)?;
        let alternates = made.join("objects/info/alternates");
        let line = format!("{}\n", mirror.join("objects").display());
        std::fs::create_dir_all(made.join("objects/info")).map_err(write(&made))?;
        std::fs::write(&alternates, line).map_err(write(&alternates))?;
        std::fs::write(made.join("base"), "").map_err(write(&made))?;
        match std::fs::rename(&made, &target.dir) {
            // Another push of the same session was first.
            Err(_) if target.dir.join("HEAD").exists() => Ok(()),
            done => done.map_err(write(&target.dir)),
        }
    }

    /// Adds commits of the mirror to what the session is known to have.
    fn add_base(&self, target: &Target, oids: BTreeSet<Oid>) -> Result<(), RepoError> {
        let Some(mirror) = &target.mirror else { return Ok(()) };
        let path = target.base_file();
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        let new: Vec<Oid> = oids.into_iter().filter(|oid| !known.lines().any(|line| line == oid.to_string())).collect();
        if new.is_empty() {
            return Ok(());
        }
        let input: String = new.iter().map(|oid| format!("{oid}\n")).collect();
        let asked = ["cat-file", "--batch-check=%(objectname) %(objecttype)"];
        let there = MirrorRepo::at(mirror).git(&self.git).args(asked).stdin(input).output()?;
        let there = String::from_utf8_lossy(&there.stdout);
        let commits = there.lines().filter_map(|line| line.strip_suffix(" commit"));
        let add = |oid: &str| -> io::Result<()> {
            let refs = target.dir.join("refs/base");
            std::fs::create_dir_all(&refs)?;
            // A file below `refs` is a ref as soon as it is there: it appears whole.
            let mut file = tempfile::NamedTempFile::new_in(&target.dir)?;
            writeln!(file, "{oid}")?;
            file.persist(refs.join(oid))?;
            let mut lines = std::fs::OpenOptions::new().append(true).open(&path)?;
            lines.write_all(format!("{oid}\n").as_bytes())
        };
        commits.into_iter().try_for_each(add).map_err(|source| RepoError::Write { path: path.clone(), source })
    }

    /// Makes the ends of the client's history reachable here, where the mirror has them: otherwise git
    /// refuses a push from a shallow clone.
    pub async fn borrow_shallow(&self, target: &Target, commands: &Commands) -> Result<(), Refusal> {
        if commands.shallow.is_empty() || target.mirror.is_none() {
            return Ok(());
        }
        let (scratch, target) = (self.clone(), target.clone());
        let ends = commands.shallow.iter().take(SHALLOW).copied().collect();
        let added = tokio::task::spawn_blocking(move || scratch.add_base(&target, ends));
        added.await.map_err(|error| Refusal::Failed(error.to_string()))?.map_err(Refusal::from)
    }

    /// Refuses what brings something when the disk is nearly full, or the session has used up its room.
    pub fn within_quota(&self, target: &Target, commands: &Commands, plan: &mut Plan) -> io::Result<()> {
        let free = rustix::fs::statvfs(&target.dir).map(|stat| stat.f_bavail * stat.f_frsize);
        if free.is_ok_and(|free| free < self.settings.min_free) {
            plan.refuse_writes(commands, "the mirror's disk is nearly full: try again later");
        } else if target.mirror.is_some() && used(&target.dir)? >= self.settings.quota {
            let room = self.settings.quota;
            let own = format!("{PREFIX}{}", target.session);
            plan.refuse_writes(commands, &format!("the {room} bytes for {own} are used up: delete refs below it"));
        }
        Ok(())
    }
}

/// When something was last pushed to a session's repository: its packs and refs are made then.
fn last_push(dir: &Path) -> io::Result<SystemTime> {
    let mut last = std::fs::metadata(dir)?.modified()?;
    for part in ["objects/pack", "refs/agents"] {
        let mut todo = vec![dir.join(part)];
        while let Some(path) = todo.pop() {
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            last = last.max(meta.modified()?);
            if meta.is_dir() {
                todo.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            }
        }
    }
    Ok(last)
}

/// Bytes of the objects of a repository, without those that it borrows.
pub fn used(dir: &Path) -> io::Result<u64> {
    let (mut sum, mut todo) = (0, vec![dir.join("objects")]);
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            // What git removes meanwhile is not counted.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                todo.push(entry.path());
            } else {
                sum += meta.len();
            }
        }
    }
    Ok(sum)
}

/// The commit that a repository's `HEAD` leads to, read from its files.
fn head_tip(dir: &Path) -> Option<Oid> {
    let name = match parse_head(&std::fs::read(dir.join("HEAD")).ok()?)? {
        Head::Detached(oid) => return Some(oid),
        Head::Branch(name) => name,
    };
    let name = name.to_str()?.to_owned();
    if let Ok(loose) = std::fs::read(dir.join(&name)) {
        return Oid::parse(loose.trim_ascii_end());
    }
    let packed = std::fs::read(dir.join("packed-refs")).ok()?;
    let line = packed.split(|byte| *byte == b'\n').find(|line| {
        line.strip_suffix(name.as_bytes()).is_some_and(|rest| rest.ends_with(b" ") && !rest.starts_with(b"#"))
    })?;
    Oid::parse(line.split(|byte| *byte == b' ').next()?)
}

/// Reads a push that was refused to its end, so that its sender reads why; false when it is gone.
pub async fn drain(source: &mut Source) -> bool {
    loop {
        match source.next().await {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
