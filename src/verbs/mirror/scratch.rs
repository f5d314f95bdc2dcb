//! `mirror scratch`: what sessions have pushed, which is nowhere else until somebody takes it.
//!
//! ```text
//! list, show ─┬─► bundle   a file beside the one that is wanted, then under its name
//!             ├─► fetch    checked (fsck, connectivity), then as refs/agents/SESSION of the repository here
//!             │     └─► promote   pushed from here to the upstream, by the user's own git
//!             └─► drop     at once when it was saved as it is, otherwise with --force
//! ```

use super::admin::{At, LONG, Mirror, SHORT, in_path, old, print_json};
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape, size, table};
use clap::{Args, Subcommand};
use sandbox_core::host_repo::HostRepo;
use sandbox_git::{Git, GitError, Oid, RefName};
use sandbox_mirror::identity::SessionId;
use sandbox_mirror::name::Upstream;
use sandbox_mirror::scratch::PREFIX;
use sandbox_mirror::scratch::held::{AllHeld, Held, Wanted};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Commits of this repository that the mirror is told of.
const HAVES: &str = "--count=512";
/// Bytes of a bundle before its pack.
const HEAD: u64 = 64 << 20;

/// What sessions have pushed to the mirror.
#[derive(Debug, Args)]
#[command(after_help = "What a session pushed (refs/agents/SESSION) is on the mirror alone.\n\nExamples:\n  \
git sandbox mirror scratch list\n  \
git sandbox mirror scratch fetch github.com/acme/app s42        then: git log refs/agents/s42\n  \
git sandbox mirror scratch bundle github.com/acme/app s42 s42.bundle\n  \
git sandbox mirror scratch promote github.com/acme/app s42 agent/fix\n  \
git sandbox mirror scratch drop github.com/acme/app s42")]
pub struct Scratch {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what there is
    #[command(visible_alias = "ls")]
    List(List),
    /// Tell about the refs of one session
    Show(One),
    /// Save all of one session in a file that `git clone` and `git fetch` read
    Bundle(Bundle),
    /// Fetch all of one session into the repository here, as refs/agents/SESSION
    Fetch(One),
    /// Fetch it, and push it to the upstream as a branch, with your own git
    Promote(Promote),
    /// Drop all of one session
    Drop(Drop),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    at: At,
    /// Of this repository alone
    name: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct One {
    #[command(flatten)]
    at: At,
    /// The repository (`git sandbox mirror list`)
    name: String,
    /// The session (`git sandbox mirror scratch list`)
    session: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Bundle {
    #[command(flatten)]
    one: One,
    /// The file
    file: PathBuf,
    /// Write over a file that is there
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Promote {
    #[command(flatten)]
    one: One,
    /// The branch of the upstream: new, or behind what is pushed
    branch: String,
    /// Which ref, where the session has several
    #[arg(long = "from", value_name = "REF")]
    from: Option<String>,
}

#[derive(Debug, Args)]
struct Drop {
    #[command(flatten)]
    one: One,
    /// Also what is nowhere else
    #[arg(short, long)]
    force: bool,
}

pub fn run(context: &Context, args: &Scratch) -> Outcome {
    match &args.action {
        Action::List(args) => list(context, args),
        Action::Show(args) => show(context, args),
        Action::Bundle(args) => bundle(context, args),
        Action::Fetch(args) => fetch(context, args),
        Action::Promote(args) => promote(context, args),
        Action::Drop(args) => drop_all(context, args),
    }
}

impl One {
    fn path(&self, verb: &str) -> Result<String, CliError> {
        let session: SessionId = super::env::session_id(&self.session)?;
        Ok(format!("/v1/scratch/{session}/{verb}{}", in_path(&self.name)))
    }

    fn held(&self, mirror: &Mirror) -> Result<Held, CliError> {
        let held: Held = read(mirror.call("GET", &self.path("")?, None, SHORT)?)?;
        // What is a name of a ref here was one inside a sandbox, and on the way here.
        let own = format!("{PREFIX}{}", held.session);
        let odd = held.refs.iter().find(|of| {
            let rest = of.name.strip_prefix(&own);
            !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) || RefName::parse(&of.name).is_none()
        });
        match odd {
            Some(of) => Err(CliError::new(format!("'{}' is not the name of a ref", escape(&of.name)))
                .hint("`git sandbox mirror scratch bundle` saves it all the same")),
            None => Ok(held),
        }
    }

    /// Says that it is elsewhere now. That this fails takes nothing away: dropping it asks for more then.
    fn saved(&self, mirror: &Mirror, held: &Held) -> Result<(), CliError> {
        let refs: serde_json::Map<String, Value> =
            held.refs.iter().map(|of| (of.name.clone(), json!(of.oid))).collect();
        mirror.call("POST", &self.path("saved/")?, Some(&json!({ "refs": refs })), SHORT).map(drop)
    }
}

fn read<T: DeserializeOwned>(told: Value) -> Result<T, CliError> {
    serde_json::from_value(told).map_err(|error| CliError::chain(&error))
}

fn list(context: &Context, args: &List) -> Outcome {
    let told = Mirror::of(context, &args.at)?.call("GET", "/v1/scratch", None, LONG)?;
    let mut all: AllHeld = read(told)?;
    all.scratch.retain(|held| args.name.as_ref().is_none_or(|name| name == held.repo.as_str()));
    if args.json {
        print_json(&json!(all.scratch));
        return Ok(0);
    }
    if all.scratch.is_empty() {
        eprintln!("no session has pushed anything");
        return Ok(0);
    }
    let mut rows = vec![["NAME", "SESSION", "REFS", "SIZE", "PUSHED", "SAVED"].map(str::to_owned).to_vec()];
    for held in &all.scratch {
        rows.push(vec![
            escape(held.repo.as_str()),
            escape(held.session.as_str()),
            held.refs.len().to_string(),
            held.bytes.map_or_else(|| "-".to_owned(), size),
            old(&json!(held.pushed)),
            if held.saved { "yes" } else { "no" }.to_owned(),
        ]);
    }
    print!("{}", table(&rows));
    Ok(0)
}

fn show(context: &Context, args: &One) -> Outcome {
    let held: Held = read(Mirror::of(context, &args.at)?.call("GET", &args.path("")?, None, SHORT)?)?;
    if args.json {
        print_json(&json!(held));
        return Ok(0);
    }
    let mut rows = Vec::new();
    for of in &held.refs {
        rows.push(vec![escape(&of.name), of.oid.short(), escape(&of.author), escape(&of.subject)]);
    }
    print!("{}", table(&rows));
    if !held.saved {
        eprintln!("hint: it is nowhere else: `git sandbox mirror scratch bundle` or `… fetch` saves it");
    }
    Ok(0)
}

fn bundle(context: &Context, args: &Bundle) -> Outcome {
    let (file, shown) = (context.cwd.join(&args.file), escape(&args.file.to_string_lossy()));
    let exists =
        || CliError::new(format!("'{shown}' exists already")).hint("take another name, or `--force` writes over it");
    if !args.force && file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let mirror = Mirror::of(context, &args.one.at)?;
    let held: Held = read(mirror.call("GET", &args.one.path("")?, None, SHORT)?)?;
    let dir = file.parent().unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new().prefix(".git-sandbox.").tempfile_in(dir);
    let mut made = made.map_err(CliError::io(format!("write in '{}'", escape(&dir.to_string_lossy()))))?;
    take(&mirror, &args.one, &Wanted::default(), made.as_file_mut())?;
    let failed = || CliError::io(format!("write '{shown}'"));
    made.as_file().sync_all().map_err(failed())?;
    // Cut short it would be no bundle; that its objects are whole was seen where it was made.
    context.git()?.anywhere().args(["bundle", "list-heads"]).arg(made.path()).output()?;
    let bytes = made.as_file().metadata().map_err(failed())?.len();
    let kept = if args.force { made.persist(&file) } else { made.persist_noclobber(&file) };
    kept.map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        _ => failed()(error.error),
    })?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed())?;
    args.one.saved(&mirror, &held)?;
    if args.one.json {
        print_json(&json!({ "file": file.to_string_lossy(), "bytes": bytes, "scratch": held }));
    } else {
        let refs = count(held.refs.len(), "ref");
        println!("'{shown}' has {refs} of {}, {}", escape(args.one.session.as_str()), size(bytes));
        eprintln!(
            "hint: `git clone '{shown}' DIR` makes a repository of it; a clone of the upstream can fetch from it"
        );
    }
    Ok(0)
}

