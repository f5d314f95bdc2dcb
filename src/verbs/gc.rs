//! `gc`: removes from the store what nothing stands on. The plan is a value and is shown first.

use crate::cli;
use crate::context::Context;
use crate::error::Outcome;
use crate::text::{count, size};
use sandbox_core::{prune, removal};
use std::time::{Duration, SystemTime};

pub fn run(context: &Context, args: &cli::Gc) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let stamp = store.root().join("last-gc");
    let recent = std::fs::metadata(&stamp)
        .and_then(|meta| meta.modified())
        .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < Duration::from_secs(86_400)));
    if args.auto && recent {
        return Ok(0);
    }
    let plan = prune::plan(&store)?;
    // Marks and the like are no news.
    for item in plan.items.iter().filter(|item| item.bytes > 0) {
        println!("{} {} ({})", if args.dry_run { "would remove" } else { "remove" }, item.what, size(item.bytes));
    }
    if args.dry_run {
        match plan.bytes() {
            0 => eprintln!("there is nothing to remove"),
            bytes => eprintln!("{} would be free", size(bytes)),
        }
        return Ok(0);
    }
    let swept = removal::sweep(&store)?;
    prune::apply(&store, &plan)?;
    sandbox_core::store::write_whole(&stamp, b"", false)?;
    match (plan.bytes(), swept) {
        (0, 0) => eprintln!("there was nothing to remove"),
        (bytes, 0) => eprintln!("freed {}", size(bytes)),
        (bytes, swept) => {
            let left = count(swept, "thing");
            eprintln!("freed {}, and removed {left} that an interrupted command left", size(bytes));
        }
    }
    Ok(0)
}
