//! Which network a sandbox gets, and what it may reach.
//!
//! ```text
//! --net > --allow (means allow) > .sandbox.toml net="none" > sandbox.net > a preset's hosts > none
//! rules: the preset's hosts, --allow, sandbox.allow; against them deny of .sandbox.toml
//! ```

use super::{Preset, hosts};
use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::project::{FILE, Project};
use crate::text::escape;
use sandbox_core::launch::Network;
use sandbox_proxy::policy::Rules;
use sandbox_proxy::rule::Rule;

/// What the user's settings may be.
const VALUES: &str = "it is one of none, host, allow";

/// Reads a rule and returns its one spelling, or what is wrong with it.
pub fn canonical(text: &str) -> Result<String, String> {
    text.parse::<Rule>().map(|rule| rule.to_string()).map_err(|error| error.wrong)
}

/// Splits values of `--allow`: a comma parts two rules, or two ports of one.
pub fn split(values: &[String]) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    for value in values {
        let mut first = true;
        for piece in value.split(',') {
            let port = !piece.is_empty() && piece.bytes().all(|b| b.is_ascii_digit());
            match rules.last_mut() {
                Some(rule) if port && !first => {
                    rule.push(',');
                    rule.push_str(piece);
                }
                _ => rules.push(piece.trim().to_owned()),
            }
            first = false;
        }
    }
    rules
}

/// Chooses the network.
pub fn choose(
    context: &Context,
    args: &cli::Spawn,
    project: &Project,
    preset: Option<&Preset>,
) -> Result<Network, CliError> {
    let setting = context.setting("sandbox.net");
    decide(args.net, !args.allow.is_empty(), project.offline, setting.as_deref(), preset)
}

fn decide(
    flag: Option<cli::Net>,
    allow: bool,
    offline: bool,
    setting: Option<&str>,
    preset: Option<&Preset>,
) -> Result<Network, CliError> {
    let setting = match setting {
        None => None,
        Some("none") => Some(Network::None),
        Some("host") => Some(Network::Host),
        Some("allow") => Some(Network::Allow),
        Some(other) => {
            return Err(CliError::new(format!("'{}' is not a value of sandbox.net", escape(other))).hint(VALUES));
        }
    };
    let (network, why) = match (flag, allow) {
        (Some(cli::Net::None), true) => {
            return Err(CliError::usage("--allow lets something out, --net none lets nothing out")
                .hint("leave one of them out"));
        }
        (Some(cli::Net::Host), true) => {
            return Err(CliError::usage("--allow has no meaning with --net host: everything can be reached")
                .hint("leave one of them out; `--net allow` is what --allow belongs to"));
        }
        (Some(cli::Net::None), false) => (Network::None, "--net none"),
        (Some(cli::Net::Host), false) => (Network::Host, ""),
        (Some(cli::Net::Allow), _) | (None, true) => (Network::Allow, ""),
        (None, false) if offline => (Network::None, FILE),
        (None, false) => match (setting, preset) {
            (Some(network), _) => (network, "sandbox.net"),
            (None, Some(preset)) if !preset.hosts.is_empty() => (Network::Allow, ""),
            (None, _) => (Network::None, ""),
        },
    };
    match preset {
        Some(preset) if network == Network::None && !preset.hosts.is_empty() => Err(refused(preset, why)),
        _ => Ok(network),
    }
}

/// A preset needs the network, and something says that there is none.
fn refused(preset: &Preset, why: &str) -> CliError {
    let (name, hosts) = (&preset.name, preset.hosts.join(", "));
    let (error, hint) = match why {
        FILE => (
            CliError::new(String::new()).cause(format!("'{FILE}' says net = \"none\"")),
            "`--net allow` overrules it for this sandbox: only these can be reached",
        ),
        "sandbox.net" => (
            CliError::new(String::new()).cause("sandbox.net is none"),
            "`--net allow` overrules it for this sandbox: only these can be reached",
        ),
        _ => (
            CliError::usage(String::new()).cause("--net none was given"),
            "leave it out, or `--net allow`: only these can be reached",
        ),
    };
    CliError { message: format!("'{name}' needs the network"), ..error }
        .hint(format!("{hint}: {}", escape(&hosts)))
        .hint("`--preset none` starts it without, offline")
}

/// Rules for a sandbox, and what is to be told about them.
#[derive(Debug, Default)]
pub struct Policy {
    /// What is written to the policy file.
    pub rules: Rules,
    /// Lines about what could not be found out.
    pub notes: Vec<String>,
}

/// The network of what has no flags of its own and no preset, and what it may reach: as the settings and the project
/// have it.
pub fn of_settings(context: &Context, project: &Project) -> Result<(Network, Option<Policy>), CliError> {
    let network = decide(None, false, project.offline, context.setting("sandbox.net").as_deref(), None)?;
    let policy = match network {
        Network::Allow => Some(policy(context, &[], project, None)?),
        Network::None | Network::Host => None,
    };
    Ok((network, policy))
}

