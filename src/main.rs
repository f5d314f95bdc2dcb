//! `git-sandbox`: the command line. The same program is the supervisor of a sandbox, its
//! agent (PID 1 inside), the remote helper of `sandbox::` URLs and the plumbing between them;
//! its first argument, or the name it is called by, tells which.
#![forbid(unsafe_code)]

#[macro_use]
mod print;

mod agent_help;
mod changing;
mod check;
mod cli;
mod context;
mod copy_out;
mod damaged;
mod error;
mod event_words;
mod follow;
mod inside;
mod layers;
mod leave;
mod notices;
mod picture;
mod plumbing;
mod prefix;
mod prepare;
mod presets;
mod probe;
mod project;
mod recovery;
mod report;
mod signals;
mod start;
mod template;
mod terminal;
mod text;
mod verbs;
mod view;
mod vm;
mod wall;
mod with;

use clap::Parser;
use error::CliError;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Nothing in a release build.
    sandbox_sys::fault::arm(std::env::var_os("GIT_SANDBOX_FAULT").as_deref());
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().and_then(|name| name.to_str()).and_then(|name| name.rsplit('/').next()).unwrap_or("");
    match called {
        sandbox_protocol::ARGV0 => return sandbox_agent::run(),
        sandbox_drivers::vm::initramfs::GUEST_ARGV0 => return sandbox_drivers::vm::init::run(),
        "git-remote-sandbox" => return plumbing::remote::run(&args[1..]),
        sandbox_mirror::cache::HOOK => return plumbing::pack_cache::run(&args[1..]),
        "git-sandbox-no-ssh" => return plumbing::remote::no_ssh(&args[1..]),
        "git-remote-sandbox-offline" => return plumbing::remote::offline(&args[1..]),
        _ => {}
    }
    if let Some(role) = args.get(1).and_then(|role| role.to_str()).filter(|role| role.starts_with("__")) {
        return plumbing::run(role, &args[2..]);
    }
    let cli = match cli::Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, verbs::mirror::usage_status(&args)),
    };
    let runs_command = matches!(
        cli.verb,
        cli::Verb::Spawn(_)
            | cli::Verb::Run(_)
            | cli::Verb::Fork(_)
            | cli::Verb::Exec(_)
            | cli::Verb::Shell(_)
            | cli::Verb::Start(_)
            | cli::Verb::Attach(_)
    );
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            error.print();
            let own = error.status == error::FATAL && runs_command;
            ExitCode::from(if own { 125 } else { error.status })
        }
    }
}

fn run(cli: cli::Cli) -> error::Outcome {
    sandbox_sys::lock::announce(cli.verb.word());
    let context = context::Context::new(cli.directory)?;
    verbs::run(&context, cli.verb)
}

/// Wrong usage in git's manner: `error:`, the usage, `status` (129 for most verbs). Help and version go to
/// standard output with status 0.
fn usage(error: &clap::Error, status: u8) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(status)
        }
        _ => {
            let text = error.render().to_string();
            // Who leaves a name out often does not know it. A mirror's names are other ones.
            let missing = error.kind() == ErrorKind::MissingRequiredArgument && !text.contains("git sandbox mirror");
            let mut nameless = missing && text.lines().any(|line| line.trim_start().starts_with("<NAME>"));
            let mut lines = text.lines().filter(|line| !line.trim().is_empty());
            let first = lines.next().unwrap_or("error: wrong usage");
            CliError::usage(text::escape(first.trim_start_matches("error: "))).print();
            for line in lines {
                let line = line.trim_start();
                match line.split_once(": ") {
                    Some(("Usage", usage)) => eprintln!("usage: {usage}"),
                    Some(("tip", tip)) => eprintln!("hint: {}", text::escape(tip)),
                    _ if line.starts_with("For more information") => {
                        if std::mem::take(&mut nameless) {
                            eprintln!("hint: `git sandbox list` shows the sandboxes and their names");
                        }
                        eprintln!("hint: `git sandbox help` lists the verbs, `git sandbox help VERB` tells about one");
                    }
                    _ => eprintln!("  {}", text::escape(line)),
                }
            }
            ExitCode::from(status)
        }
    }
}
