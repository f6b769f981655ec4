//! The SQLite database of the demonstration, and the question that it is asked.

use std::path::Path;

use anyhow::Result;
use pagewire_sys::sqlite::MappedDatabase;
use rusqlite::Connection;

use super::Query;

/// What every SQLite database begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";

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
    let sql = if ours == 2 {
        "SELECT count(*) || ' readings, ' || coalesce(round(avg(celsius), 2) || ' °C', 'no mean') FROM reading WHERE sensor = 'sensor-42'"
    } else {
        "SELECT count(*) || ' tables and indexes' FROM sqlite_schema"
    };
    let answer = database.query_row(sql, [], |row| row.get(0))?;
    Ok(Some(Query { sql: sql.into(), answer }))
}
