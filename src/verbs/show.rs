//! `show`: everything about one sandbox.

use super::list::{Along, Row, memory_by_namespace, print_json, row, state_words};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::event_words::limit as limit_words;
use crate::text::{age, count, escape, escape_bytes, size, tilde};
use sandbox_core::checkpoint;
use sandbox_core::kept;
use sandbox_core::launch::{Network, TreeView};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_integrate::Finding;
use sandbox_protocol::event::Happened;
use sandbox_protocol::{Message, SessionStatus};
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Rules of the network that are shown.
const RULES: usize = 4;

#[derive(Serialize)]
struct Shown {
    version: u32,
    #[serde(flatten)]
    row: Row,
    directory: PathBuf,
    base_commit: Option<String>,
    network: Network,
    layers: usize,
    uncommitted_files: Vec<String>,
    look_first: Vec<Finding>,
    rescue: Option<Rescued>,
    checkpoints: Vec<Kept>,
    notes: Vec<String>,
    enforced: Vec<String>,
    sessions: Vec<SessionStatus>,
}

/// A state that it can go back to.
#[derive(Serialize)]
struct Kept {
    number: u32,
    /// Its label, else its number.
    name: String,
    /// Unix seconds.
    at: u64,
}

/// What the vault has of what is not committed.
#[derive(Serialize)]
struct Rescued {
    /// Unix seconds; none when there is no rescue.
    at: Option<u64>,
    files: u64,
    /// Of the main repository.
    commit: Option<String>,
    /// Of each repository, submodule and nested repository.
    commits: Vec<RescueCommit>,
    left_out: Vec<String>,
    /// Why the last try failed.
    failed: Option<String>,
    #[serde(skip)]
    words: String,
}

/// A rescue commit in a vault.
#[derive(Serialize)]
struct RescueCommit {
    worktree: PathBuf,
    commit: String,
    /// The vault that has it.
    vault: PathBuf,
}

fn rescued(store: &Store, sandbox: &Sandbox) -> Option<Rescued> {
    let all = kept::all_of(store, &sandbox.record).ok()?;
    let mut commits = Vec::new();
    let mut rescues = Vec::new();
    for (n, kept) in &all {
        let mount = &sandbox.record.repos[*n];
        if let Some(rescue) = kept.newest().filter(|_| kept.clean.is_none()) {
            commits.extend(rescue.parts.iter().map(|part| RescueCommit {
                // Without a slash at its end.
                worktree: mount.worktree.join(OsStr::from_bytes(&part.path)).components().collect(),
                commit: part.commit.clone(),
                vault: store.repo(&mount.repo).vault(),
            }));
            rescues.push(rescue);
        }
    }
    let failed = all.iter().find_map(|(_, kept)| kept.failed.as_ref()).map(|(_, why)| escape(why));
    if rescues.is_empty() && failed.is_none() {
        return None;
    }
    let newest = rescues.iter().max_by_key(|rescue| rescue.at);
    let files = rescues.iter().map(|rescue| rescue.files).sum();
    let main = commits.iter().find(|one| one.worktree == sandbox.record.repos[0].worktree);
    Some(Rescued {
        at: newest.map(|rescue| rescue.at),
        files,
        commit: main.map(|one| one.commit.clone()),
        left_out: rescues.iter().flat_map(|rescue| &rescue.left_out).map(|line| escape(line)).collect(),
        failed,
        words: newest.map_or_else(|| "nothing".to_owned(), |newest| super::rescue::words_of(files, newest.at)),
        commits,
    })
}

