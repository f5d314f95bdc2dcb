//! `help [VERB]`.

use crate::cli::{Cli, Help};
use crate::error::{CliError, Outcome};
use clap::CommandFactory;

pub fn run(args: &Help) -> Outcome {
    let mut command = Cli::command();
    command.build();
    let mut shown = match &args.verb {
        None => command,
        Some(verb) => command.find_subcommand(verb).cloned().ok_or_else(|| {
            CliError::usage(format!("there is no verb '{}'", crate::text::escape(verb)))
                .hint("`git sandbox help` lists them")
        })?,
    };
    let _ = shown.print_long_help();
    Ok(0)
}
