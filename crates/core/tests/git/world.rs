//! A hermetic host: home, repository, state directory; and sandboxes without a wall.

use sandbox_core::gitdir::{self, Carried, Grant, Made, Request};
use sandbox_core::host_repo::HostRepo;
use sandbox_core::record::ViewRecord;
use sandbox_core::store::{RepoDir, Store};
use sandbox_core::view::View;
use sandbox_git::index::Stat;
use sandbox_git::{Git, HostEnv};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

/// Runs a test with each git of the machine.
pub fn each_git(test: impl Fn(World)) {
    let found: Vec<PathBuf> =
        ["/usr/bin/git", "/usr/local/bin/git"].into_iter().map(PathBuf::from).filter(|git| git.exists()).collect();
    assert!(!found.is_empty(), "no git to test with");
    for git in found {
        test(World::new(&git));
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub git: Git,
    pub store: Store,
}

impl World {
    pub fn new(git: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join(".gitconfig"), "[user]\n\tname = Host User\n\temail = user@host.example\n[init]\n\tdefaultBranch = main\n[protocol \"file\"]\n\tallow = always\n[advice]\n\tdetachedHead = false\n")
            .unwrap();
        let vars: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), [git.parent().unwrap().as_os_str().as_bytes(), b":/usr/bin:/bin"].concat().to_os()),
            ("HOME".into(), home.into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
        ];
        let git = Git::new(HostEnv::from_vars(vars)).unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        Self { dir, git, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Runs git as a user would, in any directory.
    pub fn try_git(&self, dir: &Path, args: &[&str]) -> Output {
        Command::new(self.git.program())
            .args(args)
            .current_dir(dir)
            .env_clear()
            .env("PATH", &self.git.env().path)
            .env("HOME", self.home())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_EDITOR", "true")
            .env("GIT_ALLOW_PROTOCOL", "file")
            .output()
            .unwrap()
    }

    pub fn git(&self, dir: &Path, args: &[&str]) -> String {
        let out = self.try_git(dir, args);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "git {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    /// A repository with three commits, a directory, a symlink and a program.
    pub fn repo(&self, name: &str, init: &[&str]) -> PathBuf {
        let top = self.path(name);
        fs::create_dir_all(&top).unwrap();
        self.git(&top, &[&["init", "-q"], init].concat());
        write(&top, "a.txt", "one\ntwo\nthree\n");
        write(&top, "dir/b.txt", "b\n");
        write(&top, "run.sh", "#!/bin/sh\n");
        std::os::unix::fs::symlink("a.txt", top.join("link")).unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(top.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        self.commit(&top, "first");
        for n in 2..4 {
            write(&top, "dir/b.txt", &format!("b{n}\n"));
            self.commit(&top, &format!("number {n}"));
        }
        top
    }

    pub fn commit(&self, top: &Path, message: &str) -> String {
        self.git(top, &["add", "-A"]);
        self.git(top, &["commit", "-q", "-m", message]);
        self.git(top, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub fn commit_empty(&self, top: &Path, message: &str) -> String {
        self.git(top, &["commit", "-q", "--allow-empty", "-m", message]);
        self.git(top, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub fn host(&self, top: &Path) -> HostRepo {
        HostRepo::discover(&self.git, top).unwrap()
    }

    pub fn repo_dir(&self, top: &Path) -> RepoDir {
        self.store.repo(&self.host(top).repo_id(&self.store).unwrap())
    }

    /// Captures the tree by copying it, makes the git layer, and puts both together.
    pub fn spawn(&self, top: &Path, name: &str) -> Inside<'_> {
        self.spawn_with(top, name, &[], false)
    }

    pub fn spawn_with(&self, top: &Path, name: &str, grants: &[Grant], all: bool) -> Inside<'_> {
        let inside = self.path(name);
        let mut nested = Vec::new();
        copy(top, &inside, Path::new(""), &mut nested);
        let captured = |path: &[u8]| {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            let stat = |top: &Path| fs::symlink_metadata(top.join(path)).ok().map(|m| Stat::from_metadata(&m));
            Some(Carried { host: stat(top)?, layer: stat(&inside)? })
        };
        let repo = self.repo_dir(top);
        let host = self.host(top);
        let request = Request {
            git: &self.git,
            repo: &repo,
            host: &host,
            nested: &nested,
            captured: &captured,
            owner: None,
            grants,
            all_objects: all,
        };
        let layer = self.path(&format!("{name}.layer"));
        let made = gitdir::make(&request, &layer).unwrap();
        self.assemble(made, repo, inside, layer)
    }

    pub fn assemble(&self, made: Made, repo: RepoDir, inside: PathBuf, layer: PathBuf) -> Inside<'_> {
        overlay(&layer, &inside);
        let sandbox = Inside { world: self, top: inside, made, repo };
        for record in &sandbox.made.facts.views {
            let gitdir = sandbox.gitdir(record);
            let objects = sandbox.repo.view(&record.key).join("objects");
            fs::write(gitdir.join("objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
        }
        let system = sandbox.system_config();
        fs::write(system, &sandbox.made.facts.user_config).unwrap();
        sandbox
    }
}

/// A tree as it would be inside.
pub struct Inside<'a> {
    pub world: &'a World,
    pub top: PathBuf,
    pub made: Made,
    pub repo: RepoDir,
}

impl Inside<'_> {
    fn system_config(&self) -> PathBuf {
        self.top.with_extension("gitconfig")
    }

    /// Where a git directory of the layer is in the copy.
    pub fn gitdir(&self, record: &ViewRecord) -> PathBuf {
        let main = &self.made.facts.views[0].inside_gitdir;
        let host_top = main.parent().unwrap();
        self.top.join(record.inside_gitdir.strip_prefix(host_top).unwrap())
    }

    pub fn view(&self) -> View {
        View::open(&self.repo, &self.made.facts.views[0].key).unwrap().unwrap()
    }

    pub fn try_git_in(&self, dir: &Path, args: &[&str]) -> Output {
        Command::new(self.world.git.program())
            .args(args)
            .current_dir(dir)
            .env_clear()
            .env("PATH", &self.world.git.env().path)
            .env("HOME", self.world.path("nowhere"))
            .env("GIT_CONFIG_SYSTEM", self.system_config())
            .env("GIT_EDITOR", "true")
            .output()
            .unwrap()
    }

    pub fn try_git(&self, args: &[&str]) -> Output {
        self.try_git_in(&self.top, args)
    }

    pub fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.top, args)
    }

    pub fn git_in(&self, dir: &Path, args: &[&str]) -> String {
        let out = self.try_git_in(dir, args);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "git {args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    /// The first `git status` says what it says on the host, and looks at the contents of no other
    /// file: `diff-files` lists what differs by stat data alone.
    pub fn assert_same_as(&self, host: &Path) {
        for args in [
            &["diff-files", "--raw"][..],
            &["status", "--porcelain=v2", "--branch", "--show-stash"],
            &["status"],
            &["diff", "--cached", "--stat"],
            &["diff", "--stat"],
            &["ls-files", "-s", "-t"],
            &["stash", "list"],
        ] {
            assert_eq!(self.git(args), self.world.git(host, args), "git {args:?}");
        }
        let fsck = self.try_git(&["fsck", "--no-dangling", "--no-progress"]);
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
    }

    /// Every object that can be read inside.
    pub fn objects(&self) -> Vec<String> {
        let out = self.git(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]);
        out.lines().map(str::to_owned).collect()
    }
}

pub fn write(top: &Path, name: &str, text: &str) {
    let path = top.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Makes all files and the index a minute old, so that none is racy.
pub fn age(world: &World, top: &Path) {
    let old = SystemTime::now() - Duration::from_secs(60);
    let list = world.git(top, &["ls-files", "-z"]);
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let path = top.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) {
            fs::File::options().append(true).open(path).unwrap().set_modified(old).unwrap();
        }
    }
    world.git(top, &["update-index", "-q", "--refresh"]);
}

