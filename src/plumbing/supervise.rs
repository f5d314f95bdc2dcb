//! `__supervise DIR [--once] --reserve=auto|none|BYTES`: the supervisor of one sandbox.

use super::argument;
use crate::error::CliError;
use sandbox_core::launch::LaunchSpec;
use sandbox_core::record::SandboxRecord;
use sandbox_core::space::Reserve;
use sandbox_core::store::{Store, read_json};
use sandbox_protocol::{Failure, FailureKind, Message, encode_control, try_encode_control};
use sandbox_supervisor::{Config, supervise};
use sandbox_sys::lock::FileLock;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let dir = PathBuf::from(argument(args, 0, "the sandbox's directory")?);
    let once = args.iter().any(|arg| arg == "--once");
    let reserve = args.iter().find_map(|arg| arg.to_str()?.strip_prefix("--reserve="));
    let reserve = match reserve {
        Some("none") => Reserve::None,
        Some(bytes) => bytes.parse().map_or(Reserve::Auto, Reserve::Bytes),
        None => Reserve::Auto,
    };
    // A session of our own: the terminal's signals and its end are not for us.
    let _ = rustix::process::setsid();
    // Whatever else the caller had open (a pipe that somebody waits for the end of, a file) is not ours.
    sandbox_sys::fork::close_from(3, None).map_err(CliError::io("close inherited descriptors"))?;
    let (client, lock) = (take(io::stdin().as_fd())?, FileLock::adopt(take(io::stdout().as_fd())?));
    close_standard()?;
    let client = UnixStream::from(client);
    let report = client.try_clone().map_err(CliError::io("duplicate the connection"))?;
    run_in(&dir, once, reserve, client, lock).inspect_err(|error| tell(&report, error))
}

fn run_in(dir: &Path, once: bool, reserve: Reserve, client: UnixStream, lock: FileLock) -> Result<(), CliError> {
    let (store, dir) = open(dir)?;
    let spec: LaunchSpec = read_json(&dir.launch())?.ok_or_else(|| CliError::new("there is nothing to launch"))?;
    let record: SandboxRecord = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let driver = sandbox_drivers::by_name(&record.driver).ok_or_else(|| {
        CliError::new(format!("this program has no driver '{}'", record.driver)).hint("`git sandbox doctor` lists them")
    })?;
    let program = spec.program.to_string_lossy().into_owned();
    let own = dir.path().to_string_lossy().into_owned();
    let config = Config {
        spec,
        first_client: Some(client),
        once,
        timeout: record.timeout.map(Duration::from_secs),
        lock,
        auto_commit: record.auto_commit || records(&record),
        commit_back: vec![program.clone(), "__commit-back".into(), own.clone()],
        rescue: vec![program.clone(), "__rescue".into(), own.clone()],
        rescue_every: Some(Duration::from_secs(record.rescue_every)).filter(|every| !every.is_zero()),
        serve_host: vec![program.clone(), "__serve-host".into(), own],
        mirror: vec![program.clone(), "__mirror".into(), dir.mirror().to_string_lossy().into_owned()],
        proxy: vec![program, "__proxy".into(), dir.network().to_string_lossy().into_owned()],
        reserve,
        terminate: Some(terminate()?),
        dir,
    };
    let _ = store;
    Ok(supervise(config, driver)?)
}

/// What its command has done is recorded on the mirror, when it has ended.
pub fn records(record: &SandboxRecord) -> bool {
    record.mirror.as_ref().is_some_and(|mirror| mirror.record && mirror.session.is_some())
}

/// The store that a sandbox's directory is in, and the directory.
pub fn open(dir: &Path) -> Result<(Store, sandbox_core::store::SandboxDir), CliError> {
    let lost = || CliError::new(format!("'{}' is not a sandbox's directory", dir.display()));
    let id = dir.file_name().and_then(|name| name.to_str()).and_then(sandbox_core::id::SandboxId::parse);
    let root = dir.parent().and_then(Path::parent);
    let (Some(id), Some(root)) = (id, root) else { return Err(lost()) };
    let store = Store::open(root)?;
    let dir = store.sandbox(&id);
    Ok((store, dir))
}

/// A standard descriptor as one of our own.
pub fn take(fd: std::os::fd::BorrowedFd<'_>) -> Result<std::os::fd::OwnedFd, CliError> {
    fd.try_clone_to_owned().map_err(CliError::io("take over a descriptor"))
}

/// Standard input and output lead nowhere from now on.
pub fn close_standard() -> Result<(), CliError> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(CliError::io("open '/dev/null'"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| CliError::io("close standard input")(e.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| CliError::io("close standard output")(e.into()))
}

/// TERM as a descriptor; HUP and INT are not for a supervisor.
fn terminate() -> Result<std::os::fd::OwnedFd, CliError> {
    let watch = || -> io::Result<UnixStream> {
        let (read, write) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, write)?;
        for signal in [signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        Ok(read)
    };
    Ok(watch().map_err(CliError::io("watch for signals"))?.into())
}

/// Sends a whole error to the client that waits for the launch.
fn tell(mut client: &UnixStream, error: &CliError) {
    let message = serde_json::to_string(error).unwrap_or_else(|_| error.message.clone());
    let mut out = Vec::new();
    let whole = Message::Error(Failure { kind: FailureKind::Other, message });
    if !try_encode_control(&mut out, 0, &whole) {
        let message = error.message.chars().take(4000).collect();
        encode_control(&mut out, 0, &Message::Error(Failure { kind: FailureKind::Other, message }));
    }
    let _ = client.set_nonblocking(false);
    let _ = client.write_all(&out);
}
