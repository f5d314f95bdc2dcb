//! Carries bytes between an upload-pack inside and the git that listens to it, and counts them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// Both directions of one upload-pack that runs inside. Dropping both ends it.
pub struct Conversation {
    /// Its standard output.
    pub from: Box<dyn Read + Send>,
    /// Its standard input.
    pub to: Box<dyn Write + Send>,
}

/// A conversation under way.
pub struct Relay {
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    done: Receiver<()>,
}

/// What a conversation came to.
pub struct Relayed {
    /// Bytes that came from inside.
    pub bytes: u64,
    /// More came than was allowed, and it was cut.
    pub over: bool,
}

/// Starts two threads; returns the descriptor that git will speak to. Past `limit` bytes from inside both directions
/// are cut.
pub fn start(conversation: Conversation, limit: u64) -> io::Result<(OwnedFd, Relay)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (bytes, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (sender, done) = mpsc::channel();
    let Conversation { mut from, mut to } = conversation;
    let (mut out, count, flag, finished) = (ours.try_clone()?, bytes.clone(), over.clone(), sender.clone());
    std::thread::spawn(move || {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(n) = from.read(&mut chunk) {
            if n == 0 {
                break;
            }
            if count.fetch_add(n as u64, Ordering::Relaxed) + n as u64 > limit {
                flag.store(true, Ordering::Relaxed);
                // Both directions: git gives up at once, and with it the other thread.
                let _ = out.shutdown(Shutdown::Both);
                break;
            }
            if out.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        let _ = out.shutdown(Shutdown::Write);
        let _ = finished.send(());
    });
    let mut input = ours;
    std::thread::spawn(move || {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n) = input.read(&mut chunk) {
            if n == 0 || to.write_all(&chunk[..n]).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
        drop(to);
        let _ = sender.send(());
    });
    Ok((theirs.into(), Relay { bytes, over, done }))
}

impl Relay {
    /// Waits for both threads, but not for one that an unwilling sandbox keeps waiting: it ends with
    /// the conversation.
    pub fn finish(self) -> Relayed {
        for _ in 0..2 {
            if self.done.recv_timeout(Duration::from_secs(1)).is_err() {
                break;
            }
        }
        Relayed { bytes: self.bytes.load(Ordering::Relaxed), over: self.over.load(Ordering::Relaxed) }
    }
}
