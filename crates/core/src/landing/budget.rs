//! How large a received tree is when all its directories are unfolded. A pack of a few hundred
//! kilobytes can hold a tree of a billion files, at which any `diff` would choke: it is refused
//! before any is made.
//!
//! A commit's tree is walked beside its parent's: what is equal there costs nothing, so an ordinary
//! commit reads the directories that it touched.

use super::{Landing, LandingError, Result, Want};
use sandbox_git::{GitError, Oid, RefName, Running};
use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

/// The deepest nesting of directories.
const MAX_DEPTH: u32 = 256;
/// The longest path, in bytes.
const MAX_PATH: u32 = 4096;
/// The most commits that one land may bring.
const MAX_COMMITS: usize = 200_000;
/// The largest tree object, in bytes.
const MAX_TREE: u64 = 64 << 20;

/// How many times the entries of one commit all commits of one land may change together.
const LAND: u64 = 16;

/// Why one want is not judged to be fit, or nothing can be judged.
enum Stop {
    /// This one is refused.
    Refused(String),
    /// It is not the sandbox's fault.
    Failed(LandingError),
}

impl From<LandingError> for Stop {
    fn from(error: LandingError) -> Self {
        Self::Failed(error)
    }
}

impl From<GitError> for Stop {
    fn from(error: GitError) -> Self {
        Self::Failed(error.into())
    }
}

type Judged<T> = std::result::Result<T, Stop>;

