//! Events as lines for people. Everything in an event may have been chosen inside.

use crate::text::{age, escape, size};
use sandbox_protocol::event::{Event, Frozen, FrozenBy, Happened, Network, Verdict};

/// Characters of a process's name that are shown.
const PROCESS: usize = 32;

/// `blocked api.example.com:443 (curl) — allow it with: git sandbox allow NAME api.example.com`
pub fn refusal(sandbox: &str, network: &Network) -> String {
    let verb = if failed(network) { "could not reach" } else { "blocked" };
    let mut line = format!("{verb} {}", target(network));
    let (why, hint) = reason(sandbox, network);
    if let Some(why) = why {
        line.push_str(": ");
        line.push_str(&why);
    }
    if let Some(hint) = hint {
        line.push_str(" — ");
        line.push_str(&hint);
    }
    line
}

/// Whether it was allowed and failed all the same: no rule changes that.
pub fn failed(network: &Network) -> bool {
    matches!(network.reason.as_deref(), Some("unresolved" | "unreachable"))
}

/// Why it was refused, where the rule is not simply missing, and what changes that.
fn reason(sandbox: &str, network: &Network) -> (Option<String>, Option<String>) {
    let words = |words: &str| Some(words.to_owned());
    let allow = |rule: String| format!("allow it with: git sandbox allow {sandbox} {rule}");
    let as_asked = || plain_host(network).map(|host| allow(host + &port_of(network)));
    match network.reason.as_deref() {
        None | Some("not-allowed" | "port" | "literal") => (None, as_asked()),
        Some("denied") => match network.rule.as_deref().filter(|rule| is_plain(rule, "*,=/[]")) {
            Some(rule) => (
                Some(format!("'{rule}' is denied")),
                Some(format!("no longer with: git sandbox deny --remove {sandbox} {}", quoted(rule))),
            ),
            None => (words("it is denied"), None),
        },
        Some("address") => match network.address.as_deref().filter(|address| is_plain(address, "")) {
            Some(address) => (
                Some(format!("it is at {address}, which is not a public address")),
                plain_host(network).map(|host| {
                    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
                    format!("if that is meant, {}", allow(quoted(&format!("{host}{}={address}", port_of(network)))))
                }),
            ),
            None => (words("it is not at a public address"), None),
        },
        Some("name") => (words("that is not a host name"), None),
        Some("unresolved") => (words("the name cannot be resolved"), None),
        Some("unreachable") => (words("it does not answer"), None),
        Some("not-tls") => (words("what was sent is not TLS"), None),
        Some("server-name") => (words("TLS asked for another host name"), None),
        Some("host-header") => (words("its Host header names another host"), None),
        Some("malformed") => (words("the request is malformed"), None),
        Some("too-large") => (words("the request's headers are too large"), None),
        Some("too-many") => (words("too many connections at once"), None),
        Some("slow") => (words("the request took too long"), None),
        Some("method") => (words("the proxy does not do this method"), None),
        Some("policy-gone") => (words("the sandbox's policy file cannot be read"), None),
        Some(other) => (Some(escape(other)), None),
    }
}

/// `host:port (process)`
fn target(network: &Network) -> String {
    let mut target = if network.host.is_empty() { "a request".to_owned() } else { escape(&network.host) };
    // An IPv6 address may come without brackets.
    if target.contains(':') && !target.starts_with('[') && is_plain(&network.host, "") {
        target = format!("[{target}]");
    }
    if network.port != 0 {
        target.push_str(&format!(":{}", network.port));
    }
    if let Some(process) = network.process.as_deref().filter(|process| !process.is_empty()) {
        let short: String = process.chars().take(PROCESS).collect();
        target.push_str(&format!(" ({})", escape(&short)));
    }
    target
}

/// The host as a rule has it, if nothing in it means something to a shell.
fn plain_host(network: &Network) -> Option<String> {
    let host = network.host.as_str();
    if host.is_empty() || host.starts_with('-') || !is_plain(host, "[]") {
        return None;
    }
    Some(if !host.contains(':') {
        host.to_owned()
    } else {
        // Brackets are a pattern to a shell, which leaves it as it is where no file matches.
        quoted(&format!("[{}]", host.trim_matches(['[', ']'])))
    })
}

fn port_of(network: &Network) -> String {
    if network.port == 443 || network.port == 0 { String::new() } else { format!(":{}", network.port) }
}

fn is_plain(text: &str, also: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:".contains(c) || also.contains(c))
}

