//! `allow` and `deny`: what the network of a sandbox lets out. They rewrite its policy file, which the proxy
//! of a running sandbox looks at before each decision: nothing has to be told to anyone.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::presets::network::{expand, split};
use crate::text::escape;
use sandbox_core::launch::{LaunchSpec, Network};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::read_json;
use sandbox_protocol::Message;
use sandbox_proxy::policy::{self, PolicyError, Rules};
use sandbox_proxy::rule::{Pattern, Rule};
use serde::Serialize;
use std::io;

/// Which of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Allow,
    Deny,
}

/// What `--json` prints. Schema version 1.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    sandbox: &'a str,
    network: Network,
    allow: &'a [Rule],
    deny: &'a [Rule],
}

pub fn run(context: &Context, args: &cli::Allow, verb: Verb) -> Outcome {
    let store = context.store()?;
    let mut sandbox = context.sandbox(&store, &args.name)?;
    let mut notes = Vec::new();
    let mut rules = Vec::new();
    for text in split(&args.hosts) {
        for rule in expand(context, &text, "--allow", &mut notes)? {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    for note in notes {
        eprintln!("note: {}", escape(&note));
    }
    if args.hosts.is_empty() {
        if args.remove {
            return Err(CliError::usage("which host?").hint(format!(
                "`git sandbox {0} --list {1}` shows the rules, `git sandbox {0} --remove {1} HOST` takes one back",
                verb.word(),
                sandbox.name()
            )));
        }
        list(&sandbox, args.json)?;
        return Ok(0);
    }
    store.writable()?;
    if sandbox.record.network == Network::Host {
        return Err(CliError::new(format!("the network of '{}' is the host's: nothing is filtered", sandbox.name()))
            .hint("`git sandbox spawn --net allow --allow HOST` makes one that reaches only what is listed"));
    }
    change(&mut sandbox, verb, args.remove, &rules)?;
    if args.list || args.json {
        list(&sandbox, args.json)?;
    }
    Ok(0)
}

/// Changes the policy, and says what that means and when.
fn change(sandbox: &mut Sandbox, verb: Verb, remove: bool, rules: &[Rule]) -> Result<(), CliError> {
    let path = sandbox.dir.network();
    // A sandbox without a network gets one when something is allowed: only then is there something to filter.
    let opens = verb == Verb::Allow && !remove && sandbox.record.network == Network::None;
    let (changed, now) = policy::edit(&path, |policy| {
        let before = policy.clone();
        for rule in rules {
            if remove { take_back(policy, verb, rule) } else { add(policy, verb, rule) }
        }
        let changed: Vec<Rule> = rules
            .iter()
            .filter(|rule| verb.list(&before).contains(rule) != verb.list(policy).contains(rule))
            .cloned()
            .collect();
        (changed, policy.clone())
    })
    .map_err(|error| broken(sandbox, &error))?;
    if opens {
        sandbox.set_network(Network::Allow)?;
    }
    let name = sandbox.name();
    let words = |rules: &[Rule]| rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(", ");
    let when = when(sandbox)?;
    if changed.is_empty() {
        let state = match (verb, remove) {
            (Verb::Allow, false) => "already allowed",
            (Verb::Deny, false) => "already denied",
            (Verb::Allow, true) => "was not allowed",
            (Verb::Deny, true) => "was not denied",
        };
        eprintln!("{state} for '{name}': {}", words(rules));
    } else {
        let done = match (verb, remove) {
            (Verb::Allow, false) => "allowed",
            (Verb::Deny, false) => "denied",
            (Verb::Allow, true) => "no longer allowed",
            (Verb::Deny, true) => "no longer denied",
        };
        eprintln!("{done} for '{name}'{}: {}", when.words(), words(&changed));
        if when == When::AtOnce {
            write_down(sandbox, verb, remove, &changed);
        }
    }
    if verb == Verb::Allow && !remove {
        for rule in rules {
            if let Some(denied) = now.deny.iter().find(|denied| overrules(denied, rule)) {
                eprintln!("note: '{denied}' is denied all the same, and that wins over '{rule}'");
                eprintln!("hint: `git sandbox deny --remove {name} '{denied}'` takes that back");
            }
        }
    }
    match when {
        When::NextStart => {
            eprintln!("hint: it runs without this network: `git sandbox stop {name}`, then `git sandbox start {name}`");
        }
        When::Never => eprintln!("note: '{name}' has no network at all until something is allowed"),
        When::AtOnce | When::Stopped => {}
    }
    Ok(())
}

/// Has the change written into the log of events, whose only writer is the supervisor. One that has just ended,
/// or does not know the request, writes nothing: the change holds all the same.
fn write_down(sandbox: &Sandbox, verb: Verb, remove: bool, rules: &[Rule]) {
    let verb = format!("{}{}", if remove { "no-longer-" } else { "" }, verb.word());
    let rules = rules.iter().map(Rule::to_string).collect();
    if let Ok(mut connection) = sandbox.connect() {
        let _ = connection.ask(&Message::Policy { verb, rules }, 0);
    }
}

/// From when on a change holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    AtOnce,
    Stopped,
    /// It runs, and was started with another network.
    NextStart,
    /// Its network is none.
    Never,
}

impl When {
    fn words(self) -> &'static str {
        match self {
            Self::AtOnce => ", at once",
            Self::NextStart => " from its next start",
            Self::Stopped | Self::Never => "",
        }
    }
}

