//! Applies a plan: the clone appears whole at its place, or nothing does.

use super::endpoint::Endpoint;
use super::front::{Front, Fronted};
use super::plan::{Asked, Mirror, Plan, Step, Way, plan};
use super::probe::{Asker, Why, ensure, offer, probe};
use super::settings::{Setting, identity, variables};
use crate::name::Upstream;
use sandbox_git::{Git, GitCommand, GitError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the mirror may look for a commit that is required.
const ENSURE: Duration = Duration::from_secs(60);

/// Where a mirror is, and as whom it is asked.
#[derive(Clone, Debug)]
pub struct At {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The token of a session.
    pub bearer: Option<String>,
    /// The root of its store, if that is on this machine.
    pub store: Option<PathBuf>,
    /// How long it may take to say that it is healthy.
    pub patience: Duration,
}

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// There is something at its place.
    #[error("'{path}' exists already and is not an empty directory", path = path.display())]
    Exists {
        /// Its place.
        path: PathBuf,
    },
    /// The mirror cannot be used, and nothing else was to be tried.
    #[error("cannot clone '{url}' from the mirror")]
    Mirror {
        /// The upstream.
        url: String,
        /// Why.
        source: Unusable,
    },
    /// Git refused.
    #[error("cannot clone '{url}'")]
    Git {
        /// The upstream.
        url: String,
        /// What it said.
        source: GitError,
    },
    /// The commit that was required is not to be had.
    #[error("'{url}' has no commit '{commit}'")]
    Missing {
        /// The upstream.
        url: String,
        /// The commit.
        commit: String,
    },
    /// Somebody wanted an end of it.
    #[error("interrupted: nothing was cloned")]
    Interrupted,
    /// A file or directory.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `create`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a mirror is of no use here.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It says so, or nothing.
    #[error("{0}")]
    Why(Why),
    /// Git tried, and this came of it.
    #[error(transparent)]
    Tried(Box<CloneError>),
}

type Result<T> = std::result::Result<T, CloneError>;

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CloneError {
    let path = path.to_owned();
    move |source| CloneError::Io { action, path, source }
}

/// What became of it.
#[derive(Debug)]
pub struct Cloned {
    /// The plan that was applied.
    pub plan: Plan,
    /// The mirror was tried, and this is why it was left.
    pub left: Option<CloneError>,
}

/// What `at` has of the repository that is asked for, as git can reach it. The front, where there is one, lives as
/// long as it is kept.
pub fn find(at: &At, asked: &Asked) -> std::result::Result<(Mirror, Option<Fronted>), Why> {
    let upstream = Upstream::parse(&asked.url).map_err(|_| Why::Unnamed)?;
    let name = upstream.name();
    probe(&at.endpoint, at.patience)?;
    let asker = Asker { endpoint: &at.endpoint, bearer: at.bearer.as_deref(), store: at.store.as_deref() };
    if let Some(commit) = &asked.require {
        ensure(&asker, name, &[commit], ENSURE)?;
    }
    let offer = offer(&asker, name)?;
    let suffix = name.url_path();
    Ok(match at.endpoint.url() {
        Some(base) => {
            let identity = at.bearer.iter().map(|bearer| identity(&format!("{base}/"), bearer)).collect();
            (Mirror { url: format!("{base}/{suffix}"), offer, identity, lasting: true }, None)
        }
        // Git speaks HTTP over TCP only: a listener of ours leads to the socket, for as long as this takes.
        None => {
            let front = Front::own(at.endpoint.clone(), at.bearer.clone())?;
            let base = front.url();
            let identity = vec![front.secret(&base)];
            (Mirror { url: format!("{base}/{suffix}"), offer, identity, lasting: false }, Some(front))
        }
    })
}

