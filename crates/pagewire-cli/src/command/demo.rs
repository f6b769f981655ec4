//! `pagewire demo [FILE]`: the main job, end to end, on this machine.

mod database;
mod moving;
mod writing;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pagewire::PullOrder;
use pagewire::access::uffd::{MapOptions, Mapping};
use pagewire::address::{FileAddress, StoreAddress, format_size};
use pagewire::engine::PullOptions;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::args::Demo;
use crate::output::{self, Bar};

/// What the demonstration has made, and what must not outlive it.
static MADE: Mutex<Made> = Mutex::new(Made { server: None, folder: None });

struct Made {
    server: Option<Child>,
    folder: Option<tempfile::TempDir>,
}

impl Made {
    fn remove(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It has ended already, or ends now.
            let _ = server.kill();
            let _ = server.wait();
        }
        self.folder = None;
    }
}

/// Removes what was made, however the demonstration ends.
struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove();
    }
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    file: String,
    bytes: u64,
    /// From nothing to the mapping, with the connections.
    map_seconds: f64,
    query: Option<Query>,
    first_use_seconds: f64,
    first_use_bytes: u64,
    first_use_faults: u64,
    /// From nothing until everything had arrived, with the background pull.
    complete_seconds: f64,
    bytes_per_second: f64,
    faults: u64,
    demand_bytes: u64,
    background_bytes: u64,
    longest_demand_us: u64,
    sha256: String,
    equal: bool,
    written: Option<writing::Written>,
    moved: Option<moving::Moved>,
}

#[derive(Serialize)]
struct Query {
    sql: String,
    answer: String,
}

pub(super) fn run(args: &Demo, quiet: bool) -> Result<()> {
    let _clean_up = CleanUp;
    super::on_interrupt(|| drop(CleanUp))?;
    let say = |text: String| {
        if !quiet && !args.json {
            eprintln!("{text}");
        }
    };
    let path = match &args.file {
        Some(file) => file.clone(),
        None => {
            say(format!("making an SQLite database of {} rows …", args.rows));
            make_database(args.rows)?
        }
    };
    let length = std::fs::metadata(&path).with_context(|| format!("cannot use {}", path.display()))?.len();
    // A file that was named is shown as it is, and stays so.
    let writes = args.file.is_none();
    let region = start_server(&path, writes)?;
    say(format!("a second process offers {} as {region}", format_size(length)));

    let started = Instant::now();
    // What has to move for the first use can only be told while nothing else moves.
    let alone = PullOptions { order: PullOrder::None, ..PullOptions::default() };
    let alone = MapOptions { pull: alone, ..MapOptions::default() };
    let (address, remote) = (region.parse()?, args.remote.options());
    let mapping = Mapping::open_with(&address, &alone, &remote)?;
    let map_seconds = started.elapsed().as_secs_f64();
    say(format!("mapped through userfaultfd after {:.1} ms", map_seconds * 1e3));

    let first_use = Instant::now();
    let query = use_at_once(&mapping)?;
    let first_use_seconds = first_use.elapsed().as_secs_f64();
    let first = mapping.progress();
    match &query {
        Some(Query { sql, answer }) => say(format!("{sql}\n  → {answer}")),
        None => say("no SQLite database: touched its first, middle and last byte".into()),
    }
    say(format!(
        "  answered after {:.1} ms; {} of {} had to move for it",
        first_use_seconds * 1e3,
        format_size(first.demand_bytes),
        format_size(length)
    ));

    drop(mapping);
    say("mapped anew, with the background pull".into());
    let started = Instant::now();
    let mapping = Mapping::open_with(&address, &MapOptions::default(), &remote)?;
    let bar = Bar::new(length, quiet || args.json);
    mapping.updates(Duration::from_millis(50)).for_each(|progress| bar.follow(&progress));
    drop(bar);
    let done = mapping.wait()?;
    let complete_seconds = started.elapsed().as_secs_f64();

    let (here, there) = (hex(&Sha256::digest(&mapping[..])), hash_file(&path)?);
    drop(mapping);
    let written = match writes && here == there {
        true => Some(writing::run(&path, &region, &remote, &say)?),
        false => None,
    };
    let moved = match &written {
        Some(written) => Some(move_on(&path, written, &remote, &say)?),
        None => None,
    };
    let report = Report {
        file: path.display().to_string(),
        bytes: length,
        map_seconds,
        query,
        first_use_seconds,
        first_use_bytes: first.demand_bytes,
        first_use_faults: first.faults,
        complete_seconds,
        bytes_per_second: length as f64 / complete_seconds,
        faults: first.faults + done.faults,
        demand_bytes: first.demand_bytes + done.demand_bytes,
        background_bytes: done.background_bytes,
        longest_demand_us: first.longest_demand_us.max(done.longest_demand_us),
        equal: here == there,
        sha256: there,
        written,
        moved,
    };
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    if !report.equal {
        bail!("the bytes differ: {here} was mapped, and {} was offered", report.sha256);
    }
    Ok(())
}

