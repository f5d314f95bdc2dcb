//! One file per verb, or per family of small ones.

pub mod allow;
pub mod apply;
mod branch;
mod bundle;
pub mod checkpoint;
pub mod commit;
mod completions;
mod conflicts;
mod console;
pub mod cp;
mod diff;
mod doctor;
pub mod drop;
mod events;
mod exec;
pub mod fetch;
mod fork;
pub mod gc;
mod help;
pub mod list;
mod log;
mod logs;
pub mod merge;
pub mod mirror;
mod pick;
mod presets;
mod range_diff;
mod repair;
pub mod rescue;
pub mod review;
mod run;
mod setup;
mod show;
pub mod spawn;
pub mod stop;
mod trash;
pub mod trees;
mod undo;
mod wait;
mod warm;
pub mod watch;

use crate::cli::Verb;
use crate::context::Context;
use crate::error::Outcome;
use crate::inside;

/// Runs a verb. All but a few are for the host.
pub fn run(context: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Push(args) => return fetch::push(context, &args),
        Verb::Help(args) => return help::run(context, &args),
        Verb::Completions(args) => return completions::run(&args),
        Verb::Fetch(args) if inside::name().is_some() => return fetch::inside(&args),
        _ => {}
    }
    inside::refuse(verb.word())?;
    if !matches!(verb, Verb::Mirror(_) | Verb::Presets(_) | Verb::Doctor(_) | Verb::Setup(_) | Verb::Repair(_)) {
        crate::recovery::first(context);
    }
    match verb {
        Verb::Spawn(args) => spawn::run(context, *args),
        Verb::Run(args) => run::run(context, &args),
        Verb::Exec(args) => exec::run(context, &args),
        Verb::Shell(args) => exec::shell(context, &args),
        Verb::Attach(args) => exec::attach(context, &args),
        Verb::Logs(args) => logs::run(context, &args),
        Verb::Events(args) => events::run(context, &args),
        Verb::Allow(args) => allow::run(context, &args, allow::Verb::Allow),
        Verb::Deny(args) => allow::run(context, &args, allow::Verb::Deny),
        Verb::Wait(args) => wait::run(context, &args),
        Verb::Stop(args) => stop::run(context, &args),
        Verb::Start(args) => stop::start(context, &args),
        Verb::Fork(args) => fork::run(context, &args),
        Verb::Checkpoint(args) => checkpoint::run(context, &args),
        Verb::Restore(args) => checkpoint::restore(context, &args),
        Verb::List(args) => list::run(context, &args),
        Verb::Show(args) => show::run(context, &args),
        Verb::Log(args) => log::run(context, &args),
        Verb::RangeDiff(args) => range_diff::run(context, &args),
        Verb::Diff(args) => diff::run(context, &args),
        Verb::Fetch(args) => fetch::run(context, &args),
        Verb::Conflicts(args) => conflicts::run(context, &args),
        Verb::Merge(args) => merge::run(context, &args),
        Verb::Pick(args) => pick::run(context, &args),
        Verb::Bundle(args) => bundle::run(context, &args),
        Verb::Apply(args) => apply::run(context, &args),
        Verb::Commit(args) => commit::run(context, &args),
        Verb::Branch(args) => branch::run(context, &args),
        Verb::Cp(args) => cp::run(context, &args),
        Verb::Drop(args) => drop::run(context, &args),
        Verb::Rescue(args) => rescue::run(context, &args),
        Verb::Trash(args) => trash::run(context, &args),
        Verb::Undo(args) => undo::run(context, &args),
        Verb::Ops(args) => undo::list(context, &args),
        Verb::Warm(args) => warm::run(context, &args),
        Verb::Repair(args) => repair::run(context, &args),
        Verb::Gc(args) => gc::run(context, &args),
        Verb::Watch(args) => watch::run(context, &args),
        Verb::Mirror(args) => mirror::run(context, &args),
        Verb::Presets(args) => presets::run(context, &args),
        Verb::Doctor(args) => doctor::run(context, &args),
        Verb::Setup(args) => setup::run(context, &args),
        Verb::Push(_) | Verb::Help(_) | Verb::Completions(_) => unreachable!("taken above"),
    }
}

impl Verb {
    /// Its word on the command line.
    pub fn word(&self) -> &'static str {
        match self {
            Verb::Spawn(_) => "spawn",
            Verb::Run(_) => "run",
            Verb::Exec(_) => "exec",
            Verb::Shell(_) => "shell",
            Verb::Attach(_) => "attach",
            Verb::Logs(_) => "logs",
            Verb::Events(_) => "events",
            Verb::Allow(_) => "allow",
            Verb::Deny(_) => "deny",
            Verb::Wait(_) => "wait",
            Verb::Stop(_) => "stop",
            Verb::Start(_) => "start",
            Verb::Fork(_) => "fork",
            Verb::Checkpoint(_) => "checkpoint",
            Verb::Restore(_) => "restore",
            Verb::List(_) => "list",
            Verb::Show(_) => "show",
            Verb::Log(_) => "log",
            Verb::RangeDiff(_) => "range-diff",
            Verb::Diff(_) => "diff",
            Verb::Fetch(_) => "fetch",
            Verb::Push(_) => "push",
            Verb::Conflicts(_) => "conflicts",
            Verb::Merge(_) => "merge",
            Verb::Pick(_) => "pick",
            Verb::Bundle(_) => "bundle",
            Verb::Apply(_) => "apply",
            Verb::Commit(_) => "commit",
            Verb::Branch(_) => "branch",
            Verb::Cp(_) => "cp",
            Verb::Drop(_) => "drop",
            Verb::Rescue(_) => "rescue",
            Verb::Trash(_) => "trash",
            Verb::Undo(_) => "undo",
            Verb::Ops(_) => "ops",
            Verb::Warm(_) => "warm",
            Verb::Repair(_) => "repair",
            Verb::Gc(_) => "gc",
            Verb::Watch(_) => "watch",
            Verb::Mirror(_) => "mirror",
            Verb::Presets(_) => "presets",
            Verb::Doctor(_) => "doctor",
            Verb::Setup(_) => "setup",
            Verb::Completions(_) => "completions",
            Verb::Help(_) => "help",
        }
    }
}
