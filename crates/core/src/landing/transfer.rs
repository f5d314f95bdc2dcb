//! From the landing into the host's repository: objects first, then all refs in one transaction.
//!
//! ```text
//! pack-objects in the landing   what the tips reach and was neither granted nor given before
//!   copy + rename               a `.keep`, the pack, then its index: whole or not there
//! rev-list in the host          the closure is complete; else everything is given, not only the new
//! update-ref --stdin            old values checked, reflog written, hooks off; then the `.keep` goes
//! ```
//!
//! Never loose objects: a `prune` of the user that began before the refs moved takes those away even after they have
//! moved. A pack with a `.keep`, and one that comes after they began, is left alone by `prune`, `gc` and `repack`.

use super::{Landing, LandingError, Result, failed};
use crate::host_repo::HostRepo;
use crate::journal::{Ids, Op, path_id};
use crate::space::{self, Need, NoRoom, Reserve};
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, GitCommand, GitError, Oid, RefName, keep, printable};
use sandbox_sys::fault;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long locks of other git commands are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// One ref to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Its full name in the host.
    pub name: RefName,
    /// What it must be now; `None`: it must not exist.
    pub old: Option<Oid>,
    /// What it shall be; `None`: it is deleted.
    pub new: Option<Oid>,
}

/// What a move did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveOutcome {
    /// How many objects the host got.
    pub objects: u32,
    /// The host had lost granted objects (a deleted branch and a `gc`): they were given back.
    pub healed: bool,
}

impl Landing {
    /// Gives the host what the updates need and moves its refs, all or none. `who` is the sandbox's
    /// name, for the reflog. `op` is told the steps; git commands that outlive us keep it open.
    pub fn move_to_host(
        &self,
        mut op: Option<&mut Op>,
        repo: &HostRepo,
        who: &str,
        updates: &[Update],
    ) -> Result<MoveOutcome> {
        if let Some(op) = &mut op {
            op.begin("give", Ids::from([("common-dir".into(), path_id(repo.common_dir()))]))?;
        }
        let host = Host { repo, op: op.as_deref() };
        let mut outcome = MoveOutcome::default();
        // Until the refs name what was given, or nothing does.
        let mut marks = Temps(Vec::new());
        let tips: BTreeSet<Oid> = updates.iter().filter_map(|update| update.new).collect();
        stop("import.give", host.common_dir())?;
        if !tips.is_empty() {
            // Once for both: what a ref named at the beginning is complete.
            let refs = RefStore::read(&self.git, host.git_dir(), host.common_dir()).ok();
            outcome.objects = self.give_new(&host, who, &tips, updates, refs.as_ref(), &mut marks)?;
            if !self.is_complete(&host, &tips, updates, refs.as_ref())? {
                self.heal(&host, &tips, updates, &mut outcome, &mut marks)?;
            }
        }
        stop("import.given", host.common_dir())?;
        if let Some(op) = &mut op {
            op.done("give")?;
            op.begin("refs", updates.iter().map(named).collect())?;
        }
        let host = Host { repo, op: op.as_deref() };
        stop("import.refs", host.common_dir())?;
        match self.transaction(&host, who, updates) {
            // The walk passes over a tip that is not there at all; the transaction does not.
            Err(LandingError::Git(error)) if is_missing(&error) && !outcome.healed => {
                self.heal(&host, &tips, updates, &mut outcome, &mut marks)?;
                self.transaction(&host, who, updates)?;
            }
            result => result?,
        }
        stop("import.moved", host.common_dir())?;
        drop(marks);
        if let Some(op) = op {
            op.done("refs")?;
        }
        Ok(outcome)
    }

    /// Gives the host what it has not got from this sandbox before. Without that, each commit-back would
    /// give everything since the spawn once more.
    fn give_new(
        &self,
        host: &Host<'_>,
        who: &str,
        tips: &BTreeSet<Oid>,
        updates: &[Update],
        refs: Option<&RefStore>,
        marks: &mut Temps,
    ) -> Result<u32> {
        let given = self.given(who, tips, updates, refs)?;
        if !given.is_empty() {
            let known = self.granted.union(&given).copied().collect();
            // A landing that was cut short can have a commit and not what it stands on.
            if let Ok(objects) = self.give(host, tips, &known, marks) {
                return Ok(objects);
            }
        }
        self.give(host, tips, &self.granted, marks)
    }