fn when(sandbox: &Sandbox) -> Result<When, CliError> {
    if sandbox.record.network == Network::None {
        return Ok(When::Never);
    }
    if sandbox.state()? != State::Running {
        return Ok(When::Stopped);
    }
    let launched: Option<LaunchSpec> = read_json(&sandbox.dir.launch())?;
    Ok(match launched.map(|spec| spec.network) {
        Some(Network::Allow) => When::AtOnce,
        _ => When::NextStart,
    })
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    fn list(self, rules: &Rules) -> &[Rule] {
        match self {
            Self::Allow => &rules.allow,
            Self::Deny => &rules.deny,
        }
    }
}

/// Adds a rule; what says the contrary of the same goes.
fn add(policy: &mut Rules, verb: Verb, rule: &Rule) {
    let (own, other) = match verb {
        Verb::Allow => (&mut policy.allow, &mut policy.deny),
        Verb::Deny => (&mut policy.deny, &mut policy.allow),
    };
    other.retain(|other| !same_target(other, rule));
    if !own.contains(rule) {
        own.push(rule.clone());
    }
}

/// Takes a rule back: with a way to dial exactly that one, without one whatever its way is.
fn take_back(policy: &mut Rules, verb: Verb, rule: &Rule) {
    let own = match verb {
        Verb::Allow => &mut policy.allow,
        Verb::Deny => &mut policy.deny,
    };
    own.retain(|own| !(same_target(own, rule) && (rule.via.is_none() || own.via == rule.via)));
}

fn same_target(a: &Rule, b: &Rule) -> bool {
    a.host == b.host && a.ports == b.ports
}

/// Whether a denying rule leaves nothing of an allowing one that names a host.
fn overrules(denied: &Rule, allowed: &Rule) -> bool {
    let host = match (&denied.host, &allowed.host) {
        (pattern, Pattern::Exact(host)) => pattern.covers(host),
        (denied, allowed) => denied == allowed,
    };
    let ports = if allowed.ports.is_empty() { &[sandbox_proxy::rule::HTTPS][..] } else { &allowed.ports };
    host && (denied.ports.is_empty() || ports.iter().all(|port| denied.ports.contains(port)))
}

/// The rules that hold; none when there is no policy yet.
pub fn rules(sandbox: &Sandbox) -> Result<Rules, CliError> {
    match policy::read(&sandbox.dir.network()) {
        Err(PolicyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Rules::default()),
        other => other.map_err(|error| broken(sandbox, &error)),
    }
}

/// A policy that cannot be read lets nothing out; one that cannot be written stays as it is.
fn broken(sandbox: &Sandbox, error: &PolicyError) -> CliError {
    let failure = CliError::chain(error);
    match error {
        PolicyError::Syntax { path, .. } | PolicyError::Version { path, .. } => failure.hint(format!(
            "while it is like this nothing of '{}' is let out: `rm '{}'` begins a new policy",
            sandbox.name(),
            escape(&path.to_string_lossy())
        )),
        PolicyError::Read { .. } | PolicyError::Write { .. } => failure,
    }
}

fn list(sandbox: &Sandbox, json: bool) -> Result<(), CliError> {
    let rules = rules(sandbox)?;
    let (name, network) = (sandbox.name(), sandbox.record.network);
    if json {
        return print_json(&Listing { version: 1, sandbox: name, network, allow: &rules.allow, deny: &rules.deny });
    }
    match network {
        Network::Host => eprintln!("the network of '{name}' is the host's: everything can be reached"),
        Network::None => eprintln!("'{name}' has no network: nothing can be reached"),
        Network::Allow if rules.allow.is_empty() => eprintln!("'{name}' reaches nothing: no host is allowed"),
        Network::Allow => {}
    }
    for rule in &rules.allow {
        println!("allow  {rule}");
    }
    for rule in &rules.deny {
        println!("deny   {rule}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    fn after(steps: &[(Verb, bool, &str)]) -> String {
        let mut policy = Rules::default();
        for (verb, remove, text) in steps {
            if *remove { take_back(&mut policy, *verb, &rule(text)) } else { add(&mut policy, *verb, &rule(text)) }
        }
        let words = |rules: &[Rule]| rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(" ");
        format!("{} / {}", words(&policy.allow), words(&policy.deny))
    }

    #[test]
    fn the_last_word_about_the_same_target_counts() {
        use Verb::{Allow, Deny};
        assert_eq!(after(&[(Allow, false, "a.example"), (Allow, false, "A.example.")]), "a.example / ");
        assert_eq!(after(&[(Allow, false, "a.example"), (Deny, false, "a.example")]), " / a.example");
        assert_eq!(after(&[(Deny, false, "a.example"), (Allow, false, "a.example=10.0.0.1")]), "a.example=10.0.0.1 / ");
        assert_eq!(after(&[(Allow, false, "a.example"), (Deny, false, "*.a.example")]), "a.example / *.a.example");
        assert_eq!(after(&[(Allow, false, "a.example"), (Allow, true, "a.example")]), " / ");
        assert_eq!(after(&[(Allow, false, "a.example:80"), (Allow, true, "a.example")]), "a.example:80 / ");
        assert_eq!(after(&[(Allow, false, "a.example=10.0.0.1"), (Allow, true, "a.example")]), " / ");
        assert_eq!(after(&[(Allow, false, "a.example"), (Allow, true, "a.example=10.0.0.1")]), "a.example / ");
    }

    #[test]
    fn what_wins_over_an_allowed_host_is_found() {
        let wins = |denied: &str, allowed: &str| overrules(&rule(denied), &rule(allowed));
        assert!(wins("*.example.com", "api.example.com"));
        assert!(wins("*.example.com", "*.example.com"));
        assert!(wins("api.example.com:443", "api.example.com"));
        assert!(!wins("api.example.com:80", "api.example.com"));
        assert!(!wins("api.example.com:80", "api.example.com:80,443"));
        assert!(!wins("example.com", "*.example.com"));
    }
}
