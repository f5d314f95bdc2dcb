//! What every verb starts from: the caller's directory and environment, git, the state
//! directory, and the repository that is meant. The one place that reads the environment.

use crate::error::CliError;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::id::RepoId;
use sandbox_core::launch::User;
use sandbox_core::sandbox::{Sandbox, SandboxError};
use sandbox_core::space::Reserve;
use sandbox_core::store::Store;
use sandbox_core::work::{self, WorkError};
use sandbox_git::{Git, HostEnv};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The uid (and gid) of sandboxes of root in a repository that root owns: a number that no
/// account has (`sandbox.rootUid` overrides it).
pub const ROOT_UID: u32 = 1_879_048_192;

/// The caller.
#[derive(Debug)]
pub struct Context {
    /// Where the command was started, canonical.
    pub cwd: PathBuf,
    /// The caller's spelling of it (`$PWD`), when that names the same directory.
    pub spelled: Option<PathBuf>,
    /// The caller's variables.
    pub vars: BTreeMap<String, String>,
    /// The caller's home.
    pub home: PathBuf,
    /// This program.
    pub program: PathBuf,
    git: OnceCell<Git>,
    repo: OnceCell<Option<HostRepo>>,
    settings: OnceCell<BTreeMap<String, Vec<String>>>,
    /// Names of sandboxes whose drop an earlier command began and this one finished.
    pub dropped: RefCell<Vec<String>>,
    /// Names of sandboxes that another command was dropping when this one began.
    pub leaving: RefCell<Vec<String>>,
}