/// Clones what is asked into `dir`: from the mirror if there is one that has it, else (unless `only_mirror`) from the
/// upstream. `stop` asks for an end.
pub fn clone(
    git: &Git,
    at: Option<&At>,
    asked: &Asked,
    dir: &Path,
    only_mirror: bool,
    stop: &AtomicBool,
) -> Result<Cloned> {
    free(dir)?;
    let found = at.ok_or(Why::None).and_then(|at| find(at, asked));
    let mut left = None;
    let why = match found {
        Ok((mirror, front)) => {
            let plan = plan(asked, Ok(&mirror));
            let applied = apply(git, asked, &plan, dir, stop);
            drop(front);
            match applied {
                Ok(()) => return Ok(Cloned { plan, left: None }),
                Err(error @ (CloneError::Interrupted | CloneError::Exists { .. } | CloneError::Io { .. })) => {
                    return Err(error);
                }
                Err(error) if only_mirror => {
                    let source = Unusable::Tried(Box::new(error));
                    return Err(CloneError::Mirror { url: asked.url.clone(), source });
                }
                Err(error) => {
                    left = Some(error);
                    Why::Unreachable("it could not be cloned from".to_owned())
                }
            }
        }
        Err(why) if only_mirror => {
            return Err(CloneError::Mirror { url: asked.url.clone(), source: Unusable::Why(why) });
        }
        Err(why) => why,
    };
    let plan = plan(asked, Err(why));
    apply(git, asked, &plan, dir, stop)?;
    Ok(Cloned { plan, left })
}

/// Nothing, or an empty directory, is at the place.
fn free(dir: &Path) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.symlink_metadata().is_err() => Ok(()),
        _ => Err(CloneError::Exists { path: dir.to_owned() }),
    }
}

/// Makes the clone beside its place, and gives it its name when it is whole.
fn apply(git: &Git, asked: &Asked, plan: &Plan, dir: &Path, stop: &AtomicBool) -> Result<()> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed("create", parent))?;
    // Taken away on every way out but the last.
    let temp = tempfile::Builder::new().prefix(".git-sandbox-clone.").tempdir_in(parent);
    let temp = temp.map_err(failed("create a directory in", parent))?;
    let name = dir.file_name().unwrap_or_else(|| "clone".as_ref());
    let place = temp.path().join(name);
    let run = Run { git, plan, asked, place: &place };
    for step in &plan.steps {
        let done = run.step(step);
        if stop.load(Ordering::SeqCst) {
            return Err(CloneError::Interrupted);
        }
        done?;
    }
    fs::rename(&place, dir).map_err(|error| match error.raw_os_error() {
        Some(17 | 39) => CloneError::Exists { path: dir.to_owned() },
        _ => failed("create", dir)(error),
    })
}

/// A git command in `dir` with these settings, that speaks with a mirror, or else with an upstream as the user would.
pub fn command(git: &Git, dir: &Path, settings: &[Setting], mirror: bool) -> GitCommand {
    let have = git.env().discovery_var("GIT_CONFIG_COUNT").and_then(|count| count.to_str()?.parse().ok());
    let mut all = settings.to_vec();
    if mirror {
        // A mirror asks for nothing that the user knows.
        all.push(Setting::new("credential.helper", ""));
        all.push(Setting::new("core.askPass", "true"));
    }
    let variables = variables(have.unwrap_or(0), &all);
    let command = variables.into_iter().fold(git.remote(dir), |command, (name, value)| command.env(name, value));
    if mirror { command.env("GIT_TERMINAL_PROMPT", "0") } else { command }
}

struct Run<'a> {
    git: &'a Git,
    plan: &'a Plan,
    asked: &'a Asked,
    place: &'a Path,
}

