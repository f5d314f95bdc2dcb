//! What the host's attributes and configuration say about a path. Only what is on the host before the
//! merge counts; what an incoming `.gitattributes` would change is looked up to be told, not obeyed
//! (except for line ends, which are data).

use crate::eol::{Action, AutoCrlf, EolConfig, Value};
use crate::error::MergeError;
use crate::path::RepoPath;
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::GitCommand;
use sandbox_git::config::{Listing, Setting, split_key};
use std::collections::{BTreeMap, BTreeSet};

/// Configuration that decides how files are converted and merged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    eol: EolConfig,
    /// `core.fileMode`
    pub file_mode: bool,
    /// `core.symlinks`
    pub symlinks: bool,
    /// `commit.gpgSign`
    pub signs: bool,
    /// `rerere.enabled`, if it is set.
    pub rerere: Option<bool>,
    /// Cone-mode sparse checkout is on.
    pub sparse: Option<bool>,
    /// Configured drivers, as `filter.lfs`, `merge.ours`, `diff.word`.
    drivers: BTreeSet<String>,
    /// All settings.
    pub listing: Listing,
}

/// Attributes of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    text: Value,
    eol: Value,
    crlf: Value,
    filter: Value,
    ident: Value,
    encoding: Value,
    merge: Value,
    diff: Value,
}

const NAMES: [&str; 8] = ["text", "eol", "crlf", "filter", "ident", "working-tree-encoding", "merge", "diff"];

/// How two versions of a file are merged.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum MergeStyle {
    /// By lines.
    #[default]
    Text,
    /// By lines, keeping both sides where they overlap.
    Union,
    /// Not at all.
    Binary,
    /// By a program of the user's configuration.
    Driver(String),
}

impl Rules {
    pub fn read(repo: &Repo) -> Result<Self, MergeError> {
        Ok(Self::of(repo.listing()?))
    }

    fn of(listing: Listing) -> Self {
        let mut rules = Self { file_mode: true, symlinks: true, ..Self::default() };
        let (mut sparse, mut cone) = (false, true);
        for Setting { key, value, .. } in &listing.0 {
            let value = value.as_deref();
            let on = is_true(value);
            match key.as_str() {
                "core.autocrlf" if value.is_some_and(|v| v.eq_ignore_ascii_case("input")) => {
                    rules.eol.autocrlf = AutoCrlf::Input;
                }
                "core.autocrlf" => rules.eol.autocrlf = if on { AutoCrlf::True } else { AutoCrlf::False },
                "core.eol" => rules.eol.eol_crlf = value.is_some_and(|v| v.eq_ignore_ascii_case("crlf")),
                "commit.gpgsign" => rules.signs = on,
                "rerere.enabled" => rules.rerere = Some(on),
                "core.filemode" => rules.file_mode = on,
                "core.symlinks" => rules.symlinks = on,
                "core.sparsecheckout" => sparse = on,
                "core.sparsecheckoutcone" => cone = on,
                other => rules.drivers.extend(driver(other)),
            }
        }
        rules.sparse = sparse.then_some(cone);
        rules.listing = listing;
        rules
    }

    fn driver(&self, kind: &str, value: &Value) -> Option<String> {
        match value {
            Value::Is(name) if self.drivers.contains(&format!("{kind}.{name}")) => Some(name.clone()),
            _ => None,
        }
    }

    /// How line ends are converted.
    pub fn eol(&self, attributes: &Attributes) -> Action {
        self.eol.action(&attributes.text, &attributes.eol, &attributes.crlf)
    }

    /// A conversion that is not done here: a configured filter, another encoding, `ident` where
    /// `has_ident` finds a `$Id`.
    pub fn conversion(
        &self,
        attributes: &Attributes,
        has_ident: impl FnOnce() -> Result<bool, MergeError>,
    ) -> Result<Option<String>, MergeError> {
        if let Some(name) = self.driver("filter", &attributes.filter) {
            return Ok(Some(format!("filter '{}'", sandbox_git::printable(name.as_bytes()))));
        }
        if let Value::Is(encoding) = &attributes.encoding
            && !encoding.eq_ignore_ascii_case("utf-8")
        {
            return Ok(Some(format!("working-tree-encoding '{}'", sandbox_git::printable(encoding.as_bytes()))));
        }
        Ok(if attributes.ident == Value::Set && has_ident()? { Some("ident".to_owned()) } else { None })
    }

    /// How it is merged.
    pub fn merge_style(&self, attributes: &Attributes) -> MergeStyle {
        match &attributes.merge {
            Value::Unset => MergeStyle::Binary,
            Value::Is(name) if name == "union" => MergeStyle::Union,
            Value::Is(name) if name == "binary" => MergeStyle::Binary,
            other => self.driver("merge", other).map_or(MergeStyle::Text, MergeStyle::Driver),
        }
    }

    /// The user's programs that `after` selects for a path and `before` did not, as `filter 'lfs'`.
    pub fn newly_selected(&self, before: &Attributes, after: &Attributes) -> Vec<String> {
        let pairs = [
            ("filter", &before.filter, &after.filter),
            ("merge", &before.merge, &after.merge),
            ("diff", &before.diff, &after.diff),
        ];
        let new = pairs.into_iter().filter(|(_, before, after)| before != after);
        new.filter_map(|(kind, _, after)| Some(format!("{kind} '{}'", self.driver(kind, after)?))).collect()
    }
}

