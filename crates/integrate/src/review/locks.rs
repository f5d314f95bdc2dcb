//! Lock files: what is downloaded, and from where.

use super::Finding;
use super::paths::matches;
use crate::path::RepoPath;
use std::collections::BTreeSet;

const LOCKS: &[&str] = &[
    "Cargo.lock",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "bun.lock",
    "bun.lockb",
    "deno.lock",
    "poetry.lock",
    "uv.lock",
    "Pipfile.lock",
    "pdm.lock",
    "requirements*.txt",
    "Gemfile.lock",
    "composer.lock",
    "go.sum",
    "go.mod",
    "flake.lock",
    "Package.resolved",
    "mix.lock",
];

pub(super) fn look(path: &RepoPath, old: Option<&[u8]>, new: &[u8], all: &mut Vec<Finding>) {
    const WHEN: &str = "at the next install or build";
    if !LOCKS.iter().any(|pattern| matches(path, pattern)) {
        return;
    }
    all.push(Finding::amber(path, "pins what is downloaded").when(WHEN));
    // Of a file that was not there, every host is new: nothing to compare with.
    let Some(old) = old else { return };
    let known = hosts(old);
    for host in hosts(new).difference(&known) {
        all.push(Finding::red(path, format!("downloads from '{host}', from which it did not before")).when(WHEN));
    }
}

/// Hosts of all URLs in a text, and of `git@host:path`.
pub(super) fn hosts(text: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(text);
    let mut hosts = BTreeSet::new();
    for (at, _) in text.match_indices("://") {
        hosts.extend(host(&text[at + 3..]));
    }
    for (at, _) in text.match_indices("git@") {
        let rest = &text[at + 4..];
        hosts.extend(host(rest).filter(|host| rest[host.len()..].starts_with(':')));
    }
    hosts
}

/// The host at the start of what follows `://`, in lower case, without user and port.
fn host(rest: &str) -> Option<String> {
    let end = rest.find(|c: char| c.is_whitespace() || "/?#\"'<>(),;\\".contains(c)).unwrap_or(rest.len());
    let authority = &rest[..end];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}
