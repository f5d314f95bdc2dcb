//! `fork`: one more sandbox, from the state that another one is in now.

use super::spawn::{Launch, launch, launch_many};
use super::stop;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::leave;
use crate::template;
use crate::text::{count, escape, escape_bytes, size};
use sandbox_core::fork::{ForkError, Hold, Made, Request, Told, fork};
use sandbox_core::id::Name;
use sandbox_core::sandbox::{Sandbox, SandboxError};
use sandbox_core::space::is_full;
use sandbox_core::store::{Store, write_json};
use sandbox_core::work;
use sandbox_protocol::{escape_bytes as protocol_bytes, unescape_bytes};
use sandbox_sys::lock::FileLock;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Paths that are named of a longer list.
const NAMED: usize = 5;
/// How long another command that works on the stopped parent is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(context: &Context, args: &cli::Fork) -> Outcome {
    let wish = leave::wish(context, args.on_exit)?;
    let names = names(args)?;
    let several = args.count.is_some() || names.len() > 1;
    let store = context.store()?;
    store.writable()?;
    let parent = context.sandbox(&store, &args.name)?;
    let git = context.git()?;
    let tip = |tree: Sandbox| Some((tree.tree, work::tip(git, &store, &tree).ok()??.to_string()));
    let tips = parent.trees().filter_map(tip).collect();
    let argv = |name: &Name, index: usize| -> Vec<String> {
        let own = |arg: &OsString| if several { template::fill(arg, name.as_str(), index) } else { arg.clone() };
        args.command.iter().map(|arg| protocol_bytes(own(arg).as_bytes())).collect()
    };
    let mut all: Vec<Made> = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let argv_of = name.as_ref().map(|name| argv(name, n + 1)).unwrap_or_default();
        let request = Request { name: name.clone(), argv: argv_of, tips: BTreeMap::clone(&tips), of: None };
        let made = match all.first() {
            None => made(&store, &parent, request),
            // Of the same moment: the first one, which does not run yet, is what the parent was then.
            Some(first) => {
                let of = first.sandbox.record.forked.clone();
                fork(&store, &first.sandbox, Hold::Still, Request { of, ..request }).map_err(CliError::from)
            }
        };
        let made = made.and_then(|mut made| {
            let argv = argv(&made.sandbox.record.name, n + 1);
            if argv != made.sandbox.record.argv {
                made.sandbox.record.argv = argv;
                write_json(&made.sandbox.dir.record(), &made.sandbox.record, false)?;
            }
            Ok(made)
        });
        match made {
            Ok(made) => all.push(made),
            Err(error) => {
                for Made { sandbox, lock, .. } in all {
                    drop(lock);
                    sandbox_core::prepare::undo(&store, &sandbox);
                }
                return Err(error);
            }
        }
    }
    for made in &all {
        crate::presets::carry::retell(context, &made.sandbox);
    }
    let Some(Made { sandbox: first, told, .. }) = all.first() else { return Ok(0) };
    if !args.quiet {
        tell(&parent, &all.iter().map(|made| made.sandbox.name()).collect::<Vec<_>>(), told);
    }
    let cwd = first.record.cwd.clone();
    let how = Launch {
        detach: args.detach,
        json: args.json,
        quiet: args.quiet,
        tty: args.tty,
        branch: args.branch.as_deref(),
        first: None,
        command: &args.command,
        cwd: &cwd,
        wish,
        copy_out: &[],
        report: None,
    };
    let mut all: Vec<(Sandbox, FileLock)> = all.into_iter().map(|made| (made.sandbox, made.lock)).collect();
    match all.pop() {
        Some((sandbox, lock)) if !several => launch(context, &store, &sandbox, lock, &how),
        last => {
            all.extend(last);
            launch_many(context, &store, all, &how)
        }
    }
}

/// The names that are asked for, one for each; `None`: the next number.
fn names(args: &cli::Fork) -> Result<Vec<Option<Name>>, CliError> {
    match (args.count, args.new.as_slice()) {
        (Some(_), [_, _, ..]) => Err(CliError::usage("--count makes names of one").hint("give one NEW, or no --count")),
        (Some(count), new) => template::names(new.first().map(String::as_str), count),
        (None, []) => Ok(vec![None]),
        (None, new) => new.iter().map(|name| Ok(Some(Name::parse(name)?))).collect(),
    }
}

