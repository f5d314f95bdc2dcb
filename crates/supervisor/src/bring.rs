//! Commit-back: when it runs, and who is answered.

use crate::children::{Helper, pair};
use crate::supervise::{ClientId, ClientStream, Phase, Supervisor, failure};
use sandbox_core::auto_commit;
use sandbox_core::store::read_json;
use sandbox_protocol::{FailureKind, FrameType, MAX_PAYLOAD, Message};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a moved ref waits for further moves before it is brought home.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The pause after a commit-back that nobody asked for; doubled every few of them in a row.
const PAUSE: Duration = Duration::from_millis(400);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(12);
/// Commit-backs in a row before the pause grows.
const CALM: u32 = 8;
/// Commit-backs that may be asked for from inside within [`AT_ONCE`] without a pause between them.
const IN_A_ROW: usize = 3;
/// See [`IN_A_ROW`].
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long one commit-back may take: longer than its conversations may.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// How the helper's error begins when refs were refused: then it is about what came from inside.
const REFUSED: &str = "not brought home: ";
/// Requests from inside that wait at once.
const MAX_INSIDE: usize = 64;

/// Commit-back: what runs, what is due, and who waits.
#[derive(Debug, Default)]
pub(crate) struct Bring {
    pub(crate) running: Option<Run>,
    /// A ref moved since the last one was started; run again not before this instant.
    pub(crate) due: Option<Instant>,
    /// What nobody on the host asked for starts not before this instant.
    pub(crate) not_before: Option<Instant>,
    /// How many started without a calm time between them.
    pub(crate) row: u32,
    /// When the last few that somebody inside asked for were started.
    pub(crate) asked: VecDeque<Instant>,
    /// A ref moved that is not known to be home.
    pub(crate) moved: bool,
    /// They asked before the running one started: it answers them.
    pub(crate) waiting: Vec<Waiter>,
    /// They asked while one ran: the next one answers them.
    pub(crate) next: Vec<Waiter>,
}

/// One commit-back.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) helper: Helper,
    pub(crate) client: ClientId,
    pub(crate) socket: UnixStream,
    /// Its standard error.
    pub(crate) errors: File,
    pub(crate) output: Vec<u8>,
    pub(crate) started: Instant,
    pub(crate) until: Instant,
    /// It was asked to commit, too.
    pub(crate) auto: bool,
}

/// The pause after the `row`th commit-back in a row, which took `took`.
fn pause(row: u32, took: Duration) -> Duration {
    PAUSE.saturating_mul(1 << (row / CALM).min(5)).max(took).min(MAX_PAUSE)
}

/// Whether one that is asked for from inside starts without a pause, given when the last few did: people
/// and agents push now and then, and wait for it. Only who goes on and on is held up.
fn at_once(asked: &VecDeque<Instant>, row: u32, now: Instant) -> bool {
    asked.iter().filter(|at| now.duration_since(**at) < AT_ONCE).count() < IN_A_ROW && row < 2 * CALM
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Client(ClientStream),
    Inside(u32),
}

impl Waiter {
    fn is_inside(&self) -> bool {
        matches!(self, Self::Inside(_))
    }
}

impl Supervisor {
    /// A ref moved: it is brought home soon, but a flood of moves is not a flood of processes.
    pub(crate) fn bring_soon(&mut self) {
        let at = Instant::now() + DEBOUNCE;
        let at = self.bring.not_before.map_or(at, |not_before| at.max(not_before));
        self.bring.due.get_or_insert(at);
    }

    pub(crate) fn bring_wanted(&mut self, waiter: Waiter) {
        let inside = waiter.is_inside();
        if matches!(self.phase, Phase::ShuttingDown { .. } | Phase::Dying { .. }) {
            return self.bring_answer(waiter, b"", &failure(FailureKind::Other, "the sandbox is being stopped"));
        }
        let waiting = self.bring.waiting.iter().chain(&self.bring.next).filter(|who| who.is_inside()).count();
        if inside && waiting >= MAX_INSIDE {
            return self.bring_answer(waiter, b"", &failure(FailureKind::Limit, "too many requests at once"));
        }
        let now = Instant::now();
        let paused = inside && !at_once(&self.bring.asked, self.bring.row, now);
        if paused && waiting >= IN_A_ROW {
            // Nobody waits for each answer: a flood, whose pauses are longer from the start.
            self.bring.row = self.bring.row.max(CALM);
        }
        if self.bring.running.is_some() {
            self.bring.next.push(waiter);
            if paused { self.bring_soon() } else { self.bring.due = Some(now) }
        } else {
            self.bring.waiting.push(waiter);
            match self.bring.not_before {
                Some(at) if paused && at > now => {
                    self.bring.due = Some(self.bring.due.map_or(at, |due| due.min(at)));
                }
                _ => self.bring_start(),
            }
        }
    }

