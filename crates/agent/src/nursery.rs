//! The nursery: the process that all sessions descend from, and how PID 1 asks it for one.
//!
//! ```text
//!  PID 1                                   nursery
//!    │  ready ◄──── the filter's listener ────┤  no capabilities, session filter
//!    ├──── Spawn + descriptors ──────────────►│
//!    │ ◄──── Spawned: pid ────────────────────┤──clone(CLONE_PARENT)──► child
//!    │ ◄──── error pipe: Trouble, or its end when the exec was done ───────┤
//!    │ ◄──── SIGCHLD: the child's parent is PID 1 ─────────────────────────┘
//!
//!  descriptors: error pipe, then the terminal | standard input, output, error
//! ```
//!
//! Messages are records on a SEQPACKET socket, numbers little endian, strings `u32 length, bytes`.
//! Only these two processes, of one build, ever see them.

use sandbox_sys::fork::{cloexec_from, close_from, exec, fork_sibling};
use sandbox_sys::{caps, pty, seccomp, signals, socket};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The largest record: what an unprivileged socket buffer holds in one piece.
const MAX_RECORD: usize = 200 * 1024;

/// Where commands are looked for when a session's environment names no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// A request for one session.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Spawn {
    /// Comes back in [`Spawned`].
    pub id: u32,
    /// The only descriptor is a terminal, which becomes the session's.
    pub tty: bool,
    /// Where it starts.
    pub cwd: Vec<u8>,
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its whole environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
}

impl Spawn {
    /// Returns the record; an error when it does not fit one.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let number = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u32).to_le_bytes());
        number(&mut out, self.id as usize);
        out.push(u8::from(self.tty));
        for list in [std::slice::from_ref(&self.cwd), &self.argv, &self.env] {
            number(&mut out, list.len());
            for item in list {
                number(&mut out, item.len());
                out.extend_from_slice(item);
            }
        }
        if out.len() > MAX_RECORD {
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, "arguments and environment are too long"));
        }
        Ok(out)
    }

    /// Reads a record; `None` when it is not one.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        let id = take_number(&mut rest)?;
        let (&tty, tail) = rest.split_first()?;
        rest = tail;
        let mut list = || -> Option<Vec<Vec<u8>>> {
            let count = take_number(&mut rest)?;
            (0..count)
                .map(|_| {
                    let length = take_number(&mut rest)? as usize;
                    let (item, tail) = rest.split_at_checked(length)?;
                    rest = tail;
                    Some(item.to_vec())
                })
                .collect()
        };
        let (mut cwd, argv, env) = (list()?, list()?, list()?);
        let spawn = Self { id, tty: tty != 0, cwd: cwd.pop()?, argv, env };
        (rest.is_empty() && cwd.is_empty() && !spawn.argv.is_empty()).then_some(spawn)
    }
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_le_bytes(*bytes))
}

/// The nursery's answer: the child's pid, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spawned {
    /// Which request.
    pub id: u32,
    /// Its pid, or the error number of the clone.
    pub result: Result<i32, i32>,
}

impl Spawned {
    fn encode(self) -> [u8; 8] {
        let [a, b, c, d] = self.id.to_le_bytes();
        let value = match self.result {
            Ok(pid) => pid,
            Err(number) => -number,
        };
        let [e, f, g, h] = value.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// Reads a record.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let mut rest = record;
        let (id, value) = (take_number(&mut rest)?, take_number(&mut rest)? as i32);
        Some(Self { id, result: if value > 0 { Ok(value) } else { Err(-value) } })
    }
}

/// At which step a child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Its descriptors, terminal or limits.
    Setup = 0,
    /// The working directory.
    Directory = 1,
    /// The command was not found.
    Find = 2,
    /// The command was found and cannot be executed.
    Execute = 3,
}

/// Why a child could not become the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Where.
    pub step: Step,
    /// Error number.
    pub errno: i32,
}

impl Trouble {
    fn of(step: Step) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { step, errno: error.raw_os_error().unwrap_or(0) }
    }

    fn encode(self) -> [u8; 5] {
        let [a, b, c, d] = self.errno.to_le_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// Reads what came through the error pipe.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let (&step, errno) = record.split_first()?;
        let step = match step {
            0 => Step::Setup,
            1 => Step::Directory,
            2 => Step::Find,
            _ => Step::Execute,
        };
        Some(Self { step, errno: i32::from_le_bytes(errno.try_into().ok()?) })
    }
}

/// What the nursery says of itself first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ready {
    /// No filter was asked for.
    Bare = 0,
    /// The filter stands.
    Filtered = 1,
    /// The filter stands, and its listener comes with this message.
    Listening = 2,
    /// The filter was refused.
    Failed = 3,
}

