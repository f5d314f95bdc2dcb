//! `bundle`: a sandbox's commits as a file that git can fetch from.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, size};
use sandbox_core::connection::Connection;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_protocol::{Exec, ExitStatus, escape_bytes};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use tempfile::NamedTempFile;

pub fn run(context: &Context, args: &cli::Bundle) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if work::host(&store, &sandbox).is_err() {
        return without_host(context, &store, &sandbox, args);
    }
    super::fetch::bring_to_read(context, &store, &sandbox)?;
    let (git, name) = (context.git()?, sandbox.name());
    let shown = escape(&args.file.to_string_lossy());
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(exists(&shown));
    }
    super::trees::tell_others(context, &store, &sandbox, &format!("bundle {name} FILE"))?;
    let base = sandbox.snapshot(&store)?.git.base.as_deref().and_then(Oid::parse);
    let tip = work::tip(git, &store, &sandbox)?.filter(|tip| Some(*tip) != base);
    if tip.is_none() {
        eprintln!("no commits in '{name}'{}", super::trees::of_which(&sandbox));
        return Ok(1);
    }
    let host = work::host(&store, &sandbox)?;
    let heads = format!("refs/sandbox-meta/{name}/heads/");
    let main = format!("refs/sandbox/{name}");
    let listed = host.read(git).args(["for-each-ref", "--format=%(refname)", &main, &heads]).output()?.stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let made = begin(context, args)?;
    let mut create = host.read(git).args(["bundle", "create", "--quiet"]).arg(made.path()).args(listed.lines());
    if let Some(base) = base {
        create = create.arg(format!("^{base}"));
    }
    create.run()?;
    host.read(git).args(["bundle", "verify", "--quiet"]).arg(made.path()).run()?;
    let bytes = keep(context, args, made)?;
    let which = super::trees::of_which(&sandbox);
    eprintln!("'{shown}' has the commits of '{name}'{which}, {}", size(bytes));
    eprintln!("hint: `git fetch '{shown}' {main}` takes them in any clone that has the commit it started from");
    Ok(0)
}

/// Of a sandbox whose repository on the host is gone: git inside makes it, with everything that is visible there. It
/// speaks for itself only: git checks each object when somebody fetches from it.
fn without_host(context: &Context, store: &Store, sandbox: &Sandbox, args: &cli::Bundle) -> Outcome {
    let shown = escape(&args.file.to_string_lossy());
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(exists(&shown));
    }
    let argv = ["git", "bundle", "create", "--quiet", "-", "HEAD", "--branches", "--tags"];
    let cwd = sandbox.mount().worktree.as_os_str().as_bytes();
    let exec =
        Exec { argv: argv.map(str::to_owned).to_vec(), cwd: escape_bytes(cwd), internal: true, ..Exec::default() };
    let made = begin(context, args)?;
    let out = made.reopen().map_err(CliError::io(format!("write '{shown}'")))?;
    let run = |connection: &mut Connection| relayed(connection, exec, out);
    let (status, said) = match super::stop::live(sandbox)? {
        Some(mut connection) => run(&mut connection)?,
        None => super::fetch::with_helper(context, store, sandbox, run)?,
    };
    if status.shell() != 0 {
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().next().unwrap_or_default().trim_start_matches("fatal: ").to_owned();
        return Err(CliError::new(format!("git inside '{}' cannot bundle its commits", sandbox.name()))
            .cause(escape(&line))
            .hint(format!("`git sandbox cp {}:PATH .` takes out files", sandbox.name())));
    }
    let bytes = keep(context, args, made)?;
    eprintln!("'{shown}' has the commits of '{}' and what they stand on, {}", sandbox.name(), size(bytes));
    eprintln!("hint: its repository is gone from here: `git clone '{shown}' DIR` makes one again");
    Ok(0)
}

/// Runs a command inside, with its standard output in a file.
fn relayed(connection: &mut Connection, exec: Exec, mut out: File) -> Result<(ExitStatus, Vec<u8>), CliError> {
    let (ours, mut theirs) = UnixStream::pair().map_err(CliError::io("make a socket pair"))?;
    let copied = std::thread::spawn(move || {
        // Our side stays open: its end would mean that nobody listens any more.
        std::io::copy(&mut theirs, &mut out).map(drop)
    });
    let ended = connection.relay(exec, &ours);
    drop(ours);
    copied.join().unwrap_or(Ok(())).map_err(CliError::io("write the bundle"))?;
    Ok(ended?)
}

/// A file beside the one that is wanted, under another name: that one appears whole.
fn begin(context: &Context, args: &cli::Bundle) -> Result<NamedTempFile, CliError> {
    let file = context.cwd.join(&args.file);
    let dir = file.parent().unwrap_or(Path::new("/"));
    tempfile::Builder::new()
        .prefix(".git-sandbox.")
        .tempfile_in(dir)
        .map_err(CliError::io(format!("write in '{}'", escape(&dir.to_string_lossy()))))
}

/// Gives the file its name; returns its size in bytes.
fn keep(context: &Context, args: &cli::Bundle, made: NamedTempFile) -> Result<u64, CliError> {
    let (file, shown) = (context.cwd.join(&args.file), escape(&args.file.to_string_lossy()));
    let bytes = made.path().metadata().map_err(CliError::io(format!("write '{shown}'")))?.len();
    let kept = if args.force { made.persist(&file) } else { made.persist_noclobber(&file) };
    kept.map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(&shown),
        _ => CliError::io(format!("write '{shown}'"))(error.error),
    })?;
    Ok(bytes)
}

fn exists(shown: &str) -> CliError {
    CliError::new(format!("'{shown}' exists already")).hint("take another name, or `--force` writes over it")
}