/// In quotes when a shell would read something into it.
fn quoted(text: &str) -> String {
    if text.contains(['*', '[', ']']) { format!("'{text}'") } else { text.to_owned() }
}

/// An event in words, without its time; `None` for one of a newer version.
pub fn words(sandbox: &str, event: &Event) -> Option<String> {
    Some(match &event.what {
        Happened::Network(network) => match network.verdict {
            Verdict::Refused => refusal(sandbox, network),
            Verdict::Allowed => match &network.rule {
                Some(rule) => format!("allowed {}, by '{}'", target(network), escape(rule)),
                None => format!("allowed {}", target(network)),
            },
            Verdict::Closed => {
                let mut line = format!("closed {}", target(network));
                if let (Some(sent), Some(received)) = (network.sent, network.received) {
                    line.push_str(&format!(": {} sent, {} received", size(sent), size(received)));
                }
                if let Some(ms) = network.ms {
                    line.push_str(&format!(", {}", age(ms / 1000)));
                }
                line
            }
        },
        Happened::NetworkEnded { reason } => network_ended(sandbox, reason),
        Happened::NetworkRestarted { reason } => network_restarted(sandbox, reason),
        Happened::Policy { verb, rules } => format!("{} {}", escape(verb), escape(&rules.join(" "))),
        Happened::Started { argv } if argv.is_empty() => "started".to_owned(),
        Happened::Started { argv } => format!("started: {}", escape(&argv.join(" "))),
        Happened::Exited { status } => format!("the command ended with status {status}"),
        Happened::Stopped => "stopped".to_owned(),
        Happened::DiskLow { .. } | Happened::Frozen(_) | Happened::Thawed | Happened::MemoryKilled { .. } => {
            limit(sandbox, &event.what)?
        }
        Happened::Unknown => return None,
    })
}

/// The proxy was gone, and is there again.
pub fn network_restarted(sandbox: &str, reason: &str) -> String {
    format!("the network of '{sandbox}' was cut and is there again: {}", escape(reason))
}

/// What a limit did; `None` for what is no such thing.
pub fn limit(sandbox: &str, what: &Happened) -> Option<String> {
    Some(match what {
        Happened::DiskLow { used, limit } => {
            format!("'{sandbox}' has written {} of {} that it may: at that it is frozen", size(*used), size(*limit))
        }
        Happened::Frozen(frozen) => format!("'{sandbox}' is frozen: {}", frozen_words(sandbox, frozen)),
        Happened::Thawed => format!("'{sandbox}' goes on"),
        Happened::MemoryKilled { process, used, limit } => {
            let short: String = process.chars().take(PROCESS).collect();
            format!(
                "'{sandbox}' took {} of memory and may take {}: '{}' was killed",
                size(*used),
                size(*limit),
                escape(&short)
            )
        }
        _ => return None,
    })
}

/// Why it is frozen, and how it goes on.
fn frozen_words(sandbox: &str, frozen: &Frozen) -> String {
    let (have, bound) = (frozen.have, frozen.bound);
    match frozen.why {
        FrozenBy::DiskFull => format!(
            "{} are free on its disk, and {} are kept for the host — make room, and it goes on by itself",
            size(have),
            size(bound)
        ),
        FrozenBy::NoInodes => format!(
            "{have} inodes are free on its disk, and {bound} are kept for the host — make room, and it goes on by itself"
        ),
        FrozenBy::Limit | FrozenBy::Unknown => format!(
            "it has written {} and may write {} — `git sandbox exec {sandbox} -- rm …` makes room, `git sandbox start --disk SIZE {sandbox}` allows more",
            size(have),
            size(bound)
        ),
    }
}

/// The proxy is gone.
pub fn network_ended(sandbox: &str, reason: &str) -> String {
    format!("the network of '{sandbox}' has ended: {}", escape(reason))
}

