//! Named sets of hosts: `@github`, `@registries`, one small file each.
//!
//! ```text
//! hosts/NAME.toml                              in this program
//! $XDG_CONFIG_HOME/git-sandbox/hosts/NAME.toml the user's own; one of the same name replaces ours
//!
//! hosts = ["RULE", …]        as they are
//! discover = ["cargo", …]    what a package manager of this machine is set up to use
//! ```
//!
//! No registry is named here: which one a machine uses (a mirror, a private one) is known to its
//! package managers. Only configuration of the system and of the user is read, never files of the
//! working tree: a repository must not be able to open the network for itself.

use super::network::canonical;
use super::{line_of, not_valid, toml_files, user_dir};
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_proxy::rule::Rule;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The sets that this program has.
const BUILT_IN: &[(&str, &str)] = &[
    ("apt", include_str!("../../hosts/apt.toml")),
    ("cargo", include_str!("../../hosts/cargo.toml")),
    ("github", include_str!("../../hosts/github.toml")),
    ("gitlab", include_str!("../../hosts/gitlab.toml")),
    ("npm", include_str!("../../hosts/npm.toml")),
    ("pip", include_str!("../../hosts/pip.toml")),
    ("registries", include_str!("../../hosts/registries.toml")),
];

/// How long a package manager may take to say what it is set up to use.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of its answer that are read.
const MAX_ANSWER: u64 = 64 * 1024;

/// What one file says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name, without `@`.
    #[serde(skip_deserializing)]
    pub name: String,
    /// Where it comes from; `None`: from this program.
    #[serde(skip_deserializing)]
    pub file: Option<PathBuf>,
    /// Rules.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Package managers whose hosts are found out.
    #[serde(default)]
    pub discover: Vec<Tool>,
}

/// A package manager whose configuration can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Debian's.
    Apt,
    /// Rust's.
    Cargo,
    /// Node's.
    Npm,
    /// Python's.
    Pip,
}

/// What a set stands for.
#[derive(Debug, Default, PartialEq)]
pub struct Set {
    /// Its rules.
    pub rules: Vec<Rule>,
    /// What could not be found out, one line each.
    pub notes: Vec<String>,
}

/// Reads all sets, sorted, the user's before ours.
pub fn all(context: &Context) -> Result<Vec<File>, CliError> {
    let mut sets = Vec::new();
    for (name, path, text) in toml_files(&user_dir(context, "hosts"))? {
        sets.push(read(context, &name, Some(path), &text)?);
    }
    for (name, text) in BUILT_IN {
        if sets.iter().all(|set: &File| set.name != *name) {
            sets.push(read(context, name, None, text)?);
        }
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sets)
}

fn read(context: &Context, name: &str, path: Option<PathBuf>, text: &str) -> Result<File, CliError> {
    let place = path.clone().unwrap_or_else(|| PathBuf::from(format!("@{name}")));
    let invalid = |at: usize, why: &str| {
        not_valid(context, &place, line_of(text, at), why)
            .hint("it may have `hosts = [\"HOST\", …]` and `discover = [\"apt\", \"cargo\", \"npm\", \"pip\"]`")
    };
    let mut set: File =
        toml::from_str(text).map_err(|error| invalid(error.span().map_or(0, |span| span.start), error.message()))?;
    (set.name, set.file) = (name.to_owned(), path);
    for host in &set.hosts {
        if let Err(why) = canonical(host) {
            let at = text.find(&format!("\"{host}\"")).unwrap_or(0);
            return Err(invalid(at, &format!("'{host}' is not a host: {why}")));
        }
    }
    Ok(set)
}

/// Finds a set by its name (without `@`).
pub fn by_name(context: &Context, name: &str) -> Result<File, CliError> {
    let sets = all(context)?;
    let known: Vec<String> = sets.iter().map(|set| format!("@{}", set.name)).collect();
    sets.into_iter().find(|set| set.name == name).ok_or_else(|| {
        CliError::usage(format!("there is no set of hosts '@{}'", escape(name))).hint(format!(
            "there are {}; your own is a file '{}/NAME.toml'",
            escape(&known.join(", ")),
            escape(&crate::text::tilde(&user_dir(context, "hosts"), &context.home))
        ))
    })
}

