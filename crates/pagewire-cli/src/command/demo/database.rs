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

/// A step follows from the one before it.
const STEP: &str =
    "INSERT INTO step SELECT n + 1, (sum * 31 + n + 1) % 1000003 FROM step ORDER BY n DESC LIMIT 1";

/// How much room there is for steps, in bytes.
const ROOM: i64 = 4 << 20;

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
    database.execute_batch("CREATE INDEX by_sensor ON reading (sensor);")?;
    database.execute_batch(
        "CREATE TABLE step (n INTEGER PRIMARY KEY, sum INTEGER); INSERT INTO step VALUES (0, 1);",
    )?;
    // Pages that nobody has: in place, the database cannot grow.
    database.execute("CREATE TABLE room AS SELECT zeroblob(?1) AS x", [ROOM])?;
    database.execute_batch("DROP TABLE room; COMMIT;")
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

/// Commits one step after the other to the database in this memory, as long as it `goes_on`; `committed` is told the number
/// of each.
pub(super) fn commit_steps(
    memory: &TrackedMapping,
    length: usize,
    goes_on: impl Fn() -> bool,
    committed: impl Fn(u64),
) -> rusqlite::Result<()> {
    let database = WritableDatabase::open(memory, length)?;
    let mut step = database.prepare(STEP)?;
    while goes_on() {
        step.execute([])?;
        committed(database.last_insert_rowid() as u64);
    }
    Ok(())
}

/// What was found of the steps.
pub(super) struct Steps {
    /// How many there are that follow from those before them.
    pub(super) whole: u64,
    /// How many are there twice.
    pub(super) doubled: u64,
    /// What the question is answered.
    pub(super) answer: String,
}

/// Looks whether each step is there once.
pub(super) fn check_steps(memory: &TrackedMapping, length: usize) -> Result<Steps> {
    let database = WritableDatabase::open(memory, length)?;
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if sound != "ok" {
        anyhow::bail!("the database is damaged: {sound}");
    }
    let mut steps = database.prepare("SELECT n, sum FROM step ORDER BY n")?;
    let mut rows = steps.query([])?;
    let (mut whole, mut doubled, mut sum) = (0, 0, 1);
    let mut last = None;
    while let Some(row) = rows.next()? {
        let (n, found): (i64, i64) = (row.get(0)?, row.get(1)?);
        if n > 0 {
            sum = (sum * 31 + n) % 1_000_003;
        }
        doubled += u64::from(last == Some(n));
        if found == sum && last.map_or(0, |last: i64| last + 1) == n {
            whole = n;
        }
        last = Some(n);
    }
    let answer = database.query_row(QUESTION, [], |row| row.get(0))?;
    Ok(Steps { whole: whole as u64, doubled, answer })
}
