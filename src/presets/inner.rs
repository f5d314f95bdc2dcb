//! An agent's own sandbox: inside ours, user namespaces and mounts are refused, so most of them
//! cannot start. That is told before the start, with the flag that goes without it.

use super::Preset;
use crate::context::Context;
use crate::text::escape_bytes;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// What a preset says about it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inner {
    /// What it is made with.
    pub name: String,
    /// What to pass so that it is off.
    pub flag: String,
    /// It is off already when an argument has one of these in it.
    #[serde(default)]
    pub off: Vec<String>,
    /// It is on only if this is set.
    pub only_if: Option<Setting>,
    /// It is off if this is set.
    pub unless: Option<Setting>,
}

/// A setting in one of the agent's own files (JSON or TOML).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Setting {
    /// Relative to the home.
    pub file: String,
    /// Dotted.
    pub key: String,
    /// As text.
    pub is: String,
}

/// Returns the line to print before the start, if the agent's own sandbox would be on.
pub fn note(context: &Context, preset: &Preset, command: &[OsString]) -> Option<String> {
    let inner = preset.inner.as_ref()?;
    let holds = |setting: &Setting| {
        let text = std::fs::read_to_string(preset.on_host(context, &setting.file)).unwrap_or_default();
        value(&setting.file, &text, &setting.key).as_deref() == Some(setting.is.as_str())
    };
    let args: Vec<String> = command.iter().skip(1).map(|arg| escape_bytes(arg.as_bytes())).collect();
    let without_spaces = |arg: &str| arg.replace(char::is_whitespace, "");
    let quiet = command.is_empty()
        || is_about_itself(command)
        || args.iter().any(|arg| inner.off.iter().any(|off| without_spaces(arg).contains(off.as_str())))
        || inner.only_if.as_ref().is_some_and(|setting| !holds(setting))
        || inner.unless.as_ref().is_some_and(holds);
    (!quiet).then(|| {
        format!(
            "note: {0}'s own sandbox ({1}) cannot start inside: there are no user namespaces. Pass `{2}` to {0}, \
             this one is around it; or `--nested` to spawn",
            preset.name, inner.name, inner.flag
        )
    })
}

/// Whether a command only asks for a version or a help text.
pub fn is_about_itself(command: &[OsString]) -> bool {
    command.iter().skip(1).any(|arg| ["--help", "-h", "--version", "-V"].iter().any(|asks| arg == asks))
}

/// The value of a dotted key, as text.
fn value(file: &str, text: &str, key: &str) -> Option<String> {
    if file.ends_with(".toml") {
        let table: toml::Table = toml::from_str(text).ok()?;
        let mut at = toml::Value::Table(table);
        for part in key.split('.') {
            at = at.get(part)?.clone();
        }
        return Some(at.as_str().map_or_else(|| at.to_string(), str::to_owned));
    }
    let mut at: serde_json::Value = serde_json::from_str(text).ok()?;
    for part in key.split('.') {
        at = at.get(part)?.clone();
    }
    Some(at.as_str().map_or_else(|| at.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_text() {
        assert_eq!(value("a.json", r#"{"s":{"on":true}}"#, "s.on").as_deref(), Some("true"));
        assert_eq!(value("a.toml", "mode = \"x\"\n[s]\non = false", "mode").as_deref(), Some("x"));
        assert_eq!(value("a.toml", "[s]\non = false", "s.on").as_deref(), Some("false"));
        assert_eq!(value("a.json", "no json", "s"), None);
        assert_eq!(value("a.json", "{}", "s.on"), None);
    }
}
