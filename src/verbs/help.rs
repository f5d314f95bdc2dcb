//! `help [VERB]`, and `help agent`: what an agent inside is told.

use crate::agent_help::{self, NET_VARIABLE};
use crate::cli::{Cli, Help};
use crate::context::Context;
use crate::error::{CliError, Outcome};
use clap::CommandFactory;
use sandbox_core::launch::Network;

pub fn run(context: &Context, args: &Help) -> Outcome {
    if args.verb.as_deref() == Some("agent") {
        print!("{}", agent(context, args.name.as_deref())?);
        return Ok(0);
    }
    if let Some(name) = &args.name {
        return Err(CliError::usage(format!("unexpected argument '{}'", crate::text::escape(name)))
            .hint("`git sandbox help VERB` tells about one verb, `git sandbox help agent NAME` about one sandbox"));
    }
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

/// Inside, the environment tells the sandbox and its network. Outside, a named sandbox's rules are seen.
fn agent(context: &Context, name: Option<&str>) -> Result<String, CliError> {
    if let Some(inside) = crate::inside::name() {
        let all = [Network::None, Network::Host, Network::Allow];
        let told = context.vars.get(NET_VARIABLE);
        return Ok(match all.into_iter().find(|network| told.is_some_and(|told| told == network.as_str())) {
            Some(network) => agent_help::text(&inside, network, &[]),
            None => agent_help::text_of_unknown_network(&inside),
        });
    }
    let Some(name) = name else { return Ok(agent_help::text_of_unknown_network("NAME")) };
    let store = context.store()?;
    let sandbox = context.sandbox(&store, name)?;
    let rules: Vec<String> = super::allow::rules(&sandbox)?.allow.iter().map(ToString::to_string).collect();
    Ok(agent_help::text(sandbox.name(), sandbox.record.network, &rules))
}
