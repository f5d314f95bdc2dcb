//! A mirror on disk: a bare repository with exactly this configuration, and the one way to run git in it.
//!
//! What only protected configuration may say (`uploadpack.packObjectsHook`, `safe.directory`) is given
//! to each command; the file below is written once, when the repository is made.

use crate::name::Upstream;
use sandbox_git::{Git, GitCommand, GitError, ObjectFormat};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Refs that are for the service itself, or for one session: never in an advertisement of the mirror.
pub const HIDDEN: [&str; 4] = ["refs/agents", "refs/base", "refs/keep", "refs/pull"];

/// Configuration of every repository of the store; each with what it is for.
const COMMON: &[(&str, &str, &str)] = &[
    // Without it a client that filters silently gets everything.
    ("uploadpack", "allowFilter", "true"),
    // For v0 and v1; v2 always allows it.
    ("uploadpack", "allowAnySHA1InWant", "true"),
    // sparse:oid and combine make the server evaluate what the client chose.
    ("uploadpackfilter", "allow", "false"),
    ("uploadpackfilter \"blob:none\"", "allow", "true"),
    ("uploadpackfilter \"blob:limit\"", "allow", "true"),
    ("uploadpackfilter \"object:type\"", "allow", "true"),
    ("uploadpackfilter \"tree\"", "allow", "true"),
    ("uploadpackfilter \"tree\"", "maxDepth", "1"),
    ("uploadpack", "keepAlive", "5"),
    ("receive", "keepAlive", "5"),
    ("transfer", "advertiseSID", "false"),
    // Keep packs: no explosion of loose objects.
    ("transfer", "unpackLimit", "1"),
    ("fetch", "unpackLimit", "1"),
    ("receive", "unpackLimit", "1"),
    // One owner of maintenance, and it is not git.
    ("gc", "auto", "0"),
    ("maintenance", "auto", "false"),
    ("receive", "autogc", "false"),
    ("fetch", "writeCommitGraph", "false"),
    // Nothing younger is ever pruned.
    ("gc", "pruneExpire", "14.days"),
    ("pack", "useBitmapBoundaryTraversal", "true"),
    ("pack", "writeBitmapLookupTable", "true"),
    // Of one pack: `multi` is safe from git 2.48 on, and `single` is a word that older ones do not know.
    ("pack", "allowPackReuse", "true"),
    ("pack", "windowMemory", "256m"),
    ("pack", "deltaCacheSize", "128m"),
    ("pack", "preferBitmapTips", "refs/heads/"),
    ("core", "bigFileThreshold", "64m"),
    ("core", "logAllRefUpdates", "false"),
    // What is pushed is data.
    ("receive", "fsckObjects", "true"),
    ("receive", "advertisePushOptions", "true"),
    ("receive", "advertiseAtomic", "true"),
    ("receive", "denyDeleteCurrent", "ignore"),
    ("receive", "denyCurrentBranch", "ignore"),
];

/// What only a mirror has: where it fetches from and what it hides.
const MIRROR: &[(&str, &str, &str)] = &[
    ("fetch", "fsckObjects", "true"),
    ("receive", "shallowUpdate", "false"),
    // Never +refs/*: pruning cannot reach what is not in a refspec.
    ("remote \"origin\"", "fetch", "+refs/heads/*:refs/heads/*"),
    ("remote \"origin\"", "fetch", "+refs/tags/*:refs/tags/*"),
    ("remote \"origin\"", "tagOpt", "--no-tags"),
];

/// A repository could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// Git said no.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A file could not be written.
    #[error("cannot write '{}'", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bare repository of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRepo {
    dir: PathBuf,
}

impl MirrorRepo {
    /// The repository at this absolute path; nothing is looked at.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Makes an empty mirror of `upstream`. `dir` must not exist: make it below `tmp`, fill it and
    /// rename it into place, so that nobody sees it half-made.
    pub fn create(git: &Git, dir: &Path, format: ObjectFormat, upstream: &Upstream) -> Result<Self, RepoError> {
        let repo = Self::init(git, dir, format)?;
        let mut config = sections(COMMON);
        config.push_str(&sections(MIRROR));
        let hidden: Vec<_> = HIDDEN.iter().map(|prefix| ("transfer", "hideRefs", *prefix)).collect();
        config.push_str(&sections(&hidden));
        config.push_str(&sections(&[("remote \"origin\"", "url", &quoted(upstream.url()))]));
        repo.append_config(&config)?;
        Ok(repo)
    }

