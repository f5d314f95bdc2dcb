//! `trash`: what `drop --force` moved away, exactly as it was.

use super::fetch;
use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::damaged::warn;
use crate::error::{CliError, Outcome};
use crate::text::{age, count, escape, size, table, tilde};
use sandbox_core::host_repo::HostRepo;
use sandbox_core::id::{Name, RepoId};
use sandbox_core::kept::{self, Kept};
use sandbox_core::record::RepoRecord;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, read_json};
use sandbox_core::trash::{self, Contents, Trashed};
use sandbox_sys::clock::unix_seconds;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Files that are shown by name.
const SHOWN: usize = 20;

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    trash: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    id: &'a str,
    worktree: &'a Path,
    dropped_seconds_ago: u64,
    disk_bytes: u64,
    /// Its directory is gone: only what the vault has of it is left.
    directory_lost: bool,
}

/// One thing in the trash.
enum Found {
    /// As it was.
    Whole(Box<Trashed>),
    /// Its directory was lost.
    Lost(Lost),
}

/// What the vaults have of one whose directory was lost: of each of its repositories the commits and the last rescue.
/// Never empty.
struct Lost(Vec<(RepoId, Kept)>);

impl Lost {
    fn first(&self) -> &Kept {
        &self.0[0].1
    }
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::Whole(item) => item.record.name.as_str(),
            Self::Lost(lost) => lost.first().name.as_str(),
        }
    }

    fn id(&self) -> &str {
        match self {
            Self::Whole(item) => item.record.id.as_str(),
            Self::Lost(lost) => lost.first().id.as_str(),
        }
    }

    fn worktree(&self) -> &Path {
        match self {
            Self::Whole(item) => item.worktree(),
            Self::Lost(lost) => &lost.first().worktree,
        }
    }

    fn age(&self) -> u64 {
        match self {
            Self::Whole(item) => item.age_seconds,
            Self::Lost(lost) => {
                let now = unix_seconds();
                now.saturating_sub(lost.0.iter().map(|(_, kept)| kept.since()).max().unwrap_or_default())
            }
        }
    }

    fn disk(&self) -> u64 {
        match self {
            Self::Whole(item) => item.disk,
            Self::Lost(_) => 0,
        }
    }
}

pub fn run(context: &Context, args: &cli::Trash) -> Outcome {
    let store = context.store()?;
    let all = all(&store)?;
    match &args.action {
        None => list(context, &all, false),
        Some(cli::TrashAction::List { json }) => list(context, &all, *json),
        Some(cli::TrashAction::Show { name, json }) => show(context, &store, one(&all, "show", name)?, *json),
        Some(cli::TrashAction::Restore { name, new }) => {
            store.writable()?;
            let new = new.as_deref().map(Name::parse).transpose().map_err(CliError::from)?;
            match one(&all, "restore", name)? {
                Found::Whole(item) => restore(context, &store, item, new.as_ref()),
                Found::Lost(lost) => restore_lost(context, &store, lost),
            }
        }
        Some(cli::TrashAction::Empty { yes }) => {
            store.writable()?;
            if all.is_empty() {
                eprintln!("the trash is empty");
                return Ok(0);
            }
            if !yes {
                if !crate::terminal::interactive() {
                    return Err(CliError::usage("emptying the trash cannot be undone")
                        .hint("`git sandbox trash empty --yes` does it"));
                }
                eprint!("delete {} for good? [y/N] ", dropped(all.len()));
                let _ = std::io::stderr().flush();
                if !crate::leave::yes(false) {
                    return Ok(1);
                }
            }
            let mut items = Vec::new();
            // What was restored meanwhile, or deleted by another, does not count.
            let mut deleted = 0;
            for found in &all {
                match found {
                    Found::Whole(item) => items.push((**item).clone()),
                    Found::Lost(lost) => {
                        let mut there = false;
                        for (repo, kept) in &lost.0 {
                            there |= kept::expire(&store.repo(repo), &kept.id)?;
                        }
                        deleted += usize::from(there);
                    }
                }
            }
            deleted += trash::empty(&store, &items)?;
            eprintln!("deleted {}", dropped(deleted));
            Ok(0)
        }
    }
}

/// Everything in the trash, newest first. What cannot be read is told and left out.
fn all(store: &Store) -> Result<Vec<Found>, CliError> {
    let trash = trash::read(store)?;
    trash.damaged.iter().for_each(|error| warn("one in the trash", error));
    let mut all: Vec<Found> = trash.whole.into_iter().map(|item| Found::Whole(Box::new(item))).collect();
    let mut lost: BTreeMap<String, Vec<(RepoId, Kept)>> = BTreeMap::new();
    for id in store.repo_ids()? {
        let kept = Kept::all(&store.repo(&id))?;
        kept.damaged.iter().for_each(|error| warn("what the vault keeps of one", error));
        for kept in kept.whole.into_iter().filter(|kept| kept::is_lost(store, kept)) {
            lost.entry(kept.id.to_string()).or_default().push((id.clone(), kept));
        }
    }
    all.extend(lost.into_values().map(|parts| Found::Lost(Lost(parts))));
    all.sort_by_key(Found::age);
    Ok(all)
}