pub fn run(context: &Context, args: &cli::Show) -> Outcome {
    let store = context.store()?;
    if args.console {
        return super::console::run(&context.sandbox(&store, &args.name)?, args.json);
    }
    let sandbox = context.sandbox(&store, &args.name)?.at(0);
    let row = row(context, &store, &sandbox, &memory_by_namespace())?;
    let snapshot = sandbox.snapshot(&store)?;
    let status = sandbox.status()?;
    let live = (sandbox.state()? == State::Running)
        .then(|| sandbox.connect().ok()?.ask(&Message::AskStatus, 1 << 20).ok())
        .flatten()
        .and_then(|(answer, _)| if let Message::Status(status) = answer { Some(status) } else { None })
        .unwrap_or_default();
    crate::picture::fresh_if_it_runs(context, &store, &sandbox);
    // What it stands on or its repository may be gone: the rest is to be told all the more.
    let (files, unknown) = match work::uncommitted_now(context.git()?, &store, &sandbox) {
        Ok(left) => (left.files, None::<String>),
        Err(error) => {
            let error = CliError::from(error);
            let why = error.causes.last().unwrap_or(&error.message);
            (Vec::new(), Some(format!("cannot tell what is not committed: {why}")))
        }
    };
    let mut notes: Vec<String> = snapshot.notes.iter().chain(&snapshot.git.notes).cloned().collect();
    let (mut files, mut unknown) = (files, unknown);
    let mut by_tree = vec![(sandbox.clone(), files.clone())];
    for tree in sandbox.trees().skip(1) {
        let place = super::trees::place(&tree);
        let snapshot = tree.snapshot(&store)?;
        notes.extend(snapshot.notes.iter().chain(&snapshot.git.notes).map(|note| format!("in '{place}': {note}")));
        match work::uncommitted_now(context.git()?, &store, &tree) {
            Ok(left) => {
                by_tree.push((tree.clone(), left.files.clone()));
                files.extend(left.files.into_iter().map(|change| change.below(&tree.mount().worktree)));
            }
            Err(error) => unknown = Some(format!("cannot tell what is not committed in '{place}': {error}")),
        }
    }
    let (look_first, unread) = look_first(context, &store, &by_tree);
    let unasked = (!sandbox_core::picture::is_fresh(&sandbox, &[])?).then(|| {
        let name = sandbox.name();
        format!("what is not committed is not known before `git sandbox diff {name} --uncommitted` asks for it")
    });
    let unknown = unknown.into_iter().chain(unread).chain(unasked);
    let shown = Shown {
        version: 1,
        directory: sandbox.dir.path().to_owned(),
        base_commit: snapshot.git.base.clone(),
        network: sandbox.record.network,
        layers: snapshot.layers.len() + 1,
        uncommitted_files: files.iter().map(|change| escape_bytes(&change.path)).collect(),
        look_first,
        rescue: rescued(&store, &sandbox),
        checkpoints: checkpoint::all(&sandbox.dir)?
            .iter()
            .map(|kept| Kept { number: kept.number, name: escape(&kept.name()), at: kept.at })
            .collect(),
        notes: status.notes.iter().chain(&notes).map(|note| escape(note)).chain(unknown).collect(),
        enforced: if live.enforced.is_empty() { status.enforced.clone() } else { live.enforced.clone() },
        sessions: live.sessions,
        row,
    };
    if args.json {
        print_json(&shown)?;
        return Ok(0);
    }
    let Shown { row, .. } = &shown;
    println!("sandbox     {}", row.name);
    println!("state       {}", state_words(row));
    println!("repository  {}", super::list::place(row, context));
    for along in &row.with {
        println!("with        {}{}", tilde(&along.worktree, &context.home), along_words(along, &row.name));
    }
    println!("driver      {}", row.driver);
    println!("age         {}", age(row.age_seconds));
    if let Some(branch) = &row.branch {
        println!("branch      {}", escape(branch));
    }
    if let Some(base) = &shown.base_commit {
        println!("base        {base}");
    }
    println!(
        "commits     {}",
        if row.commits_ahead == 0 {
            "none".into()
        } else {
            format!("{} at refs/sandbox/{}", row.commits_ahead, row.name)
        }
    );
    println!(
        "network     {}",
        match shown.network {
            Network::None => "none".to_owned(),
            Network::Allow => reached(&sandbox),
            Network::Host => "the host's".to_owned(),
        }
    );
    let limit = row.disk_limit.map(|limit| format!(", may write {}", size(limit))).unwrap_or_default();
    match row.view {
        TreeView::Overlay => {
            let layers = count(shown.layers, "shared layer");
            println!("disk        {} of its own, on {layers}{limit}", size(row.disk_bytes));
        }
        TreeView::Copy => {
            println!("view        copy: all of the tree is its own");
            println!("disk        {}, shared blocks counted{limit}", size(row.disk_bytes));
        }
    }
    if let Some(words) = row.frozen.and_then(|frozen| limit_words(&row.name, &Happened::Frozen(frozen))) {
        println!("frozen      {words}");
    }
    if row.memory_bytes > 0 {
        println!("memory      {}", size(row.memory_bytes));
    }
    if !row.command.is_empty() {
        println!("command     {}", escape(&row.command.join(" ")));
    }
    for session in &shown.sessions {
        let clients = match session.clients as usize {
            0 => "nobody attached".to_owned(),
            n => count(n, "client"),
        };
        println!("session     {} ({clients})", escape(&session.argv.join(" ")));
    }
    println!("directory   {}", tilde(&shown.directory, &context.home));
    if !shown.enforced.is_empty() {
        println!("enforced    {}", escape(&shown.enforced.join(", ")));
    }
    if !shown.checkpoints.is_empty() {
        let names: Vec<String> = shown.checkpoints.iter().take(RULES).map(|kept| kept.name.clone()).collect();
        let more = if shown.checkpoints.len() > RULES { ", …" } else { "" };
        println!("checkpoints {}{more} (`git sandbox checkpoint --list {}`)", names.join(", "), row.name);
    }
    if let Some(rescue) = &shown.rescue {
        println!("rescued     {}", rescue.words);
        for one in rescue.commits.iter().filter(|_| rescue.commits.len() > 1) {
            let short = one.commit.get(..10).unwrap_or(&one.commit);
            println!("            {short} {}", tilde(&one.worktree, &context.home));
        }
        for line in rescue.left_out.iter().take(5) {
            println!("            not in it: {line}");
        }
        if let Some(why) = &rescue.failed {
            println!("            the last try failed: {why}");
        }
    }
    for note in &shown.notes {
        println!("note        {note}");
    }
    let lines = super::review::lines(&shown.look_first, 0);
    if !lines.is_empty() {
        println!("\n{}", lines.join("\n"));
    }
    if !files.is_empty() {
        println!("\nnot committed, against the state that it started from:");
        for change in files.iter().take(20) {
            println!("  {} {}", change.letter(), escape_bytes(&change.path));
        }
        if files.len() > 20 {
            println!("  … and {} more: `git sandbox diff {} --uncommitted --stat`", files.len() - 20, row.name);
        }
    }
    Ok(0)
}

