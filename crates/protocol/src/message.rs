//! The control messages. One enum for all legs; who may send what is said at each.

use serde::{Deserialize, Serialize};

/// One control message, tagged by `op`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Message {
    /// First message of both sides, on stream 0.
    Hello(Hello),
    /// Client → agent, on a new stream: start a process; answered by `Started` or `Error`.
    Exec(Exec),
    /// Agent → client: the process runs.
    Started {
        /// Its pid inside the sandbox.
        pid: u32,
    },
    /// Agent → client: the process has ended and all its output was sent. Ends the stream.
    Exited(ExitStatus),
    /// Client → agent: send a signal to the session's foreground process group.
    Signal {
        /// Signal number of the platform (15 = TERM).
        signal: i32,
    },
    /// Client → agent: the window has a new size.
    Resize(WindowSize),
    /// Client → agent: no more standard input (no effect with a terminal).
    CloseStdin,
    /// Receiver of data → sender: this many more bytes may be sent.
    Credit {
        /// Which direction is meant.
        channel: Channel,
        /// How many bytes were consumed.
        bytes: u64,
    },
    /// The request on this stream failed. Ends the stream.
    Error(Failure),
    /// The request on this stream was carried out. Ends the stream.
    Done,

    // What only the agent is asked.
    /// Supervisor → agent: what refs, tips and operations exist inside; answered by `RepoState`.
    AskRepoState {
        /// Which repository, by its absolute path inside.
        path: String,
        /// Ids that the host granted: not to be listed as new.
        granted: Vec<String>,
    },
    /// Agent → supervisor. Untrusted; every name is checked by the host.
    RepoState(RepoState),
    /// Agent → supervisor, stream 0: a ref of this repository probably moved.
    RefsMoved {
        /// Absolute path inside of the repository's git directory.
        gitdir: String,
    },
    /// Supervisor → agent: end all processes (TERM, grace, KILL), then exit.
    Shutdown {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },

    // What only the supervisor is asked.
    /// Client → supervisor: follow a session's output; past output comes first, from its ring.
    Attach {
        /// The session, 0 = the main one.
        session: u32,
        /// How many bytes of past output to send at most.
        replay: u64,
    },
    /// Client → supervisor: leave the session running and end this stream.
    Detach,
    /// Client → supervisor: stop the sandbox; answered by `Done` when its last process is gone.
    Stop {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// Supervisor → agent: stop (or let go on) every process inside but the agent's own and what it was asked to
    /// run for the supervisor (`internal`); answered by `Done`. What is started later runs.
    Hold {
        /// To stop them.
        on: bool,
    },
    /// Client → supervisor: what was frozen because of its disk may go on, if there is room by now; answered by
    /// `Done`, or `Error` where there is none.
    GoOn {
        /// From now on the limit of its disk; `None` leaves it, 0 is no limit.
        disk: Option<u64>,
    },
    /// Client → supervisor: stop every process inside, until `Thaw` or until this client goes away;
    /// answered by `Done` or `Frozen`, or `Error` where nothing can (then nothing was stopped).
    Freeze,
    /// Supervisor → client: it stands still, in the middle of a git command.
    Frozen {
        /// The lock of that command, as the sandbox calls it.
        locked: String,
    },
    /// Client → supervisor: let them go on; answered by `Done`, or `Error` if this client had not frozen it.
    Thaw,
    /// Client → supervisor, and tool inside → agent → supervisor: commit back now;
    /// answered by `Done` or `Error` with one line per ref before it on stdout.
    CommitBack,
    /// Tool inside → agent → supervisor: serve the granted refs of repository number `repo`
    /// (`git upload-pack` on data frames: stdin to it, stdout from it).
    ServeHost {
        /// Index into the sandbox's list of repositories.
        repo: u32,
        /// `GIT_PROTOCOL` of the asking client, if it set one.
        protocol: Option<String>,
    },
    /// Supervisor → client whose hello has the feature `events`, on stream 0: this has just happened.
    Event(crate::Event),
    /// Client → supervisor: the policy of the network was changed; it is written down. Answered by `Done`.
    Policy {
        /// `allow`, `deny`, `no-longer-allow` or `no-longer-deny`.
        verb: String,
        /// The rules.
        rules: Vec<String>,
    },
    /// Client → supervisor: what is true now; answered by `Status`.
    AskStatus,
    /// Supervisor → client.
    Status(Status),
}

