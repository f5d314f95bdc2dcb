//! What an upstream has: one `ls-remote`, which costs one connection and no objects.

use super::Pattern;
use super::reach::Reach;
use super::trouble::{Headers, Trouble, of_failure};
use crate::credential::Secret;
use rustix::fs::MemfdFlags;
use sandbox_git::{Git, GitError, ObjectFormat, Oid, RefName};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

/// The longest that asking may take, whatever a fetch may.
const LIMIT: Duration = Duration::from_secs(120);
/// Refs that are taken: more is no repository that people work in.
const MAX_REFS: usize = 2_000_000;

/// What an upstream advertises.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertised {
    /// The branch that `HEAD` names; `None`: it names none, or does not say.
    pub head: Option<RefName>,
    /// What `HEAD` is.
    pub head_oid: Option<Oid>,
    /// The refs that are mirrored.
    pub refs: BTreeMap<RefName, Oid>,
    /// Names that git itself would not take, left out.
    pub left_out: usize,
}

impl Advertised {
    /// The hash of its objects; unknown while it has none.
    pub fn format(&self) -> Option<ObjectFormat> {
        self.refs.values().next().map(Oid::format)
    }

    /// Reads the output of `ls-remote --symref`.
    fn parse(out: &[u8], patterns: &[Pattern]) -> Option<Self> {
        let mut all = Self::default();
        for line in out.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let tab = line.iter().position(|b| *b == b'\t')?;
            let (value, name) = (&line[..tab], &line[tab + 1..]);
            if let Some(target) = value.strip_prefix(b"ref: ") {
                if name == b"HEAD" {
                    all.head = RefName::parse(target).filter(|name| name.as_bytes().starts_with(b"refs/heads/"));
                }
                continue;
            }
            let oid = Oid::parse(value)?;
            if name == b"HEAD" {
                all.head_oid = Some(oid);
            } else if name.ends_with(b"^{}") || name.starts_with(b".") {
                // What a tag peels to, and `.have` lines.
            } else if let Some(name) = RefName::parse(name) {
                if patterns.iter().any(|pattern| pattern.has(&name)) {
                    all.refs.insert(name, oid);
                }
            } else {
                all.left_out += 1;
            }
            if all.refs.len() > MAX_REFS {
                return None;
            }
        }
        Some(all)
    }
}

/// What asking came to.
pub(super) enum Asked {
    Refs(Advertised),
    /// It answered with a redirect to here.
    Redirect(String),
}

/// Asks once.
pub(super) fn ask(
    git: &Git,
    reach: &Reach,
    secret: Option<&Secret>,
    key: Option<&PathBuf>,
    patterns: &[Pattern],
    limit: Duration,
) -> Result<Asked, Trouble> {
    let local = |error: std::io::Error| Trouble::Local(error.to_string());
    // Headers are only told in the trace. It is in memory, and git takes secrets out of it.
    let trace = rustix::fs::memfd_create("trace", MemfdFlags::CLOEXEC).map_err(|error| local(error.into()))?;
    let mut command = reach.apply(git.anywhere(), secret, key);
    let mut headers = None;
    if reach.upstream().url().starts_with("http") {
        let copy = trace.try_clone().map_err(local)?;
        command = command
            .env("GIT_TRACE_CURL", format!("/proc/self/fd/{}", copy.as_raw_fd()))
            .env("GIT_TRACE_CURL_NO_DATA", "1")
            .inherit(copy);
        headers = Some(trace);
    }
    let command = command
        .timeout(limit.min(LIMIT))
        .args(["ls-remote", "--symref", "--quiet", "--end-of-options"])
        .arg(reach.upstream().url())
        .arg("HEAD")
        .args(patterns.iter().map(Pattern::as_str));
    match finish(command.converse().map_err(started)?)? {
        Ended::Well(out) => Advertised::parse(&out, patterns)
            .map(Asked::Refs)
            .ok_or_else(|| Trouble::Unreachable("it advertises what are no refs".to_owned())),
        Ended::Badly(stderr) => {
            let mut text = Vec::new();
            if let Some(trace) = headers {
                let mut file = File::from(trace);
                let _ = file.rewind().and_then(|()| file.take(1 << 20).read_to_end(&mut text));
            }
            let headers = Headers::of_trace(&text);
            let stderr = secret.map_or(stderr.clone(), |secret| secret.clean(&stderr));
            match (headers.status, headers.location.clone()) {
                (Some(301 | 302 | 303 | 307 | 308), Some(to)) => Ok(Asked::Redirect(to)),
                _ => Err(of_failure(&stderr, &headers)),
            }
        }
    }
}

/// How a command ended.
pub(super) enum Ended {
    Well(Vec<u8>),
    /// With this on standard error.
    Badly(String),
}

/// Waits for a command and keeps all that it says.
pub(super) fn finish(mut running: sandbox_git::Running) -> Result<Ended, Trouble> {
    running.stdin = None;
    let mut out = Vec::new();
    let read = running.stdout.as_mut().map_or(Ok(0), |pipe| pipe.read_to_end(&mut out));
    let (status, stderr) = running.wait().map_err(started)?;
    read.map_err(|error| Trouble::Local(error.to_string()))?;
    Ok(if status.success() { Ended::Well(out) } else { Ended::Badly(String::from_utf8_lossy(&stderr).into_owned()) })
}

/// A command that could not be run, or took too long.
pub(super) fn started(error: GitError) -> Trouble {
    match error {
        GitError::Timeout { seconds, .. } => Trouble::Timeout(seconds),
        other => Trouble::Local(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_is_read_and_what_is_not_ours_left_out() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let out = format!(
            "ref: refs/heads/main\tHEAD\n{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/tags/v1\n{a}\trefs/tags/v1^{{}}\n\
             {a}\trefs/agents/s1\n{b}\trefs/heads/a..b\n"
        );
        let all = Advertised::parse(out.as_bytes(), &Pattern::all()).unwrap();
        assert_eq!(all.head.as_ref().unwrap().to_str(), Some("refs/heads/main"));
        assert_eq!(
            all.refs.keys().map(|n| n.to_str().unwrap()).collect::<Vec<_>>(),
            ["refs/heads/main", "refs/tags/v1"]
        );
        assert_eq!((all.left_out, all.format()), (1, Some(ObjectFormat::Sha1)));
        assert_eq!(Advertised::parse(b"", &Pattern::all()).unwrap(), Advertised::default());
        assert_eq!(Advertised::parse(b"<html>\n", &Pattern::all()), None);
    }
}
