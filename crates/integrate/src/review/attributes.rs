//! `.gitattributes`: which of the user's programs it would select, and what it hides from readers.

use super::{Changed, Finding, Host, Side};
use std::collections::BTreeSet;

/// Kind, settings that are programs, and when they run.
const DRIVERS: &[(&str, &str)] = &[
    ("filter", "at the next checkout or `git add`"),
    ("diff", "at the next `git diff` or `git log -p`"),
    ("merge", "at the next `git merge` or `git rebase`"),
];

pub(super) fn look(change: &Changed, host: &Host, all: &mut Vec<Finding>) {
    let path = &change.path;
    let text = |side: &Option<Side>| side.as_ref().and_then(Side::bytes).unwrap_or_default().to_vec();
    let (old, new) = (text(&change.old), text(&change.new));
    let (before, after) = (rules(&old), rules(&new));
    let known = all.len();
    let mut told = BTreeSet::new();
    for (pattern, attribute) in after.difference(&before) {
        for (kind, when) in DRIVERS {
            let Some(name) = attribute.strip_prefix(&format!("{kind}=")) else { continue };
            match host.driver(kind, name) {
                Some(commands) => {
                    let why = format!("selects your {kind} '{name}' for '{pattern}'");
                    all.push(Finding::red(path, why).runs(commands).when(*when).by_host());
                }
                None if *kind == "filter" && told.insert(attribute.clone()) => {
                    all.push(Finding::red(path, format!("selects a filter '{name}', which you have not configured")));
                }
                None => {}
            }
        }
        match attribute.as_str() {
            "-diff" | "binary" => {
                let why = format!("hides changes of '{pattern}' from `git diff` and `git log -p`");
                all.push(Finding::red(path, why).when("from then on"));
            }
            "merge=union" => {
                all.push(
                    Finding::red(path, format!("merges '{pattern}' without ever a conflict")).when("from then on"),
                );
            }
            "export-subst" | "export-ignore" => {
                let why = format!("changes what an archive has of '{pattern}' ({attribute})");
                all.push(Finding::red(path, why).when("with `git archive`"));
            }
            _ => {}
        }
    }
    for (pattern, attribute) in before.difference(&after) {
        if let Some(name) = attribute.strip_prefix("filter=")
            && host.driver("filter", name).is_some()
        {
            let why = format!("takes your filter '{name}' away from '{pattern}': it is stored as it is");
            all.push(Finding::red(path, why).when("at the next `git add`").by_host());
        }
    }
    if all.len() == known && change.new.is_some() {
        all.push(Finding::red(path, "configures git: attributes of files").when("at the next git command"));
    }
}

/// All pairs of pattern and attribute; macros are listed by their definition.
fn rules(text: &[u8]) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for line in String::from_utf8_lossy(text).lines() {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        let (pattern, rest) = match line.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            Some(parts) => parts,
            None => line.split_once(char::is_whitespace).unwrap_or((line, "")),
        };
        all.extend(rest.split_whitespace().map(|attribute| (pattern.to_owned(), attribute.to_owned())));
    }
    all
}
