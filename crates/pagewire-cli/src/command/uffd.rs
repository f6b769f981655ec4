//! `pagewire uffd REGION --socket PATH`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use pagewire::ErrorKind;
use pagewire::access::uffd::{Handler, HandlerOptions, OpenRegion};
use pagewire::address::StoreAddress;
use pagewire::engine::trace::Trace;
use pagewire::engine::{PullOptions, Region};
use pagewire::store::{self, RemoteOptions};

use super::Termination;
use crate::args::{Order, Uffd};
use crate::output;

/// How long a guest waits for the cache that the last one is just letting go of.
const CLOSING: Duration = Duration::from_secs(5);

pub(super) fn run(args: &Uffd) -> Result<()> {
    let termination = Termination::watch()?;
    let asked = if args.no_pull { Some(&Order::None) } else { args.pull.as_ref() };
    let order = Order::or_default(asked, args.trace.is_some()).read(args.chunk)?;
    let trace =
        args.trace.as_ref().map(|path| Trace::record_to(path, args.chunk).map(Arc::new)).transpose()?;
    let pull = PullOptions { order, chunk: args.chunk, trace, ..PullOptions::default() };
    let (address, remote) = (args.region.clone(), args.remote.options());
    let open: OpenRegion = match args.cache.clone() {
        None => Arc::new(move || Region::at(&address, store::open(&address, false, &remote)?)),
        Some(cache) => {
            let shared = Shared { address, remote, cache, region: Mutex::default() };
            Arc::new(move || shared.open())
        }
    };
    let handler = Handler::listen(&args.socket, open, HandlerOptions { pull })?;
    output::line(format!("listening {}", handler.path().display()))?;
    termination.wait()
}

/// A region with a cache, which only one can have open: guests that run at the same time share it.
struct Shared {
    address: StoreAddress,
    remote: RemoteOptions,
    cache: PathBuf,
    region: Mutex<Weak<Region>>,
}

impl Shared {
    fn open(&self) -> pagewire::Result<Arc<Region>> {
        let mut known = self.region.lock().expect("no holder panics");
        if let Some(region) = known.upgrade() {
            return Ok(region);
        }
        let begun = Instant::now();
        let store = loop {
            match store::open_cached(&self.address, None, &self.remote, Some(&self.cache)) {
                // Another process does not let go of it; that is said at once where nobody waits yet.
                Err(error) if error.kind() == ErrorKind::Busy && known.strong_count() == 0 => {
                    if known.ptr_eq(&Weak::new()) || begun.elapsed() > CLOSING {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => break opened?,
            }
        };
        let region = Region::at(&self.address, store)?;
        *known = Arc::downgrade(&region);
        Ok(region)
    }
}
