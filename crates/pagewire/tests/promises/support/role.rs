//! This program, started again to play a part in a process of its own. The parent starts the one
//! test [`play`] with [`ROLE`] set; without it that test checks that there is nothing to play.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use pagewire::access::uffd::{MapOptions, Mapping, WritableMapping, WriteOptions};
use pagewire::engine::{PlainMemory, PushOptions, Pusher, Region};
use pagewire::store::{FileStore, RemoteStore};
use pagewire::{ByteRange, PullOrder};

use super::{HANG, Held, map, map_options, patient_for, region_at, serve, wait_until};

const ROLE: &str = "PAGEWIRE_TEST_ROLE";

/// Serves `file` at `listen`; no byte from `border` on.
pub(crate) const SERVE: &str = "serve";

/// Maps the region at `peer`, touches its first byte, says so, waits for a line, and touches the
/// byte at `touch`.
pub(crate) const TOUCH: &str = "touch";

/// Writes the byte `value` over the first `length` bytes of the region at `peer`, flushes, and says so.
pub(crate) const WRITE: &str = "write";

/// In a mount namespace of its own, where `folder` is a file system of 1 MiB of which `filler` bytes are
/// taken: serves a file of `size` bytes that lies there. A line has it remove the filler.
pub(crate) const SERVE_FULL: &str = "serve-full";
/// Maps the region `file` at `peer` with the cache at `cache`, and says so when `until` bytes are in it.
pub(crate) const CACHED_READER: &str = "cached-reader";

/// Maps the region `memory` at `peer` to be written to, with the cache at `cache`, says so, waits for a line,
/// writes, flushes locally, says so, writes more, and waits.
pub(crate) const CACHED_WRITER: &str = "cached-writer";

/// A process of this program.
pub(crate) struct Actor {
    child: Child,
    lines: Receiver<String>,
    errors: Option<std::thread::JoinHandle<String>>,
    stdin: ChildStdin,
}

impl Actor {
    /// Starts one that plays `role`, with these settings.
    pub(crate) fn start(role: &str, settings: &[(&str, String)]) -> Self {
        Self::start_with(Command::new(std::env::current_exe().unwrap()), role, settings)
    }

    /// The same in a mount namespace of its own, where `folder` is an empty file system of `size` bytes. Both
    /// go with the process.
    pub(crate) fn start_in(folder: &Path, size: u64, role: &str, settings: &[(&str, String)]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c"]);
        command.arg("mount -t tmpfs -o size=$0 pagewire \"$1\" && shift && exec \"$@\"");
        command.arg(size.to_string()).arg(folder).arg(std::env::current_exe().unwrap());
        Self::start_with(command, role, settings)
    }

    fn start_with(mut command: Command, role: &str, settings: &[(&str, String)]) -> Self {
        command.args(["--exact", "support::role::play", "--nocapture"]).env(ROLE, role);
        for (name, value) in settings {
            command.env(setting_name(name), value);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = sync_channel(100);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The parent has heard what it needed.
                let _ = sender.try_send(line);
            }
        });
        let mut stderr = child.stderr.take().unwrap();
        let errors = Some(std::thread::spawn(move || {
            let mut text = Vec::new();
            // What there is up to a failure is what there is.
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }));
        let stdin = child.stdin.take().unwrap();
        Self { child, lines, errors, stdin }
    }

    /// What follows `key` in the first line that has it.
    pub(crate) fn wait_for(&self, key: &str) -> String {
        let deadline = Instant::now() + HANG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("the process never said '{key}'"));
            if let Some((_, rest)) = line.split_once(key) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Whether a line that has `key` has come by now. Lines before it are passed over.
    pub(crate) fn has_said(&self, key: &str) -> bool {
        std::iter::from_fn(|| self.lines.try_recv().ok()).any(|line| line.contains(key))
    }

    pub(crate) fn say(&mut self) {
        self.stdin.write_all(b"go\n").unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn log(&mut self) -> String {
        self.errors.take().unwrap().join().unwrap()
    }

    /// Waits for its end. Answers how it ended, and what it had written to standard error.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + HANG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                panic!("the process hangs; it said: {}", self.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        (status, self.log())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It has ended already, or is not needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn setting_name(name: &str) -> String {
    format!("PAGEWIRE_TEST_{}", name.to_uppercase())
}