impl Context {
    /// Reads the environment; goes to `directory` first.
    pub fn new(directory: Option<PathBuf>) -> Result<Self, CliError> {
        if let Some(directory) = &directory {
            std::env::set_current_dir(directory)
                .map_err(CliError::io(format!("change to '{}'", directory.display())))?;
        }
        let cwd = std::env::current_dir().map_err(|error| {
            CliError::new("the current directory is gone")
                .cause(error.to_string())
                .hint("`cd` to a directory that exists")
        })?;
        let vars: BTreeMap<String, String> =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let home = match vars.get("HOME").filter(|home| home.starts_with('/')) {
            Some(home) => PathBuf::from(home),
            None => account(rustix::process::geteuid().as_raw())
                .map(|account| account.home)
                .ok_or_else(|| CliError::new("HOME is not set").hint("set it to your home directory"))?,
        };
        let same = |path: &Path| match (path.metadata(), cwd.metadata()) {
            (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
            _ => false,
        };
        let spelled = vars
            .get("PWD")
            .map(PathBuf::from)
            .filter(|pwd| directory.is_none() && pwd.is_absolute() && *pwd != cwd && same(pwd));
        let program = std::fs::read_link("/proc/self/exe").map_err(CliError::io("find this program"))?;
        let (git, repo, settings, dropped, leaving) = Default::default();
        Ok(Self { cwd, spelled, vars, home, program, git, repo, settings, dropped, leaving })
    }

    /// The same caller in another directory, in which `repo` (or none) is the repository.
    pub fn at(&self, dir: &Path, repo: Option<HostRepo>) -> Result<Self, CliError> {
        let (git, settings) = (OnceCell::from(self.git()?.clone()), OnceCell::new());
        let (vars, home, program) = (self.vars.clone(), self.home.clone(), self.program.clone());
        Ok(Self {
            cwd: dir.to_owned(),
            spelled: None,
            vars,
            home,
            program,
            git,
            repo: OnceCell::from(repo),
            settings,
            dropped: RefCell::default(),
            leaving: RefCell::default(),
        })
    }

    /// The caller's git.
    pub fn git(&self) -> Result<&Git, CliError> {
        if self.git.get().is_none() {
            let vars: Vec<(OsString, OsString)> = std::env::vars_os().collect();
            let _ = self.git.set(Git::new(HostEnv::from_vars(vars))?);
        }
        Ok(self.git.get().expect("set above"))
    }

    /// The repository that the current directory is in.
    pub fn repo(&self) -> Result<&HostRepo, CliError> {
        if self.repo.get().is_none() {
            // Git's answers are lines.
            if self.cwd.as_os_str().as_bytes().contains(&b'\n') {
                return Err(CliError::new(format!(
                    "there is a line break in the path '{}'",
                    crate::text::escape_bytes(self.cwd.as_os_str().as_bytes())
                ))
                .hint("rename the directory"));
            }
            let repo = HostRepo::discover(self.git()?, &self.cwd)?;
            let _ = self.repo.set(Some(repo));
        }
        self.repo.get().and_then(Option::as_ref).ok_or_else(|| CliError::new("not a git repository"))
    }

    /// The repository, if there is one; being outside of any is not an error.
    pub fn maybe_repo(&self) -> Option<&HostRepo> {
        self.repo().ok()
    }

    /// A user setting (`sandbox.*` of git's configuration), the last one that is set.
    pub fn setting(&self, key: &str) -> Option<String> {
        self.settings(key).last().cloned()
    }

    /// All values of a user setting, in git's order of precedence.
    pub fn settings(&self, key: &str) -> Vec<String> {
        let all = self.settings.get_or_init(|| {
            let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let Ok(git) = self.git() else { return all };
            if !self.may_be_set(git) {
                return all;
            }
            let dir = self.maybe_repo().map_or(self.cwd.as_path(), HostRepo::top_or_gitdir);
            let listing = git.user(dir).args(["config", "--null", "--get-regexp", r"^sandbox\."]).output();
            for entry in listing.map(|out| out.stdout).unwrap_or_default().split(|b| *b == 0) {
                let entry = String::from_utf8_lossy(entry);
                let (key, value) = entry.split_once('\n').unwrap_or((&entry, "true"));
                if !key.is_empty() {
                    all.entry(key.to_ascii_lowercase()).or_default().push(value.to_owned());
                }
            }
            all
        });
        all.get(&key.to_ascii_lowercase()).cloned().unwrap_or_default()
    }

    /// Where the state directory is: `GIT_SANDBOX_STATE`, `sandbox.stateDir`, `$XDG_STATE_HOME`, `~/.local/state`.
    pub fn state_dir(&self) -> Result<PathBuf, CliError> {
        let absolute = |dir: &str, from: &str| match dir.starts_with('/') {
            true => Ok(PathBuf::from(dir)),
            false => Err(CliError::new(format!("'{}' is not an absolute path", crate::text::escape(dir)))
                .hint(format!("{from} names the state directory: a path that starts with '/'"))),
        };
        if let Some(dir) = self.vars.get("GIT_SANDBOX_STATE").filter(|dir| !dir.is_empty()) {
            return absolute(dir, "GIT_SANDBOX_STATE");
        }
        let default = self
            .vars
            .get("XDG_STATE_HOME")
            .filter(|dir| dir.starts_with('/'))
            .map_or_else(|| self.home.join(".local/state"), PathBuf::from)
            .join("git-sandbox");
        match self.state_setting() {
            Some(dir) => match dir.strip_prefix("~/") {
                Some(rest) => Ok(self.home.join(rest)),
                None => absolute(&dir, "`git config sandbox.stateDir`"),
            },
            None => Ok(default),
        }
    }

    /// Where is what a command can make again: `GIT_SANDBOX_CACHE`, `$XDG_CACHE_HOME/git-sandbox`, `~/.cache/git-sandbox`.
    pub fn cache_dir(&self) -> PathBuf {
        let absolute = |name: &str| self.vars.get(name).filter(|dir| dir.starts_with('/')).map(PathBuf::from);
        absolute("GIT_SANDBOX_CACHE").unwrap_or_else(|| {
            absolute("XDG_CACHE_HOME").unwrap_or_else(|| self.home.join(".cache")).join("git-sandbox")
        })
    }

    /// `sandbox.stateDir`, if any configuration may set it.
    fn state_setting(&self) -> Option<String> {
        self.setting("sandbox.stateDir")
    }

    /// Whether any configuration that git would read may set something of ours. Looked for as text,
    /// because asking git costs more than a millisecond on each spawn; includes may lead anywhere.
    fn may_be_set(&self, git: &Git) -> bool {
        if self.vars.keys().any(|name| name.starts_with("GIT_CONFIG")) {
            return true;
        }
        let xdg = self.vars.get("XDG_CONFIG_HOME").map_or_else(|| self.home.join(".config"), PathBuf::from);
        let mut files = vec![PathBuf::from("/etc/gitconfig"), self.home.join(".gitconfig"), xdg.join("git/config")];
        // A git that was built for another prefix has its system configuration there.
        files.extend(git.program().parent().and_then(Path::parent).map(|prefix| prefix.join("etc/gitconfig")));
        if let Some(repo) = self.maybe_repo() {
            files.extend([repo.common_dir().join("config"), repo.git_dir().join("config.worktree")]);
        }
        files.iter().any(|file| {
            std::fs::read(file).is_ok_and(|bytes| {
                let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
                text.contains("[sandbox") || text.contains("[include")
            })
        })
    }

    /// The state directory, made when it does not exist.
    pub fn store(&self) -> Result<Store, CliError> {
        let dir = self.state_dir()?;
        // Made with the caller's own group and no setgid bit: files of another group could not
        // be copied up by the overlay (EOVERFLOW).
        // A wrong setting is told where it matters; it must not be in the way of making room.
        Ok(Store::open(&dir)?.with_reserve(self.disk_reserve().unwrap_or_default()))
    }

    /// `sandbox.diskReserve`: what of its disk is kept for the host.
    pub fn disk_reserve(&self) -> Result<Reserve, CliError> {
        let Some(text) = self.setting("sandbox.diskReserve") else { return Ok(Reserve::Auto) };
        match text.as_str() {
            "auto" => Ok(Reserve::Auto),
            "none" => Ok(Reserve::None),
            size => crate::text::parse_size(size).map(Reserve::Bytes).ok_or_else(|| {
                CliError::new(format!("'{}' is not a value of sandbox.diskReserve", crate::text::escape(size)))
                    .hint("it is a size such as 2g, auto (a twentieth of the disk, at most 2 GiB), or none")
            }),
        }
    }

    /// The id of the repository that the current directory is in, if it has sandboxes.
    pub fn repo_id(&self, store: &Store) -> Result<Option<RepoId>, CliError> {
        match self.maybe_repo() {
            Some(repo) => match repo.known_id(store)? {
                // Also notes where the repository is now, if it was moved.
                Some(_) if store.writable().is_ok() => Ok(Some(repo.repo_id(store)?)),
                known => Ok(known),
            },
            None => Ok(None),
        }
    }

    /// Finds a sandbox by name: of this repository, or of any when this is not one.
    pub fn sandbox(&self, store: &Store, name: &str) -> Result<Sandbox, CliError> {
        let repo = self.repo_id(store)?;
        let found = match repo {
            None if self.maybe_repo().is_some() => {
                Err(SandboxError::Unknown { name: name.to_owned(), known: Vec::new() })
            }
            repo => Sandbox::find(store, repo.as_ref(), name),
        };
        found.map_err(|error| match error {
            SandboxError::Unknown { .. } => self.of_former(store, name).unwrap_or_else(|| error.into()),
            error => error.into(),
        })
    }

    /// That a sandbox of this name is of a repository that was at this place before.
    fn of_former(&self, store: &Store, name: &str) -> Option<CliError> {
        let here = self.maybe_repo()?;
        let was_here = |sandbox: &Sandbox| {
            Some(sandbox.mount().worktree.as_path()) == here.top()
                || sandbox.repo(store).is_ok_and(|record| record.common_dir == here.common_dir())
        };
        let of_name = |sandbox: &Sandbox| sandbox.name() == name && sandbox.mount().has_commits();
        let former =
            Sandbox::all(store, None).ok()?.into_iter().find(|sandbox| of_name(sandbox) && was_here(sandbox))?;
        match work::host(store, &former) {
            Err(error @ WorkError::AnotherRepository { .. }) => Some(error.into()),
            _ => None,
        }
    }

    /// Who sandboxes of a work tree run as: the caller; run by root, the owner of the tree, or a
    /// number that nobody has. Never uid 0.
    pub fn user(&self, tree: &Path) -> Result<User, CliError> {
        let (euid, egid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let shell = self.vars.get("SHELL").filter(|shell| shell.starts_with('/')).map(PathBuf::from);
        let (uid, gid) = if euid != 0 {
            (euid, egid)
        } else {
            let owner = tree.metadata().map_err(CliError::io(format!("look at '{}'", tree.display())))?;
            if owner.uid() != 0 {
                (owner.uid(), if owner.gid() == 0 { owner.uid() } else { owner.gid() })
            } else {
                let uid = match self.setting("sandbox.rootUid") {
                    // Never host uid 0, nor the id that means "none".
                    Some(text) => text.parse().ok().filter(|uid| *uid != 0 && *uid != u32::MAX).ok_or_else(|| {
                        CliError::new(format!("'{}' is not a value of sandbox.rootUid", crate::text::escape(&text)))
                            .hint("it is the number of a user that does not exist, and not 0")
                    })?,
                    None => ROOT_UID,
                };
                (uid, uid)
            }
        };
        let known = account(uid);
        let name = known.as_ref().map_or_else(
            || if euid == 0 { "sandbox".to_owned() } else { self.vars.get("USER").cloned().unwrap_or("user".into()) },
            |account| account.name.clone(),
        );
        let shell = shell
            .or_else(|| known.map(|account| account.shell))
            .filter(|shell| shell.exists() && !shell.ends_with("nologin") && !shell.ends_with("false"))
            .unwrap_or_else(|| {
                ["/bin/bash", "/bin/sh"].map(PathBuf::from).into_iter().find(|s| s.exists()).unwrap_or("/bin/sh".into())
            });
        let group = group(gid).unwrap_or_else(|| name.clone());
        Ok(User { name, group, uid, gid, shell, root: false })
    }
}

/// One line of `/etc/passwd`. Read by ourselves: a static program must not call NSS.
struct Account {
    name: String,
    home: PathBuf,
    shell: PathBuf,
}

fn account(uid: u32) -> Option<Account> {
    let line = |text: &str| {
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.len() >= 7 && fields[2].parse() == Ok(uid)).then(|| Account {
                name: fields[0].to_owned(),
                home: fields[5].into(),
                shell: fields[6].into(),
            })
        })
    };
    std::fs::read_to_string("/etc/passwd").ok().and_then(|text| line(&text)).or_else(|| {
        // Chosen because nobody has it: not worth a process at each spawn.
        if uid == ROOT_UID {
            return None;
        }
        // Accounts of LDAP or systemd-homed: ask the program that may load NSS.
        let out = std::process::Command::new("getent").args(["passwd", &uid.to_string()]).output().ok()?;
        line(&String::from_utf8_lossy(&out.stdout))
    })
}

fn group(gid: u32) -> Option<String> {
    std::fs::read_to_string("/etc/group").ok()?.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}
