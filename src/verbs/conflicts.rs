//! `conflicts`: which sandboxes collide, with each other and with the branch here. Told from the commits
//! that this repository has: no sandbox is opened, no object is left behind.

use super::list::print_json;
use super::stop::chosen;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape, table};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, write_json};
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::{Cache, Identity, Matrix, Pair, Repo, matrix, with_edits};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// What the commit that is checked out here is called in a table: no sandbox can have this name.
pub const HERE: &str = "HEAD";

/// Up to this many, the table is a matrix; above, it is a list of the pairs that collide.
const WIDE: usize = 10;

/// Paths that are printed of one pair.
const PATHS: usize = 10;

/// Time between two looks at the refs.
const POLL: Duration = Duration::from_millis(500);

/// One line of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tip {
    /// The sandbox, or `HEAD`.
    pub name: String,
    /// The branch that is checked out here; of `HEAD` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Its commit. With `--uncommitted`, one that has what is not committed too.
    pub commit: Oid,
}

impl Tip {
    fn shown(&self) -> String {
        match &self.branch {
            Some(branch) => format!("{} ({})", self.name, escape(branch)),
            None => self.name.clone(),
        }
    }
}

/// How sandboxes stand to each other, and to the commit that is checked out here.
#[derive(Debug)]
pub struct Table {
    /// `HEAD` first, if it is born; then the sandboxes that have commits.
    pub tips: Vec<Tip>,
    /// Sandboxes without any.
    pub without: Vec<String>,
    matrix: Matrix,
}

impl Table {
    /// Reads it, from the cache as far as that knows. `None`: no sandbox was named.
    pub fn read(
        context: &Context,
        store: &Store,
        sandboxes: &[Sandbox],
        uncommitted: bool,
    ) -> Result<Option<Self>, CliError> {
        let Some(first) = sandboxes.first() else { return Ok(None) };
        one_repository(&sandboxes.iter().collect::<Vec<_>>())?;
        let repo = open_aside(context, store, first)?;
        let head = repo.head()?;
        let here = head.commit.map(|commit| Tip {
            name: HERE.to_owned(),
            branch: head.reference.is_some().then(|| head.short().to_owned()),
            commit,
        });
        let mut tips: Vec<Tip> = here.into_iter().collect();
        let mut without = Vec::new();
        for sandbox in sandboxes {
            match commit_of(context, store, sandbox, &repo, uncommitted)? {
                Some(commit) => tips.push(Tip { name: sandbox.name().to_owned(), branch: None, commit }),
                None => without.push(sandbox.name().to_owned()),
            }
        }
        let file = store.repo(&first.mount().repo).path().join("conflicts.json");
        let mut cache = cached(&file);
        let commits: Vec<Oid> = tips.iter().map(|tip| tip.commit).collect();
        let matrix = matrix(&repo, head.commit, &commits, &mut cache)?;
        if cache.changed() && store.writable().is_ok() {
            // Not worth a failure, nor a sync: all of it can be found out again.
            let _ = write_json(&file, &cache, false);
        }
        Ok(Some(Self { tips, without, matrix }))
    }

    /// How one stands to another, by their numbers.
    pub fn pair(&self, a: usize, b: usize) -> Pair {
        self.matrix.get(a, b)
    }

    /// Those that collide, with the paths.
    pub fn collisions(&self) -> impl Iterator<Item = (&Tip, &Tip, &[String])> {
        self.matrix.conflicts().map(|(a, b, paths)| (&self.tips[a], &self.tips[b], paths))
    }

    fn is_here(&self, n: usize) -> bool {
        self.tips[n].name == HERE
    }

    fn cell(&self, row: usize, column: usize) -> String {
        match self.pair(row, column) {
            Pair::Same => "same".into(),
            // The first line is what is checked out here.
            Pair::Contains if self.is_here(column) => "ahead".into(),
            Pair::Contained if self.is_here(column) => "merged".into(),
            Pair::Contains => "has it".into(),
            Pair::Contained => "is in it".into(),
            Pair::Clean => "clean".into(),
            Pair::Conflict { paths } => match paths.len() {
                0 => "collide".into(),
                n => count(n, "path"),
            },
            Pair::Unrelated => "unrelated".into(),
        }
    }

