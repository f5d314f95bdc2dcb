//! A sandbox of the host's working tree as it is now, for one command: with its ignored files (dependencies, build
//! products), with the limits, toolchains and network of any other that has no flags of its own, and without an
//! agent's login.

use crate::context::Context;
use crate::error::CliError;
use crate::prepare;
use crate::presets;
use crate::presets::network::Policy;
use crate::project::Project;
use crate::text::escape;
use crate::verbs::spawn;
use crate::view::{self, View};
use crate::wall::Demands;
use sandbox_core::check::CheckBox;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::host_view;
use sandbox_core::id::{Name, RepoId, SandboxId};
use sandbox_core::launch::{Network, User};
use sandbox_core::prepare::Source;
use sandbox_core::record::SandboxRecord;
use sandbox_core::store::Store;
use sandbox_sys::clock::unix_seconds;
use std::ffi::OsString;
use std::path::PathBuf;

/// What all of them have in common.
pub struct Fresh<'a> {
    context: &'a Context,
    store: &'a Store,
    repo: &'a HostRepo,
    user: User,
    view: View,
    project: Project,
    driver: String,
    network: Network,
    /// What it may reach, where there are rules.
    policy: Option<Policy>,
}

impl<'a> Fresh<'a> {
    /// Looks at the host. Writes nothing.
    pub fn of(context: &'a Context, store: &'a Store, repo: &'a HostRepo, project: Project) -> Result<Self, CliError> {
        let top = repo.worktree()?;
        prepare::refuse_place(context, store, top)?;
        let min = Demands::read(context, Some(&project))?.min;
        let driver = spawn::chosen_driver(context, None, min)?;
        let user = context.user(top)?;
        let wish = view::wish(context, None)?;
        let view = view::look(context, store, spawn::driver(&driver)?, (user.uid, user.gid), wish)?;
        view.choose(None)?;
        let (network, policy) = presets::network::of_settings(context, &project)?;
        policy.iter().flat_map(|policy| &policy.notes).for_each(|note| eprintln!("note: {}", escape(note)));
        Ok(Self { context, store, repo, user, view, project, driver, network, policy })
    }

    /// The repository's id.
    pub fn repo_id(&self) -> Result<RepoId, CliError> {
        Ok(self.repo.repo_id(self.store)?)
    }

    /// Makes one.
    pub fn make(&self) -> Result<CheckBox, CliError> {
        let (context, store) = (self.context, self.store);
        let top = self.repo.worktree()?;
        let asked = prepare::Asked { grant: &[], carry_secrets: None, quiet: true, ask: false, view: Some(&self.view) };
        let of = prepare::Of { repo: Some(self.repo), top, source: &Source::WorkTree, along: false };
        let (taken, _) = prepare::take(context, store, of, &self.user, &asked, &self.project, None)?;
        let bytes = self.view.most().map(|_| taken.bytes(store)).transpose()?;
        let path = OsString::from(context.vars.get("PATH").map_or("", String::as_str));
        let extra: Vec<PathBuf> = context.settings("sandbox.toolchain").iter().map(PathBuf::from).collect();
        let toolchains = host_view::toolchains(&context.home, &path, &extra, &[top.to_owned()]);
        let demands = Demands::read(context, Some(&self.project))?;
        let driver = spawn::driver(&self.driver)?;
        demands.refuse_weaker(driver)?;
        let record = SandboxRecord {
            sequence: 0,
            id: SandboxId::random(),
            unnamed: true,
            name: Name::parse("check").expect("it is a name"),
            rm: true,
            driver: self.driver.clone(),
            repos: vec![spawn::mount(&taken, None)],
            created: unix_seconds(),
            argv: Vec::new(),
            cwd: top.to_owned(),
            home: context.home.clone(),
            user: self.user.clone(),
            env: host_view::environment(&context.vars).into_iter().collect(),
            network: self.network,
            preset: None,
            limits: self.project.tighten(spawn::limits(context, &spawn::AskedLimits::default(), driver.isolation())?),
            toolchains: toolchains.into_iter().map(|mount| (mount.source, mount.at)).collect(),
            links: spawn::links(context, top),
            timeout: None,
            allow_weak: Vec::new(),
            require: demands.require,
            min_isolation: demands.min,
            nested: false,
            auto_commit: false,
            view: self.view.choose(bytes)?,
            guest_disk: !driver.writes_on_host(),
            rescue_every: 0,
            forked: None,
            upstream: None,
            mirror: None,
        };
        let bar = prepare::Bar::new(true, None);
        let made = CheckBox::fresh(store, record, &[&taken], prepare::threads(), &bar)?;
        if let Some(policy) = &self.policy {
            let path = made.sandbox.dir.network();
            sandbox_proxy::policy::write(&path, &policy.rules).map_err(|error| CliError::chain(&error))?;
        }
        Ok(made)
    }
}
