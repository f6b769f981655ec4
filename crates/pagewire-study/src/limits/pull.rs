//! How fast a cold region comes from a file, over loopback TCP, into memory under userfaultfd:
//! `sendfile`, `recv` into a buffer that is used again, `UFFDIO_COPY`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::Builder;
use std::time::{Duration, Instant};

use pagewire_sys::pulled::PulledMapping;
use pagewire_sys::socket::{receive_exact, send_file};
use pagewire_sys::uffd::{CopyMode, Features};
use pagewire_sys::{HUGE_PAGE_SIZE, PAGE_SIZE};

use super::{invalid, number};
use crate::child::{self, Child};
use crate::usage::own_cpu;

/// The hidden argument.
pub(super) const ROLE: &str = "--pagewire-limits-pull";

/// Bytes of a block unless told otherwise: the cost per call has vanished, and the buffer is in the
/// cache when it is copied out of.
pub const DEFAULT_BLOCK: usize = 256 << 10;

/// What a pull of the whole file took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PullLimit {
    /// From the first connection to the last byte in place.
    pub seconds: f64,
    /// Bytes that were moved: the file, but for what is left over when it is dealt out in pages.
    pub bytes: u64,
    /// Processor time of this process meanwhile.
    pub client_cpu: Duration,
    /// Processor time of the serving process meanwhile.
    pub server_cpu: Duration,
}

/// Pulls `file` over so many connections, an equal stripe by each, in blocks of `block` bytes (a
/// multiple of the page size).
///
/// # Errors
///
/// Invalid input for no connections, another block or an empty file; what the system calls answer.
pub fn pull(file: &Path, connections: usize, block: usize) -> io::Result<PullLimit> {
    if connections == 0 || block == 0 || !block.is_multiple_of(PAGE_SIZE) {
        return Err(invalid("a pull takes a connection and a block of whole pages"));
    }
    let length = std::fs::metadata(file)?.len() as usize;
    let share = length / connections / PAGE_SIZE * PAGE_SIZE;
    if share == 0 {
        return Err(invalid("the file has less than a page for each connection"));
    }
    let numbers = [connections, share, block].map(|number| OsString::from(number.to_string()));
    let arguments = [file.as_os_str(), &numbers[0], &numbers[1], &numbers[2]];
    let mut server = Child::start(ROLE, &arguments, None)?;
    let address = server.address().to_owned();
    let memory = PulledMapping::new(share * connections, Features::NONE, false)?;

    let (client_before, server_before) = (own_cpu()?, server.cpu()?);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let mut stripes = Vec::new();
        for index in 0..connections {
            // The server deals stripes out in the order of the connections.
            let socket = TcpStream::connect(&address)?;
            let at = memory.mapping().address() + index * share;
            let memory = &memory;
            let thread = Builder::new().name("limit-pull".into());
            stripes.push(thread.spawn_scoped(scope, move || receive(memory, &socket, at, share, block))?);
        }
        stripes.into_iter().try_for_each(|stripe| stripe.join().expect("the thread does not panic"))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let (client_cpu, server_cpu) = (own_cpu()? - client_before, server.cpu()? - server_before);
    Ok(PullLimit { seconds, bytes: (share * connections) as u64, client_cpu, server_cpu })
}

fn receive(
    memory: &PulledMapping,
    socket: &TcpStream,
    at: usize,
    share: usize,
    block: usize,
) -> io::Result<()> {
    // Room to begin at a huge page: the kernel may make the buffer one.
    let mut room = vec![1; block.next_multiple_of(HUGE_PAGE_SIZE) + HUGE_PAGE_SIZE];
    let first = room.as_ptr().addr().next_multiple_of(HUGE_PAGE_SIZE) - room.as_ptr().addr();
    let buffer = &mut room[first..first + block];
    let mut done = 0;
    while done < share {
        let bytes = &mut buffer[..block.min(share - done)];
        receive_exact(socket.as_fd(), bytes)?;
        memory.uffd().copy(at + done, bytes, CopyMode::default())?;
        done += bytes.len();
    }
    Ok(())
}

/// The other side: a stripe to each connection.
pub(super) fn serve(arguments: &[OsString]) -> io::Result<()> {
    let [file, connections, share, block] = arguments else { return Err(invalid("four arguments")) };
    let file = File::open(file)?;
    let (connections, share, block) = (number(connections)?, number(share)?, number(block)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut next = 0..connections;
    std::thread::spawn(move || {
        while let (Some(index), Ok((socket, _))) = (next.next(), listener.accept()) {
            let Ok(file) = file.try_clone() else { return };
            let send = move || send(&socket, &file, index * share, share, block);
            // A connection without a thread ends early, which is an error over there.
            let _ = Builder::new().name("limit-send".into()).spawn(send);
        }
    });
    child::listening(address)
}

/// A connection that ends early is an error over there.
fn send(socket: &TcpStream, file: &File, from: usize, share: usize, block: usize) {
    let (mut at, end) = (from as u64, (from + share) as u64);
    while at < end {
        match send_file(socket.as_fd(), file.as_fd(), at, (block as u64).min(end - at)) {
            Ok(sent @ 1..) => at += sent,
            Ok(0) | Err(_) => return,
        }
    }
}