fn setting(name: &str) -> String {
    std::env::var(setting_name(name)).unwrap()
}

#[test]
fn play() {
    match std::env::var(ROLE).as_deref() {
        Ok(SERVE) => play_server(),
        Ok(TOUCH) => play_application(),
        Ok(WRITE) => play_writer(),
        Ok(SERVE_FULL) => play_full_server(),
        Ok(CACHED_READER) => play_cached_reader(),
        Ok(CACHED_WRITER) => play_cached_writer(),
        other => assert!(other.is_err(), "there is no such part"),
    }
}

fn play_server() {
    let store = Arc::new(FileStore::open(setting("file").as_ref(), None, false).unwrap());
    let (held, _hold) = Held::new(store, setting("border").parse().unwrap());
    let region = Region::new("file", held).unwrap();
    let (_server, address) = serve([region], &setting("listen").parse().unwrap());
    println!("\nlistening {address}");
    // Until it is killed, or its parent has gone.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn play_full_server() {
    let folder = PathBuf::from(setting("folder"));
    let filler = folder.join("filler");
    std::fs::write(&filler, vec![1; setting("filler").parse().unwrap()]).unwrap();
    let size = setting("size").parse().unwrap();
    let store = Arc::new(FileStore::open(&folder.join("region"), Some(size), true).unwrap());
    let (_server, address) =
        serve([Region::new("region", store).unwrap()], &setting("listen").parse().unwrap());
    println!("\nlistening {address}");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    std::fs::remove_file(&filler).unwrap();
    println!("\nroom");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn play_writer() {
    let number = |name: &str| setting(name).parse::<u64>().unwrap();
    let length = number("length");
    let at = region_at(&setting("peer").parse().unwrap(), "region");
    let remote = RemoteStore::connect_writer(&at, &patient_for(10_000), "a writer that dies").unwrap();
    let region = Region::new("region", Arc::new(remote)).unwrap();
    let local = Arc::new(PlainMemory::new(length));
    local.write(0, &vec![number("value") as u8; length as usize]).unwrap();
    let options = PushOptions { interval: None, ..PushOptions::default() };
    let pusher = Pusher::start(region.writer("a writer that dies").unwrap(), local, length, options).unwrap();
    println!("\nflushed {}", pusher.flush().unwrap().epoch);
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn play_application() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let touch: usize = setting("touch").parse().unwrap();
    let mapping = map(&setting("peer").parse().unwrap(), "file", PullOrder::None, &patient_for(300)).unwrap();
    mapping.prefault(ByteRange::new(0, 1)).unwrap();
    println!("\nready {}", mapping[0]);
    std::io::stdin().read_line(&mut String::new()).unwrap();
    println!("\ntouched {}", mapping[touch]);
}

fn cached(order: PullOrder) -> MapOptions {
    MapOptions { cache: Some(setting("cache").into()), ..map_options(order) }
}

fn play_cached_reader() {
    let address = format!("{}", region_at(&setting("peer").parse().unwrap(), "file")).parse().unwrap();
    let mapping = Mapping::open_with(&address, &cached(PullOrder::Sequential), &patient_for(20_000)).unwrap();
    let until: u64 = setting("until").parse().unwrap();
    let cache = mapping.region().cache().unwrap();
    wait_until("the bytes are in the cache", || cache.progress().present_bytes >= until);
    println!("\npulled");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn play_cached_writer() {
    let address = format!("{}", region_at(&setting("peer").parse().unwrap(), "memory")).parse().unwrap();
    let push = PushOptions { interval: None, ..PushOptions::default() };
    let map = cached(PullOrder::Sequential);
    let options = WriteOptions { map, push, ..WriteOptions::default() };
    let mapping = WritableMapping::open_with(&address, &options, &patient_for(20_000)).unwrap();
    mapping.wait().unwrap();
    println!("\nmapped");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    mapping.write(100_000, &[0xaa; 4096]).unwrap();
    mapping.write(mapping.len() - 3, &[0xbb; 3]).unwrap();
    mapping.flush_local().unwrap();
    mapping.write(50_000, &[0xcc; 9000]).unwrap();
    println!("\nkept");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
