//! Starting a sandbox's supervisor: this program again, in a session of its own. It gets our
//! end of the first connection as standard input and the locked file as standard output, so
//! that nothing has to be waited for and the lock never changes hands unlocked.

use crate::context::Context;
use crate::error::CliError;
use crate::terminal::features;
use crate::wall::{Demands, lowered_words};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::launch::{Mode, Network};
use sandbox_core::sandbox::{Sandbox, SandboxError, State};
use sandbox_core::space::{Need, Reserve};
use sandbox_core::store::{Store, make_dir, write_json};
use sandbox_protocol::{Exec, Failure, FailureKind, Frame, FrameType, Message, escape_bytes};
use sandbox_sys::lock::FileLock;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts the supervisor of a sandbox whose lock is held, and returns a connection to it.
/// Whether the launch worked is the connection's first news. `once`: it ends with its last session.
pub fn start(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    lock: FileLock,
    once: bool,
) -> Result<Connection, CliError> {
    if sandbox.record.network == Network::Allow {
        // One that cannot be read lets nothing out: better said now than found out by whoever is inside.
        crate::verbs::allow::rules(sandbox)?;
    }
    // Settings may have become stricter since it was made.
    let demands = Demands::read(context, None)?;
    let min = demands.min.max(sandbox.record.min_isolation);
    Demands { min, ..Demands::default() }.refuse_weaker(crate::verbs::spawn::driver(&sandbox.record.driver)?)?;
    demands.refuse_lowering(context, &sandbox.record.allow_weak)?;
    store.has_room(Need::default())?;
    empty_tmp(sandbox)?;
    let mut spec = crate::vm::launch_spec(context, store, sandbox, Mode::Work)?;
    spec.require.extend(demands.require);
    write_json(&sandbox.dir.launch(), &spec, false)?;
    let log_dir = sandbox.dir.path().join("log");
    make_dir(&log_dir)?;
    let errors = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(log_dir.join("supervisor.log"))
        .map_err(CliError::io(format!("write '{}'", log_dir.join("supervisor.log").display())))?;
    let (ours, theirs) = UnixStream::pair().map_err(CliError::io("make a socket pair"))?;
    let mut command = Command::new(&context.program);
    command.arg("__supervise").arg(sandbox.dir.path());
    if once {
        command.arg("--once");
    }
    command
        .current_dir("/")
        .arg(reserve(context.disk_reserve()?))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(lock.into_fd()))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(CliError::io("start the sandbox's supervisor"))?;
    Ok(Connection::with_features(ours, &features())?)
}

/// What the supervisor is told of `sandbox.diskReserve`.
fn reserve(reserve: Reserve) -> String {
    let text = match reserve {
        Reserve::Auto => "auto".to_owned(),
        Reserve::Bytes(bytes) => bytes.to_string(),
        Reserve::None => "none".to_owned(),
    };
    format!("--reserve={text}")
}

/// The private `/tmp` begins empty, as after a boot. A start that was cut here may have left none, or one of
/// the wrong owner.
fn empty_tmp(sandbox: &Sandbox) -> Result<(), CliError> {
    let tmp = sandbox.dir.tmp();
    let owner = sandbox_core::prepare::owner(&sandbox.record.user);
    let is_ours = |meta: std::fs::Metadata| owner.is_none_or(|owner| owner == (meta.uid(), meta.gid()));
    if tmp.symlink_metadata().is_ok_and(is_ours)
        && std::fs::read_dir(&tmp).is_ok_and(|mut entries| entries.next().is_none())
    {
        return Ok(());
    }
    if tmp.symlink_metadata().is_ok() {
        sandbox_capture::remove_tree(&tmp).map_err(CliError::io(format!("empty '{}'", tmp.display())))?;
    }
    make_dir(&tmp)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(&tmp, Some(uid), Some(gid))
            .map_err(CliError::io(format!("change the owner of '{}'", tmp.display())))?;
    }
    Ok(())
}

