//! Credentials for upstreams: where they come from, and how git gets one without anybody else seeing it.
//!
//! ```text
//! Source (mirror.toml) ─► Keeper ─► Secret ─► a memory file, inherited by one git command
//!   env: file: exec: github-app:                │
//!                                               ▼
//!        -c credential.https://HOST.helper=!cat /proc/self/fd/N      asked for HOST only
//! ```
//!
//! A secret is never in an argument, an environment, a configuration file, a log or an error: the command line of
//! git names a descriptor. The helper is bound to scheme and host, so that whatever a server redirects to, no other
//! host is ever shown it. What git says is cleaned of it all the same ([`Secret::clean`]).

mod app;

use rustix::fs::MemfdFlags;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest that an `exec:` source may take.
const EXEC_LIMIT: Duration = Duration::from_secs(30);
/// How long the answer of one that says nothing of its end is used.
const EXEC_AGE: Duration = Duration::from_secs(300);
/// More than any token has.
const MAX_BYTES: u64 = 64 * 1024;
/// Forges take any name beside a token; this is the one that GitHub documents.
const TOKEN_USER: &str = "x-access-token";

/// Where a secret comes from. Prints as it is written; is itself no secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `env:NAME`: a variable of the service's environment.
    Env(String),
    /// `file:/path`: read at each use, so that it can be replaced at any time.
    File(PathBuf),
    /// `exec:/path`: a program that is asked as git asks a credential helper.
    Exec(PathBuf),
    /// `github-app:/path`: a file that names a GitHub App, its key and its installation.
    GithubApp(PathBuf),
}

/// Why a source was refused. Does not repeat what was written: it may be the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No known kind.
    #[error("it must begin with 'env:', 'file:', 'exec:' or 'github-app:'")]
    Kind,
    /// No absolute path after `file:`, `exec:` or `github-app:`.
    #[error("'file:', 'exec:' and 'github-app:' are followed by an absolute path")]
    Path,
    /// No name after `env:`.
    #[error("'env:' is followed by the name of a variable")]
    Name,
}

impl FromStr for Source {
    type Err = SourceError;
    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (kind, rest) = text.split_once(':').ok_or(SourceError::Kind)?;
        let path = || if rest.starts_with('/') { Ok(PathBuf::from(rest)) } else { Err(SourceError::Path) };
        match kind {
            "env" if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                Ok(Self::Env(rest.to_owned()))
            }
            "env" => Err(SourceError::Name),
            "file" => Ok(Self::File(path()?)),
            "exec" => Ok(Self::Exec(path()?)),
            "github-app" => Ok(Self::GithubApp(path()?)),
            _ => Err(SourceError::Kind),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Exec(path) => write!(f, "exec:{}", path.display()),
            Self::GithubApp(path) => write!(f, "github-app:{}", path.display()),
        }
    }
}

/// Why there is no secret. Never has any part of one.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The variable is not set.
    #[error("the variable '{0}' is not set")]
    Unset(String),
    /// The file cannot be read.
    #[error("cannot read '{path}'")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program cannot be run, or failed; the forge gave the App no token.
    #[error("'{path}' gave no credential: {why}")]
    Exec {
        /// Which.
        path: PathBuf,
        /// Its status, or that it took too long; never its output, nor an answer.
        why: String,
    },
    /// There is nothing in it that could be a secret.
    #[error("'{0}' holds neither a token nor `username=` and `password=` lines")]
    Empty(Source),
    /// No memory file.
    #[error("cannot hand a credential to git")]
    Hand(#[source] io::Error),
}

