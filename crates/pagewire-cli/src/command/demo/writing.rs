//! The second half of the demonstration: rows are changed in the mapped database, flushed, and there again
//! after the server was killed.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use pagewire::access::uffd::{MapOptions, Mapping, WritableMapping, WriteOptions};
use pagewire::engine::PullOptions;
use pagewire::{PullOrder, store::RemoteOptions};
use serde::Serialize;

use super::{Query, database};

/// What is printed as JSON.
#[derive(Serialize)]
pub(super) struct Written {
    pub(super) sql: &'static str,
    pub(super) rows: usize,
    /// How changes were found.
    pub(super) tracking: &'static str,
    pub(super) flush_seconds: f64,
    pub(super) pushed_bytes: u64,
    /// The epoch that the flush made.
    pub(super) epoch: u64,
    /// What the question was answered after the server was killed and started again.
    pub(super) answer_after_restart: String,
    /// Where the region is offered now.
    #[serde(skip)]
    pub(super) region: String,
}

/// Changes rows in place through a mapping of `region`, flushes them, kills the server, starts another of
/// the same file, and asks again.
pub(super) fn run(
    path: &Path,
    region: &str,
    remote: &RemoteOptions,
    say: &dyn Fn(String),
) -> Result<Written> {
    let alone = || {
        let pull = PullOptions { order: PullOrder::None, ..PullOptions::default() };
        MapOptions { pull, ..MapOptions::default() }
    };
    let options = WriteOptions { map: alone(), ..WriteOptions::default() };
    let mapping = WritableMapping::open_with(&region.parse()?, &options, remote)?;
    let tracking = mapping.tracking().as_str();
    say(format!("mapped once more, to write; changes are found by {tracking}"));
    let changed = database::change(mapping.memory(), mapping.len() as usize)?;
    say(format!("{}\n  → {} rows changed; now they are {}", changed.sql, changed.rows, changed.answer));
    let started = Instant::now();
    let epoch = mapping.flush()?.epoch;
    let flush_seconds = started.elapsed().as_secs_f64();
    let pushed_bytes = mapping.push_progress().pushed_bytes;
    say(format!(
        "flushed as epoch {epoch} after {:.1} ms; {} were pushed for it",
        flush_seconds * 1e3,
        pagewire::address::format_size(pushed_bytes)
    ));

    super::kill_server()?;
    drop(mapping);
    let region = super::start_server(path, true)?;
    say(format!("killed the server with SIGKILL and started it again, as {region}"));
    let mapping = Mapping::open_with(&region.parse()?, &alone(), remote)?;
    let Some(Query { answer, .. }) = database::ask(&mapping)? else {
        bail!("the database is gone");
    };
    if answer != changed.answer || mapping.epoch() != epoch {
        bail!("{answer} at epoch {} is not what was flushed", mapping.epoch());
    }
    say(format!("  → {answer}: what was flushed is there, at epoch {epoch}"));
    let (sql, rows) = (changed.sql, changed.rows);
    Ok(Written {
        sql,
        rows,
        tracking,
        flush_seconds,
        pushed_bytes,
        epoch,
        answer_after_restart: answer,
        region,
    })
}
