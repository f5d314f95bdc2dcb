//! `presets`: what agents need to work inside, and where each preset comes from.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::Outcome;
use crate::presets::{self, Preset, hosts};
use crate::text::{escape, escape_lines, table};
use serde::Serialize;

/// Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    presets: &'a [Preset],
}

pub fn run(context: &Context, args: &cli::Presets) -> Outcome {
    if args.sets {
        return sets(context, args);
    }
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
            eprintln!("{}: {}", preset.name, presets::origin(preset.file.as_deref(), &context.home));
            print!("{}", escape_lines(&presets::source(preset)?));
        }
        return Ok(0);
    }
    let mut lines = vec![["NAME", "COMMAND", "HOSTS", "FROM"].map(str::to_owned).to_vec()];
    for preset in &chosen {
        let from = presets::origin(preset.file.as_deref(), &context.home);
        lines.push(vec![preset.name.clone(), preset.programs.join(", "), some(&preset.hosts), from]);
    }
    print!("{}", escape_lines(&table(&lines)));
    Ok(0)
}

/// The first of a list, and how many more there are.
fn some(list: &[String]) -> String {
    match list {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// Schema version 1.
#[derive(Serialize)]
struct Sets<'a> {
    version: u32,
    sets: &'a [hosts::File],
}

/// Schema version 1.
#[derive(Serialize)]
struct OneSet {
    version: u32,
    name: String,
    hosts: Vec<String>,
    notes: Vec<String>,
}

/// Lists the sets of hosts, or what one stands for on this machine now.
fn sets(context: &Context, args: &cli::Presets) -> Outcome {
    if let Some(name) = &args.name {
        let name = name.trim_start_matches('@');
        let set = hosts::set(context, name)?;
        let rules: Vec<String> = set.rules.iter().map(ToString::to_string).collect();
        if args.json {
            print_json(&OneSet { version: 1, name: name.to_owned(), hosts: rules, notes: set.notes })?;
            return Ok(0);
        }
        for rule in &rules {
            println!("{rule}");
        }
        for note in &set.notes {
            eprintln!("note: {}", escape(note));
        }
        return Ok(0);
    }
    let all = hosts::all(context)?;
    if args.json {
        print_json(&Sets { version: 1, sets: &all })?;
        return Ok(0);
    }
    let mut lines = vec![["NAME", "HOSTS", "FROM"].map(str::to_owned).to_vec()];
    for set in &all {
        let tools: Vec<&str> = set.discover.iter().map(|tool| tool.name()).collect();
        let what = match (set.hosts.as_slice(), tools.as_slice()) {
            (hosts, []) => some(hosts),
            ([], tools) => format!("what {} uses here", tools.join(", ")),
            (hosts, tools) => format!("{}, what {} uses here", some(hosts), tools.join(", ")),
        };
        lines.push(vec![format!("@{}", set.name), what, presets::origin(set.file.as_deref(), &context.home)]);
    }
    print!("{}", escape_lines(&table(&lines)));
    Ok(0)
}
