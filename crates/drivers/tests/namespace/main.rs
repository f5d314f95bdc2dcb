//! The namespace driver against the kernel: real sandboxes, looked at from inside and from outside.
//!
//! ```text
//!   this binary ─┬─ as a test: its own harness, one thread, one sandbox after the other
//!                ├─ argv[0] = git-sandbox-agent: PID 1 inside, runs one shell script for each line it gets
//!                ├─ argv[0] = session: gives up what a session must not have, then becomes the shell
//!                └─ argv[0] = supervisor: launches, says the pid, and waits to be killed
//! ```
#![forbid(unsafe_code)]

mod inside;
mod kit;
mod scenarios;

use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    match args.next().as_deref() {
        Some(sandbox_protocol::ARGV0) => return inside::agent(),
        Some("session") => return inside::session(args.next().unwrap_or_default()),
        Some("supervisor") => return scenarios::supervisor(args.next().unwrap_or_default()),
        _ => {}
    }
    let args: Vec<String> = args.collect();
    if args.iter().any(|arg| arg == "--bench-launch") {
        scenarios::bench();
        return ExitCode::SUCCESS;
    }
    if let [flag, spec] = args.as_slice()
        && flag == "--launch"
    {
        scenarios::launch(spec);
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let list = args.iter().any(|arg| arg == "--list");
    let (mut failed, mut passed, mut skipped) = (0, 0, 0);
    for (name, scenario) in scenarios::ALL {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        if list {
            println!("{name}: test");
            continue;
        }
        match catch_unwind(scenario) {
            Ok(Ok(())) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Ok(Err(reason)) => {
                skipped += 1;
                println!("test {name} ... ignored, {reason}");
            }
            Err(_) => {
                failed += 1;
                println!("test {name} ... FAILED");
            }
        }
    }
    if !list {
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {result}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out"
        );
    }
    ExitCode::from(u8::from(failed > 0))
}
