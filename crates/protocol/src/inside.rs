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

/// The program's verb that reads a [`RescueQuestion`] on standard input and writes a [`RescueAnswer`] to
/// standard output, both as JSON.
pub const RESCUE_VERB: &str = "__rescue-inside";

/// What `__rescue-inside` is asked: to make a commit of what is not committed in one repository. Paths are as
/// [`crate::escape_bytes`] writes them.
#[derive(Clone, Debug, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct RescueQuestion {
    /// Absolute path inside of the git directory.
    pub gitdir: String,
    /// Absolute path inside of the work tree.
    pub work_tree: String,
    /// A directory for the commit's objects, to be made, or to be removed when `remove` is set.
    pub scratch: String,
    /// Only removes `scratch`.
    #[serde(default)]
    pub remove: bool,
    /// Paths, relative to the work tree, of repositories in it that get a rescue of their own.
    #[serde(default)]
    pub nested: Vec<String>,
    /// Seconds that git may take for all of it.
    pub seconds: u64,
    /// Bytes of the largest file that is taken.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub total_bytes: u64,
}

/// What was made of it.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct RescueAnswer {
    /// The commit; none when nothing is uncommitted.
    pub commit: Option<String>,
    /// The trees in it (`HEAD`'s commit, index, work tree, untracked): the same ones need not be kept twice.
    pub trees: Vec<String>,
    /// Files that differ from `HEAD`, and untracked ones.
    pub files: u64,
    /// What is not in it and why, one line each, paths escaped.
    pub left_out: Vec<String>,
    /// How many more there are.
    pub left_out_more: u64,
}