fn one<'a>(all: &'a [Found], verb: &str, name: &str) -> Result<&'a Found, CliError> {
    let found: Vec<&Found> = all.iter().filter(|item| item.name() == name || item.id() == name).collect();
    match found.as_slice() {
        [] => Err(CliError::new(format!("there is no '{}' in the trash", escape(name)))
            .hint("`git sandbox trash list` shows what is")),
        [item] => Ok(item),
        several => Err(CliError::new(format!("there is more than one '{}' in the trash", escape(name)))
            .hint(format!("by its id: `git sandbox trash {verb} {}`", several[0].id()))),
    }
}

/// Restores one, with its commits here and its rescues in the vault. It is restored whether or not those come along.
pub fn come_back(context: &Context, store: &Store, item: &Trashed, new: Option<&Name>) -> Result<Name, CliError> {
    let restored = trash::restore(store, item, new)?;
    let sandbox = Sandbox::load(store, &item.record.id)?;
    let home: Result<(), CliError> = sandbox.as_ref().map_or(Ok(()), |sandbox| {
        fetch::bring(context, store, sandbox)?;
        for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
            kept::out_of_trash(context.git()?, store, &tree).map_err(|error| CliError::chain(&error))?;
        }
        Ok(())
    });
    if let Err(error) = home {
        error.print();
        eprintln!(
            "warning: '{restored}' is restored, but its commits were not brought here: `git sandbox fetch {restored}`"
        );
    }
    Ok(restored)
}

fn restore(context: &Context, store: &Store, item: &Trashed, new: Option<&Name>) -> Outcome {
    let restored = come_back(context, store, item, new)?;
    if restored == item.record.name || new.is_some() {
        eprintln!("restored '{restored}': `git sandbox start {restored}` goes on");
    } else {
        eprintln!(
            "restored '{}' as '{restored}', since there is a new '{0}': `git sandbox start {restored}` goes on",
            item.record.name
        );
    }
    Ok(0)
}

/// Only what the vaults have is left: it becomes branches, in each of its repositories.
fn restore_lost(context: &Context, store: &Store, lost: &Lost) -> Outcome {
    let (here, name) = (context.repo_id(store)?, &lost.first().name);
    if !lost.0.iter().any(|(id, _)| here.as_ref() == Some(id)) {
        return Err(CliError::new(format!("the directory of '{name}' was lost, only commits are left"))
            .hint(format!("run this in its repository, '{}'", escape(&lost.first().worktree.to_string_lossy()))));
    }
    eprintln!("the directory of '{name}' was lost: its commits are branches now");
    let mut complete = true;
    for (id, kept) in &lost.0 {
        let elsewhere = here.as_ref() != Some(id);
        let of = match read_json::<RepoRecord>(&store.repo(id).record())? {
            Some(record) if elsewhere => record.common_dir,
            _ => context.repo()?.common_dir().to_owned(),
        };
        for (path, branches) in kept::branches(kept) {
            let tree = kept.worktree.join(OsStr::from_bytes(&path));
            let host = match (path.is_empty(), elsewhere) {
                (true, false) => context.repo().cloned(),
                (true, true) => HostRepo::from_git_dir(&of).map_err(CliError::from),
                (false, _) => nested(context, &tree),
            };
            let place = if path.is_empty() { &of } else { &tree };
            let place = (elsewhere || !path.is_empty()).then(|| escape(&place.to_string_lossy()));
            let made = host.and_then(|host| {
                let from = (&store.repo(id), kept);
                kept::as_branches(context.git()?, store, &host, from, &branches)
                    .map_err(|error| CliError::chain(&error))
            });
            match (made, place) {
                (Ok(()), place) => told(kept, &branches, place.as_deref()),
                // The others have theirs all the same.
                (Err(error), Some(place)) => {
                    error.print();
                    let vault = escape(&store.repo(id).vault().to_string_lossy());
                    eprintln!("warning: nothing of '{name}' is restored in '{place}': it stays in '{vault}'");
                    complete = false;
                }
                (Err(error), None) => return Err(error),
            }
        }
    }
    Ok(if complete { 0 } else { 1 })
}

/// Says which branches there are now.
fn told(kept: &Kept, branches: &BTreeMap<String, String>, place: Option<&str>) {
    if let Some(place) = place {
        eprintln!("in '{place}':");
    }
    for branch in branches.keys() {
        println!("{}", escape(branch));
    }
    let rescue = format!("restored/{}/rescue", kept.name);
    if branches.contains_key(&rescue) {
        eprintln!("hint: `git stash apply {rescue}` puts back what was not committed");
    }
}

/// The submodule, or the nested repository, whose work tree this is.
fn nested(context: &Context, tree: &Path) -> Result<HostRepo, CliError> {
    let found = HostRepo::discover(context.git()?, tree)?;
    let is_its_top = found.top().is_some_and(|top| std::fs::canonicalize(tree).is_ok_and(|tree| tree == top));
    if is_its_top {
        return Ok(found);
    }
    let shown = escape(&tree.to_string_lossy());
    Err(CliError::new(format!("'{shown}' is no repository"))
        .hint("`git submodule update --init` makes it one, then restore again"))
}