/// Collects the rules of a sandbox whose network is `allow`; `allow` are the flags.
pub fn policy(
    context: &Context,
    allow: &[String],
    project: &Project,
    preset: Option<&Preset>,
) -> Result<Policy, CliError> {
    let mut policy = Policy::default();
    let of_preset = preset.map(|preset| preset.hosts.clone()).unwrap_or_default();
    let flags = split(allow);
    let settings = split(&context.settings("sandbox.allow"));
    let from = [(of_preset, "of the preset"), (flags, "--allow"), (settings, "sandbox.allow")];
    for (texts, origin) in from {
        for text in texts {
            for rule in expand(context, &text, origin, &mut policy.notes)? {
                if !policy.rules.allow.contains(&rule) {
                    policy.rules.allow.push(rule);
                }
            }
        }
    }
    policy.rules.deny.clone_from(&project.deny);
    Ok(policy)
}

/// Turns one rule or set into rules.
pub fn expand(context: &Context, text: &str, origin: &str, notes: &mut Vec<String>) -> Result<Vec<Rule>, CliError> {
    if let Some(set) = text.strip_prefix('@') {
        let found = hosts::set(context, set)?;
        notes.extend(found.notes);
        return Ok(found.rules);
    }
    let rule = text.parse::<Rule>().map_err(|error| {
        let failure = match origin {
            "--allow" => CliError::usage(format!("'{}' is not a host", escape(text))),
            _ => CliError::new(format!("'{}' ({origin}) is not a host", escape(text))),
        };
        failure
            .cause(escape(&error.wrong))
            .hint("for example example.com, '*.example.com', example.com:8443, or a set: @github")
    })?;
    Ok(vec![rule])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(hosts: &[&str]) -> Preset {
        let hosts: Vec<String> = hosts.iter().map(|host| format!("\"{host}\"")).collect();
        let text = format!("programs = [\"agent\"]\nhosts = [{}]", hosts.join(","));
        Preset::parse("agent", &text).unwrap()
    }

    #[test]
    fn the_more_explicit_wish_wins() {
        use Network::{Allow, Host, None as No};
        use cli::Net;
        let (with, without) = (preset(&["api.example.com"]), preset(&[]));
        type Case<'a> = (Option<Net>, bool, bool, Option<&'a str>, Option<&'a Preset>, Network);
        let cases: [Case<'_>; 13] = [
            (None, false, false, None, None, No),
            (None, false, false, None, Some(&without), No),
            (None, false, false, None, Some(&with), Allow),
            (None, false, false, Some("host"), Some(&with), Host),
            (None, false, false, Some("host"), None, Host),
            (None, false, false, Some("allow"), None, Allow),
            (None, false, true, Some("host"), None, No),
            (None, true, true, Some("host"), None, Allow),
            (None, true, false, Some("none"), Some(&with), Allow),
            (Some(Net::Host), false, true, Some("none"), Some(&with), Host),
            (Some(Net::None), false, false, Some("host"), None, No),
            (Some(Net::Allow), true, true, None, None, Allow),
            (Some(Net::None), false, false, None, Some(&without), No),
        ];
        for (flag, allow, offline, setting, preset, network) in cases {
            let chosen = decide(flag, allow, offline, setting, preset);
            assert_eq!(chosen, Ok(network), "{flag:?} {allow} {offline} {setting:?}");
        }
        for (flag, allow) in [(Net::None, true), (Net::Host, true)] {
            assert_eq!(decide(Some(flag), allow, false, None, None).unwrap_err().status, crate::error::USAGE);
        }
        assert!(decide(None, false, false, Some("wifi"), None).is_err());
    }

    #[test]
    fn an_agent_that_needs_the_network_is_not_started_without() {
        let with = preset(&["api.example.com"]);
        let why = |flag, offline, setting| decide(flag, false, offline, setting, Some(&with)).unwrap_err().causes;
        assert_eq!(why(Some(cli::Net::None), false, None), ["--net none was given"]);
        assert_eq!(why(None, true, Some("host")), ["'.sandbox.toml' says net = \"none\""]);
        assert_eq!(why(None, false, Some("none")), ["sandbox.net is none"]);
    }

    #[test]
    fn a_comma_parts_rules_or_ports() {
        let split = |values: &[&str]| split(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(split(&["a.example,b.example:80,443,@set"]), ["a.example", "b.example:80,443", "@set"]);
        assert_eq!(split(&["a.example", "443"]), ["a.example", "443"]);
        assert_eq!(split(&["[::1]:80,81", "b.example"]), ["[::1]:80,81", "b.example"]);
    }
}