/// Says which rules a set stands for here and now.
pub fn set(context: &Context, name: &str) -> Result<Set, CliError> {
    let file = by_name(context, name)?;
    let rules = file.hosts.iter().filter_map(|host| host.parse().ok()).collect();
    let mut set = Set { rules, notes: Vec::new() };
    let machine = Machine { etc: Path::new("/etc"), home: &context.home, vars: &context.vars, ask: &ask };
    for tool in file.discover {
        let found = machine.discover(tool);
        if found.urls.is_empty() {
            set.notes.push(format!("@{name}: {}", tool.nothing()));
        }
        set.notes.extend(found.notes.into_iter().map(|note| format!("@{name}: {note}")));
        for rule in found.urls.iter().filter_map(|url| rule_of(url)) {
            if !set.rules.contains(&rule) {
                set.rules.push(rule);
            }
        }
    }
    Ok(set)
}

impl Tool {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apt => "apt",
            Self::Cargo => "cargo",
            Self::Npm => "npm",
            Self::Pip => "pip",
        }
    }

    fn nothing(self) -> &'static str {
        match self {
            Self::Apt => "no source of apt was found in /etc/apt",
            Self::Cargo => "no registry of cargo was found: after cargo has used one here, it is known",
            Self::Npm => "no registry of npm was found, and npm could not be asked",
            Self::Pip => "no index of pip was found, and pip could not be asked",
        }
    }
}

/// What was found: URLs, and what is to be told.
#[derive(Debug, Default)]
struct Found {
    urls: BTreeSet<String>,
    notes: Vec<String>,
}

/// Runs a program and returns its standard output; `None` when it fails or takes too long.
type Ask<'a> = &'a dyn Fn(&[&str]) -> Option<String>;

/// The places where configuration is.
struct Machine<'a> {
    etc: &'a Path,
    home: &'a Path,
    vars: &'a BTreeMap<String, String>,
    ask: Ask<'a>,
}

