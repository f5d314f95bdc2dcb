//! Rows, both ways; and the file beside the database that it is made again from.

use super::plan::Plan;
use super::schema::{self, Opened};
use super::{Origin, Record, RegistryError, Result, Snapshot, Spec};
use crate::identity::{Session, SessionId, TokenHash};
use crate::name::{RepoName, Upstream};
use rusqlite::{Connection, ErrorCode, Row, params};
use sandbox_git::Oid;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The database, on the writer's thread.
pub(super) struct Store {
    path: PathBuf,
    database: Connection,
    newer: Option<i64>,
}

/// `registry.json`: the repositories of the last good state.
#[derive(serde::Serialize, serde::Deserialize)]
struct Saved {
    version: i64,
    repos: Vec<Record>,
}

impl Store {
    /// Opens it with what it holds. The text says what was wrong, when it could be used all the same.
    pub(super) fn open(path: &Path) -> Result<(Self, Snapshot, Option<String>)> {
        let failed = |source| database(path, source);
        match schema::open(path).and_then(|opened| {
            let (database, newer) = match opened {
                Opened::Current(database) => (database, None),
                Opened::Newer(database, version) => (database, Some(version)),
            };
            let snapshot = read(&database, newer.is_some())?;
            Ok((Self { path: path.to_owned(), database, newer }, snapshot))
        }) {
            Ok((store, snapshot)) => {
                let said = store.newer.map(|found| RegistryError::Newer { found }.to_string());
                Ok((store, snapshot, said))
            }
            Err(error) if is_corrupt(&error) => Self::again(path, &error),
            Err(error) => Err(failed(error)),
        }
    }

    /// Sets a corrupt database aside and makes a new one from what was saved.
    fn again(path: &Path, why: &rusqlite::Error) -> Result<(Self, Snapshot, Option<String>)> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let aside = with_suffix(path, &format!(".corrupt-{seconds}"));
        std::fs::rename(path, &aside).map_err(|source| RegistryError::File { path: path.to_owned(), source })?;
        for tail in ["-wal", "-shm"] {
            let _ = std::fs::rename(with_suffix(path, tail), with_suffix(&aside, tail));
        }
        let saved = std::fs::read(saved_path(path)).ok().and_then(|text| serde_json::from_slice::<Saved>(&text).ok());
        let from = if saved.is_some() { "registry.json" } else { "nothing: registry.json cannot be read" };
        let Opened::Current(database) = schema::open(path).map_err(|source| self::database(path, source))? else {
            unreachable!("it was just made");
        };
        let mut store = Self { path: path.to_owned(), database, newer: None };
        let put = saved.map(|saved| saved.repos).unwrap_or_default();
        let plan = Plan { put, removed: Vec::new() };
        let snapshot = plan.applied_to(&Snapshot::default());
        store.apply(&plan, &snapshot)?;
        let said = format!(
            "the registry was corrupt ({why}): it is kept as '{}', and was made again from {from}",
            sandbox_git::printable(aside.as_os_str().as_encoded_bytes())
        );
        Ok((store, snapshot, Some(said)))
    }

    fn writable(&self) -> Result<()> {
        self.newer.map_or(Ok(()), |found| Err(RegistryError::Newer { found }))
    }

    fn said<T>(&self, done: rusqlite::Result<T>) -> Result<T> {
        done.map_err(|source| database(&self.path, source))
    }

    /// Writes a plan, in one transaction.
    pub(super) fn apply(&mut self, plan: &Plan, _next: &Snapshot) -> Result<()> {
        self.writable()?;
        let write = || -> rusqlite::Result<()> {
            let change = self.database.unchecked_transaction()?;
            for name in &plan.removed {
                change.execute("DELETE FROM repo WHERE name = ?1", [name.as_str()])?;
            }
            for record in &plan.put {
                let Record { spec, origin, paused, status } = record;
                change.execute(
                    "INSERT OR REPLACE INTO repo
                     (name, url, credential, interval_ms, refs, private, origin, paused, status)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        spec.name.as_str(),
                        spec.url.url(),
                        spec.credential,
                        spec.interval_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
                        json(&spec.refs),
                        spec.private,
                        if *origin == Origin::File { "file" } else { "api" },
                        paused,
                        json(status),
                    ],
                )?;
            }
            change.commit()
        };
        let done = write();
        self.said(done)
    }

    pub(super) fn status(&mut self, record: &Record) -> Result<()> {
        self.writable()?;
        let (name, status) = (record.spec.name.as_str(), json(&record.status));
        self.said(self.database.execute("UPDATE repo SET status = ?2 WHERE name = ?1", params![name, status]))?;
        Ok(())
    }

    pub(super) fn pause(&mut self, name: &RepoName, paused: bool) -> Result<()> {
        self.writable()?;
        let done = self.database.execute("UPDATE repo SET paused = ?2 WHERE name = ?1", params![name.as_str(), paused]);
        self.said(done).map(drop)
    }

    pub(super) fn put_session(&mut self, session: &Session) -> Result<()> {
        self.writable()?;
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let done = self.database.execute(
            "INSERT OR REPLACE INTO session (id, repos, token, expires) VALUES (?1, ?2, ?3, ?4)",
            params![
                session.id.as_str(),
                json(&session.repos),
                session.token.as_ref().map(|token| token.as_bytes().to_vec()),
                session.expires.map(|at| i64::try_from(seconds(at)).unwrap_or(i64::MAX)),
            ],
        );
        self.said(done).map(drop)
    }

    pub(super) fn end_session(&mut self, id: &SessionId) -> Result<()> {
        self.writable()?;
        self.said(self.database.execute("DELETE FROM session WHERE id = ?1", [id.as_str()])).map(drop)
    }

    /// Writes `registry.json`, whole.
    pub(super) fn save(&self, snapshot: &Snapshot) -> Result<()> {
        if self.newer.is_some() {
            return Ok(());
        }
        let path = saved_path(&self.path);
        let failed = |source| RegistryError::File { path: path.clone(), source };
        let repos = snapshot.repos.values().map(|record| Record::clone(record)).collect();
        let text = json(&Saved { version: schema::SCHEMA, repos });
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn saved_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    error.sqlite_error_code()
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(code(error), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn database(path: &Path, source: rusqlite::Error) -> RegistryError {
    match code(&source) {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => RegistryError::Locked,
        _ => RegistryError::Database { path: path.to_owned(), source },
    }
}

/// Reads all of it. A row that this program cannot understand is left out of a newer database, and makes one of
/// its own corrupt.
fn read(database: &Connection, lenient: bool) -> rusqlite::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let bad = || rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None);
    let mut repos = database
        .prepare("SELECT name, url, credential, interval_ms, refs, private, origin, paused, status FROM repo")?;
    let mut rows = repos.query([])?;
    while let Some(row) = rows.next()? {
        match record(row)? {
            Some(record) => drop(snapshot.repos.insert(record.spec.name.clone(), Arc::new(record))),
            None if lenient => {}
            None => return Err(bad()),
        }
    }
    let mut sessions = database.prepare("SELECT id, repos, token, expires FROM session")?;
    let mut rows = sessions.query([])?;
    while let Some(row) = rows.next()? {
        match session(row)? {
            Some(session) => drop(snapshot.sessions.insert(session.id.clone(), Arc::new(session))),
            None if lenient => {}
            None => return Err(bad()),
        }
    }
    Ok(snapshot)
}