/// Reads the nursery's first message: what stands, the listener, or the refusal.
pub fn receive_ready(socket: &OwnedFd) -> io::Result<(Ready, Option<OwnedFd>)> {
    let mut record = [0; 16];
    let (length, mut fds) = socket::receive(socket, &mut record, true)?;
    let ready = match record[..length] {
        [0] => Ready::Bare,
        [1] => Ready::Filtered,
        [2] => Ready::Listening,
        [3, a, b, c, d] => return Err(io::Error::from_raw_os_error(i32::from_le_bytes([a, b, c, d]))),
        _ => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the nursery ended at its start")),
    };
    Ok((ready, fds.pop()))
}

/// What the nursery needs to know.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its filter; empty for none.
    pub filter: Vec<u8>,
    /// The filter has notifications.
    pub listen: bool,
    /// The filter when a listener cannot be had; empty for none.
    pub plain_filter: Vec<u8>,
}

/// The nursery's life, in the forked process. Returns its exit status.
pub fn live(socket: OwnedFd, setup: &Setup) -> u8 {
    // Whatever PID 1 had open is not for us: a session must never be born with it.
    let _ = close_from(3, Some(socket.as_raw_fd() as u32));
    let _ = rustix::process::setsid();
    signals::default_actions();
    signals::block_all();
    match harden(setup) {
        Ok((ready, listener)) => {
            let fds: Vec<BorrowedFd<'_>> = listener.iter().map(AsFd::as_fd).collect();
            if socket::send(&socket, &[ready as u8], &fds).is_err() {
                return 1;
            }
        }
        Err(error) => {
            let [a, b, c, d] = error.raw_os_error().unwrap_or(0).to_le_bytes();
            let _ = socket::send(&socket, &[Ready::Failed as u8, a, b, c, d], &[]);
            return 1;
        }
    }
    let mut record = vec![0; MAX_RECORD];
    loop {
        let Ok((length, fds)) = socket::receive(&socket, &mut record, true) else { return 1 };
        if length == 0 {
            return 0;
        }
        let Some(spawn) = Spawn::decode(&record[..length]) else { return 1 };
        let result = match fork_sibling(|| child(&spawn, &fds)) {
            Ok(pid) => Ok(pid.as_raw_nonzero().get()),
            Err(error) => Err(error.raw_os_error().unwrap_or(0)),
        };
        if socket::send(&socket, &Spawned { id: spawn.id, result }.encode(), &[]).is_err() {
            return 1;
        }
    }
}

fn harden(setup: &Setup) -> io::Result<(Ready, Option<OwnedFd>)> {
    caps::drop_all()?;
    caps::no_new_privs()?;
    if setup.filter.is_empty() {
        return Ok((Ready::Bare, None));
    }
    let program = seccomp::Program::from_bytes(&setup.filter)?;
    if setup.listen {
        match seccomp::load_with_listener(&program) {
            Ok(listener) => return Ok((Ready::Listening, Some(listener))),
            // Without a listener its notifications would be ENOSYS for every rename.
            Err(_) if setup.plain_filter.is_empty() => return Ok((Ready::Bare, None)),
            Err(_) => seccomp::load(&seccomp::Program::from_bytes(&setup.plain_filter)?)?,
        }
    } else {
        seccomp::load(&program)?;
    }
    Ok((Ready::Filtered, None))
}

/// A session leader's life up to its exec.
fn child(spawn: &Spawn, fds: &[OwnedFd]) -> u8 {
    let Some((errors, stdio)) = fds.split_first() else { return 125 };
    let trouble = match prepare(spawn, stdio) {
        Ok(()) => execute(spawn),
        Err(trouble) => trouble,
    };
    let _ = rustix::io::write(errors, &trouble.encode());
    127
}