/// Writes a bundle to a file; false where nothing is left that is not had already.
fn take(mirror: &Mirror, one: &One, wanted: &Wanted, file: &mut File) -> Result<bool, CliError> {
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(CliError::io("write a temporary file"))?;
    mirror.file(&one.path("bundle/")?, &json!(wanted), file, LONG)
}

fn fetch(context: &Context, args: &One) -> Outcome {
    let mirror = Mirror::of(context, &args.at)?;
    let held = args.held(&mirror)?;
    bring(context, context.repo()?, &mirror, args, &held)?;
    if args.json {
        print_json(&json!(held));
        return Ok(0);
    }
    for of in &held.refs {
        println!("{} {}", of.oid.short(), escape(&of.name));
    }
    Ok(0)
}

/// Has it in a repository, all of it checked before a ref names it.
fn bring(context: &Context, repo: &HostRepo, mirror: &Mirror, one: &One, held: &Held) -> Result<(), CliError> {
    let git = context.git()?;
    if let Some(of) = held.refs.iter().find(|of| of.oid.format() != repo.format()) {
        return Err(CliError::new(format!("the objects here are not {}", of.oid.format()))
            .hint("`git sandbox mirror scratch bundle` saves it in a file"));
    }
    if !connected(git, repo, held)? {
        let haves = repo.read(git).args(["for-each-ref", HAVES, "--sort=-creatordate", "--format=%(objectname)"]);
        let haves = String::from_utf8_lossy(&haves.output()?.stdout).lines().filter_map(Oid::parse).collect();
        // What is cut short here (a shallow or partial clone) has less than its refs say.
        let some = objects(git, repo, mirror, one, &Wanted { haves });
        if some.is_err() || !connected(git, repo, held)? {
            objects(git, repo, mirror, one, &Wanted::default())?;
        }
        if !connected(git, repo, held)? {
            return Err(CliError::new(format!("what session '{}' pushed is not whole", escape(&one.session)))
                .hint("`git sandbox mirror verify` checks the mirror"));
        }
    }
    let updates: String = held.refs.iter().map(|of| format!("update {} {}\n", of.name, of.oid)).collect();
    repo.write(git).args(["update-ref", "--stdin"]).stdin(updates).run()?;
    one.saved(mirror, held)
}

