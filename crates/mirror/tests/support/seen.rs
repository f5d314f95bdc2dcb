//! What happened, kept.

use sandbox_mirror::event::{Event, Observer, Refreshed, Served};
use std::sync::Mutex;

/// Remembers every event.
#[derive(Default)]
pub struct Seen(Mutex<Vec<Event>>);

impl Observer for Seen {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Seen {
    /// Everything so far.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// All refreshes so far.
    pub fn refreshes(&self) -> Vec<Refreshed> {
        let one = |event| if let Event::Refreshed(refreshed) = event { Some(refreshed) } else { None };
        self.all().into_iter().filter_map(one).collect()
    }

    /// All requests so far.
    pub fn served(&self) -> Vec<Served> {
        let one = |event| if let Event::Served(served) = event { Some(served) } else { None };
        self.all().into_iter().filter_map(one).collect()
    }

    /// Everything, as text: what a log could say.
    pub fn text(&self) -> String {
        format!("{:?}", self.all())
    }
}
