//! Names of repositories, and the URLs that they come from.
//!
//! ```text
//! https://GitHub.com:443/Owner/name.git ─┐
//! git@github.com:Owner/name              ├─► Upstream ─► RepoName  github.com/Owner/name
//! ssh://git@github.com/Owner/name.git/  ─┘                  ▲
//! GET /github.com/Owner/name.git/info/refs ─────────────────┘  (percent-decoded once)
//! ```
//!
//! A name is a key: it is looked up, never joined to a path. What could mean something else to a file
//! system, a shell or git (`..`, control bytes, a leading `-`, a backslash) is refused all the same.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use std::fmt;
use std::str::FromStr;

/// Bytes of the longest name.
pub const LONGEST: usize = 255;

/// What a path of a URL shows as it is.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'[')
    .remove(b']');

/// Why a text names no repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Only a host, or nothing.
    #[error("a repository is named 'host/owner/name'")]
    Short,
    /// More than [`LONGEST`] bytes.
    #[error("the name is longer than {LONGEST} bytes")]
    Long,
    /// Two slashes, or `.`, `..`, `.git`.
    #[error("an empty part, '.', '..' or '.git' is no name")]
    Part,
    /// A part could be taken for an option.
    #[error("a part of the name begins with '-'")]
    Dash,
    /// A byte that has no place in a name.
    #[error("the name has a control character, a backslash, or one of '%?#'")]
    Character,
    /// Not UTF-8.
    #[error("the name is not UTF-8")]
    Encoding,
    /// The first part is no host.
    #[error("the name does not begin with a host")]
    Host,
    /// Neither a URL nor a path.
    #[error("this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path")]
    Scheme,
    /// `https://user:password@…`
    #[error("a URL with a password in it is refused: give the mirror a credential instead")]
    Password,
}

/// The name of a repository: `host[:port]/owner…/name`, without `.git`; the host in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(Box<str>);

impl RepoName {
    /// Checks a name that is not percent-encoded. A `.git` at its end does not count.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > LONGEST + 4 {
            return Err(NameError::Long);
        }
        let (host, path) = text.split_once('/').ok_or(NameError::Short)?;
        let host = canonical_host(host).ok_or(NameError::Host)?;
        let mut path = path.strip_suffix('/').unwrap_or(path);
        while let Some(shorter) = path.strip_suffix(".git") {
            path = shorter;
        }
        path.split('/').try_for_each(check_part)?;
        let name = format!("{host}/{path}");
        if name.len() > LONGEST {
            return Err(NameError::Long);
        }
        Ok(Self(name.into()))
    }

    /// Reads the path of a request: decoded once, without its first slash.
    pub fn from_request_path(path: &[u8]) -> Result<Self, NameError> {
        // Three bytes for each at most: nothing longer needs to be decoded.
        if path.len() > 3 * (LONGEST + 8) {
            return Err(NameError::Long);
        }
        let path = path.strip_prefix(b"/").unwrap_or(path);
        // A slash that was not one for whoever routes by slashes must not become one here.
        if path.windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f")) {
            return Err(NameError::Character);
        }
        let text = percent_decode(path).decode_utf8().map_err(|_| NameError::Encoding)?;
        Self::parse(&text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host, with a port that is not the scheme's own.
    pub fn host(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(host, _)| host)
    }

    /// What follows the host.
    pub fn path(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, path)| path)
    }

    /// The name as the path of a URL, percent-encoded, without a slash before it.
    pub fn url_path(&self) -> String {
        utf8_percent_encode(&self.0, PATH).to_string()
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepoName({})", self.0)
    }
}