/// Whether everything behind these refs is here.
fn connected(git: &Git, repo: &HostRepo, held: &Held) -> Result<bool, CliError> {
    let input: String = held.refs.iter().map(|of| format!("{}\n", of.oid)).collect();
    // Git before 2.42 takes no options from standard input.
    let walk = repo.read(git).args(["rev-list", "--objects", "--quiet", "--stdin", "--not", "--all"]).stdin(input);
    Ok(walk.try_output()?.0.success())
}

/// Takes the objects in: checked one by one (fsck) as they come, and named by nothing yet.
fn objects(git: &Git, repo: &HostRepo, mirror: &Mirror, one: &One, wanted: &Wanted) -> Result<(), CliError> {
    let failed = || CliError::io("read a temporary file");
    let mut file = tempfile::tempfile().map_err(CliError::io("make a temporary file"))?;
    if !take(mirror, one, wanted, &mut file)? {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    let mut reader = io::BufReader::new(file);
    // Up to its first empty line a bundle tells what it has (gitformat-bundle(5)); the rest is a pack.
    let mut last = 0;
    for byte in reader.by_ref().take(HEAD).bytes() {
        let byte = byte.map_err(failed())?;
        if (last, byte) == (b'\n', b'\n') {
            break;
        }
        last = byte;
    }
    let index = repo.write(git).args(["index-pack", "--stdin", "--fix-thin", "--strict"]);
    let mut running = index.converse()?;
    let copied = match running.stdin.take() {
        Some(mut stdin) => io::copy(&mut reader, &mut stdin),
        None => Ok(0),
    };
    // It names the pack that it made; who does not listen ends it.
    let mut named = Vec::new();
    let said = running.stdout.as_mut().map_or(Ok(0), |out| out.read_to_end(&mut named));
    // Git's own word on it says more than that it hung up.
    running.finish()?;
    said.map(drop).map_err(failed())?;
    copied.map(drop).map_err(failed())
}

fn promote(context: &Context, args: &Promote) -> Outcome {
    let (one, repo) = (&args.one, context.repo()?);
    let target = format!("refs/heads/{}", args.branch);
    if args.branch.starts_with('-') || RefName::parse(&target).is_none() {
        return Err(CliError::usage(format!("'{}' is not the name of a branch", escape(&args.branch))));
    }
    let mirror = Mirror::of(context, &one.at)?;
    let held = one.held(&mirror)?;
    let names = || held.refs.iter().map(|of| escape(&of.name)).collect::<Vec<_>>().join(", ");
    let from = match &args.from {
        Some(name) => held.refs.iter().find(|of| of.name == *name || of.name.strip_prefix(PREFIX) == Some(name)),
        None if held.refs.len() == 1 => held.refs.first(),
        None => held.refs.iter().find(|of| of.name == format!("{PREFIX}{}", held.session)),
    };
    let from =
        from.ok_or_else(|| CliError::usage("which ref of the session?").hint(format!("`--from REF`, of {}", names())))?;
    let record = mirror.call("GET", &format!("/v1/repos/{}", in_path(&one.name)), None, SHORT)?;
    let url = record["url"].as_str().unwrap_or_default();
    let of = |url: &str| Upstream::parse(url).ok().map(|upstream| upstream.name().clone());
    let upstream = of(url);
    let remote = super::remotes(context, repo)?.into_iter().find(|(_, url)| upstream.is_some() && of(url) == upstream);
    let (remote, _) = remote.ok_or_else(|| {
        CliError::new(format!("no remote of this repository is '{}'", escape(url)))
            .hint(format!("`git remote add upstream '{}'`, or go to a clone of it", escape(url)))
    })?;
    bring(context, repo, &mirror, one, &held)?;
    // By the user, with the user's credentials, as if it were pushed by hand; never forced.
    let push = context.git()?.remote(repo.top_or_gitdir()).as_user(repo.foreign_owner());
    let push = push.args(["push", "--quiet", "--no-follow-tags", "--recurse-submodules=no", "--"]);
    push.args([remote.as_str(), &format!("{}:{target}", from.oid)])
        .run()
        .map_err(|error: GitError| CliError::chain(&error).hint("it is here now: `git push` says more about it"))?;
    if one.json {
        print_json(&json!({ "ref": from.name, "oid": from.oid, "remote": remote, "branch": args.branch }));
    } else {
        println!("{} is '{}' of '{}'", from.oid.short(), escape(&args.branch), escape(&remote));
    }
    Ok(0)
}

fn drop_all(context: &Context, args: &Drop) -> Outcome {
    let path = args.one.path("")? + if args.force { "?force" } else { "" };
    let held: Held = read(Mirror::of(context, &args.one.at)?.call("DELETE", &path, None, LONG)?)?;
    if args.one.json {
        print_json(&json!(held));
        return Ok(0);
    }
    for of in &held.refs {
        println!("dropped {} ({})", escape(&of.name), of.oid.short());
    }
    Ok(0)
}
