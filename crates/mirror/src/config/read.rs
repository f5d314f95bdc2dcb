//! Takes keys out of a table one by one: what is left was not known.

use super::{ConfigError, Result, parse_duration, parse_size, shown, wrong};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// A table that is being read.
pub(super) struct Section {
    name: &'static str,
    table: Table,
    known: Vec<&'static str>,
}

/// The whole file.
pub(super) fn sections(text: &str) -> Result<Section> {
    let table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        ConfigError::Syntax(format!("{at}{}", shown(error.message())))
    })?;
    Ok(Section { name: "", table, known: Vec::new() })
}

impl Section {
    /// A key's name with its table.
    pub(super) fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        what: &str,
        read: impl FnOnce(Value) -> Option<std::result::Result<T, String>>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let kind = value.type_str();
        match read(value) {
            None => Err(wrong(&self.key(key), format!("expected {what}, not a value of the kind '{kind}'"))),
            Some(Err(said)) => Err(wrong(&self.key(key), said)),
            Some(Ok(value)) => Ok(Some(value)),
        }
    }

    pub(super) fn table(&mut self, name: &'static str) -> Result<Section> {
        Ok(self.optional_table(name)?.unwrap_or(Section { name, table: Table::new(), known: Vec::new() }))
    }

    pub(super) fn optional_table(&mut self, name: &'static str) -> Result<Option<Section>> {
        self.read(name, "a table", |value| match value {
            Value::Table(table) => Some(Ok(Section { name, table, known: Vec::new() })),
            _ => None,
        })
    }

    pub(super) fn array(&mut self, name: &'static str) -> Result<Vec<Section>> {
        let found = self.read(name, "an array of tables", |value| {
            let Value::Array(all) = value else { return None };
            let section = |value| match value {
                Value::Table(table) => Some(Section { name, table, known: Vec::new() }),
                _ => None,
            };
            all.into_iter().map(section).collect::<Option<Vec<_>>>().map(Ok)
        })?;
        Ok(found.unwrap_or_default())
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>> {
        self.read(key, "a string", |value| match value {
            Value::String(text) => Some(Ok(text)),
            _ => None,
        })
    }

    pub(super) fn required(&mut self, key: &'static str) -> Result<String> {
        self.text(key)?.ok_or_else(|| ConfigError::Missing { key: self.key(key) })
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>> {
        self.read(key, "a path", |value| match value {
            Value::String(text) if text.starts_with('/') => Some(Ok(text.into())),
            Value::String(text) => Some(Err(format!("'{}' is not an absolute path", shown(&text)))),
            _ => None,
        })
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| value.as_bool().map(Ok))
    }

    pub(super) fn number(&mut self, key: &'static str, least: u64, most: u64) -> Result<Option<u64>> {
        self.read(key, "a number", |value| {
            let number = value.as_integer()?;
            let fits = u64::try_from(number).ok().filter(|n| (least..=most).contains(n));
            Some(fits.ok_or_else(|| format!("{number} is not between {least} and {most}")))
        })
    }

    pub(super) fn count(&mut self, key: &'static str, least: u64, most: u64) -> Result<Option<usize>> {
        Ok(self.number(key, least, most)?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    pub(super) fn fraction(&mut self, key: &'static str) -> Result<Option<f64>> {
        self.read(key, "a number", |value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64))?;
            Some(if (0.0..=1.0).contains(&number) {
                Ok(number)
            } else {
                Err(format!("{number} is not between 0 and 1"))
            })
        })
    }

    pub(super) fn duration(&mut self, key: &'static str, least: Duration) -> Result<Option<Duration>> {
        self.read(key, "a duration like '30s'", |value| {
            let text = value.as_str()?;
            Some(parse_duration(text).and_then(|found| {
                if found >= least { Ok(found) } else { Err(format!("'{text}' is less than the least, {least:?}")) }
            }))
        })
    }

    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<u64>> {
        self.read(key, "a size like '64MiB'", |value| match value {
            Value::String(text) => Some(parse_size(&text)),
            Value::Integer(bytes) => Some(u64::try_from(bytes).map_err(|_| format!("{bytes} is no size"))),
            _ => None,
        })
    }

    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        one: impl Fn(&str) -> std::result::Result<T, String>,
    ) -> Result<Option<Vec<T>>> {
        self.read(key, "a list of strings", |value| {
            let texts: Option<Vec<&str>> = value.as_array()?.iter().map(Value::as_str).collect();
            Some(texts?.into_iter().map(one).collect())
        })
    }

    /// One address or several; an empty list is none.
    pub(super) fn addresses(&mut self, key: &'static str) -> Result<Option<Vec<SocketAddr>>> {
        let one = |text: &str| {
            text.parse().map_err(|_| format!("'{}' is no address and port like '127.0.0.1:9480'", shown(text)))
        };
        self.read(key, "an address and port", |value| match value {
            Value::String(text) => Some(one(&text).map(|address| vec![address])),
            Value::Array(all) => {
                let texts: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
                Some(texts?.into_iter().map(one).collect())
            }
            _ => None,
        })
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self) -> Result<()> {
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        let near = self.known.iter().map(|known| (strsim::damerau_levenshtein(key, known), known));
        let near = near.min().filter(|(distance, known)| *distance <= 1 + known.len() / 3);
        Err(ConfigError::Unknown { key: shown(&self.key(key)), like: near.map(|(_, known)| self.key(known)) })
    }
}
