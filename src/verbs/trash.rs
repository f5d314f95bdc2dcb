//! `trash`: what `drop --force` moved away, exactly as it was.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, size, table, tilde};
use sandbox_core::trash::{self, Trashed};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    trash: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    id: &'a str,
    worktree: &'a std::path::Path,
    dropped_seconds_ago: u64,
    disk_bytes: u64,
}

pub fn run(context: &Context, args: &cli::Trash) -> Outcome {
    let store = context.store()?;
    let all = trash::list(&store)?;
    match &args.action {
        None => list(context, &all, false),
        Some(cli::TrashAction::List { json }) => list(context, &all, *json),
        Some(cli::TrashAction::Restore { name }) => {
            store.writable()?;
            let found: Vec<&Trashed> = all
                .iter()
                .filter(|item| item.record.name.as_str() == name || item.record.id.as_str() == name)
                .collect();
            let item = match found.as_slice() {
                [] => {
                    return Err(CliError::new(format!("there is no '{}' in the trash", crate::text::escape(name)))
                        .hint("`git sandbox trash list` shows what is"));
                }
                [item] => *item,
                several => {
                    return Err(CliError::new(format!(
                        "there is more than one '{}' in the trash",
                        crate::text::escape(name)
                    ))
                    .hint(format!("by its id: `git sandbox trash restore {}`", several[0].record.id)));
                }
            };
            let restored = trash::restore(&store, item)?;
            if restored == item.record.name {
                eprintln!("restored '{restored}': `git sandbox start {restored}` goes on");
            } else {
                eprintln!(
                    "restored '{}' as '{restored}', since there is a new '{0}': `git sandbox start {restored}` goes on",
                    item.record.name
                );
            }
            Ok(0)
        }
        Some(cli::TrashAction::Empty { yes }) => {
            store.writable()?;
            if all.is_empty() {
                eprintln!("the trash is empty");
                return Ok(0);
            }
            if !yes {
                if !crate::terminal::interactive() {
                    return Err(CliError::usage("emptying the trash cannot be undone")
                        .hint("`git sandbox trash empty --yes` does it"));
                }
                eprint!("delete {} for good? [y/N] ", dropped(all.len()));
                let _ = std::io::stderr().flush();
                if !crate::leave::yes(false) {
                    return Ok(1);
                }
            }
            trash::empty(&store, &all)?;
            eprintln!("deleted {}", dropped(all.len()));
            Ok(0)
        }
    }
}

/// `1 dropped sandbox`, `2 dropped sandboxes`.
fn dropped(n: usize) -> String {
    format!("{n} dropped sandbox{}", if n == 1 { "" } else { "es" })
}

fn list(context: &Context, all: &[Trashed], json: bool) -> Outcome {
    if json {
        let trash = all
            .iter()
            .map(|item| Entry {
                name: item.record.name.as_str(),
                id: item.record.id.as_str(),
                worktree: item.worktree(),
                dropped_seconds_ago: item.age_seconds,
                disk_bytes: item.disk,
            })
            .collect();
        print_json(&Listing { version: 1, trash })?;
        return Ok(0);
    }
    if all.is_empty() {
        eprintln!("the trash is empty");
        return Ok(0);
    }
    let mut lines = vec![["NAME", "DROPPED", "DISK", "REPOSITORY"].map(str::to_owned).to_vec()];
    for item in all {
        lines.push(vec![
            item.record.name.to_string(),
            format!("{} ago", age(item.age_seconds)),
            size(item.disk),
            tilde(item.worktree(), &context.home),
        ]);
    }
    print!("{}", table(&lines));
    Ok(0)
}
