//! `doctor`: what this machine can do, what not, why, and the command that changes it.

use super::list::print_json;
use crate::cli;
use crate::context::{Context, ROOT_UID};
use crate::error::{CliError, Outcome};
use crate::prepare::filesystem;
use crate::probe::{Finding, Outcome as Probed};
use crate::text::{count, escape, size};
use crate::view;
use sandbox_core::driver::{Check, Isolation, Verdict};
use sandbox_core::launch::VmSettings;
use sandbox_core::store::Store;
use sandbox_core::tree_view::Wish;
use sandbox_drivers::vm::{accel, kernel_package};
use sandbox_git::Version;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    version: u32,
    program: String,
    git: String,
    state_directory: std::path::PathBuf,
    drivers: Vec<DriverReport>,
    checks: Vec<Check>,
    /// What `--probe` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    probes: Option<Vec<Finding>>,
}

#[derive(Serialize)]
struct DriverReport {
    name: &'static str,
    isolation: Isolation,
    usable: bool,
    checks: Vec<Check>,
}

pub fn run(context: &Context, args: &cli::Doctor) -> Outcome {
    let settings = crate::vm::settings(context)?;
    if args.fix {
        fix(&settings)?;
    }
    let drivers: Vec<DriverReport> = sandbox_drivers::all()
        .iter()
        .map(|driver| {
            let checks = driver.check(&settings);
            let usable = checks.iter().all(|check| check.verdict != Verdict::Missing);
            DriverReport { name: driver.name(), isolation: driver.isolation(), usable, checks }
        })
        .collect();
    let git = context.git().and_then(|git| Ok(git.version()?));
    let report = Report {
        version: 1,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        git: git.as_ref().map_or_else(|error| error.message.clone(), ToString::to_string),
        state_directory: context.state_dir()?,
        checks: own_checks(context, git.as_ref().ok()),
        drivers,
        probes: if args.probe { Some(crate::probe::run(context)?) } else { None },
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    let unmet: Vec<&String> = args.require.iter().filter(|what| !holds(&report, what)).collect();
    if !unmet.is_empty() {
        let names: Vec<String> = unmet.iter().map(|what| format!("'{}'", escape(what))).collect();
        return Err(CliError::new(format!("not here: {}", names.join(", ")))
            .hint("the checks above name what is missing")
            .status(1));
    }
    let broken = report.probes.iter().flatten().filter(|finding| finding.outcome == Probed::Broken).count();
    if broken > 0 {
        return Err(CliError::new(format!("the wall has {}", count(broken, "hole")))
            .hint("nothing that is not trusted should run in a sandbox on this machine")
            .status(1));
    }
    Ok(if report.drivers.iter().any(|driver| driver.usable) { 0 } else { 1 })
}

/// Gets a guest kernel where none is set, and has it tried again what runs guests.
fn fix(settings: &VmSettings) -> Result<(), CliError> {
    if settings.kernel.is_none() {
        let image = kernel_package::unpack(&settings.cache)?;
        eprintln!("guest kernel: '{}'", escape(&image.to_string_lossy()));
    }
    accel::forget(&settings.cache).map_err(CliError::io(format!("write '{}'", settings.cache.display())))
}

fn print(report: &Report) {
    println!("git-sandbox {}, git {}", report.program, report.git);
    println!("state directory {}", report.state_directory.display());
    for check in &report.checks {
        print_check(check);
    }
    for driver in &report.drivers {
        println!("\ndriver {}: {}", driver.name, if driver.usable { "works here" } else { "cannot be used here" });
        for check in &driver.checks {
            print_check(check);
        }
    }
    if let Some(probes) = &report.probes {
        println!("\nprobes, tried inside a fresh sandbox:");
        for finding in probes {
            let mark = match finding.outcome {
                Probed::Held => "held   ",
                Probed::Unknown => "unknown",
                Probed::Broken => "BROKEN ",
            };
            let own = if finding.outside == Some(Probed::Held) { " (refused on the host too)" } else { "" };
            println!("  {mark} {:<8} {:<38} {}{own}", finding.ids.join(" "), finding.probe, escape(&finding.found));
        }
    }
}

fn print_check(check: &Check) {
    let mark = match check.verdict {
        Verdict::Ok => "ok     ",
        Verdict::Weak => "weak   ",
        Verdict::Missing => "MISSING",
    };
    println!("  {mark} {:<20} {}", check.name, check.found);
    if let Some(fix) = &check.fix {
        println!("          {:<20} fix: {fix}", "");
    }
}

fn holds(report: &Report, what: &str) -> bool {
    let usable = |isolation| report.drivers.iter().any(|driver| driver.isolation >= isolation && driver.usable);
    let check_ok = |name: &str| {
        report
            .drivers
            .iter()
            .flat_map(|driver| &driver.checks)
            .chain(&report.checks)
            .any(|check| check.name == name && check.verdict == Verdict::Ok)
    };
    match what.split_once('=') {
        Some(("isolation", "namespace")) => usable(Isolation::Namespace),
        Some(("isolation", "vm")) => usable(Isolation::Vm),
        Some(("limits", limit)) => check_ok(&format!("limit-{limit}")),
        Some(("driver", name)) => report.drivers.iter().any(|driver| driver.name == name && driver.usable),
        _ => check_ok(what),
    }
}

/// What does not depend on a driver.
fn own_checks(context: &Context, git: Option<&Version>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |name: &str, verdict, found: String, fix: Option<String>| {
        checks.push(Check { name: name.into(), verdict, found, fix });
    };
    match git {
        Some(version) if version.is_safe() => add("git", Verdict::Ok, format!("{version}"), None),
        Some(version) => add(
            "git",
            Verdict::Weak,
            format!("{version} lacks fixes of security releases 2.43.7, 2.45.4, 2.47.3 or 2.50.1"),
            Some("upgrade git".into()),
        ),
        None => add("git", Verdict::Missing, "no usable git on PATH".into(), Some("install git 2.39 or newer".into())),
    }
    let state = context.state_dir().unwrap_or_default();
    match context.store() {
        Ok(store) => {
            add("state-directory", Verdict::Ok, format!("{}", store.root().display()), None);
            let kind = filesystem(store.root());
            let shared = view::reflinks(store.root());
            add(
                "state-filesystem",
                if kind == "tmpfs" { Verdict::Weak } else { Verdict::Ok },
                match (kind.as_str(), shared) {
                    ("tmpfs", _) => "tmpfs: everything is gone after a reboot".into(),
                    (kind, true) => format!("{kind}, with reflinks"),
                    (kind, false) => format!("{kind}, without reflinks: a first capture copies"),
                },
                (kind == "tmpfs").then(|| STATE_DIR.into()),
            );
            let (verdict, found) = view_check(context, &store, shared);
            add("view", verdict, found, (verdict != Verdict::Ok).then(|| STATE_DIR.into()));
        }
        Err(error) => add("state-directory", Verdict::Missing, error.message, error.hints.first().cloned()),
    }
    add("watcher", Verdict::Ok, super::watch::tell(context), None);
    if let Some(repo) = context.maybe_repo() {
        let there = repo.common_dir();
        if view::reflinks(there) && !view::shares(there, &state) {
            add(
                "same-filesystem",
                Verdict::Weak,
                format!(
                    "this repository is on {} with reflinks, and the state directory is on another file system: captures copy",
                    filesystem(there)
                ),
                Some("git config sandbox.stateDir DIR   # on the repository's file system".into()),
            );
        }
        if let Ok(out) = context.git().and_then(|git| {
            Ok(git
                .user(repo.top_or_gitdir())
                .args(["config", "--get-regexp", r"^remote\..*\.(mirror|push)$"])
                .line()?)
        }) {
            for line in out.lines().filter(|line| line.ends_with(".mirror true") || line.contains("refs/*")) {
                add(
                    "publishing-remote",
                    Verdict::Weak,
                    format!("'{}' would publish refs/sandbox/* on a push", escape(line)),
                    Some("git config --unset that key, or push branches by name".into()),
                );
            }
        }
    }
    checks
}

/// The command that moves the state directory.
const STATE_DIR: &str = "git config --global sandbox.stateDir DIR   # on ext4, XFS or Btrfs";

/// Which view a sandbox would get, and why not an overlay.
fn view_check(context: &Context, store: &Store, reflinks: bool) -> (Verdict, String) {
    let wish = match view::wish(context, None) {
        Ok(wish) => wish,
        Err(error) => return (Verdict::Missing, error.message),
    };
    if wish == Wish::Copy {
        return (Verdict::Ok, "a full copy for each sandbox (sandbox.view = copy)".into());
    }
    let Some(driver) = sandbox_drivers::all().first() else { return (Verdict::Missing, "there is no driver".into()) };
    let place = context.maybe_repo().map_or(store.root(), |repo| repo.top_or_gitdir());
    let ids = context.user(place).map_or((ROOT_UID, ROOT_UID), |user| (user.uid, user.gid));
    let why = match view::refused(store.root(), *driver, ids) {
        Ok(None) => return (Verdict::Ok, "an overlay".into()),
        Ok(Some(why)) => why,
        Err(error) => format!("it cannot be found out whether an overlay can be had: {error}"),
    };
    if wish == Wish::Overlay {
        return (Verdict::Missing, format!("the state directory is on {why} (sandbox.view = overlay)"));
    }
    let limit = match view::capture_limit(context) {
        _ if reflinks => "with shared blocks".to_owned(),
        Ok(None) => "of every tree (sandbox.captureLimit = none)".to_owned(),
        Ok(Some(limit)) => format!("of trees up to {} (sandbox.captureLimit)", size(limit)),
        Err(error) => return (Verdict::Missing, error.message),
    };
    (Verdict::Weak, format!("the state directory is on {why}: a full copy for each sandbox, {limit}"))
}
