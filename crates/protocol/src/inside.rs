//! Where agent and tools inside find each other: paths that both ends of the protocol name.

/// The socket on which the agent takes the requests of tools inside.
pub const AGENT_SOCKET: &str = "/run/git-sandbox/agent.sock";

/// This program as it is seen inside.
pub const PROGRAM: &str = "/run/git-sandbox/bin/git-sandbox";

/// The program's verb that reads a [`RepoQuestion`] on standard input and writes a
/// [`crate::RepoState`] to standard output, both as JSON.
pub const REPO_STATE_VERB: &str = "__repo-state";

/// What `__repo-state` is asked: [`crate::Message::AskRepoState`] as a document of any size.
#[derive(Clone, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct RepoQuestion {
    /// Absolute path inside of the work tree or of a git directory, as [`crate::escape_bytes`] writes it.
    pub path: String,
    /// Ids that the host granted: not to be listed as new.
    #[serde(default)]
    pub granted: Vec<String>,
}