/// The reason of a refusal, `None` when there is none.
fn reason(judged: Judged<()>) -> Result<Option<String>> {
    match judged {
        Ok(()) => Ok(None),
        Err(Stop::Refused(reason)) => Ok(Some(reason)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Returns for each want the reason why it is refused, if it is: not what its name stands for, over a
/// budget, or not checked within `time`.
pub(super) fn judge(
    landing: &Landing,
    walker: &mut Walker,
    wants: &[Want],
    time: Duration,
) -> Result<Vec<Option<String>>> {
    let end = Instant::now() + time;
    let mut verdicts = Vec::with_capacity(wants.len());
    for (n, want) in wants.iter().enumerate() {
        walker.share(end, (wants.len() - n) * 2);
        verdicts.push(reason(unfit(landing, walker, want))?);
    }
    let fit = |verdicts: &[Option<String>]| -> BTreeSet<Oid> {
        wants.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_none()).map(|(want, _)| want.oid).collect()
    };
    let tips = fit(&verdicts);
    walker.share(end, 2);
    if tips.is_empty() || reason(check(landing, walker, &tips))?.is_none() {
        return Ok(verdicts);
    }
    // Something is too large: find which refs lead to it. One of them does not use up the time of the others.
    let mut left = tips.len();
    for tip in tips {
        walker.share(end, left);
        left -= 1;
        if let Some(reason) = reason(check(landing, walker, &BTreeSet::from([tip])))? {
            for (_, verdict) in wants.iter().zip(&mut verdicts).filter(|(want, _)| want.oid == tip) {
                verdict.get_or_insert_with(|| reason.clone());
            }
        }
    }
    Ok(verdicts)
}

/// `refs/sandbox-meta/<name>/tags/…`; a sandbox may itself be called `tags`.
fn is_tag(name: &RefName) -> bool {
    let mut parts = name.as_bytes().split(|byte| *byte == b'/').skip(1);
    parts.next() == Some(b"sandbox-meta") && parts.nth(1) == Some(b"tags")
}

/// A ref that people merge, check out or pop holds a commit; a tag may hold anything, but a tree under
/// it is unfolded by whoever looks.
fn unfit(landing: &Landing, walker: &mut Walker, want: &Want) -> Judged<()> {
    let tag = is_tag(&want.name);
    let refused = |why: &str| Err(Stop::Refused(why.to_owned()));
    let mut oid = want.oid;
    for _ in 0..16 {
        let head = walker.ask("info", oid)?;
        match head.split(|b| *b == b' ').nth(1) {
            Some(b"commit") if tag || oid == want.oid => return Ok(()),
            Some(b"tag") if tag => {
                let body = walker.object(oid)?.map(|(_, body)| body).unwrap_or_default();
                let line = body.split(|b| *b == b'\n').next().unwrap_or_default();
                match line.strip_prefix(b"object ").and_then(Oid::parse) {
                    Some(inner) => oid = inner,
                    None => return refused("its tag names nothing"),
                }
            }
            Some(b"tree") if tag => return limit(walker.total(oid, 0)?, landing.bounds.entries),
            Some(b"blob") if tag => return Ok(()),
            Some(b"commit" | b"tag" | b"tree" | b"blob") => return refused("it is not a commit"),
            _ => return Err(Stop::Refused(format!("its object {oid} is missing"))),
        }
    }
    refused("its tags are nested without end")
}

fn check(landing: &Landing, walker: &mut Walker, tips: &BTreeSet<Oid>) -> Judged<()> {
    let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
    input.extend(landing.granted.iter().map(|oid| format!("^{oid}\n")));
    // Ids only: a commit can name millions of parents.
    let count = format!("--max-count={}", MAX_COMMITS + 1);
    let mut commits: Vec<Oid> = Vec::new();
    let command = landing.command().args(["rev-list", "--stdin", &count]).timeout(walker.left()).stdin(input);
    let listed = command.lines(|line| {
        commits.extend(Oid::parse(line));
        ControlFlow::Continue(())
    });
    match listed {
        Err(GitError::Timeout { .. }) => return Err(walker.late()),
        other => other?,
    }
    if commits.len() > MAX_COMMITS {
        return Err(Stop::Refused(format!("it brings more than {MAX_COMMITS} commits")));
    }
    let (most, mut sum) = (landing.bounds.entries, 0u64);
    // Oldest first: a tree is compared with one that was checked before it.
    for commit in commits.into_iter().rev() {
        let Commit { tree: Some(tree), parent } = walker.commit(commit)? else { continue };
        let parent = match parent {
            Some(parent) => walker.commit(parent)?.tree,
            None => None,
        };
        let changed = walker.compare(tree, parent, 0)?;
        limit(changed, most)?;
        sum = sum.saturating_add(changed.entries);
        if sum > most.saturating_mul(LAND) {
            return Err(Stop::Refused(format!("its commits change more than {} entries together", most * LAND)));
        }
    }
    Ok(())
}

/// A directory unfolded: all of it, or what differs from another one.
#[derive(Clone, Copy, Default)]
struct Total {
    entries: u64,
    depth: u32,
    path: u32,
}

impl Total {
    /// Adds an entry whose name has this many bytes, with what is below it.
    fn add(&mut self, name: usize, below: Self, itself: u64) {
        let length = u32::try_from(name).unwrap_or(u32::MAX).saturating_add(1);
        self.entries = self.entries.saturating_add(itself).saturating_add(below.entries);
        self.depth = self.depth.max(below.depth + 1);
        self.path = self.path.max(length.saturating_add(below.path));
    }
}

/// What of a commit matters here. A shallow boundary has no such parent.
#[derive(Clone, Copy, Default)]
struct Commit {
    tree: Option<Oid>,
    parent: Option<Oid>,
}

/// One `git cat-file --batch-command` in the landing, for all questions of one land.
pub(super) struct Walker {
    start: Box<dyn Fn() -> Result<Talk>>,
    talk: Talk,
    until: Instant,
    time: Duration,
    totals: HashMap<Oid, Total>,
    commits: HashMap<Oid, Commit>,
    /// Differences by both directories: commits that go to and fro between two trees cost nothing more.
    pairs: HashMap<(Oid, Oid), Total>,
}

struct Talk {
    _running: Running,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

type Entries = Vec<(Vec<u8>, bool, Oid)>;

impl Walker {
    pub(super) fn start(landing: &Landing) -> Result<Self> {
        // It lives as long as the land: the fetches, then the judgement.
        let (git, dir, bounds) = (landing.git.clone(), landing.dir.clone(), landing.bounds);
        let start = move || {
            let command = super::command(&git, &dir, bounds).timeout(bounds.time * 3);
            let mut running = command.args(["cat-file", "--batch-command"]).converse()?;
            let stdin = running.stdin.take().expect("standard input is piped");
            let out = BufReader::new(running.stdout.take().expect("standard output is piped"));
            Ok(Talk { _running: running, stdin, out })
        };
        Ok(Self {
            talk: start()?,
            start: Box::new(start),
            until: Instant::now() + bounds.time,
            time: bounds.time,
            totals: HashMap::new(),
            commits: HashMap::new(),
            pairs: HashMap::new(),
        })
    }

    /// Gives what comes now its share of the time that is left until `end`.
    fn share(&mut self, end: Instant, parts: usize) {
        let now = Instant::now();
        self.time = end.saturating_duration_since(now) / u32::try_from(parts).unwrap_or(u32::MAX).max(1);
        self.until = now + self.time;
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn late(&self) -> Stop {
        Stop::Refused(format!("checking it takes longer than {}", seconds(self.time)))
    }

    /// Unfolds what differs from `base`, each pair of directories once.
    fn compare(&mut self, tree: Oid, base: Option<Oid>, depth: u32) -> Judged<Total> {
        let Some(base) = base else { return self.total(tree, depth) };
        if base == tree {
            return Ok(Total::default());
        }
        if let Some(total) = self.pairs.get(&(tree, base)) {
            return Ok(*total);
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let entries = self.entries(tree)?;
        let old: HashMap<Vec<u8>, (bool, Oid)> =
            self.entries(base)?.into_iter().map(|(name, dir, oid)| (name, (dir, oid))).collect();
        let mut total = Total::default();
        for (name, dir, oid) in entries {
            let before = old.get(&name);
            if before == Some(&(dir, oid)) {
                continue;
            }
            match (dir, before) {
                (true, Some((true, base))) => total.add(name.len(), self.compare(oid, Some(*base), depth + 1)?, 0),
                (true, _) => total.add(name.len(), self.total(oid, depth + 1)?, 0),
                (false, _) => total.add(name.len(), Total::default(), 1),
            }
        }
        self.pairs.insert((tree, base), total);
        Ok(total)
    }

    /// Unfolds a whole directory, each distinct one once.
    fn total(&mut self, tree: Oid, depth: u32) -> Judged<Total> {
        if let Some(total) = self.totals.get(&tree) {
            return Ok(*total);
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let mut total = Total { depth: 1, ..Total::default() };
        for (name, dir, oid) in self.entries(tree)? {
            let below = if dir { self.total(oid, depth + 1)? } else { Total::default() };
            total.add(name.len(), below, 1);
        }
        self.totals.insert(tree, total);
        Ok(total)
    }

    fn commit(&mut self, commit: Oid) -> Judged<Commit> {
        if let Some(known) = self.commits.get(&commit) {
            return Ok(*known);
        }
        let mut found = Commit::default();
        if let Some((kind, body)) = self.object(commit)?
            && kind == b"commit"
        {
            // `tree <id>` is the first line, `parent <id>` the next ones.
            let mut lines = body.split(|byte| *byte == b'\n');
            found.tree = lines.next().and_then(|line| Oid::parse(line.strip_prefix(b"tree ")?));
            found.parent = lines.next().and_then(|line| Oid::parse(line.strip_prefix(b"parent ")?));
        }
        self.commits.insert(commit, found);
        Ok(found)
    }

    fn entries(&mut self, tree: Oid) -> Judged<Entries> {
        let raw = tree.format().raw_len();
        let Some((kind, body)) = self.object(tree)? else {
            // Absent in a partial clone: nothing of it can be shown either.
            return Ok(Vec::new());
        };
        let mut entries = Vec::new();
        let mut rest = body.as_slice();
        while kind == b"tree" && !rest.is_empty() {
            let space = rest.iter().position(|b| *b == b' ');
            let nul = rest.iter().position(|b| *b == 0);
            let (Some(space), Some(nul)) = (space, nul) else { break };
            let Some(oid) = rest.get(nul + 1..nul + 1 + raw).and_then(Oid::from_raw) else { break };
            let dir = matches!(&rest[..space], b"40000" | b"040000");
            entries.push((rest[space + 1..nul].to_vec(), dir, oid));
            rest = &rest[nul + 1 + raw..];
        }
        Ok(entries)
    }

    /// Whether a commit or a tag is there: granted, or accepted before, and so with all it reaches.
    /// (Trees and blobs of the index are in a view without what they name.)
    pub(super) fn is_there(&mut self, oid: Oid) -> Result<bool> {
        match self.ask("info", oid) {
            Ok(head) => Ok(matches!(head.split(|b| *b == b' ').nth(1), Some(b"commit" | b"tag"))),
            Err(Stop::Refused(_)) => Ok(false),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn ask(&mut self, what: &str, oid: Oid) -> Judged<Vec<u8>> {
        if Instant::now() >= self.until {
            return Err(self.late());
        }
        let mut head = Vec::new();
        let asked = writeln!(self.talk.stdin, "{what} {oid}").and_then(|()| self.talk.stdin.flush());
        let answered = asked.and_then(|()| self.talk.out.read_until(b'\n', &mut head));
        // It never answers without a line's end: it met a limit, at this object.
        if answered.is_err() || head.pop() != Some(b'\n') {
            return Err(self.again(format!("its object {oid} cannot be read within the limits")));
        }
        Ok(head)
    }

    /// Goes on with a new process after one object was refused.
    fn again(&mut self, why: String) -> Stop {
        match (self.start)() {
            Ok(talk) => {
                self.talk = talk;
                Stop::Refused(why)
            }
            Err(error) => Stop::Failed(error),
        }
    }

    fn object(&mut self, oid: Oid) -> Judged<Option<(Vec<u8>, Vec<u8>)>> {
        let head = self.ask("contents", oid)?;
        let words: Vec<&[u8]> = head.split(|b| *b == b' ').collect();
        let [_, kind, size] = words[..] else { return Ok(None) };
        let size: u64 = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        if size > MAX_TREE {
            // Its contents are on their way: nobody reads them.
            return Err(self.again(format!("its object {oid} has {size} bytes")));
        }
        let mut body = vec![0; size as usize + 1];
        if self.talk.out.read_exact(&mut body).is_err() {
            return Err(self.again(format!("its object {oid} cannot be read within the limits")));
        }
        body.pop();
        Ok(Some((kind.to_vec(), body)))
    }
}

/// A time in words: a share of it may be a part of a second.
fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} s", time.as_secs())
    }
}

fn too_deep() -> Stop {
    Stop::Refused(format!("its directories are nested more than {MAX_DEPTH} deep"))
}

fn limit(total: Total, budget: u64) -> Judged<()> {
    if total.entries > budget {
        Err(Stop::Refused(format!("a tree of it has more than {budget} entries")))
    } else if total.depth > MAX_DEPTH {
        Err(too_deep())
    } else if total.path > MAX_PATH {
        Err(Stop::Refused(format!("it has a path longer than {MAX_PATH} bytes")))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_time_is_never_nothing() {
        let shown = [100, 900, 9_949, 10_000, 600_000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(shown, ["0.1 s", "0.9 s", "9.9 s", "10 s", "600 s"]);
    }

    #[test]
    fn a_sandbox_called_tags_has_no_more_tags_than_others() {
        let is = |name: &str| is_tag(&RefName::parse(name).unwrap());
        assert!(is("refs/sandbox-meta/x/tags/v1") && is("refs/sandbox-meta/tags/tags/v1"));
        for name in ["refs/sandbox-meta/tags/heads/a", "refs/sandbox/tags", "refs/sandbox-meta/x/heads/tags/a"] {
            assert!(!is(name), "{name}");
        }
    }
}
