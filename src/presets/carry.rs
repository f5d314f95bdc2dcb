//! What goes inside besides the working tree: a preset's configuration, login, variables, text and
//! rules, and what `--home-file` names. First looked at, then asked, then written.

use super::home::{self, Found, Item};
use super::login::{self, Login, Wish};
use super::network::Policy;
use super::{Preset, inner};
use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::text::escape;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::host_view;
use sandbox_core::id::RepoId;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use std::collections::BTreeMap;
use std::path::Path;

/// What goes inside besides the working tree.
pub struct Carried {
    /// The preset, if one fits.
    pub preset: Option<Preset>,
    /// Configuration, and what looks like a login.
    found: Found,
    login: Login,
    wish: Wish,
    /// What `--home-file` names.
    asked: Vec<Item>,
    /// The home is (in) the working tree: what is in it is there already.
    home_is_tree: bool,
    /// About the agent's own sandbox.
    inner: Option<String>,
}

impl Carried {
    /// Looks at what there is, and what is known of the user's wish. Asks nothing, writes nothing.
    pub fn look(
        context: &Context,
        store: &Store,
        repo: &HostRepo,
        args: &cli::Spawn,
        preset: Option<Preset>,
        top: &Path,
    ) -> Result<Self, CliError> {
        let asked = home::asked(context, &args.home_file)?;
        let home_is_tree = context.home.starts_with(top);
        let mut carried = Self {
            found: Found::default(),
            login: Login::default(),
            wish: Wish::Unknown,
            asked,
            home_is_tree,
            inner: None,
            preset: None,
        };
        if let Some(preset) = &preset {
            carried.found = home::look(context, preset, top);
            carried.login = login::look(context, preset, &carried.found);
            carried.wish = login::wish(context, store, repo, preset, args)?;
            if !args.nested {
                carried.inner = inner::note(context, preset, &args.command);
            }
        }
        carried.preset = preset;
        Ok(carried)
    }

    /// Asks whether the login goes inside, if nobody was asked yet and there is somebody to ask.
    pub fn ask(&mut self, store: &Store, repo: &RepoId, dry_run: bool) -> Result<(), CliError> {
        let Some(preset) = &self.preset else { return Ok(()) };
        if self.wish == Wish::Unknown && !self.login.is_empty() && !dry_run && login::can_ask() {
            let carry = login::ask(store, repo, preset, &self.login)?;
            self.wish = if carry { Wish::Carry } else { Wish::Keep };
        }
        Ok(())
    }

    /// The environment of the sessions: the host's allow-list, the preset's, what was asked for.
    pub fn environment(&self, context: &Context, asked: Vec<(String, String)>) -> Vec<(String, String)> {
        let mut env = BTreeMap::from_iter(host_view::environment(&context.vars));
        let host = |name: &String| Some((name.clone(), context.vars.get(name)?.clone()));
        if let Some(preset) = &self.preset {
            // A URL may have a password in it.
            env.extend(preset.pass.iter().filter_map(host).filter(|(_, value)| !value.contains('@')));
            env.extend(preset.variables.clone());
        }
        if self.wish == Wish::Carry {
            env.extend(self.login.variables.iter().filter_map(host));
        }
        env.extend(asked);
        env.into_iter().collect()
    }

    /// What is written to the private home.
    pub fn items(&self) -> Vec<&Item> {
        let of_preset = self.found.config.iter().chain(self.login.items.iter().filter(|_| self.wish == Wish::Carry));
        of_preset.chain(&self.asked).filter(|_| !self.home_is_tree).collect()
    }

    /// Writes the private home and the policy of a sandbox that was just made.
    pub fn write(&self, sandbox: &Sandbox, policy: Option<&Policy>) -> Result<(), CliError> {
        let dir = sandbox.dir.home();
        let home = home::Home { dir: &dir, user: &sandbox.record.user };
        home.write(self.items())?;
        let mut rules = Vec::new();
        if let Some(policy) = policy {
            rules.extend(policy.rules.allow.iter().map(ToString::to_string));
            let path = sandbox.dir.network();
            sandbox_proxy::policy::write(&path, &policy.rules).map_err(|error| CliError::chain(&error))?;
        }
        let place = self.preset.as_ref().filter(|_| !self.home_is_tree).map(|preset| &preset.instructions);
        let place = place.and_then(|files| files.iter().find(|file| dir.join(file).exists()).or(files.last()));
        if let Some(place) = place {
            let text = crate::agent_help::text(sandbox.name(), sandbox.record.network, &rules);
            home.append_marked(Path::new(place), &text)?;
        }
        Ok(())
    }

    /// Says what goes inside and what does not.
    pub fn tell(&self, context: &Context, args: &cli::Spawn, policy: Option<&Policy>) {
        if self.home_is_tree && (self.preset.is_some() || !self.asked.is_empty()) {
            eprintln!(
                "note: your home is in the working tree: what is in it is there already, nothing more is carried"
            );
        }
        if let Some(preset) = &self.preset {
            if !self.home_is_tree {
                home::tell(context, preset, &self.found);
            }
            // A version or a help text needs no login.
            if !inner::is_about_itself(&args.command) {
                login::tell(preset, &self.login, self.wish);
            }
        }
        for note in policy.iter().flat_map(|policy| &policy.notes) {
            eprintln!("note: {}", escape(note));
        }
        if let Some(note) = &self.inner {
            eprintln!("{note}");
        }
    }
}

/// Tells an agent anew where it is: a fork has its parent's home, and another name. What the agent
/// made of the text inside is its own affair: where it is gone, it stays gone.
pub fn retell(context: &Context, sandbox: &Sandbox) {
    let Some(preset) = sandbox.record.preset.as_ref().and_then(|name| super::by_name(context, name).ok()) else {
        return;
    };
    let rules = sandbox_proxy::policy::read(&sandbox.dir.network()).map(|rules| rules.allow).unwrap_or_default();
    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
    let text = crate::agent_help::text(sandbox.name(), sandbox.record.network, &rules);
    for file in &preset.instructions {
        let _ = home::replace_marked(&sandbox.dir.home(), Path::new(file), &text);
    }
}
