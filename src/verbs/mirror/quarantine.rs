//! `mirror quarantine`: what was set aside as damaged, and how it goes.

use super::admin::{At, LONG, Mirror, print_json};
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, count, escape, parse_duration, size, table};
use clap::{Args, Subcommand};
use sandbox_mirror::quarantine::{AllAside, Aside, Emptied};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What was set aside as damaged.
#[derive(Debug, Args)]
#[command(
    after_help = "A damaged mirror is set aside whole, and cloned again. It goes after maintenance.quarantine (30d)\n\
unless sessions' refs are in it.\n\nExamples:\n  git sandbox mirror quarantine list\n  \
git sandbox mirror quarantine empty --older-than 7d --dry-run\n  git sandbox mirror quarantine empty"
)]
pub struct Quarantine {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what there is
    #[command(visible_alias = "ls")]
    List(List),
    /// Remove what has no scratch refs
    Empty(Empty),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    at: At,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Empty {
    #[command(flatten)]
    at: At,
    /// Only what was set aside so long ago (7d, 12h)
    #[arg(long, value_name = "TIME")]
    older_than: Option<String>,
    /// Also what has scratch refs, which may be nowhere else
    #[arg(short, long)]
    force: bool,
    /// Tell what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &Quarantine) -> Outcome {
    match &args.action {
        Action::List(args) => list(context, args),
        Action::Empty(args) => empty(context, args),
    }
}

fn list(context: &Context, args: &List) -> Outcome {
    let told = Mirror::of(context, &args.at)?.call("GET", "/v1/quarantine", None, LONG)?;
    if args.json {
        print_json(&told["quarantine"]);
        return Ok(0);
    }
    let all: AllAside = read(told)?;
    if all.quarantine.is_empty() {
        eprintln!("nothing is set aside");
        return Ok(0);
    }
    let mut rows = vec![["NAME", "AGE", "SIZE", "SCRATCH", "DIRECTORY"].map(str::to_owned).to_vec()];
    let now = sandbox_sys::clock::unix_seconds();
    for aside in &all.quarantine {
        let name = aside.repo.as_ref().map_or_else(|| "-".to_owned(), |name| escape(name.as_str()));
        let scratch = aside.scratch.to_string();
        rows.push(vec![name, age(now.saturating_sub(aside.since)), size(aside.bytes), scratch, escape(&aside.dir)]);
    }
    print!("{}", table(&rows));
    Ok(0)
}

fn empty(context: &Context, args: &Empty) -> Outcome {
    let mut query: Vec<String> = Vec::new();
    if let Some(text) = &args.older_than {
        let seconds = parse_duration(text).ok_or_else(|| {
            CliError::usage(format!("'{}' is no time", escape(text)))
                .hint("a number and s, m, h or d: `--older-than 7d`")
        })?;
        query.push(format!("older={seconds}"));
    }
    query.extend(args.force.then(|| "force".to_owned()));
    query.extend(args.dry_run.then(|| "dry_run".to_owned()));
    let path = format!("/v1/quarantine?{}", query.join("&"));
    let told = Mirror::of(context, &args.at)?.call("DELETE", &path, None, LONG)?;
    if args.json {
        print_json(&told);
        return Ok(0);
    }
    let emptied: Emptied = read(told)?;
    let dirs = |all: &[Aside]| all.iter().for_each(|aside| println!("  {}  {}", escape(&aside.dir), size(aside.bytes)));
    let many = crate::text::count_of(emptied.removed.len(), "directory", "directories");
    println!("{} {many}", if emptied.done { "removed" } else { "would remove" });
    dirs(&emptied.removed);
    if !emptied.kept.is_empty() {
        let refs = usize::try_from(emptied.kept.iter().map(|aside| aside.scratch).sum::<u64>()).unwrap_or(usize::MAX);
        println!("left, with {} that may be nowhere else (`--force` removes them too):", count(refs, "scratch ref"));
        dirs(&emptied.kept);
    }
    Ok(0)
}

fn read<T: DeserializeOwned>(told: Value) -> Result<T, CliError> {
    serde_json::from_value(told).map_err(|error| CliError::chain(&error))
}
