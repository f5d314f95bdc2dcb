//! Packs that are made once (S4): equal requests cost one `pack-objects`.
//!
//! ```text
//! git upload-pack ─► hook ─► service ─┬─ whole and young ──► the file is read
//!                                     ├─ being made ───────► the same file is followed as it grows
//!                                     ├─ worth it ─────────► one process makes it for all who ask meanwhile
//!                                     └─ seen first ───────► the hook makes it itself, nothing is kept
//! ```
//!
//! The key is the repository, the arguments and the input of `pack-objects`: no user, no transport.
//! What is whole is known to the running service only: it begins with an empty cache, and a file that is
//! taken away is made again.

pub mod hook;

use crate::catalog::{Entry, Reader};
use crate::doubt::Doubt;
use crate::event::{CacheEvent, Event, Observer};
use crate::layout::Layout;
use crate::repo::MirrorRepo;
use crate::serve::process::{Spawner, chunk};
use sandbox_git::{Git, GitCommand};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The name that this program is called by as the hook.
pub const HOOK: &str = "git-sandbox-pack-cache";
/// Tells the hook where the service is.
pub const SOCKET_VAR: &str = "GIT_SANDBOX_PACK_CACHE";
/// Tells the hook for which repository it is.
pub const REPO_VAR: &str = "GIT_SANDBOX_PACK_REPO";

/// Requests that were seen once and are remembered.
const SEEN: usize = 4096;
/// Bytes of a question.
const QUESTION: u64 = 4 << 20;

/// How much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether anything is.
    pub enabled: bool,
    /// Bytes of all packs.
    pub max_bytes: u64,
    /// How long a pack is used.
    pub max_age: Duration,
    /// Bytes that must be free on the disk for another one to be made.
    pub min_free: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, max_bytes: 4 << 30, max_age: Duration::from_secs(300), min_free: 1 << 30 }
    }
}

/// What the hook asks.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Ask {
    repo: String,
    argv: Vec<String>,
    /// Bytes that follow.
    input: usize,
}

type Key = [u8; 32];

/// Whether a request is worth a file: what many will ask for alike is, from the first time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    Once,
    Twice,
}

impl Ask {
    fn key(&self, input: &[u8]) -> Key {
        let mut bytes = self.repo.clone().into_bytes();
        for arg in self.argv.iter().filter(|arg| !is_cosmetic(arg)) {
            bytes.push(0);
            bytes.extend_from_slice(arg.as_bytes());
        }
        bytes.extend_from_slice(b"\0\0");
        bytes.extend_from_slice(input);
        sandbox_git::sha256(&bytes)
    }

