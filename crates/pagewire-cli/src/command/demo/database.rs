//! The SQLite database of the demonstration, the question that it is asked, and what is changed in it.

use std::path::Path;

use anyhow::Result;
use pagewire_sys::sqlite::{MappedDatabase, WritableDatabase};
use pagewire_sys::tracked::TrackedMapping;
use rusqlite::Connection;

use super::Query;

/// What every SQLite database begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// How warm one sensor was.
const QUESTION: &str = "SELECT count(*) || ' readings, ' || coalesce(round(avg(celsius), 2) || ' °C', 'no mean') FROM reading WHERE sensor = 'sensor-42'";

/// It was warmer.
const CHANGE: &str = "UPDATE reading SET celsius = celsius + 10 WHERE sensor = 'sensor-42'";

/// Makes a database of `rows` rows with an index.
pub(super) fn make(path: &Path, rows: u32) -> rusqlite::Result<()> {
    let database = Connection::open(path)?;
    // It is made anew each time, so nothing is lost by a crash.
    database.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;")?;
    database.execute_batch(
        "CREATE TABLE reading (id INTEGER PRIMARY KEY, sensor TEXT, celsius REAL, note TEXT);",
    )?;
    database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO reading
         SELECT i, 'sensor-' || (i * 7919 % 10007), 15 + (i * 31 % 997) / 50.0,
                'reading ' || i || ' of a quiet day' FROM n WHERE ?1 > 0",
        [rows],
    )?;
    database.execute_batch("CREATE INDEX by_sensor ON reading (sensor); COMMIT;")
}

/// Asks a question, if the bytes are an SQLite database: for the one that was made here, how warm
/// one sensor was; for any other, what it holds.
pub(super) fn ask(bytes: &[u8]) -> Result<Option<Query>> {
    if bytes.len() < MAGIC.len() || !bytes.starts_with(MAGIC) {
        return Ok(None);
    }
    let database = MappedDatabase::open(bytes)?;
    let ours: i64 = database.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE name IN ('reading', 'by_sensor')",
        [],
        |row| row.get(0),
    )?;
    let sql =
        if ours == 2 { QUESTION } else { "SELECT count(*) || ' tables and indexes' FROM sqlite_schema" };
    let answer = database.query_row(sql, [], |row| row.get(0))?;
    Ok(Some(Query { sql: sql.into(), answer }))
}

/// What was changed.
pub(super) struct Changed {
    pub(super) sql: &'static str,
    pub(super) rows: usize,
    /// What the question is answered now.
    pub(super) answer: String,
}

/// Changes rows of the database that was made here, in the memory that it lies in.
pub(super) fn change(memory: &TrackedMapping, length: usize) -> rusqlite::Result<Changed> {
    let database = WritableDatabase::open(memory, length)?;
    let rows = database.execute(CHANGE, [])?;
    let answer = database.query_row(QUESTION, [], |row| row.get(0))?;
    Ok(Changed { sql: CHANGE, rows, answer })
}
