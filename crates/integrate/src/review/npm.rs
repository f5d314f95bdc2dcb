//! `package.json`: scripts that a package manager runs, and what it downloads.

use super::Finding;
use crate::path::RepoPath;
use serde_json::{Map, Value};

/// Scripts that an install runs without being asked.
const AT_INSTALL: &[&str] =
    &["preinstall", "install", "postinstall", "preprepare", "prepare", "postprepare", "prepublish", "dependencies"];

/// Keys whose change is red, and what they mean.
const KEYS: &[(&str, &str, &str)] = &[
    ("bin", "names programs", "when they are called"),
    ("packageManager", "names the package manager that is downloaded and run", "at the next `npm` or `yarn` command"),
    ("dependencies", "changes what is downloaded", "at the next `npm install`"),
    ("devDependencies", "changes what is downloaded", "at the next `npm install`"),
    ("optionalDependencies", "changes what is downloaded", "at the next `npm install`"),
    ("overrides", "changes what is downloaded", "at the next `npm install`"),
    ("resolutions", "changes what is downloaded", "at the next `yarn install`"),
    ("pnpm", "changes what is downloaded", "at the next `pnpm install`"),
    ("workspaces", "adds packages", "at the next `npm install`"),
    ("husky", "names git hooks", "at the next `git commit`"),
    ("simple-git-hooks", "names git hooks", "at the next `git commit`"),
    ("pre-commit", "names git hooks", "at the next `git commit`"),
    ("lint-staged", "names commands of a git hook", "at the next `git commit`"),
];

pub(super) fn look(path: &RepoPath, old: Option<&[u8]>, new: &[u8], all: &mut Vec<Finding>) {
    let Some(new) = parse(new) else {
        all.push(Finding::red(path, "cannot be read as a package.json").when("at the next `npm install`"));
        return;
    };
    let old = old.and_then(parse).unwrap_or_default();
    let scripts = |package: &Map<String, Value>| package.get("scripts").and_then(Value::as_object).cloned();
    let (before, after) = (scripts(&old).unwrap_or_default(), scripts(&new).unwrap_or_default());
    for (name, script) in after.iter().filter(|(name, script)| before.get(*name) != Some(script)) {
        let when = match AT_INSTALL.contains(&name.as_str()) {
            true => "at the next `npm install`".to_owned(),
            false => format!("with `npm run {}`", sandbox_git::printable(name.as_bytes())),
        };
        let state = if before.contains_key(name) { "changes" } else { "adds" };
        let text = script.as_str().map_or_else(|| script.to_string(), str::to_owned);
        all.push(Finding::red(path, format!("{state} the script '{name}'")).runs(text).when(when));
    }
    for (key, why, when) in KEYS {
        if new.contains_key(*key) && new.get(*key) != old.get(*key) {
            all.push(Finding::red(path, format!("{why} ('{key}')")).when(*when));
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(bytes).ok()? {
        Value::Object(map) => Some(map),
        _ => None,
    }
}
