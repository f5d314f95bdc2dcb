//! Writing one git directory into the layer.

use super::config::{self, Made as Config};
use super::operation;
use super::survey::Survey;
use super::{Captured, GitDirError, Request, failed, relative, view_inside};
use crate::host_repo::HostRepo;
use crate::launch::INSIDE;
use crate::view::View;
use sandbox_git::ObjectFormat;
use sandbox_git::config::Writer;
use sandbox_git::index::{Index, Stat};
use sandbox_git::refs::{Head, write_packed};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Hooks larger than this, or more than this many, are not carried: a hooks directory of the user
/// can be anything.
const HOOK_LIMITS: (u64, usize) = (4 * 1024 * 1024, 256);

/// Where a git directory goes.
pub(super) struct Place<'a> {
    /// The layer.
    pub layer: &'a Path,
    /// The work tree, relative to the top.
    pub at: PathBuf,
    /// The git directory, relative to the top.
    pub gitdir: PathBuf,
    /// The top of the main work tree, the same inside as outside.
    pub top: &'a Path,
}

impl Place<'_> {
    fn dir(&self) -> PathBuf {
        self.layer.join(&self.gitdir)
    }

    fn inside(&self) -> PathBuf {
        self.top.join(&self.gitdir)
    }

    /// The git directory is not `.git` of its work tree.
    fn is_apart(&self) -> bool {
        self.gitdir != self.at.join(".git")
    }
}

pub(super) fn write(
    request: &Request<'_>,
    host: &HostRepo,
    survey: &Survey,
    made: &Config,
    view: &View,
    place: &Place<'_>,
) -> Result<(), GitDirError> {
    let out = Out { dir: place.dir() };
    out.skeleton(view)?;
    if place.is_apart() {
        let text = format!("gitdir: {}\n", relative(&place.at, &place.gitdir).display());
        let file = place.layer.join(&place.at).join(".git");
        make_parent(&file)?;
        fs::write(&file, text).map_err(failed("write", &file))?;
    }
    out.refs(survey)?;
    out.logs(survey)?;
    if let Some(file) = &survey.index {
        match &file.index {
            Some(_) => {
                let prefix = place.at.as_os_str().as_bytes();
                out.index(host, survey, request.captured, prefix)?;
            }
            None => out.file("index", &file.raw)?,
        }
        out.set_modified("index", file.modified)?;
    }
    let (own, common) = (host.git_dir(), host.common_dir());
    for name in ["info/exclude", "info/attributes", "info/grafts"] {
        out.copy(&common.join(name), name)?;
    }
    out.copy(&own.join("info/sparse-checkout"), "info/sparse-checkout")?;
    if survey.wanted.shallow.is_empty() {
        // An empty file would still mean "shallow" to some commands.
    } else {
        out.copy(&common.join("shallow"), "shallow")?;
    }
    for name in operation::FILES {
        out.copy(&own.join(name), name)?;
    }
    if let Some(orig) = fs::read(own.join("ORIG_HEAD")).ok().and_then(|text| sandbox_git::Oid::parse(text.trim_ascii()))
        && survey.granted.contains(&orig)
    {
        out.copy(&own.join("ORIG_HEAD"), "ORIG_HEAD")?;
    }
    for name in operation::DIRS {
        out.copy_tree(&own.join(name), name)?;
    }
    out.copy_tree(&common.join("rr-cache"), "rr-cache")?;
    out.copy_tree(&common.join("lfs/objects"), "lfs/objects")?;
    let hooks = made.hooks.clone().unwrap_or_else(|| common.join("hooks"));
    out.hooks(&hooks)?;
    let rules = out.user_rules(request, survey, place)?;
    out.file("config", config_text(survey, made, view, place, &rules).as_bytes())
}

