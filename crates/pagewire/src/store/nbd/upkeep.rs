//! The threads of a session: each link's, which makes it, receives on it, and makes it again when it is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::nbd::{ExportInfo, TransmissionFlags};

use super::link::{self, Link, Opened};
use super::session::{Lane, Session};
use crate::error::{Error, ErrorKind, Result};

/// The shortest and the longest pause before a lost connection is made again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The longest pause where there are others: a server may let in fewer than are wanted, for long.
const BACKOFF_OTHERS: Duration = Duration::from_secs(30);

impl Session {
    /// Starts the threads, of which the first goes on with a connection that was made.
    pub(super) fn start(self: &Arc<Self>, first: Opened) -> Result<()> {
        let round_trip = first.round_trip;
        let link = self.link_is_ready(round_trip, |born| Link::new(first, 0, born));
        let count = self.wanted_links();
        let lane = if count > 1 { Lane::Demand } else { Lane::Bulk };
        let session = self.clone();
        spawn("nbd-0".into(), move || session.keep_link(0, lane, link))?;
        for index in 1..count {
            let session = self.clone();
            spawn(format!("nbd-{index}"), move || session.keep_link(index, Lane::Bulk, None))?;
        }
        let session = self.clone();
        spawn("nbd-patience".into(), move || session.keep_patience())
    }

    /// The life of one link, again and again until the session is closed.
    fn keep_link(self: &Arc<Self>, index: usize, lane: Lane, first: Option<Arc<Link>>) {
        match lane {
            Lane::Demand => crate::schedule::demand(),
            // The only link there is serves those who wait, too.
            Lane::Bulk if index == 0 => {}
            Lane::Bulk => crate::schedule::bulk(),
        }
        let eager = if index == 0 { Lane::Demand } else { Lane::Bulk };
        let mut next = first;
        let mut pause = BACKOFF.0;
        loop {
            if self.lock().closed {
                return;
            }
            let made = match next.take() {
                Some(first) => Ok(Some(first)),
                None => self.make_link(index),
            };
            let longest = match made {
                Ok(Some(link)) => {
                    let begun = Instant::now();
                    let lost = self.receive(&link, eager);
                    self.link_is_lost(&link, &lost);
                    if begun.elapsed() >= BACKOFF.1 {
                        pause = BACKOFF.0;
                        continue;
                    }
                    BACKOFF.1
                }
                Ok(None) => return,
                // The first one says what becomes of the export, and is enough by itself.
                Err(error) if index > 0 => {
                    tracing::debug!(export = %self.address, %error, "a further connection failed");
                    BACKOFF_OTHERS
                }
                Err(error) => {
                    tracing::debug!(export = %self.address, %error, "the connection failed");
                    self.has_failed(&error);
                    BACKOFF.1
                }
            };
            if self.pause(pause) {
                return;
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Makes a link. None where the session was closed.
    fn make_link(self: &Arc<Self>, index: usize) -> Result<Option<Arc<Link>>> {
        let opened = link::open(&self.address, &self.options)?;
        self.check_same(&opened.agreed.export)?;
        let round_trip = opened.round_trip;
        Ok(self.link_is_ready(round_trip, |born| Link::new(opened, index, born)))
    }

    /// Whether an export can be the one that was opened first.
    fn check_same(&self, export: &ExportInfo) -> Result<()> {
        let was = &self.export;
        let changed = |text: String| Err(Error::new(ErrorKind::Changed, format!("{} {text}", self.address)));
        if export.size != was.size {
            return changed(format!("has {} bytes now, and had {}", export.size, was.size));
        }
        if export.block_sizes() != was.block_sizes() {
            return changed("has blocks of another size now".into());
        }
        if self.writable && export.flags.contains(TransmissionFlags::READ_ONLY) {
            return changed("can only be read now".into());
        }
        Ok(())
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", &error))
}
