//! `.gitmodules`: from where submodules come, and what their update runs.

use super::{Finding, Host};
use crate::path::RepoPath;
use std::collections::BTreeMap;

pub(super) fn look(path: &RepoPath, old: Option<&[u8]>, new: &[u8], host: &Host, all: &mut Vec<Finding>) {
    let when = match host.recurses {
        true => "at the next `git checkout`, `git pull` or `git submodule update`: your submodule.recurse is on",
        false => "at the next `git submodule update`",
    };
    let (before, after) = (parse(old.unwrap_or_default()), parse(new));
    let known = all.len();
    for ((name, key), value) in after.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        match key.as_str() {
            "url" => {
                let odd = if value.starts_with('-') || value.contains("::") { ", which names a program" } else { "" };
                all.push(Finding::red(path, format!("has submodule '{name}' come from '{value}'{odd}")).when(when));
            }
            "update" if value.starts_with('!') => {
                let why = format!("has a command for updates of submodule '{name}'");
                all.push(Finding::red(path, why).runs(&value[1..]).when(when));
            }
            _ => {}
        }
    }
    if all.len() == known {
        all.push(Finding::red(path, "configures submodules").when(when));
    }
}

/// Values by subsection and key; enough of git's syntax to tell what changes, not to obey it.
fn parse(text: &[u8]) -> BTreeMap<(String, String), String> {
    let text = String::from_utf8_lossy(text);
    let (mut name, mut all) = (String::new(), BTreeMap::new());
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            name = section.split('"').nth(1).unwrap_or_default().to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_matches('"').to_owned();
            all.insert((name.clone(), key.trim().to_ascii_lowercase()), value);
        }
    }
    all
}
