//! `presets`: what agents need to work inside, and where each preset comes from.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::Outcome;
use crate::presets::{self, Preset};
use crate::text::{escape_lines, table};
use serde::Serialize;

/// Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    presets: &'a [Preset],
}

pub fn run(context: &Context, args: &cli::Presets) -> Outcome {
    let chosen = match &args.name {
        Some(name) => vec![presets::by_name(context, name)?],
        None => {
            let mut all = presets::all(context)?;
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        }
    };
    if args.json {
        print_json(&Listing { version: 1, presets: &chosen })?;
        return Ok(0);
    }
    if args.name.is_some() {
        for preset in &chosen {
            eprintln!("{}: {}", preset.name, preset.origin(&context.home));
            print!("{}", escape_lines(&presets::source(preset)?));
        }
        return Ok(0);
    }
    let mut lines = vec![["NAME", "COMMAND", "HOSTS", "FROM"].map(str::to_owned).to_vec()];
    for preset in &chosen {
        let hosts = match preset.hosts.as_slice() {
            [] => "-".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        };
        lines.push(vec![preset.name.clone(), preset.programs.join(", "), hosts, preset.origin(&context.home)]);
    }
    print!("{}", escape_lines(&table(&lines)));
    Ok(0)
}
