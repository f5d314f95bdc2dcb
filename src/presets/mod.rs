//! Presets: what an agent needs to work in a sandbox as it does on the host, one small file each.
//!
//! ```text
//! presets/NAME.toml                              in this program
//! $XDG_CONFIG_HOME/git-sandbox/presets/NAME.toml the user's own; one of the same name replaces ours
//!
//! carry    all that goes inside, from the look to the writing
//! home     what goes into the private home: configuration, the login, our text for the agent
//! login    whether the login goes inside: asked once per repository
//! inner    the agent's own sandbox, which cannot start inside
//! network  which network a sandbox gets, and its rules
//! hosts    named sets of hosts (`@github`), and what package managers are set up to use
//! ```
//!
//! A preset is chosen by the name of the command that `spawn` was given, without its directory.

pub mod carry;
pub mod home;
pub mod hosts;
pub mod inner;
pub mod login;
pub mod network;

use crate::context::Context;
use crate::error::CliError;
use crate::text::{escape, tilde};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The presets that this program has.
const BUILT_IN: &[(&str, &str)] = &[
    ("aider", include_str!("../../presets/aider.toml")),
    ("claude", include_str!("../../presets/claude.toml")),
    ("codex", include_str!("../../presets/codex.toml")),
    ("gemini", include_str!("../../presets/gemini.toml")),
    ("goose", include_str!("../../presets/goose.toml")),
    ("opencode", include_str!("../../presets/opencode.toml")),
];

/// The name that means: no preset.
pub const NONE: &str = "none";

/// What one file says. Paths are relative to the home.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Preset {
    /// Its name: that of the file.
    #[serde(skip_deserializing)]
    pub name: String,
    /// Where it comes from; `None`: from this program.
    #[serde(skip_deserializing)]
    pub file: Option<PathBuf>,
    /// Names of the command that it is for.
    pub programs: Vec<String>,
    /// Files and directories that are copied into the private home.
    #[serde(default)]
    pub config: Vec<String>,
    /// Top-level keys (or dotted paths; `{tree}` is the working tree) of JSON files that are copied.
    #[serde(default)]
    pub parts: BTreeMap<String, Vec<String>>,
    /// What a login consists of.
    #[serde(default)]
    pub credentials: Credentials,
    /// Variables that are set inside.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Variables of the host that go inside when they are set.
    #[serde(default)]
    pub pass: Vec<String>,
    /// Rules of the network that it needs, and sets of them.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Where it keeps conversations: never copied, but they live as long as the sandbox.
    #[serde(default)]
    pub keeps: Vec<String>,
    /// Files that it reads instructions from: our text goes to the first that there is, else to the last.
    #[serde(default)]
    pub instructions: Vec<String>,
    /// Variables of the host that name another directory for one of the paths.
    #[serde(default)]
    pub places: BTreeMap<String, String>,
    /// Its own sandbox.
    pub inner: Option<inner::Inner>,
}

/// What a login consists of; any of it is enough.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Credentials {
    /// Files.
    #[serde(default)]
    pub files: Vec<String>,
    /// Variables.
    #[serde(default)]
    pub variables: Vec<String>,
    /// Keys of JSON files.
    #[serde(default)]
    pub parts: BTreeMap<String, Vec<String>>,
}

