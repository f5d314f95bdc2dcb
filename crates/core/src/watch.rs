//! Asking the watcher of a work tree, and what is kept between two captures for it.
//!
//! ```text
//!  repos/<id>/watch/<digest of the work tree's path>.sock   the watcher's socket
//!                                                   .lock   held by the watcher
//!                                                   .log    what it said before it ended
//!                                                   .json   token, and what the last capture saw
//! ```
//!
//! The token is that of a question asked before the last scan of the capture, so all that it does not answer
//! for is in the manifest. It is good for this one manifest only, which is told by its inode and time.

use crate::store::{RepoDir, StoreError, make_dir, read_json, write_json};
use sandbox_capture::{Captured, LeftOut, MANIFEST, Reason, Seen, Watch};
use sandbox_protocol::{escape_bytes, unescape_bytes};
use sandbox_sys::lock::FileLock;
use sandbox_watch::{Answer, Mark, Root, Status, Token};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a watcher may take to answer before the tree is scanned.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the watcher of a work tree is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    dir: PathBuf,
    digest: String,
}

impl Place {
    /// Returns the place of a work tree's watcher.
    pub fn new(repo: &RepoDir, top: &Path) -> Self {
        Self { dir: repo.path().join("watch"), digest: crate::view::digest(top.as_os_str().as_bytes()) }
    }

    /// The directory of all its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket's name in it.
    pub fn socket(&self) -> String {
        format!("{}.sock", self.digest)
    }

