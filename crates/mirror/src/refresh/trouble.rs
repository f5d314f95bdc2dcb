//! What can go wrong with an upstream, told from what git said.

use std::time::Duration;

/// Why a repository could not be refreshed. Its text is safe to print and has no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It says 401, 403 or 404, or there is no such repository: it was taken away, or made private.
    #[error("the upstream does not let us read it ({0})")]
    Denied(String),
    /// It wants to be asked less.
    #[error("the upstream asks for patience{}", after.map(|t| format!(" ({} s)", t.as_secs())).unwrap_or_default())]
    Throttled {
        /// How long, if it says so.
        after: Option<Duration>,
    },
    /// It says that it is elsewhere, where we do not go by ourselves.
    #[error("the upstream says that it has moved to '{0}'")]
    Moved(String),
    /// No answer, or a broken one.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    /// It took too long, and was ended.
    #[error("the upstream took longer than {0} s")]
    Timeout(u64),
    /// It sent objects that git does not accept; nothing of them was kept.
    #[error("the upstream sent objects that are refused: {0}")]
    Objects(String),
    /// Its address or scheme is not one that may be asked.
    #[error("{0}")]
    NotAllowed(String),
    /// The credential could not be had.
    #[error("no credential: {0}")]
    Credential(String),
    /// The mirror itself is broken.
    #[error("the mirror is corrupt: {0}")]
    Corrupt(String),
    /// This machine: disk, processes, git.
    #[error("{0}")]
    Local(String),
    /// A ref moved between asking and fetching.
    #[error("the upstream changed meanwhile")]
    Raced,
}

impl Trouble {
    /// A word for metrics and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Throttled { .. } => "throttled",
            Self::Moved(_) => "moved",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Objects(_) => "objects",
            Self::NotAllowed(_) => "not-allowed",
            Self::Credential(_) => "credential",
            Self::Corrupt(_) => "corrupt",
            Self::Local(_) => "local",
            Self::Raced => "raced",
        }
    }
}

/// What the headers of the last HTTP answer said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) status: Option<u16>,
    pub(super) location: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Headers {
    /// Reads what git writes for `GIT_TRACE_CURL`; each answer takes the place of the one before.
    pub(super) fn of_trace(trace: &[u8]) -> Self {
        let mut headers = Self::default();
        for line in String::from_utf8_lossy(trace).lines() {
            let Some((_, header)) = line.split_once("<= Recv header: ") else { continue };
            if header.starts_with("HTTP/") {
                let status = header.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok());
                headers = Self { status, ..Self::default() };
            } else if let Some((name, value)) = header.split_once(':') {
                let value = value.trim();
                match name.trim().to_ascii_lowercase().as_str() {
                    "location" => headers.location = Some(value.to_owned()),
                    // A date is not read: the back-off has to do.
                    "retry-after" => headers.retry_after = value.parse().ok().map(Duration::from_secs),
                    _ => {}
                }
            }
        }
        headers
    }
}

/// Texts by which git or ssh says that it may not read.
const DENIED: &[&str] = &[
    "returned error: 401",
    "returned error: 403",
    "returned error: 404",
    "Authentication failed for",
    "could not read Username",
    "could not read Password",
    "repository not exported",
    "Repository not found",
    "Permission denied (",
    "does not appear to be a git repository",
    "access denied or repository",
];

/// Texts of a store that is broken (S: git's own messages).
const CORRUPT: &[&str] = &[
    "is corrupt",
    "inflate: data stream error",
    "unable to unpack",
    "bad object refs/",
    "object file is empty",
    "packfile is truncated",
    "does not match index",
    "is far too short to be a packfile",
    "bad pack header",
    "packed object",
    "index file corrupt",
    "invalid index-pack output",
    "bad signature 0x",
    "multi-pack-index",
    "missing blob",
    "missing tree",
    "missing commit",
    "broken link from",
];

/// Texts of this machine.
const LOCAL: &[&str] = &["No space left on device", "Disk quota exceeded", "Out of memory", "Cannot allocate memory"];

/// Texts of objects that `fsckObjects` refuses.
const OBJECTS: &[&str] =
    &["fsck error in packed object", "fsck error in pack objects", "fatal: did not receive expected"];

/// Whether a text of git's says that the store is broken.
pub(crate) fn is_corrupt(stderr: &str) -> bool {
    // Somebody else is at work there: `Unable to create '…/multi-pack-index.lock': File exists.`
    let busy = |line: &str| line.contains(".lock': File exists");
    stderr.lines().any(|line| !busy(line) && CORRUPT.iter().any(|text| line.contains(text)))
}

