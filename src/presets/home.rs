//! What goes from the host's home into the private one: decided first, as a list that tests read,
//! then written.
//!
//! ```text
//! config      copied, files and directories; links are followed, as dotfiles are kept elsewhere
//! parts       only some keys of a JSON file that also holds what is nobody's business
//! login       the same two, only if the user said so (see `login`)
//! home-file   what `--home-file` names
//! ```
//!
//! A configuration file that holds something like a key counts as part of the login. Never copied:
//! sockets and the like, links into directories of credentials, conversations.

use super::Preset;
use crate::context::Context;
use crate::error::CliError;
use crate::text::{count, escape, escape_bytes, size, tilde};
use sandbox_core::host_view::{holds_credentials, names_a_credential};
use sandbox_core::launch::User;
use serde_json::{Map, Value};
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Bytes that one preset may carry.
const MAX_BYTES: u64 = 64 << 20;
/// Files and directories that one preset may carry.
const MAX_ITEMS: usize = 20_000;
/// Directories below one another.
const MAX_DEPTH: usize = 16;
/// A structured file of at most this many bytes is looked through for keys.
const MAX_LOOKED_AT: u64 = 1 << 20;

/// One thing to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Where, relative to the home.
    pub at: PathBuf,
    /// What.
    pub what: What,
}

/// What is written.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A directory with these permissions.
    Directory(u32),
    /// A copy of a file, with these permissions.
    Copy {
        /// Its real path.
        source: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Keys of a JSON object, put into the file that is there.
    Keys(Map<String, Value>),
}

/// What was found for a preset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Configuration.
    pub config: Vec<Item>,
    /// The login.
    pub login: Vec<Item>,
    /// What is left out, and why; paths on the host.
    pub left_out: Vec<(PathBuf, &'static str)>,
    bytes: u64,
}

impl Found {
    /// How many files of it are configuration.
    pub fn config_files(&self) -> usize {
        self.config.iter().filter(|item| !matches!(item.what, What::Directory(_))).count()
    }
}

/// Looks at what a preset names. Nothing is written.
pub fn look(context: &Context, preset: &Preset, tree: &Path) -> Found {
    let mut walk = Walk::new(&context.home, MAX_BYTES, true);
    walk.keeps = preset.keeps.iter().map(PathBuf::from).collect();
    walk.login = preset.credentials.files.iter().map(PathBuf::from).collect();
    for path in preset.config.iter().chain(&preset.credentials.files) {
        walk.visit(&preset.on_host(context, path), Path::new(path), 0);
    }
    let mut found = walk.found;
    for (parts, login) in [(&preset.parts, false), (&preset.credentials.parts, true)] {
        for (file, keys) in parts {
            let source = preset.on_host(context, file);
            match some_keys(&source, keys, tree) {
                Ok(picked) if picked.is_empty() => {}
                Ok(picked) => {
                    let item = Item { at: file.into(), what: What::Keys(picked) };
                    if login { found.login.push(item) } else { found.config.push(item) }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => found.left_out.push((source, "not a JSON object")),
            }
        }
    }
    found
}

/// Resolves what `--home-file` names to items at the same place below the private home.
pub fn asked(context: &Context, paths: &[PathBuf]) -> Result<Vec<Item>, CliError> {
    let mut items = Vec::new();
    for path in paths {
        let shown = escape_bytes(path.as_os_str().as_bytes());
        let relative = below_home(&context.home, path).ok_or_else(|| {
            CliError::usage(format!("'{shown}' is not below your home"))
                .hint("`--home-file PATH`: a path relative to the home, or an absolute one below it, without '..'")
        })?;
        let source = context.home.join(&relative);
        let meta = source.metadata().map_err(|error| {
            CliError::usage(format!("cannot read '{shown}'"))
                .cause(error.to_string())
                .hint("`--home-file PATH` names a file or a directory in your home")
        })?;
        if !meta.is_file() && !meta.is_dir() {
            return Err(CliError::usage(format!("'{shown}' is neither a file nor a directory"))
                .hint("only those can be copied"));
        }
        let state = context.state_dir()?;
        if meta.is_dir() && (state.starts_with(&source) || source.starts_with(&state)) {
            return Err(
                CliError::usage(format!("'{shown}' holds the state directory")).hint("name the files that are needed")
            );
        }
        let mut walk = Walk::new(&context.home, u64::MAX, false);
        walk.visit(&source, &relative, 0);
        if let Some((left, why)) = walk.found.left_out.iter().find(|(left, _)| *left == source) {
            return Err(CliError::usage(format!("cannot carry '{}'", escape(&tilde(left, &context.home)))).cause(*why));
        }
        items.extend(walk.found.config);
    }
    Ok(items)
}

/// Makes a path relative to the home; `None` if it is not below it.
pub fn below_home(home: &Path, path: &Path) -> Option<PathBuf> {
    // `--home-file=~/x` is not expanded by every shell.
    let path = path.strip_prefix("~").unwrap_or(path);
    let relative = if path.is_absolute() { path.strip_prefix(home).ok()? } else { path };
    let clean: PathBuf = relative.components().filter(|c| !matches!(c, Component::CurDir)).collect();
    let normal = clean.components().all(|c| matches!(c, Component::Normal(_)));
    (normal && !clean.as_os_str().is_empty()).then_some(clean)
}

/// Walks over files of the home.
struct Walk<'a> {
    home: &'a Path,
    /// Bytes at most.
    limit: u64,
    /// Files and directories at most.
    most: usize,
    /// Whether what looks like a login is told apart.
    classify: bool,
    keeps: Vec<PathBuf>,
    /// What the preset says is the login.
    login: Vec<PathBuf>,
    found: Found,
    /// Real directories that this one is in: a link may lead back to one.
    inside: Vec<(u64, u64)>,
}

