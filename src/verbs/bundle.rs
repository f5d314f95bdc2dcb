//! `bundle`: a sandbox's commits as a file that git can fetch from.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, size};
use sandbox_core::work;
use sandbox_git::Oid;
use std::path::Path;

pub fn run(context: &Context, args: &cli::Bundle) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    super::fetch::bring(context, &store, &sandbox)?;
    let (git, name) = (context.git()?, sandbox.name());
    let shown = escape(&args.file.to_string_lossy());
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(exists(&shown));
    }
    let base = sandbox.snapshot(&store)?.git.base.as_deref().and_then(Oid::parse);
    let tip = work::tip(git, &store, &sandbox)?.filter(|tip| Some(*tip) != base);
    if tip.is_none() {
        eprintln!("no commits in '{name}'");
        return Ok(1);
    }
    let host = work::host(&store, &sandbox)?;
    let heads = format!("refs/sandbox-meta/{name}/heads/");
    let main = format!("refs/sandbox/{name}");
    let listed = host.read(git).args(["for-each-ref", "--format=%(refname)", &main, &heads]).output()?.stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    // Written beside it under another name: it appears whole, and only when it was verified.
    let file = context.cwd.join(&args.file);
    let dir = file.parent().unwrap_or(Path::new("/"));
    let made = tempfile::Builder::new()
        .prefix(".git-sandbox.")
        .tempfile_in(dir)
        .map_err(CliError::io(format!("write in '{}'", escape(&dir.to_string_lossy()))))?;
    let mut create = host.read(git).args(["bundle", "create", "--quiet"]).arg(made.path()).args(listed.lines());
    if let Some(base) = base {
        create = create.arg(format!("^{base}"));
    }
    create.run()?;
    host.read(git).args(["bundle", "verify", "--quiet"]).arg(made.path()).run()?;
    let bytes = made.path().metadata().map_err(CliError::io(format!("write '{shown}'")))?.len();
    let kept = if args.force { made.persist(&file) } else { made.persist_noclobber(&file) };
    kept.map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(&shown),
        _ => CliError::io(format!("write '{shown}'"))(error.error),
    })?;
    eprintln!("'{shown}' has the commits of '{name}', {}", size(bytes));
    eprintln!("hint: `git fetch '{shown}' {main}` takes them in any clone that has the commit it started from");
    Ok(0)
}

fn exists(shown: &str) -> CliError {
    CliError::new(format!("'{shown}' exists already")).hint("take another name, or `--force` writes over it")
}