    fn has(&self, option: &str) -> bool {
        self.argv.iter().any(|arg| arg == option || arg.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
    }

    /// Tips with cut history or without contents are what sandboxes begin from. All history is large, and
    /// git has it in one piece anyway; what follows on what a client has is that client's.
    fn worth(&self, input: &[u8]) -> Worth {
        let mut lines = input.split(|byte| *byte == b'\n').skip_while(|line| *line != b"--not").skip(1);
        let haves = lines.any(|line| !line.is_empty());
        if !haves && (self.has("--shallow") || self.has("--filter")) { Worth::Once } else { Worth::Twice }
    }
}

fn is_cosmetic(arg: &str) -> bool {
    matches!(arg, "--progress" | "-q" | "--quiet")
}

/// Whether a file's name is one of a pack here: `<key>-<stamp>.pack`.
fn is_pack(name: &str) -> bool {
    let parts = name.strip_suffix(".pack").and_then(|name| name.split_once('-'));
    parts.is_some_and(|(key, stamp)| {
        key.len() == 64
            && key.bytes().all(|byte| byte.is_ascii_hexdigit())
            && stamp.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// How far a pack is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    bytes: u64,
    /// Whole, or never.
    ended: Option<bool>,
}

struct Pack {
    path: PathBuf,
    progress: watch::Receiver<Progress>,
    made: Instant,
    used: Instant,
}

/// The cache; a clone is the same one.
#[derive(Clone)]
pub struct PackCache(Arc<Inner>);

struct Inner {
    settings: Settings,
    layout: Layout,
    git: Git,
    spawner: Spawner,
    observer: Arc<dyn Observer>,
    catalog: Reader,
    state: Mutex<State>,
    socket: PathBuf,
    accepts: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct State {
    packs: HashMap<Key, Pack>,
    seen: HashMap<Key, Instant>,
}

impl PackCache {
    /// Begins an empty cache: removes what is there, and listens for the hook. `program` is what
    /// is called as [`HOOK`]. Needs a runtime.
    pub fn start(
        settings: Settings,
        layout: Layout,
        git: Git,
        program: &Path,
        spawner: Spawner,
        observer: Arc<dyn Observer>,
        catalog: Reader,
    ) -> io::Result<Self> {
        for left in std::fs::read_dir(layout.packcache())? {
            let left = left?;
            // The directory may be one that somebody chose: what is not ours stays.
            if is_pack(&left.file_name().to_string_lossy()) {
                std::fs::remove_file(left.path())?;
            }
        }
        let (link, socket) = (layout.run().join(HOOK), layout.run().join("packs"));
        for path in [&link, &socket] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::os::unix::fs::symlink(program, link)?;
        let state = Mutex::default();
        let cache = Self(Arc::new(Inner {
            settings,
            layout,
            git,
            spawner,
            observer,
            catalog,
            state,
            socket,
            accepts: Mutex::default(),
        }));
        if cache.0.settings.enabled {
            // A store's path may be longer than the address of a socket.
            let run = std::fs::File::open(cache.0.layout.run())?;
            let listener = sandbox_sys::socket::listen_at(&run, "packs")?;
            listener.set_nonblocking(true)?;
            let listener = UnixListener::from_std(listener)?;
            let inner = Arc::downgrade(&cache.0);
            let accepts = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Some(inner) = inner.upgrade() else { return };
                    tokio::spawn(async move {
                        // A hook that goes away has a client that went away.
                        let _ = inner.answer(stream).await;
                    });
                }
            });
            *cache.0.accepts.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepts.abort_handle());
        }
        Ok(cache)
    }

    /// Has `git upload-pack` on a repository ask here for its packs.
    pub fn hooked(&self, command: GitCommand, repo: &Path) -> GitCommand {
        let inner = &self.0;
        if !inner.settings.enabled || inner.socket.as_os_str().len() > 100 {
            return command;
        }
        let path =
            std::env::join_paths([inner.layout.run()].into_iter().chain(std::env::split_paths(&inner.git.env().path)));
        let Ok(path) = path else { return command };
        command
            .config(format!("uploadpack.packObjectsHook={HOOK}"))
            .env("PATH", path)
            .env(SOCKET_VAR, &inner.socket)
            .env(REPO_VAR, repo)
    }

    /// Forgets all packs, as when their files were taken away.
    pub fn clear(&self) {
        for (_, pack) in self.0.state().packs.drain() {
            let _ = std::fs::remove_file(pack.path);
        }
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.0.state().packs.values().map(|pack| pack.progress.borrow().bytes).sum()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(accepts) = self.accepts.lock().unwrap_or_else(PoisonError::into_inner).take() {
            accepts.abort();
        }
    }
}