fn record(row: &Row) -> rusqlite::Result<Option<Record>> {
    let text = |i: usize| row.get::<_, String>(i);
    let (name, url, refs, origin, status) = (text(0)?, text(1)?, text(4)?, text(6)?, text(8)?);
    let (credential, interval): (Option<String>, Option<i64>) = (row.get(2)?, row.get(3)?);
    let (private, paused) = (row.get(5)?, row.get(7)?);
    let parse = || {
        Some(Record {
            spec: Spec {
                name: name.parse().ok()?,
                url: Upstream::parse(&url).ok()?,
                credential,
                interval_ms: interval.and_then(|ms| u64::try_from(ms).ok()),
                refs: serde_json::from_str(&refs).ok()?,
                private,
            },
            origin: if origin == "file" { Origin::File } else { Origin::Api },
            paused,
            status: serde_json::from_str(&status).ok()?,
        })
    };
    Ok(parse())
}

fn session(row: &Row) -> rusqlite::Result<Option<Session>> {
    let (id, repos): (String, String) = (row.get(0)?, row.get(1)?);
    let (token, expires): (Option<Vec<u8>>, Option<i64>) = (row.get(2)?, row.get(3)?);
    let parse = || {
        let repos: BTreeMap<RepoName, Option<Oid>> = serde_json::from_str(&repos).ok()?;
        let token = match token {
            Some(bytes) => Some(TokenHash::from_bytes(bytes.try_into().ok()?)),
            None => None,
        };
        let expires = expires.and_then(|at| u64::try_from(at).ok()).map(|at| UNIX_EPOCH + Duration::from_secs(at));
        Some(Session { id: id.parse().ok()?, repos, token, expires })
    };
    Ok(parse())
}

/// Whether the database on disk has this repository: for tests of what was written.
#[cfg(test)]
pub(super) fn has(path: &Path, name: &str) -> bool {
    let database = Connection::open(path).unwrap();
    database.query_row("SELECT 1 FROM repo WHERE name = ?1", [name], |_| Ok(())).is_ok()
}