    /// Commits that the host's refs of this sandbox name and that are here as well.
    fn given(
        &self,
        who: &str,
        tips: &BTreeSet<Oid>,
        updates: &[Update],
        refs: Option<&RefStore>,
    ) -> Result<BTreeSet<Oid>> {
        let mut known: BTreeSet<Oid> = updates.iter().filter_map(|update| update.old).collect();
        if let Some(refs) = refs {
            let (main, meta) = (format!("refs/sandbox/{who}"), format!("refs/sandbox-meta/{who}/"));
            let own =
                |name: &&RefName| name.as_bytes() == main.as_bytes() || name.as_bytes().starts_with(meta.as_bytes());
            known.extend(refs.refs.keys().filter(own).filter_map(|name| refs.resolve(name)));
        }
        known.retain(|oid| !tips.contains(oid));
        if known.is_empty() {
            return Ok(known);
        }
        let input: String = known.iter().map(|oid| format!("{oid}\n")).collect();
        let listing = self.command().args(["cat-file", "--batch-check"]).stdin(input).output()?;
        let commit = |line: &[u8]| {
            let (oid, rest) = line.split_at_checked(line.iter().position(|byte| *byte == b' ')?)?;
            (rest.starts_with(b" commit ") || rest.starts_with(b" tag ")).then(|| Oid::parse(oid))?
        };
        Ok(listing.stdout.split(|byte| *byte == b'\n').filter_map(commit).collect())
    }

    /// Gives the host everything that the tips reach, granted or not.
    fn heal(
        &self,
        host: &Host<'_>,
        tips: &BTreeSet<Oid>,
        updates: &[Update],
        outcome: &mut MoveOutcome,
        marks: &mut Temps,
    ) -> Result<()> {
        outcome.objects += self.give(host, tips, &BTreeSet::new(), marks)?;
        outcome.healed = true;
        let refs = RefStore::read(&self.git, host.git_dir(), host.common_dir()).ok();
        if !self.is_complete(host, tips, updates, refs.as_ref())? {
            let what = "objects are missing in the host's repository".to_owned();
            return Err(GitError::Unexpected { command: "git rev-list".into(), what }.into());
        }
        Ok(())
    }

    /// Returns how many objects were given; `marks` keeps them.
    fn give(&self, host: &Host<'_>, tips: &BTreeSet<Oid>, known: &BTreeSet<Oid>, marks: &mut Temps) -> Result<u32> {
        let out = tempfile::tempdir_in(&self.dir).map_err(failed("create", &self.dir))?;
        let mut objects = 0;
        for name in self.pack(out.path(), tips, known)? {
            let pack = out.path().join(format!("{name}.pack"));
            objects += count(&pack)?;
            self.place(host, &pack, marks)?;
        }
        Ok(objects)
    }