    /// The lower half, with numbers for the columns.
    fn grid(&self) -> String {
        let last = self.tips.len().saturating_sub(1);
        let mut rows = vec![[vec![String::new()], (1..=last).map(|n| n.to_string()).collect()].concat()];
        let width = self.tips.len().to_string().len();
        for (n, tip) in self.tips.iter().enumerate() {
            let name = format!("{:>width$} {}", n + 1, tip.shown());
            rows.push([vec![name], (0..n).map(|column| self.cell(n, column)).collect()].concat());
        }
        table(&rows)
    }

    fn text(&self) -> String {
        let mut out = if self.tips.len() <= WIDE { self.grid() } else { String::new() };
        for (a, b, paths) in self.collisions() {
            if !out.is_empty() {
                out.push('\n');
            }
            let colon = if paths.is_empty() { "" } else { ":" };
            out.push_str(&format!("{} and {} collide{colon}\n", a.shown(), b.shown()));
            for path in paths.iter().take(PATHS) {
                out.push_str(&format!("  {}\n", escape(path)));
            }
            if paths.len() > PATHS {
                out.push_str(&format!("  … and {} more\n", paths.len() - PATHS));
            }
        }
        out
    }

    fn summary(&self) -> String {
        let sandboxes = self.tips.iter().filter(|tip| tip.name != HERE).count();
        let pairs = self.collisions().count();
        let with_head = self.collisions().filter(|(a, ..)| a.name == HERE).count();
        let told = match pairs {
            0 => "nothing collides".to_owned(),
            1 => "1 pair collides".to_owned(),
            n => format!("{n} pairs collide"),
        };
        let told = if with_head > 0 { format!("{told}, {with_head} of them with {HERE}") } else { told };
        format!("{sandboxes} sandbox{}: {told}", if sandboxes == 1 { "" } else { "es" })
    }
}

/// The sandboxes that are named, as given and each once; all of this repository by name.
pub fn in_order(context: &Context, store: &Store, names: &[String], all: bool) -> Result<Vec<Sandbox>, CliError> {
    let mut sandboxes = chosen(context, store, names, all)?;
    if all {
        sandboxes.sort_by(|a, b| a.name().cmp(b.name()));
    }
    let mut seen = BTreeSet::new();
    sandboxes.retain(|sandbox| seen.insert(sandbox.record.id.clone()));
    Ok(sandboxes)
}

/// Refuses sandboxes of different repositories: they have nothing to do with each other.
pub fn one_repository(sandboxes: &[&Sandbox]) -> Result<(), CliError> {
    let repo = |sandbox: &Sandbox| sandbox.mount().repo.clone();
    match sandboxes.iter().find(|other| repo(other) != repo(sandboxes[0])) {
        Some(other) => {
            let names = (sandboxes[0].name(), other.name());
            Err(CliError::usage(format!("'{}' and '{}' are of different repositories", names.0, names.1))
                .hint("run this inside the repository that is meant"))
        }
        None => Ok(()),
    }
}