impl<'a> Walk<'a> {
    fn new(home: &'a Path, limit: u64, classify: bool) -> Self {
        let (keeps, login, inside) = (Vec::new(), Vec::new(), Vec::new());
        let most = if classify { MAX_ITEMS } else { usize::MAX };
        Self { home, limit, most, classify, keeps, login, found: Found::default(), inside }
    }

    fn visit(&mut self, source: &Path, at: &Path, depth: usize) {
        if self.keeps.iter().any(|keep| at.starts_with(keep)) {
            return;
        }
        let Ok(meta) = source.metadata() else {
            // Not there: most people have not got all of it. A link that leads nowhere is told.
            if source.symlink_metadata().is_ok() {
                self.leave(source, "cannot be read");
            }
            return;
        };
        let real = source.canonicalize().unwrap_or_else(|_| source.to_owned());
        let linked = real != source && source.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        if linked && (holds_credentials(self.home, &real) || self.home.starts_with(&real)) {
            return self.leave(source, "a link to where credentials are");
        }
        if self.found.config.len() + self.found.login.len() >= self.most {
            return self.leave(source, "over the limit of 20000 files");
        }
        if meta.is_dir() {
            let id = (meta.dev(), meta.ino());
            if depth >= MAX_DEPTH || self.inside.contains(&id) {
                return self.leave(source, "too deep, or a link in a circle");
            }
            let Ok(entries) = fs::read_dir(source) else { return self.leave(source, "cannot be read") };
            self.put(at, What::Directory(meta.mode() & 0o777 | 0o700), false);
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
            names.sort();
            self.inside.push(id);
            for name in names {
                self.visit(&source.join(&name), &at.join(&name), depth + 1);
            }
            self.inside.pop();
        } else if meta.is_file() {
            if open(&real).is_err() {
                return self.leave(source, "cannot be read");
            }
            if self.found.bytes.saturating_add(meta.len()) > self.limit {
                return self.leave(source, "over the limit of 64 MiB");
            }
            let login = self.login.iter().any(|path| at.starts_with(path)) || self.classify && is_login(source, &meta);
            self.found.bytes += meta.len();
            self.put(at, What::Copy { source: real, mode: meta.mode() & 0o777 }, login);
        } else {
            self.leave(source, "a FIFO, socket or device");
        }
    }

    fn put(&mut self, at: &Path, what: What, login: bool) {
        let list = if login { &mut self.found.login } else { &mut self.found.config };
        list.push(Item { at: at.to_owned(), what });
    }

