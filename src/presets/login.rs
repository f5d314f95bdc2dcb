//! Whether an agent's login goes inside: what the user said, now or before, for each repository.
//!
//! ```text
//! --env NAME, --home-file PATH of the login   exactly that goes inside, nobody is asked
//! sandbox.carryCredential = NAME              (multi-valued; `none`: none of the others)
//! the answer given before, for this repository
//! a terminal: the question                    asked once, remembered
//! else                                        nothing, and one line that says how
//! ```

use super::Preset;
use super::home::{Found, Item, What, below_home};
use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use rustix::termios::isatty;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::id::RepoId;
use sandbox_core::record::RepoRecord;
use sandbox_core::store::{Store, read_json, write_twice};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

/// The setting.
const SETTING: &str = "sandbox.carryCredential";

/// What there is of a login on this host. Values of variables are not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Login {
    /// Files, and keys of files.
    pub items: Vec<Item>,
    /// Names of variables that are set.
    pub variables: Vec<String>,
}

/// What is known of the user's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It goes inside.
    Carry,
    /// It stays.
    Keep,
    /// The request itself brings (a part of) it.
    Given,
    /// Nobody was asked yet.
    Unknown,
}

/// Finds what there is.
pub fn look(context: &Context, preset: &Preset, found: &Found) -> Login {
    let set = |name: &&String| context.vars.get(*name).is_some_and(|value| !value.is_empty());
    Login { items: found.login.clone(), variables: preset.credentials.variables.iter().filter(set).cloned().collect() }
}

impl Login {
    /// Whether there is none on this host.
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.items.iter().all(|item| matches!(item.what, What::Directory(_)))
    }

    /// One line for each part of it.
    fn lines(&self) -> Vec<String> {
        let file = |item: &Item| {
            let at = escape(&item.at.to_string_lossy());
            match &item.what {
                What::Directory(_) => None,
                What::Copy { .. } => Some(format!("~/{at}")),
                What::Keys(keys) => {
                    let keys: Vec<String> = keys.keys().map(|key| escape(key)).collect();
                    Some(format!("~/{at} ({})", keys.join(", ")))
                }
            }
        };
        let files: BTreeSet<String> = self.items.iter().filter_map(file).collect();
        files.into_iter().chain(self.variables.iter().map(|name| format!("the variable {name}"))).collect()
    }
}

/// Decides as far as possible without asking.
pub fn wish(
    context: &Context,
    store: &Store,
    repo: &HostRepo,
    preset: &Preset,
    args: &cli::Spawn,
) -> Result<Wish, CliError> {
    let named = |entry: &String| {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        preset.credentials.variables.iter().any(|variable| variable == name)
    };
    let in_login = |path: &PathBuf| {
        let file = below_home(&context.home, path);
        let files = preset.credentials.files.iter().chain(preset.credentials.parts.keys());
        file.is_some_and(|file| files.into_iter().any(|login| PathBuf::from(login).starts_with(&file)))
    };
    if args.env.iter().any(named) || args.home_file.iter().any(in_login) {
        return Ok(Wish::Given);
    }
    let settings = context.settings(SETTING);
    // The last word counts, as with every setting of git.
    for value in settings.iter().rev() {
        match value.as_str() {
            "none" => return Ok(Wish::Keep),
            value if value == preset.name => return Ok(Wish::Carry),
            value => {
                super::by_name(context, value).map_err(|_| {
                    CliError::new(format!("'{}' is not a value of {SETTING}", escape(value)))
                        .hint("it is the name of a preset (`git sandbox presets` lists them), or none")
                })?;
            }
        }
    }
    let Some(id) = repo.known_id(store)? else { return Ok(Wish::Unknown) };
    let record: Option<RepoRecord> = read_json(&store.repo(&id).record())?;
    Ok(match record.and_then(|record| record.carry_credentials.get(&preset.name).copied()) {
        Some(true) => Wish::Carry,
        Some(false) => Wish::Keep,
        None => Wish::Unknown,
    })
}

/// Whether there is somebody to ask.
pub fn can_ask() -> bool {
    isatty(io::stdin()) && isatty(io::stderr())
}

/// Asks, and remembers the answer for this repository.
pub fn ask(store: &Store, repo: &RepoId, preset: &Preset, login: &Login) -> Result<bool, CliError> {
    eprintln!("{} is logged in here with:", preset.name);
    for line in login.lines() {
        eprintln!("  {line}");
    }
    eprint!("shall sandboxes of this repository have it? [y/N] ");
    let _ = io::stderr().flush();
    let carry = crate::leave::yes(false);
    let path = store.repo(repo).record();
    if let Some(mut record) = read_json::<RepoRecord>(&path)? {
        record.carry_credentials.insert(preset.name.clone(), carry);
        write_twice(&path, &record, true)?;
    }
    let value = if carry { "none" } else { &preset.name };
    eprintln!("remembered: `git config --add {SETTING} {value}` changes it");
    Ok(carry)
}

/// Says that a login is not inside, and how it would be.
pub fn tell(preset: &Preset, login: &Login, wish: Wish) {
    let name = &preset.name;
    if login.is_empty() && wish != Wish::Given {
        eprintln!("note: no login of {name} was found here: it will ask for one, or `--env NAME` gives it a key");
        return;
    }
    match wish {
        Wish::Carry => eprintln!("{name}: its login carried: {}", login.lines().join(", ")),
        Wish::Keep => eprintln!("left out, because it is a login: {}", login.lines().join(", ")),
        Wish::Unknown => {
            eprintln!("left out, because it is a login: {}", login.lines().join(", "));
            eprintln!(
                "hint: `git config --add {SETTING} {name}` carries it, `--env NAME` or `--home-file PATH` a part of it"
            );
        }
        Wish::Given => {}
    }
}
