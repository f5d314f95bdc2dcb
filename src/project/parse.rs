//! The text of `.sandbox.toml`.

use crate::text::{parse_duration, parse_size};
use sandbox_core::driver::Isolation;
use sandbox_core::launch::Limits;
use sandbox_proxy::rule::Rule;
use serde::Deserialize;

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
    /// Layers of the wall that must stand.
    pub require: Vec<String>,
    /// No weaker driver than this.
    pub min_isolation: Option<Isolation>,
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
    disk: Option<String>,
    pids: Option<u32>,
    timeout: Option<String>,
    carry_secrets: Option<bool>,
    #[serde(default)]
    require: Vec<String>,
    min_isolation: Option<String>,
    #[serde(default)]
    deny: Vec<String>,
    #[serde(default)]
    with: Vec<String>,
    check: Option<String>,
}

impl Project {
    /// Reads its text; an error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
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
        let disk =
            text.disk.map(|size| parse_size(&size).ok_or(format!("disk = \"{size}\" is not a size"))).transpose()?;
        let timeout = text
            .timeout
            .map(|time| parse_duration(&time).ok_or(format!("timeout = \"{time}\" is not a time")))
            .transpose()?;
        let limits = Limits { memory, pids: text.pids, disk, ..Limits::default() };
        let rule = |host: &String| host.parse::<Rule>().map_err(|error| format!("deny: '{host}': {}", error.wrong));
        let deny = text.deny.iter().map(rule).collect::<Result<_, _>>()?;
        if let Some(empty) = text.with.iter().find(|path| path.trim_end_matches(":ro").is_empty()) {
            return Err(format!("with: '{empty}' is not a path"));
        }
        if text.check.as_ref().is_some_and(|check| check.trim().is_empty() || check.contains('\0')) {
            return Err("check: it is not a command".into());
        }
        let require =
            crate::layers::layers(&text.require).map_err(|layer| format!("require: there is no layer '{layer}'"))?;
        let isolation = |word: String| {
            crate::layers::isolation(&word).ok_or(format!("min-isolation = \"{word}\": it is namespace or vm"))
        };
        let min_isolation = text.min_isolation.map(isolation).transpose()?;
        let no_secrets = text.carry_secrets == Some(false);
        Ok(Self {
            offline,
            no_secrets,
            limits,
            timeout,
            require,
            min_isolation,
            deny,
            with: text.with,
            check: text.check,
        })
    }

    /// What two say of one sandbox: the tighter of each. Whose files stay on the host, and what comes along,
    /// is said by each for itself.
    pub fn and(&mut self, other: &Self) {
        self.offline |= other.offline;
        self.limits = other.tighten(self.limits.clone());
        self.timeout = self.timeout.into_iter().chain(other.timeout).min();
        self.require.extend(other.require.iter().cloned());
        self.min_isolation = self.min_isolation.max(other.min_isolation);
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
        let disk = tighter(limits.disk, self.limits.disk);
        Limits { memory, disk, pids: tighter(limits.pids, self.limits.pids), ..limits }
    }
}