/// Writes milliseconds since the epoch as `2026-11-21 12:55:35Z`: UTC, as a static program cannot ask for the zone.
pub fn time(at: u64) -> String {
    let seconds = at / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Year, month and day of a number of days since 1970-01-01 (the Gregorian calendar, 400 years = 146,097 days,
/// counted from a 1st of March so that the leap day is the last one).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str, port: u16, reason: &str) -> Network {
        Network {
            method: "CONNECT".into(),
            host: host.into(),
            port,
            reason: Some(reason.into()),
            process: Some("curl".into()),
            ..Network::default()
        }
    }

    #[test]
    fn a_refusal_names_the_next_step() {
        let says = |network: &Network| refusal("a", network);
        assert_eq!(
            says(&refused("api.example.com", 443, "not-allowed")),
            "blocked api.example.com:443 (curl) — allow it with: git sandbox allow a api.example.com"
        );
        assert_eq!(
            says(&refused("example.com", 8443, "port")),
            "blocked example.com:8443 (curl) — allow it with: git sandbox allow a example.com:8443"
        );
        assert_eq!(
            says(&refused("2001:db8::1", 443, "literal")),
            "blocked [2001:db8::1]:443 (curl) — allow it with: git sandbox allow a '[2001:db8::1]'"
        );
        let denied = Network { rule: Some("*.example.com".into()), ..refused("x.example.com", 443, "denied") };
        assert_eq!(
            says(&denied),
            "blocked x.example.com:443 (curl): '*.example.com' is denied — no longer with: git sandbox deny --remove a '*.example.com'"
        );
        let private = Network { address: Some("10.0.0.1".into()), ..refused("intra.example", 443, "address") };
        assert_eq!(
            says(&private),
            "blocked intra.example:443 (curl): it is at 10.0.0.1, which is not a public address — if that is meant, allow it with: git sandbox allow a intra.example=10.0.0.1"
        );
        assert_eq!(
            says(&refused("a.example", 443, "not-tls")),
            "blocked a.example:443 (curl): what was sent is not TLS"
        );
    }

    #[test]
    fn what_failed_was_not_blocked() {
        let line = refusal("a", &refused("a.example", 443, "unresolved"));
        assert_eq!(line, "could not reach a.example:443 (curl): the name cannot be resolved");
    }

    #[test]
    fn what_was_chosen_inside_is_never_offered_to_a_shell() {
        for host in ["$(id)", "a;id", "a b", "`id`", "x\u{1b}[2J", "--remove"] {
            let line = refusal("a", &refused(host, 443, "not-allowed"));
            assert!(!line.contains("git sandbox"), "{line}");
            assert!(!line.contains('\u{1b}'), "{line}");
        }
        let named = Network { process: Some("\u{1b}]0;x\u{7}".into()), ..refused("a.example", 443, "name") };
        assert_eq!(refusal("a", &named), "blocked a.example:443 (\\u{1b}]0;x\\u{7}): that is not a host name");
        let rule = Network { rule: Some("$(id)".into()), ..refused("a.example", 443, "denied") };
        assert_eq!(refusal("a", &rule), "blocked a.example:443 (curl): it is denied");
    }

    #[test]
    fn a_limit_says_how_it_goes_on() {
        let says = |what: &Happened| limit("a", what).unwrap();
        let frozen = |why, have, bound| Happened::Frozen(Frozen { why, have, bound });
        assert_eq!(
            says(&frozen(FrozenBy::DiskFull, 1 << 30, 2 << 30)),
            "'a' is frozen: 1.0 GiB are free on its disk, and 2.0 GiB are kept for the host — make room, and it goes on by itself"
        );
        assert_eq!(
            says(&frozen(FrozenBy::NoInodes, 9, 10)),
            "'a' is frozen: 9 inodes are free on its disk, and 10 are kept for the host — make room, and it goes on by itself"
        );
        assert_eq!(
            says(&frozen(FrozenBy::Limit, 11 << 20, 10 << 20)),
            "'a' is frozen: it has written 11.0 MiB and may write 10.0 MiB — `git sandbox exec a -- rm …` makes room, `git sandbox start --disk SIZE a` allows more"
        );
        let low = Happened::DiskLow { used: 8 << 20, limit: 10 << 20 };
        assert_eq!(says(&low), "'a' has written 8.0 MiB of 10.0 MiB that it may: at that it is frozen");
        assert_eq!(says(&Happened::Thawed), "'a' goes on");
        let killed = Happened::MemoryKilled { process: "x\u{1b}[2J".into(), used: 2 << 30, limit: 1 << 30 };
        assert_eq!(says(&killed), "'a' took 2.0 GiB of memory and may take 1.0 GiB: 'x\\u{1b}[2J' was killed");
        assert_eq!(limit("a", &Happened::Stopped), None);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00Z");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(time(1_790_000_000_123), "2026-09-21 14:13:20Z");
        assert_eq!(time(4_107_542_399_999), "2100-02-28 23:59:59Z");
    }
}
