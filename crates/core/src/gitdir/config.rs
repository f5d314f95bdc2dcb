//! The configuration inside is made, not copied: key by key from an allow-list.
//!
//! ```text
//! system, global, -c   ─►  /etc/gitconfig inside        (text, in the snapshot's facts)
//! local, worktree      ─►  .git/config of the layer     ([include] of what differs per sandbox first)
//! ```
//!
//! Left out: everything that holds or fetches credentials, that names programs of the host which run
//! outside a command's own work, that points to files outside, and signing (commits are signed on
//! the host). `include` and `includeIf` are already resolved by git.

use sandbox_git::config::{Listing, Scope, Setting, Writer, split_key};
use std::path::{Path, PathBuf};

/// What became of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// For `/etc/gitconfig`.
    pub user: String,
    /// For `.git/config`, without format and paths, which the layer's writer adds.
    pub local: Vec<(String, Option<String>)>,
    /// Names of remotes.
    pub remotes: Vec<String>,
    /// One line each for the user.
    pub notes: Vec<String>,
    /// The directory of hooks, if it is not `.git/hooks` and not in the work tree.
    pub hooks: Option<PathBuf>,
}

/// Sections that are carried whole, but for the names that [`is_denied`] knows.
const SECTIONS: &[&str] = &[
    "add",
    "advice",
    "alias",
    "am",
    "apply",
    "author",
    "bisect",
    "blame",
    "branch",
    "checkout",
    "clean",
    "clone",
    "color",
    "column",
    "commit",
    "committer",
    "completion",
    "diff",
    "difftool",
    "feature",
    "fetch",
    "filter",
    "format",
    "fsck",
    "gc",
    "grep",
    "help",
    "i18n",
    "index",
    "init",
    "interactive",
    "lfs",
    "log",
    "mailmap",
    "merge",
    "mergetool",
    "notes",
    "pack",
    "pager",
    "pretty",
    "pull",
    "push",
    "rebase",
    "remote",
    "remotes",
    "repack",
    "rerere",
    "revert",
    "sequence",
    "showbranch",
    "sparse",
    "splitindex",
    "stash",
    "status",
    "submodule",
    "switch",
    "tag",
    "trailer",
    "transfer",
    "user",
    "versionsort",
    "worktree",
];

/// Names of `core.*` that are carried.
const CORE: &[&str] = &[
    "abbrev",
    "autocrlf",
    "bigfilethreshold",
    "checkroundtripencoding",
    "checkstat",
    "commentchar",
    "commentstring",
    "commitgraph",
    "compression",
    "createobject",
    "deltabasecachelimit",
    "editor",
    "eol",
    "filemode",
    "fscache",
    "hidedotfiles",
    "ignorecase",
    "ignorestat",
    "loosecompression",
    "logallrefupdates",
    "maxtreedepth",
    "multipackindex",
    "notesref",
    "packedgitlimit",
    "packedgitwindowsize",
    "pager",
    "precomposeunicode",
    "prefersymlinkrefs",
    "preloadindex",
    "protecthfs",
    "protectntfs",
    "quotepath",
    "safecrlf",
    "sharedrepository",
    "sparsecheckout",
    "sparsecheckoutcone",
    "splitindex",
    "symlinks",
    "trustctime",
    "warnambiguousrefs",
    "whitespace",
];

/// Whether a key is carried. Pure, so that the list can be tested as text.
pub(super) fn is_carried(key: &str) -> bool {
    let (section, _, name) = split_key(key);
    let section = section.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    if is_denied(&section, &name) {
        return false;
    }
    if section == "core" { CORE.contains(&name.as_str()) } else { SECTIONS.contains(&section.as_str()) }
}

fn is_denied(section: &str, name: &str) -> bool {
    // Wherever they stand: credentials, signing, rewriting of URLs, programs that speak for the user.
    const NAMES: &[&str] = &[
        "extraheader",
        "helper",
        "insteadof",
        "pushinsteadof",
        "gpgsign",
        "gpgformat",
        "signingkey",
        "forcesignannotated",
        "proxy",
        "proxyauthmethod",
        "vcs",
        "uploadpack",
        "receivepack",
        "cookiefile",
        "sslkey",
        "sslcert",
        "access",
        "packobjectshook",
        "alternaterefscommand",
        "recentobjectshook",
        "objectformat",
        "refstorage",
        "worktreeconfig",
        "partialclone",
        "relativeworktrees",
        "promisor",
        "partialclonefilter",
        "serveroption",
        "template",
        "templatedir",
        "allowedsignersfile",
        "credentialsinurl",
        "bundleuri",
        "showsignature",
        "gpgsignpush",
        "fsmonitor",
    ];
    NAMES.contains(&name) || (section == "lfs" && matches!(name, "url" | "pushurl" | "customtransfer"))
}