impl Preset {
    /// Reads the text of one file.
    fn parse(name: &str, text: &str) -> Result<Self, (usize, String)> {
        let mut preset: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            (line_of(text, at), error.message().to_owned())
        })?;
        preset.name = name.to_owned();
        preset.check().map_err(|(object, why)| {
            let at = text.find(&format!("\"{object}\"")).or_else(|| text.find(&object));
            (line_of(text, at.unwrap_or(0)), why)
        })?;
        Ok(preset)
    }

    /// Checks what TOML cannot: returns what is wrong and why.
    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |object: &str, why: String| Err((object.to_owned(), why));
        if self.programs.is_empty() {
            return wrong("programs", "programs is empty".into());
        }
        if let Some(program) = self.programs.iter().find(|name| name.is_empty() || name.contains('/')) {
            return wrong(program, format!("'{program}' is not the name of a program"));
        }
        for path in self.paths() {
            if !is_below(path) {
                return wrong(path, format!("'{path}' is not a path below the home"));
            }
        }
        let names = self.credentials.variables.iter().chain(self.variables.keys()).chain(&self.pass);
        for name in names.chain(self.places.keys()) {
            if !is_variable(name) {
                return wrong(name, format!("'{name}' is not a variable's name"));
            }
        }
        for host in &self.hosts {
            if !host.starts_with('@')
                && let Err(why) = network::canonical(host)
            {
                return wrong(host, format!("'{host}' is not a host: {why}"));
            }
        }
        Ok(())
    }

    fn paths(&self) -> impl Iterator<Item = &String> {
        let settings = self.inner.iter().flat_map(|inner| [&inner.only_if, &inner.unless]).flatten();
        self.config
            .iter()
            .chain(self.parts.keys())
            .chain(&self.credentials.files)
            .chain(self.credentials.parts.keys())
            .chain(&self.keeps)
            .chain(&self.instructions)
            .chain(self.places.values())
            .chain(settings.map(|setting| &setting.file))
    }

    /// Where one of its paths is on the host: the home, unless a variable names another place.
    pub fn on_host(&self, context: &Context, relative: &str) -> PathBuf {
        let xdg =
            [("XDG_CONFIG_HOME", ".config"), ("XDG_DATA_HOME", ".local/share"), ("XDG_STATE_HOME", ".local/state")];
        let own = self.places.iter().map(|(variable, path)| (variable.as_str(), path.as_str()));
        for (variable, path) in own.chain(xdg) {
            if let Some(dir) = context.vars.get(variable).filter(|dir| dir.starts_with('/'))
                && let Ok(rest) = Path::new(relative).strip_prefix(path)
            {
                return if rest.as_os_str().is_empty() { dir.into() } else { Path::new(dir).join(rest) };
            }
        }
        context.home.join(relative)
    }
}

/// Where a file comes from, in words.
pub fn origin(file: Option<&Path>, home: &Path) -> String {
    file.map_or_else(|| "built in".to_owned(), |file| escape(&tilde(file, home)))
}

/// A relative path without `.`, `..` or a root.
fn is_below(path: &str) -> bool {
    !path.is_empty() && !path.contains('\0') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The line (from 1) that a byte of a text is on.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The user's own directory of presets (`presets`) or of sets of hosts (`hosts`).
pub fn user_dir(context: &Context, what: &str) -> PathBuf {
    let config = context.vars.get("XDG_CONFIG_HOME").filter(|dir| dir.starts_with('/'));
    config.map_or_else(|| context.home.join(".config"), PathBuf::from).join("git-sandbox").join(what)
}

/// Reads the files `NAME.toml` of a directory, sorted; one that is not there is empty.
fn toml_files(dir: &Path) -> Result<Vec<(String, PathBuf, String)>, CliError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CliError::io(format!("list '{}'", escape(&dir.to_string_lossy())))(error)),
    };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension() != Some(OsStr::new("toml")) {
            continue;
        }
        let Some(name) = path.file_stem().and_then(OsStr::to_str).map(str::to_owned) else { continue };
        let text = std::fs::read_to_string(&path)
            .map_err(CliError::io(format!("read '{}'", escape(&path.to_string_lossy()))))?;
        files.push((name, path, text));
    }
    files.sort();
    Ok(files)
}

/// Reads the user's own presets.
fn own(context: &Context) -> Result<Vec<Preset>, CliError> {
    let mut presets: Vec<Preset> = Vec::new();
    for (name, path, text) in toml_files(&user_dir(context, "presets"))? {
        if name == NONE {
            let shown = escape(&tilde(&path, &context.home));
            return Err(CliError::new(format!("'{shown}' has a name that means no preset")).hint("rename the file"));
        }
        let mut preset = Preset::parse(&name, &text).map_err(|(line, why)| {
            not_valid(context, &path, line, &why)
                .hint("`git sandbox presets claude` shows one that is; `--preset none` goes without")
        })?;
        preset.file = Some(path);
        presets.push(preset);
    }
    Ok(presets)
}