    /// Puts what the tips reach beyond what was granted into the vault of a repository, as packs that need
    /// nothing else but the view. `announce` is told their names and sizes before they are there.
    pub fn move_to_vault<E: From<LandingError>>(
        &self,
        vault: &Path,
        tips: &BTreeSet<Oid>,
        announce: impl FnOnce(&[(String, u64)]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let out = tempfile::tempdir_in(&self.dir).map_err(failed("create", &self.dir))?;
        let mut named = Vec::new();
        for name in self.pack(out.path(), tips, &self.granted)? {
            let pack = out.path().join(format!("{name}.pack"));
            named.push((name, fs::metadata(&pack).map_err(failed("look at", &pack))?.len()));
        }
        announce(&named)?;
        for (name, _) in &named {
            place(vault, &out.path().join(format!("{name}.pack")))?;
        }
        Ok(())
    }

    /// The packs that are here now.
    pub fn packs(&self) -> BTreeSet<OsString> {
        let entries = fs::read_dir(self.dir.join("objects/pack")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// Removes what a land of these tips brought: they are kept elsewhere, and a sandbox that is rescued every
    /// few minutes would make its landing grow. `before` is what was here then.
    pub fn forget(&self, tips: &BTreeSet<Oid>, before: &BTreeSet<OsString>) {
        // What stays is not wrong, only large.
        for tip in tips {
            let _ = fs::remove_file(self.dir.join(format!("refs/in/{tip}")));
        }
        for pack in self.packs().difference(before) {
            let _ = fs::remove_file(self.dir.join("objects/pack").join(pack));
        }
    }

    /// Packs what the tips reach and `known` does not into `out`; returns the names, `pack-<hash>`.
    fn pack(&self, out: &Path, tips: &BTreeSet<Oid>, known: &BTreeSet<Oid>) -> Result<Vec<String>> {
        let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
        if !known.is_empty() {
            input.push_str("--not\n");
            input.extend(known.iter().map(|oid| format!("{oid}\n")));
        }
        let args = ["pack-objects", "-q", "--revs", "--non-empty", "--delta-base-offset"];
        let names = self
            .command()
            // Synced where it is put to stay.
            .config("core.fsync=none")
            .args(args)
            .args(self.partial.then_some("--missing=allow-promisor"))
            .arg(out.join("pack"))
            .stdin(input)
            .output()?;
        let names = String::from_utf8_lossy(&names.stdout);
        Ok(names.lines().filter(|name| !name.is_empty()).map(|name| format!("pack-{name}")).collect())
    }

    /// Puts a pack into the host's object store.
    fn place(&self, host: &Host<'_>, pack: &Path, marks: &mut Temps) -> Result<()> {
        let dir = host.common_dir().join("objects").join("pack");
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let need = Need { bytes: size(pack) + size(&pack.with_extension("idx")), inodes: 3 };
        // Nothing of it is kept back: what comes home is saved.
        space::check(&dir, Reserve::None, need)
            .map_err(|short| NoRoom { path: host.common_dir().to_owned(), ..short })?;
        marks.0.extend(host.mark(&dir, pack)?);
        let point = |placed, path: &Path| stop(if placed { "import.placed" } else { "import.pack" }, path);
        place_in(&dir, host.foreign_owner(), pack, &|name| host.temp(name), &point)
    }

    /// Whether the host has everything that the tips reach.
    fn is_complete(
        &self,
        host: &HostRepo,
        tips: &BTreeSet<Oid>,
        updates: &[Update],
        refs: Option<&RefStore>,
    ) -> Result<bool> {
        let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
        // What a ref names is complete. A handful of refs is enough to end the walk early; asking for
        // all of them costs a second where there are a hundred thousand.
        if let Some(refs) = refs {
            let mut known: BTreeSet<Oid> = refs.head_oid().into_iter().collect();
            let near = |name: &&RefName| name.as_bytes().starts_with(b"refs/heads/");
            known.extend(refs.refs.keys().filter(near).take(64).filter_map(|name| refs.resolve(name)));
            known.extend(
                refs.refs.keys().filter_map(|name| refs.resolve(name)).filter(|oid| self.granted.contains(oid)),
            );
            known.extend(updates.iter().filter_map(|update| update.old));
            input.extend(known.iter().map(|oid| format!("^{oid}\n")));
        }
        let mut command =
            host.read(&self.git).args(["rev-list", "--objects", "--quiet", "--ignore-missing", "--stdin"]);
        command = command.timeout(self.bounds.time);
        if self.partial {
            command = command.arg("--exclude-promisor-objects");
        }
        let (status, _) = command.stdin(input).try_output()?;
        Ok(status.success())
    }

    fn transaction(&self, host: &Host<'_>, who: &str, updates: &[Update]) -> Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        let null = Oid::null(self.format);
        // What is cut short by our death is not carried out in part: git waits for the last word.
        let mut input = b"start\0".to_vec();
        for update in updates {
            let old = update.old.unwrap_or(null);
            let line = match update.new {
                Some(new) => [b"update ", update.name.as_bytes(), format!("\0{new}\0{old}\0").as_bytes()].concat(),
                None => [b"delete ", update.name.as_bytes(), format!("\0{old}\0").as_bytes()].concat(),
            };
            input.extend(line);
        }
        input.extend(b"prepare\0commit\0");
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(20);
        let mut swept = false;
        loop {
            let result = host
                .writing(&self.git)
                .config("core.logAllRefUpdates=always")
                .config("core.fsync=committed,reference")
                .config("core.filesRefLockTimeout=1000")
                .config("core.packedRefsTimeout=1000")
                .env("GIT_COMMITTER_NAME", "git-sandbox")
                .env("GIT_COMMITTER_EMAIL", "git-sandbox@localhost")
                .args(["update-ref", "--no-deref", "--create-reflog", "-m"])
                .arg(format!("sandbox {who}: commit-back"))
                .args(["-z", "--stdin"])
                .stdin(input.clone())
                .run();
            let Err(error) = result else {
                let dir = host.common_dir();
                return sandbox_sys::writeback::names(dir, updates.iter().map(|update| update.name.as_bytes()))
                    .map_err(failed("sync", dir));
            };
            let text = error.stderr().unwrap_or_default().to_owned();
            let locked = text.contains("Unable to create") || text.contains("File exists") || text.contains(".lock'");
            if !locked {
                return Err(explain(error, text));
            }
            if Instant::now() + pause > deadline {
                if !swept && remove_stale(host, updates) {
                    swept = true;
                    continue;
                }
                return Err(LandingError::Locked(text));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// The host's repository, and the operation that it is changed by.
struct Host<'a> {
    repo: &'a HostRepo,
    op: Option<&'a Op>,
}

impl std::ops::Deref for Host<'_> {
    type Target = HostRepo;

    fn deref(&self) -> &HostRepo {
        self.repo
    }
}

impl Host<'_> {
    /// A git that writes here. When we are killed it goes on to its end, and as long counts as ourselves.
    fn writing(&self, git: &Git) -> GitCommand {
        let command = self.repo.write(git);
        match self.op.and_then(Op::hold) {
            Some(marker) => command.inherit(marker),
            None => command,
        }
    }

    /// Puts a `.keep` where the one of a pack will be; `None`: there is one of somebody else.
    fn mark(&self, dir: &Path, pack: &Path) -> Result<Option<PathBuf>> {
        let mark = dir.join(pack.with_extension("keep").file_name().unwrap_or_default());
        let mut file = match fs::OpenOptions::new().write(true).create_new(true).open(&mark) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            other => other.map_err(failed("create", &mark))?,
        };
        let mut made = Temps(vec![mark.clone()]);
        let whose = self.op.map_or_else(|| "import".to_owned(), |op| op.id().to_string());
        let text = keep::text(&whose).map_err(failed("find", Path::new("/proc/self")))?;
        io::Write::write_all(&mut file, format!("{text}\n").as_bytes()).map_err(failed("write", &mark))?;
        if let Some((uid, gid)) = self.foreign_owner() {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed("change the owner of", &mark))?;
        }
        made.0.clear();
        Ok(Some(mark))
    }

    /// The name of an unfinished pack: whose it is can be told from it.
    fn temp(&self, name: &str) -> String {
        match self.op {
            Some(op) => format!("tmp_sandbox_{}_{name}", op.id()),
            None => format!("tmp_sandbox_{}_{name}", std::process::id()),
        }
    }
}

/// A ref and what becomes of it, as the journal has it.
fn named(update: &Update) -> (String, String) {
    let id = |oid: Option<Oid>| oid.map(|oid| oid.to_string()).unwrap_or_default();
    (printable(update.name.as_bytes()), format!("{}..{}", id(update.old), id(update.new)))
}

fn stop(name: &'static str, path: &Path) -> Result<()> {
    fault::point(name).map_err(failed("write", path))
}

/// Puts a pack and its index into an object store: copied beside, synced, renamed, the
/// index last. Names of what is unfinished begin with `tmp_`, which git's own `prune` removes.
/// Temporary names are what `temp` makes of a name; `point` is told when all is beside its place, and each
/// file that is in it (`true`).
fn place_in(
    dir: &Path,
    owner: Option<(u32, u32)>,
    pack: &Path,
    temp: &dyn Fn(&str) -> String,
    point: &dyn Fn(bool, &Path) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let mut temps = Temps(Vec::new());
    let mut renames = Vec::new();
    for extension in ["pack", "rev", "idx"] {
        let source = pack.with_extension(extension);
        if !source.exists() {
            continue;
        }
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temp = dir.join(temp(&name));
        temps.0.push(temp.clone());
        fs::copy(&source, &temp).map_err(failed("write", &temp))?;
        fs::set_permissions(&temp, fs::Permissions::from_mode(0o444)).map_err(failed("change", &temp))?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&temp, Some(uid), Some(gid)).map_err(failed("change the owner of", &temp))?;
        }
        fs::File::open(&temp).and_then(|file| file.sync_all()).map_err(failed("sync", &temp))?;
        renames.push((temp, dir.join(name)));
    }
    point(false, dir)?;
    for (temp, target) in &renames {
        fs::rename(temp, target).map_err(failed("write", target))?;
        point(true, target)?;
    }
    temps.0.clear();
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

/// Puts a pack of ours into the object store of a vault.
pub(crate) fn place(vault: &Path, pack: &Path) -> Result<()> {
    let temp = |name: &str| format!("tmp_sandbox_{}_{name}", std::process::id());
    place_in(&vault.join("objects/pack"), None, pack, &temp, &|_, _| Ok(()))
}

/// Reads how many objects a pack has.
fn count(pack: &Path) -> Result<u32> {
    let mut head = [0; 12];
    let read = fs::File::open(pack).and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
    read.map_err(failed("read", pack))?;
    Ok(u32::from_be_bytes([head[8], head[9], head[10], head[11]]))
}

fn is_missing(error: &GitError) -> bool {
    error.stderr().is_some_and(|text| text.contains("nonexistent object"))
}

fn explain(error: GitError, text: String) -> LandingError {
    if text.contains("but expected")
        || text.contains("reference already exists")
        || text.contains("unable to resolve reference")
    {
        LandingError::Changed(text)
    } else if text.contains("exists; cannot create") || text.contains("there are still refs under") {
        LandingError::InTheWay(text)
    } else {
        error.into()
    }
}

/// Files that are removed on drop, unless the list was cleared.
struct Temps(Vec<PathBuf>);

impl Drop for Temps {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Lock files of these refs that a killed git left: ours by name, and older than any transaction
/// lasts. (Who moves a sandbox's refs holds the sandbox's lock.)
pub fn stale_locks(host: &HostRepo, updates: &[Update]) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let ours = |name: &RefName| {
        name.as_bytes().starts_with(b"refs/sandbox/") || name.as_bytes().starts_with(b"refs/sandbox-meta/")
    };
    let lock = |update: &Update| {
        let mut path = update.name.as_bytes().to_vec();
        path.extend_from_slice(b".lock");
        host.common_dir().join(std::ffi::OsStr::from_bytes(&path))
    };
    let old = |path: &PathBuf| {
        let age = fs::metadata(path).and_then(|m| m.modified()).ok();
        age.and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|age| age > PATIENCE)
    };
    updates.iter().filter(|update| ours(&update.name)).map(lock).filter(old).collect()
}

fn remove_stale(host: &HostRepo, updates: &[Update]) -> bool {
    let stale = stale_locks(host, updates);
    stale.iter().filter(|path| fs::remove_file(path).is_ok()).count() > 0
}

/// Deletes refs of a sandbox in one transaction; those that are not there any more are passed over.
pub fn delete_refs(git: &Git, host: &HostRepo, refs: &[(RefName, Oid)]) -> std::result::Result<(), GitError> {
    if refs.is_empty() {
        return Ok(());
    }
    let line = |(name, old): &(RefName, Oid)| [b"delete ", name.as_bytes(), format!("\0{old}\0").as_bytes()].concat();
    let input: Vec<u8> = refs.iter().flat_map(line).collect();
    host.write(git)
        .config("core.filesRefLockTimeout=2000")
        .config("core.packedRefsTimeout=10000")
        .args(["update-ref", "--no-deref", "-z", "--stdin"])
        .stdin(input)
        .run()
}