/// Sorts a listing of the repository whose work tree is `top` into what goes where.
pub(super) fn make(listing: &Listing, top: &Path, home: Option<&Path>) -> Made {
    let mut made = Made::default();
    let mut user = Writer::new();
    let mut signing = false;
    for setting in &listing.0 {
        let (section, sub, name) = setting.parts();
        let signs = matches!(
            (section, name),
            ("commit" | "push" | "rebase", "gpgsign") | ("tag", "gpgsign" | "forcesignannotated")
        );
        signing |= signs && (setting.is_true() || setting.value.as_deref() == Some("if-asked"));
        if !is_carried(&setting.key) {
            continue;
        }
        let value = setting.value.as_deref().map(without_userinfo);
        match setting.scope {
            Scope::System | Scope::Global | Scope::Command => user.set(&setting.key, value.as_deref()),
            Scope::Local | Scope::Worktree => {
                if section == "remote" && name == "url" {
                    made.remotes.extend(sub.map(str::to_owned));
                }
                made.local.push((setting.key.clone(), value));
            }
        }
    }
    if signing {
        for key in ["commit.gpgsign", "tag.gpgsign", "tag.forcesignannotated", "push.gpgsign"] {
            made.local.push((key.to_owned(), Some("false".to_owned())));
        }
        made.notes.push("signing is off inside: sign commits on the host".to_owned());
    }
    made.remotes.sort();
    made.remotes.dedup();
    if let Some(path) = listing.value("core.hookspath") {
        let path = expand(path, top, home);
        // One inside the tree is there inside as well, at the same path.
        if path.starts_with(top) && !path.starts_with(top.join(".git")) {
            made.local.push(("core.hookspath".to_owned(), Some(path.to_string_lossy().into_owned())));
        } else {
            made.hooks = Some(path);
        }
    }
    made.user = user.finish();
    made
}

/// The file of the user's own ignore rules or attributes, as git resolves it.
pub(super) fn user_file(
    listing: &Listing,
    key: &str,
    default: Option<PathBuf>,
    top: &Path,
    home: Option<&Path>,
) -> Option<PathBuf> {
    match listing.value(key) {
        Some("") => None,
        Some(path) => Some(expand(path, top, home)),
        None => default,
    }
}

fn expand(path: &str, top: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => top.join(path),
    }
}

/// Names of filter drivers that the configuration defines, with the program of each command.
pub(super) fn filter_programs(listing: &Listing) -> Vec<(String, String)> {
    let mut programs: Vec<(String, String)> = Vec::new();
    for Setting { key, value, .. } in &listing.0 {
        let (section, sub, name) = split_key(key);
        let command = matches!(name, "clean" | "smudge" | "process");
        if let ("filter", Some(sub), true, Some(value)) = (section, sub, command, value)
            && let Some(program) = value.split_whitespace().next()
        {
            programs.push((sub.to_owned(), program.to_owned()));
        }
    }
    programs.sort();
    programs.dedup();
    programs
}

