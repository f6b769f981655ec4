//! Writers that are held up go on.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::*;
use crate::engine::Region;
use crate::store::MemoryStore;

const MIB: u64 = 1 << 20;
const WRITES: u64 = 24;

/// Writes a MiB; when that is done, the next one, on the thread that says so.
fn write_on(file: &Arc<RegionFile>, number: u64, written: Sender<Result<u64>>) {
    let (next, bytes) = (file.clone(), vec![number as u8 + 1; MIB as usize]);
    let done: Completion = Box::new(move |result| {
        let go_on = result.is_ok() && number + 1 < WRITES;
        // The other end waits for the last one.
        let _ = written.send(result.map(|()| number));
        if go_on {
            write_on(&next, number + 1, written);
        }
    });
    file.write(number * MIB, &bytes, done);
}

/// A file that may have so few bytes unflushed.
fn file(room: Room) -> (Arc<RegionFile>, Arc<Region>) {
    let region = Region::new("r", Arc::new(MemoryStore::new(WRITES * MIB))).unwrap();
    let writer = region.writer("test").unwrap();
    let mut file = RegionFile::writable(writer, &PushOptions::default(), false, None).unwrap();
    let Access::Write(writing) = &mut file.access else { unreachable!("it is written to") };
    writing.room = Some(room);
    (Arc::new(file), region)
}

#[test]
fn writers_that_wait_for_room_go_on_whenever_they_begin_to_wait() {
    // Each of the writes that wait is released by a flush, and the next one begins to wait on the flushing
    // thread, before that flush has ended.
    let (file, region) = file(Room { flush_above: MIB, most: MIB });
    let (sender, written) = channel();
    write_on(&file, 0, sender);
    for number in 0..WRITES {
        let result = written.recv_timeout(Duration::from_secs(30));
        assert_eq!(result.expect("nobody waits for ever").unwrap(), number);
    }
    let (sender, flushed) = channel();
    file.flush(Box::new(move |result| sender.send(result.map(drop)).expect("it is waited for")));
    flushed.recv().unwrap().unwrap();
    assert_eq!(file.unflushed_bytes(), 0);
    assert!(region.info().epoch > 2, "it was flushed again and again");
}
