//! What a user may allow or deny, as text.
//!
//! ```text
//! rule = HOST [":" PORT *("," PORT)] ["=" (ADDRESS [":" PORT] | RANGE)]
//! HOST    a name, "*." and a name of at least two labels, an IPv4 address, or "[" IPv6 address "]"
//! ADDRESS dialled instead of resolving the name
//! RANGE   a CIDR block: addresses in it are accepted though they are private
//! ```
//!
//! The same text is what the policy file has. Names are compared in one form only: lower case
//! A-labels without the trailing dot ([`canonical_host`]).

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The port of an allowing rule that names none.
pub const HTTPS: u16 = 443;

/// Bytes of a name without its trailing dot, RFC 1035 §2.3.4.
const MAX_NAME: usize = 253;
/// Bytes of one label, RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;

const GRAMMAR: &str = "HOST[:PORT[,PORT…]][=ADDRESS[:PORT]|=RANGE], where HOST is a name, '*.' and a name of at least \
two labels, or an address (IPv6 in brackets)";

/// One host in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name: lower case A-labels, no trailing dot.
    Name(String),
    /// An address; v4-mapped ones are IPv4.
    Address(IpAddr),
}

impl Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V4(address)) => address.fmt(f),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Why bytes are not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing between two dots.
    #[error("a label is empty")]
    Empty,
    /// A label of more than 63 bytes, or a name of more than 253.
    #[error("it is too long")]
    TooLong,
    /// A byte that is no letter, digit, hyphen or dot.
    #[error("only letters, digits, hyphens and dots make a name")]
    Character,
    /// A label starts or ends with a hyphen.
    #[error("a label starts or ends with a hyphen")]
    Hyphen,
    /// An `xn--` label that stands for nothing, or not in its one form.
    #[error("a label is not what it says in Unicode")]
    Punycode,
    /// It ends like an address and is none.
    #[error("it is no valid address")]
    Address,
}

/// Reads a host as it comes over the wire: ASCII only, whatever its case, with at most one trailing
/// dot. Every spelling that some resolver or URL parser takes for an address is reported as
/// [`Host::Address`] or refused, never as a name: decimal, octal and hexadecimal numbers, fewer than
/// four of them, IPv6 in brackets (<https://url.spec.whatwg.org/#concept-ipv4-parser>).
pub fn canonical_host(wire: &[u8]) -> Result<Host, NameError> {
    if let Some(inner) = wire.strip_prefix(b"[") {
        let inner = inner.strip_suffix(b"]").ok_or(NameError::Address)?;
        let text = std::str::from_utf8(inner).map_err(|_| NameError::Address)?;
        // No zone: an interface of the host is nobody's business inside.
        let address = Ipv6Addr::from_str(text).map_err(|_| NameError::Address)?;
        return Ok(Host::Address(IpAddr::V6(address).to_canonical()));
    }
    let name = wire.strip_suffix(b".").unwrap_or(wire);
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    let mut punycode = false;
    for label in name.split(|byte| *byte == b'.') {
        if label.is_empty() {
            return Err(NameError::Empty);
        }
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
            return Err(NameError::Character);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::TooLong);
        }
        if label.starts_with(b"-") || label.ends_with(b"-") {
            return Err(NameError::Hyphen);
        }
        punycode |= label.len() >= 4 && label[..4].eq_ignore_ascii_case(b"xn--");
    }
    let name = String::from_utf8(name.to_ascii_lowercase()).map_err(|_| NameError::Character)?;
    let last = name.rsplit('.').next().unwrap_or_default();
    if number(last).is_some() || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return dotted(&name).map(|address| Host::Address(address.into())).ok_or(NameError::Address);
    }
    if punycode && to_ascii(&name).as_deref() != Some(name.as_str()) {
        return Err(NameError::Punycode);
    }
    Ok(Host::Name(name))
}

/// The A-labels of a name; `None` if UTS 46 has none for it.
fn to_ascii(name: &str) -> Option<String> {
    Uts46::new()
        .to_ascii(name.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify)
        .ok()
        .map(|name| name.into_owned())
}

/// A part of an IPv4 address as URL parsers and `inet_aton` read it; `None` if it is no number.
/// Larger than any address: `u64::MAX`.
fn number(part: &str) -> Option<u64> {
    let (digits, radix) = match part.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => match part.strip_prefix('0') {
            Some(digits) if !digits.is_empty() => (digits, 8),
            _ => (part, 10),
        },
    };
    if digits.is_empty() {
        return (radix == 16).then_some(0);
    }
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    Some(u64::from_str_radix(digits, radix).unwrap_or(u64::MAX))
}

/// Numbers with dots between them as an IPv4 address; the last fills what is left.
fn dotted(name: &str) -> Option<Ipv4Addr> {
    let parts = name.split('.').map(number).collect::<Option<Vec<u64>>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) || *last >= 256u64.pow(4 - first.len() as u32) {
        return None;
    }
    let high = first.iter().enumerate().map(|(n, part)| part << (8 * (3 - n))).sum::<u64>();
    u32::try_from(high + last).ok().map(Ipv4Addr::from)
}

/// Which hosts a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// This host.
    Exact(Host),
    /// Every name below this one, at any depth; not the name itself.
    Below(String),
}

impl Pattern {
    /// Whether a host is meant.
    pub fn covers(&self, host: &Host) -> bool {
        match (self, host) {
            (Pattern::Exact(own), host) => own == host,
            (Pattern::Below(parent), Host::Name(name)) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Pattern::Below(_), Host::Address(_)) => false,
        }
    }
}