/// Decides what went wrong from git's standard error and the last headers.
pub(super) fn of_failure(stderr: &str, headers: &Headers) -> Trouble {
    let telling = stderr
        .lines()
        .find(|line| line.starts_with("fatal: ") || line.starts_with("error: "))
        .or(stderr.lines().last())
        .unwrap_or("no message");
    // Of ssh git knows only that it ended: the line before is ssh's own.
    let ssh = stderr.lines().take_while(|line| *line != telling).filter(|line| !line.trim().is_empty()).last();
    let telling = match ssh {
        Some(line) if telling.contains("Could not read from remote repository") => {
            line.trim_end().trim_end_matches('.')
        }
        _ => telling,
    };
    let line = telling.trim_start_matches("fatal: ").trim_start_matches("error: ");
    let line = sandbox_git::printable(line.as_bytes());
    let says = |texts: &[&str]| texts.iter().any(|text| stderr.contains(text));
    match headers.status {
        Some(429) => return Trouble::Throttled { after: headers.retry_after },
        Some(503) if headers.retry_after.is_some() => return Trouble::Throttled { after: headers.retry_after },
        Some(status @ (401 | 403 | 404 | 410 | 451)) => return Trouble::Denied(status.to_string()),
        _ => {}
    }
    if says(LOCAL) {
        Trouble::Local(line)
    } else if stderr.contains("returned error: 429") {
        Trouble::Throttled { after: None }
    } else if says(DENIED) {
        Trouble::Denied(line)
    } else if says(OBJECTS) {
        Trouble::Objects(line)
    } else if stderr.contains("not our ref") || stderr.contains("unadvertised object") {
        Trouble::Raced
    } else {
        Trouble::Unreachable(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stderr: &str) -> String {
        let trouble = of_failure(stderr, &Headers::default());
        format!("{}: {trouble}", trouble.word())
    }

    #[test]
    fn each_text_of_git_means_one_thing() {
        for (stderr, said) in [
            (
                "fatal: unable to access 'https://h/r/': The requested URL returned error: 403",
                "denied: the upstream does not let us read it (unable to access 'https://h/r/': The requested URL returned error: 403)",
            ),
            (
                "ERROR: Repository not found.\nfatal: Could not read from remote repository.",
                "denied: the upstream does not let us read it (ERROR: Repository not found)",
            ),
            (
                "@@@@@\nHost key verification failed.\r\nfatal: Could not read from remote repository.\n\nPlease make sure",
                "unreachable: the upstream cannot be reached: Host key verification failed",
            ),
            (
                "fatal: Could not read from remote repository.",
                "unreachable: the upstream cannot be reached: Could not read from remote repository.",
            ),
            (
                "fatal: unable to access 'https://h/r/': Could not resolve host: h",
                "unreachable: the upstream cannot be reached: unable to access 'https://h/r/': Could not resolve host: h",
            ),
            ("fatal: remote error: upload-pack: not our ref 12", "raced: the upstream changed meanwhile"),
            (
                "error: object 12: hasDotgit: contains '.git'\nfatal: fsck error in packed object",
                "objects: the upstream sent objects that are refused: object 12: hasDotgit: contains '.git'",
            ),
            ("fatal: write error: No space left on device", "local: write error: No space left on device"),
            ("", "unreachable: the upstream cannot be reached: no message"),
        ] {
            assert_eq!(told(stderr), said);
        }
    }

    #[test]
    fn headers_say_more_than_texts() {
        let trace = b"10:00 http.c:1 => Send header: GET / HTTP/1.1\n\
            10:00 http.c:1 <= Recv header: HTTP/1.1 301 Moved\n\
            10:00 http.c:1 <= Recv header: Location: https://h/new/info/refs?service=git-upload-pack\n\
            10:00 http.c:1 <= Recv header: HTTP/1.1 429 Too Many\n\
            10:00 http.c:1 <= Recv header: retry-after: 17\n";
        let headers = Headers::of_trace(trace);
        let after = Some(Duration::from_secs(17));
        assert_eq!(headers, Headers { status: Some(429), location: None, retry_after: after });
        let trouble = of_failure("fatal: The requested URL returned error: 429", &headers);
        assert_eq!(trouble.to_string(), "the upstream asks for patience (17 s)");
        let busy = Headers { status: Some(503), ..headers };
        assert_eq!(of_failure("", &busy), Trouble::Throttled { after });
        let broken = Headers { retry_after: None, ..busy };
        assert!(matches!(of_failure("fatal: x", &broken), Trouble::Unreachable(_)));
    }

    #[test]
    fn every_other_trouble_is_told_in_words() {
        let all = [
            Trouble::Moved("https://h/n".to_owned()),
            Trouble::Timeout(300),
            Trouble::NotAllowed("x".to_owned()),
            Trouble::Credential("the variable 'T' is not set".to_owned()),
            Trouble::Corrupt("missing blob".to_owned()),
            Trouble::Throttled { after: None },
        ];
        assert_eq!(
            all.map(|trouble| trouble.to_string()),
            [
                "the upstream says that it has moved to 'https://h/n'",
                "the upstream took longer than 300 s",
                "x",
                "no credential: the variable 'T' is not set",
                "the mirror is corrupt: missing blob",
                "the upstream asks for patience",
            ]
        );
        assert!(is_corrupt("fatal: loose object 12 is corrupt") && !is_corrupt("fatal: early EOF"));
        assert!(is_corrupt("fatal: x\nerror: multi-pack-index version 9 not recognized"));
        assert!(!is_corrupt(
            "fatal: Unable to create '/s/objects/pack/multi-pack-index.lock': File exists.\n\nAnother"
        ));
    }
}
