//! When signals are ours, and when they do what they do by default.
//!
//! A handler that was installed once stays installed: without the flags here a signal would have no
//! effect at all after the first session, and a question could not be left with Ctrl-C.

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A flag that is true while these signals do what they do by default.
fn by_default(cell: &'static OnceLock<Arc<AtomicBool>>, signals: &[i32]) -> &'static AtomicBool {
    cell.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(true));
        for signal in signals {
            // Where it cannot be had, the signal is without effect while nobody waits for it.
            let _ = flag::register_conditional_default(*signal, flag.clone());
        }
        flag
    })
}

fn ends() -> &'static AtomicBool {
    static ENDS: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    by_default(&ENDS, &[SIGINT, SIGTERM, SIGQUIT, SIGHUP])
}

fn stops() -> &'static AtomicBool {
    static STOPS: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    by_default(&STOPS, &[SIGTSTP])
}

/// As long as it lives, the signals that end and stop a program are for whoever made it.
#[derive(Debug)]
pub struct Ours(());

impl Ours {
    /// Takes them.
    pub fn take() -> Self {
        ends().store(false, Ordering::SeqCst);
        stops().store(false, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        ends().store(true, Ordering::SeqCst);
        stops().store(true, Ordering::SeqCst);
    }
}

/// As long as it lives, the first INT, TERM or HUP asks for an end that leaves nothing half made; a second one ends
/// this program at once.
#[derive(Debug)]
pub struct Interrupt {
    ids: Vec<SigId>,
    /// Nobody listened before.
    first: bool,
}

impl Interrupt {
    /// Begins to listen: `asked` becomes true when somebody asks.
    pub fn listen(asked: &Arc<AtomicBool>) -> Self {
        let first = ends().swap(false, Ordering::SeqCst);
        let mut ids = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first one finds the flag not yet set.
            ids.extend(flag::register_conditional_default(signal, asked.clone()));
            ids.extend(flag::register(signal, asked.clone()));
        }
        Self { ids, first }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
        ends().store(self.first, Ordering::SeqCst);
    }
}
