//! A journal as it is read: operations with their steps.

use super::FORMAT;
use super::line::{End, Ids, Line, Verb, What};
use crate::driver::ProcessIdentity;
use crate::id::OpId;

/// All that a journal says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The operations, in the order in which they were begun.
    pub operations: Vec<Operation>,
    /// The newest format of a line, if this program does not know it: it must not be written.
    pub newer: Option<u32>,
    /// Lines that are none: cut by a crash, or damaged.
    pub damaged: usize,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Its id.
    pub id: OpId,
    /// What it was for.
    pub verb: Verb,
    /// Names of what it was about: sandboxes, mostly.
    pub of: Vec<String>,
    /// Who began it.
    pub by: ProcessIdentity,
    /// When it was begun, in Unix seconds.
    pub at: u64,
    /// In the order in which they were begun.
    pub steps: Vec<Step>,
    /// How it ended; `None`: it is under way, or was cut.
    pub end: Option<End>,
    /// A newer program wrote of it: what it means is not known here.
    pub newer: bool,
}

/// One step of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it was about to touch.
    pub ids: Ids,
    /// Whether it came to its end.
    pub done: bool,
}

impl Operation {
    /// The step of this name, if it was begun.
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// What the steps named by this key, the first that did.
    pub fn id(&self, key: &str) -> Option<&str> {
        self.steps.iter().find_map(|step| step.ids.get(key)).map(String::as_str)
    }
}

impl History {
    /// Reads lines. What cannot be read is counted and passed over: a journal is never a reason to stop.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // Cut by a crash.
        self.damaged += usize::from(whole < bytes.len());
        for text in bytes[..whole].split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
            match serde_json::from_slice::<Line>(text) {
                Ok(line) => self.line(line),
                Err(_) => self.damaged += 1,
            }
        }
    }

    fn line(&mut self, line: Line) {
        let newer = line.v > FORMAT;
        if newer {
            self.newer = Some(self.newer.unwrap_or(0).max(line.v));
        }
        if let What::Start { verb, by, of } = line.what {
            let (id, at) = (line.op, line.at);
            self.operations.push(Operation { id, verb, of, by, at, steps: Vec::new(), end: None, newer });
            return;
        }
        // Of one that began before what is left of the journal: over.
        let Some(op) = self.operations.iter_mut().rfind(|op| op.id == line.op) else { return };
        op.newer |= newer;
        match line.what {
            What::Begin { step, ids } => match op.steps.iter_mut().find(|known| known.name == step) {
                Some(known) => known.ids.extend(ids),
                None => op.steps.push(Step { name: step, ids, done: false }),
            },
            What::Done { step } => {
                if let Some(known) = op.steps.iter_mut().find(|known| known.name == step) {
                    known.done = true;
                }
            }
            What::End { how } => op.end = Some(how),
            What::Start { .. } => unreachable!("taken above"),
            What::Other => op.newer = true,
        }
    }

    /// The operation of this id.
    pub fn find(&self, id: &OpId) -> Option<&Operation> {
        self.operations.iter().rfind(|op| op.id == *id)
    }
}