    pub(crate) fn bring_start(&mut self) {
        let now = Instant::now();
        let calm = self.bring.not_before.is_none_or(|at| now > at + PAUSE.max(pause(self.bring.row, Duration::ZERO)));
        self.bring.row = if calm { 0 } else { self.bring.row.saturating_add(1) };
        self.bring.due = None;
        self.bring.moved = false;
        if self.bring.waiting.iter().any(Waiter::is_inside) {
            self.bring.asked.push_back(now);
            if self.bring.asked.len() > IN_A_ROW {
                self.bring.asked.pop_front();
            }
        }
        let auto = self.auto_commit_due();
        let started = (|| -> io::Result<_> {
            let (client, client_fd) = pair()?;
            let (output, output_fd) = pair()?;
            output.set_nonblocking(true)?;
            // A file, so that it never waits for us to read; and apart, for what is in it is not for inside.
            let errors = rustix::fs::memfd_create("errors", rustix::fs::MemfdFlags::CLOEXEC)?;
            let helper = Helper::start(&self.bring_command(auto), client_fd, output_fd, Some(errors.try_clone()?))?;
            Ok((helper, output, errors.into(), client))
        })();
        match started {
            Ok((helper, output, errors, client)) => {
                let id = self.next_client;
                self.accept(client);
                self.fresh.remove(&id);
                self.bring.running = Some(Run {
                    helper,
                    client: id,
                    socket: output,
                    errors,
                    output: Vec::new(),
                    started: now,
                    until: now + LIMIT,
                    auto,
                });
            }
            Err(error) => self.bring_done(false, b"", format!("error: cannot start commit-back: {error}\n").as_bytes()),
        }
    }

    /// The helper's command; the first one after the main command's end also commits what that left.
    fn bring_command(&self, auto: bool) -> Vec<String> {
        let mut command = self.commit_back.clone();
        if let Some(main) = self.main.as_ref().filter(|_| auto) {
            command.push("--auto-commit".into());
            command.extend(main.argv.iter().cloned());
        }
        command
    }

    fn auto_commit_due(&self) -> bool {
        self.auto_commit
            && self.main.as_ref().is_some_and(|main| main.exit.is_some())
            && !auto_commit::file(&self.dir).exists()
    }

    /// Why the main command's work was not committed is in its log too: who reads that later was not there.
    fn auto_commit_told(&mut self) {
        if let Ok(Some(outcome)) = read_json::<auto_commit::Outcome>(&auto_commit::file(&self.dir))
            && outcome.why_not.is_some()
            && let Some(words) = outcome.words()
        {
            let _ = self.log.append(format!("git-sandbox: {words}\n").as_bytes());
        }
    }

    pub(crate) fn bring_output(&mut self) {
        let Some(run) = &mut self.bring.running else { return };
        let mut bytes = [0u8; 4096];
        while let Ok(n) = run.socket.read(&mut bytes) {
            if n == 0 {
                break;
            }
            let room = MAX_PAYLOAD.saturating_sub(run.output.len());
            run.output.extend_from_slice(&bytes[..n.min(room)]);
        }
    }

    pub(crate) fn bring_ended(&mut self) {
        self.bring_output();
        let Some(mut run) = self.bring.running.take() else { return };
        let ok = run.helper.finish().unwrap_or(false);
        if run.auto {
            self.auto_commit_told();
        }
        self.bring_pause(run.started);
        let mut errors = Vec::new();
        let read = run.errors.rewind().and_then(|()| run.errors.take(MAX_PAYLOAD as u64).read_to_end(&mut errors));
        if read.is_err() {
            errors.clear();
        }
        self.bring_done(ok, &run.output, &errors);
    }

