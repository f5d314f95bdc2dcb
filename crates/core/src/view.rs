//! Views: what one set of granted roots needs of the object store, and nothing else.
//!
//! ```text
//! repos/<id>/packs/objects/pack/       the vault: every pack ever made, immutable
//! repos/<id>/views/<key>/
//!   view.json                          steps, roots, boundary
//!   objects/pack/pack-*.{pack,idx}     hard links
//!
//! steps of a view                      each = closure(its roots) − closure(all roots before)
//!   1  remote-tracking tips  ─┐        a new view takes over the longest run of steps of an earlier
//!   2  HEAD                   │        view whose roots are all granted to it too, and adds the rest
//!   3  stash, operation, tags ┘
//!   extras                             what only the index names; never taken over by another set
//! ```
//!
//! A sandbox and its landing borrow from a view, so they see the closure of what was granted: no other
//! branch, no dropped stash, no blob that an earlier sandbox had staged. Packs are self-contained
//! (no thin ones) and never rewritten; a chain that gets long is begun again after its first step.
//! Nothing is synced while it is made, because a sandbox waits for it: [`View::sync`] follows once the
//! sandbox runs, before anything in it can be called saved.

mod closure;
mod serve;
mod whole;

pub use closure::{Found, Kind, look_up, outside, resolve};
pub use serve::{ServeError, prepare_serve, serve_command};
pub(crate) use serve::{borrow, partial_config};

use crate::host_repo::HostRepo;
use crate::space::{Need, NoRoom, Room};
use crate::store::{self, RepoDir, StoreError};
use sandbox_git::{Git, GitError, ObjectFormat, Oid};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A chain longer than this is begun again.
const MAX_STEPS: usize = 12;

/// How many earlier views are looked at.
const MAX_CANDIDATES: usize = 8;

/// What a view has to cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Which hash function.
    pub format: ObjectFormat,
    /// Commits whose parents the host does not have.
    pub shallow: Vec<Oid>,
    /// Objects may be missing in the host (a partial clone).
    pub partial: bool,
    /// Commits and annotated tags, the most lasting first: remote-tracking tips, `HEAD`, the rest.
    pub steps: Vec<Vec<Oid>>,
    /// Exact objects besides: what only the index names.
    pub extras: Vec<Oid>,
}

impl Wanted {
    /// All roots, sorted, each once.
    pub fn roots(&self) -> BTreeSet<Oid> {
        self.steps.iter().flatten().copied().collect()
    }

    fn key(&self) -> String {
        key(self.format, &self.shallow, &self.roots(), &extras_digest(&self.extras))
    }
}

fn key(format: ObjectFormat, shallow: &[Oid], roots: &BTreeSet<Oid>, extras: &str) -> String {
    let mut text = format!("view 1\n{format}\n");
    let shallow: BTreeSet<_> = shallow.iter().collect();
    for oid in shallow {
        text.push_str(&format!("shallow {oid}\n"));
    }
    for oid in roots {
        text.push_str(&format!("root {oid}\n"));
    }
    text.push_str(&format!("extras {extras}\n"));
    digest(text.as_bytes())
}

fn extras_digest(extras: &[Oid]) -> String {
    let sorted: BTreeSet<&Oid> = extras.iter().collect();
    if sorted.is_empty() {
        return String::new();
    }
    let raw: Vec<u8> = sorted.into_iter().flat_map(|oid| oid.as_bytes().to_vec()).collect();
    digest(&raw)
}

/// The first 128 bits of SHA-256, in hex: the length of all our ids.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let oid = sandbox_git::sha256(bytes);
    oid[..16].iter().map(|b| format!("{b:02x}")).collect()
}

/// `view.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    version: u32,
    format: ObjectFormat,
    shallow: Vec<Oid>,
    partial: bool,
    steps: Vec<Step>,
    /// Digest of the ids in `extras_packs`.
    extras: String,
    extras_packs: Vec<String>,
    /// Everything that the host had (`sandbox.objects = all`).
    #[serde(default)]
    whole: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Step {
    roots: Vec<Oid>,
    packs: Vec<String>,
}

/// A view on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    key: String,
    dir: PathBuf,
    record: Record,
}

