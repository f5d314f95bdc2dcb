//! `range-diff`: what became of each commit when a sandbox rewrote its branch. The former versions are in the reflog
//! of its ref here.

use super::diff::print;
use super::list::print_json;
use super::merge::open_to_read as open;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{escape, escape_lines};
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::{Counterpart, range_diff, range_diff_text};
use serde::Serialize;

/// Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    name: &'a str,
    old: Oid,
    new: Oid,
    commits: Vec<Counterpart>,
}

pub fn run(context: &Context, args: &cli::RangeDiff) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    super::fetch::bring_to_read(context, &store, &sandbox)?;
    let name = sandbox.name();
    let Some(new) = work::tip(context.git()?, &store, &sandbox)? else {
        eprintln!("no commits in '{name}'{}", super::trees::of_which(&sandbox));
        return Ok(1);
    };
    let repo = open(context, &store, &sandbox)?;
    let former = sandbox_integrate::former(&repo, &format!("refs/sandbox/{name}"))?;
    let old = match &args.old {
        Some(text) => {
            let hex = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let found = former.iter().find(|id| hex && id.to_string().starts_with(&text.to_ascii_lowercase()));
            *found.ok_or_else(|| {
                let known: Vec<String> = former.iter().take(5).map(Oid::short).collect();
                let error = CliError::new(format!("'{}' is no former tip of '{name}'", escape(text))).status(1);
                match known.as_slice() {
                    [] => error.hint("it has none"),
                    known => error.hint(format!("it was at {}", known.join(", "))),
                }
            })?
        }
        None => match sandbox_integrate::rewritten(&repo, &former, new)? {
            Some(old) => old,
            None => {
                eprintln!("'{name}' was not rewritten");
                return Ok(1);
            }
        },
    };
    let base = sandbox.snapshot(&store)?.git.base.as_deref().and_then(Oid::parse);
    if args.json {
        let commits = range_diff(&repo, base, old, new)?;
        print_json(&Listing { version: 1, name, old, new, commits })?;
        return Ok(0);
    }
    let text = range_diff_text(&repo, base, old, new)?;
    print(escape_lines(&String::from_utf8_lossy(&text)).as_bytes())
}