/// A name and a password (or token).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    username: String,
    password: String,
    until: Option<SystemTime>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads a token alone, or lines as git's credential helpers write them.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let mut secret = Self { username: TOKEN_USER.to_owned(), password: String::new(), until: None };
        if !text.contains('\n') && !text.starts_with("password=") {
            secret.password = text.to_owned();
        } else {
            for line in text.lines() {
                match line.split_once('=') {
                    Some(("username", value)) => secret.username = value.to_owned(),
                    Some(("password", value)) => secret.password = value.to_owned(),
                    Some(("password_expiry_utc", value)) => {
                        secret.until = value.parse().ok().map(|at| UNIX_EPOCH + Duration::from_secs(at));
                    }
                    _ => {}
                }
            }
        }
        secret.is_plain().then_some(secret)
    }

    /// Whether git can be told it in lines.
    fn is_plain(&self) -> bool {
        [&self.username, &self.password].iter().all(|text| !text.is_empty() && !text.contains(['\n', '\r', '\0']))
    }

    /// The password or token alone: a webhook's secret.
    pub fn expose(&self) -> &str {
        &self.password
    }

    /// Takes it out of a text, plain, as part of a URL or of a header of HTTP's basic scheme.
    pub fn clean(&self, text: &str) -> String {
        let basic = base64(format!("{}:{}", self.username, self.password).as_bytes());
        let escaped: String = self
            .password
            .bytes()
            .map(|b| match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect();
        [basic, escaped, self.password.clone()].iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    /// Writes it to a memory file, as a credential helper prints it. Whoever inherits the descriptor can read it
    /// (again and again, by opening it anew); it has no name.
    pub fn hand(&self) -> Result<OwnedFd, CredentialError> {
        let file = rustix::fs::memfd_create("credential", MemfdFlags::CLOEXEC)
            .map_err(|error| CredentialError::Hand(error.into()))?;
        let mut file = File::from(file);
        write!(file, "username={}\npassword={}\n", self.username, self.password).map_err(CredentialError::Hand)?;
        Ok(file.into())
    }
}

/// The configuration by which git asks a descriptor of its own for the credential of `origin` (scheme, host and
/// port), and of nothing else.
pub fn helper_setting(origin: &str, fd: &OwnedFd) -> String {
    // Git appends the operation, which the `#` takes away. What it would store is read and forgotten.
    format!("credential.{origin}.helper=!cat /proc/self/fd/{} #", fd.as_raw_fd())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            u32::from_be_bytes([0, chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)]);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Gets secrets from their sources.
#[derive(Debug, Default)]
pub struct Keeper {
    env: BTreeMap<String, String>,
    path: OsString,
    minted: Mutex<BTreeMap<(Source, String), (Secret, Instant)>>,
}

impl Keeper {
    /// `env` is what `env:` sources may name; `path` is the `PATH` of programs.
    pub fn new(env: BTreeMap<String, String>, path: OsString) -> Self {
        Self { env, path, minted: Mutex::default() }
    }

    /// Returns the secret of a source for `host`. Blocks while a program runs.
    pub fn get(&self, source: &Source, host: &str) -> Result<Secret, CredentialError> {
        let text = match source {
            Source::Env(name) => self.env.get(name).cloned().ok_or_else(|| CredentialError::Unset(name.clone()))?,
            Source::File(path) => {
                let failed = |source| CredentialError::File { path: path.clone(), source };
                let mut text = String::new();
                File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)).map_err(failed)?;
                text
            }
            Source::Exec(path) => {
                let mint = || Ok(Secret::parse(&self.run(path, host)?));
                return self.minted(source, path, host, mint);
            }
            Source::GithubApp(path) => return self.minted(source, path, host, || app::mint(path).map(Some)),
        };
        Secret::parse(&text).ok_or_else(|| CredentialError::Empty(source.clone()))
    }

    /// Forgets what a program gave for `host`: the upstream did not take it.
    pub fn refused(&self, source: &Source, host: &str) {
        self.minted.lock().expect("nobody panics with it").remove(&(source.clone(), host.to_owned()));
    }

    /// What was minted for `host` and is still good, else what is minted now.
    fn minted(
        &self,
        source: &Source,
        path: &Path,
        host: &str,
        mint: impl FnOnce() -> Result<Option<Secret>, String>,
    ) -> Result<Secret, CredentialError> {
        let key = (source.clone(), host.to_owned());
        if let Some((secret, until)) = self.minted.lock().expect("nobody panics with it").get(&key)
            && Instant::now() < *until
        {
            return Ok(secret.clone());
        }
        let failed = |why: String| CredentialError::Exec { path: path.to_owned(), why };
        let secret = mint().map_err(failed)?.ok_or_else(|| CredentialError::Empty(source.clone()))?;
        // A token that ends while git uses it is refused half way.
        let age = match secret.until.map(|until| until.duration_since(SystemTime::now())) {
            Some(left) => left.unwrap_or_default().saturating_sub(Duration::from_secs(60)),
            None => EXEC_AGE,
        };
        let kept = (secret.clone(), Instant::now() + age.min(Duration::from_secs(3600)));
        self.minted.lock().expect("nobody panics with it").insert(key, kept);
        Ok(secret)
    }

    fn run(&self, path: &Path, host: &str) -> Result<String, String> {
        let mut child = Command::new(path)
            .arg("get")
            .env_clear()
            .env("PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        let group = rustix::process::Pid::from_child(&child);
        let mut stdin = child.stdin.take().expect("piped");
        let _ = write!(stdin, "protocol=https\nhost={host}\n\n");
        drop(stdin);
        let stdout = child.stdout.take().expect("piped");
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.take(MAX_BYTES).read_to_string(&mut text);
            let _ = send.send(read.map(|_| text));
        });
        let text = receive.recv_timeout(EXEC_LIMIT);
        if text.is_err() {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let status = child.wait().map_err(|error| error.to_string())?;
        match text {
            Err(_) => Err(format!("it took longer than {} s", EXEC_LIMIT.as_secs())),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(_)) if !status.success() => Err(status.to_string()),
            Ok(Ok(text)) => Ok(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn keeper() -> Keeper {
        Keeper::new([("T".to_owned(), "tok".to_owned())].into(), "/usr/bin:/bin".into())
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        for text in ["env:GH_TOKEN", "file:/etc/t", "exec:/usr/bin/mint", "github-app:/etc/app.toml"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        let refused = |text: &str| text.parse::<Source>().unwrap_err().to_string();
        assert_eq!(refused("ghp_abc"), "it must begin with 'env:', 'file:', 'exec:' or 'github-app:'");
        assert_eq!(refused("file:x"), "'file:', 'exec:' and 'github-app:' are followed by an absolute path");
        assert_eq!(refused("env:"), "'env:' is followed by the name of a variable");
    }

    #[test]
    fn a_secret_comes_from_each_source() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "username=u\npassword=p=q\n").unwrap();
        let keeper = keeper();
        assert_eq!(keeper.get(&"env:T".parse().unwrap(), "h").unwrap().expose(), "tok");
        let secret = keeper.get(&Source::File(file.clone()), "h").unwrap();
        assert_eq!((secret.username.as_str(), secret.expose()), ("u", "p=q"));

        let program = dir.path().join("mint");
        let count = dir.path().join("count");
        let script =
            format!("#!/bin/sh\ncat > {0}.in; echo x >> {0}; echo username=a; echo password=b\n", count.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let source = Source::Exec(program);
        for _ in 0..2 {
            assert_eq!(keeper.get(&source, "h").unwrap().expose(), "b");
        }
        keeper.refused(&source, "h");
        keeper.get(&source, "h").unwrap();
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\nx\n", "asked again only after a refusal");
        let asked = std::fs::read_to_string(dir.path().join("count.in")).unwrap();
        assert_eq!(asked, "protocol=https\nhost=h\n\n");
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let said = |source: &str| keeper().get(&source.parse().unwrap(), "h").unwrap_err().to_string();
        assert_eq!(said("env:NOPE"), "the variable 'NOPE' is not set");
        assert_eq!(said("file:/nonexistent"), "cannot read '/nonexistent'");
        assert_eq!(said("exec:/bin/false"), "'/bin/false' gave no credential: exit status: 1");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "\n").unwrap();
        let path = empty.display();
        assert_eq!(
            said(&format!("file:{path}")),
            format!("'file:{path}' holds neither a token nor `username=` and `password=` lines")
        );
    }

    #[test]
    fn it_does_not_show_and_is_taken_out_of_texts() {
        let secret = Secret::parse("username=u\npassword=s3cr/et").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret");
        let basic = base64(b"u:s3cr/et");
        assert_eq!(basic, "dTpzM2NyL2V0");
        let text = format!("https://u:s3cr%2Fet@h/x and s3cr/et and Basic {basic}");
        assert_eq!(secret.clean(&text), "https://u:***@h/x and *** and Basic ***");
        assert_eq!(base64(b"a"), "YQ==");
        assert_eq!(base64(b"ab"), "YWI=");
    }
}