/// What is known of one in the trash.
#[derive(Serialize)]
struct Shown<'a> {
    version: u32,
    #[serde(flatten)]
    entry: Entry<'a>,
    /// As it was found out when it was dropped; null for what an older version dropped.
    contents: Option<&'a Contents>,
    /// Refs of the vault with their commits.
    kept: BTreeMap<String, String>,
    rescued_files: Option<u64>,
}

/// Adds the refs of what one repository keeps: the same names in each of several, so that all but the first say where.
fn named(refs: &mut BTreeMap<String, String>, n: usize, worktree: &Path, kept: &Kept) {
    let of = if n == 0 { String::new() } else { format!("{}:", worktree.to_string_lossy()) };
    refs.extend(kept.refs().into_iter().map(|(name, oid)| (format!("{of}{name}"), oid)));
}

fn show(context: &Context, store: &Store, found: &Found, json: bool) -> Outcome {
    let loaded;
    let mut refs = BTreeMap::new();
    let (contents, kept) = match found {
        Found::Whole(item) => {
            let all = kept::all_of(store, &item.record).map_err(|error| CliError::chain(&error))?;
            for (n, kept) in &all {
                named(&mut refs, *n, &item.record.repos[*n].worktree, kept);
            }
            loaded = all.into_iter().next().map(|(_, kept)| kept);
            (item.contents.as_ref(), loaded.as_ref())
        }
        Found::Lost(lost) => {
            for (n, (_, kept)) in lost.0.iter().enumerate() {
                named(&mut refs, n, &kept.worktree, kept);
            }
            (None, Some(lost.first()))
        }
    };
    let rescue = kept.and_then(Kept::newest).filter(|_| kept.is_some_and(|kept| kept.clean.is_none()));
    if json {
        print_json(&Shown {
            version: 1,
            entry: entry(found),
            contents,
            kept: refs,
            rescued_files: rescue.map(|rescue| rescue.files),
        })?;
        return Ok(0);
    }
    println!("sandbox     {}", found.name());
    println!("id          {}", found.id());
    println!("repository  {}", tilde(found.worktree(), &context.home));
    println!("dropped     {} ago", age(found.age()));
    match found {
        Found::Whole(item) => {
            println!("disk        {}", size(item.disk));
            println!("directory   {}", tilde(item.dir.path(), &context.home));
        }
        Found::Lost(_) => println!("directory   lost"),
    }
    match contents {
        Some(contents) if contents.unknown => println!("contents    could not be found out"),
        Some(contents) => {
            println!("commits     {} that no branch or tag had", contents.commits);
            println!("files       {} not committed", contents.file_count);
            println!("ignored     {} ({})", count(contents.ignored, "changed file"), size(contents.ignored_bytes));
        }
        None => {}
    }
    if let Some(rescue) = rescue {
        println!("rescued     {}", super::rescue::words(rescue));
    }
    if let Some(why) = contents.and_then(|contents| contents.not_kept.as_ref()) {
        println!("note        only its directory has everything: {}", escape(why));
    }
    for line in contents.iter().flat_map(|contents| &contents.elsewhere) {
        println!("note        {}", escape(line));
    }
    for (name, oid) in &refs {
        println!("kept        {} {}", oid.get(..10).unwrap_or(oid), escape(name));
    }
    if let Some(contents) = contents.filter(|contents| !contents.files.is_empty()) {
        println!("\nnot committed:");
        for file in contents.files.iter().take(SHOWN) {
            println!("  {}", escape(file));
        }
        if contents.file_count > SHOWN {
            println!("  … and {} more", contents.file_count - SHOWN);
        }
    }
    Ok(0)
}

/// `1 dropped sandbox`, `2 dropped sandboxes`.
pub fn dropped(n: usize) -> String {
    format!("{n} dropped sandbox{}", if n == 1 { "" } else { "es" })
}

fn entry(found: &Found) -> Entry<'_> {
    Entry {
        name: found.name(),
        id: found.id(),
        worktree: found.worktree(),
        dropped_seconds_ago: found.age(),
        disk_bytes: found.disk(),
        directory_lost: matches!(found, Found::Lost(_)),
    }
}

fn list(context: &Context, all: &[Found], json: bool) -> Outcome {
    if json {
        print_json(&Listing { version: 1, trash: all.iter().map(entry).collect() })?;
        return Ok(0);
    }
    if all.is_empty() {
        eprintln!("the trash is empty");
        return Ok(0);
    }
    let mut lines = vec![["NAME", "DROPPED", "DISK", "REPOSITORY"].map(str::to_owned).to_vec()];
    for found in all {
        let disk = match found {
            Found::Whole(_) => size(found.disk()),
            Found::Lost(_) => "lost".to_owned(),
        };
        lines.push(vec![
            found.name().to_owned(),
            format!("{} ago", age(found.age())),
            disk,
            tilde(found.worktree(), &context.home),
        ]);
    }
    print!("{}", table(&lines));
    Ok(0)
}