    /// Makes an empty repository with what is common to all of the store.
    pub fn create_plain(git: &Git, dir: &Path, format: ObjectFormat) -> Result<Self, RepoError> {
        let repo = Self::init(git, dir, format)?;
        repo.append_config(&sections(COMMON))?;
        Ok(repo)
    }

    fn init(git: &Git, dir: &Path, format: ObjectFormat) -> Result<Self, RepoError> {
        let format = format!("--object-format={format}");
        git.anywhere()
            .args(["init", "--quiet", "--bare", "--template=", "--initial-branch=main", &format])
            .arg(dir)
            .run()?;
        Ok(Self::at(dir))
    }

    fn append_config(&self, text: &str) -> Result<(), RepoError> {
        let path = self.dir.join("config");
        let append = || std::fs::OpenOptions::new().append(true).open(&path)?.write_all(text.as_bytes());
        append().map_err(|source| RepoError::Write { path: path.clone(), source })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A git command on this repository, hermetic as all of them are.
    pub fn git(&self, git: &Git) -> GitCommand {
        tuned(git.vault(&self.dir))
    }

    /// A command that serves this repository by its path (`upload-pack DIR`), which git wants to be
    /// told that it may.
    pub fn serving(&self, git: &Git) -> GitCommand {
        tuned(git.anywhere()).config(format!("safe.directory={}", self.dir.display()))
    }
}

/// Bounds what one command takes of the machine; it does not outlive a service that is killed.
fn tuned(command: GitCommand) -> GitCommand {
    let command = command.ends_with_us();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    command.config(format!("pack.threads={threads}"))
}

fn sections(settings: &[(&str, &str, &str)]) -> String {
    let mut text = String::new();
    let mut last = "";
    for (section, key, value) in settings {
        if *section != last {
            text.push_str(&format!("[{section}]\n"));
            last = section;
        }
        text.push_str(&format!("\t{key} = {value}\n"));
    }
    text
}

/// A value that git reads back as it is (git-config(1), "Syntax").
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_testkit::TestEnv;

    fn git(env: &TestEnv) -> Git {
        let host = sandbox_git::HostEnv { path: env.path(), ..Default::default() };
        Git::new(host).unwrap()
    }

    #[test]
    fn both_formats_are_made_with_the_same_configuration() {
        let env = TestEnv::new();
        let git = git(&env);
        let upstream = Upstream::parse("https://h/o/\"r.git").unwrap();
        for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
            let dir = env.root().join(format!("{format}.git"));
            let repo = MirrorRepo::create(&git, &dir, format, &upstream).unwrap();
            let get = |key: &str| {
                let out =
                    repo.git(&git).args(["config", "--file", "config", "--get-all", key]).cwd(&dir).output().unwrap();
                String::from_utf8(out.stdout).unwrap().trim_end().replace('\n', " ")
            };
            assert_eq!(get("remote.origin.url"), "https://h/o/\"r.git");
            assert_eq!(get("remote.origin.fetch"), "+refs/heads/*:refs/heads/* +refs/tags/*:refs/tags/*");
            assert_eq!(get("transfer.hideRefs"), "refs/agents refs/base refs/keep refs/pull");
            assert_eq!(get("uploadpackfilter.blob:none.allow"), "true");
            assert_eq!(get("uploadpackfilter.tree.maxDepth"), "1");
            assert_eq!(get("gc.auto"), "0");
            let shown = repo.git(&git).args(["rev-parse", "--show-object-format"]).line().unwrap();
            assert_eq!(shown, format.as_str());
            assert!(!dir.join("hooks").exists());
        }
    }

    #[test]
    fn every_setting_is_one_that_git_can_read() {
        let env = TestEnv::new();
        let git = git(&env);
        let upstream = Upstream::parse("git@h:o/r").unwrap();
        let repo = MirrorRepo::create(&git, &env.root().join("r.git"), ObjectFormat::Sha1, &upstream).unwrap();
        let out = repo.git(&git).args(["config", "--file", "config", "--list"]).cwd(repo.dir()).output().unwrap();
        let lines = String::from_utf8(out.stdout).unwrap().lines().count();
        assert!(lines > COMMON.len() + MIRROR.len() + HIDDEN.len(), "{lines}");
        // And a client is served by it.
        let out = repo.serving(&git).args(["upload-pack", "--strict", "--http-backend-info-refs"]).arg(repo.dir());
        assert!(out.output().unwrap().stdout.ends_with(b"0000"));
    }
}