impl Run<'_> {
    fn git(&self, dir: &Path) -> GitCommand {
        command(self.git, dir, &self.plan.settings, !matches!(self.plan.way, Way::Upstream(_)))
    }

    fn failed(&self, source: GitError) -> CloneError {
        CloneError::Git { url: self.asked.url.clone(), source }
    }

    fn step(&self, step: &Step) -> Result<()> {
        let parent = self.place.parent().unwrap_or(Path::new("/"));
        match step {
            Step::Clone(args) => {
                let command = self.git(parent).args(args).arg(self.place);
                let said = if self.asked.quiet { command.run() } else { command.shown() };
                said.map_err(|source| self.failed(source))
            }
            Step::Borrow(store) => self.borrow(store),
            Step::Git(args) => self.git(self.place).args(args).run().map_err(|source| self.failed(source)),
            Step::Keep(Setting { key, value }) => {
                self.git(self.place).args(["config", key, value]).run().map_err(|source| self.failed(source))
            }
            Step::CheckOut(branch) => self.check_out(branch.as_deref()),
            Step::Have(commit) => self.have(commit),
        }
    }

    /// Makes a repository over the objects of a store, with its branches as those of `origin`, and its tags.
    fn borrow(&self, store: &Path) -> Result<()> {
        let fault = |source| self.failed(source);
        let hermetic = |args: &[&str]| self.git.host(store).args(args);
        let format = hermetic(&["rev-parse", "--show-object-format"]).line().map_err(fault)?;
        let head = hermetic(&["symbolic-ref", "HEAD"]).line().map_err(fault)?;
        let listing = hermetic(&["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"]);
        let listing = listing.output().map_err(fault)?.stdout;
        let init = self.git(Path::new("/")).args(["init", "--quiet", "--template="]);
        let init = init.arg(format!("--object-format={}", format.trim()));
        init.arg(self.place).run().map_err(fault)?;
        let objects = store.join("objects");
        let dot_git = self.place.join(".git");
        let mut alternates = objects.as_os_str().as_encoded_bytes().to_vec();
        alternates.push(b'\n');
        let path = dot_git.join("objects/info/alternates");
        let dir = dot_git.join("objects/info");
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        fs::write(&path, alternates).map_err(failed("write", &path))?;
        // By one process: the order and form of the file are git's.
        let mut updates = Vec::new();
        for line in listing.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let Some(at) = line.iter().position(|b| *b == b' ') else { continue };
            let (oid, name) = (&line[..at], &line[at + 1..]);
            updates.extend_from_slice(b"create ");
            match name.strip_prefix(b"refs/heads/") {
                Some(branch) => {
                    updates.extend_from_slice(b"refs/remotes/origin/");
                    updates.extend_from_slice(branch);
                }
                None => updates.extend_from_slice(name),
            }
            updates.push(b' ');
            updates.extend_from_slice(oid);
            updates.push(b'\n');
        }
        self.git(self.place).args(["update-ref", "--stdin"]).stdin(updates).run().map_err(fault)?;
        if let Some(branch) = head.trim().strip_prefix("refs/heads/") {
            let target = format!("refs/remotes/origin/{branch}");
            let link = self.git(self.place).args(["symbolic-ref", "refs/remotes/origin/HEAD", &target]);
            link.run().map_err(fault)?;
        }
        Ok(())
    }

    /// Checks out a branch that follows the one of `origin`, or a tag.
    fn check_out(&self, branch: Option<&str>) -> Result<()> {
        let fault = |source| self.failed(source);
        let default = || {
            let head = self.git(self.place).args(["symbolic-ref", "--short", "refs/remotes/origin/HEAD"]).line()?;
            Ok(head.trim().strip_prefix("origin/").unwrap_or("main").to_owned())
        };
        let branch = branch.map_or_else(default, |branch| Ok(branch.to_owned())).map_err(fault)?;
        let remote = format!("refs/remotes/origin/{branch}");
        let exists = self.git(self.place).args(["rev-parse", "--quiet", "--verify", &format!("{remote}^{{commit}}")]);
        let (status, _) = exists.try_output().map_err(fault)?;
        let args = match status.success() {
            true => vec!["checkout".into(), "--quiet".into(), "-B".into(), branch, "--track".into(), remote],
            false => vec!["checkout".into(), "--quiet".into(), "--detach".into(), format!("refs/tags/{branch}")],
        };
        self.git(self.place).args(args).run().map_err(fault)
    }

    /// Has a commit, if need be by asking for it by its id.
    fn have(&self, commit: &str) -> Result<()> {
        let name = format!("{commit}^{{commit}}");
        let there = || {
            // Asked without lazy fetching: a partial clone would fetch what it is asked about.
            let look = self.git(self.place).env("GIT_NO_LAZY_FETCH", "1").args(["cat-file", "-e", &name]).try_output();
            look.map(|(status, _)| status.success()).map_err(|source| self.failed(source))
        };
        if there()? {
            return Ok(());
        }
        let mut args = vec!["fetch", "--quiet", "--no-tags"];
        if self.place.join(".git/shallow").exists() {
            args.push("--depth=1");
        }
        args.extend(["origin", commit]);
        // A server that does not have it says so in many ways.
        let _ = self.git(self.place).args(args).try_output().map_err(|source| self.failed(source))?;
        match there()? {
            true => Ok(()),
            false => Err(CloneError::Missing { url: self.asked.url.clone(), commit: commit.to_owned() }),
        }
    }
}