/// Connects to a sandbox, starting it first when it does not run. Another command may start,
/// stop or read it at this moment: whoever comes second waits, and then does what is left to do.
pub fn connect_or_start(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Connection, CliError> {
    let until = Instant::now() + sandbox.patience();
    loop {
        if sandbox.state()? == State::Running {
            match sandbox.connect_with(&features()) {
                Err(SandboxError::NotRunning { .. }) => {}
                other => return Ok(other?),
            }
        }
        store.writable()?;
        match sandbox.take(Duration::from_millis(100)) {
            Ok(lock) => {
                let weak = lowered_words(&sandbox.record);
                if !weak.is_empty() {
                    eprintln!("starting '{}'{weak}", sandbox.name());
                }
                return start(context, store, sandbox, lock, true);
            }
            Err(SandboxError::Running { .. } | SandboxError::Busy { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until a session was started; the launch's and the command's failures are told apart.
pub fn wait_started(connection: &mut Connection, stream: u32) -> Result<(), CliError> {
    started(connection, stream)?.map_err(|failure| refused(&failure))
}

/// The same, with the refusal as it came.
pub fn started(connection: &mut Connection, stream: u32) -> Result<Result<(), Failure>, ConnectionError> {
    loop {
        let frame = connection.recv()?;
        if frame.stream != stream && frame.stream != 0 {
            continue;
        }
        match answer(&frame)? {
            Some(Message::Error(failure)) => return Ok(Err(failure)),
            Some(Message::Started { .. }) if frame.stream == stream => return Ok(Ok(())),
            _ => {}
        }
    }
}

fn answer(frame: &Frame) -> Result<Option<Message>, ConnectionError> {
    match frame.kind {
        FrameType::Control => Ok(Some(frame.message().map_err(ConnectionError::Protocol)?)),
        _ => Ok(None),
    }
}

/// Turns a refusal into an error; a supervisor that could not launch sends a whole one.
pub fn refused(failure: &Failure) -> CliError {
    // The supervisor lets nothing from inside pass that reads as one.
    if let Ok(error) = serde_json::from_str::<CliError>(&failure.message) {
        return error;
    }
    let error = CliError::new(crate::text::escape(&failure.message));
    match failure.kind {
        FailureKind::NotFound => error
            .status(127)
            .hint("is it installed on the host, in a directory that is shown inside? `git sandbox doctor` lists them"),
        FailureKind::CannotExecute => error.status(126),
        FailureKind::Frozen => {
            error.hint("make room on that disk, and it goes on by itself; `git sandbox show` tells how much")
        }
        FailureKind::NoDirectory => {
            error.hint("the directory is one inside the sandbox: `--workdir DIR` names another")
        }
        _ => error,
    }
}

/// Makes the request that starts a command.
pub fn exec_request(command: &[OsString], cwd: &Path, tty: bool, main: bool) -> Exec {
    Exec {
        argv: command.iter().map(|arg| escape_bytes(arg.as_bytes())).collect(),
        env: Vec::new(),
        cwd: escape_bytes(cwd.as_os_str().as_bytes()),
        tty: tty.then(crate::terminal::window),
        main,
        internal: false,
    }
}

/// The user's shell as a command, with the prompt that names the sandbox.
pub fn shell_command(shell: &Path) -> Vec<OsString> {
    use sandbox_core::launch::INSIDE;
    let name = shell.file_name().and_then(|name| name.to_str()).unwrap_or("sh");
    let mut command: Vec<OsString> = vec![shell.into()];
    match name {
        "bash" => command.extend(["--rcfile".into(), format!("{INSIDE}/bashrc").into(), "-i".into()]),
        "fish" => command.extend([
            "-i".into(),
            "-C".into(),
            "functions -q fish_prompt; and functions -c fish_prompt __gs_prompt; \
             function fish_prompt; set_color -o cyan; echo -n \"($GIT_SANDBOX) \"; set_color normal; \
             functions -q __gs_prompt; and __gs_prompt; or echo -n '> '; end"
                .into(),
        ]),
        _ => command.push("-i".into()),
    }
    command
}

/// As [`shell_command`] without a terminal: commands from standard input.
pub fn shell_batch(shell: &Path) -> Vec<OsString> {
    vec![shell.into()]
}