/// What of its commits and files deserves a look before it is landed; or why that is not known.
fn look_first(
    context: &Context,
    store: &Store,
    trees: &[(Sandbox, Vec<work::ChangedFile>)],
) -> (Vec<Finding>, Option<String>) {
    let (mut all, mut unread) = (Vec::new(), None);
    for (tree, files) in trees.iter().filter(|(tree, _)| tree.mount().has_commits()) {
        let found = super::review::of_commits(context, store, tree).and_then(|mut found| {
            found.extend(super::review::of_files(context, store, tree, files)?);
            Ok(found)
        });
        match found {
            Ok(found) => all.extend(found),
            Err(error) => unread = Some(format!("cannot tell what to look at first: {}", error.message)),
        }
    }
    all.sort_by_key(|finding| std::cmp::Reverse(finding.grade));
    (all, unread)
}

/// What there is to say of a further tree, after its path.
fn along_words(along: &Along, name: &str) -> String {
    let mut words = Vec::new();
    if along.directory {
        words.push("a directory".to_owned());
    }
    if along.read_only {
        words.push("read-only".to_owned());
    }
    words.extend(along.branch.as_ref().map(|branch| format!("branch {}", escape(branch))));
    if along.commits_ahead > 0 {
        words.push(format!("{} at refs/sandbox/{name}", count(along.commits_ahead, "commit")));
    }
    if along.uncommitted > 0 {
        words.push(format!("{} not committed", count(along.uncommitted, "file")));
    }
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

/// What a filtered network lets out, in one line.
fn reached(sandbox: &Sandbox) -> String {
    let Ok(rules) = super::allow::rules(sandbox) else {
        return format!("nothing: its policy cannot be read (`git sandbox allow {} --list`)", sandbox.name());
    };
    if rules.allow.is_empty() {
        return format!("nothing is allowed (`git sandbox allow {} HOST`)", sandbox.name());
    }
    let mut text: Vec<String> = rules.allow.iter().take(RULES).map(ToString::to_string).collect();
    if rules.allow.len() > RULES {
        text.push(format!("{} more", rules.allow.len() - RULES));
    }
    let denied = if rules.deny.is_empty() { String::new() } else { format!(", {} denied", rules.deny.len()) };
    format!("only {}{denied} (`git sandbox allow {} --list`)", text.join(", "), sandbox.name())
}
