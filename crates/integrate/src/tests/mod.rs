//! Whole merges on real repositories.
//!
//! A [`World`] has a host repository, and a sandbox that is a plain copy of it, made by `spawn`.

mod agent;
mod conversion;
mod edits;
mod faults;
mod histories;
mod host;
mod model;
mod shapes;
mod together;

use crate::{
    Captured, How, Identity, Layers, MergeError, MergePlan, MergeRequest, Merged, Repo, RepoPath, UNDECIDED, apply,
    plan,
};
use sandbox_git::{Git, HostEnv, Oid};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use tempfile::TempDir;

pub(crate) struct World {
    dir: TempDir,
    pub host: PathBuf,
    pub inside: PathBuf,
    pub base: Option<Oid>,
    /// The sandbox was spawned with `--clean`: what was captured is the commit.
    pub clean: bool,
    /// The caller does not know what is left uncommitted inside.
    pub blind: bool,
    undos: std::cell::Cell<u32>,
    /// A plan is applied by the repository that it was made in: its objects are there.
    repo: std::cell::OnceCell<Rc<Repo>>,
}

pub(crate) const NAME: &str = "fix";

impl World {
    /// A host with these files committed.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let world = Self::unborn();
        for (path, content) in files {
            world.write(path, content);
        }
        world.git(&["add", "-A"]);
        world.git(&["commit", "-qm", "base"]);
        world
    }

    pub fn unborn() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (host, inside) = (dir.path().join("host"), dir.path().join("inside"));
        fs::create_dir(dir.path().join("scratch")).unwrap();
        fs::create_dir(&host).unwrap();
        fs::write(
            dir.path().join("gitconfig"),
            "[user]\nname = U\nemail = u@example.com\n[init]\ndefaultBranch = main\n[gc]\nauto = 0\n[core]\nfsync = none\n",
        )
        .unwrap();
        let undos = std::cell::Cell::new(0);
        let world = Self { dir, host, inside, base: None, clean: false, blind: false, undos, repo: Default::default() };
        world.git(&["init", "-q"]);
        world
    }

    fn command(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir(dir).args(args);
        command.env("HOME", self.dir.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_CONFIG_GLOBAL", self.dir.path().join("gitconfig"));
        command.env("GIT_AUTHOR_DATE", "@1000000000 +0000").env("GIT_COMMITTER_DATE", "@1000000000 +0000");
        command
    }

    fn run(&self, dir: &Path, args: &[&str]) -> String {
        let output = self.command(dir, args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "git {args:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs git on the host.
    pub fn git(&self, args: &[&str]) -> String {
        self.run(&self.host, args)
    }

    /// Runs git on the host and returns whether it succeeded.
    pub fn try_git(&self, args: &[&str]) -> bool {
        self.command(&self.host, args).output().unwrap().status.success()
    }

    /// Runs git in the sandbox.
    pub fn agent(&self, args: &[&str]) -> String {
        self.run(&self.inside, args)
    }

    /// Runs git in the sandbox and returns whether it succeeded.
    pub fn try_agent(&self, args: &[&str]) -> bool {
        self.command(&self.inside, args).output().unwrap().status.success()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        put(&self.host.join(path), content.as_ref());
    }

    pub fn agent_write(&self, path: &str, content: impl AsRef<[u8]>) {
        put(&self.inside.join(path), content.as_ref());
    }

    pub fn remove(&self, path: &str) {
        fs::remove_file(self.host.join(path)).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.host.join(path)).unwrap()).into_owned()
    }

    pub fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.host.join(path)).is_ok()
    }

    pub fn chmod(path: PathBuf, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Captures the host as it is and makes the sandbox.
    pub fn spawn(&mut self) {
        for to in [&self.inside, &self.dir.path().join("captured")] {
            assert!(Command::new("cp").arg("-a").arg(&self.host).arg(to).status().unwrap().success());
        }
        let head = self.command(&self.host, &["rev-parse", "-q", "--verify", "HEAD"]).output().unwrap();
        self.base = Oid::parse(String::from_utf8_lossy(&head.stdout).trim());
    }

    /// A world that another process left.
    pub fn at(dir: &Path) -> Self {
        let new = Self::unborn();
        fs::remove_dir_all(&new.host).unwrap();
        for name in ["host", "inside"] {
            fs::rename(dir.join(name), new.dir.path().join(name)).unwrap();
        }
        new
    }

    /// The same once more, in place of the former sandbox.
    pub fn spawn_again(&mut self) {
        for old in [&self.inside, &self.dir.path().join("captured")] {
            fs::remove_dir_all(old).unwrap();
        }
        self.spawn();
    }

    /// What commit-back does.
    pub fn land(&self) -> Oid {
        let from = self.inside.to_str().unwrap();
        self.git(&["fetch", "-q", "--no-tags", from, &format!("+HEAD:refs/sandbox/{NAME}")]);
        if !self.agent(&["for-each-ref", "refs/stash"]).is_empty() {
            self.git(&["fetch", "-q", "--no-tags", from, &format!("+refs/stash:refs/sandbox-meta/{NAME}/stash/0")]);
        }
        Oid::parse(self.git(&["rev-parse", &format!("refs/sandbox/{NAME}")]).trim()).unwrap()
    }

    /// What `git status` names inside.
    pub fn left_inside(&self) -> BTreeSet<RepoPath> {
        let status = self.agent(&["status", "--porcelain", "-z", "--no-renames", "-uall"]);
        status.split('\0').filter(|r| !r.is_empty()).map(|r| RepoPath::parse(&r.as_bytes()[3..]).unwrap()).collect()
    }

    pub fn sandbox_git(&self) -> Git {
        let vars = [
            ("PATH".into(), std::env::var_os("PATH").unwrap()),
            ("HOME".into(), self.dir.path().into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_GLOBAL".into(), self.dir.path().join("gitconfig").into()),
        ];
        Git::new(HostEnv::from_vars(vars)).unwrap()
    }

    pub fn repo(&self) -> Rc<Repo> {
        let open = || {
            let gitdir = self.git(&["rev-parse", "--absolute-git-dir"]);
            let scratch = self.dir.path().join("scratch");
            Rc::new(Repo::open(&self.sandbox_git(), &self.host, Path::new(gitdir.trim()), &scratch).unwrap())
        };
        self.repo.get_or_init(open).clone()
    }

    pub fn layers(&self) -> Layers {
        Layers::new([self.dir.path().join("captured")])
    }

    /// An empty place for the former state.
    pub fn undo_dir(&self) -> PathBuf {
        self.undos.set(self.undos.get() + 1);
        self.dir.path().join(format!("undo{}", self.undos.get()))
    }

    pub fn plan(&self, how: How) -> Result<MergePlan, MergeError> {
        let tip = self.land();
        let layers = self.layers();
        let captured: &dyn Captured = &layers;
        let left = self.left_inside();
        let index = self.dir.path().join("captured/.git/index");
        let request = MergeRequest {
            name: NAME,
            base: self.base,
            tip,
            captured: (!self.clean).then_some(captured),
            captured_index: Some(&index),
            left_inside: (!self.blind).then_some(&left),
            how,
            choices: &UNDECIDED,
            message: None,
            identity: &identity(),
        };
        plan(&self.repo(), &request)
    }

    pub fn merge(&self, how: How) -> Result<Merged, MergeError> {
        let plan = self.plan(how)?;
        apply(&self.repo(), &plan, &self.undo_dir())
    }

    /// A plan of what has landed, running no other git before: for tests in which git itself would run
    /// filters.
    pub fn plan_of(&self, tip: Oid) -> Result<(Repo, MergePlan), MergeError> {
        let scratch = self.dir.path().join("scratch");
        let repo = Repo::open(&self.sandbox_git(), &self.host, &self.host.join(".git"), &scratch)?;
        let (layers, identity) = (self.layers(), identity());
        let request = MergeRequest {
            name: NAME,
            base: self.base,
            tip,
            captured: Some(&layers),
            captured_index: None,
            left_inside: None,
            how: How::FastForward,
            choices: &UNDECIDED,
            message: None,
            identity: &identity,
        };
        let plan = plan(&repo, &request)?;
        Ok((repo, plan))
    }

    /// Plans and applies what has landed, as [`World::plan_of`].
    pub fn apply_quietly(&self, tip: Oid) -> Result<(MergePlan, Merged), MergeError> {
        let (repo, plan) = self.plan_of(tip)?;
        let merged = apply(&repo, &plan, &self.undo_dir())?;
        Ok((plan, merged))
    }

    /// Merges, expecting success; returns `git status`.
    pub fn merged(&self) -> String {
        self.merge(How::FastForward).unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.status()
    }

    /// Merges, expecting a refusal that writes nothing; returns its text.
    pub fn refused(&self) -> String {
        self.refused_as(How::FastForward)
    }

    pub fn refused_as(&self, how: How) -> String {
        self.land();
        let before = self.everything();
        let error = self.merge(how).expect_err("the merge should have been refused");
        assert_eq!(before, self.everything(), "a refusal wrote something");
        chain(&error)
    }

    pub fn status(&self) -> String {
        self.git(&["status", "--porcelain", "-uall", "--no-renames"])
    }

    /// All that must not change by a refusal: files with their modes and times, index, HEAD, refs.
    pub fn everything(&self) -> String {
        let mut out = String::new();
        list(&self.host, &self.host, &mut out);
        out += &crate::index::hex(&fs::read(self.host.join(".git/index")).unwrap_or_default());
        out += &self.git(&["for-each-ref"]);
        out + &fs::read_to_string(self.host.join(".git/HEAD")).unwrap_or_default()
    }
}

pub(crate) fn identity() -> Identity {
    Identity { name: "U".into(), email: "u@example.com".into(), date: Some("@1000000000 +0000".into()) }
}

fn put(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn list(top: &Path, dir: &Path, out: &mut String) {
    use std::os::unix::fs::MetadataExt;
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.strip_prefix(top).unwrap();
        if name.starts_with(".git") && name.file_name().unwrap() == ".git" {
            continue;
        }
        let meta = fs::symlink_metadata(&path).unwrap();
        *out += &format!("{} {:o}", name.display(), meta.mode());
        if meta.is_dir() {
            out.push('\n');
            list(top, &path, out);
        } else if meta.is_symlink() {
            *out += &format!(" -> {}\n", fs::read_link(&path).unwrap().display());
        } else {
            *out += &format!(" {}.{} {:?}\n", meta.mtime(), meta.mtime_nsec(), fs::read(&path).unwrap());
        }
    }
}

/// An error with its causes, as the command line prints them.
pub(crate) fn chain(error: &MergeError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!("\n{error}");
        source = error.source();
    }
    text
}
