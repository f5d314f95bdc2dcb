//! How large a received tree is when all its directories are unfolded. A pack of a few hundred
//! kilobytes can hold a tree of a billion files, at which any `diff` would choke: it is refused
//! before any is made.
//!
//! A commit's tree is walked beside its parent's: what is equal there costs nothing, so an ordinary
//! commit reads the directories that it touched.

use super::{Landing, Result, Want, failed};
use sandbox_git::{GitError, Oid, Running, printable};
use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};

/// The deepest nesting of directories.
const MAX_DEPTH: u32 = 256;
/// The longest path, in bytes.
const MAX_PATH: u32 = 4096;
/// The most commits that one land may bring.
const MAX_COMMITS: usize = 200_000;
/// The largest tree object, in bytes.
const MAX_TREE: u64 = 64 << 20;

/// Returns for each want the reason why it is refused, if it is: not what its name stands for, or
/// over a budget.
pub(super) fn judge(landing: &Landing, walker: &mut Walker, wants: &[Want]) -> Result<Vec<Option<String>>> {
    let mut verdicts = Vec::with_capacity(wants.len());
    for want in wants {
        verdicts.push(unfit(landing, walker, want)?);
    }
    let fit = |verdicts: &[Option<String>]| -> BTreeSet<Oid> {
        wants.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_none()).map(|(want, _)| want.oid).collect()
    };
    let tips = fit(&verdicts);
    if tips.is_empty() || check(landing, walker, &tips)?.is_none() {
        return Ok(verdicts);
    }
    // Something is too large: find which refs lead to it.
    for tip in tips {
        if let Some(reason) = check(landing, walker, &BTreeSet::from([tip]))? {
            for (_, verdict) in wants.iter().zip(&mut verdicts).filter(|(want, _)| want.oid == tip) {
                verdict.get_or_insert_with(|| reason.clone());
            }
        }
    }
    Ok(verdicts)
}

/// A ref that people merge, check out or pop holds a commit; a tag may hold anything, but a tree under
/// it is unfolded by whoever looks.
fn unfit(landing: &Landing, walker: &mut Walker, want: &Want) -> Result<Option<String>> {
    let tag = want.name.as_bytes().windows(6).any(|part| part == b"/tags/");
    let mut oid = want.oid;
    for _ in 0..16 {
        let head = walker.ask("info", oid)?;
        match head.split(|b| *b == b' ').nth(1) {
            Some(b"commit") if tag || oid == want.oid => return Ok(None),
            Some(b"tag") if tag => {
                let body = walker.object(oid)?.map(|(_, body)| body).unwrap_or_default();
                let line = body.split(|b| *b == b'\n').next().unwrap_or_default();
                match line.strip_prefix(b"object ").and_then(Oid::parse) {
                    Some(inner) => oid = inner,
                    None => return Ok(Some("its tag names nothing".to_owned())),
                }
            }
            Some(b"tree") if tag => {
                return Ok(match walker.total(oid, 0)? {
                    Some(total) => limit(total.entries, total.depth, total.path, landing.bounds.entries),
                    None => Some(format!("its directories are nested more than {MAX_DEPTH} deep")),
                });
            }
            Some(b"blob") if tag => return Ok(None),
            Some(b"commit" | b"tag" | b"tree" | b"blob") => return Ok(Some("it is not a commit".to_owned())),
            _ => return Ok(Some(format!("its object {oid} is missing"))),
        }
    }
    Ok(Some("its tags are nested without end".to_owned()))
}

