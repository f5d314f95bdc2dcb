//! `mirror env`: variables that lead git to the mirror, while it is well.

use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::escape;
use clap::Args;
use sandbox_mirror::client::probe::PROBE;
use sandbox_mirror::client::session::Grant;
use sandbox_mirror::client::settings::{self, Setting, exports, variables};
use sandbox_mirror::client::{Asker, offer, probe};
use sandbox_mirror::identity::SessionId;
use sandbox_mirror::name::{RepoName, Upstream};
use std::time::Duration;

/// Nothing is printed: the mirror is not well, or there is none.
const UNAVAILABLE: u8 = 3;

/// Print variables that lead git to the mirror; nothing, and status 3, when it is not well.
#[derive(Debug, Args)]
#[command(
    after_help = "Fetches of what the mirror has go to the mirror then; pushes, and all else, go where they went. The\n\
variables are for a shell or a job: asked again for the next one.\n\n\
Examples:\n  eval \"$(git sandbox mirror env)\"                            of this repository's remotes\n  \
eval \"$(git sandbox mirror env https://github.com/git/git)\""
)]
pub struct Env {
    /// Upstreams (the remotes of this repository)
    pub urls: Vec<String>,
    /// A session of the mirror that these requests are of; it is asked for at `sandbox.mirrorAdmin`
    #[arg(long = "for", value_name = "SESSION")]
    pub session: Option<String>,
    /// Milliseconds that the mirror may take to say that it is well
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub probe_ms: Option<u64>,
    /// The mirror (sandbox.mirror): http://HOST:PORT
    #[arg(long, value_name = "ADDRESS")]
    pub mirror: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, args: &Env) -> Outcome {
    let patience = args.probe_ms.map_or(PROBE, Duration::from_millis);
    let urls = if args.urls.is_empty() { remotes(context)? } else { args.urls.clone() };
    let mut named = Vec::new();
    for url in urls {
        match Upstream::parse(&url) {
            Ok(upstream) => named.push((url, upstream.name().clone())),
            Err(error) if !args.urls.is_empty() => {
                return Err(
                    CliError::usage(format!("'{}' is not a URL of an upstream", escape(&url))).cause(error.to_string())
                );
            }
            // A remote of another kind.
            Err(_) => {}
        }
    }
    let session: Option<SessionId> = args.session.as_deref().map(session_id).transpose()?;
    let Some(at) = super::at(context, args.mirror.as_deref(), patience)? else { return Ok(UNAVAILABLE) };
    if probe(&at.endpoint, at.patience).is_err() {
        return Ok(UNAVAILABLE);
    }
    let mut endpoint = at.endpoint.clone();
    let mut bearer = None;
    if let Some(id) = &session {
        let names: Vec<RepoName> = named.iter().map(|(_, name)| name.clone()).collect();
        match super::grant_session(context, id, &names, None)? {
            Grant::At(own) => endpoint = own,
            Grant::Token(token) => bearer = Some(token),
        }
    }
    let base = endpoint.url().ok_or_else(|| {
        CliError::new(format!("git cannot speak with '{}'", escape(&endpoint.to_string())))
            .hint("`git sandbox mirror clone` can; for git itself, let the mirror listen on http://127.0.0.1:PORT too")
    })?;
    let asker = Asker { endpoint: &endpoint, bearer: bearer.as_deref(), store: None };
    named.retain(|(_, name)| offer(&asker, name).is_ok());
    if named.is_empty() {
        return Ok(UNAVAILABLE);
    }
    let mut all = settings::transport();
    for (url, name) in &named {
        all.extend(settings::redirect(url, &format!("{base}/{}", name.url_path())));
    }
    all.extend(bearer.iter().map(|bearer| settings::identity(&format!("{base}/"), bearer)));
    all.extend(settings::kept());
    if let (Some(id), [(_, name)]) = (&session, named.as_slice()) {
        all.push(Setting::new("remote.mirror.url", format!("{base}/{}", name.url_path())));
        all.push(Setting::new("remote.mirror.push", format!("HEAD:refs/agents/{id}")));
    }
    // What the caller has set in this way stays.
    let have = context.vars.get("GIT_CONFIG_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0);
    print!("{}", exports(&variables(have, &all)));
    Ok(0)
}

/// A session's id, as it is written.
pub fn session_id(text: &str) -> Result<SessionId, CliError> {
    text.parse().map_err(|error| {
        CliError::usage(format!("'{}' is not the id of a session", escape(text)))
            .cause(sandbox_mirror::identity::SessionIdError::to_string(&error))
    })
}

/// The URLs of the remotes of the repository here.
fn remotes(context: &Context) -> Result<Vec<String>, CliError> {
    let none =
        || CliError::usage("which upstream?").hint("`git sandbox mirror env URL`, or in a repository with a remote");
    let repo = context.maybe_repo().ok_or_else(none)?;
    let urls: Vec<String> = super::remotes(context, repo)?.into_iter().map(|(_, url)| url).collect();
    if urls.is_empty() { Err(none()) } else { Ok(urls) }
}
