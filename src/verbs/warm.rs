//! `warm`: captures ahead of time, so that the next spawn has next to nothing to copy. Made for hooks of git,
//! schedulers and editors: with `--quiet` it says nothing, waits for nobody and always succeeds.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::prepare::{self, Asked};
use crate::project::Project;
use crate::view;
use crate::wall::Demands;
use sandbox_core::prepare::Source;
use sandbox_sys::lock::FileLock;
use serde::Serialize;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    repo: &'a str,
    worktree: &'a std::path::Path,
    snapshot: &'a str,
    layers: usize,
    files: u64,
    copied_files: u64,
    copied_bytes: u64,
}

pub fn run(context: &Context, args: &cli::Warm) -> Outcome {
    let done = if args.detach { detach(context, args) } else { warm(context, args) };
    match done {
        // A hook that fails would fail the user's git command.
        Err(_) if args.quiet => Ok(0),
        done => done,
    }
}

fn warm(context: &Context, args: &cli::Warm) -> Outcome {
    let repo = context.repo()?;
    repo.worktree().map_err(CliError::from)?;
    let store = context.store()?;
    store.writable()?;
    let top = repo.top_or_gitdir().to_owned();
    prepare::refuse_place(context, &store, &top)?;
    if args.quiet
        && let Some(id) = repo.known_id(&store)?
        && FileLock::is_held(&store.repo(&id).lock_file())
    {
        // Another capture is under way: the next spawn finds what it leaves.
        return Ok(0);
    }
    let user = context.user(&top)?;
    let project = Project::read(&top)?;
    // What no sandbox could stand on is not captured.
    let min = Demands::read(context, None)?.min;
    let driver = sandbox_drivers::by_name(&super::spawn::chosen_driver(context, None, min)?);
    let wish = view::wish(context, None)?;
    let view = driver.map(|driver| view::look(context, &store, driver, (user.uid, user.gid), wish)).transpose()?;
    view.iter().try_for_each(|view| view.choose(None).map(drop))?;
    let asked = Asked { grant: &[], carry_secrets: None, quiet: args.quiet, ask: false, view: view.as_ref() };
    let of = prepare::Of { repo: Some(repo), top: repo.top_or_gitdir(), source: &Source::WorkTree, along: false };
    let (taken, _) = prepare::take(context, &store, of, &user, &asked, &project, None)?;
    if !args.quiet {
        prepare::tell(context, &taken, of);
    }
    crate::plumbing::sync::start_for(&context.program, &store, &taken.repo, &taken.snapshot.id);
    if args.json {
        print_json(&Report {
            version: 1,
            repo: taken.repo.as_str(),
            worktree: &top,
            snapshot: taken.snapshot.id.as_str(),
            layers: taken.snapshot.layers.len(),
            files: taken.told.files,
            copied_files: taken.told.copied,
            copied_bytes: taken.told.bytes,
        })?;
    } else if !args.quiet {
        println!("captured: {}", taken.told);
    }
    Ok(0)
}

/// Does the same in the background, in a session of its own: the hook is over at once.
fn detach(context: &Context, args: &cli::Warm) -> Outcome {
    context.repo()?;
    let mut command = Command::new(&context.program);
    command.args(["warm", "--quiet"]).current_dir(&context.cwd);
    // An interrupt at the terminal of the hook is not for it.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(CliError::io("start the capture in the background"))?;
    if !args.quiet {
        println!("capturing in the background");
    }
    Ok(0)
}
