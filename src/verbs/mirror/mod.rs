//! `mirror`: the hot git mirror, as a service and for its clients.

pub mod access;
mod admin;
mod clone;
mod env;
mod gather;
mod log;
mod notify;
mod quarantine;
mod scratch;
mod serve;
pub mod source;

use crate::context::Context;
use crate::error::{CliError, Outcome, USAGE};
use clap::{Args, Subcommand};
use sandbox_core::host_repo::HostRepo;
use sandbox_core::sandbox::Sandbox;
use sandbox_mirror::client::Endpoint;
use sandbox_mirror::client::clone::At;
use sandbox_mirror::client::endpoint::BadEndpoint;
use sandbox_mirror::client::session::{Grant, grant, revoke};
use sandbox_mirror::identity::SessionId;
use sandbox_mirror::name::RepoName;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// A git mirror next door: kept fresh in the background, and cloned from instead of the forge.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox mirror serve                                the service, in this terminal\n  \
git config --global sandbox.mirror http://127.0.0.1:9480\n  \
git sandbox mirror clone https://github.com/git/git     the newest commit, from the mirror if it has it\n  \
eval \"$(git sandbox mirror env)\"                        fetches of this shell go to the mirror"
)]
pub struct Mirror {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a mirror.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Clone from the mirror, or from the upstream when the mirror cannot
    Clone(clone::Clone),
    /// Print variables that lead git to the mirror; nothing, and status 3, when it is not well
    Env(env::Env),
    /// Serve repositories to many clients and keep them fresh, in the foreground
    Serve(Box<serve::Serve>),
    /// Register a repository
    Add(admin::Add),
    /// Remove a repository
    Rm(admin::Remove),
    /// List the repositories, and how old they are
    #[command(visible_alias = "ls")]
    List(admin::List),
    /// Tell about one repository
    Show(admin::One),
    /// Ask the upstream of a repository now, and wait for it
    Refresh(admin::One),
    /// Check every object of a repository
    Verify(admin::One),
    /// Pack a repository anew
    Repack(admin::Repack),
    /// Do not refresh a repository any more; it is served as it is
    Pause(admin::One),
    /// Refresh a repository again
    Resume(admin::One),
    /// What sessions have pushed: list, save, fetch, promote and drop it
    Scratch(scratch::Scratch),
    /// What was set aside as damaged: list it, and remove it
    Quarantine(quarantine::Quarantine),
}

/// Runs it.
pub fn run(context: &Context, args: &Mirror) -> Outcome {
    match &args.action {
        Action::Clone(args) => clone::run(context, args),
        Action::Env(args) => env::run(context, args),
        action => serving(context, action).map_err(with_status),
    }
}

fn serving(context: &Context, action: &Action) -> Outcome {
    match action {
        Action::Serve(args) => serve::run(context, args),
        Action::Add(args) => admin::add(context, args),
        Action::Rm(args) => admin::remove(context, args),
        Action::List(args) => admin::list(context, args),
        Action::Show(args) => admin::show(context, args),
        Action::Refresh(args) => admin::act(context, args, "refresh", "is as its upstream is"),
        Action::Verify(args) => admin::act(context, args, "verify", "is whole"),
        Action::Repack(args) => admin::repack(context, args),
        Action::Pause(args) => admin::act(context, args, "pause", "is not refreshed any more"),
        Action::Resume(args) => admin::act(context, args, "resume", "is refreshed again"),
        Action::Scratch(args) => scratch::run(context, args),
        Action::Quarantine(args) => quarantine::run(context, args),
        Action::Clone(_) | Action::Env(_) => unreachable!("taken above"),
    }
}

/// Wrong usage of a verb of the service.
const WRONG: u8 = 2;

/// The status of wrong usage of this command line.
pub fn usage_status(args: &[OsString]) -> u8 {
    let word = |n: usize| args.get(n).and_then(|word| word.to_str()).unwrap_or("");
    let service = word(1) == "mirror" && !matches!(word(2), "clone" | "env");
    if service { WRONG } else { USAGE }
}

/// The statuses of a service's verbs are 1 (it failed), 2 (wrong usage) and 3 (the mirror is not there): what starts
/// them knows no others.
fn with_status(error: CliError) -> CliError {
    let status = match error.status {
        crate::error::FATAL => 1,
        USAGE => WRONG,
        other => other,
    };
    CliError { status, ..error }
}

/// The mirror that is asked for, else the one that is set (`sandbox.mirror`).
pub fn at(context: &Context, asked: Option<&str>, patience: Duration) -> Result<Option<At>, CliError> {
    let Some(text) = asked.map(str::to_owned).or_else(|| context.setting("sandbox.mirror")) else { return Ok(None) };
    if text == "none" {
        return Ok(None);
    }
    let endpoint = text.parse::<Endpoint>().map_err(|error| {
        let error = CliError::chain(&error).hint("it is http://HOST:PORT or unix:/PATH (`git config sandbox.mirror`)");
        if asked.is_some() { error.status(crate::error::USAGE) } else { error }
    })?;
    let store = context.setting("sandbox.mirrorStore").map(PathBuf::from);
    Ok(Some(At { endpoint, bearer: None, store, patience }))
}

/// The remotes of a repository, with their URLs.
pub fn remotes(context: &Context, repo: &HostRepo) -> Result<Vec<(String, String)>, CliError> {
    let command = context.git()?.user(repo.top_or_gitdir());
    let (_, out) = command.args(["config", "--null", "--get-regexp", r"^remote\..*\.url$"]).try_output()?;
    let entry = |entry: &[u8]| {
        let (key, url) = std::str::from_utf8(entry).ok()?.split_once('\n')?;
        Some((key.strip_prefix("remote.")?.strip_suffix(".url")?.to_owned(), url.to_owned()))
    };
    Ok(out.stdout.split(|b| *b == 0).filter_map(entry).collect())
}

/// Asks the mirror's administrator (`sandbox.mirrorAdmin`) for a session that reads these repositories.
pub fn grant_session(
    context: &Context,
    id: &SessionId,
    repos: &[RepoName],
    base: Option<&str>,
) -> Result<Grant, CliError> {
    let Some(text) = context.setting("sandbox.mirrorAdmin") else {
        return Err(CliError::new("the mirror's administrator is not known")
            .hint("`git config --global sandbox.mirrorAdmin unix:/PATH` names its socket"));
    };
    let admin: Endpoint = text
        .parse()
        .map_err(|error| CliError::chain(&error as &BadEndpoint).hint("sandbox.mirrorAdmin is unix:/PATH"))?;
    grant(&admin, id, repos, base)
        .map_err(|error| CliError::chain(&error).cause(format!("asked at '{}'", crate::text::escape(&text))))
}

/// Gives back the session of a sandbox that goes: what it recorded stays. A mirror that is not there keeps it.
pub fn forget_session(context: &Context, sandbox: &Sandbox) {
    let session = sandbox.record.mirror.as_ref().and_then(|mirror| mirror.session.as_ref()?.parse().ok());
    let admin = context.setting("sandbox.mirrorAdmin").and_then(|text| text.parse().ok());
    if let (Some(session), Some(admin)) = (session, admin) {
        let _ = revoke(&admin, &session);
    }
}
