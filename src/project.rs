//! `.sandbox.toml`: what a repository asks of its sandboxes. Read from the host's working tree,
//! never from a revision. It may only tighten what the user's settings allow.
//!
//! ```toml
//! net = "none"            # even if sandbox.net says host
//! memory = "2g"           # at most
//! pids = 256              # at most
//! timeout = "30m"         # at most
//! carry-secrets = false   # never, and nobody is asked
//! deny = ["example.com"]  # not even if it is allowed
//! check = "cargo test"   # before a merge lands, if the user agrees, who is asked once
//! with = ["../lib", "/srv/data:ro"]  # if the user agrees, who is asked once
//! ```

use crate::error::CliError;
use crate::text::{parse_duration, parse_size};
use sandbox_core::launch::Limits;
use sandbox_proxy::rule::Rule;
use serde::Deserialize;
use std::io;
use std::path::Path;

/// The file's name, at the top of the working tree.
pub const FILE: &str = ".sandbox.toml";

/// What it says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// No network, whatever the settings say.
    pub offline: bool,
    /// Files that look like secrets stay on the host.
    pub no_secrets: bool,
    /// At most these.
    pub limits: Limits,
    /// Seconds at most.
    pub timeout: Option<u64>,
    /// Hosts that are not reached, whatever is allowed.
    pub deny: Vec<Rule>,
    /// What shall come along, as `--with` takes it, relative to the top of the working tree.
    pub with: Vec<String>,
    /// The command that has to pass before a merge lands.
    pub check: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Text {
    net: Option<String>,
    memory: Option<String>,
    pids: Option<u32>,
    timeout: Option<String>,
    carry_secrets: Option<bool>,
    #[serde(default)]
    deny: Vec<String>,
    #[serde(default)]
    with: Vec<String>,
    check: Option<String>,
}

impl Project {
    /// Reads it; without the file nothing is asked.
    pub fn read(top: &Path) -> Result<Self, CliError> {
        let path = top.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|why| {
                CliError::new(format!("'{FILE}' is not valid")).cause(crate::text::escape(&why)).hint(
                    "it may have net, memory, pids, timeout, carry-secrets and deny, each only to tighten your settings, and check and with, which you are asked about",
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::io(format!("read '{}'", path.display()))(error)),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text: Text = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let offline = match text.net.as_deref() {
            None => false,
            Some("none") => true,
            Some(other) => return Err(format!("net = \"{other}\": only \"none\" tightens")),
        };
        if text.carry_secrets == Some(true) {
            return Err("carry-secrets = true: only false tightens".into());
        }
        let memory = text
            .memory
            .map(|size| parse_size(&size).ok_or(format!("memory = \"{size}\" is not a size")))
            .transpose()?;
        let timeout = text
            .timeout
            .map(|time| parse_duration(&time).ok_or(format!("timeout = \"{time}\" is not a time")))
            .transpose()?;
        let limits = Limits { memory, pids: text.pids, ..Limits::default() };
        let rule = |host: &String| host.parse::<Rule>().map_err(|error| format!("deny: '{host}': {}", error.wrong));
        let deny = text.deny.iter().map(rule).collect::<Result<_, _>>()?;
        if let Some(empty) = text.with.iter().find(|path| path.trim_end_matches(":ro").is_empty()) {
            return Err(format!("with: '{empty}' is not a path"));
        }
        if text.check.as_ref().is_some_and(|check| check.trim().is_empty() || check.contains('\0')) {
            return Err("check: it is not a command".into());
        }
        let no_secrets = text.carry_secrets == Some(false);
        Ok(Self { offline, no_secrets, limits, timeout, deny, with: text.with, check: text.check })
    }

    /// What two say of one sandbox: the tighter of each. Whose files stay on the host, and what comes along,
    /// is said by each for itself.
    pub fn and(&mut self, other: &Self) {
        self.offline |= other.offline;
        self.limits = other.tighten(self.limits.clone());
        self.timeout = self.timeout.into_iter().chain(other.timeout).min();
        self.deny.extend(other.deny.iter().cloned());
    }

    /// The tighter of two limits each.
    pub fn tighten(&self, limits: Limits) -> Limits {
        fn tighter<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        }
        let memory = tighter(limits.memory, self.limits.memory);
        Limits { memory, pids: tighter(limits.pids, self.limits.pids), ..limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_only_tightens() {
        let project =
            Project::parse("net = \"none\"\nmemory = \"1g\"\npids = 2000\ntimeout = \"5m\"\ncarry-secrets = false")
                .unwrap();
        let limits = Limits { memory: Some(4 << 30), pids: Some(1024), ..Limits::default() };
        let tight = project.tighten(limits);
        assert_eq!((tight.memory, tight.pids, project.timeout), (Some(1 << 30), Some(1024), Some(300)));
        assert!(project.no_secrets && project.offline);
        let denied = Project::parse("deny = [\"evil.example\", \"*.ads.example\"]").unwrap().deny;
        assert_eq!(denied.iter().map(ToString::to_string).collect::<Vec<_>>(), ["evil.example", "*.ads.example"]);
        let mut both = Project::parse("pids = 300\nwith = [\"../a\"]\ndeny = [\"a.example\"]").unwrap();
        both.and(&Project::parse("net = \"none\"\npids = 200\nwith = [\"../b\"]\ndeny = [\"b.example\"]").unwrap());
        assert_eq!((both.offline, both.limits.pids, both.deny.len()), (true, Some(200), 2));
        assert_eq!(both.with, ["../a"], "what another one asks for is not asked for here");
        for bad in [
            "with = [\":ro\"]",
            "check = \" \"",
            "check = [\"make\"]",
            "with = \"../a\"",
            "net = \"host\"",
            "carry-secrets = true",
            "memory = \"lots\"",
            "driver = \"none\"",
            "pids = \"x\"",
            "=",
            "timeout = \"x\"",
            "deny = [\"a b\"]",
            "allow = [\"example.com\"]",
        ] {
            assert!(Project::parse(bad).is_err(), "{bad}");
        }
    }
}
