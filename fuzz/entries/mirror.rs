// What must hold of any bytes; panics if it does not.

use sandbox_mirror::name::{LONGEST, RepoName, Upstream};

/// A name that is accepted means nothing to a file system, and has one spelling.
pub fn repo_name(bytes: &[u8]) {
    let Ok(name) = RepoName::from_request_path(bytes) else { return };
    check(&name);
    assert_eq!(RepoName::from_request_path(name.url_path().as_bytes()).as_ref(), Ok(&name), "through a URL and back");
    assert_eq!(RepoName::parse(&format!("{name}.git")).as_ref(), Ok(&name));
}

fn check(name: &RepoName) {
    let text = name.as_str();
    assert!(text.len() <= LONGEST && text.contains('/'), "{text:?}");
    assert!(!text.chars().any(|c| c.is_control() || matches!(c, '\\' | '%')), "{text:?}");
    for part in text.split('/') {
        assert!(!matches!(part, "" | "." | "..") && !part.starts_with('-'), "{text:?}");
    }
    assert_eq!(name.host(), name.host().to_ascii_lowercase());
    assert_eq!(format!("{}/{}", name.host(), name.path()), text);
    assert_eq!(RepoName::parse(text).as_ref(), Ok(name), "one spelling");
}

/// A URL that is accepted starts no program, carries no password, and reads back as itself.
pub fn upstream(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let upstream = match Upstream::parse(text) {
        Ok(upstream) => upstream,
        Err(error) => return assert!(!error.to_string().chars().any(char::is_control), "{error:?}"),
    };
    check(upstream.name());
    let url = upstream.url();
    assert!(!url.starts_with('-') && !url.chars().any(char::is_control), "{url:?}");
    // `ext::…` names a program (gitremote-helpers(7)).
    let scheme = url.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    assert!(!scheme.starts_with("::"), "{url:?}");
    assert_eq!(Upstream::parse(url).as_ref(), Ok(&upstream), "{url:?}");
}