impl Machine<'_> {
    fn discover(&self, tool: Tool) -> Found {
        let mut found = Found::default();
        match tool {
            Tool::Apt => self.apt(&mut found),
            Tool::Cargo => self.cargo(&mut found),
            Tool::Npm => self.npm(&mut found),
            Tool::Pip => self.pip(&mut found),
        }
        found
    }

    /// sources.list(5): lines `deb [options] URI suite …`, and files `*.sources` with `URIs:`.
    fn apt(&self, found: &mut Found) {
        let dir = self.etc.join("apt");
        for file in files_in(&dir.join("sources.list.d")).into_iter().chain([dir.join("sources.list")]) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => found.urls.extend(text.lines().filter_map(apt_line)),
                Some("sources") => {
                    for stanza in text.split("\n\n") {
                        found.urls.extend(apt_stanza(stanza));
                    }
                }
                _ => {}
            }
        }
        found.urls.retain(|url| is_web(url));
    }

    /// Source replacement and registries of `config.toml` (the Cargo book, "Configuration"), and the
    /// index cache: the names of its directories begin with the host, `config.json` in them says where
    /// packages are ("Registry Index").
    fn cargo(&self, found: &mut Found) {
        let cargo_home = match self.vars.get("CARGO_HOME").filter(|dir| dir.starts_with('/')) {
            Some(dir) => PathBuf::from(dir),
            None => self.home.join(".cargo"),
        };
        for name in ["config.toml", "config"] {
            let text = fs::read_to_string(cargo_home.join(name)).unwrap_or_default();
            let Ok(table) = toml::from_str::<toml::Table>(&text) else {
                found.notes.push("cargo's configuration cannot be read".into());
                continue;
            };
            for (section, key) in [("source", "registry"), ("registries", "index")] {
                let entries = table.get(section).and_then(toml::Value::as_table).into_iter().flatten();
                found.urls.extend(entries.filter_map(|(_, entry)| Some(cargo_url(entry.get(key)?.as_str()?))));
            }
        }
        let by_variable =
            self.vars.iter().filter(|(name, _)| name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_INDEX"));
        found.urls.extend(by_variable.map(|(_, url)| cargo_url(url)));
        for index in files_in(&cargo_home.join("registry/index")) {
            let name = index.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // `HOST-HASH`, where the hash is 16 hexadecimal digits.
            if let Some((host, hash)) = name.rsplit_once('-')
                && hash.len() == 16
                && host.contains('.')
            {
                found.urls.insert(format!("https://{host}/"));
            }
            let config = fs::read(index.join("config.json")).unwrap_or_default();
            if let Ok(config) = serde_json::from_slice::<serde_json::Value>(&config) {
                found.urls.extend(["dl", "api"].iter().filter_map(|key| Some(config.get(*key)?.as_str()?.to_owned())));
            }
        }
        found.urls.retain(|url| is_web(url));
    }

    /// npmrc(5): `registry=URL` and `@scope:registry=URL`, of the user and of the system. Where nothing
    /// names the registry for everything else, npm itself is asked.
    fn npm(&self, found: &mut Found) {
        let own = self
            .vars
            .get("NPM_CONFIG_USERCONFIG")
            .filter(|path| path.starts_with('/'))
            .map_or_else(|| self.home.join(".npmrc"), PathBuf::from);
        let mut whole = false;
        for file in [own, self.etc.join("npmrc"), self.home.join(".config/pnpm/rc")] {
            for line in fs::read_to_string(file).unwrap_or_default().lines() {
                let Some((key, value)) = line.split_once('=') else { continue };
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                if (key == "registry" || key.ends_with(":registry")) && is_web(value) {
                    whole |= key == "registry";
                    found.urls.insert(value.to_owned());
                }
            }
        }
        for (_, value) in self.vars.iter().filter(|(name, _)| name.eq_ignore_ascii_case("npm_config_registry")) {
            whole |= is_web(value);
            found.urls.extend(Some(value.clone()).filter(|url| is_web(url)));
        }
        if !whole && let Some(url) = (self.ask)(&["npm", "config", "get", "registry"]) {
            found.urls.extend(Some(url.trim().to_owned()).filter(|url| is_web(url)));
        }
    }

    /// pip's files ("Configuration"): `index-url`, `extra-index-url`, `find-links`; else what pip itself
    /// would use, with the host that it knows to hold the files.
    fn pip(&self, found: &mut Found) {
        let own = self.vars.get("PIP_CONFIG_FILE").filter(|path| path.starts_with('/')).map(PathBuf::from);
        let config = self
            .vars
            .get("XDG_CONFIG_HOME")
            .filter(|path| path.starts_with('/'))
            .map_or_else(|| self.home.join(".config"), PathBuf::from);
        let files = [config.join("pip/pip.conf"), self.home.join(".pip/pip.conf"), self.etc.join("pip.conf")];
        let mut whole = false;
        for file in files.into_iter().chain(own) {
            let text = fs::read_to_string(file).unwrap_or_default();
            let mut key = String::new();
            for line in text.lines() {
                let goes_on = line.starts_with([' ', '\t']);
                let value = match line.split_once(['=', ':']) {
                    Some((name, value)) if !goes_on => {
                        key = name.trim().to_ascii_lowercase().replace('_', "-");
                        value
                    }
                    _ => line,
                };
                if ["index-url", "extra-index-url", "find-links"].contains(&key.as_str()) {
                    whole |= key == "index-url";
                    found.urls.extend(value.split_whitespace().filter(|url| is_web(url)).map(str::to_owned));
                }
            }
        }
        for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"] {
            let values = self.vars.get(name).map(String::as_str).unwrap_or_default();
            whole |= name == "PIP_INDEX_URL" && !values.is_empty();
            found.urls.extend(values.split_whitespace().filter(|url| is_web(url)).map(str::to_owned));
        }
        if whole {
            found.notes.push("pip's index may keep its files on another host: the first refusal names it".into());
            return;
        }
        let asked = "from pip._internal.models.index import PyPI as i; print(i.simple_url); print('https://' + i.file_storage_domain)";
        if let Some(answer) = (self.ask)(&["python3", "-I", "-c", asked]) {
            found.urls.extend(answer.lines().map(str::trim).filter(|url| is_web(url)).map(str::to_owned));
        }
    }
}