impl Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(host) => host.fmt(f),
            Pattern::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Where a rule leads, when not to what the name resolves to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Exactly this address, whatever it is; the port that was asked for if it names none.
    Address(IpAddr, Option<u16>),
    /// What the name resolves to, where private addresses in this block are accepted.
    Range(IpNet),
}

impl Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Via::Address(IpAddr::V4(address), None) => address.fmt(f),
            Via::Address(IpAddr::V6(address), None) => write!(f, "[{address}]"),
            Via::Address(address, Some(port)) => SocketAddr::new(*address, *port).fmt(f),
            Via::Range(range) => range.fmt(f),
        }
    }
}

/// One line of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// The hosts.
    pub host: Pattern,
    /// The ports, sorted; none means 443 where it allows, and all where it denies.
    pub ports: Vec<u16>,
    /// The way there.
    pub via: Option<Via>,
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.fmt(f)?;
        for (n, port) in self.ports.iter().enumerate() {
            write!(f, "{}{port}", if n == 0 { ':' } else { ',' })?;
        }
        self.via.as_ref().map_or(Ok(()), |via| write!(f, "={via}"))
    }
}

/// A text that is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is not a rule: {wrong}; a rule is {GRAMMAR}", .text.escape_debug())]
pub struct RuleError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub wrong: String,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text).map_err(|wrong| RuleError { text: text.to_owned(), wrong })
    }
}

fn parse(text: &str) -> Result<Rule, String> {
    if text.contains("://") {
        return Err("it is a URL; only its host is meant".into());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it has white space or a control character".into());
    }
    let (target, via) = match text.split_once('=') {
        Some((target, via)) => (target, Some(parse_via(via)?)),
        None => (text, None),
    };
    let (host, ports) = match target.strip_prefix('[') {
        Some(rest) => {
            let (inner, after) = rest.split_once(']').ok_or("']' is missing")?;
            let ports = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or("after ']' comes ':' and a port, or nothing")?),
            };
            (format!("[{inner}]"), ports)
        }
        None => {
            let (host, ports) = match target.split_once(':') {
                Some((host, ports)) => (host, Some(ports)),
                None => (target, None),
            };
            if ports.is_some_and(|ports| ports.contains(':')) {
                return Err("an IPv6 address is written in brackets".into());
            }
            (host.to_owned(), ports)
        }
    };
    let host = parse_pattern(&host)?;
    let mut ports = ports.map_or(Ok(Vec::new()), |ports| ports.split(',').map(parse_port).collect())?;
    ports.sort_unstable();
    ports.dedup();
    if let (Pattern::Exact(Host::Address(_)), Some(Via::Range(_))) = (&host, &via) {
        return Err("an address is not resolved: a range says nothing about it".into());
    }
    Ok(Rule { host, ports, via })
}

fn parse_pattern(host: &str) -> Result<Pattern, String> {
    if let Some(parent) = host.strip_prefix("*.") {
        return match user_host(parent)? {
            Host::Address(_) => Err("nothing is below an address".into()),
            Host::Name(name) if !name.contains('.') => {
                Err(format!("'*.{name}' would be too much: at least two labels follow the star"))
            }
            Host::Name(name) => Ok(Pattern::Below(name)),
        };
    }
    if host.contains('*') {
        return Err("a star stands alone, before the first dot".into());
    }
    user_host(host).map(Pattern::Exact)
}

/// A host as a user writes it: Unicode becomes A-labels.
fn user_host(host: &str) -> Result<Host, String> {
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let ascii = match host.is_ascii() {
        true => host.to_owned(),
        false => to_ascii(host.strip_suffix('.').unwrap_or(host)).ok_or("no domain name can be made of it")?,
    };
    canonical_host(ascii.as_bytes()).map_err(|error| error.to_string())
}

/// Reads a port: 1 to 65535, decimal digits only.
pub(crate) fn parse_port(port: &str) -> Result<u16, String> {
    let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    match digits.then(|| port.parse()) {
        Some(Ok(port)) if port > 0 => Ok(port),
        _ => Err(format!("'{}' is no port (1 to 65535)", port.escape_debug())),
    }
}

fn parse_via(via: &str) -> Result<Via, String> {
    let wrong = || format!("'{}' is no address and no range of addresses", via.escape_debug());
    if via.contains('/') {
        let range: IpNet = via.parse().map_err(|_| wrong())?;
        return Ok(Via::Range(range.trunc()));
    }
    if let Ok(address) = via.parse::<IpAddr>() {
        return Ok(Via::Address(address.to_canonical(), None));
    }
    let inner = via.strip_prefix('[').and_then(|via| via.strip_suffix(']'));
    if let Some(Ok(address)) = inner.map(Ipv6Addr::from_str) {
        return Ok(Via::Address(IpAddr::V6(address).to_canonical(), None));
    }
    let (_, port) = via.rsplit_once(':').ok_or_else(wrong)?;
    let port = parse_port(port)?;
    match via.parse::<SocketAddr>() {
        // A zone names an interface: an address that means something else elsewhere.
        Ok(SocketAddr::V6(address)) if address.scope_id() != 0 => Err(wrong()),
        Ok(address) => Ok(Via::Address(address.ip().to_canonical(), Some(port))),
        Err(_) => Err(wrong()),
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
