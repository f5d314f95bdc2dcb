//! Checks under way: each in a sandbox of its own and a process of ours. Dropped, all of them end.

use super::task::{OUTCOME, OUTPUT, Outcome, PACK, TASK, Task};
use crate::context::Context;
use crate::error::CliError;
use sandbox_core::check::CheckBox;
use sandbox_core::launch::Mode;
use sandbox_core::store::{Store, read_json, write_json};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked who has come to an end.
const LOOK: Duration = Duration::from_millis(10);
/// How long one that is not needed any more may take to end by itself.
const ENDING: Duration = Duration::from_secs(15);

/// One that came to its end.
#[derive(Debug)]
pub struct Finished<K> {
    /// Whose it is.
    pub key: K,
    /// How.
    pub outcome: Outcome,
    /// What the command printed, its end. Not escaped.
    pub output: Vec<u8>,
}

#[derive(Debug)]
struct Running<K> {
    key: K,
    child: Child,
    /// As long as it is open, somebody waits.
    waiting: Option<ChildStdin>,
    place: CheckBox,
}

/// Checks under way, told apart by their keys.
#[derive(Debug)]
pub struct Runner<K> {
    running: Vec<Running<K>>,
    asked: Arc<AtomicBool>,
}

impl<K: Clone + PartialEq> Runner<K> {
    /// With none. When `asked` becomes true, waiting ends with an error.
    pub fn new(asked: &Arc<AtomicBool>) -> Self {
        Self { running: Vec::new(), asked: asked.clone() }
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Starts one. `pack` has what the sandbox lacks of the commit that the task names.
    pub fn start(
        &mut self,
        context: &Context,
        store: &Store,
        key: K,
        place: CheckBox,
        task: &Task,
        pack: &[u8],
    ) -> Result<(), CliError> {
        let dir = place.sandbox.dir.path().to_owned();
        let spec = crate::vm::launch_spec(context, store, &place.sandbox, Mode::Work)?;
        write_json(&place.sandbox.dir.launch(), &spec, false)?;
        write_json(&dir.join(TASK), task, false)?;
        let file = dir.join(PACK);
        std::fs::write(&file, pack).map_err(CliError::io(format!("write '{}'", file.display())))?;
        let lock = place.lock().as_fd().try_clone_to_owned().map_err(CliError::io("hold the lock of a check"))?;
        let mut child = Command::new(&context.program)
            .arg("__check")
            .arg(&dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(lock))
            .stderr(Stdio::null())
            .spawn()
            .map_err(CliError::io("start a check"))?;
        let waiting = child.stdin.take();
        self.running.push(Running { key, child, waiting, place });
        Ok(())
    }

    /// Waits until one has come to its end. One that could not be run is an error.
    pub fn finished(&mut self) -> Result<Finished<K>, CliError> {
        loop {
            for n in 0..self.running.len() {
                let ended = self.running[n].child.try_wait().map_err(CliError::io("wait for a check"))?;
                if ended.is_some() {
                    return self.running.swap_remove(n).outcome();
                }
            }
            if self.asked.load(Ordering::SeqCst) {
                return Err(CliError::new("interrupted").status(130));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends one whose outcome nobody needs.
    pub fn cancel(&mut self, key: &K) {
        if let Some(n) = self.running.iter().position(|running| running.key == *key) {
            let mut running = self.running.swap_remove(n);
            running.waiting = None;
            running.end();
        }
    }
}

impl<K> Running<K> {
    fn outcome(self) -> Result<Finished<K>, CliError> {
        let dir = self.place.sandbox.dir.path();
        let outcome: Outcome = read_json(&dir.join(OUTCOME))?
            .ok_or_else(|| CliError::new("a check was killed").hint("start it again: nothing was changed"))?;
        if let Some(error) = &outcome.error {
            let error: CliError = serde_json::from_str(error)
                .map_err(|error| CliError::new("a check could not be run").cause(error.to_string()))?;
            let causes = std::iter::once(error.message).chain(error.causes).collect();
            return Err(CliError { message: "cannot run the check".into(), causes, ..error });
        }
        let output = std::fs::read(dir.join(OUTPUT)).unwrap_or_default();
        Ok(Finished { key: self.key, outcome, output })
    }

    /// Waits until it is gone, after it was told.
    fn end(&mut self) {
        let until = Instant::now() + ENDING;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                // What it launched ends with it.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl<K> Drop for Runner<K> {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        self.running.iter_mut().for_each(|running| running.waiting = None);
        self.running.iter_mut().for_each(Running::end);
    }
}
