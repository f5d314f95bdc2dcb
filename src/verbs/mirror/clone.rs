//! `mirror clone`: the quickest clone that there is, and one in any case.

use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::signals::Interrupt;
use crate::text::{escape, escape_bytes};
use clap::Args;
use rustix::termios::isatty;
use sandbox_mirror::client::clone::{CloneError, Unusable, clone};
use sandbox_mirror::client::plan::{Asked, Shape, Way};
use sandbox_mirror::client::{Why, probe::PROBE};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Clone from the mirror, or from the upstream when the mirror cannot.
#[derive(Debug, Args)]
#[command(
    after_help = "Shapes:\n  tip           the newest commit alone\n  sparse=A,B    the newest commit, and of its files those below A and B\n  \
full          all history\n  shared        all history, with objects borrowed from a mirror's store on this machine\n  \
Without one: shared where that is possible (sandbox.mirrorStore), else tip.\n\n\
Whatever the way, `origin` is the URL that was given.\n\n\
Examples:\n  git sandbox mirror clone https://github.com/git/git\n  \
git sandbox mirror clone https://github.com/git/git src --shape full\n  \
git sandbox mirror clone https://github.com/torvalds/linux --shape sparse=mm,fs/ext4"
)]
pub struct Clone {
    /// The upstream's URL
    pub url: String,
    /// Where to (the last part of the URL)
    pub dir: Option<PathBuf>,
    /// What the clone holds: tip, sparse=DIRS, full, shared
    #[arg(long)]
    pub shape: Option<String>,
    /// A branch or tag instead of the upstream's default branch
    #[arg(short, long, value_name = "NAME")]
    pub branch: Option<String>,
    /// The clone must have this commit; the mirror fetches it first if need be
    #[arg(long, value_name = "OID")]
    pub require_commit: Option<String>,
    /// Fail when the mirror cannot, instead of asking the upstream
    #[arg(long)]
    pub no_fallback: bool,
    /// The mirror (sandbox.mirror): http://HOST:PORT or unix:/PATH; none for none
    #[arg(long, value_name = "ADDRESS")]
    pub mirror: Option<String>,
    /// Milliseconds that the mirror may take to say that it is well
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub probe_ms: Option<u64>,
    /// Tell nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runs it.
pub fn run(context: &Context, args: &Clone) -> Outcome {
    let shape = match &args.shape {
        None => Shape::Quickest,
        Some(text) => text.parse().map_err(|error| {
            CliError::chain(&error).hint("it is tip, sparse=DIR,DIR, full or shared").status(crate::error::USAGE)
        })?,
    };
    let oid = |text: &&String| sandbox_git::Oid::parse(text).is_some();
    if let Some(text) = args.require_commit.iter().find(|text| !oid(text)) {
        return Err(CliError::usage(format!("'{}' is not the whole id of a commit", escape(text)))
            .hint("`git rev-parse REV` prints it"));
    }
    let word = |text: &&String| text.starts_with('-') || text.is_empty() || text.contains(['\n', '\0']);
    if args.branch.as_ref().is_some_and(|branch| word(&branch)) || word(&&args.url) {
        return Err(CliError::usage("neither a URL nor a branch begins with '-'"));
    }
    let dir = match &args.dir {
        Some(dir) => context.cwd.join(dir),
        None => context.cwd.join(humanish(&args.url).ok_or_else(|| {
            CliError::usage(format!("'{}' has no name for a directory", escape(&args.url)))
                .hint("name one: `git sandbox mirror clone URL DIR`")
        })?),
    };
    let patience = args.probe_ms.map_or(PROBE, Duration::from_millis);
    let at = super::at(context, args.mirror.as_deref(), patience)?;
    let asked = Asked {
        url: args.url.clone(),
        shape,
        branch: args.branch.clone(),
        require: args.require_commit.clone(),
        quiet: args.quiet || !isatty(io::stderr()),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let listening = Interrupt::listen(&stop);
    let cloned = clone(context.git()?, at.as_ref(), &asked, &dir, args.no_fallback, &stop);
    drop(listening);
    let cloned = cloned.map_err(explained)?;
    if args.quiet {
        return Ok(0);
    }
    if let Some(error) = cloned.left {
        let error = CliError::chain(&error);
        eprintln!("warning: the mirror could not be cloned from: {}", error.causes.first().unwrap_or(&error.message));
    }
    for note in &cloned.plan.notes {
        eprintln!("note: {note}");
    }
    let shown = escape_bytes(dir.as_os_str().as_bytes());
    match &cloned.plan.way {
        Way::Shared(_) => {
            eprintln!("cloned into '{shown}', with objects of the mirror's store");
            eprintln!(
                "note: what the upstream no longer has stays in that store for 14 days: `git repack -a` makes this clone independent"
            );
        }
        Way::Mirror => eprintln!("cloned into '{shown}', from the mirror"),
        Way::Upstream(Why::None) => eprintln!("cloned into '{shown}', from the upstream"),
        Way::Upstream(why) => eprintln!("cloned into '{shown}', from the upstream: {}", escape(&why.to_string())),
    }
    Ok(0)
}

/// The name that git would give a clone: the last part of the URL, without `.git`.
fn humanish(url: &str) -> Option<&str> {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/.git").unwrap_or(url);
    let name = url.rsplit(['/', ':']).next()?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    (!matches!(name, "" | "." | "..")).then_some(name)
}

/// With the next step.
fn explained(error: CloneError) -> CliError {
    let failure = CliError::chain(&error);
    match &error {
        CloneError::Exists { .. } => failure.hint("name another directory, or remove that one"),
        CloneError::Interrupted => failure.status(130),
        CloneError::Mirror { source: Unusable::Why(Why::None), .. } => {
            failure.hint("`git config --global sandbox.mirror http://HOST:PORT` names one")
        }
        CloneError::Mirror { source: Unusable::Why(Why::Without), .. } => {
            failure.hint("where the mirror is, `git sandbox mirror add URL` makes it have the repository")
        }
        CloneError::Mirror { .. } => failure.hint("without --no-fallback the upstream is asked"),
        CloneError::Git { .. } => failure.hint("nothing was cloned; the upstream was asked last"),
        CloneError::Missing { .. } => {
            failure.hint("it may not have been pushed, or be in no branch or tag of the upstream")
        }
        CloneError::Io { .. } => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_called_as_git_calls_it() {
        for (url, name) in [
            ("https://forge.test/o/name", Some("name")),
            ("https://forge.test/o/name.git/", Some("name")),
            ("git@forge.test:name.git", Some("name")),
            ("/srv/name/.git", Some("name")),
            ("https://forge.test/o/..", None),
            ("/", None),
        ] {
            assert_eq!(humanish(url), name, "{url}");
        }
    }
}