fn check(landing: &Landing, walker: &mut Walker, tips: &BTreeSet<Oid>) -> Result<Option<String>> {
    let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
    input.extend(landing.granted.iter().map(|oid| format!("^{oid}\n")));
    let args = ["rev-list", "--stdin", "--format=%T %P"];
    let out = landing.git.landing(&landing.dir).args(args).stdin(input).output()?;
    let commits: Vec<&[u8]> =
        out.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"commit ")).collect();
    if commits.len() > MAX_COMMITS {
        return Ok(Some(format!("it brings more than {MAX_COMMITS} commits")));
    }
    // Oldest first: a tree is compared with one that was checked before it.
    for line in commits.into_iter().rev() {
        let mut ids = line.split(|b| *b == b' ').filter_map(Oid::parse);
        let Some(tree) = ids.next() else { continue };
        let parent = match ids.next() {
            Some(parent) => walker.tree_of(parent)?,
            None => None,
        };
        let mut sum = Sum::default();
        let verdict = walker.compare(tree, parent, 0, 0, &mut sum, landing.bounds.entries)?;
        if let Some(reason) = verdict {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

#[derive(Default)]
struct Sum {
    entries: u64,
}

/// A whole directory, unfolded.
#[derive(Clone, Copy)]
struct Total {
    entries: u64,
    depth: u32,
    path: u32,
}

/// One `git cat-file --batch-command` in the landing, for all questions of one land.
pub(super) struct Walker {
    _running: Running,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
    totals: HashMap<Oid, Total>,
    trees: HashMap<Oid, Option<Oid>>,
}

type Entries = Vec<(Vec<u8>, bool, Oid)>;

impl Walker {
    pub(super) fn start(landing: &Landing) -> Result<Self> {
        let mut running = landing.git.landing(&landing.dir).args(["cat-file", "--batch-command"]).converse()?;
        let stdin = running.stdin.take().expect("standard input is piped");
        let out = BufReader::new(running.stdout.take().expect("standard output is piped"));
        Ok(Self { _running: running, stdin, out, totals: HashMap::new(), trees: HashMap::new() })
    }

    /// Walks what differs from `base`; the reason if a budget is exceeded.
    fn compare(
        &mut self,
        tree: Oid,
        base: Option<Oid>,
        depth: u32,
        path: u32,
        sum: &mut Sum,
        budget: u64,
    ) -> Result<Option<String>> {
        if base == Some(tree) {
            return Ok(None);
        }
        if depth > MAX_DEPTH {
            return Ok(Some(format!("its directories are nested more than {MAX_DEPTH} deep")));
        }
        let entries = self.entries(tree)?;
        let old: HashMap<Vec<u8>, (bool, Oid)> = match base {
            Some(base) => self.entries(base)?.into_iter().map(|(name, dir, oid)| (name, (dir, oid))).collect(),
            None => HashMap::new(),
        };
        for (name, dir, oid) in entries {
            let before = old.get(&name);
            if before == Some(&(dir, oid)) {
                continue;
            }
            let path = path + name.len() as u32 + 1;
            let reason = match (dir, before) {
                (true, Some((true, base))) => self.compare(oid, Some(*base), depth + 1, path, sum, budget)?,
                (true, _) => match self.total(oid, depth + 1)? {
                    Some(total) => {
                        sum.entries = sum.entries.saturating_add(total.entries);
                        limit(sum.entries, depth + total.depth, path + total.path, budget)
                    }
                    None => Some(format!("its directories are nested more than {MAX_DEPTH} deep")),
                },
                (false, _) => {
                    sum.entries += 1;
                    limit(sum.entries, depth, path, budget)
                }
            };
            if reason.is_some() {
                return Ok(reason);
            }
        }
        Ok(None)
    }

    /// Unfolds a whole directory, each distinct one once; `None` when it is too deep.
    fn total(&mut self, tree: Oid, depth: u32) -> Result<Option<Total>> {
        if let Some(total) = self.totals.get(&tree) {
            return Ok(Some(*total));
        }
        if depth > MAX_DEPTH {
            return Ok(None);
        }
        let mut total = Total { entries: 0, depth: 1, path: 0 };
        for (name, dir, oid) in self.entries(tree)? {
            let length = name.len() as u32 + 1;
            total.entries = total.entries.saturating_add(1);
            total.path = total.path.max(length);
            if dir {
                let Some(below) = self.total(oid, depth + 1)? else { return Ok(None) };
                total.entries = total.entries.saturating_add(below.entries);
                total.depth = total.depth.max(below.depth + 1);
                total.path = total.path.max(length.saturating_add(below.path));
            }
        }
        self.totals.insert(tree, total);
        Ok(Some(total))
    }

    fn tree_of(&mut self, commit: Oid) -> Result<Option<Oid>> {
        if let Some(tree) = self.trees.get(&commit) {
            return Ok(*tree);
        }
        // `tree <id>` is the first line. A shallow boundary has no such parent.
        let tree = match self.object(commit)? {
            Some((kind, body)) if kind == b"commit" => {
                body.strip_prefix(b"tree ").and_then(|rest| Oid::parse(rest.split(|b| *b == b'\n').next()?))
            }
            _ => None,
        };
        self.trees.insert(commit, tree);
        Ok(tree)
    }

    fn entries(&mut self, tree: Oid) -> Result<Entries> {
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
        let head = self.ask("info", oid)?;
        Ok(matches!(head.split(|b| *b == b' ').nth(1), Some(b"commit" | b"tag")))
    }

    fn ask(&mut self, what: &str, oid: Oid) -> Result<Vec<u8>> {
        let pipe = Path::new("git cat-file");
        self.stdin.write_all(format!("{what} {oid}\n").as_bytes()).map_err(failed("write", pipe))?;
        self.stdin.flush().map_err(failed("write", pipe))?;
        let mut head = Vec::new();
        self.out.read_until(b'\n', &mut head).map_err(failed("read", pipe))?;
        Ok(head.strip_suffix(b"\n").unwrap_or(&head).to_vec())
    }

    fn object(&mut self, oid: Oid) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let pipe = Path::new("git cat-file");
        let head = self.ask("contents", oid)?;
        let words: Vec<&[u8]> = head.split(|b| *b == b' ').collect();
        let [_, kind, size] = words[..] else { return Ok(None) };
        let size: u64 = std::str::from_utf8(size).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        if size > MAX_TREE {
            let what = format!("an object of {size} bytes: {}", printable(&head));
            return Err(GitError::Unexpected { command: "git cat-file".into(), what }.into());
        }
        let mut body = vec![0; size as usize + 1];
        self.out.read_exact(&mut body).map_err(failed("read", pipe))?;
        body.pop();
        Ok(Some((kind.to_vec(), body)))
    }
}

fn limit(entries: u64, depth: u32, path: u32, budget: u64) -> Option<String> {
    if entries > budget {
        Some(format!("a tree of it has more than {budget} entries"))
    } else if depth > MAX_DEPTH {
        Some(format!("its directories are nested more than {MAX_DEPTH} deep"))
    } else if path > MAX_PATH {
        Some(format!("it has a path longer than {MAX_PATH} bytes"))
    } else {
        None
    }
}