/// The feature of a client that wants to be told of [`Message::Event`].
pub const EVENTS: &str = "events";

/// The feature of a client whose output is a terminal: what it does not take in time may be left out, and the
/// session goes on. Whoever has it not (a pipe, a file) gets every byte, and is waited for.
pub const SCREEN: &str = "screen";

/// Versions and features of one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version it speaks.
    pub min: u32,
    /// Newest protocol version it speaks.
    pub max: u32,
    /// What it can do beyond the version, by name. Unknown names are ignored.
    #[serde(default)]
    pub features: Vec<String>,
    /// What really is enforced inside (`seccomp`, `rename-notify`, `landlock-abi-7` …), from the agent.
    #[serde(default)]
    pub enforced: Vec<String>,
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments; bytes that are not UTF-8 travel as `\xHH` escapes of [`escape_bytes`].
    pub argv: Vec<String>,
    /// Variables on top of the sandbox's own environment. `None` removes one.
    #[serde(default)]
    pub env: Vec<(String, Option<String>)>,
    /// Working directory inside.
    pub cwd: String,
    /// A terminal for it, of this size; else three pipes.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// The session's output is kept and can be attached to.
    #[serde(default)]
    pub main: bool,
    /// Trusted plumbing of ours (`git upload-pack`, rescue): does not count as a user's session.
    #[serde(default)]
    pub internal: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "value")]
pub enum ExitStatus {
    /// It returned this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The status a shell would show: the code, or 128 + signal.
    pub fn shell(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128i32.saturating_add(signal),
        }
    }
}

/// A data direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// Towards the process.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process.
    Stderr,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind, for the exit status and the hint.
    pub kind: FailureKind,
    /// One line in git's manner; untrusted when it comes from an agent.
    pub message: String,
}

/// Kinds of failure that a caller treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// No such command (127).
    NotFound,
    /// The command exists but cannot be executed (126).
    CannotExecute,
    /// The working directory does not exist inside.
    NoDirectory,
    /// A limit was met.
    Limit,
    /// The peer does not know this request.
    Unsupported,
    /// The sandbox is on its way to its end; once it is there, it can be started again.
    Stopping,
    /// The sandbox is frozen until there is room on its disk.
    Frozen,
    /// Anything else.
    Other,
    /// A kind of a newer peer.
    #[serde(other)]
    Unknown,
}

/// What the agent saw in a repository inside. Nothing of it is trusted.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RepoState {
    /// What `HEAD` names (`refs/heads/x`), `None` when detached.
    pub head_ref: Option<String>,
    /// The commit of `HEAD`, `None` when unborn.
    pub head: Option<String>,
    /// The branch that an operation in progress (rebase, bisect, am) came from.
    #[serde(default)]
    pub operation_branch: Option<String>,
    /// The operation in progress in words (`rebase 3/7`), if any.
    #[serde(default)]
    pub operation: Option<String>,
    /// Every ref and its id, without `refs/remotes/*`.
    pub refs: Vec<(String, String)>,
    /// Stash entries, newest first.
    #[serde(default)]
    pub stash: Vec<String>,
    /// Tips that only a reflog reaches.
    #[serde(default)]
    pub reflog_tips: Vec<String>,
}

/// What a supervisor knows about its sandbox.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Sessions that users started and that run now.
    pub sessions: Vec<SessionStatus>,
    /// Seconds since the last byte of output of the main session.
    pub silent_secs: Option<u64>,
    /// What the agent said is enforced.
    pub enforced: Vec<String>,
}

/// One running session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number; the main session has 0.
    pub session: u32,
    /// Its command.
    pub argv: Vec<String>,
    /// Clients attached to it.
    pub clients: u32,
}

/// Writes bytes as text that JSON can carry: UTF-8 as it is, other bytes and `\` as `\xHH`.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' { out.push_str("\\x5c") } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Reads what [`escape_bytes`] wrote; a malformed escape stays as it is.
pub fn unescape_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = bytes[i..]
            .strip_prefix(b"\\x")
            .and_then(|rest| rest.get(..2))
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_travel() {
        for bytes in [&b"plain"[..], b"back\\slash", b"\\x41", b"\xff\xfe mixed \xc3\xa9", b""] {
            assert_eq!(unescape_bytes(&escape_bytes(bytes)), bytes);
        }
    }
}