    fn leave(&mut self, source: &Path, why: &'static str) {
        self.found.left_out.push((source.to_owned(), why));
    }
}

/// Whether a configuration file is (or holds) something like a key.
fn is_login(source: &Path, meta: &fs::Metadata) -> bool {
    let name = source.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if names_a_credential(&name) {
        return true;
    }
    let structured = ["json", "jsonc", "toml", "yaml", "yml", "env", "conf", "ini"];
    let extension = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    structured.contains(&extension)
        && meta.len() <= MAX_LOOKED_AT
        && read(source).is_ok_and(|bytes| holds_a_key(&String::from_utf8_lossy(&bytes)))
}

/// Whether a text of settings has a value that looks like a key or a password. A guess on the safe
/// side: what it takes for one is asked for together with the login.
fn holds_a_key(text: &str) -> bool {
    const WORDS: [&str; 8] =
        ["token", "secret", "password", "api_key", "api-key", "apikey", "authorization", "private_key"];
    const PREFIXES: [&str; 7] = ["sk-", "ghp_", "github_pat_", "glpat-", "xoxb-", "AIza", "Bearer "];
    let long = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).count() >= 16;
    text.lines().any(|line| {
        if PREFIXES.iter().any(|prefix| line.match_indices(prefix).any(|(at, _)| long(&line[at + prefix.len()..]))) {
            return true;
        }
        let lower = line.to_ascii_lowercase();
        WORDS.iter().any(|word| lower.match_indices(word).any(|(at, _)| is_key_value(&line[at + word.len()..])))
    })
}

/// Whether what follows the word is the rest of a name, `:` or `=`, and a value that is no number,
/// no reference to a variable or file, and long enough.
fn is_key_value(rest: &str) -> bool {
    let Some(at) = rest.find([':', '=']) else { return false };
    let (name, value) = (&rest[..at].to_ascii_lowercase(), &rest[at + 1..]);
    let name_goes_on = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_\"' ".contains(c));
    if !name_goes_on
        || ["env", "helper", "file", "path", "url", "max", "count", "limit"].iter().any(|w| name.contains(w))
    {
        return false;
    }
    let value = value.trim_start_matches([' ', '\t', '"', '\'']);
    let value: String = value.chars().take_while(|c| !"\"',}#\n".contains(*c)).collect();
    let value = value.trim();
    let reference = ["$", "{", "/", "~", "<", "["].iter().any(|start| value.starts_with(start));
    value.len() >= 8 && !reference && value.contains(|c: char| c.is_ascii_alphabetic())
}

/// Picks keys of a JSON object. A key is a dotted path; `{tree}` in it is the working tree.
fn some_keys(source: &Path, keys: &[String], tree: &Path) -> io::Result<Map<String, Value>> {
    let Ok(Value::Object(all)) = serde_json::from_slice(&read(source)?) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let tree = tree.to_string_lossy();
    let mut picked = Map::new();
    for key in keys {
        let path: Vec<&str> = key.split('.').map(|part| if part == "{tree}" { &tree } else { part }).collect();
        let mut at = Some(&all);
        let mut value = None;
        for part in &path {
            value = at.and_then(|object| object.get(*part));
            at = value.and_then(Value::as_object);
        }
        if let Some(value) = value {
            let (last, above) = path.split_last().expect("split gives at least one part");
            let mut into = &mut picked;
            for part in above {
                let below = into.entry(*part).or_insert_with(|| Value::Object(Map::new()));
                let Some(below) = below.as_object_mut() else { return Err(io::ErrorKind::InvalidData.into()) };
                into = below;
            }
            into.insert((*last).to_owned(), value.clone());
        }
    }
    Ok(picked)
}

/// Reads a regular file; never waits for a FIFO that took its place.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The private home, while a sandbox is made: nothing inside runs yet.
pub struct Home<'a> {
    /// Where it is on the host.
    pub dir: &'a Path,
    /// Whose files are in it.
    pub user: &'a User,
}

