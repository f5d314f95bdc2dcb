//! What happened in and around a sandbox, one JSON object a line: `log/events.jsonl`, and what
//! `git sandbox events` prints. Schema version 1; a reader ignores fields and events that it does not know.
//!
//! ```text
//! {"at":1790000000123,"event":"network","verdict":"refused","method":"CONNECT","host":"api.example.com","port":443,
//!  "reason":"not-allowed","process":"curl"}
//! ```

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// The proxy decided, or a connection that it had allowed has ended.
    Network(Network),
    /// The proxy is gone and with it the network of the sandbox.
    NetworkEnded {
        /// How it ended, in words.
        reason: String,
    },
    /// The proxy was gone, and is there again with the policy of now: connections through it were cut.
    NetworkRestarted {
        /// How it ended, in words.
        reason: String,
    },
    /// The user changed what the running sandbox may reach.
    Policy {
        /// `allow`, `deny`, `no-longer-allow` or `no-longer-deny`.
        verb: String,
        /// The rules.
        rules: Vec<String>,
    },
    /// The sandbox was started.
    Started {
        /// The main command, empty for an idle sandbox; each word as [`crate::escape_bytes`] writes it.
        #[serde(default)]
        argv: Vec<String>,
    },
    /// The main command has ended.
    Exited {
        /// Its status as a shell would show it.
        status: i32,
    },
    /// The sandbox has ended.
    Stopped,
    /// What it has written is nearly as much as it may be.
    DiskLow {
        /// Bytes that it has written.
        used: u64,
        /// Bytes that it may write.
        limit: u64,
    },
    /// Everything inside was stopped, for want of room.
    Frozen(Frozen),
    /// It goes on.
    Thawed,
    /// A process inside was killed, because all of them together took more memory than they may: told where no
    /// control group limits it.
    MemoryKilled {
        /// Its name; not to be trusted.
        process: String,
        /// Bytes of memory that all of them took.
        used: u64,
        /// Bytes that they may take.
        limit: u64,
    },
    /// An event of a newer version.
    #[serde(other)]
    Unknown,
}

/// Why everything inside was stopped, and the numbers then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// What ran out.
    pub why: FrozenBy,
    /// With `limit`: bytes that the sandbox has written. Else what is free on its disk, bytes or inodes.
    pub have: u64,
    /// With `limit`: bytes that it may write. Else what is kept for the host.
    pub bound: u64,
}

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenBy {
    /// The disk of the state directory: what is kept for the host was reached.
    DiskFull,
    /// The same, of its inodes.
    NoInodes,
    /// The limit of what this sandbox may write.
    Limit,
    /// Something of a newer version.
    #[serde(other)]
    Unknown,
}

/// A decision about one request, or the end of what it allowed. Names come from inside and are not to be trusted:
/// escape them before they meet a terminal.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Network {
    /// What was decided.
    pub verdict: Verdict,
    /// `CONNECT`, or the method of a plain request.
    #[serde(default)]
    pub method: String,
    /// The host: canonical when it could be made so, else what was asked for, cut to 255 bytes, as [`crate::escape_bytes`] writes it.
    #[serde(default)]
    pub host: String,
    /// The port; 0 when there was none.
    #[serde(default)]
    pub port: u16,
    /// Why it was refused, a short stable word: `not-allowed`, `denied`, `port`, `address`, `name`, `literal`, `unresolved`,
    /// `unreachable`, `not-tls`, `server-name`, `host-header`, `malformed`, `too-large`, `too-many`, `slow`, `method`, `policy-gone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decided, as the policy has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The address that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The first eight bytes of the SHA-256 of a plain request's path, in hexadecimal: to tell requests apart without keeping them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hash: Option<String>,
    /// The name of the process that asked, as far as it could be seen from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Bytes from inside (with `closed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// Bytes to inside (with `closed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Milliseconds from the decision to the end (with `closed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was let out.
    Allowed,
    /// It was not.
    #[default]
    Refused,
    /// What was let out has ended; not a decision.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_the_module_says() {
        let network = Network {
            method: "CONNECT".into(),
            host: "api.example.com".into(),
            port: 443,
            reason: Some("not-allowed".into()),
            process: Some("curl".into()),
            ..Network::default()
        };
        let event = Event { at: 1_790_000_000_123, what: Happened::Network(network) };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"at":1790000000123,"event":"network","verdict":"refused","method":"CONNECT","host":"api.example.com","port":443,"reason":"not-allowed","process":"curl"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }

    #[test]
    fn what_is_newer_is_read_over() {
        let event: Event = serde_json::from_str(r#"{"at":1,"event":"later","x":[1]}"#).unwrap();
        assert_eq!(event.what, Happened::Unknown);
        let event: Event =
            serde_json::from_str(r#"{"at":1,"event":"network","verdict":"allowed","host":"a.b","later":1}"#).unwrap();
        assert!(matches!(event.what, Happened::Network(Network { verdict: Verdict::Allowed, .. })));
    }
}
