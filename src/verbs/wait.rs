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
    let mut status = 0;
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for sandbox in waiting {
            match ended(&sandbox)? {
                Some(code) => {
                    status = code;
                    if args.any {
                        println!("{}", sandbox.name());
                        return Ok(status);
                    }
                }
                None => still.push(sandbox),
            }
        }
        waiting = still;
        if waiting.is_empty() {
            break;
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
    Ok(status)
}

/// The status of the main command, once it has ended; `None` while it runs.
fn ended(sandbox: &Sandbox) -> Result<Option<u8>, CliError> {
    let running = sandbox.state()? == State::Running;
    let status = sandbox.status()?;
    Ok(match status.exited {
        Some(_) if status.timed_out => Some(124),
        Some((exit, _)) => Some(u8::try_from(exit.shell()).unwrap_or(255)),
        None if running => None,
        None if status.stopped => Some(0),
        // It was killed with its supervisor.
        None => Some(137),
    })
}