/// The repository that is meant, such that nothing is left in it.
fn open_aside(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Repo, CliError> {
    let host = work::host(store, sandbox)?;
    let here = context.maybe_repo().filter(|repo| repo.common_dir() == host.common_dir()).unwrap_or(&host);
    Ok(Repo::open(context.git()?, here.top_or_gitdir(), here.git_dir(), &store.tmp())?)
}

/// More sandboxes than this are not compared for a mark in a list: it would take longer than the list.
const MARKED: usize = 50;

/// Whom each of these sandboxes of one repository collides with, by name: `HEAD` and others. From the cache without
/// any process, as long as no commit is new.
pub fn marks(
    context: &Context,
    store: &Store,
    sandboxes: &[Sandbox],
) -> Result<BTreeMap<String, Vec<String>>, CliError> {
    let mut marks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let Some(first) = sandboxes.first() else { return Ok(marks) };
    let mut with_tips = Vec::new();
    let Glance { head, tips } = Glance::take(context, store, sandboxes)?;
    for (sandbox, tip) in sandboxes.iter().zip(&tips) {
        let base = sandbox.snapshot(store)?.git.base.as_deref().and_then(Oid::parse);
        if let Some(tip) = tip.filter(|tip| Some(*tip) != base) {
            with_tips.push((sandbox, tip));
        }
    }
    if with_tips.is_empty() || with_tips.len() > MARKED {
        return Ok(marks);
    }
    let mut add = |a: &str, b: &str| {
        for (one, other) in [(a, b), (b, a)] {
            marks.entry(one.to_owned()).or_default().push(other.to_owned());
        }
    };
    let cache = cached(&store.repo(&first.mount().repo).path().join("conflicts.json"));
    let here = head.map(|head| (HERE, head));
    let all: Vec<(&str, Oid)> =
        here.into_iter().chain(with_tips.iter().map(|(sandbox, tip)| (sandbox.name(), *tip))).collect();
    let pairs = || all.iter().enumerate().flat_map(|(n, a)| all[n + 1..].iter().map(move |b| (a, b)));
    if pairs().all(|(a, b)| cache.known(a.1, b.1).is_some()) {
        for (a, b) in pairs().filter(|(a, b)| matches!(cache.known(a.1, b.1), Some(Pair::Conflict { .. }))) {
            add(a.0, b.0);
        }
    } else {
        let compared: Vec<Sandbox> = with_tips.into_iter().map(|(sandbox, _)| sandbox.clone()).collect();
        if let Some(table) = Table::read(context, store, &compared, false)? {
            table.collisions().for_each(|(a, b, _)| add(&a.name, &b.name));
        }
    }
    Ok(marks)
}

/// Where HEAD and the sandboxes of a repository are: read from files, where refs are files.
#[derive(Debug, PartialEq, Eq)]
struct Glance {
    head: Option<Oid>,
    tips: Vec<Option<Oid>>,
}

impl Glance {
    fn take(context: &Context, store: &Store, sandboxes: &[Sandbox]) -> Result<Self, CliError> {
        let git = context.git()?;
        let head = match sandboxes.first() {
            Some(first) => {
                let host = work::host(store, first)?;
                let here = context.maybe_repo().filter(|repo| repo.common_dir() == host.common_dir());
                work::head(git, &host, here.unwrap_or(&host).git_dir())?
            }
            None => None,
        };
        let tips = sandboxes.iter().map(|sandbox| work::tip(git, store, sandbox));
        Ok(Self { head, tips: tips.collect::<Result<_, _>>()? })
    }
}

/// The tip of a sandbox; `None` if it made nothing. `uncommitted`: with what is not committed, as if it were.
pub fn commit_of(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    repo: &Repo,
    uncommitted: bool,
) -> Result<Option<Oid>, CliError> {
    let snapshot = sandbox.snapshot(store)?;
    let base = snapshot.git.base.as_deref().and_then(Oid::parse);
    let tip = work::tip(context.git()?, store, sandbox)?.or(base);
    let made = tip.filter(|tip| Some(*tip) != base);
    if !uncommitted {
        return Ok(made);
    }
    // What a submodule or a nested repository has is not of this tree.
    let views: Vec<&Path> = snapshot.git.views.iter().map(|view| view.path.as_path()).collect();
    let nested = |path: &[u8]| {
        let path = Path::new(OsStr::from_bytes(path));
        views.iter().any(|view| !view.as_os_str().is_empty() && path.starts_with(view))
    };
    crate::picture::fresh(context, store, sandbox)?;
    let left = work::uncommitted_now(context.git()?, store, sandbox)?.files;
    let left = left.iter().filter(|change| !nested(&change.path));
    let edits = super::apply::read_edits(sandbox, left, &mut Vec::new())?;
    if edits.is_empty() {
        return Ok(made);
    }
    // The same files are the same commit, so that the cache knows it again.
    let who = Identity { name: "sandbox".into(), email: String::new(), date: Some("@0 +0000".into()) };
    Ok(Some(with_edits(repo, tip, &edits, &who)?))
}

/// A cache that cannot be read is an empty one.
fn cached(file: &Path) -> Cache {
    std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    tips: &'a [Tip],
    pairs: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    a: &'a str,
    b: &'a str,
    #[serde(flatten)]
    how: Pair,
}

pub fn run(context: &Context, args: &cli::Conflicts) -> Outcome {
    let store = context.store()?;
    let all = args.names.is_empty();
    if args.watch {
        return watch(context, &store, args);
    }
    let sandboxes = in_order(context, &store, &args.names, all)?;
    let found = Table::read(context, &store, &sandboxes, args.uncommitted)?;
    let told = |table: &Table| table.tips.iter().any(|tip| tip.name != HERE);
    if args.json {
        let (tips, pairs) = found.as_ref().map_or((&[][..], Vec::new()), |table| (&table.tips[..], rows(table)));
        print_json(&Listing { version: 1, tips, pairs })?;
    } else if let Some(table) = found.as_ref().filter(|table| told(table)) {
        print!("{}", table.text());
    }
    for name in found.iter().filter(|_| !all).flat_map(|table| &table.without) {
        eprintln!("no commits in '{name}'");
    }
    match &found {
        Some(table) if told(table) => eprintln!("{}", table.summary()),
        _ if all => eprintln!("no sandbox of this repository has commits"),
        _ => {}
    }
    // The table is of one repository.
    for sandbox in &sandboxes {
        super::trees::tell_others(context, &store, sandbox, "conflicts")?;
    }
    Ok(found.is_some_and(|table| table.collisions().next().is_some()).into())
}

fn rows(table: &Table) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for (a, first) in table.tips.iter().enumerate() {
        for (b, second) in table.tips.iter().enumerate().skip(a + 1) {
            rows.push(Row { a: &first.name, b: &second.name, how: table.pair(a, b) });
        }
    }
    rows
}