impl FromStr for RepoName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl serde::Serialize for RepoName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for RepoName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn check_part(part: &str) -> Result<(), NameError> {
    match part {
        "" | "." | ".." => return Err(NameError::Part),
        _ if part.eq_ignore_ascii_case(".git") => return Err(NameError::Part),
        _ if part.starts_with('-') => return Err(NameError::Dash),
        _ => {}
    }
    if part.chars().any(|c| c.is_control() || matches!(c, '\\' | '%' | '?' | '#')) || part.trim() != part {
        return Err(NameError::Character);
    }
    Ok(())
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` in the one spelling.
fn canonical_host(text: &str) -> Option<String> {
    let (host, port) = split_port(text)?;
    let port = match port {
        Some(port) => Some(port.parse::<u16>().ok().filter(|n| *n != 0 && n.to_string() == port)?),
        None => None,
    };
    let host = match host.strip_prefix('[') {
        Some(inner) => format!("[{}]", inner.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?),
        None => {
            let fine = |label: &str| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            };
            let bare = host.strip_suffix('.').unwrap_or(host);
            if !bare.split('.').all(fine) {
                return None;
            }
            bare.to_ascii_lowercase()
        }
    };
    Some(port.map_or(host.clone(), |port| format!("{host}:{port}")))
}

fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, rest) = text.split_at(end);
    match rest {
        "" => Some((host, None)),
        _ => Some((host, Some(rest.strip_prefix(':')?))),
    }
}

/// How an upstream is spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Smart HTTP over TLS.
    Https,
    /// Smart HTTP in the clear.
    Http,
    /// ssh, as a URL or as `user@host:path`.
    Ssh,
    /// `git://`, in the clear.
    Git,
    /// A directory of this machine.
    File,
}

impl Scheme {
    /// The port that need not be named.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Self::Https => Some(443),
            Self::Http => Some(80),
            Self::Ssh => Some(22),
            Self::Git => Some(9418),
            Self::File => None,
        }
    }

    /// As in a URL, and as `protocol.<name>.allow` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Git => "git",
            Self::File => "file",
        }
    }
}

/// Where a repository comes from: a URL without a password, and the name that it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    scheme: Scheme,
    /// With the port, in the one spelling; empty for a directory.
    host: String,
    url: String,
    name: RepoName,
}

