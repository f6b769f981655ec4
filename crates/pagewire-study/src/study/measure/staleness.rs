//! How long a change takes to the server: the application writes the time into a page, and here somebody looks for it in the
//! server's file, over and over.
//!
//! Both read the same clock, since they are on one machine: the time of day in nanoseconds. A study in which that is set
//! meanwhile has wrong figures of this kind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::study::workload::{PAGE, PROBE};

/// How often to look: what a time is exact to. More often would take the processor from what is measured.
const PAUSE: Duration = Duration::from_micros(200);

/// Nanoseconds since 1970.
pub(in crate::study) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// Looks for changes until it is dropped.
pub(in crate::study) struct Observer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The last time that was found.
    last: AtomicU64,
    /// How long each change took, in seconds.
    seen: Mutex<Vec<f64>>,
}

impl Observer {
    /// Looks at the server's file.
    pub(in crate::study) fn start(path: &Path) -> io::Result<Self> {
        let (file, shared) = (File::open(path)?, Arc::new(Shared::default()));
        let mine = shared.clone();
        let look = move || {
            // What was there before is no change.
            let mut known = stamp(&file);
            while !mine.stop.load(Ordering::Acquire) {
                std::thread::sleep(PAUSE);
                let found = stamp(&file);
                if found != known {
                    let took = Duration::from_nanos(now().saturating_sub(found));
                    mine.seen.lock().expect("no holder panics").push(took.as_secs_f64());
                    mine.last.store(found, Ordering::Release);
                    known = found;
                }
            }
        };
        let thread = std::thread::Builder::new().name("observer".into()).spawn(look)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits until it has found this time, or longer than makes sense. Answers how long each change took, in seconds.
    pub(in crate::study) fn wait_for(self, last: u64, patience: Duration) -> Vec<f64> {
        let deadline = Instant::now() + patience;
        while self.shared.last.load(Ordering::Acquire) != last && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        std::mem::take(&mut *self.shared.seen.lock().expect("no holder panics"))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }
}

/// The time that is in the file.
fn stamp(file: &File) -> u64 {
    let mut bytes = [0; 8];
    match file.read_exact_at(&mut bytes, PROBE * PAGE) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_seen_once_and_what_was_there_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 4096]).expect("it is written");
        let observer = Observer::start(&path).expect("it starts");
        let file = File::options().write(true).open(&path).expect("it opens");
        // It has read what was there when it looks for the first time.
        std::thread::sleep(Duration::from_millis(20));
        let written = now();
        file.write_all_at(&written.to_le_bytes(), 0).expect("it is written");
        let seen = observer.wait_for(written, Duration::from_secs(10));
        assert_eq!(seen.len(), 1);
        assert!(seen[0] > 0.0, "{seen:?}");
    }
}
