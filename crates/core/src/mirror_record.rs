//! `sandbox.record = mirror`: what a command has done is pushed to the sandbox's own ref on the mirror when it has ended.
//!
//! ```text
//!  the command ends ─► commit-back helper ─► commits come home
//!                                            uncommitted work? a commit of it on top, that no branch has
//!                                            git push mirror …:refs/agents/<session>  (git inside)
//!                                            mirror-record.json
//! ```
//!
//! Git runs inside, with the sandbox's own way to the mirror: nothing of the host is asked, no credential is used. It
//! works from shallow and partial clones, since the mirror has the commit that the sandbox began at, and `push.negotiate`
//! finds that out: nothing is fetched for it.

use crate::commit_back::CommitBackError;
use crate::connection::Connection;
use crate::record::MirrorAccess;
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, read_json, write_json};
use sandbox_git::{Oid, printable};
use sandbox_protocol::{Exec, escape_bytes};
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Bytes of what git says that are kept.
const OUTPUT: usize = 64 << 10;
/// Seconds that the push may take.
const SECONDS: u32 = 120;

/// What became of it: `mirror-record.json`, until the next command has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The commit that the mirror has now.
    pub commit: Option<String>,
    /// Where.
    pub at: String,
    /// Why there is none, in words that are safe to print.
    pub why_not: Option<String>,
}

impl Recorded {
    /// Returns what is told of it.
    pub fn words(&self) -> String {
        match (&self.commit, &self.why_not) {
            (Some(commit), _) => {
                format!("recorded on the mirror: {} ({})", self.at, commit.get(..7).unwrap_or(commit))
            }
            (None, why) => format!("not recorded on the mirror: {}", why.as_deref().unwrap_or("nothing is known")),
        }
    }
}

/// Where the outcome is.
pub fn file(dir: &SandboxDir) -> PathBuf {
    dir.path().join("mirror-record.json")
}

/// What became of the last command's work; `None` as long as nothing was tried.
pub fn outcome(sandbox: &Sandbox) -> Option<Recorded> {
    read_json(&file(&sandbox.dir)).ok().flatten()
}

/// What is done inside. Everything in it is a word of ours; names come as arguments. The index of the commit on top is
/// a copy: the sandbox's own stays as it is.
const SCRIPT: &str = r#"
set -eu
tip=$(git rev-parse --verify --quiet HEAD) || { echo "nothing was ever committed" >&2; exit 1; }
if [ -n "$(git -c core.fsmonitor=false status --porcelain --ignore-submodules=all)" ]; then
    dir=$(git rev-parse --absolute-git-dir)
    copy=$dir/sandbox-record-index.$$
    trap 'rm -f "$copy" "$copy.lock"' EXIT
    cp "$dir/index" "$copy" 2>/dev/null || :
    GIT_INDEX_FILE=$copy git -c core.hooksPath=/dev/null add --all --ignore-errors . 2>/dev/null || :
    tree=$(GIT_INDEX_FILE=$copy git write-tree)
    tip=$(git -c user.useConfigOnly=false commit-tree --no-gpg-sign -p "$tip" -m "$1" "$tree")
fi
timeout "$3" git -c core.hooksPath=/dev/null push --quiet --no-verify mirror "+$tip:$2"
echo "$tip"
"#;

/// Records what there is now.
pub fn run(connection: &mut Connection, sandbox: &Sandbox, mirror: &MirrorAccess) -> Result<(), CommitBackError> {
    let Some(session) = &mirror.session else { return Ok(()) };
    let at = format!("refs/agents/{session}");
    let message = format!("What '{}' had not committed", sandbox.name());
    let argv = ["sh", "-c", SCRIPT, "sh", &message, &at, &SECONDS.to_string()];
    let exec = Exec {
        argv: argv.iter().map(|word| escape_bytes(word.as_bytes())).collect(),
        cwd: escape_bytes(sandbox.at(0).mount().worktree.as_os_str().as_bytes()),
        internal: true,
        ..Exec::default()
    };
    let recorded = match connection.run(exec, b"", OUTPUT) {
        Ok((status, out, err)) => {
            let last = out.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
            match Oid::parse(last).filter(|_| status.shell() == 0) {
                Some(commit) => Recorded { commit: Some(commit.to_string()), at, why_not: None },
                None => Recorded { commit: None, at, why_not: Some(told(&err)) },
            }
        }
        Err(error) => Recorded { commit: None, at, why_not: Some(printable(error.to_string().as_bytes())) },
    };
    Ok(write_json(&file(&sandbox.dir), &recorded, false)?)
}

/// The telling line of what git said.
fn told(err: &[u8]) -> String {
    let lines: Vec<&[u8]> = err.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    let rejected = lines.iter().find(|line| line.windows(10).any(|ten| ten == b"[remote re" || ten == b"! [rejecte"));
    let fatal = lines.iter().find(|line| line.starts_with(b"fatal: ") || line.starts_with(b"error: "));
    let line = rejected.or(fatal).or(lines.last()).copied().unwrap_or(b"git inside says nothing");
    printable(line.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_it_is_told() {
        let at = "refs/agents/a-1".to_owned();
        let done = Recorded { commit: Some("0123456789".into()), at: at.clone(), why_not: None };
        assert_eq!(done.words(), "recorded on the mirror: refs/agents/a-1 (0123456)");
        let said = b"To http://127.0.0.1:9480/x\n ! [remote rejected] a -> b (read-only mirror)\nerror: failed to push some refs\n";
        let not = Recorded { commit: None, at, why_not: Some(told(said)) };
        assert_eq!(not.words(), "not recorded on the mirror: ! [remote rejected] a -> b (read-only mirror)");
        assert_eq!(told(b"hint: x\nfatal: unable to access\n"), "fatal: unable to access");
        assert_eq!(told(b""), "git inside says nothing");
    }
}