/// The generated `.git/config`.
fn config_text(survey: &Survey, made: &Config, view: &View, place: &Place<'_>, rules: &[(String, String)]) -> String {
    let mut writer = Writer::new();
    writer.comment("made by git-sandbox; what the host's file says of credentials, signing and programs is left out");
    writer.set("include.path", Some(&format!("{INSIDE}/repo.config")));
    let sha256 = view.format() == ObjectFormat::Sha256;
    let version = if sha256 || view.is_partial() { "1" } else { "0" };
    writer.set("core.repositoryformatversion", Some(version));
    writer.set("core.bare", Some("false"));
    if place.is_apart() {
        let worktree = relative(&place.gitdir, &place.at);
        writer.set("core.worktree", Some(&worktree.to_string_lossy()));
    }
    if survey.index.as_ref().is_some_and(|file| file.index.is_none()) {
        // The stat data of this index could not be rewritten: compare only what the copy keeps.
        writer.set("core.checkstat", Some("minimal"));
        writer.set("core.trustctime", Some("false"));
    }
    for (key, path) in rules {
        writer.set(key, Some(path));
    }
    if sha256 {
        writer.set("extensions.objectformat", Some("sha256"));
    }
    if view.is_partial() {
        writer.set("extensions.partialclone", Some("host"));
        writer.set("remote.host.promisor", Some("true"));
    }
    for (key, value) in &made.local {
        writer.set(key, value.as_deref());
    }
    writer.finish()
}

pub(super) struct Out {
    pub dir: PathBuf,
}

impl Out {
    pub fn skeleton(&self, view: &View) -> Result<(), GitDirError> {
        for part in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "info", "logs", "hooks"] {
            let path = self.dir.join(part);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        self.file("objects/info/alternates", format!("{}\n", view_inside(view.key())).as_bytes())
    }

    fn refs(&self, survey: &Survey) -> Result<(), GitDirError> {
        let head = match &survey.refs.head {
            Some(Head::Branch(name)) => [b"ref: ", name.as_bytes(), b"\n"].concat(),
            Some(Head::Detached(oid)) => format!("{oid}\n").into_bytes(),
            None => b"ref: refs/heads/main\n".to_vec(),
        };
        self.file("HEAD", &head)?;
        let packed = write_packed(survey.visible.iter().map(|(name, (oid, peeled))| (name, *oid, *peeled)));
        self.file("packed-refs", &packed)?;
        for (name, to) in &survey.symbolic {
            self.file(os(name.as_bytes()), &[b"ref: ", to.as_bytes(), b"\n"].concat())?;
        }
        // Refs of one work tree are never packed.
        for (name, oid) in &survey.own {
            self.file(os(name.as_bytes()), format!("{oid}\n").as_bytes())?;
        }
        Ok(())
    }

    fn logs(&self, survey: &Survey) -> Result<(), GitDirError> {
        for (name, text) in &survey.logs {
            self.file(Path::new("logs").join(name), text)?;
        }
        Ok(())
    }

    /// Writes the index with the stat data of the captured copies: only where the host's file was
    /// what the index says, so that what git would look at there it looks at here, and nothing else.
    fn index(
        &self,
        host: &HostRepo,
        survey: &Survey,
        captured: &dyn Captured,
        prefix: &[u8],
    ) -> Result<(), GitDirError> {
        let Some(index) = survey.index.as_ref().and_then(|file| file.index.as_ref()) else { return Ok(()) };
        let mut new = Index::parse(index.bytes().to_vec(), host.format())?;
        let mut path = Vec::new();
        for i in 0..new.entries().len() {
            let entry = &new.entries()[i];
            if entry.stage != 0 || !matches!(entry.mode & 0o170000, 0o100000 | 0o120000) {
                continue;
            }
            path.clear();
            if !prefix.is_empty() {
                path.extend_from_slice(prefix);
                path.push(b'/');
            }
            path.extend_from_slice(&entry.path);
            if let Some(carried) = captured.file(&path)
                && entry.stat.matches(&carried.host)
            {
                // The recorded fraction of a second stays: a git that compares it sees what it saw.
                let stat = Stat { mtime: entry.stat.mtime, ..carried.layer };
                new.set_stat(i, stat);
            }
        }
        self.file("index", &new.finish())
    }

