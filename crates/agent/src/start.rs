//! From exec to the first poll: what the agent sets up, in this order.
//!
//! ```text
//! descriptors 3 and 4 ► AgentConfig ► PDEATHSIG, parent still there? ► not dumpable, no_new_privs
//!   ► signals as a descriptor ► fork of the nursery (which loads its filter meanwhile)
//!   ► unfinished renames of an earlier life are undone ► agent.sock ► own filter ► the nursery is ready
//!   ► threads that answer its notifications ► Hello
//! ```

use crate::nursery::{self, Ready, Setup};
use crate::relay::Relay;
use crate::rename::{self, Notifier, work};
use crate::server::{Nursery, Server};
use crate::wire::{Wire, WireError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Signal, WaitOptions, getpid, kill_process, set_dumpable_behavior,
    set_parent_process_death_signal, waitpid,
};
use sandbox_protocol::{
    AGENT_SOCKET, AgentConfig, CONFIG_FD, CONTROL_FD, Failure, FailureKind, Hello, Message, RELAY_FD, VERSIONS,
};
use sandbox_sys::fork::{fork, inherited};
use sandbox_sys::signals::SignalFd;
use sandbox_sys::{caps, seccomp, socket};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Started by hand, or by a driver that forgot the namespace: `kill(-1)` must not reach the host.
    #[error("the agent must be the first process of a pid namespace")]
    NotInit,
    /// The control socket was not handed over, or its other end is gone already.
    #[error("the agent has no control channel")]
    Control(#[source] io::Error),
    /// The start parameters cannot be read.
    #[error("the agent cannot read its configuration")]
    Config(#[source] io::Error),
    /// A layer of the wall that must hold does not.
    #[error("the agent cannot enforce '{layer}'")]
    Weak {
        /// Its name for `--allow-weak`.
        layer: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step failed.
    #[error("the agent cannot {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How long the rest of a rename may take at a start; what is left then, the next one goes on with.
const RECOVERY: Duration = Duration::from_secs(20);

fn step(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Step { step, source }
}

/// Sets everything up and returns the loop, ready to run. What went wrong is told to whoever
/// waits at the control channel: there is no terminal to print to.
pub fn start_or_report() -> Option<Server> {
    // Without a channel there is nobody to tell; the exit status remains.
    let control = UnixStream::from(inherited(CONTROL_FD).ok()?);
    match start(&control) {
        Ok(server) => Some(server),
        Err(error) => {
            report(control, &error);
            None
        }
    }
}

/// Puts in order what an earlier life left in a tree, by a child: what is there was made by whoever was
/// inside, and may end who walks it, or keep them for ever.
fn recover(top: &Path) {
    if !work::may_need_recovery(top) {
        return;
    }
    let Ok(child) = fork(|| u8::from(caps::drop_all().is_err() || work::recover(top).is_err())) else { return };
    let ended = || matches!(waitpid(Some(child), WaitOptions::NOHANG), Ok(Some(_)) | Err(_));
    let until = Instant::now() + RECOVERY;
    while !ended() {
        if Instant::now() > until {
            let _ = kill_process(child, Signal::KILL);
            let _ = waitpid(Some(child), WaitOptions::empty());
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start(control: &UnixStream) -> Result<Server, StartError> {
    if getpid().as_raw_nonzero().get() != 1 {
        return Err(StartError::NotInit);
    }
    let config = read_config()?;
    protect(control)?;
    let signals = SignalFd::new(&[Signal::CHILD, Signal::TERM]).map_err(step("read signals"))?;

    // Forked before anything else is open, and while this process is small.
    let (socket, pid) = fork_nursery(&config).map_err(step("start the nursery"))?;
    for tree in config.trees.iter().filter(|tree| tree.rename_exdev && !tree.read_only) {
        // A tree that cannot be put in order is still a tree: nothing of it is lost, see `work`.
        recover(&tree.at);
    }
    let relay = if config.relay {
        inherited(RELAY_FD).ok().and_then(|socket| Relay::on(UnixListener::from(socket)))
    } else {
        Relay::listen(Path::new(AGENT_SOCKET))
    };

    let mut enforced = config.enforced.clone();
    let mut enforce = |layer: &'static str, result: io::Result<bool>| match result {
        Ok(true) => {
            if !enforced.iter().any(|name| name == layer) {
                enforced.push(layer.into());
            }
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(source) if config.allow_weak.iter().any(|name| name == layer) => {
            drop(source);
            enforced.retain(|name| name != layer);
            Ok(())
        }
        Err(source) => Err(StartError::Weak { layer, source }),
    };
    // While the nursery loads its own.
    enforce("seccomp", load_base_filter(&config))?;
    let (ready, listener) = match nursery::receive_ready(&socket) {
        Ok(ready) => ready,
        Err(error) => {
            enforce("seccomp", Err(error))?;
            (Ready::Failed, None)
        }
    };
    let notifier = Arc::new(Notifier::new(&config).map_err(step("make an event descriptor"))?);
    match listener {
        Some(listener) => {
            rename::answer(listener, &notifier).map_err(step("start threads"))?;
            enforce("rename-notify", Ok(true))?;
        }
        None => enforced.retain(|name| name != "rename-notify"),
    }
    let nursery = if ready == Ready::Failed {
        // Allowed to be without a filter: the nursery that could not load it has ended.
        let bare = AgentConfig { session_filter: Default::default(), ..config.clone() };
        let (socket, pid) = fork_nursery(&bare).map_err(step("start the nursery"))?;
        nursery::receive_ready(&socket).map_err(step("start the nursery"))?;
        Nursery { socket, pid }
    } else {
        Nursery { socket, pid }
    };

    let mut control = control.try_clone().and_then(Wire::new).map_err(StartError::Control)?;
    let mut features = vec!["sessions".to_owned(), "refs-moved".to_owned()];
    if relay.is_some() {
        features.push("agent-socket".into());
    }
    control.control(0, &Message::Hello(Hello { min: VERSIONS.0, max: VERSIONS.1, features, enforced }));
    Ok(Server::new(control, config, nursery, signals, notifier, relay))
}

fn read_config() -> Result<AgentConfig, StartError> {
    let file = File::from(inherited(CONFIG_FD).map_err(StartError::Config)?);
    // A memory file: its size is known, and its offset may be at its end.
    let length = file.metadata().map_err(StartError::Config)?.len();
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(StartError::Config)?;
    serde_json::from_slice(&bytes).map_err(|error| StartError::Config(error.into()))
}

fn protect(control: &UnixStream) -> Result<(), StartError> {
    caps::no_new_privs().map_err(step("set no_new_privs"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| step("become undumpable")(e.into()))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| step("set a death signal")(e.into()))?;
    // The parent may have ended before that: then nobody holds the other end.
    let mut fds = [PollFd::new(control, PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).map_err(|error| StartError::Control(error.into()))?;
    if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(StartError::Control(io::ErrorKind::NotConnected.into()));
    }
    Ok(())
}

fn load_base_filter(config: &AgentConfig) -> io::Result<bool> {
    if config.base_filter.0.is_empty() {
        return Ok(false);
    }
    seccomp::load(&seccomp::Program::from_bytes(&config.base_filter.0)?)?;
    Ok(true)
}

/// Forks a nursery; returns our end of its socket and its pid.
pub fn fork_nursery(config: &AgentConfig) -> io::Result<(OwnedFd, rustix::process::Pid)> {
    let (ours, theirs) = socket::message_pair()?;
    let setup = Setup {
        filter: config.session_filter.0.clone(),
        listen: config.rename_notify,
        plain_filter: config.base_filter.0.clone(),
    };
    let pid = fork(|| nursery::live(theirs, &setup))?;
    Ok((ours, pid))
}

fn report(control: UnixStream, error: &StartError) {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    let send = || -> Result<(), WireError> {
        let mut wire = Wire::new(control)?;
        wire.control(0, &Message::Error(Failure { kind: FailureKind::Other, message }));
        wire.flush()
    };
    // The parent may be gone, and with it whoever would read this.
    let _ = send();
}