/// Copies a tree without entries named `.git`, whose directories go into `nested`.
fn copy(from: &Path, to: &Path, relative: &Path, nested: &mut Vec<PathBuf>) {
    fs::create_dir_all(to.join(relative)).unwrap();
    for entry in fs::read_dir(from.join(relative)).unwrap() {
        let entry = entry.unwrap();
        let path = relative.join(entry.file_name());
        if entry.file_name() == ".git" {
            if !relative.as_os_str().is_empty() {
                nested.push(relative.to_owned());
            }
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(from, to, &path, nested);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), to.join(&path)).unwrap();
        } else {
            fs::copy(entry.path(), to.join(&path)).unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            let file = fs::File::options().append(true).open(to.join(&path)).unwrap();
            file.set_modified(modified).unwrap();
        }
    }
    // A symlink's own time is kept by the capture as well.
    if relative.as_os_str().is_empty() {
        let _ = Command::new("/bin/sh")
            .args([
                "-c",
                "cd \"$1\" && find . -type l -not -path '*/.git/*' -exec touch -h -r '{}' \"$2/{}\" ';'",
                "sh",
            ])
            .args([from, to])
            .status();
    }
}

/// Moves the files of a layer over a tree.
fn overlay(layer: &Path, tree: &Path) {
    for entry in fs::read_dir(layer).unwrap() {
        let entry = entry.unwrap();
        let target = tree.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() && target.is_dir() {
            overlay(&entry.path(), &target);
        } else {
            fs::rename(entry.path(), &target).unwrap();
        }
    }
}

trait ToOs {
    fn to_os(self) -> OsString;
}

impl ToOs for Vec<u8> {
    fn to_os(self) -> OsString {
        std::os::unix::ffi::OsStringExt::from_vec(self)
    }
}