/// Adds those of ours that the user has not replaced and that `wanted` wants, by name and text.
fn with_ours(mut presets: Vec<Preset>, wanted: impl Fn(&str, &str) -> bool) -> Result<Vec<Preset>, CliError> {
    for (name, text) in BUILT_IN {
        if wanted(name, text) && presets.iter().all(|preset| preset.name != *name) {
            let preset = Preset::parse(name, text)
                .map_err(|(line, why)| CliError::new(format!("preset '{name}', line {line}: {why}")))?;
            presets.push(preset);
        }
    }
    Ok(presets)
}

/// Returns all presets, the user's before ours.
pub fn all(context: &Context) -> Result<Vec<Preset>, CliError> {
    with_ours(own(context)?, |_, _| true)
}

/// A file of the user's that cannot be used, with the line.
fn not_valid(context: &Context, path: &Path, line: usize, why: &str) -> CliError {
    CliError::new(format!("'{}' is not valid", escape(&tilde(path, &context.home))))
        .cause(format!("line {line}: {}", escape(why.lines().next().unwrap_or_default())))
}

/// Chooses the preset of a spawn: the one that `flag` names, else the one for the command.
pub fn choose(context: &Context, flag: Option<&str>, command: Option<&OsStr>) -> Result<Option<Preset>, CliError> {
    match flag {
        Some(NONE) => return Ok(None),
        Some(name) => return by_name(context, name).map(Some),
        None => {}
    }
    let Some(program) = command.and_then(|word| Path::new(word).file_name()).and_then(OsStr::to_str) else {
        return Ok(None);
    };
    // Most commands are no agents: a file of ours that does not have the word is not parsed.
    let word = format!("\"{program}\"");
    let presets = with_ours(own(context)?, |_, text| text.contains(&word))?;
    Ok(presets.into_iter().find(|preset| preset.programs.iter().any(|name| name == program)))
}

/// Finds a preset by its name.
pub fn by_name(context: &Context, name: &str) -> Result<Preset, CliError> {
    let presets = with_ours(own(context)?, |known, _| known == name)?;
    presets.into_iter().find(|preset| preset.name == name).ok_or_else(|| {
        CliError::usage(format!("there is no preset '{}'", escape(name)))
            .hint("`git sandbox presets` lists them, `--preset none` goes without")
    })
}

/// The text of a preset's file.
pub fn source(preset: &Preset) -> Result<String, CliError> {
    match &preset.file {
        Some(file) => {
            std::fs::read_to_string(file).map_err(CliError::io(format!("read '{}'", escape(&file.to_string_lossy()))))
        }
        None => Ok(BUILT_IN.iter().find(|(name, _)| *name == preset.name).map_or("", |(_, text)| text).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_all_valid_and_name_the_agents() {
        let names: Vec<String> =
            BUILT_IN.iter().flat_map(|(name, text)| Preset::parse(name, text).unwrap().programs).collect();
        assert_eq!(names, ["aider", "claude", "codex", "gemini", "goose", "opencode"]);
        for (name, text) in BUILT_IN {
            let preset = Preset::parse(name, text).unwrap();
            assert!(!preset.hosts.is_empty() && !preset.keeps.is_empty(), "{name}");
            // What is a login must not go inside as configuration.
            assert!(preset.credentials.files.iter().all(|file| !preset.config.contains(file)), "{name}");
        }
    }

    #[test]
    fn a_broken_one_says_on_which_line() {
        let bad = |text: &str| Preset::parse("x", text).unwrap_err();
        assert_eq!(bad("programs = [\"x\"]\n\nhots = []\n").0, 3);
        assert_eq!(bad("programs = [\n"), (1, bad("programs = [\n").1));
        assert_eq!(
            bad("programs = [\"x\"]\nconfig = [\n  \".x\",\n  \"../y\",\n]\n"),
            (4, "'../y' is not a path below the home".into())
        );
        assert_eq!(bad("programs = [\"/usr/bin/x\"]").1, "'/usr/bin/x' is not the name of a program");
        assert_eq!(bad("programs = []").1, "programs is empty");
        assert_eq!(bad("programs = [\"x\"]\npass = [\"A B\"]"), (2, "'A B' is not a variable's name".into()));
        assert_eq!(bad("programs = [\"x\"]\nhosts = [\"a b\"]").0, 2);
        for path in ["", "/etc/passwd", ".", "a/../b", "./a"] {
            assert!(!is_below(path), "{path}");
        }
        assert!(is_below(".config/a b"));
    }
}