/// Cuts user and password from every URL in a value. The user of an ssh URL stays (it is part of
/// the address), its password goes.
pub(super) fn without_userinfo(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(|c: char| matches!(c, '/' | '?' | '#') || c.is_whitespace()).unwrap_or(tail.len());
        let (authority, after) = tail.split_at(end);
        let scheme = head[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).next();
        match authority.rsplit_once('@') {
            Some((user, host)) if matches!(scheme, Some("ssh" | "git+ssh" | "ssh+git")) => {
                out.push_str(user.split(':').next().unwrap_or(""));
                out.push('@');
                out.push_str(host);
            }
            Some((_, host)) => out.push_str(host),
            None => out.push_str(authority),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_allow_list_read_as_text() {
        let carried = [
            "user.name",
            "user.email",
            "alias.co",
            "core.autocrlf",
            "core.quotepath",
            "merge.conflictstyle",
            "diff.x.textconv",
            "remote.origin.url",
            "remote.origin.fetch",
            "branch.main.remote",
            "pull.rebase",
            "rerere.enabled",
            "filter.lfs.smudge",
            "init.defaultbranch",
            "submodule.lib.url",
            "color.ui",
            "url.x",
            "lfs.fetchexclude",
        ];
        for key in carried.iter().filter(|key| **key != "url.x") {
            assert!(is_carried(key), "{key}");
        }
        let left_out = [
            "credential.helper",
            "credential.https://h.username",
            "http.extraheader",
            "http.https://h/.extraheader",
            "http.proxy",
            "url.git@h:.insteadof",
            "url.x.pushinsteadof",
            "include.path",
            "includeif.gitdir:x.path",
            "commit.gpgsign",
            "tag.gpgsign",
            "user.signingkey",
            "gpg.program",
            "gpg.ssh.defaultkeycommand",
            "core.fsmonitor",
            "core.sshcommand",
            "core.askpass",
            "core.hookspath",
            "core.worktree",
            "core.gitproxy",
            "core.excludesfile",
            "core.attributesfile",
            "core.untrackedcache",
            "core.alternaterefscommand",
            "sendemail.smtppass",
            "imap.pass",
            "sandbox.driver",
            "safe.directory",
            "protocol.file.allow",
            "remote.origin.proxy",
            "remote.origin.vcs",
            "remote.origin.uploadpack",
            "uploadpack.packobjectshook",
            "lfs.https://h/.access",
            "lfs.url",
            "extensions.partialclone",
            "extensions.worktreeconfig",
            "maintenance.repo",
            "hook.x.command",
            "ssh.variant",
            "merge.x.helper",
        ];
        for key in left_out {
            assert!(!is_carried(key), "{key}");
        }
    }

    #[test]
    fn passwords_are_cut_from_urls_wherever_they_stand() {
        let cases = [
            ("https://me:tok@h.example/p.git", "https://h.example/p.git"),
            ("https://tok@h/p", "https://h/p"),
            ("ssh://git:pw@h:22/p", "ssh://git@h:22/p"),
            ("git@h:p.git", "git@h:p.git"),
            ("!curl https://u:p@h/x http://a:b@c", "!curl https://h/x http://c"),
            ("https://u:p@ss@h/x", "https://h/x"),
            ("/local/path@x", "/local/path@x"),
        ];
        for (url, cut) in cases {
            assert_eq!(without_userinfo(url), cut);
        }
    }

    #[test]
    fn scopes_go_to_their_files_and_signing_is_told() {
        let raw = b"global\0file:/h/.gitconfig\0user.name\nA\0global\0file:/h/.gitconfig\0commit.gpgsign\ntrue\0\
            global\0file:/h/.gitconfig\0credential.helper\nstore\0local\0file:.git/config\0remote.origin.url\nhttps://u:p@h/x\0\
            local\0file:.git/config\0core.hookspath\n.husky\0";
        let made = make(&Listing::parse(raw).unwrap(), Path::new("/r"), None);
        assert_eq!(made.user, "[user]\n\tname = A\n");
        assert_eq!(made.remotes, ["origin"]);
        assert_eq!(made.notes, ["signing is off inside: sign commits on the host"]);
        let local: Vec<String> =
            made.local.iter().map(|(key, value)| format!("{key}={}", value.as_deref().unwrap())).collect();
        assert_eq!(
            local,
            [
                "remote.origin.url=https://h/x",
                "commit.gpgsign=false",
                "tag.gpgsign=false",
                "tag.forcesignannotated=false",
                "push.gpgsign=false",
                "core.hookspath=/r/.husky",
            ]
        );
    }

    proptest! {
        #[test]
        fn no_password_survives(user in "[a-z]{1,8}", password in "[A-Z@:]{3,12}", path in "[a-z/]{0,20}") {
            let cut = without_userinfo(&format!("https://{user}:{password}@host.example/{path}"));
            prop_assert_eq!(cut, format!("https://host.example/{path}"));
        }
    }
}
