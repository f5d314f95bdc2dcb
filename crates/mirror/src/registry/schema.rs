//! The tables, and how older ones become these.

use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// How long another program's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Each step brings `user_version` one further. A step that was released is never changed.
const STEPS: &[&str] = &[
    "CREATE TABLE repo (
        name       TEXT PRIMARY KEY,
        url        TEXT NOT NULL,
        credential TEXT,
        interval_ms INTEGER,
        refs       TEXT NOT NULL DEFAULT '[]',
        private    INTEGER NOT NULL DEFAULT 0,
        origin     TEXT NOT NULL CHECK (origin IN ('file', 'api')),
        paused     INTEGER NOT NULL DEFAULT 0,
        status     TEXT NOT NULL DEFAULT '{}'
    ) STRICT",
    // The token itself is never here: its SHA-256 is.
    "CREATE TABLE session (
        id      TEXT PRIMARY KEY,
        repos   TEXT NOT NULL,
        token   BLOB,
        expires INTEGER
    ) STRICT",
];

/// The version that this program writes.
pub const SCHEMA: i64 = STEPS.len() as i64;

/// A database, and whether it may be written.
pub(super) enum Opened {
    Current(Connection),
    /// Of this newer version.
    Newer(Connection, i64),
}

/// Opens it, whatever it holds is checked, and brings it to [`SCHEMA`].
pub(super) fn open(path: &Path) -> rusqlite::Result<Opened> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > SCHEMA {
        drop(connection);
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(PATIENCE)?;
        return Ok(Opened::Newer(connection, version));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut may take the last changes, never the file: all of them can be told again.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.query_row("PRAGMA quick_check(1)", [], |row| match row.get::<_, String>(0)?.as_str() {
        "ok" => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None)),
    })?;
    migrate(connection, version).map(Opened::Current)
}

fn migrate(mut connection: Connection, version: i64) -> rusqlite::Result<Connection> {
    for (step, sql) in (1..).zip(STEPS).skip(usize::try_from(version).unwrap_or(0)) {
        let change = connection.transaction()?;
        change.execute_batch(sql)?;
        change.pragma_update(None, "user_version", step)?;
        change.commit()?;
    }
    Ok(connection)
}

/// Makes a database as an older program made it.
#[cfg(test)]
pub(super) fn older(path: &Path, version: usize) -> Connection {
    let connection = Connection::open(path).unwrap();
    for sql in &STEPS[..version] {
        connection.execute_batch(sql).unwrap();
    }
    connection.pragma_update(None, "user_version", version as i64).unwrap();
    connection
}
