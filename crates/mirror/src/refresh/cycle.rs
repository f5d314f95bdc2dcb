//! One refresh, from the question to the refs. Blocks; changes nothing but the mirror and `tmp/`.

use super::ask::{Advertised, Asked, Ended, ask, finish, started};
use super::change::RefPlan;
use super::reach::{NotAllowed, Policy, Reach, Resolver};
use super::staging::{self, Fetch, TakenIn};
use super::tips::{Have, absent};
use super::trouble::{Trouble, is_corrupt};
use super::{Pattern, pins};
use crate::config::Credential;
use crate::credential::{Keeper, Secret, Source};
use crate::layout::Layout;
use crate::name::{Scheme, Upstream};
use crate::registry::Spec;
use crate::repo::MirrorRepo;
use sandbox_git::{Git, GitError, ObjectFormat, Oid, RefName};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Redirects that are followed in one refresh.
const MAX_REDIRECTS: usize = 3;
/// Before an upstream that suddenly has nothing is believed, it is asked once more.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// What one refresh needs.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    /// The git to run.
    pub git: &'a Git,
    /// Where mirrors are.
    pub layout: &'a Layout,
    /// What is mirrored.
    pub spec: &'a Spec,
    /// Its credential.
    pub credential: Option<&'a Credential>,
    /// Where secrets come from.
    pub keeper: &'a Keeper,
    /// Which upstreams may be asked.
    pub policy: &'a Policy,
    /// Resolves their names.
    pub resolver: &'a Resolver,
    /// The longest refresh, and the longest first clone.
    pub limits: (Duration, Duration),
    /// Commits that somebody wants besides what is advertised.
    pub wanted: &'a BTreeSet<Oid>,
    /// Whether its tips are looked at even if there is nothing to do: somebody was told that one is gone.
    pub doubted: bool,
    /// Seconds since 1970.
    pub now: i64,
}

/// What a refresh did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// The mirror was made.
    pub cloned: bool,
    /// Refs that were made, moved or deleted.
    pub changed: usize,
    /// Pins that were made.
    pub pinned: usize,
    /// Bytes of packs that came.
    pub bytes: u64,
    /// The hash of its objects.
    pub format: ObjectFormat,
    /// Where the upstream says that it is now.
    pub moved_to: Option<String>,
    /// Wanted commits that the upstream does not give.
    pub refused: BTreeSet<Oid>,
}

/// What an upstream is asked with.
struct Line {
    reach: Reach,
    secret: Option<Secret>,
    key: Option<PathBuf>,
    moved_to: Option<String>,
}

