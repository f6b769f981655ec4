//! How long a page takes that is touched, over loopback TCP: the fault, `read` of the userfaultfd,
//! `send` of the offset, `recv` of the page, `UFFDIO_COPY`, which wakes.

use std::ffi::OsString;
use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::Builder;
use std::time::{Duration, Instant};

use pagewire_sys::PAGE_SIZE;
use pagewire_sys::pulled::PulledMapping;
use pagewire_sys::socket::{receive_exact, send_all_vectored};
use pagewire_sys::uffd::{CopyMode, Event, EventBuffer, Features, OpenFlags};

use super::{invalid, number};
use crate::child::{self, Child};
use crate::scatter::scattered;

/// The hidden argument.
pub(super) const ROLE: &str = "--pagewire-limits-fault";

/// For threads to come to rest before the first fault.
const SETTLE: Duration = Duration::from_millis(50);

/// How long faults took, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultLimit {
    /// Half took no longer.
    pub p50: Duration,
    /// 99 of a hundred took no longer.
    pub p99: Duration,
}

impl FaultLimit {
    /// Of these durations, of which there must be one.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        Some(Self { p50: *times.get(times.len() / 2)?, p99: *times.get(times.len() * 99 / 100)? })
    }
}

/// Touches pages of `page` bytes (a multiple of 4096) for the first time, at most `faults` of them,
/// at [scattered] offsets.
///
/// The server has the whole file in memory. No page is touched twice.
///
/// # Errors
///
/// Invalid input for another page size, no faults, or a file that has not one page; what the system
/// calls answer.
pub fn fault(file: &Path, faults: usize, page: usize) -> io::Result<FaultLimit> {
    if page == 0 || !page.is_multiple_of(PAGE_SIZE) {
        return Err(invalid("a page is a multiple of 4096 bytes"));
    }
    let pages = std::fs::metadata(file)?.len() / page as u64;
    let size = pages as usize * page;
    let number = OsString::from(page.to_string());
    let server = Child::start(ROLE, &[file.as_os_str(), &number], None)?;
    let socket = TcpStream::connect(server.address())?;
    socket.set_nodelay(true)?;
    // One page more than the file has: to touch it ends the thread that waits for faults. It blocks in
    // `read`, which takes one call where a poll before it would take two.
    let memory = PulledMapping::with_flags(size + PAGE_SIZE, Features::NONE, OpenFlags::default())?;
    let times = std::thread::scope(|scope| {
        let resolver = Builder::new().name("limit-fault".into()).spawn_scoped(scope, || {
            let end = resolve(&memory, &socket, page, size);
            if end.is_err() {
                // Whoever waits must not wait for ever; the times are of no use.
                let mapping = memory.mapping();
                let _ = memory.uffd().zero_all(mapping.address(), mapping.len(), false);
            }
            end
        })?;
        std::thread::sleep(SETTLE);
        let bytes = memory.bytes();
        let touch = |page_number: u64| {
            let start = Instant::now();
            black_box(bytes[page_number as usize * page]);
            start.elapsed()
        };
        let times = scattered(pages).take(faults).map(touch).collect();
        black_box(bytes[size]);
        resolver.join().expect("the thread does not panic").map(|()| times)
    })?;
    FaultLimit::of(times).ok_or_else(|| invalid("no page to fault on"))
}

/// Resolves faults until the page behind the last is touched.
fn resolve(memory: &PulledMapping, socket: &TcpStream, page: usize, size: usize) -> io::Result<()> {
    let base = memory.mapping().address();
    let mut buffer = vec![1; page];
    let mut events = EventBuffer::new(1);
    loop {
        for event in memory.uffd().read_events(&mut events)? {
            let Event::PageFault { address, .. } = event else { continue };
            let offset = (*address as usize - base) / page * page;
            if offset >= size {
                memory.uffd().zeropage(base + size, PAGE_SIZE, false)?;
                return Ok(());
            }
            send_all_vectored(socket.as_fd(), &[&(offset as u64).to_ne_bytes()], false)?;
            receive_exact(socket.as_fd(), &mut buffer)?;
            memory.uffd().copy(base + offset, &buffer, CopyMode::default())?;
        }
    }
}

/// The other side: a page for each offset that comes.
pub(super) fn serve(arguments: &[OsString]) -> io::Result<()> {
    let [file, page] = arguments else { return Err(invalid("two arguments")) };
    let (bytes, page) = (std::fs::read(file)?, number(page)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Builder::new().name("limit-serve".into()).spawn(move || {
        // A connection that ends early is an error over there.
        if let Ok((socket, _)) = listener.accept() {
            let _ = answer(&socket, &bytes, page);
        }
    })?;
    child::listening(address)
}

fn answer(socket: &TcpStream, bytes: &[u8], page: usize) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut offset = [0; 8];
    loop {
        receive_exact(socket.as_fd(), &mut offset)?;
        let at = u64::from_ne_bytes(offset) as usize;
        let page = bytes.get(at..at.saturating_add(page)).ok_or_else(|| invalid("an offset outside"))?;
        send_all_vectored(socket.as_fd(), &[page], false)?;
    }
}