/// What is done for one question.
enum Way {
    Yourself,
    Read(PathBuf, watch::Receiver<Progress>),
    Make(PathBuf, watch::Sender<Progress>, watch::Receiver<Progress>),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, ask: Option<&Ask>, what: CacheEvent) {
        let repo = ask.and_then(|ask| self.entry(ask)).map(|entry| entry.name.clone());
        self.observer.observe(&Event::Cache { repo, what });
    }

    /// The mirror that is asked for; none for what a session pushed.
    fn entry(&self, ask: &Ask) -> Option<Arc<Entry>> {
        self.catalog.now().entries().find(|entry| entry.dir == Path::new(&ask.repo)).cloned()
    }

    async fn answer(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader).take(QUESTION);
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).await?;
        let ask: Ask = serde_json::from_slice(&line)?;
        let mut input = vec![0; ask.input.min(QUESTION as usize)];
        reader.read_exact(&mut input).await?;
        let mut reader = reader.into_inner();
        let (path, mut progress) = match self.way(&ask, &input) {
            Way::Yourself => {
                self.tell(Some(&ask), CacheEvent::Passed);
                return writer.write_all(b"-\n").await;
            }
            Way::Read(path, progress) => (path, progress),
            Way::Make(path, sender, progress) => {
                tokio::spawn(self.clone().make(ask, input, path.clone(), sender));
                (path, progress)
            }
        };
        writer.write_all(format!("@{}\n", path.display()).as_bytes()).await?;
        let mut byte = [0];
        loop {
            let now = *progress.borrow_and_update();
            let line = match now.ended {
                None => format!("+{}\n", now.bytes),
                Some(true) => format!("={}\n", now.bytes),
                Some(false) => "!\n".to_owned(),
            };
            writer.write_all(line.as_bytes()).await?;
            if now.ended.is_some() {
                return Ok(());
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() {
                    return writer.write_all(b"!\n").await;
                },
                // The hook says nothing more: its end is the client's.
                _ = reader.read(&mut byte) => return Ok(()),
            }
        }
    }

    /// Decides.
    fn way(&self, ask: &Ask, input: &[u8]) -> Way {
        let below = |dir: PathBuf| Path::new(&ask.repo).starts_with(dir);
        let ours = below(self.layout.mirrors()) || below(self.layout.root().join("scratch"));
        if !ours || !ask.argv.iter().any(|arg| arg == "pack-objects") {
            return Way::Yourself;
        }
        let key = ask.key(input);
        let now = Instant::now();
        let mut state = self.state();
        self.evict(&mut state, now);
        if let Some(pack) = state.packs.get_mut(&key) {
            let progress = *pack.progress.borrow();
            // A pack that somebody took away is made again.
            if progress.ended != Some(false) && pack.path.exists() {
                pack.used = now;
                let there = if progress.ended.is_some() { CacheEvent::Hit } else { CacheEvent::Followed };
                self.tell(Some(ask), there);
                return Way::Read(pack.path.clone(), pack.progress.clone());
            }
            state.packs.remove(&key);
        }
        let known = state.seen.get(&key).is_some_and(|then| now.duration_since(*then) < self.settings.max_age);
        if ask.worth(input) == Worth::Twice && !known {
            if state.seen.len() >= SEEN {
                state.seen.clear();
            }
            state.seen.insert(key, now);
            return Way::Yourself;
        }
        let room = rustix::fs::statvfs(self.layout.packcache()).map(|stat| stat.f_bavail * stat.f_frsize);
        if room.is_ok_and(|free| free < self.settings.min_free) {
            return Way::Yourself;
        }
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.layout.packcache().join(format!("{name}-{}.pack", self.stamp(&state)));
        if let Err(error) = std::fs::File::create(&path) {
            self.observer.observe(&Event::Trouble { what: format!("cannot keep a pack: {error}") });
            self.tell(Some(ask), CacheEvent::Failed);
            return Way::Yourself;
        }
        let (sender, progress) = watch::channel(Progress::default());
        let pack = Pack { path: path.clone(), progress: progress.clone(), made: now, used: now };
        state.packs.insert(key, pack);
        Way::Make(path, sender, progress)
    }

    /// Two files of one key are never the same one.
    fn stamp(&self, _: &State) -> u128 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos())
    }

    /// Removes what is old, then what was not used for longest, until the rest fits.
    fn evict(&self, state: &mut State, now: Instant) {
        let mut removed = 0;
        let mut remove = |pack: &Pack| {
            // Who reads it goes on reading.
            let _ = std::fs::remove_file(&pack.path);
            removed += pack.progress.borrow().bytes;
        };
        state.packs.retain(|_, pack| {
            let ended = pack.progress.borrow().ended;
            let stays =
                ended.is_none() || (ended == Some(true) && now.duration_since(pack.made) < self.settings.max_age);
            if !stays {
                remove(pack);
            }
            stays
        });
        let mut sum: u64 = state.packs.values().map(|pack| pack.progress.borrow().bytes).sum();
        while sum > self.settings.max_bytes {
            let whole = state.packs.iter().filter(|(_, pack)| pack.progress.borrow().ended.is_some());
            let Some(key) = whole.min_by_key(|(_, pack)| pack.used).map(|(key, _)| *key) else { break };
            if let Some(pack) = state.packs.remove(&key) {
                sum -= pack.progress.borrow().bytes;
                remove(&pack);
            }
        }
        if removed > 0 {
            self.tell(None, CacheEvent::Evicted { bytes: removed });
        }
    }

    /// Forgets a pack that nobody waits for, so that nobody begins to; false if somebody has.
    fn forget(&self, path: &Path, sender: &watch::Sender<Progress>) -> bool {
        let mut state = self.state();
        if sender.receiver_count() > 1 {
            return false;
        }
        state.packs.retain(|_, pack| pack.path != path);
        let _ = std::fs::remove_file(path);
        true
    }

    /// Makes a pack for all who follow it.
    async fn make(self: Arc<Self>, ask: Ask, input: Vec<u8>, path: PathBuf, sender: watch::Sender<Progress>) {
        let made = self.fill(&ask, &input, &path, &sender).await;
        sender.send_modify(|progress| progress.ended = Some(made.is_ok()));
        match made {
            Ok(bytes) => self.tell(Some(&ask), CacheEvent::Filled { bytes }),
            Err(error) => {
                // That nobody waits for it any more is no failure.
                if error.kind() != io::ErrorKind::Interrupted {
                    self.doubt(&ask, &error.to_string());
                    self.observer.observe(&Event::Trouble { what: format!("cannot keep a pack: {error}") });
                    self.tell(Some(&ask), CacheEvent::Failed);
                }
            }
        }
        self.evict(&mut self.state(), Instant::now());
    }

    /// Says of which mirror what git said lets doubt.
    fn doubt(&self, ask: &Ask, said: &str) {
        let Some(doubt) = Doubt::of(said) else { return };
        if let Some(entry) = self.entry(ask) {
            entry.live.doubt(doubt);
        }
    }

    async fn fill(&self, ask: &Ask, input: &[u8], path: &Path, sender: &watch::Sender<Progress>) -> io::Result<u64> {
        let mut command = MirrorRepo::at(&ask.repo).git(&self.git);
        if ask.has("--shallow") {
            // New deltas for one tip cost more than they save next door.
            command = command.config("pack.window=0").config("pack.compression=1");
        }
        let args = ask.argv.iter().skip(1).filter(|arg| !is_cosmetic(arg));
        let mut process = self.spawner.git(command.args(args)).await?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let feed = async move {
            let _ = stdin.write_all(input).await;
        };
        let mut bytes = 0;
        let pump = async {
            let mut file = tokio::fs::OpenOptions::new().append(true).open(path).await?;
            while let Some(part) = chunk(&mut stdout).await? {
                file.write_all(&part).await?;
                file.flush().await?;
                bytes += part.len() as u64;
                sender.send_modify(|progress| progress.bytes = bytes);
                // One receiver is the cache's own.
                if sender.receiver_count() <= 1 && self.forget(path, sender) {
                    return Err(io::Error::from(io::ErrorKind::Interrupted));
                }
            }
            Ok(())
        };
        let ((), pumped) = tokio::join!(feed, pump);
        pumped?;
        let (status, said) = process.wait().await?;
        match status.success() {
            true => Ok(bytes),
            false => Err(io::Error::other(crate::serve::process::telling(&said))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(argv: &[&str]) -> Ask {
        let argv = ["git"].iter().chain(argv).map(|arg| (*arg).to_owned()).collect();
        Ask { repo: "/s/mirrors/r.git".into(), argv, input: 0 }
    }

    #[test]
    fn what_is_shown_to_a_client_makes_no_other_pack() {
        let quiet = ask(&["pack-objects", "--revs", "--thin", "--stdout"]);
        let loud = ask(&["pack-objects", "--revs", "--thin", "--stdout", "--progress"]);
        assert_eq!(quiet.key(b"x"), loud.key(b"x"));
        assert_ne!(quiet.key(b"x"), quiet.key(b"y"));
        assert_ne!(quiet.key(b"x"), ask(&["pack-objects", "--revs", "--stdout"]).key(b"x"));
        assert_ne!(quiet.key(b"x"), Ask { repo: "/s/mirrors/q.git".into(), ..quiet }.key(b"x"));
    }

    #[test]
    fn tips_are_kept_from_the_first_time_on() {
        let id = "1".repeat(40);
        let tip = format!("{id}\n--not\n\n").into_bytes();
        let more = format!("{id}\n--not\n{id}\n\n").into_bytes();
        assert_eq!(ask(&["pack-objects", "--shallow"]).worth(&tip), Worth::Once);
        assert_eq!(ask(&["pack-objects", "--filter=blob:none"]).worth(&tip), Worth::Once);
        assert_eq!(ask(&["pack-objects"]).worth(&tip), Worth::Twice);
        assert_eq!(ask(&["pack-objects", "--shallow"]).worth(&more), Worth::Twice);
    }
}