    /// Ends one that hangs: whoever is inside can stop the processes that it speaks with.
    pub(crate) fn bring_overdue(&mut self) {
        let Some(mut run) = self.bring.running.take() else { return };
        run.helper.kill();
        self.bring_pause(run.started);
        self.bring_done(false, b"", b"error: commit-back took too long\n");
    }

    /// Ends one for which there is no more time: what it was to bring is not home.
    pub(crate) fn bring_abandon(&mut self) {
        self.rescue_abandon();
        if let Some(mut run) = self.bring.running.take() {
            run.helper.kill();
            self.bring.moved = true;
        }
    }

    fn bring_pause(&mut self, started: Instant) {
        let now = Instant::now();
        let at = now + pause(self.bring.row, started.elapsed());
        self.bring.not_before = Some(at);
        let at_once = at_once(&self.bring.asked, self.bring.row, now);
        if let Some(due) = &mut self.bring.due
            && !self.bring.next.iter().any(|waiter| !waiter.is_inside() || at_once)
        {
            *due = at.max(*due);
        }
    }

    fn bring_answer(&mut self, waiter: Waiter, output: &[u8], answer: &Message) {
        let (peer, stream) = match waiter {
            Waiter::Client((id, stream)) => match self.clients.get_mut(&id) {
                Some(client) => (client, stream),
                None => return,
            },
            Waiter::Inside(stream) => (&mut self.agent, stream),
        };
        if !output.is_empty() {
            peer.data(FrameType::Stdout, stream, output);
        }
        peer.control(stream, answer);
    }

    /// `output` is told to whoever asked, `errors` to clients only: they name paths of the host, and say what
    /// its git said. Inside learns which refs were refused, and no more.
    pub(crate) fn bring_done(&mut self, ok: bool, output: &[u8], errors: &[u8]) {
        self.bring.moved |= !ok;
        // This is `supervisor.log`.
        let _ = io::stderr().write_all(&errors[..errors.len().min(4096)]);
        let mut inside = Message::Done;
        let answer = if ok {
            Message::Done
        } else {
            let text = String::from_utf8_lossy(errors);
            let line = text.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or("commit-back failed");
            let plain = |c: char| if c.is_control() { '?' } else { c };
            let line: String = line.chars().map(plain).take(4000).collect();
            let refused = line.starts_with(REFUSED) || line == "commit-back took too long";
            let told = if refused { line.clone() } else { "commit-back failed on the host".to_owned() };
            inside = failure(FailureKind::Other, told);
            failure(FailureKind::Other, line)
        };
        let all = [output, errors].concat();
        for waiter in std::mem::take(&mut self.bring.waiting) {
            match waiter {
                Waiter::Client(_) => self.bring_answer(waiter, &all, &answer),
                Waiter::Inside(_) => self.bring_answer(waiter, output, &inside),
            }
        }
        self.bring.waiting = std::mem::take(&mut self.bring.next);
        if let Phase::BringingHome { grace_ms, rounds, .. } = &mut self.phase {
            let grace_ms = *grace_ms;
            // Whoever goes on moving refs does not put off the end.
            if self.bring.due.is_some() && *rounds > 0 {
                *rounds -= 1;
                self.bring_start();
            } else if self.rescue.running.is_none() {
                self.went_home(grace_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_requests_from_inside_do_not_wait_and_more_do() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let asked: VecDeque<Instant> = [at(0), at(300), at(600)].into();
        assert!(at_once(&VecDeque::new(), 0, at(0)));
        assert!(at_once(&[at(0), at(300)].into(), 2, at(400)));
        assert!(!at_once(&asked, 3, at(999)), "three within a second");
        assert!(at_once(&asked, 3, at(1000)), "the first is a second ago");
        assert!(!at_once(&asked, 2 * CALM, at(5000)), "on and on, without a calm time");
    }

    #[test]
    fn the_pause_grows_and_stays_bounded() {
        let pauses: Vec<u128> = [0, 7, 8, 16, 40, 4000].map(|row| pause(row, Duration::ZERO).as_millis()).into();
        assert_eq!(pauses, [400, 400, 800, 1600, 12_000, 12_000]);
        assert_eq!(pause(0, Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(pause(0, Duration::from_secs(300)), MAX_PAUSE);
    }
}