impl Upstream {
    /// Reads what a user writes after `git clone`: https, ssh, http, git and file URLs,
    /// `user@host:path`, and an absolute path.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.len() > 2048 {
            return Err(NameError::Long);
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Character);
        }
        if text.starts_with('/') {
            return Self::directory(text, format!("file://{}", utf8_percent_encode(text, PATH)));
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Self::scp_like(text) };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            "ssh" | "git+ssh" | "ssh+git" => Scheme::Ssh,
            "git" => Scheme::Git,
            "file" => Scheme::File,
            _ => return Err(NameError::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find('/').ok_or(NameError::Short)?);
        if path.contains(['?', '#']) {
            return Err(NameError::Character);
        }
        let decoded = percent_decode(path.as_bytes()).decode_utf8().map_err(|_| NameError::Encoding)?;
        if scheme == Scheme::File {
            if !matches!(authority, "" | "localhost") {
                return Err(NameError::Host);
            }
            return Self::directory(&decoded, format!("file://{path}"));
        }
        let (user, host) = user_and_host(authority)?;
        // A name may stand before the host of ssh; to a web server it would be half a credential.
        if user.is_some() && scheme != Scheme::Ssh {
            return Err(NameError::Password);
        }
        let host = canonical_host(host).ok_or(NameError::Host)?;
        let own = scheme.default_port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = host.strip_suffix(&own).map(str::to_owned).unwrap_or(host);
        let home = decoded.strip_prefix("/~").map(|rest| format!("/~{rest}"));
        let name = named(&host, home.as_deref().unwrap_or(&decoded))?;
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let url = format!("{}://{user}{host}{path}", scheme.as_str());
        Ok(Self { scheme, host, url, name })
    }

    fn directory(path: &str, url: String) -> Result<Self, NameError> {
        Ok(Self { scheme: Scheme::File, host: String::new(), url, name: named("localhost", path)? })
    }

    /// `[user@]host:path`, where no slash stands before the colon (git-clone(1)).
    fn scp_like(text: &str) -> Result<Self, NameError> {
        let begin = if text.contains('[') { text.find(']').ok_or(NameError::Scheme)? } else { 0 };
        let colon = begin + text[begin..].find(':').ok_or(NameError::Scheme)?;
        let (authority, path) = (&text[..colon], &text[colon + 1..]);
        // `ext::…` would start a program.
        if path.starts_with(':') || authority.contains('/') {
            return Err(NameError::Scheme);
        }
        let (user, host) = user_and_host(authority)?;
        let host = canonical_host(host).ok_or(NameError::Host)?;
        if path.starts_with('-') {
            return Err(NameError::Dash);
        }
        let name = named(&host, path)?;
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        Ok(Self { scheme: Scheme::Ssh, url: format!("{user}{host}:{path}"), host, name })
    }

    /// How it is spoken with.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host with a port that is not the scheme's own; empty for a directory.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What git is given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name that it has unless another one was chosen.
    pub fn name(&self) -> &RepoName {
        &self.name
    }

    /// Whether what is sent there can be read on the way.
    pub fn is_clear(&self) -> bool {
        matches!(self.scheme, Scheme::Http | Scheme::Git)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

fn user_and_host(authority: &str) -> Result<(Option<&str>, &str), NameError> {
    let Some((user, host)) = authority.rsplit_once('@') else { return Ok((None, authority)) };
    if user.contains(':') {
        return Err(NameError::Password);
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if user.is_empty() || user.starts_with('-') || !user.chars().all(fine) {
        return Err(NameError::Host);
    }
    Ok((Some(user), host))
}

fn named(host: &str, path: &str) -> Result<RepoName, NameError> {
    RepoName::parse(&format!("{host}/{}", path.trim_start_matches('/').trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> String {
        RepoName::parse(text).map_or_else(|error| format!("{error:?}"), |name| name.to_string())
    }

    fn upstream(text: &str) -> String {
        match Upstream::parse(text) {
            Ok(upstream) => format!("{} {}", upstream.name(), upstream.url()),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(name("GitHub.com/Owner/name.git"), "github.com/Owner/name");
        assert_eq!(name("h/a/b/c/"), "h/a/b/c");
        assert_eq!(name("h/a.git.git"), "h/a");
        assert_eq!(name("127.0.0.1:8080/r"), "127.0.0.1:8080/r");
        assert_eq!(name("[::1]:80/r"), "[::1]:80/r");
        assert_eq!(name("h/My Project/_git/r"), "h/My Project/_git/r");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, why) in [
            ("", "Short"),
            ("h", "Short"),
            ("h/", "Part"),
            ("/r", "Host"),
            ("h//r", "Part"),
            ("h/../r", "Part"),
            ("h/./r", "Part"),
            ("h/r/.git", "Part"),
            ("h/a/.GIT/r", "Part"),
            ("h/-r", "Dash"),
            ("-h/r", "Host"),
            ("h/a\nb", "Character"),
            ("h/a\0b", "Character"),
            ("h/a\\b", "Character"),
            ("h/a%2e", "Character"),
            ("h/a?b", "Character"),
            ("h/ a", "Character"),
            ("h:0/r", "Host"),
            ("h:080/r", "Host"),
            ("h:99999/r", "Host"),
            ("..", "Short"),
            ("../r", "Host"),
        ] {
            assert_eq!(name(text), why, "{text:?}");
        }
        assert_eq!(name(&format!("h/{}", "a".repeat(253))).len(), 255);
        assert_eq!(name(&format!("h/{}", "a".repeat(254))), "Long");
    }

    #[test]
    fn requests_are_decoded_once() {
        let read = |path: &str| RepoName::from_request_path(path.as_bytes()).map(|name| name.to_string());
        assert_eq!(read("/h/a%20b.git").unwrap(), "h/a b");
        assert_eq!(read("/h/%C3%BC").unwrap(), "h/ü");
        for (path, why) in [
            ("/h/%2e%2e/r", NameError::Part),
            ("/h/a%2Fb", NameError::Character),
            ("/h/%252e%252e/r", NameError::Character),
            ("/h/a%00", NameError::Character),
            ("/h/%ff", NameError::Encoding),
            ("//h/r", NameError::Host),
            ("/h/%2dr", NameError::Dash),
        ] {
            assert_eq!(read(path), Err(why), "{path}");
        }
        assert_eq!(read(&"/h/%61".repeat(200)), Err(NameError::Long));
    }

    #[test]
    fn urls_of_one_repository_give_one_name() {
        for (text, expected) in [
            ("https://GitHub.com:443/O/r.git", "github.com/O/r https://github.com/O/r.git"),
            ("https://h/O/r/", "h/O/r https://h/O/r/"),
            ("git@github.com:O/r.git", "github.com/O/r git@github.com:O/r.git"),
            ("ssh://git@h:22/O/r", "h/O/r ssh://git@h/O/r"),
            ("ssh://git@h:2222/O/r", "h:2222/O/r ssh://git@h:2222/O/r"),
            ("git://h/O/r", "h/O/r git://h/O/r"),
            ("http://127.0.0.1:8080/r.git", "127.0.0.1:8080/r http://127.0.0.1:8080/r.git"),
            ("file:///srv/a%20b.git", "localhost/srv/a b file:///srv/a%20b.git"),
            ("/srv/a b", "localhost/srv/a b file:///srv/a%20b"),
            ("[::1]:r", "[::1]/r [::1]:r"),
            ("git@[::1]:r", "[::1]/r git@[::1]:r"),
        ] {
            assert_eq!(upstream(text), expected, "{text}");
        }
    }

    #[test]
    fn urls_that_could_be_something_else_are_refused() {
        for (text, why) in [
            ("https://u:p@h/r", "Password"),
            ("https://token@h/r", "Password"),
            ("ext::sh -c id", "Scheme"),
            ("fd::3", "Scheme"),
            ("ftp://h/r", "Scheme"),
            ("https://h", "Short"),
            ("https://h/../r", "Part"),
            ("https://h/%2e%2e/r", "Part"),
            ("https://-h/r", "Host"),
            ("ssh://-oProxyCommand=x/r", "Host"),
            ("-oProxyCommand=x:r", "Host"),
            ("h:-r", "Dash"),
            ("https://h/r?x", "Character"),
            ("https://h/r\n", "Character"),
            ("file://other/r", "Host"),
            ("r", "Scheme"),
            ("./a:b", "Scheme"),
        ] {
            assert_eq!(upstream(text), why, "{text:?}");
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let said = |text: &str| RepoName::parse(text).unwrap_err().to_string();
        assert_eq!(said("h"), "a repository is named 'host/owner/name'");
        assert_eq!(said(&"h/a".repeat(100)), "the name is longer than 255 bytes");
        assert_eq!(said("h/.."), "an empty part, '.', '..' or '.git' is no name");
        assert_eq!(said("h/-a"), "a part of the name begins with '-'");
        assert_eq!(said("h/a\\"), "the name has a control character, a backslash, or one of '%?#'");
        assert_eq!(said("?/a"), "the name does not begin with a host");
        assert_eq!(RepoName::from_request_path(b"h/%ff").unwrap_err().to_string(), "the name is not UTF-8");
        let said = |text: &str| Upstream::parse(text).unwrap_err().to_string();
        assert_eq!(
            said("ext::x"),
            "this is no URL that git can fetch from: https, ssh, http, git, file, or user@host:path"
        );
        assert_eq!(
            said("https://u:p@h/r"),
            "a URL with a password in it is refused: give the mirror a credential instead"
        );
    }

    proptest! {
        #[test]
        fn any_name_is_harmless_and_reads_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = RepoName::from_request_path(&bytes) {
                prop_assert!(name.as_str().len() <= LONGEST);
                prop_assert!(name.as_str().split('/').count() >= 2);
                for part in name.as_str().split('/') {
                    prop_assert!(!matches!(part, "" | "." | "..") && !part.starts_with('-'));
                }
                prop_assert_eq!(&RepoName::parse(name.as_str()).unwrap(), &name);
                prop_assert_eq!(RepoName::from_request_path(name.url_path().as_bytes()).unwrap(), name);
            }
        }

        #[test]
        fn the_way_in_does_not_matter(host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", path in "[A-Za-z0-9_]{1,9}(/[A-Za-z0-9_.]{1,9}x){0,3}") {
            let expected = RepoName::parse(&format!("{host}/{path}")).unwrap();
            for url in [format!("https://{host}/{path}.git"), format!("ssh://git@{host}/{path}"), format!("git@{host}:{path}.git"),
                        format!("git://{host}:9418/{path}/"), format!("http://{host}:80/{path}")] {
                let upstream = Upstream::parse(&url).unwrap();
                prop_assert_eq!(upstream.name(), &expected, "{}", url);
                // What git is given names the same.
                let again = Upstream::parse(upstream.url()).unwrap();
                prop_assert_eq!(again, upstream);
            }
        }
    }
}