/// The driver that a setting belongs to, as `filter.lfs`.
fn driver(key: &str) -> Option<String> {
    let (section, sub, name) = split_key(key);
    let counts = match section {
        // `filter.lfs.clean` counts, and `filter.lfs.required` makes git fail without it
        "filter" => true,
        "merge" => name == "driver",
        "diff" => matches!(name, "command" | "textconv"),
        _ => false,
    };
    Some(format!("{section}.{}", sub.filter(|_| counts)?))
}

fn is_true(value: Option<&str>) -> bool {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("true" | "yes" | "on") => true,
        Some(number) => number.parse::<i64>().is_ok_and(|n| n != 0),
    }
}

/// Reads the attributes of paths as the host has them now.
pub(crate) fn read<'p>(
    repo: &Repo,
    paths: impl IntoIterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, Attributes>, MergeError> {
    ask(repo.host(), &[], paths)
}

/// The same, asking for what was not asked for since what is being planned began.
pub(crate) fn known<'p>(
    repo: &Repo,
    paths: impl IntoIterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, Attributes>, MergeError> {
    let paths: Vec<&RepoPath> = paths.into_iter().collect();
    let mut known = repo.database().attributes.borrow_mut();
    let new = read(repo, paths.iter().copied().filter(|path| !known.contains_key(*path)))?;
    known.extend(new);
    Ok(paths.into_iter().filter_map(|path| Some((path.clone(), known.get(path)?.clone()))).collect())
}

/// Forgets what [`known`] has: the host may have changed since.
pub(crate) fn forget(repo: &Repo) {
    repo.database().attributes.borrow_mut().clear();
}

/// Reads the attributes of paths as they would be in `tree`.
pub(crate) fn read_in_tree<'p>(
    repo: &Repo,
    tree: &str,
    paths: impl IntoIterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, Attributes>, MergeError> {
    let index = repo.temp_path("attributes.index");
    repo.pure().args(["read-tree", tree]).env("GIT_INDEX_FILE", &index).run()?;
    ask(repo.host().env("GIT_INDEX_FILE", &index), &["--cached"], paths)
}

fn ask<'p>(
    git: GitCommand,
    flags: &[&str],
    paths: impl IntoIterator<Item = &'p RepoPath>,
) -> Result<BTreeMap<RepoPath, Attributes>, MergeError> {
    let mut input = Vec::new();
    for path in paths {
        input.extend_from_slice(path.as_bytes());
        input.push(0);
    }
    if input.is_empty() {
        return Ok(BTreeMap::new());
    }
    let output = git.args(["check-attr", "-z", "--stdin"]).args(flags).args(NAMES).stdin(input).output()?.stdout;
    parse(&output).ok_or_else(|| unexpected("git check-attr", &output).into())
}

fn parse(output: &[u8]) -> Option<BTreeMap<RepoPath, Attributes>> {
    let mut all = BTreeMap::<RepoPath, Attributes>::new();
    let mut fields = output.split(|b| *b == 0);
    while let Some(path) = fields.next().filter(|path| !path.is_empty()) {
        let (name, value) = (fields.next()?, fields.next()?);
        let value = match value {
            b"unspecified" => Value::Unspecified,
            b"set" => Value::Set,
            b"unset" => Value::Unset,
            other => Value::Is(String::from_utf8_lossy(other).into_owned()),
        };
        let attributes = all.entry(RepoPath::parse(path)?).or_default();
        *match name {
            b"text" => &mut attributes.text,
            b"eol" => &mut attributes.eol,
            b"crlf" => &mut attributes.crlf,
            b"filter" => &mut attributes.filter,
            b"ident" => &mut attributes.ident,
            b"working-tree-encoding" => &mut attributes.encoding,
            b"merge" => &mut attributes.merge,
            b"diff" => &mut attributes.diff,
            _ => return None,
        } = value;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_read_as_git_reads_it() {
        let settings = [
            "core.autocrlf\ninput",
            "core.filemode\nno",
            "core.symlinks",
            "core.sparsecheckout\ntrue",
            "filter.lfs.required\ntrue",
            "merge.ours.driver\ntrue",
        ];
        let text: String = settings.iter().map(|setting| format!("local\0file:x\0{setting}\0")).collect();
        let rules = Rules::of(Listing::parse(text.as_bytes()).unwrap());
        assert_eq!(rules.eol.autocrlf, AutoCrlf::Input);
        assert!(!rules.file_mode && rules.symlinks);
        assert_eq!(rules.sparse, Some(true));
        let lfs = Attributes { filter: Value::Is("lfs".into()), ..Default::default() };
        assert_eq!(rules.conversion(&lfs, || Ok(false)).unwrap().unwrap(), "filter 'lfs'");
        let unknown = Attributes { filter: Value::Is("crypt".into()), ..Default::default() };
        assert_eq!(rules.conversion(&unknown, || Ok(false)).unwrap(), None);
        let ours = Attributes { merge: Value::Is("ours".into()), ..Default::default() };
        assert_eq!(rules.merge_style(&ours), MergeStyle::Driver("ours".into()));
        assert_eq!(rules.newly_selected(&Attributes::default(), &lfs), ["filter 'lfs'"]);
    }
}
