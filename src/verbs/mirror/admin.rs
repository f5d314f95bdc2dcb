//! The verbs that administer a mirror: each is one exchange with its administrator's socket.

use super::serve::default_root;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, escape, escape_json, parse_duration, table};
use clap::Args;
use sandbox_mirror::admin::Removed;
use sandbox_mirror::client::admin::{Admin, AdminError};
use sandbox_mirror::layout::Layout;
use sandbox_mirror::name::{NameError, Upstream};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The mirror is not there.
const UNAVAILABLE: u8 = 3;
/// Where a service of the machine has its socket.
const SYSTEM: &str = "/run/git-sandbox/admin.sock";
/// For what is done at once.
pub(super) const SHORT: Duration = Duration::from_secs(30);
/// For what asks the upstream or packs.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// Which mirror.
#[derive(Debug, Args)]
pub struct At {
    /// The administrator's socket (sandbox.mirrorAdmin)
    #[arg(long, value_name = "PATH")]
    pub admin: Option<PathBuf>,
}

/// Register a repository.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox mirror add https://github.com/git/git.git\n  \
git sandbox mirror add --private --credential gh https://github.com/acme/secret.git")]
pub struct Add {
    #[command(flatten)]
    at: At,
    /// The upstream
    url: String,
    /// What it is served as (host/owner/name of the URL when left out)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Which credential of the mirror's configuration the upstream wants
    #[arg(long, value_name = "ID")]
    credential: Option<String>,
    /// How often to ask the upstream (30s, 5m)
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
    /// Which refs: names, or prefixes that end in `/*` (heads and tags when left out)
    #[arg(long, value_name = "REFS")]
    refs: Vec<String>,
    /// Only for sessions that it is granted to
    #[arg(long)]
    private: bool,
    /// Wait until the first clone is done
    #[arg(long)]
    wait: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One repository.
#[derive(Debug, Args)]
#[command(after_help = "`git sandbox mirror list` has the names.")]
pub struct One {
    #[command(flatten)]
    at: At,
    /// What it is served as (`git sandbox mirror list`)
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Remove a repository.
#[derive(Debug, Args)]
#[command(after_help = "What sessions pushed is nowhere else: a repository that has scratch refs is not removed.\n\n\
Examples:\n  git sandbox mirror rm --dry-run github.com/git/git   tell what would go\n  \
git sandbox mirror rm github.com/git/git")]
pub struct Remove {
    #[command(flatten)]
    one: One,
    /// Tell what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Pack a repository anew.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox mirror repack --full github.com/git/git")]
pub struct Repack {
    #[command(flatten)]
    one: One,
    /// All packs into one: slower, and better to serve from
    #[arg(long)]
    full: bool,
}

/// All repositories.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox mirror list")]
pub struct List {
    #[command(flatten)]
    at: At,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Registers a repository.
pub fn add(context: &Context, args: &Add) -> Outcome {
    // What is no URL is said here, with the words of the command line; one with a password is not repeated.
    Upstream::parse(&args.url).map_err(|error| match error {
        NameError::Password => {
            CliError::usage(error.to_string()).hint("`[[credential]]` in its configuration, and `--credential ID`")
        }
        // What is before an `@` may be a password all the same.
        error if args.url.contains('@') => CliError::usage(format!("the URL: {error}"))
            .hint("https://HOST/OWNER/NAME.git, or another URL that git fetches from"),
        error => CliError::usage(format!("'{}': {error}", escape(&args.url)))
            .hint("https://HOST/OWNER/NAME.git, or another URL that git fetches from"),
    })?;
    let interval = match &args.interval {
        Some(text) => Some(parse_duration(text).ok_or_else(|| {
            CliError::usage(format!("'{}' is no time", escape(text)))
                .hint("a number and s, m, h or d: `--interval 30s`")
        })?),
        None => None,
    };
    let body = json!({
        "url": args.url, "name": args.name, "credential": args.credential,
        "interval_ms": interval.map(|seconds| seconds * 1000), "refs": args.refs, "private": args.private,
    });
    let mirror = Mirror::of(context, &args.at)?;
    let mut repo = mirror.call("POST", "/v1/repos", Some(&body), SHORT)?;
    let name = repo["name"].as_str().unwrap_or_default().to_owned();
    if args.wait {
        repo = mirror.call("POST", &format!("/v1/repos/{}/refresh", in_path(&name)), None, LONG)?;
    }
    if args.json {
        print_json(&repo);
    } else {
        println!("mirrors {}", escape(&name));
    }
    Ok(0)
}

/// Lists all.
pub fn list(context: &Context, args: &List) -> Outcome {
    let told = Mirror::of(context, &args.at)?.call("GET", "/v1/repos", None, SHORT)?;
    if args.json {
        print_json(&told["repos"]);
        return Ok(0);
    }
    let mut rows = vec![["NAME", "STATE", "AGE", "UPSTREAM"].map(str::to_owned).to_vec()];
    for repo in told["repos"].as_array().into_iter().flatten() {
        let text = |value: &Value| escape(value.as_str().unwrap_or_default());
        rows.push(vec![text(&repo["name"]), state(repo), old(&repo["status"]["refreshed"]), text(&repo["url"])]);
    }
    if rows.len() == 1 {
        eprintln!("no repository is mirrored");
        eprintln!("hint: `git sandbox mirror add URL` registers one");
        return Ok(0);
    }
    print!("{}", table(&rows));
    Ok(0)
}

/// Tells about one.
pub fn show(context: &Context, args: &One) -> Outcome {
    let repo = Mirror::of(context, &args.at)?.call("GET", &args.path(""), None, SHORT)?;
    tell(&repo, args.json);
    Ok(0)
}

/// Removes one.
pub fn remove(context: &Context, args: &Remove) -> Outcome {
    let path = args.one.path(if args.dry_run { "?dry_run" } else { "" });
    let told = Mirror::of(context, &args.one.at)?.call("DELETE", &path, None, LONG)?;
    if args.one.json {
        print_json(&told);
        return Ok(0);
    }
    let removed: Removed = serde_json::from_value(told).map_err(|error| CliError::chain(&error))?;
    let name = escape(&args.one.name);
    println!("{} {name}", if removed.done { "removed" } else { "would remove" });
    for dir in removed.dirs {
        println!("  {}", escape(&dir.to_string_lossy()));
    }
    if !removed.scratch.is_empty() {
        println!("not while it has scratch refs, which are nowhere else:");
        removed.scratch.iter().for_each(|scratch| println!("  {}", escape(scratch)));
    }
    Ok(0)
}

/// Does something to one, and tells how it is then. `verb` is the API's.
pub fn act(context: &Context, args: &One, verb: &str, done: &str) -> Outcome {
    let limit = if matches!(verb, "pause" | "resume") { SHORT } else { LONG };
    let repo = Mirror::of(context, &args.at)?.call("POST", &args.path(&format!("/{verb}")), None, limit)?;
    if args.json {
        print_json(&repo);
    } else {
        println!("{} {done}", escape(&args.name));
    }
    Ok(0)
}

/// Packs one anew.
pub fn repack(context: &Context, args: &Repack) -> Outcome {
    act(context, &args.one, if args.full { "repack?full" } else { "repack" }, "is packed anew")
}

impl One {
    fn path(&self, rest: &str) -> String {
        format!("/v1/repos/{}{rest}", in_path(&self.name))
    }
}

/// A name in the path of a URL: what is not plain is written as `%XX`.
pub(super) fn in_path(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:[]@+".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

pub(super) struct Mirror(Admin);

impl Mirror {
    /// The one that is named, is set, belongs to this machine, or to this user.
    pub(super) fn of(context: &Context, at: &At) -> Result<Self, CliError> {
        let set = || {
            let text = context.setting("sandbox.mirrorAdmin")?;
            Some(PathBuf::from(text.strip_prefix("unix:").unwrap_or(&text)))
        };
        let own = || Layout::new(default_root(context)).run().join("admin.sock");
        let path = match at.admin.clone().or_else(set) {
            Some(path) => path,
            None if Path::new(SYSTEM).exists() => SYSTEM.into(),
            None => own(),
        };
        let path = std::path::absolute(&path).map_err(CliError::io(format!("find '{}'", path.display())))?;
        Ok(Self(Admin::at(&path)))
    }

    pub(super) fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, CliError> {
        self.0.call(method, path, body, limit).map_err(told)
    }

    /// Has a file written; false where there is none.
    pub(super) fn file(
        &self,
        path: &str,
        body: &Value,
        sink: &mut dyn std::io::Write,
        limit: Duration,
    ) -> Result<bool, CliError> {
        self.0.file(path, body, sink, limit).map_err(told)
    }
}

fn told(error: AdminError) -> CliError {
    let failure = CliError::chain(&error);
    match error {
        AdminError::Unavailable { .. } => failure.status(UNAVAILABLE).hint(
            "`git sandbox mirror serve` is not running, or has its socket elsewhere (`--admin PATH`, sandbox.mirrorAdmin)",
        ),
        AdminError::Refused { status: 503, hint, .. } => hinted(failure.status(UNAVAILABLE), hint),
        AdminError::Refused { hint, .. } => hinted(failure, hint),
        AdminError::Unexpected { .. } => failure.hint("that is no mirror's administrator's socket"),
    }
}

fn hinted(failure: CliError, hint: Option<String>) -> CliError {
    match hint {
        Some(hint) => failure.hint(escape(&hint)),
        None => failure,
    }
}

pub(super) fn print_json(value: &Value) {
    println!("{}", escape_json(&format!("{value:#}")));
}

/// The state of a repository in one word.
fn state(repo: &Value) -> String {
    match (repo["paused"].as_bool(), repo["status"]["failures"].as_u64(), repo["status"]["state"].as_str()) {
        (Some(true), ..) => "paused".to_owned(),
        (_, Some(1..), Some("ready")) => "stale".to_owned(),
        (_, _, Some("ready")) => "fresh".to_owned(),
        (_, _, Some("cold")) => "cloning".to_owned(),
        (_, _, other) => escape(other.unwrap_or("unknown")),
    }
}

/// How long ago, of seconds since 1970.
pub(super) fn old(at: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    at.as_u64().map_or_else(|| "-".to_owned(), |at| age(now.saturating_sub(at)))
}

fn tell(repo: &Value, as_json: bool) {
    if as_json {
        print_json(repo);
        return;
    }
    let text = |value: &Value| value.as_str().map(escape);
    let status = &repo["status"];
    for (label, value) in [
        ("name", text(&repo["name"])),
        ("upstream", text(&repo["url"])),
        ("state", Some(state(repo))),
        ("refreshed", status["refreshed"].as_u64().map(|_| format!("{} ago", old(&status["refreshed"])))),
        ("error", text(&status["error"])),
        ("moved to", text(&status["moved_to"])),
        ("private", repo["private"].as_bool().filter(|private| *private).map(|_| "yes".to_owned())),
        ("credential", text(&repo["credential"])),
        ("objects", text(&status["format"])),
        (
            "from",
            text(&repo["origin"])
                .map(|origin| if origin == "file" { "the configuration" } else { "`mirror add`" }.to_owned()),
        ),
    ] {
        if let Some(value) = value {
            println!("{label:<12}{value}");
        }
    }
}