    /// The lock that the watcher holds.
    pub fn lock(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.digest))
    }

    /// What the watcher says, last of all why it ended.
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.digest))
    }

    /// Returns whether a file in [`dir`](Self::dir) belongs to this work tree.
    pub fn owns(&self, path: &Path) -> bool {
        path.file_stem().is_some_and(|stem| stem == self.digest.as_str())
    }

    fn memory(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.digest))
    }

    /// Asks for facts; `None` when there is no watcher that answers.
    pub fn status(&self, patience: Duration) -> Option<Status> {
        sandbox_watch::status(&self.dir, &self.socket(), patience).ok()
    }

    /// Asks the watcher to end, and waits until it has: the next one can begin. False when there is none.
    ///
    /// # Errors
    ///
    /// It does not answer, or does not end in time.
    pub fn stop(&self, patience: Duration) -> io::Result<bool> {
        match sandbox_watch::stop(&self.dir, &self.socket(), patience) {
            Ok(()) => {
                // Its socket goes first, and the lock with the process.
                let until = Instant::now() + patience;
                while FileLock::is_held(&self.lock()) {
                    if Instant::now() > until {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks what changed since a token.
    ///
    /// # Errors
    ///
    /// There is no watcher, or it does not answer in time.
    pub fn ask(&self, since: Option<&Token>) -> io::Result<Answer> {
        sandbox_watch::ask(&self.dir, &self.socket(), since, PATIENCE)
    }
}

/// What is kept between two captures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    token: String,
    /// The uppermost layer of the stack, and inode and time of its manifest.
    layer: String,
    manifest: (u64, i64, i64),
    /// Device, inode and mount of the work tree: another one may have been at this path meanwhile.
    root: (u64, u64, u64),
    git_state: u64,
    /// Paths are escaped.
    left_out: Vec<(String, u8)>,
    carried_secrets: Vec<String>,
    tracked_secrets: Vec<String>,
    git_boundaries: Vec<String>,
}

const REASONS: [Reason; 6] =
    [Reason::Secret, Reason::Special, Reason::Unreadable, Reason::Ignored, Reason::OverLimit, Reason::Stale];

fn escape(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| escape_bytes(path.as_os_str().as_bytes())).collect()
}

fn unescape(text: &str) -> PathBuf {
    OsString::from_vec(unescape_bytes(text)).into()
}

impl Memory {
    fn new(token: &Token, manifest: (u64, i64, i64), root: Root, captured: &Captured, git_state: u64) -> Option<Self> {
        let code = |reason| REASONS.iter().position(|known| *known == reason).map(|at| at as u8);
        let left = |entry: &LeftOut| Some((escape_bytes(entry.path.as_os_str().as_bytes()), code(entry.reason)?));
        Some(Self {
            token: token.to_string(),
            layer: captured.layers.first()?.clone(),
            manifest,
            root: numbers(root),
            git_state,
            left_out: captured.left_out.iter().map(left).collect::<Option<_>>()?,
            carried_secrets: escape(&captured.carried_secrets),
            tracked_secrets: escape(&captured.tracked_secrets),
            git_boundaries: escape(&captured.git_boundaries),
        })
    }

    fn seen(&self) -> Option<Seen> {
        let paths = |list: &[String]| list.iter().map(|text| unescape(text)).collect();
        let left = |(path, code): &(String, u8)| {
            Some(LeftOut { path: unescape(path), reason: *REASONS.get(usize::from(*code))? })
        };
        Some(Seen {
            git_state: self.git_state,
            left_out: self.left_out.iter().map(left).collect::<Option<_>>()?,
            carried_secrets: paths(&self.carried_secrets),
            tracked_secrets: paths(&self.tracked_secrets),
            git_boundaries: paths(&self.git_boundaries),
        })
    }
}

fn numbers(root: Root) -> (u64, u64, u64) {
    (root.dev, root.ino, root.mount)
}

/// Which manifest lies beside a layer now.
fn manifest(repo_layers: &Path, layer: &str) -> Option<(u64, i64, i64)> {
    let meta = fs::metadata(repo_layers.join(layer).join(MANIFEST)).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

/// The watcher's part in one capture.
#[derive(Debug)]
pub struct Watched {
    place: Place,
    layers: PathBuf,
    root: Option<Root>,
    before: Option<Memory>,
    seen: Option<Seen>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    token: Option<Token>,
    /// No answer named anything, so what is remembered holds as it is.
    quiet: bool,
    /// There is no watcher: it is not asked again.
    none: bool,
}

impl Watched {
    /// Reads what the last capture left, if its stack had this layer on top.
    pub fn new(repo: &RepoDir, top: &Path, newest: Option<&str>) -> Self {
        let place = Place::new(repo, top);
        let layers = repo.layers();
        let root = Root::of(top).ok();
        let memory = read_json::<Memory>(&place.memory()).ok().flatten();
        let before = memory.filter(|memory| {
            root.map(numbers) == Some(memory.root)
                && newest == Some(memory.layer.as_str())
                && manifest(&layers, &memory.layer) == Some(memory.manifest)
        });
        let seen = before.as_ref().and_then(Memory::seen);
        let token = before.as_ref().and_then(|memory| Token::parse(&memory.token)).filter(|_| seen.is_some());
        let asked = Mutex::new(Asked { token, quiet: true, none: false });
        Self { place, layers, root, before, seen, asked }
    }

    /// Keeps what the next capture needs.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written.
    pub fn remember(&self, captured: &Captured, git_state: u64) -> Result<(), StoreError> {
        let asked = self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = captured.layers.first().and_then(|layer| manifest(&self.layers, layer));
        let memory = match (&asked.token, found, self.root) {
            (Some(token), Some(found), Some(root)) => Memory::new(token, found, root, captured, git_state),
            _ => None,
        };
        let Some(memory) = memory else {
            // Nobody to ask next time either, or for nothing.
            if self.before.is_some() {
                let _ = fs::remove_file(self.place.memory());
            }
            return Ok(());
        };
        // An older token of the same watcher is as good when nothing was marked since.
        let same = self
            .before
            .as_ref()
            .is_some_and(|before| Memory { token: before.token.clone(), ..memory.clone() } == *before);
        if asked.quiet && same {
            return Ok(());
        }
        make_dir(self.place.dir())?;
        write_json(&self.place.memory(), &memory, false)
    }
}

impl Watch for Watched {
    fn changed(&self) -> Option<Vec<Mark>> {
        let mut asked = self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if asked.none {
            return None;
        }
        let answer = self.place.ask(asked.token.as_ref());
        match answer {
            Ok(Answer::Since { token, root, marks }) if Some(root) == self.root => {
                asked.quiet &= marks.is_empty();
                asked.token = Some(token);
                Some(marks)
            }
            // It watches what was at this path before.
            Ok(Answer::Since { .. }) | Err(_) => {
                *asked = Asked { token: None, quiet: false, none: true };
                None
            }
            Ok(Answer::All { token, .. }) => {
                asked.quiet = false;
                asked.token = token;
                None
            }
        }
    }

    fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }
}
