//! `repair`: finds what dead commands, crashes and other hands left, mends it and says what it was.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::recovery;
use crate::text::escape;
use sandbox_core::host_repo::{HostRepo, refound};
use sandbox_core::journal::recover::{self, Which};
use sandbox_core::repair::{self, Fix};
use sandbox_core::store::Store;
use serde::Serialize;
use std::path::Path;

/// Schema version 1.
#[derive(Serialize)]
struct Report {
    version: u32,
    dry_run: bool,
    findings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    kind: &'static str,
    what: String,
    repaired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

pub fn run(context: &Context, args: &cli::Repair) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let git = context.git()?;
    let mut findings = Vec::new();
    if let Some(path) = &args.repo {
        findings.extend(placed(context, &store, path, args.dry_run)?);
    }
    if args.dry_run {
        for recover::Found { recovery: cut, outcome } in recovery::plan(context, &store)? {
            let deeds: Vec<String> = cut.deeds.iter().map(ToString::to_string).collect();
            let what = format!("a '{}' of '{}' was cut off", cut.verb, cut.of.join("', '"));
            let hint = (!deeds.is_empty()).then(|| deeds.join("; "));
            let hint = outcome.as_ref().err().and_then(|error| recovery::hint(error.as_ref())).or(hint);
            let error = outcome.err().map(|error| CliError::chain(error.as_ref()).message);
            findings.push(Found { kind: "operation", what, repaired: false, error, hint });
        }
    } else {
        for found in recovery::mend(context, &store, Which::All, true)? {
            let error = found.outcome.as_ref().err().map(|error| CliError::chain(error.as_ref()).message);
            let hint = found.outcome.as_ref().err().and_then(|error| recovery::hint(error.as_ref()));
            let (what, repaired) = (found.recovery.to_string(), error.is_none());
            findings.push(Found { kind: "operation", what, repaired, error, hint });
        }
    }
    for finding in repair::find(git, &store, Path::new("/sys/fs/cgroup"))? {
        let result = if args.dry_run { Ok(false) } else { repair::mend(git, &store, &finding) };
        let hint = match &finding.fix {
            Fix::Told(hint) => Some(hint.clone()),
            Fix::Pack(pack) if result.is_err() => Some(pack.hint()),
            _ => None,
        };
        let error = result.as_ref().err().map(|error| CliError::chain(error.as_ref()).message);
        findings.push(Found { kind: finding.kind, what: finding.what, repaired: result.unwrap_or(false), error, hint });
    }
    let left = findings.iter().filter(|found| !found.repaired).count();
    let report = Report { version: 1, dry_run: args.dry_run, findings };
    if args.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    Ok(if args.dry_run || left == 0 { 0 } else { 1 })
}

/// Gives a repository the sandboxes of the missing one that it is; `None` when it has them.
fn placed(context: &Context, store: &Store, path: &Path, dry_run: bool) -> Result<Option<Found>, CliError> {
    let git = context.git()?;
    let path =
        std::fs::canonicalize(path).map_err(CliError::io(format!("find '{}'", escape(&path.to_string_lossy()))))?;
    let found = refound::compare(git, store, &HostRepo::discover(git, &path)?)?;
    if found.known {
        return Ok(None);
    }
    if !dry_run {
        refound::place(store, &found)?;
    }
    Ok(Some(Found { kind: "place", what: found.to_string(), repaired: !dry_run, error: None, hint: None }))
}

fn print(report: &Report) {
    for found in &report.findings {
        let mark = match (report.dry_run, found.repaired) {
            (true, _) => "found   ",
            (false, true) => "repaired",
            (false, false) => "LEFT    ",
        };
        println!("{mark} {}", escape(&found.what));
        if let Some(error) = &found.error {
            println!("         it cannot be mended now: {}", escape(error));
        }
        if let Some(hint) = &found.hint {
            println!("         {}", escape(hint));
        }
    }
    if report.findings.is_empty() {
        eprintln!("everything is as it should be");
    }
}