/// Entries of a directory, sorted; none when it does not exist.
fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

fn apt_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb-src").or_else(|| line.trim().strip_prefix("deb"))?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    Some(apt_url(rest.split_whitespace().next()?))
}

/// The URIs of one stanza; none when it is switched off.
fn apt_stanza(stanza: &str) -> Vec<String> {
    let mut urls = Vec::new();
    let mut in_uris = false;
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        let value = match line.split_once(':') {
            Some((field, value)) if !line.starts_with([' ', '\t']) => {
                if field.eq_ignore_ascii_case("enabled") && value.trim().eq_ignore_ascii_case("no") {
                    return Vec::new();
                }
                in_uris = field.eq_ignore_ascii_case("uris");
                value
            }
            _ => line,
        };
        if in_uris {
            urls.extend(value.split_whitespace().map(apt_url));
        }
    }
    urls
}

/// `mirror+http://…` and the like are fetched by what comes after the `+`.
fn apt_url(url: &str) -> String {
    let scheme = url.find("://").unwrap_or(0);
    url[..scheme].rfind('+').map_or(url, |plus| &url[plus + 1..]).to_owned()
}

/// `sparse+https://…` and `git+https://…`.
fn cargo_url(url: &str) -> String {
    url.trim_start_matches("sparse+").trim_start_matches("registry+").trim_start_matches("git+").to_owned()
}

/// The rule for a URL: its host, and its port where that is not 443.
fn rule_of(url: &str) -> Option<Rule> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A port after the bracket of an IPv6 address, or after a name.
    let has_port =
        host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let text = match scheme {
        "http" if !has_port => format!("{host}:80"),
        _ => host.to_owned(),
    };
    text.parse().ok()
}

