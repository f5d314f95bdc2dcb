//! The service's log: one line of JSON for each event, on standard error.
//!
//! Serving does not wait for whoever reads the log: when it is slow, lines are left out and their number is told.

use sandbox_mirror::event::{Event, Observer};
use sandbox_mirror::log::{Level, level, line};
use sandbox_mirror::metrics::Metrics;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines that may wait for the reader.
const WAITING: usize = 4096;

/// Writes lines of a level and above, and counts everything.
pub struct Log {
    metrics: Arc<Metrics>,
    least: Level,
    lines: Mutex<Option<SyncSender<String>>>,
    left_out: Arc<AtomicU64>,
}

impl Log {
    /// Begins. The thread ends when [`Log::end`] is called and all is written.
    pub fn start(metrics: Arc<Metrics>, least: Level) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WAITING);
        let left_out = Arc::new(AtomicU64::new(0));
        let log = Self { metrics, least, lines: Mutex::new(Some(sender)), left_out: left_out.clone() };
        let writer = std::thread::Builder::new().name("log".to_owned()).spawn(move || write(&receiver, &left_out))?;
        Ok((Arc::new(log), writer))
    }

    /// Takes no more lines.
    pub fn end(&self) {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

impl Observer for Log {
    fn observe(&self, event: &Event) {
        self.metrics.observe(event);
        if level(event) < self.least {
            return;
        }
        let line = line(event, now());
        let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.as_ref().is_some_and(|lines| lines.try_send(line).is_err()) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(lines: &Receiver<String>, left_out: &AtomicU64) {
    for line in lines {
        // One write for a line: several processes may share the file.
        let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
        let lost = left_out.swap(0, Ordering::Relaxed);
        if lost > 0 {
            eprintln!("{{\"at\":{},\"level\":\"error\",\"event\":\"log-lines-left-out\",\"lines\":{lost}}}", now());
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
