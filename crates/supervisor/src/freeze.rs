//! Standing still for a moment, so that a fork copies one instant. Whoever asks holds it as long as
//! it is connected: a client that was killed leaves nothing frozen.

use crate::supervise::{ClientId, ClientStream, Phase, Supervisor, failure};
use sandbox_protocol::{FailureKind, Message};

impl Supervisor {
    pub(crate) fn freeze(&mut self, from: ClientStream) {
        if self.phase != Phase::Running {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox is being stopped"));
        }
        let held = if self.frozen_for.is_empty() { self.machine.hold() } else { Ok(None) };
        if let Err(error) = &held {
            // Half of it may stand still by now.
            let _ = self.machine.thaw();
            let kind = match error.kind() {
                std::io::ErrorKind::Unsupported => FailureKind::Unsupported,
                _ => FailureKind::Other,
            };
            return self.answer(from, &failure(kind, format!("cannot freeze the sandbox: {error}")));
        }
        self.frozen_for.insert(from.0);
        match held {
            Ok(Some(locked)) => self.answer(from, &Message::Frozen { locked }),
            _ => self.answer(from, &Message::Done),
        }
    }

    pub(crate) fn thaw(&mut self, from: ClientStream) {
        if !self.thaw_for(from.0) {
            return self.answer(from, &failure(FailureKind::Other, "the sandbox was not frozen"));
        }
        self.answer(from, &Message::Done);
    }

    /// One client less needs it to stand still; false if this one did not.
    pub(crate) fn thaw_for(&mut self, id: ClientId) -> bool {
        let was = self.frozen_for.remove(&id);
        if was && self.frozen_for.is_empty() && !self.disk.whole {
            // One that cannot be thawed is killed with its control group at the end.
            let _ = self.machine.thaw();
        }
        was
    }
}
