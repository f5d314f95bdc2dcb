//! `spawn --from-mirror URL[@REF]`: a commit of an upstream, from the mirror or without it, for a sandbox to stand on.
//!
//! ```text
//! in a repository that has this upstream ─► the commit is fetched into it; its sandboxes are that repository's
//! anywhere else ─► <state>/mirrored/<name>/<last part>, a bare repository of ours with that commit alone (depth 1):
//!                  what is a repository on the host for every verb, and no working tree for any
//! ```

use crate::context::Context;
use crate::error::CliError;
use crate::plumbing::mirror::Leads;
use crate::text::escape;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, make_dir, read_json};
use sandbox_git::{GitCommand, Oid};
use sandbox_mirror::client::Why;
use sandbox_mirror::client::clone::{At, command, find};
use sandbox_mirror::client::front::Fronted;
use sandbox_mirror::client::plan::{Asked, Mirror, plan};
use sandbox_mirror::client::probe::PROBE;
use sandbox_mirror::client::session::Grant;
use sandbox_mirror::client::settings::Setting;
use sandbox_mirror::layout::stem;
use sandbox_mirror::name::Upstream;
use sandbox_sys::lock::FileLock;
use std::path::{Path, PathBuf};

/// What a sandbox is made of.
pub struct Source {
    /// The repository on this machine.
    pub repo: HostRepo,
    /// The revision in it.
    pub revision: String,
    /// `URL@REF`, where the repository is ours and has no working tree.
    pub upstream: Option<String>,
}

/// A ref of the upstream, and the commit that it is at.
struct Found {
    oid: String,
    /// `refs/…`; of a commit that was named by its id, none.
    name: Option<String>,
}

/// Where it is fetched from.
struct From<'a> {
    url: &'a str,
    settings: Vec<Setting>,
    mirror: bool,
    /// Lives as long as it is fetched from.
    _front: Option<Fronted>,
}

impl From<'_> {
    fn git(&self, context: &Context, dir: &Path) -> Result<GitCommand, CliError> {
        Ok(command(context.git()?, dir, &self.settings, self.mirror))
    }
}

/// Takes the commit that `text` names.
pub fn take(context: &Context, store: &Store, text: &str) -> Result<Source, CliError> {
    let (url, reference) = split(text);
    let bad = |why: String| {
        CliError::usage(format!("'{}' is not an upstream and a ref of it", escape(text)))
            .cause(why)
            .hint("for example https://github.com/git/git@master")
    };
    let upstream = Upstream::parse(url).map_err(|error| bad(error.to_string()))?;
    if let Some(name) = reference
        && (name.starts_with('-') || sandbox_git::RefName::parse(format!("refs/heads/{name}")).is_none())
    {
        return Err(bad(format!("'{}' is not the name of a ref", escape(name))));
    }
    store.writable()?;
    let at = super::at(context, None, PROBE)?;
    let at = match (at, reference.and_then(|name| name.strip_prefix("refs/agents/"))) {
        // Only the session itself may read what it recorded; who may grant sessions may ask as one.
        (Some(at), Some(rest)) if context.setting("sandbox.mirrorAdmin").is_some() => {
            Some(as_session(context, store, at, rest, &upstream)?)
        }
        (at, _) => at,
    };
    let asked = Asked { url: url.to_owned(), quiet: true, ..Asked::default() };
    let found = at.as_ref().ok_or(Why::None).and_then(|at| find(at, &asked));
    let why = match found {
        Ok((mirror, front)) => {
            let settings = with(&asked, &mirror);
            match fetch(context, store, &From { url, settings, mirror: true, _front: front }, &upstream, reference) {
                Ok(source) => return Ok(source),
                // Scratch refs are nowhere else.
                Err(error) if scratch(reference) => return Err(error),
                Err(error) => error.causes.first().unwrap_or(&error.message).clone(),
            }
        }
        Err(why) if scratch(reference) => {
            return Err(CliError::new(format!("cannot fetch '{}'", escape(text)))
                .cause(escape(&why.to_string()))
                .hint(
                    "what sessions recorded is on the mirror alone: `git config sandbox.mirror` says where that is",
                ));
        }
        Err(why) => why.to_string(),
    };
    if at.is_some() {
        eprintln!("note: from the upstream: {}", escape(&why));
    }
    fetch(context, store, &From { url, settings: Vec::new(), mirror: false, _front: None }, &upstream, reference)
}