/// Moves the database to another host while it is written to.
fn move_on(
    path: &Path,
    written: &writing::Written,
    remote: &pagewire::store::RemoteOptions,
    say: &dyn Fn(String),
) -> Result<moving::Moved> {
    let folder = path.parent().context("the database lies nowhere")?;
    let moved = moving::run(&written.region, folder, remote, say)?;
    if moved.answer != written.answer_after_restart {
        bail!("{} is not what was there before the move: {}", moved.answer, written.answer_after_restart);
    }
    Ok(moved)
}

fn print(report: &Report) -> Result<()> {
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let size = |bytes: u64| format_size(bytes);
    let rows = [
        ("from nothing to the mapping", ms(report.map_seconds)),
        ("first use answered in", ms(report.first_use_seconds)),
        ("  which moved", format!("{} in {} faults", size(report.first_use_bytes), report.first_use_faults)),
        ("everything here after", ms(report.complete_seconds)),
        ("  rate", format!("{}/s", size(report.bytes_per_second as u64))),
        ("  on demand", format!("{} in {} faults", size(report.demand_bytes), report.faults)),
        ("  in the background", size(report.background_bytes)),
        ("longest wait for a chunk", format!("{:.1} ms", report.longest_demand_us as f64 / 1e3)),
        ("SHA-256 of both sides", if report.equal { "equal".into() } else { "DIFFERENT".into() }),
        ("", report.sha256.clone()),
    ];
    for (what, value) in rows {
        output::line(format!("{what:28} {value}"))?;
    }
    if let Some(written) = &report.written {
        let pushed = format!("{} for {} rows", size(written.pushed_bytes), written.rows);
        let rows = [
            ("rows changed in place by", "SQLite, on the mapped bytes".into()),
            ("flushed in", ms(written.flush_seconds)),
            ("  which pushed", pushed),
            ("after SIGKILL and a restart", format!("there, at epoch {}", written.epoch)),
        ];
        for (what, value) in rows {
            output::line(format!("{what:28} {value}"))?;
        }
    }
    if let Some(moved) = &report.moved {
        let rows = [
            (
                "moved under a running writer",
                format!("{} of downtime, {}", ms(moved.downtime_seconds), moved.mode),
            ),
            ("  everything there after", ms(moved.seconds)),
            ("  which moved", format!("{} of {}", size(moved.moved_bytes), size(moved.region_bytes))),
            (
                "  transactions committed",
                format!(
                    "{}, {} of them before: {} missing, {} doubled",
                    moved.committed, moved.committed_before, moved.missing, moved.doubled
                ),
            ),
        ];
        for (what, value) in rows {
            output::line(format!("{what:28} {value}"))?;
        }
    }
    Ok(())
}

fn make_database(rows: u32) -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("pagewire-demo-").tempdir()?;
    let path = folder.path().join("demo.sqlite");
    MADE.lock().expect("no holder panics").folder = Some(folder);
    database::make(&path, rows).context("cannot make the database")?;
    Ok(path)
}

/// Starts a server of the file in a process of its own, and answers the region's address.
fn start_server(path: &Path, writable: bool) -> Result<String> {
    let path = path.canonicalize()?;
    let store = StoreAddress::File(FileAddress::new(path));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["serve", &format!("demo={store}"), "--listen", "pw://127.0.0.1:0"])
        .args((!writable).then_some("--read-only"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut server = command.spawn().context("cannot start a server")?;
    let output = server.stdout.take();
    MADE.lock().expect("no holder panics").server = Some(server);
    let mut line = String::new();
    if let Some(output) = output {
        BufReader::new(output).read_line(&mut line)?;
    }
    match line.trim().strip_prefix("listening ") {
        Some(address) => Ok(format!("{address}/demo")),
        None => bail!("the server has not started"),
    }
}

/// Kills the server, which has no time to do anything.
fn kill_server() -> Result<()> {
    let server = MADE.lock().expect("no holder panics").server.take();
    let mut server = server.context("there is no server")?;
    server.kill().context("cannot kill the server")?;
    server.wait().context("cannot wait for the server")?;
    Ok(())
}

/// Asks the mapped bytes a question, as if they were all there.
fn use_at_once(mapping: &Mapping) -> Result<Option<Query>> {
    if let Some(answer) = database::ask(mapping)? {
        return Ok(Some(answer));
    }
    if let Some(last) = mapping.len().checked_sub(1) {
        let sum: u32 = [0, last / 2, last].iter().map(|at| u32::from(mapping[*at])).sum();
        std::hint::black_box(sum);
    }
    Ok(None)
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
