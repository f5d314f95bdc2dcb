//! `wait`: until main commands have ended.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::parse_duration;
use sandbox_core::sandbox::{Sandbox, State};
use std::time::{Duration, Instant};

pub fn run(context: &Context, args: &cli::Wait) -> Outcome {
    let store = context.store()?;
    let mut waiting: Vec<Sandbox> =
        args.names.iter().map(|name| context.sandbox(&store, name)).collect::<Result<_, _>>()?;
    let limit = match &args.timeout {
        Some(text) => Some(parse_duration(text).ok_or_else(|| {
            CliError::usage(format!("'{}' is not a time", crate::text::escape(text))).hint("for example 90s, 10m, 2h")
        })?),
        None => None,
    };
    let until = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut last = Ended { at: 0, status: 0 };
    loop {
        let mut still = Vec::new();
        let mut first: Option<(Ended, Sandbox)> = None;
        for sandbox in waiting {
            match ended(&sandbox)? {
                Some(end) => {
                    if end.at >= last.at {
                        last = end;
                    }
                    if first.as_ref().is_none_or(|(first, _)| end.at < first.at) {
                        first = Some((end, sandbox));
                    }
                }
                None => still.push(sandbox),
            }
        }
        if let Some((end, sandbox)) = first.filter(|_| args.any) {
            println!("{}", sandbox.name());
            return Ok(end.status);
        }
        waiting = still;
        if waiting.is_empty() {
            return Ok(last.status);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            let names: Vec<&str> = waiting.iter().map(Sandbox::name).collect();
            let verb = if names.len() == 1 { "runs" } else { "run" };
            return Err(CliError::new(format!("'{}' still {verb}", names.join("', '")))
                .hint(format!("`git sandbox logs -f {0}` shows what it does, `git sandbox stop {0}` ends it", names[0]))
                .status(124));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// How a main command has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Unix seconds; the end of time when nobody wrote it down, as that was seen just now.
    pub at: u64,
    /// Its status as a shell shows it.
    pub status: u8,
}

/// `None` while it runs.
pub fn ended(sandbox: &Sandbox) -> Result<Option<Ended>, CliError> {
    let running = sandbox.state()? == State::Running;
    let status = sandbox.status()?;
    // Asked last: what was read before may have been of a directory that was going.
    if !sandbox.dir.record().exists() {
        return Err(CliError::new(format!("the sandbox '{}' was dropped meanwhile", sandbox.name()))
            .hint("how its command ended is not known any more; `git sandbox trash list` may have it"));
    }
    let unknown = |status| Ended { at: u64::MAX, status };
    Ok(match status.exited {
        Some((_, at)) if status.timed_out => Some(Ended { at, status: 124 }),
        Some((exit, at)) => Some(Ended { at, status: u8::try_from(exit.shell()).unwrap_or(255) }),
        None if running => None,
        None if status.stopped => Some(unknown(0)),
        // It was killed with its supervisor.
        None => Some(unknown(137)),
    })
}