fn scratch(reference: Option<&str>) -> bool {
    reference.is_some_and(|name| name.starts_with("refs/agents/"))
}

fn with(asked: &Asked, mirror: &Mirror) -> Vec<Setting> {
    plan(asked, Ok(mirror)).settings
}

/// The mirror, asked as the session whose ref it is.
fn as_session(context: &Context, store: &Store, at: At, rest: &str, upstream: &Upstream) -> Result<At, CliError> {
    let id = super::env::session_id(rest.split('/').next().unwrap_or_default())?;
    // One of a sandbox here has a token, which a new one would take the place of.
    let ours = |sandbox: &Sandbox| {
        let session = sandbox.record.mirror.as_ref().and_then(|mirror| mirror.session.as_deref());
        session == Some(id.as_str())
    };
    if let Some(sandbox) = Sandbox::all(store, None)?.into_iter().find(ours)
        && let Some(leads) = read_json::<Leads>(&sandbox.dir.mirror())?
        && leads.bearer.is_some()
    {
        return Ok(At { bearer: leads.bearer, ..at });
    }
    Ok(match super::grant_session(context, &id, &[upstream.name().clone()], None)? {
        Grant::At(endpoint) => At { endpoint, ..at },
        Grant::Token(token) => At { bearer: Some(token), ..at },
    })
}

/// The URL and, after an `@` in its path, the ref.
fn split(text: &str) -> (&str, Option<&str>) {
    let path = match text.find("://") {
        Some(scheme) => text[scheme + 3..].find('/').map(|at| scheme + 3 + at),
        None if text.starts_with('/') => Some(0),
        None => text.find(':'),
    };
    let at = path.and_then(|path| text[path..].find('@').map(|at| path + at));
    at.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])))
}

fn fetch(
    context: &Context,
    store: &Store,
    from: &From<'_>,
    upstream: &Upstream,
    reference: Option<&str>,
) -> Result<Source, CliError> {
    let found = look(context, from, reference)?;
    let here = match context.maybe_repo() {
        Some(repo) => {
            let same = |(_, url): &(String, String)| Upstream::parse(url).is_ok_and(|of| of.name() == upstream.name());
            super::remotes(context, repo)?.iter().any(same).then_some(repo)
        }
        None => None,
    };
    if let Some(repo) = here {
        bring(context, from, repo, &found.oid, &[])?;
        return Ok(Source { repo: repo.clone(), revision: found.oid, upstream: None });
    }
    let dir = place(store, upstream);
    let parent = dir.parent().unwrap_or(store.root());
    make_dir(parent)?;
    let lock = parent.join("lock");
    let _lock = FileLock::exclusive(&lock).map_err(CliError::io(format!("lock '{}'", lock.display())))?;
    let repo = open(context, &dir, from.url, &found.oid)?;
    bring(context, from, &repo, &found.oid, &["--depth=1"])?;
    // The name that it has there, or one that keeps it.
    let name = match &found.name {
        Some(name) if name.starts_with("refs/heads/") || name.starts_with("refs/tags/") => name.clone(),
        _ => format!("refs/mirrored/{}", found.oid),
    };
    repo.write(context.git()?).args(["update-ref", &name, &found.oid]).run()?;
    let shown = reference.or(found.name.as_deref().map(|name| name.trim_start_matches("refs/heads/")));
    let shown = shown.map_or_else(|| from.url.to_owned(), |name| format!("{}@{name}", from.url));
    let revision = match name.strip_prefix("refs/heads/") {
        Some(branch) => branch.to_owned(),
        None => found.oid,
    };
    Ok(Source { repo, revision, upstream: Some(shown) })
}

/// Where the repository is that stands for an upstream here.
fn place(store: &Store, upstream: &Upstream) -> PathBuf {
    let last = upstream.name().path().rsplit('/').next().unwrap_or("repository");
    let last: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' }).collect();
    store.mirrored().join(stem(upstream.name())).join(last)
}