    /// The user's ignore rules and attributes live outside the tree: copies of them go along.
    fn user_rules(
        &self,
        request: &Request<'_>,
        survey: &Survey,
        place: &Place<'_>,
    ) -> Result<Vec<(String, String)>, GitDirError> {
        let env = request.git.env();
        let mut rules = Vec::new();
        for (key, name) in [("core.excludesfile", "ignore"), ("core.attributesfile", "attributes")] {
            let file = config::user_file(&survey.listing, key, env.xdg_file(name), place.top, env.home.as_deref());
            let Some(bytes) = file.and_then(|file| fs::read(file).ok()) else { continue };
            let relative = Path::new("git-sandbox").join(name);
            self.file(&relative, &bytes)?;
            rules.push((key.to_owned(), place.inside().join(relative).to_string_lossy().into_owned()));
        }
        Ok(rules)
    }

    fn hooks(&self, from: &Path) -> Result<(), GitDirError> {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        for entry in entries.flatten().take(HOOK_LIMITS.1) {
            let name = entry.file_name();
            let small = fs::metadata(entry.path()).is_ok_and(|m| m.is_file() && m.len() <= HOOK_LIMITS.0);
            if small && !name.as_bytes().ends_with(b".sample") {
                self.copy(&entry.path(), Path::new("hooks").join(&name))?;
            }
        }
        Ok(())
    }

    pub fn file(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<(), GitDirError> {
        let path = self.dir.join(name);
        make_parent(&path)?;
        fs::write(&path, bytes).map_err(failed("write", &path))
    }

    fn set_modified(&self, name: &str, time: std::time::SystemTime) -> Result<(), GitDirError> {
        let path = self.dir.join(name);
        let file = fs::File::options().write(true).open(&path).map_err(failed("open", &path))?;
        file.set_modified(time).map_err(failed("change", &path))
    }

    /// Copies a file if there is one; its permissions go along.
    fn copy(&self, from: &Path, name: impl AsRef<Path>) -> Result<(), GitDirError> {
        if !fs::metadata(from).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(());
        }
        let path = self.dir.join(name);
        make_parent(&path)?;
        match fs::copy(from, &path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("copy", from)(error)),
        }
    }

    /// Copies the regular files of a directory, if there is one.
    fn copy_tree(&self, from: &Path, name: &str) -> Result<(), GitDirError> {
        let mut open = vec![(from.to_owned(), PathBuf::from(name))];
        while let Some((from, to)) = open.pop() {
            let Ok(entries) = fs::read_dir(&from) else { continue };
            let path = self.dir.join(&to);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
            for entry in entries.flatten() {
                let to = to.join(entry.file_name());
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => open.push((entry.path(), to)),
                    Ok(kind) if kind.is_file() => self.copy(&entry.path(), to)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn os(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn make_parent(path: &Path) -> Result<(), GitDirError> {
    match path.parent() {
        Some(dir) => fs::create_dir_all(dir).map_err(failed("create", dir)),
        None => Ok(()),
    }
}

/// Gives the layer to its owner and lets the directories on the way to nested repositories look as
/// they do on the host: the layer is uppermost, so its directories are what is seen.
pub(super) fn settle(
    layer: &Path,
    top: &Path,
    nested: &[PathBuf],
    owner: Option<(u32, u32)>,
) -> Result<(), GitDirError> {
    if let Some((uid, gid)) = owner {
        let mut open = vec![layer.to_owned()];
        while let Some(path) = open.pop() {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
            if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
                open.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
    }
    let mut shared: Vec<&Path> = nested.iter().flat_map(|path| path.ancestors()).chain([Path::new("")]).collect();
    shared.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    shared.dedup();
    for path in shared {
        let (target, source) = (layer.join(path), top.join(path));
        let Ok(metadata) = fs::symlink_metadata(&source) else { continue };
        if !target.is_dir() {
            continue;
        }
        // Never less than its owner needs, and no set-id bit.
        let mode = metadata.mode() & 0o777 | 0o700;
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).map_err(failed("change", &target))?;
        if let Ok(modified) = metadata.modified() {
            let dir = fs::File::open(&target).map_err(failed("open", &target))?;
            dir.set_modified(modified).map_err(failed("change", &target))?;
        }
    }
    Ok(())
}
