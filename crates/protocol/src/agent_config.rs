//! What a driver hands to the agent at its start. Not a message: read once, before `Hello`.
//!
//! ```text
//! fd 0 1 2   /dev/null of the sandbox
//! fd 3       CONTROL_FD   the control socket (SOCK_STREAM, frames as in this crate)
//! fd 4       CONFIG_FD    a sealed memory file, offset 0: one AgentConfig as JSON
//! fd 5       RELAY_FD     a socket that listens at AGENT_SOCKET, if AgentConfig::relay says so
//! argv       [ARGV0], environment empty
//! ```
//!
//! Where the driver can, it has done everything that must stand before the agent's exec. Of the
//! namespace driver the agent may rely on:
//!
//! * it is PID 1 of its own pid, mount, ipc, uts, cgroup and (unless the host's network was asked
//!   for) net namespace, with a `/proc` of its own; the mount tree is final;
//! * its only capability is CAP_SYS_PTRACE (effective, permitted, inheritable, ambient), in its own
//!   user namespace; the bounding set is empty already and all securebits are set and locked, so a
//!   session drops the rest by one `capset` of nothing;
//! * `no_new_privs` is set, PDEATHSIG is KILL (the agent sets it once more after its last credential
//!   change and then looks whether [`CONTROL_FD`] has been hung up); rlimits are in force;
//! * no descriptor above [`RELAY_FD`] is open; the directory of our own files is read-only.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

/// What the agent is called: how the binary knows that it is one.
pub const ARGV0: &str = "git-sandbox-agent";

/// The descriptor of the control channel.
pub const CONTROL_FD: i32 = 3;

/// The descriptor that the [`AgentConfig`] is read from.
pub const CONFIG_FD: i32 = 4;

/// The descriptor of the socket for tools inside, made by the driver: where its file is, nothing can be
/// written any more.
pub const RELAY_FD: i32 = 5;

/// The agent's start parameters.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct AgentConfig {
    /// The sandbox's id.
    pub id: String,
    /// The sandbox's name, as in `GIT_SANDBOX`.
    pub name: String,
    /// A read-only helper over a stopped sandbox's directories: it answers a few requests and ends.
    #[serde(default)]
    pub helper: bool,
    /// The whole environment of every session, before what an `Exec` adds or removes.
    pub env: Vec<(String, String)>,
    /// Where a session starts that names no directory.
    pub cwd: PathBuf,
    /// Who sessions are.
    pub user: AgentUser,
    /// [`RELAY_FD`] listens; without it the agent makes the socket itself.
    #[serde(default)]
    pub relay: bool,
    /// The copy-on-write trees, in the order in which they were mounted.
    pub trees: Vec<AgentTree>,
    /// The filter of PID 1 itself and of whatever it forks beside the nursery.
    /// Empty = no filter (a driver whose wall is another one).
    #[serde(default)]
    pub base_filter: FilterBytes,
    /// The filter of the nursery, from which all sessions descend: `base_filter` and, with
    /// `rename_notify`, a user notification on the rename calls.
    #[serde(default)]
    pub session_filter: FilterBytes,
    /// `session_filter` has notifications: load it with a listener and answer them.
    #[serde(default)]
    pub rename_notify: bool,
    /// What the driver has put in force, by the names that `Hello::enforced` uses; the agent adds its own.
    #[serde(default)]
    pub enforced: Vec<String>,
    /// Names of layers that may be missing (`--allow-weak`): without its name here, the agent
    /// exits rather than run without that layer.
    #[serde(default)]
    pub allow_weak: Vec<String>,
}

/// The one user inside.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct AgentUser {
    /// Login name.
    pub name: String,
    /// Uid as seen inside.
    pub uid: u32,
    /// Gid as seen inside.
    pub gid: u32,
    /// Home directory inside.
    pub home: PathBuf,
    /// Absolute path of the login shell.
    pub shell: PathBuf,
}

/// One copy-on-write tree, as the agent must know it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct AgentTree {
    /// Its mount point.
    pub at: PathBuf,
    /// Nothing in it can be written.
    #[serde(default)]
    pub read_only: bool,
    /// Renaming a directory with a lower part gives EXDEV here (overlay without `redirect_dir`):
    /// the agent does such a rename itself.
    #[serde(default)]
    pub rename_exdev: bool,
}

/// A classic BPF program as bytes: 8 for each instruction (`struct sock_filter`, native byte order).
/// Travels as hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FilterBytes(pub Vec<u8>);

impl Serialize for FilterBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(self.0.len() * 2);
        for byte in &self.0 {
            text.push(DIGITS[usize::from(byte >> 4)] as char);
            text.push(DIGITS[usize::from(byte & 15)] as char);
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for FilterBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        text.as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect::<Option<Vec<u8>>>()
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("a filter is not hexadecimal text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_travel_as_text() {
        let config = AgentConfig { base_filter: FilterBytes(vec![0, 1, 0xab, 0xff]), ..AgentConfig::default() };
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.contains(r#""base_filter":"0001abff""#), "{json}");
        assert_eq!(serde_json::from_str::<AgentConfig>(&json).unwrap(), config);
        assert!(serde_json::from_str::<FilterBytes>("\"0\"").is_err());
        assert!(serde_json::from_str::<FilterBytes>("\"zz\"").is_err());
    }
}