/// Opens it, made when it is not there yet.
fn open(context: &Context, dir: &Path, url: &str, oid: &str) -> Result<HostRepo, CliError> {
    let git = context.git()?;
    if !dir.join("HEAD").exists() {
        let format = if oid.len() == 64 { "sha256" } else { "sha1" };
        let format = format!("--object-format={format}");
        git.anywhere().args(["init", "--quiet", "--bare", "--template=", &format]).arg(dir).run()?;
        // Last: without it nobody would know what it is of.
        git.host(dir).args(["config", "remote.origin.url", url]).run()?;
    }
    Ok(HostRepo::from_git_dir(dir)?)
}

/// The commit of a ref at the upstream.
fn look(context: &Context, from: &From<'_>, reference: Option<&str>) -> Result<Found, CliError> {
    if let Some(oid) = reference.and_then(Oid::parse) {
        return Ok(Found { oid: oid.to_string(), name: None });
    }
    let wanted = match reference {
        None => vec!["HEAD".to_owned()],
        Some(name) if name.starts_with("refs/") => vec![name.to_owned()],
        Some(name) => vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")],
    };
    let command = from.git(context, Path::new("/"))?.args(["ls-remote", "--symref", "--", from.url]).args(&wanted);
    let out = command.output()?.stdout;
    let out = String::from_utf8_lossy(&out);
    let lines: Vec<(&str, &str)> = out.lines().filter_map(|line| line.split_once('\t')).collect();
    let symref = lines.iter().find_map(|(to, name)| to.strip_prefix("ref: ").filter(|_| *name == "HEAD"));
    let found = wanted.iter().find_map(|name| {
        let line = lines.iter().find(|(oid, known)| known == name && Oid::parse(oid).is_some());
        line.map(|(oid, _)| Found { oid: (*oid).to_owned(), name: symref.map(str::to_owned).or(Some(name.clone())) })
    });
    found.ok_or_else(|| {
        let what = reference.map_or("a default branch".to_owned(), |name| format!("'{}'", escape(name)));
        CliError::new(format!("'{}' has no {what}", escape(from.url)))
            .hint(format!("`git ls-remote {}` lists what it has", escape(from.url)))
    })
}

/// Has the commit in a repository, fetched if it is not there.
fn bring(context: &Context, from: &From<'_>, repo: &HostRepo, oid: &str, more: &[&str]) -> Result<(), CliError> {
    let git = context.git()?;
    let (there, _) = repo.read(git).args(["cat-file", "-e", &format!("{oid}^{{commit}}")]).try_output()?;
    if there.success() {
        return Ok(());
    }
    let fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"];
    let command = from.git(context, repo.top_or_gitdir())?.as_user(repo.foreign_owner());
    Ok(command.args(fetch).args(more).args(["--", from.url, oid]).run()?)
}

/// Refuses a verb that needs a working tree for sandboxes that are of an upstream alone.
pub fn refuse(context: &Context, store: &Store, names: &[String], verb: &str) -> Result<(), CliError> {
    for name in names {
        let found = context.sandbox(store, name);
        let found = found.or_else(|error| Sandbox::find(store, None, name).map_err(|_| error));
        let Ok(sandbox) = found else { continue };
        let Some(upstream) = &sandbox.record.upstream else { continue };
        let mut error = CliError::new(format!("cannot {verb} '{}'", escape(name)))
            .cause(format!("it is of '{}', which has no working tree here", escape(upstream)));
        if let Some(session) = sandbox.record.mirror.as_ref().and_then(|mirror| mirror.session.as_ref()) {
            error = error.hint(format!("what was recorded is refs/agents/{} on the mirror", escape(session)));
        }
        return Err(error.hint(format!(
            "in a clone of it, `git fetch '{}' refs/sandbox/{}` takes its commits",
            sandbox.mount().worktree.display(),
            escape(name)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_follows_the_first_at_sign_of_the_path() {
        for (text, url, name) in [
            ("https://h/o/n", "https://h/o/n", None),
            ("https://h/o/n@feature/x@1", "https://h/o/n", Some("feature/x@1")),
            ("ssh://git@h/o/n", "ssh://git@h/o/n", None),
            ("git@h:o/n@refs/agents/s", "git@h:o/n", Some("refs/agents/s")),
            ("/srv/n@v1", "/srv/n", Some("v1")),
        ] {
            assert_eq!(split(text), (url, name), "{text}");
        }
    }
}