fn prepare(spawn: &Spawn, stdio: &[OwnedFd]) -> Result<(), Trouble> {
    let setup = || -> io::Result<()> {
        rustix::process::setsid()?;
        let (input, output, error) = match stdio {
            [terminal] => {
                pty::make_controlling(terminal)?;
                (terminal, terminal, terminal)
            }
            [input, output, error] => (input, output, error),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(error)?;
        // PID 1 reads and writes its ends without blocking; these are other descriptions.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        cloexec_from(3)
    };
    setup().map_err(Trouble::of(Step::Setup))?;
    rustix::process::chdir(OsStr::from_bytes(&spawn.cwd))
        .map_err(|error| Trouble { step: Step::Directory, errno: error.raw_os_error() })
}

/// Finds the command as `execvp` does and executes it; returns why it could not.
fn execute(spawn: &Spawn) -> Trouble {
    let strings = |list: &[Vec<u8>]| -> Option<Vec<CString>> {
        list.iter().map(|item| CString::new(item.as_slice()).ok()).collect()
    };
    let (Some(argv), Some(env)) = (strings(&spawn.argv), strings(&spawn.env)) else {
        return Trouble { step: Step::Execute, errno: rustix::io::Errno::INVAL.raw_os_error() };
    };
    signals::unblock_all();
    let name = argv[0].as_bytes();
    if name.is_empty() {
        return Trouble { step: Step::Find, errno: rustix::io::Errno::NOENT.raw_os_error() };
    }
    if name.contains(&b'/') {
        return attempt(&argv[0], &argv, &env);
    }
    let path = spawn.env.iter().find_map(|item| item.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut worst = Trouble { step: Step::Find, errno: rustix::io::Errno::NOENT.raw_os_error() };
    for candidate in candidates(path, name) {
        let trouble = attempt(&candidate, &argv, &env);
        // A file that cannot be executed does not end the search, but is what is told at its end.
        // A directory that cannot be searched holds nothing for us.
        if trouble.step == Step::Execute && worst.step == Step::Find && rustix::fs::stat(&*candidate).is_ok() {
            worst = trouble;
        }
    }
    worst
}

/// Returns the files that a command may be, in the order of `PATH`; an empty entry is the working directory.
fn candidates(path: &[u8], name: &[u8]) -> Vec<CString> {
    path.split(|byte| *byte == b':')
        .filter_map(|directory| {
            let mut file = if directory.is_empty() { b".".to_vec() } else { directory.to_vec() };
            file.push(b'/');
            file.extend_from_slice(name);
            CString::new(file).ok()
        })
        .collect()
}

fn attempt(file: &CString, argv: &[CString], env: &[CString]) -> Trouble {
    let error = exec(file, argv, env);
    let errno = error.raw_os_error().unwrap_or(0);
    let found = || rustix::fs::stat(file.as_c_str()).is_ok();
    match rustix::io::Errno::from_io_error(&error) {
        // A script without `#!` is the shell's, as with execvp.
        Some(rustix::io::Errno::NOEXEC) => {
            let mut shell = vec![c"/bin/sh".to_owned(), file.clone()];
            shell.extend_from_slice(&argv[1..]);
            exec(c"/bin/sh", &shell, env);
            Trouble { step: Step::Execute, errno }
        }
        // It exists: what is missing is its interpreter.
        Some(rustix::io::Errno::NOENT) if found() => Trouble { step: Step::Execute, errno },
        Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Trouble { step: Step::Find, errno },
        _ => Trouble { step: Step::Execute, errno },
    }
}

/// Returns a session's environment: the sandbox's own, changed by the request; `PWD` is the directory.
pub fn environment(own: &[(String, String)], changes: &[(String, Option<String>)], cwd: &[u8]) -> Vec<Vec<u8>> {
    let mut all: Vec<(&str, &str)> = Vec::with_capacity(own.len() + changes.len());
    let changed = own.iter().map(|(name, value)| (name, Some(value)));
    for (name, value) in changed.chain(changes.iter().map(|(name, value)| (name, value.as_ref()))) {
        all.retain(|(other, _)| other != name);
        if let Some(value) = value.filter(|_| !name.is_empty() && !name.contains('=')) {
            all.push((name, value));
        }
    }
    all.retain(|(name, _)| *name != "PWD");
    let mut env: Vec<Vec<u8>> = all.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
    env.push([b"PWD=", cwd].concat());
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let spawn = Spawn {
            id: 7,
            tty: true,
            cwd: b"/a b".to_vec(),
            argv: vec![b"x".to_vec(), Vec::new(), b"\xff".to_vec()],
            env: vec![b"A=1".to_vec()],
        };
        let record = spawn.encode().unwrap();
        assert_eq!(Spawn::decode(&record), Some(spawn));
        for cut in 0..record.len() {
            assert_eq!(Spawn::decode(&record[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Spawn::decode(&[record, vec![0]].concat()), None);
    }

    #[test]
    fn a_request_without_a_command_is_none() {
        let spawn = Spawn { cwd: b"/".to_vec(), ..Spawn::default() };
        assert_eq!(Spawn::decode(&spawn.encode().unwrap()), None);
    }

    #[test]
    fn too_long_a_request_is_refused() {
        let spawn = Spawn { argv: vec![vec![b'x'; MAX_RECORD]], ..Spawn::default() };
        assert_eq!(spawn.encode().unwrap_err().kind(), io::ErrorKind::ArgumentListTooLong);
    }

    #[test]
    fn answers_survive_the_wire() {
        for result in [Ok(42), Err(11)] {
            let spawned = Spawned { id: 3, result };
            assert_eq!(Spawned::decode(&spawned.encode()), Some(spawned));
        }
        let trouble = Trouble { step: Step::Directory, errno: 2 };
        assert_eq!(Trouble::decode(&trouble.encode()), Some(trouble));
        assert_eq!(Trouble::decode(&[]), None);
    }

    #[test]
    fn the_request_changes_the_environment() {
        let own = [("A".into(), "1".into()), ("B".into(), "2".into()), ("PWD".into(), "/x".into())];
        let changes = [("A".into(), None), ("B".into(), Some("3".into())), ("C=".into(), Some("4".into()))];
        let env = environment(&own, &changes, b"/w");
        assert_eq!(env, [b"B=3".to_vec(), b"PWD=/w".to_vec()]);
    }

    #[test]
    fn commands_are_searched_in_order() {
        let files = candidates(b"/a::/b", b"x");
        assert_eq!(files, [c"/a/x".to_owned(), c"./x".to_owned(), c"/b/x".to_owned()]);
    }
}