/// Why a view could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Git could not pack what was granted.
    #[error("cannot collect the granted objects")]
    Git(#[from] GitError),
    /// The state directory.
    #[error("cannot use the state directory")]
    Store(#[from] StoreError),
    /// There is too little room for the objects.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A file of the view.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `link`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, ViewError>;

/// A list of object directories as git reads it from the environment: a path with a character that would
/// end it is quoted as in C (git ≥ 2.11).
pub(crate) fn alternates(dirs: &[PathBuf]) -> OsString {
    let mut list = Vec::new();
    for dir in dirs {
        if !list.is_empty() {
            list.push(b':');
        }
        let bytes = dir.as_os_str().as_bytes();
        if bytes.iter().all(|byte| !matches!(byte, b':' | b'"' | b'\\' | b'\n')) {
            list.extend_from_slice(bytes);
            continue;
        }
        list.push(b'"');
        for byte in bytes {
            match byte {
                b'"' | b'\\' => list.extend([b'\\', *byte]),
                b'\n' => list.extend(b"\\n"),
                byte => list.push(*byte),
            }
        }
        list.push(b'"');
    }
    OsString::from_vec(list)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ViewError {
    let path = path.to_owned();
    move |source| ViewError::Io { action, path, source }
}

impl View {
    /// Opens a view by its key; `None` when there is no such view.
    pub fn open(repo: &RepoDir, key: &str) -> Result<Option<Self>> {
        let dir = repo.view(key);
        let record: Option<Record> = store::read_either(&dir.join("view.json"))?;
        Ok(record.map(|record| Self { key: key.to_owned(), dir, record }))
    }

    /// Its name below `views/`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The object directory: what an `alternates` file names.
    pub fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// All commits and tags whose closure it covers.
    pub fn roots(&self) -> BTreeSet<Oid> {
        self.record.steps.iter().flat_map(|step| &step.roots).copied().collect()
    }

    /// Which hash function names its objects.
    pub fn format(&self) -> ObjectFormat {
        self.record.format
    }

    /// The shallow boundary.
    pub fn shallow(&self) -> &[Oid] {
        &self.record.shallow
    }

    /// Objects of it may be missing.
    pub fn is_partial(&self) -> bool {
        self.record.partial
    }

    /// Writes it to the disk for good: to be called after the sandbox that stands on it was started.
    pub fn sync(&self) -> io::Result<()> {
        let packs = self.objects().join("pack");
        for entry in fs::read_dir(&packs)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        for path in [&self.dir.join("view.json"), &packs, &self.objects(), &self.dir] {
            fs::File::open(path)?.sync_all()?;
        }
        self.dir.parent().map_or(Ok(()), |views| fs::File::open(views)?.sync_all())
    }

    /// It holds everything that the host had.
    pub fn is_whole(&self) -> bool {
        self.record.whole
    }

    fn covers_like(&self, wanted: &Wanted) -> bool {
        let shallow = |list: &[Oid]| list.iter().copied().collect::<BTreeSet<_>>();
        !self.record.whole
            && self.record.format == wanted.format
            && self.record.partial == wanted.partial
            && shallow(&self.record.shallow) == shallow(&wanted.shallow)
    }
}

/// Makes views of one host repository.
pub struct Views<'a> {
    /// Git.
    pub git: &'a Git,
    /// The repository's directory in the store; views of nested repositories are in it too.
    pub repo: &'a RepoDir,
    /// Who must be able to read them, when we are root.
    pub owner: Option<(u32, u32)>,
    /// Packs are also linked into the vault (for the main repository).
    pub vault: bool,
}

/// How the extras of a new view come about.
enum Extras<'a> {
    Pack(&'a [Oid]),
    Link(&'a View),
}

impl Views<'_> {
    /// Returns the view that covers exactly `wanted`, making it when there is none. An existing one
    /// costs no process.
    pub fn ensure(&self, host: &HostRepo, wanted: &Wanted) -> Result<View> {
        self.make(host, wanted, wanted.key(), Extras::Pack(&wanted.extras))
    }

    /// Returns a view that covers what `view` covers and these roots too.
    pub fn extend(&self, host: &HostRepo, view: &View, more: &[Oid]) -> Result<View> {
        let have = view.roots();
        let more: Vec<Oid> = more.iter().copied().filter(|oid| !have.contains(oid)).collect();
        if more.is_empty() || view.is_whole() {
            return Ok(view.clone());
        }
        let mut steps: Vec<Vec<Oid>> = view.record.steps.iter().map(|step| step.roots.clone()).collect();
        steps.push(more);
        let wanted = Wanted {
            format: view.record.format,
            shallow: view.record.shallow.clone(),
            partial: view.record.partial,
            steps,
            extras: Vec::new(),
        };
        let key = key(wanted.format, &wanted.shallow, &wanted.roots(), &view.record.extras);
        self.make(host, &wanted, key, Extras::Link(view))
    }

    /// Returns a view of all objects that the host has now. `wanted` says what a landing may take for
    /// known: it need not be sent again.
    pub fn whole(&self, host: &HostRepo, wanted: &Wanted) -> Result<View> {
        whole::make(self, host, wanted)
    }

    fn make(&self, host: &HostRepo, wanted: &Wanted, key: String, extras: Extras<'_>) -> Result<View> {
        if let Some(view) = View::open(self.repo, &key)? {
            return Ok(view);
        }
        let draft = Draft::new(self)?;
        let base = self.longest_base(host, wanted)?;
        let mut steps = Vec::new();
        if let Some((view, count)) = &base {
            for step in &view.record.steps[..*count] {
                for pack in &step.packs {
                    draft.link(&view.objects().join("pack"), pack)?;
                }
                steps.push(step.clone());
            }
        }
        let mut covered: BTreeSet<Oid> = steps.iter().flat_map(|step: &Step| &step.roots).copied().collect();
        for roots in &wanted.steps {
            let new: BTreeSet<Oid> = roots.iter().copied().filter(|oid| !covered.contains(oid)).collect();
            if new.is_empty() {
                continue;
            }
            self.has_room(host, &new, &covered)?;
            let packs = draft.pack_closure(host, &new, &covered, wanted.partial)?;
            covered.extend(&new);
            steps.push(Step { roots: new.into_iter().collect(), packs });
        }
        let (extras, extras_packs) = match extras {
            Extras::Pack(oids) => (extras_digest(oids), draft.pack_exact(host, oids)?),
            Extras::Link(view) => {
                for pack in &view.record.extras_packs {
                    draft.link(&view.objects().join("pack"), pack)?;
                }
                (view.record.extras.clone(), view.record.extras_packs.clone())
            }
        };
        let record = Record {
            version: 1,
            format: wanted.format,
            shallow: wanted.shallow.clone(),
            partial: wanted.partial,
            steps,
            extras,
            extras_packs,
            whole: false,
        };
        draft.publish(key, record)
    }

    /// Refuses a closure that does not fit. Git is asked how large it is only where it may be too large: the
    /// objects of a repository are no larger than what is used of its disk, nor than its object files.
    fn has_room(&self, host: &HostRepo, new: &BTreeSet<Oid>, covered: &BTreeSet<Oid>) -> Result<()> {
        let fits = |bytes| self.repo.has_room(Need { bytes, inodes: 3 });
        let objects = host.common_dir().join("objects");
        let used = Room::of(&objects).map_or(u64::MAX, |room| room.of_bytes.saturating_sub(room.bytes));
        if fits(used).is_ok() {
            return Ok(());
        }
        // What it borrows is elsewhere.
        let alone = !objects.join("info/alternates").exists();
        if alone && fits(crate::work::disk_of(&objects)).is_ok() {
            return Ok(());
        }
        let mut input: String = new
            .iter()
            .map(|oid| {
                format!(
                    "{oid}
"
                )
            })
            .collect();
        input.extend(covered.iter().map(|oid| {
            format!(
                "^{oid}
"
            )
        }));
        let args = ["rev-list", "--objects", "--disk-usage", "--ignore-missing", "--stdin"];
        // What git cannot tell is tried.
        let said = host.read(self.git).args(args).stdin(input).output().ok();
        let bytes = said.and_then(|said| String::from_utf8_lossy(&said.stdout).trim().parse().ok());
        Ok(bytes.map_or(Ok(()), fits)?)
    }

    /// The longest run of steps of an earlier view whose roots are all reachable from the wanted
    /// ones: everything in their packs is granted to the new view as well.
    fn longest_base(&self, host: &HostRepo, wanted: &Wanted) -> Result<Option<(View, usize)>> {
        let candidates = self.candidates(wanted)?;
        let roots = wanted.roots();
        let unsure: HashSet<Oid> = candidates.iter().flat_map(View::roots).filter(|oid| !roots.contains(oid)).collect();
        // A root that is not a commit (an annotated tag) is granted only by name.
        let outside = if unsure.is_empty() {
            HashSet::new()
        } else {
            match closure::outside(self.git, host, &roots, &unsure) {
                Ok(outside) => outside,
                // A root of an old view may be gone from the host by now: reuse what is certain.
                Err(_) => unsure,
            }
        };
        let run = |view: &View| {
            let granted = |step: &&Step| step.roots.iter().all(|oid| !outside.contains(oid));
            view.record.steps.iter().take_while(granted).count()
        };
        let best = candidates.into_iter().map(|view| (run(&view), view)).max_by_key(|(count, _)| *count);
        Ok(match best {
            Some((0, _)) | None => None,
            Some((count, view)) if count >= MAX_STEPS => Some((view, 1)),
            Some((count, view)) => Some((view, count)),
        })
    }

    fn candidates(&self, wanted: &Wanted) -> Result<Vec<View>> {
        let dir = self.repo.views();
        let mut named: Vec<(SystemTime, String)> = Vec::new();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ViewError::Io { action: "list", path: dir, source }),
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", &dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !name.starts_with('.')
                && let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified())
            {
                named.push((modified, name));
            }
        }
        named.sort();
        let mut views = Vec::new();
        for (_, name) in named.into_iter().rev() {
            // One that is damaged is nobody's base.
            if let Ok(Some(view)) = View::open(self.repo, &name)
                && view.covers_like(wanted)
            {
                views.push(view);
                if views.len() == MAX_CANDIDATES {
                    break;
                }
            }
        }
        Ok(views)
    }
}

