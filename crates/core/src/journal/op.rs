//! The writing end: an operation that is under way.

use super::line::{End, Ids, Line, Verb, What};
use super::{FORMAT, Journal, Marker, ROTATE};
use crate::driver::ProcessIdentity;
use crate::id::OpId;
use crate::store::{StoreError, make_dir};
use sandbox_sys::lock::FileLock;
use sandbox_sys::process;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// What is going to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    verb: Verb,
    of: Vec<String>,
    makes_room: bool,
}

impl Plan {
    /// An operation.
    pub fn new(verb: Verb) -> Self {
        Self { verb, of: Vec::new(), makes_room: false }
    }

    /// What it is about: the name of a sandbox, mostly.
    pub fn of(mut self, name: impl Into<String>) -> Self {
        self.of.push(name.into());
        self
    }

    /// It is how room is made, and goes on without a line where there is none for it. Only for operations that
    /// are told from the disk alone: one rename, and the rest follows from where things are.
    pub fn makes_room(mut self) -> Self {
        self.makes_room = true;
        self
    }
}

/// An operation under way. Dropped without [`Op::end`] it stays unfinished, and the next command looks after it.
#[derive(Debug)]
pub struct Op {
    id: OpId,
    path: PathBuf,
    file: Option<File>,
    marker: Option<(PathBuf, FileLock)>,
    makes_room: bool,
    synced: bool,
}

impl Op {
    pub(super) fn start(journal: &Journal, plan: Plan) -> Result<Self, StoreError> {
        let (id, path) = (OpId::random(), journal.path());
        let mut op = Self { id, path, file: None, marker: None, makes_room: plan.makes_room, synced: false };
        if let Some(found) = newest_format(journal)? {
            return Err(StoreError::Newer { path: op.path, found });
        }
        let begun = op
            .mark(journal)
            .and_then(|()| op.open())
            .and_then(|()| op.line(What::Start { verb: plan.verb, by: ourselves(), of: plan.of }));
        match begun {
            // Without a marker nobody would look after it: no line either.
            Err(error) if op.no_room(&error) => {
                op.forget();
                op.file = None;
                Ok(op)
            }
            Err(error) => {
                op.forget();
                Err(error)
            }
            Ok(()) => Ok(op),
        }
    }

    /// Takes over one whose owner is dead and whose marker is locked. Writes nothing.
    pub(super) fn adopt(journal: &Journal, marker: &Marker, lock: FileLock) -> Self {
        let marked = Some((marker.path.clone(), lock));
        Self {
            id: marker.op.clone(),
            path: journal.path(),
            file: None,
            marker: marked,
            makes_room: true,
            synced: false,
        }
    }

    /// Ends one that was taken over, with a line in its journal.
    pub(super) fn end_late(mut self, how: End) {
        // Without the line, the marker's absence says it too.
        let _ = self.open();
        self.end(how);
    }

    /// Its id.
    pub fn id(&self) -> &OpId {
        &self.id
    }

    /// Says that a step begins, and what it is about to touch. Many ids take several lines.
    pub fn begin(&mut self, step: &'static str, ids: Ids) -> Result<(), StoreError> {
        let mut line = Ids::new();
        let mut length = 0;
        for (key, value) in ids {
            // As JSON, each byte of a text that is printable at all takes at most two.
            let next = 2 * (key.len() + value.len()) + 8;
            if length + next > super::MAX_LINE - 512 && !line.is_empty() {
                self.say(What::Begin { step: step.to_owned(), ids: std::mem::take(&mut line) })?;
                length = 0;
            }
            length += next;
            line.insert(key, value);
        }
        self.say(What::Begin { step: step.to_owned(), ids: line })
    }

    /// As [`Op::begin`], before what destroys or publishes: what was said is on the disk when it returns.
    pub fn begin_durably(&mut self, step: &'static str, ids: Ids) -> Result<(), StoreError> {
        self.begin(step, ids)?;
        if let (Some((marker, lock)), false) = (&self.marker, self.synced) {
            let dir = marker.parent().unwrap_or(marker);
            let synced = rustix::fs::fsync(lock).map_err(io::Error::from).and_then(|()| File::open(dir)?.sync_all());
            match synced {
                Err(source) if !self.makes_room => {
                    return Err(StoreError::Io { action: "sync", path: dir.to_owned(), source });
                }
                _ => self.synced = true,
            }
        }
        match self.file.as_ref().map_or(Ok(()), File::sync_data) {
            Err(source) if !self.makes_room => Err(StoreError::Io { action: "sync", path: self.path.clone(), source }),
            _ => Ok(()),
        }
    }