impl Cycle<'_> {
    /// Makes the mirror equal to its upstream.
    pub fn run(&self) -> Result<Done, Trouble> {
        let mut line = self.line()?;
        let repo = MirrorRepo::at(self.layout.mirror(&self.spec.name));
        let mut upstream = self.ask(&mut line)?;
        let exists = repo.dir().join("HEAD").exists();
        if exists && upstream.refs.is_empty() && !Have::read(self.git, &repo)?.refs.is_empty() {
            // A forge that restarts may say so for an instant. Pins keep everything even if it is true.
            std::thread::sleep(SECOND_LOOK);
            upstream = self.ask(&mut line)?;
        }
        let mut done =
            if exists { self.update(&line, &repo, &upstream)? } else { self.clone(&line, &repo, &upstream)? };
        done.moved_to = line.moved_to.clone();
        self.want(&line, &repo, &mut done)?;
        Ok(done)
    }

    fn patterns(&self) -> Vec<Pattern> {
        if self.spec.refs.is_empty() { Pattern::all() } else { self.spec.refs.clone() }
    }

    fn line(&self) -> Result<Line, Trouble> {
        let refused = |error: NotAllowed| Trouble::NotAllowed(error.to_string());
        let reach = self.reach(&self.spec.url)?;
        let mut line = Line { reach, secret: None, key: None, moved_to: None };
        let Some(credential) = self.credential else {
            return match &self.spec.credential {
                Some(id) => Err(Trouble::Credential(format!("there is no credential '{id}'"))),
                None => Ok(line),
            };
        };
        if credential.host != self.spec.url.host() {
            return Err(refused(NotAllowed::Credential {
                id: credential.id.clone(),
                host: credential.host.clone(),
                asked: self.spec.url.host().to_owned(),
            }));
        }
        match (self.spec.url.scheme(), &credential.source) {
            (Scheme::Ssh, Source::File(path)) => line.key = Some(path.clone()),
            (Scheme::Ssh, source) => return Err(refused(NotAllowed::Key(source.clone()))),
            (_, source) => {
                let secret = self.keeper.get(source, &credential.host);
                line.secret = Some(secret.map_err(|error| Trouble::Credential(error.to_string()))?);
            }
        }
        Ok(line)
    }

    fn reach(&self, upstream: &Upstream) -> Result<Reach, Trouble> {
        let own = sandbox_proxy::address::own_addresses().map_err(|error| Trouble::Local(error.to_string()))?;
        let reach = Reach::check(self.policy, upstream, |host| self.resolver.resolve(host), &own);
        reach.map_err(|error| match error {
            NotAllowed::Unresolved(_) => Trouble::Unreachable(error.to_string()),
            _ => Trouble::NotAllowed(error.to_string()),
        })
    }

    fn ask(&self, line: &mut Line) -> Result<Advertised, Trouble> {
        for _ in 0..=MAX_REDIRECTS {
            let Line { reach, secret, key, .. } = &*line;
            match ask(self.git, reach, secret.as_ref(), key.as_ref(), &self.patterns(), self.limits.0) {
                Ok(Asked::Refs(refs)) => return Ok(refs),
                Ok(Asked::Redirect(location)) => {
                    let shown = || sandbox_git::printable(location.split('?').next().unwrap_or("").as_bytes());
                    let to = reach.redirected(&location, secret.is_some());
                    let to = to.ok_or_else(|| Trouble::Moved(shown()))?;
                    line.reach = self.reach(&to)?;
                    line.moved_to = Some(to.url().to_owned());
                }
                Err(trouble) => {
                    if let (Trouble::Denied(_), Some(credential)) = (&trouble, self.credential) {
                        self.keeper.refused(&credential.source, &credential.host);
                    }
                    return Err(trouble);
                }
            }
        }
        Err(Trouble::Moved("a circle of redirects".to_owned()))
    }

    /// The first clone: made below `tmp/`, renamed into place when it is whole.
    fn clone(&self, line: &Line, repo: &MirrorRepo, upstream: &Advertised) -> Result<Done, Trouble> {
        let temp = self.temp("clone-")?;
        let dir = temp.path().join("r.git");
        let format = upstream.format().unwrap_or_default();
        let made =
            MirrorRepo::create(self.git, &dir, format, &self.spec.url).map_err(|e| Trouble::Local(e.to_string()))?;
        let plan = RefPlan::new(&BTreeMap::new(), None, upstream);
        if !plan.new.is_empty() {
            self.fetch(line, self.limits.1).run(&made, &plan.new, None)?;
        }
        self.write(&made, &plan, &BTreeSet::new())?;
        // One file, synced once: a file and a sync for each of 15 000 refs takes minutes on a slow disk.
        let pack = made.git(self.git).args(["pack-refs", "--all", "--prune"]);
        pack.run().map_err(|error| Trouble::Local(error.to_string()))?;
        let bytes = du(&dir.join("objects/pack"));
        let target = repo.dir();
        fs::create_dir_all(target.parent().unwrap_or(target)).map_err(|error| Trouble::Local(error.to_string()))?;
        fs::rename(&dir, target).map_err(|error| Trouble::Local(error.to_string()))?;
        Ok(Done { cloned: true, changed: plan.update.len(), bytes, format, ..Done::default() })
    }

    fn update(&self, line: &Line, repo: &MirrorRepo, upstream: &Advertised) -> Result<Done, Trouble> {
        let ours =
            staging::tips_format(repo).ok_or_else(|| Trouble::Corrupt("its configuration is unreadable".to_owned()))?;
        let have = Have::read(self.git, repo)?;
        if let Some(theirs) = upstream.format().filter(|theirs| *theirs != ours) {
            if have.refs.is_empty() && have.pins.is_empty() {
                // Nothing was served but that it is empty.
                fs::remove_dir_all(repo.dir()).map_err(|error| Trouble::Local(error.to_string()))?;
                return self.clone(line, repo, upstream);
            }
            return Err(Trouble::Corrupt(format!("it has {ours} objects, and the upstream has {theirs} now")));
        }
        let plan = RefPlan::new(&have.refs, have.head.as_ref(), upstream);
        let mut done = Done { format: ours, ..Done::default() };
        if plan.is_empty() && !self.doubted {
            return Ok(done);
        }
        let known = have.tips();
        // A fetch would mend a part of what is broken and hide the rest.
        let lost = absent(self.git, repo, &known).map_err(|error| self.judge(repo, error))?;
        if !lost.is_empty() {
            return Err(Trouble::Corrupt(format!("{} of its {} tips are missing", lost.len(), known.len())));
        }
        if plan.is_empty() {
            return Ok(done);
        }
        let new: BTreeSet<Oid> = plan.new.difference(&known).copied().collect();
        // Until refs name what came.
        let mut _kept = None;
        if !new.is_empty() {
            let taken = self.receive(line, repo, &new, &known)?;
            done.bytes = taken.bytes;
            _kept = Some(taken);
        }
        let tips = upstream.refs.values().copied();
        let pins = pins::to_pin(self.git, repo, &plan.left, tips).map_err(|error| self.judge(repo, error))?;
        pins::note(repo.dir(), &pins, self.now).map_err(|error| Trouble::Local(error.to_string()))?;
        self.write(repo, &plan, &pins)?;
        done.changed = plan.update.len() + plan.first.len() + plan.last.len();
        done.pinned = pins.len();
        Ok(done)
    }

    /// Gets commits that nothing advertises, if the upstream gives them; they are pinned.
    fn want(&self, line: &Line, repo: &MirrorRepo, done: &mut Done) -> Result<(), Trouble> {
        let wanted: BTreeSet<Oid> = self.wanted.iter().filter(|oid| oid.format() == done.format).copied().collect();
        done.refused = self.wanted.difference(&wanted).copied().collect();
        let missing = absent(self.git, repo, &wanted).map_err(|error| self.judge(repo, error))?;
        if missing.is_empty() {
            return Ok(());
        }
        let known = Have::read(self.git, repo)?.tips();
        for oid in missing {
            // One by one: a single one that is not there refuses them all.
            let one = BTreeSet::from([oid]);
            match self.receive(line, repo, &one, &known) {
                Ok(taken) => {
                    done.bytes += taken.bytes;
                    pins::note(repo.dir(), &one, self.now).map_err(|error| Trouble::Local(error.to_string()))?;
                    self.write(repo, &RefPlan::default(), &one)?;
                }
                Err(Trouble::Raced | Trouble::Unreachable(_)) => drop(done.refused.insert(oid)),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Fetches into a staging repository and takes what came.
    fn receive(
        &self,
        line: &Line,
        repo: &MirrorRepo,
        new: &BTreeSet<Oid>,
        known: &BTreeSet<Oid>,
    ) -> Result<TakenIn, Trouble> {
        let temp = self.temp("fetch-")?;
        let (stage, tips) =
            staging::make(self.git, &temp.path().join("r.git"), repo, &line.reach, known.iter().copied())?;
        self.fetch(line, self.limits.0).run(&stage, new, Some(&tips)).map_err(|trouble| match &trouble {
            // It also reads the mirror.
            Trouble::Unreachable(said) if is_corrupt(said) && !self.is_whole(repo) => Trouble::Corrupt(said.clone()),
            _ => trouble,
        })?;
        staging::promote(&stage, repo).map_err(|error| Trouble::Local(error.to_string()))
    }

    fn fetch<'a>(&'a self, line: &'a Line, limit: Duration) -> Fetch<'a> {
        Fetch { git: self.git, reach: &line.reach, secret: line.secret.as_ref(), key: line.key.as_ref(), limit }
    }

    fn temp(&self, prefix: &str) -> Result<tempfile::TempDir, Trouble> {
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(self.layout.tmp());
        made.map_err(|error| Trouble::Local(format!("cannot write '{}': {error}", self.layout.tmp().display())))
    }

    /// Writes refs, pins and `HEAD` in the order of [`RefPlan`].
    fn write(&self, repo: &MirrorRepo, plan: &RefPlan, pins: &BTreeSet<Oid>) -> Result<(), Trouble> {
        let delete = |names: &[RefName]| {
            names.iter().flat_map(|name| [b"delete ", name.as_bytes(), b"\0\0"].concat()).collect::<Vec<u8>>()
        };
        let mut first: Vec<u8> =
            pins.iter().flat_map(|oid| format!("update refs/keep/{oid}\0{oid}\0\0").into_bytes()).collect();
        let mut update: Vec<u8> = Vec::new();
        for (name, oid) in &plan.update {
            update.extend_from_slice(&[b"update ", name.as_bytes(), format!("\0{oid}\0\0").as_bytes()].concat());
        }
        if plan.first.is_empty() {
            // Nothing in the way: pins and moves are one step.
            first.append(&mut update);
        } else {
            first.extend(delete(&plan.first));
        }
        for step in [first, update] {
            self.transaction(repo, step)?;
        }
        if let Some(head) = plan.head.as_ref().and_then(RefName::to_str) {
            let set = repo.git(self.git).args(["symbolic-ref", "HEAD", head]);
            set.run().map_err(|error| self.judge(repo, error))?;
        }
        self.transaction(repo, delete(&plan.last))
    }

    fn transaction(&self, repo: &MirrorRepo, input: Vec<u8>) -> Result<(), Trouble> {
        if input.is_empty() {
            return Ok(());
        }
        let mut command =
            repo.git(self.git).config("core.filesRefLockTimeout=5000").config("core.packedRefsTimeout=5000");
        if repo.dir() != self.layout.mirror(&self.spec.name) {
            // Nobody sees it yet: its refs are synced together, when they are packed.
            command = command.config("core.fsync=-reference");
        }
        let running = command.stdin(input).args(["update-ref", "-z", "--stdin"]).spawn().map_err(started)?;
        match finish(running)? {
            Ended::Well(_) => Ok(()),
            Ended::Badly(said) => {
                let line = sandbox_git::printable(said.lines().next().unwrap_or("no message").as_bytes());
                Err(if is_corrupt(&said) || !self.is_whole(repo) {
                    Trouble::Corrupt(line)
                } else {
                    Trouble::Local(line)
                })
            }
        }
    }

    /// What a failure inside the mirror means.
    fn judge(&self, repo: &MirrorRepo, error: GitError) -> Trouble {
        let said = error.to_string();
        if is_corrupt(&said) || !self.is_whole(repo) { Trouble::Corrupt(said) } else { Trouble::Local(said) }
    }

    /// Whether all tips can be read: cheap, and enough to tell a broken store from a broken upstream.
    fn is_whole(&self, repo: &MirrorRepo) -> bool {
        let all = repo.git(self.git).args(["for-each-ref", "--format=%(objecttype)"]);
        all.output().is_ok_and(|out| String::from_utf8_lossy(&out.stderr).is_empty())
    }
}

fn du(dir: &std::path::Path) -> u64 {
    let sizes = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    sizes.map(|meta| meta.len()).sum()
}
