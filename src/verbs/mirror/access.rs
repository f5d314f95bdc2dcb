//! A sandbox's way to the mirror that is set: what is written of it when the sandbox is made.

use crate::context::Context;
use crate::error::CliError;
use crate::plumbing::mirror::Leads;
use sandbox_core::driver::Driver;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::launch::{MIRROR_PORT, Network};
use sandbox_core::record::{Led, MirrorAccess};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::write_json;
use sandbox_mirror::client::probe::PROBE;
use sandbox_mirror::client::session::Grant;
use sandbox_mirror::identity::SessionId;
use sandbox_mirror::name::{RepoName, Upstream};

/// A way that is common to all sandboxes of one request.
#[derive(Clone, Debug)]
pub struct Way {
    access: MirrorAccess,
    names: Vec<RepoName>,
    upstream: bool,
}

/// The way of sandboxes of a repository to the mirror; `None`: no mirror is set, or it has nothing to do with the
/// repository. Asks nobody: the mirror may come later, and go.
pub fn way(
    context: &Context,
    driver: &dyn Driver,
    repo: &HostRepo,
    network: Network,
    outside: bool,
) -> Result<Option<Way>, CliError> {
    let Some(at) = super::at(context, None, PROBE)? else { return Ok(None) };
    let record = match context.setting("sandbox.record").as_deref() {
        // Without a working tree there is no other place to take the work from by hand.
        None => outside && context.setting("sandbox.mirrorAdmin").is_some(),
        Some("none") => false,
        Some("mirror") => true,
        Some(other) => {
            return Err(CliError::new(format!("'{}' is not a value of sandbox.record", crate::text::escape(other)))
                .hint("it is mirror or none"));
        }
    };
    // With the host's network the loopback device is the host's: git inside speaks with the mirror itself.
    let url = match network {
        Network::Host => at.endpoint.url(),
        Network::None | Network::Allow => driver.reaches_mirror().then(|| format!("http://127.0.0.1:{MIRROR_PORT}")),
    };
    let Some(url) = url else { return Ok(None) };
    let (mut led, mut names) = (Vec::new(), Vec::new());
    for (remote, url) in super::remotes(context, repo)? {
        if let Ok(upstream) = Upstream::parse(&url) {
            led.push(Led { remote, path: upstream.name().url_path(), url });
            names.push(upstream.name().clone());
        }
    }
    // The first one is what `mirror` stands for inside.
    if let Some(origin) = led.iter().position(|led| led.remote == "origin") {
        led.swap(0, origin);
    }
    if led.is_empty() {
        return Ok(None);
    }
    let access = MirrorAccess { address: at.endpoint.to_string(), url, led, session: None, record };
    Ok(Some(Way { access, names, upstream: network == Network::Allow }))
}

impl Way {
    /// Gives it to a sandbox that was just made: a session of its own, if the mirror's administrator grants one.
    /// `base` is the commit that it begins at. Returns what there is to tell.
    pub fn give(
        &self,
        context: &Context,
        sandbox: &mut Sandbox,
        base: Option<&str>,
    ) -> Result<Option<String>, CliError> {
        let mut leads = Leads { to: self.access.address.clone(), bearer: None, upstream: self.upstream };
        let mut access = self.access.clone();
        let mut told = None;
        if context.setting("sandbox.mirrorAdmin").is_some() {
            let id = session(sandbox);
            match super::grant_session(context, &id, &self.names, base) {
                Ok(grant) => {
                    match grant {
                        Grant::At(own) => leads.to = own.to_string(),
                        Grant::Token(token) => leads.bearer = Some(token),
                    }
                    access.session = Some(id.to_string());
                }
                Err(error) => {
                    let why = error.causes.first().unwrap_or(&error.message);
                    told = Some(format!("nothing can be recorded on the mirror: {} ({why})", error.message));
                }
            }
        } else if access.record {
            told =
                Some("nothing can be recorded on the mirror: sandbox.mirrorAdmin does not say who grants that".into());
        }
        write_json(&sandbox.dir.mirror(), &leads, false)?;
        sandbox.record.mirror = Some(access);
        write_json(&sandbox.dir.record(), &sandbox.record, false)?;
        Ok(told)
    }
}

/// The session of a sandbox: its name, which people know, and a part of its id, since the mirror is of many machines.
fn session(sandbox: &Sandbox) -> SessionId {
    let id = sandbox.record.id.to_string();
    let readable = format!("{}-{}", sandbox.name(), id.get(..8).unwrap_or(&id));
    readable.parse().unwrap_or_else(|_| id.parse().expect("hex digits are an id of a session"))
}
