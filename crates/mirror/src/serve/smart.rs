//! Git's two services, whichever way they are asked for: who may, in whose turn, by which process.

use super::ask::{self, Protocol};
use super::process::{GitProcess, Spawner};
use super::queue::{Busy, Queue, Weight};
use super::relay::{Ended, Failure, Output, Source, SourceError, collect, relay};
use super::{Asked, Settings};
use crate::cache::PackCache;
use crate::catalog::{Entry, Found, Reader};
use crate::doubt::Doubt;
use crate::event::{Event, GitService, Observer, Outcome, Served, Shape, Transport};
use crate::name::RepoName;
use crate::repo::MirrorRepo;
use crate::scratch::{self, Scratch};
use bytes::Bytes;
use sandbox_git::{Git, GitCommand};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of an advertisement of capabilities that is kept.
const ADVERTISEMENT: usize = 64 << 10;

/// What git's services need.
pub struct Smart {
    /// The git that serves.
    pub git: Git,
    /// Starts it.
    pub spawner: Spawner,
    /// Who is next.
    pub queue: Queue,
    /// What may be served.
    pub catalog: Reader,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
    /// How much there may be of everything.
    pub settings: Settings,
    /// Packs that were made already.
    pub cache: PackCache,
    /// What sessions push.
    pub scratch: Scratch,
    /// v2 capabilities: the same for a repository as long as its configuration is.
    pub capabilities: Mutex<HashMap<PathBuf, (SystemTime, Bytes)>>,
}

/// A request for one of git's services, on one repository.
pub struct Ask {
    /// The repository.
    pub entry: Arc<Entry>,
    /// Who asks.
    pub asked: Asked,
    /// How.
    pub transport: Transport,
    /// In which version.
    pub protocol: Protocol,
    /// When it came.
    pub since: Instant,
}