    /// Says that a step came to its end.
    pub fn done(&mut self, step: &'static str) -> Result<(), StoreError> {
        self.say(What::Done { step: step.to_owned() })
    }

    /// Ends it. That this cannot be written is no failure of what was done: it is found done by who looks.
    pub fn end(mut self, how: End) {
        if self.say(What::End { how }).is_ok() {
            self.forget();
        }
    }

    /// A copy of its marker's descriptor: a child that inherits it counts as the one at work, until it ends too.
    pub fn hold(&self) -> Option<OwnedFd> {
        self.marker.as_ref().and_then(|(_, lock)| std::os::fd::AsFd::as_fd(lock).try_clone_to_owned().ok())
    }

    fn mark(&mut self, journal: &Journal) -> Result<(), StoreError> {
        let dir = journal.store.open_operations();
        let path = dir.join(&self.id);
        let lock = match FileLock::exclusive(&path) {
            // The first operation of this store.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(&dir)?;
                FileLock::exclusive(&path)
            }
            other => other,
        };
        let lock = lock.map_err(StoreError::io("create", &path))?;
        self.marker = Some((path.clone(), lock));
        fs::write(&path, format!("{}\n", journal.home)).map_err(StoreError::io("write", &path))
    }

    fn open(&mut self) -> Result<(), StoreError> {
        let older = self.path.with_extension("1");
        if fs::metadata(&self.path).is_ok_and(|meta| meta.len() > ROTATE) {
            fs::rename(&self.path, older).map_err(StoreError::io("rename", &self.path))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(StoreError::io("open", &self.path))?;
        // What a crash cut is not to run into our first line.
        let mut last = [b'\n'];
        let cut = file.seek(SeekFrom::End(-1)).is_ok() && file.read_exact(&mut last).is_ok() && last != [b'\n'];
        if cut {
            file.write_all(b"\n").map_err(StoreError::io("write", &self.path))?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn say(&mut self, what: What) -> Result<(), StoreError> {
        match self.line(what) {
            Err(error) if self.no_room(&error) => {
                // What follows could not be understood without it.
                self.file = None;
                Ok(())
            }
            other => other,
        }
    }

    fn line(&mut self, what: What) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let bytes = Line::new(&self.id, what).bytes().ok_or_else(|| io::ErrorKind::FileTooLarge.into());
        bytes.and_then(|bytes| file.write_all(&bytes)).map_err(StoreError::io("write", &self.path))
    }

    fn no_room(&self, error: &StoreError) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.makes_room && matches!(error, StoreError::Io { source, .. } if full(source.kind()))
    }

    fn forget(&mut self) {
        if let Some((path, _lock)) = self.marker.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// The format of a journal's last lines, when it is newer than ours.
fn newest_format(journal: &Journal) -> Result<Option<u32>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let path = journal.path();
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { action: "open", path, source }),
    };
    let mut tail = Vec::new();
    let length = file.seek(SeekFrom::End(0)).map_err(StoreError::io("read", &path))?;
    file.seek(SeekFrom::Start(length.saturating_sub(2 * super::MAX_LINE as u64)))
        .map_err(StoreError::io("read", &path))?;
    file.read_to_end(&mut tail).map_err(StoreError::io("read", &path))?;
    let lines = tail.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Version>(line).ok());
    Ok(lines.map(|line| line.v).max().filter(|version| *version > FORMAT))
}

/// This process, for people: whether it lives is what the marker's lock says.
fn ourselves() -> ProcessIdentity {
    let pid = std::process::id();
    ProcessIdentity {
        pid,
        start_time: process::start_time(pid).unwrap_or_default(),
        boot_id: process::boot_id().unwrap_or_default(),
    }
}