/// Prints each collision once, when it comes about, until this is ended.
fn watch(context: &Context, store: &Store, args: &cli::Conflicts) -> Outcome {
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut tips: Option<Vec<Tip>> = None;
    let mut seen = None;
    eprintln!("watching; Ctrl-C ends it");
    loop {
        let sandboxes = in_order(context, store, &args.names, args.names.is_empty())?;
        // A look at a few files: git is only asked when one of them has changed.
        let names: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.name().to_owned()).collect();
        let glance = Some((names, Glance::take(context, store, &sandboxes)?));
        if glance == seen && !args.uncommitted {
            std::thread::sleep(POLL);
            continue;
        }
        seen = glance;
        if let Some(table) = Table::read(context, store, &sandboxes, args.uncommitted)?
            && tips.as_ref() != Some(&table.tips)
        {
            let mut now = BTreeSet::new();
            for (a, b, paths) in table.collisions() {
                let key = (a.name.clone(), b.name.clone());
                if !known.contains(&key) && tell(a, b, paths, args.json).is_err() {
                    // Whoever read it has gone.
                    return Ok(0);
                }
                now.insert(key);
            }
            known = now;
            tips = Some(table.tips);
        }
        std::thread::sleep(POLL);
    }
}

fn tell(a: &Tip, b: &Tip, paths: &[String], json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let row = Row { a: &a.name, b: &b.name, how: Pair::Conflict { paths: paths.to_vec() } };
        writeln!(out, "{}", crate::text::escape_json(&serde_json::to_string(&row)?))?;
    } else {
        let shown: Vec<String> = paths.iter().take(3).map(|path| escape(path)).collect();
        let more = if paths.len() > 3 { format!(" and {} more", paths.len() - 3) } else { String::new() };
        writeln!(out, "{} and {} collide: {}{more}", a.shown(), b.shown(), shown.join(", "))?;
    }
    out.flush()
}