impl Home<'_> {
    /// Writes items. A file that has changed its kind since it was looked at fails by name.
    pub fn write<'a>(&self, items: impl IntoIterator<Item = &'a Item>) -> Result<(), CliError> {
        for item in items {
            let step = || format!("carry '~/{}' into the sandbox", escape(&item.at.to_string_lossy()));
            self.put(item).map_err(|error| CliError::io(step())(error))?;
        }
        Ok(())
    }

    fn put(&self, item: &Item) -> io::Result<()> {
        let at = self.dir.join(&item.at);
        match &item.what {
            What::Directory(mode) => {
                self.parents(&item.at.join("x"))?;
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode))
            }
            What::Copy { source, mode } => {
                self.parents(&item.at)?;
                let mut from = open(source)?;
                let mut to = self.create(&at, mode | 0o600)?;
                io::copy(&mut from, &mut to)?;
                Ok(())
            }
            What::Keys(keys) => {
                self.parents(&item.at)?;
                let mut object = match read(&at) {
                    Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
                    Err(error) => return Err(error),
                };
                merge(&mut object, keys);
                let mut text = serde_json::to_vec_pretty(&Value::Object(object)).map_err(io::Error::other)?;
                text.push(b'\n');
                self.create(&at, 0o600)?.write_all(&text)
            }
        }
    }

    /// Puts a text at the end of a file, between two lines that mark it.
    pub fn append_marked(&self, relative: &Path, text: &str) -> Result<(), CliError> {
        let write = || -> io::Result<()> {
            self.parents(relative)?;
            let at = self.dir.join(relative);
            let before = match read(&at) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            let mode = at.metadata().map_or(0o644, |meta| meta.mode() & 0o777 | 0o600);
            let mut file = self.create(&at, mode)?;
            file.write_all(&before)?;
            if !before.is_empty() {
                file.write_all(if before.ends_with(b"\n") { b"\n" } else { b"\n\n" })?;
            }
            file.write_all(format!("{BEGIN}\n{}\n{END}\n", text.trim_end()).as_bytes())
        };
        write().map_err(CliError::io(format!("write '~/{}' in the sandbox", escape(&relative.to_string_lossy()))))
    }

    fn create(&self, at: &Path, mode: u32) -> io::Result<fs::File> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(at)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        self.own(at)?;
        Ok(file)
    }

    /// Makes the directories above a path.
    fn parents(&self, relative: &Path) -> io::Result<()> {
        let mut at = self.dir.to_owned();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            match fs::DirBuilder::new().mode(0o700).create(&at) {
                Ok(()) => self.own(&at)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Run by root, what is in the home belongs to whom the sandbox runs as.
    fn own(&self, at: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(at, Some(self.user.uid), Some(self.user.gid))?;
        }
        Ok(())
    }
}

/// Replaces our text in a file of a home that something inside has written to: no link is followed,
/// and a file without our two lines stays as it is. Returns whether there was one.
pub fn replace_marked(dir: &Path, relative: &Path, text: &str) -> io::Result<bool> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let home = fs::File::open(dir)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut file = fs::File::from(openat2(&home, relative, flags, Mode::empty(), within)?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_LOOKED_AT {
        return Ok(false);
    }
    let mut before = Vec::new();
    file.read_to_end(&mut before)?;
    let find = |line: &str| before.windows(line.len()).position(|window| window == line.as_bytes());
    let (Some(begin), Some(end)) = (find(BEGIN), find(END)) else { return Ok(false) };
    if begin > end {
        return Ok(false);
    }
    let after = before[..begin].iter().copied();
    let after: Vec<u8> = after
        .chain(format!("{BEGIN}\n{}\n", text.trim_end()).into_bytes())
        .chain(before[end..].iter().copied())
        .collect();
    file.seek(io::SeekFrom::Start(0))?;
    file.write_all(&after)?;
    file.set_len(after.len() as u64)?;
    Ok(true)
}

/// The line before our text in a file of instructions.
pub const BEGIN: &str = "<!-- git-sandbox: where this agent is -->";
/// The line after it.
pub const END: &str = "<!-- git-sandbox: end -->";

fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(more)) => merge(there, more),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Says what is carried and what is not.
pub fn tell(context: &Context, preset: &Preset, found: &Found) {
    let (files, bytes) = (found.config_files(), found.bytes);
    if files > 0 {
        eprintln!("{}: {} of your configuration carried ({})", preset.name, count(files, "file"), size(bytes));
    }
    for (path, why) in found.left_out.iter().take(5) {
        eprintln!("left out ({why}): {}", escape(&tilde(path, &context.home)));
    }
    if found.left_out.len() > 5 {
        eprintln!("… and {} more", found.left_out.len() - 5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn home() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        for sub in [".x/sub", ".ssh", "dotfiles"] {
            fs::create_dir_all(home.join(sub)).unwrap();
        }
        fs::write(home.join(".x/a.json"), "{\"theme\": \"dark\"}").unwrap();
        fs::write(home.join(".x/sub/b.md"), "token: see the manual for how to get one").unwrap();
        fs::write(home.join(".x/key.json"), "{\"env\": {\"X_AUTH_TOKEN\": \"abcdefgh12\"}}").unwrap();
        fs::write(home.join(".x/auth.json"), "{}").unwrap();
        fs::write(home.join(".ssh/id"), "k").unwrap();
        fs::write(home.join("dotfiles/rc"), "rc").unwrap();
        symlink(home.join("dotfiles/rc"), home.join(".x/rc")).unwrap();
        symlink(home.join(".ssh/id"), home.join(".x/stolen")).unwrap();
        symlink("..", home.join(".x/sub/up")).unwrap();
        symlink("nowhere", home.join(".x/broken")).unwrap();
        (dir, home)
    }

    fn walk(home: &Path, at: &str, limit: u64) -> Found {
        let mut walk = Walk::new(home, limit, true);
        walk.keeps = vec![".x/conversations".into()];
        walk.visit(&home.join(at), Path::new(at), 0);
        walk.found
    }

    fn lines(found: &Found, home: &Path) -> Vec<String> {
        let item = |kind: &str, item: &Item| format!("{kind} {}", item.at.display());
        let mut lines: Vec<String> = found.config.iter().map(|i| item("config", i)).collect();
        lines.extend(found.login.iter().map(|i| item("login", i)));
        let left = |path: &PathBuf| path.strip_prefix(home).unwrap().display().to_string();
        lines.extend(found.left_out.iter().map(|(path, why)| format!("left {} ({why})", left(path))));
        lines
    }

    #[test]
    fn links_are_followed_but_not_to_credentials_nor_in_circles() {
        let (_dir, home) = home();
        fs::create_dir_all(home.join(".x/conversations")).unwrap();
        fs::write(home.join(".x/conversations/1"), "private").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, home.join(".x/fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert_eq!(
            lines(&walk(&home, ".x", MAX_BYTES), &home),
            [
                "config .x",
                "config .x/a.json",
                "config .x/rc",
                "config .x/sub",
                "config .x/sub/b.md",
                "login .x/auth.json",
                "login .x/key.json",
                "left .x/broken (cannot be read)",
                "left .x/fifo (a FIFO, socket or device)",
                "left .x/stolen (a link to where credentials are)",
                "left .x/sub/up (too deep, or a link in a circle)",
            ]
        );
        let small = walk(&home, ".x", 20);
        assert!(small.left_out.iter().any(|(_, why)| why.contains("64 MiB")), "{small:?}");
    }

    #[test]
    fn a_value_that_looks_like_a_key_is_told_from_other_settings() {
        for secret in [
            "\"apiKey\": \"abcdefgh1234\"",
            "openai-api-key: kkkkkkkkkk",
            "{\"headers\":{\"Authorization\":\"Bearer abcdefghijklmnop\"}}",
            "PASSWORD=correcthorse",
            "x = \"sk-ant-REDACTED-0000\"",
        ] {
            assert!(holds_a_key(secret), "{secret}");
        }
        for harmless in [
            "\"max_tokens\": 4096",
            "env_key = \"OPENAI_API_KEY\"",
            "bearer_token_env_var = \"MY_TOKEN_VARIABLE\"",
            "\"apiKeyHelper\": \"/usr/bin/give-key\"",
            "api_key: $OPENAI_API_KEY",
            "\"apiKey\": \"{env:MY_KEY_IS_HERE}\"",
            "token_limit = \"a lot of them\"",
            "\"theme\": \"dark\"",
        ] {
            assert!(!holds_a_key(harmless), "{harmless}");
        }
    }

    #[test]
    fn only_named_keys_of_a_file_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.json");
        fs::write(
            &file,
            r#"{"theme":"dark","history":["private"],"projects":{"/t":{"ok":true,"history":[1]},"/u":{}}}"#,
        )
        .unwrap();
        let keys = ["theme".to_owned(), "projects.{tree}.ok".into(), "missing.x".into()];
        let picked = some_keys(&file, &keys, Path::new("/t")).unwrap();
        assert_eq!(serde_json::to_string(&picked).unwrap(), r#"{"projects":{"/t":{"ok":true}},"theme":"dark"}"#);
        fs::write(&file, "[]").unwrap();
        assert!(some_keys(&file, &keys, Path::new("/t")).is_err());
    }

    #[test]
    fn only_paths_below_the_home_are_taken() {
        let home = Path::new("/home/ann");
        let below = |path: &str| below_home(home, Path::new(path)).map(|path| path.display().to_string());
        assert_eq!(below(".x/y").as_deref(), Some(".x/y"));
        assert_eq!(below("/home/ann/.x").as_deref(), Some(".x"));
        assert_eq!(below("~/.x").as_deref(), Some(".x"));
        assert_eq!(below("./a").as_deref(), Some("a"));
        for bad in ["/etc/passwd", "..", "a/../../b", "/home/ann", ".", "", "/home/ann/../bob/x", "~"] {
            assert_eq!(below(bad), None, "{bad}");
        }
    }

    #[test]
    fn our_text_comes_after_the_users_own() {
        let (_dir, home) = home();
        let private = home.join("private");
        fs::create_dir(&private).unwrap();
        let user = User {
            name: "ann".into(),
            group: "ann".into(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            shell: "/bin/sh".into(),
            root: false,
        };
        let to = Home { dir: &private, user: &user };
        let found = walk(&home, ".x", MAX_BYTES);
        to.write(&found.config).unwrap();
        to.append_marked(Path::new(".x/sub/b.md"), "you are here\n").unwrap();
        to.append_marked(Path::new(".new/file.md"), "you are here").unwrap();
        assert_eq!(
            fs::read_to_string(private.join(".x/sub/b.md")).unwrap(),
            format!("token: see the manual for how to get one\n\n{BEGIN}\nyou are here\n{END}\n")
        );
        assert_eq!(
            fs::read_to_string(private.join(".new/file.md")).unwrap(),
            format!("{BEGIN}\nyou are here\n{END}\n")
        );
        assert_eq!(fs::read_to_string(private.join(".x/rc")).unwrap(), "rc");
        assert!(!private.join(".x/rc").symlink_metadata().unwrap().is_symlink());
        assert!(!private.join(".x/auth.json").exists() && !private.join(".x/key.json").exists());
        // Told anew, for another sandbox of the same home.
        assert!(replace_marked(&private, Path::new(".x/sub/b.md"), "you are there").unwrap());
        assert_eq!(
            fs::read_to_string(private.join(".x/sub/b.md")).unwrap(),
            format!("token: see the manual for how to get one\n\n{BEGIN}\nyou are there\n{END}\n")
        );
        assert!(!replace_marked(&private, Path::new(".x/rc"), "x").unwrap());
        fs::write(home.join("outside"), format!("{BEGIN}\n{END}\n")).unwrap();
        symlink(home.join("outside"), private.join("link")).unwrap();
        symlink(&home, private.join("dir")).unwrap();
        for path in ["link", "dir/outside", "../outside", "missing"] {
            assert!(replace_marked(&private, Path::new(path), "x").is_err(), "{path}");
        }
        assert_eq!(fs::read_to_string(home.join("outside")).unwrap(), format!("{BEGIN}\n{END}\n"));
        to.write(&[
            Item { at: ".k.json".into(), what: What::Keys(Map::from_iter([("a".into(), Value::Bool(true))])) },
            Item { at: ".k.json".into(), what: What::Keys(Map::from_iter([("b".into(), Value::Null)])) },
        ])
        .unwrap();
        assert_eq!(fs::read_to_string(private.join(".k.json")).unwrap(), "{\n  \"a\": true,\n  \"b\": null\n}\n");
    }
}