/// Forks one that runs or not; one that is just starting or ending is waited for.
fn made(store: &Store, parent: &Sandbox, request: Request) -> Result<Made, CliError> {
    let until = Instant::now() + PATIENCE.max(parent.patience());
    loop {
        if let Some(mut connection) = stop::live(parent)? {
            return Ok(fork(store, parent, Hold::Live(&mut connection), request)?);
        }
        match parent.take(Duration::from_millis(100)) {
            Ok(lock) => return Ok(fork(store, parent, Hold::Stopped(lock), request)?),
            Err(SandboxError::Running { .. } | SandboxError::Busy { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(parent: &Sandbox, names: &[&str], told: &Told) {
    let how = match told.frozen {
        Some(true) => ", frozen for it",
        Some(false) => ", not frozen",
        None => "",
    };
    let what = copied(told);
    let weak = crate::wall::weak_words(&parent.record);
    match names {
        [name] => eprintln!("sandbox '{name}'{weak}: as '{}' is now, {what}{how}", parent.name()),
        all => {
            let n = all.len();
            eprintln!("{n} sandboxes{weak}, each: as '{}' is now, {what}{how}", parent.name());
        }
    }
    tell_copy(parent, told);
}

/// What was copied.
pub fn copied(told: &Told) -> String {
    match told.disk {
        Some(bytes) => format!("its disk copied ({})", size(bytes)),
        None => format!("{} copied ({})", count(told.files as usize, "file"), size(told.bytes)),
    }
}

/// What of a copy is not as it is there.
pub fn tell_copy(parent: &Sandbox, told: &Told) {
    let shown = |paths: &[String]| {
        let names: Vec<String> = paths.iter().take(NAMED).map(|path| escape_bytes(&unescape_bytes(path))).collect();
        let more = if paths.len() > NAMED { format!(", … ({} more)", paths.len() - NAMED) } else { String::new() };
        names.join(", ") + &more
    };
    if !told.unsettled.is_empty() {
        eprintln!("kept changing while it was copied: {}", shown(&told.unsettled));
    }
    if let Some(lock) = &told.locked {
        eprintln!("note: '{lock}' was copied too: a git command ran in '{}' and did not end", parent.name());
    }
    if !told.left_out.is_empty() {
        eprintln!("left out (a socket or device): {}", shown(&told.left_out));
    }
}

impl From<ForkError> for CliError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Prepare(error) => error.into(),
            ForkError::Store(error) => error.into(),
            ForkError::Sandbox(error) => error.into(),
            ForkError::Copy { ref name, ref source } => {
                let path = escape_bytes(source.path.as_os_str().as_bytes());
                let failure = Self::new(format!("cannot copy the sandbox '{name}': '{path}'"))
                    .cause(escape(&source.source.to_string()));
                match source.source.kind() {
                    _ if is_full(&source.source) => failure.hint(
                        "make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made",
                    ),
                    io::ErrorKind::PermissionDenied => {
                        failure.hint("it belongs to another user, or user namespaces are switched off; nothing is left half made")
                    }
                    _ => failure.hint("nothing is left half made"),
                }
            }
            ForkError::Whole { ref source, .. } if crate::view::is_full(source) => Self::chain(&error).hint(
                "make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made",
            ),
            ForkError::Whole { .. } => Self::chain(&error).hint("nothing is left half made"),
            ForkError::Unsettled { ref name, .. } => Self::chain(&error)
                .hint(format!("fork it again when git is at rest there, or after `git sandbox stop {name}`")),
            ForkError::NotHeld { ref name, .. } => Self::chain(&error)
                .hint(format!("copy it again, or after `git sandbox stop {name}`; nothing is left half made")),
            ForkError::DiskBusy { .. } => {
                Self::chain(&error).hint("copy it again in a minute: that machine ends by itself")
            }
            ForkError::Dropped { ref name } => {
                Self::chain(&error).hint(format!("`git sandbox trash restore {name}` brings it back"))
            }
            ForkError::Ended { .. } => Self::chain(&error).hint("fork it again: its files are where they were"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_core::connection::ConnectionError;
    use sandbox_protocol::{Failure, FailureKind};

    /// A guest that does not stand still cannot be had on demand: what is told is shown here.
    #[test]
    fn a_disk_that_does_not_stand_still_is_told() {
        let failure = Failure { kind: FailureKind::Other, message: "cannot freeze the sandbox: \u{1b}[2J".into() };
        let held = ForkError::NotHeld { name: "a".into(), source: ConnectionError::Refused(failure) };
        let told = CliError::from(held);
        assert_eq!(told.message, "cannot copy the sandbox 'a': its virtual machine does not let its disk stand still");
        assert_eq!(told.causes, ["cannot freeze the sandbox: \\u{1b}[2J"]);
        assert_eq!(told.hints, ["copy it again, or after `git sandbox stop a`; nothing is left half made"]);
        let told = CliError::from(ForkError::DiskBusy { name: "a".into() });
        assert_eq!(
            told.message,
            "cannot copy the sandbox 'a': its disk is in use by a virtual machine that is still ending"
        );
        assert_eq!(told.hints, ["copy it again in a minute: that machine ends by itself"]);
    }
}