/// A view in the making, in a directory beside the finished ones; removed when it is dropped.
struct Draft<'a> {
    views: &'a Views<'a>,
    dir: tempfile::TempDir,
}

impl<'a> Draft<'a> {
    fn new(views: &'a Views<'a>) -> Result<Self> {
        let parent = views.repo.views();
        store::make_dir(&parent)?;
        let dir = tempfile::Builder::new().prefix(".tmp-").tempdir_in(&parent).map_err(failed("create", &parent))?;
        let draft = Self { views, dir };
        let packs = draft.packs();
        // Read by the user of the sandbox, through a mount: the way to it stays closed to others.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&packs).map_err(failed("create", &packs))?;
        Ok(draft)
    }

    fn packs(&self) -> PathBuf {
        self.dir.path().join("objects").join("pack")
    }

    fn link(&self, from: &Path, pack: &str) -> Result<()> {
        for extension in ["pack", "idx", "rev", "promisor"] {
            let name = format!("{pack}.{extension}");
            let source = from.join(&name);
            match fs::hard_link(&source, self.packs().join(&name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound && !matches!(extension, "pack" | "idx") => {}
                Err(error) => return Err(failed("link", &source)(error)),
            }
        }
        Ok(())
    }

    fn pack_closure(
        &self,
        host: &HostRepo,
        new: &BTreeSet<Oid>,
        covered: &BTreeSet<Oid>,
        partial: bool,
    ) -> Result<Vec<String>> {
        let mut input: String = new.iter().map(|oid| format!("{oid}\n")).collect();
        if !covered.is_empty() {
            input.push_str("--not\n");
            input.extend(covered.iter().map(|oid| format!("{oid}\n")));
        }
        let mut args = vec!["--revs"];
        args.extend(partial.then_some("--missing=allow-promisor"));
        let packs = self.pack_objects(host, &args, input)?;
        if partial {
            for pack in &packs {
                let path = self.packs().join(format!("{pack}.promisor"));
                fs::write(&path, b"").map_err(failed("create", &path))?;
            }
        }
        Ok(packs)
    }

    fn pack_exact(&self, host: &HostRepo, oids: &[Oid]) -> Result<Vec<String>> {
        if oids.is_empty() {
            return Ok(Vec::new());
        }
        let list = |oids: &[Oid]| -> String { oids.iter().map(|oid| format!("{oid}\n")).collect() };
        match self.pack_objects(host, &[], list(oids)) {
            Ok(packs) => Ok(packs),
            // An index may name what was never there (a partial clone) or is gone (an old cache-tree).
            Err(error) => {
                let found = closure::look_up(self.views.git, host, oids)?;
                let there: Vec<Oid> = found.into_iter().flatten().map(|found| found.oid).collect();
                if there.len() == oids.len() {
                    return Err(error);
                }
                if there.is_empty() { Ok(Vec::new()) } else { self.pack_objects(host, &[], list(&there)) }
            }
        }
    }

    fn pack_objects(&self, host: &HostRepo, args: &[&str], input: String) -> Result<Vec<String>> {
        // Git makes its temporary files in its own object directory and renames them: so that is the view's.
        // The host's is only read, and may be on another file system or belong to somebody else.
        let mut from = vec![host.common_dir().join("objects")];
        if self.views.vault {
            // Notes that were cut to what is granted are made in the vault.
            from.push(self.views.repo.vault().join("objects"));
        }
        let out = host
            .read(self.views.git)
            .config("core.fsync=none")
            .env("GIT_OBJECT_DIRECTORY", self.dir.path().join("objects"))
            .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", alternates(&from))
            // No search for new deltas: those that the host has are reused, and the first sandbox of a
            // large repository should not wait for a smaller pack than the host's own.
            .args(["pack-objects", "-q", "--non-empty", "--window=0", "--delta-base-offset"])
            .args(args)
            .arg(self.packs().join("pack"))
            .stdin(input)
            .output()?;
        let names = String::from_utf8_lossy(&out.stdout);
        Ok(names.lines().filter(|name| !name.is_empty()).map(|name| format!("pack-{name}")).collect())
    }

    fn publish(self, key: String, record: Record) -> Result<View> {
        store::write_twice(&self.dir.path().join("view.json"), &record, false)?;
        self.hand_over()?;
        if self.views.vault {
            self.link_into_vault()?;
        }
        let dir = self.views.repo.view(&key);
        let temp = self.dir.keep();
        match fs::rename(&temp, &dir) {
            Ok(()) => {}
            // Somebody made the same one meanwhile.
            Err(_) if dir.join("view.json").exists() => drop(fs::remove_dir_all(&temp)),
            Err(source) => {
                let _ = fs::remove_dir_all(&temp);
                return Err(ViewError::Io { action: "create", path: dir, source });
            }
        }
        Ok(View { key, dir, record })
    }

    /// Makes everything readable for the sandbox's user.
    fn hand_over(&self) -> Result<()> {
        let root = self.dir.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(failed("change", root))?;
        let Some((uid, gid)) = self.views.owner else { return Ok(()) };
        let packs = self.packs();
        let record = root.join("view.json");
        let mut paths = vec![root.to_owned(), store::copy_of(&record), record, root.join("objects"), packs.clone()];
        for entry in fs::read_dir(&packs).map_err(failed("list", &packs))? {
            paths.push(entry.map_err(failed("list", &packs))?.path());
        }
        for path in paths {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
        }
        Ok(())
    }

    fn link_into_vault(&self) -> Result<()> {
        let (packs, vault) = (self.packs(), self.views.repo.vault().join("objects").join("pack"));
        if !vault.is_dir() {
            return Ok(());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&packs).map_err(failed("list", &packs))? {
            names.push(entry.map_err(failed("list", &packs))?.file_name());
        }
        // A pack counts from the moment its index is there.
        names.sort_by_key(|name| name.to_string_lossy().ends_with(".idx"));
        for name in names {
            match fs::hard_link(packs.join(&name), vault.join(&name)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("link", &vault.join(&name))(error)),
            }
        }
        Ok(())
    }
}