/// Why something cannot be answered.
#[derive(Debug)]
pub enum Refusal {
    /// Too many.
    Busy,
    /// Git cannot be started, or failed.
    Failed(String),
}

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        Self::Busy
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Smart {
    /// What is done with a name, for who asks.
    pub fn find(&self, name: &RepoName, asked: &Asked) -> Found {
        self.catalog.now().find(name, &asked.who)
    }

    /// Tells that a request ended.
    pub fn served(&self, ask: &Ask, service: GitService, shape: Shape, queued: Duration, received: u64, ended: Ended) {
        if let Some(doubt) = Doubt::of(&ended.said).filter(|_| service == GitService::UploadPack) {
            ask.entry.live.doubt(doubt);
        }
        self.observer.observe(&Event::Served(Served {
            transport: ask.transport,
            service: Some(service),
            protocol: ask.protocol.version,
            shape,
            repo: Some(ask.entry.name.clone()),
            session: ask.asked.who.session().map(|session| session.id.clone()),
            outcome: ended.outcome,
            queued,
            took: ask.since.elapsed(),
            received,
            sent: ended.sent,
            said: ended.said,
        }));
    }

    /// `git upload-pack` on a repository. It is told what only protected configuration may say.
    fn upload_pack(&self, ask: &Ask, dir: &Path) -> GitCommand {
        let mut command = MirrorRepo::at(dir).serving(&self.git);
        if self.scratch.shows_in_mirror() {
            command = command.config("uploadpack.hideRefs=!refs/agents");
        }
        let command = self.cache.hooked(command, dir).args(["upload-pack", "--strict"]);
        if ask.protocol.text.is_empty() { command } else { command.env("GIT_PROTOCOL", &ask.protocol.text) }
    }

    /// The refs of a repository, or in v2 its capabilities, as `git upload-pack` shows them.
    pub async fn advertise(&self, ask: &Ask) -> Result<Bytes, Refusal> {
        let config = ask.entry.dir.join("config");
        let stamp = std::fs::metadata(&config).and_then(|meta| meta.modified())?;
        let key = (ask.protocol.version == 2).then(|| ask.entry.dir.clone());
        if let Some(key) = &key
            && let Some((then, kept)) = self.capabilities().get(key)
            && *then == stamp
        {
            return Ok(kept.clone());
        }
        let turn = self.queue.turn(&ask.entry.name, Weight::Light).await?;
        let command = self
            .upload_pack(ask, &ask.entry.dir)
            .args(["--stateless-rpc", "--http-backend-info-refs"])
            .arg(&ask.entry.dir);
        let bytes = self.output(command).await.inspect_err(|refusal| {
            if let Refusal::Failed(said) = refusal
                && let Some(doubt) = Doubt::of(said)
            {
                ask.entry.live.doubt(doubt);
            }
        })?;
        drop(turn);
        if key.is_none()
            && let Some(own) = self.scratch.own(ask)
        {
            let lines = own.lines(&self.git, &[]).await?;
            return Ok(scratch::behind(bytes.into(), &lines).into());
        }
        if let Some(key) = key
            && bytes.len() <= ADVERTISEMENT
        {
            let mut kept = self.capabilities();
            if kept.len() > 4096 {
                kept.clear();
            }
            kept.insert(key, (stamp, bytes.clone()));
        }
        Ok(bytes)
    }

    fn capabilities(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (SystemTime, Bytes)>> {
        self.capabilities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a command that prints little.
    async fn output(&self, command: GitCommand) -> Result<Bytes, Refusal> {
        let mut process = self.spawner.git(command).await?;
        drop(process.stdin.take());
        let mut bytes = Vec::new();
        if let Some(mut stdout) = process.stdout.take() {
            tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut bytes).await?;
        }
        let (status, said) = process.wait().await?;
        match status.success() {
            true => Ok(bytes.into()),
            false => Err(Refusal::Failed(super::process::telling(&said))),
        }
    }

    /// Answers one request of a fetch. What it comes to is said to the observer.
    pub async fn upload(&self, ask: &Ask, source: &mut Source, output: &mut Output) -> Result<(), Refusal> {
        let own = self.scratch.own(ask);
        let (mut prefixes, mut wants) = (Vec::new(), Vec::new());
        let (shape, weight) = match source.peek(ask::is_enough).await {
            Ok(bytes) => {
                if own.is_some() {
                    (prefixes, wants) = (ask::prefixes(bytes), ask::wants(bytes));
                }
                ask::shape(bytes, ask.protocol.version)
            }
            Err(error) => {
                output.fail(failure(&error)).await;
                let ended = Ended { outcome: outcome(&error), sent: 0, said: String::new() };
                self.served(ask, GitService::UploadPack, Shape::Other, Duration::ZERO, source.received, ended);
                return Ok(());
            }
        };
        let report = Report::new(self, ask, GitService::UploadPack, shape);
        let turn = self.queue.turn(&ask.entry.name, weight).await.inspect_err(|_| report.busy())?;
        let report = report.queued(turn.queued);
        let mut dir = ask.entry.dir.as_path();
        match &own {
            // In the second version refs come in any order.
            Some(own) if shape == Shape::Refs => {
                let lines = own.lines(&self.git, &prefixes).await?;
                if !lines.is_empty() && !output.send(lines.into()).await {
                    return Ok(());
                }
            }
            Some(own) if !wants.is_empty() && scratch::lacks(&self.git, dir, wants).await? => dir = own.dir(),
            _ => {}
        }
        let command = self.upload_pack(ask, dir).arg("--stateless-rpc").arg(dir);
        let process = self.spawner.git(command).await?;
        let ended = relay(process, source, output).await;
        report.done(source.received, ended);
        drop(turn);
        Ok(())
    }

    /// Serves a fetch on a socket from its first byte to its last.
    pub async fn upload_on(&self, ask: &Ask, source: &mut Source, output: &mut Output) -> Result<(), Refusal> {
        let report = Report::new(self, ask, GitService::UploadPack, Shape::Other);
        let turn = self.queue.turn(&ask.entry.name, Weight::Heavy).await.inspect_err(|_| report.busy())?;
        let report = report.queued(turn.queued);
        let patience = format!("--timeout={}", self.settings.idle_timeout.as_secs().max(1));
        let command = self.upload_pack(ask, &ask.entry.dir).arg(patience).arg(&ask.entry.dir);
        let process = self.spawner.git(command).await?;
        let ended = relay(process, source, output).await;
        report.done(source.received, ended);
        drop(turn);
        Ok(())
    }

    /// What a push is told first: the refs that may be written, and what need not be sent.
    pub async fn advertise_push(&self, ask: &Ask) -> Result<Bytes, Refusal> {
        let Some(target) = self.scratch.target(ask).await? else {
            return Ok(scratch::nothing(ask.entry.format));
        };
        let turn = self.queue.turn(&ask.entry.name, Weight::Light).await?;
        let bytes = self.output(target.receive_pack(&self.git).arg("--http-backend-info-refs").arg(target.dir())).await;
        drop(turn);
        bytes
    }

    /// Takes a push: what is not allowed is refused before anything is run for it.
    pub async fn receive(&self, ask: &Ask, source: &mut Source, output: &mut Output) -> Result<(), Refusal> {
        let report = Report::new(self, ask, GitService::ReceivePack, Shape::Push);
        let commands = match scratch::Commands::read(source).await {
            Ok(commands) => commands,
            Err(error) => {
                output.fail(failure(&error)).await;
                report.done(source.received, Ended { outcome: outcome(&error), sent: 0, said: String::new() });
                return Ok(());
            }
        };
        // `0000`: git asks whether it may before it sends something large.
        if commands.is_empty() {
            report.done(source.received, Ended { outcome: Outcome::Done, sent: 0, said: String::new() });
            return Ok(());
        }
        let target = self.scratch.target(ask).await?;
        let mut plan = scratch::Plan::new(ask.asked.who.session().map(|session| &session.id), &commands);
        if let Some(target) = &target {
            self.scratch.within_quota(target, &commands, &mut plan)?;
        }
        let Some(target) = target.filter(|_| plan.any_accepted()) else {
            let answer = scratch::report(&commands, &plan, None);
            let sent = answer.len() as u64;
            // It is read to its end: a client that still sends does not read. On a socket the end is
            // the client's, after it has read.
            let on_socket = source.end_is_gone();
            let there = (on_socket || scratch::drain(source).await) && (answer.is_empty() || output.send(answer).await);
            if on_socket && !commands.only_deletes() {
                scratch::drain(source).await;
            }
            let outcome = if there { Outcome::Refused } else { Outcome::Disconnected };
            report.done(source.received, Ended { outcome, sent, said: String::new() });
            return Ok(());
        };
        let turn = self.queue.turn(&ask.entry.name, Weight::Heavy).await.inspect_err(|_| report.busy())?;
        let report = report.queued(turn.queued);
        self.scratch.borrow_shallow(&target, &commands).await?;
        source.put_back(&commands.accepted(&plan));
        let process: GitProcess = self.spawner.git(target.receive_pack(&self.git).arg(target.dir())).await?;
        let mut kept = Vec::new();
        let mut ended = collect(process, source, &mut kept, scratch::REPORT).await;
        if ended.outcome == Outcome::Done || !kept.is_empty() {
            let answer = scratch::report(&commands, &plan, Some(&kept));
            ended.sent = answer.len() as u64;
            if !answer.is_empty() && !output.send(answer).await {
                ended.outcome = Outcome::Disconnected;
            }
        } else if ended.outcome == Outcome::Failed {
            output.fail(Failure::Git).await;
        }
        report.done(source.received, ended);
        drop(turn);
        Ok(())
    }
}

fn failure(error: &SourceError) -> Failure {
    match error {
        SourceError::TooLarge { .. } => Failure::TooLarge,
        _ => Failure::Malformed,
    }
}

fn outcome(error: &SourceError) -> Outcome {
    match error {
        SourceError::Gone(_) => Outcome::Disconnected,
        _ => Outcome::Malformed,
    }
}

/// Says how a request ended, also when it is dropped because its client is gone.
struct Report<'s> {
    smart: &'s Smart,
    ask: &'s Ask,
    service: GitService,
    shape: Shape,
    queued: Duration,
    said: std::cell::Cell<bool>,
}

impl<'s> Report<'s> {
    fn new(smart: &'s Smart, ask: &'s Ask, service: GitService, shape: Shape) -> Self {
        Self { smart, ask, service, shape, queued: Duration::ZERO, said: std::cell::Cell::new(false) }
    }

    fn queued(mut self, queued: Duration) -> Self {
        self.queued = queued;
        self
    }

    fn busy(&self) {
        self.end(0, Ended { outcome: Outcome::Busy, sent: 0, said: String::new() });
    }

    fn done(self, received: u64, ended: Ended) {
        self.end(received, ended);
    }

    fn end(&self, received: u64, ended: Ended) {
        if !self.said.replace(true) {
            self.smart.served(self.ask, self.service, self.shape, self.queued, received, ended);
        }
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.end(0, Ended { outcome: Outcome::Disconnected, sent: 0, said: String::new() });
    }
}