/// Runs a program from the root directory, where no file of a working tree counts, for at most
/// [`PATIENCE`].
fn ask(words: &[&str]) -> Option<String> {
    let (program, args) = words.split_first()?;
    let mut child = Command::new(program)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let out = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        out.take(MAX_ANSWER).read_to_string(&mut text).ok().map(|_| text)
    });
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return reader.join().ok().flatten().filter(|_| status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                // What it started may hold the pipe open: the reader is left behind.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tool: Tool, files: &[(&str, &str)], vars: &[(&str, &str)], answer: Option<&str>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let ask = |_: &[&str]| answer.map(str::to_owned);
        let machine = Machine { etc: &dir.path().join("etc"), home: &dir.path().join("home"), vars: &vars, ask: &ask };
        machine.discover(tool).urls.iter().filter_map(|url| rule_of(url)).map(|rule| rule.to_string()).collect()
    }

    #[test]
    fn ours_are_valid_and_hold_rules_or_tools() {
        for (name, text) in BUILT_IN {
            let set: File = toml::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(set.hosts.is_empty() != set.discover.is_empty(), "{name}");
            assert!(set.hosts.iter().all(|host| host.parse::<Rule>().is_ok()), "{name}");
        }
    }

    #[test]
    fn apts_sources_of_both_formats() {
        let list = "# deb https://off.example/ x main\ndeb [arch=amd64 signed-by=/k] http://pool.example/debian stable main\n\
                    deb-src mirror+https://src.example:8443/x y z\ndeb cdrom:[x]/ y\ndebug http://no.example/ x\n";
        let sources = "Types: deb\nURIs: https://a.example/d\n https://b.example/d\nSuites: x\n\n\
                       Types: deb\nEnabled: no\nURIs: https://off.example/\n";
        assert_eq!(
            found(
                Tool::Apt,
                &[("etc/apt/sources.list", list), ("etc/apt/sources.list.d/x.sources", sources)],
                &[],
                None
            ),
            ["pool.example:80", "a.example", "b.example", "src.example:8443"]
        );
        assert_eq!(found(Tool::Apt, &[], &[], None), [""; 0]);
    }

    #[test]
    fn cargos_sources_and_index_cache() {
        let config = "[source.main]\nreplace-with = \"m\"\n[source.m]\nregistry = \"sparse+https://mirror.example/index/\"\n\
                      [registries.own]\nindex = \"https://own.example:8443/git/index\"\n[source.v]\ndirectory = \"/v\"\n";
        assert_eq!(
            found(
                Tool::Cargo,
                &[
                    ("home/.cargo/config.toml", config),
                    (
                        "home/.cargo/registry/index/idx.cached.example-0123456789abcdef/config.json",
                        r#"{"dl":"https://files.example/crates","api":"https://api.example"}"#
                    ),
                    ("home/.cargo/registry/index/notes.txt", ""),
                ],
                &[("CARGO_REGISTRIES_X_INDEX", "sparse+https://x.example/")],
                None
            ),
            ["api.example", "files.example", "idx.cached.example", "mirror.example", "own.example:8443", "x.example"]
        );
    }

    #[test]
    fn npms_and_pips_files_else_they_are_asked() {
        let npmrc = "registry=https://npm.example/\n@own:registry = \"http://scope.example:4873/\"\n//npm.example/:_authToken=x\n";
        assert_eq!(
            found(Tool::Npm, &[("home/.npmrc", npmrc)], &[], Some("https://not-asked.example/\n")),
            ["scope.example:4873", "npm.example"]
        );
        let scoped = "@own:registry=https://scope.example/\n";
        assert_eq!(
            found(Tool::Npm, &[("etc/npmrc", scoped)], &[], Some("https://asked.example/\n")),
            ["asked.example", "scope.example"]
        );
        assert_eq!(found(Tool::Npm, &[], &[("npm_config_registry", "https://var.example/")], None), ["var.example"]);
        assert_eq!(found(Tool::Npm, &[], &[], Some("https://asked.example/\n")), ["asked.example"]);
        assert_eq!(found(Tool::Npm, &[], &[], Some("undefined\n")), [""; 0]);
        let conf = "[global]\nindex-url = https://user:pass@pip.example/simple\nextra-index-url =\n    https://one.example/\n    https://two.example/\n[install]\ntimeout = 5\n";
        assert_eq!(
            found(Tool::Pip, &[("home/.config/pip/pip.conf", conf)], &[], Some("https://not-asked.example/")),
            ["one.example", "two.example", "pip.example"]
        );
        assert_eq!(
            found(Tool::Pip, &[], &[], Some("https://index.example/simple\nhttps://files.example\n")),
            ["files.example", "index.example"]
        );
    }

    #[test]
    fn a_tool_that_does_not_answer_is_left() {
        assert_eq!(ask(&["sh", "-c", "pwd; exit 0"]).as_deref(), Some("/\n"));
        assert_eq!(ask(&["sh", "-c", "echo x; exit 1"]), None);
        assert_eq!(ask(&["/nonexistent/program"]), None);
    }

    #[test]
    fn a_url_becomes_its_host_and_port() {
        let rule = |url: &str| rule_of(url).map(|rule| rule.to_string());
        assert_eq!(rule("https://u:p@h.example/x?y").as_deref(), Some("h.example"));
        assert_eq!(rule("http://h.example").as_deref(), Some("h.example:80"));
        assert_eq!(rule("https://[2001:db8::1]:8443/x").as_deref(), Some("[2001:db8::1]:8443"));
        assert_eq!(rule("http://[2001:db8::1]/").as_deref(), Some("[2001:db8::1]:80"));
        assert_eq!(rule("https:///x"), None);
    }
}
