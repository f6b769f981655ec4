use std::collections::BTreeSet;
use std::os::fd::AsFd;

use pagewire_sys::PAGE_SIZE;
use pagewire_sys::event::{EventFd, PollItem, poll};
use pagewire_sys::sqlite::{MappedDatabase, WritableDatabase};
use pagewire_sys::tracked::{TrackedMapping, Tracking};
use pagewire_sys::uffd::{CopyMode, Event, EventBuffer, Features, Uffd};
use rusqlite::Connection;

use crate::support::{MISSING, OnDrop, registered, serving, skipped};

fn database(rows: u32, journal: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.db");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "journal_mode", journal).unwrap();
    connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)", ()).unwrap();
    connection.execute("BEGIN", ()).unwrap();
    for id in 0..rows {
        connection
            .execute("INSERT INTO item VALUES (?1, ?2)", (id, format!("item {id} {:0500}", 0)))
            .unwrap();
    }
    connection.execute("COMMIT", ()).unwrap();
    connection.close().unwrap();
    std::fs::read(path).unwrap()
}

fn name_of(connection: &Connection, id: u32) -> String {
    connection.query_row("SELECT name FROM item WHERE id = ?1", [id], |row| row.get(0)).unwrap()
}

/// Serves the faults with the bytes of the file until the stop is signalled; returns which pages.
fn serve(uffd: &Uffd, base: usize, file: &[u8], stop: &EventFd) -> BTreeSet<usize> {
    let mut served = BTreeSet::new();
    let mut buffer = EventBuffer::default();
    loop {
        let mut items = [PollItem::readable(uffd.as_fd()), PollItem::readable(stop.as_fd())];
        poll(&mut items, None).unwrap();
        if items[1].is_ready() {
            return served;
        }
        for event in uffd.read_events(&mut buffer).unwrap() {
            let Event::PageFault { address, .. } = event else { panic!("{event:?}") };
            let offset = *address as usize - base;
            uffd.copy_all(*address as usize, &file[offset..offset + PAGE_SIZE], CopyMode::default()).unwrap();
            served.insert(offset / PAGE_SIZE);
        }
    }
}

#[test]
fn a_query_pulls_only_the_pages_that_it_needs() {
    if skipped("userfaultfd") {
        return;
    }
    let file = database(2000, "delete");
    let count = file.len() / PAGE_SIZE;
    assert!(count > 200, "{count} pages");
    for in_place in [false, true] {
        let (uffd, mapping) = registered(count, Features::NONE, MISSING);
        let stop = EventFd::new().unwrap();
        let served = std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(&uffd, mapping.address(), &file, &stop));
            let stopped = OnDrop(|| stop.signal().unwrap());
            // SAFETY: nobody writes the mapping, but for the first placement.
            let bytes = unsafe { mapping.as_slice(file.len()) };
            let database = MappedDatabase::open(bytes).unwrap();
            if in_place {
                database.pragma_update(None, "mmap_size", file.len() as i64).unwrap();
            }
            assert!(name_of(&database, 1234).starts_with("item 1234 "));
            assert!(database.execute("DELETE FROM item", ()).is_err(), "it is read-only");
            assert!(database.execute("CREATE TABLE other (id)", ()).is_err());
            drop(stopped);
            server.join().unwrap()
        });
        assert!(served.contains(&0) && served.len() < 10, "served {served:?} of {count}");
    }
}

#[test]
fn the_whole_database_reads_as_the_file_does() {
    let file = database(300, "delete");
    let database = MappedDatabase::open(&file).unwrap();
    let all: u32 = database.query_row("SELECT count(*) FROM item", (), |row| row.get(0)).unwrap();
    assert_eq!(all, 300);
    let check: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    drop(database);
    // Two at once share the bytes.
    let (one, two) = (MappedDatabase::open(&file).unwrap(), MappedDatabase::open(&file).unwrap());
    assert_eq!(name_of(&one, 7), name_of(&two, 7));
}

#[test]
fn what_is_no_database_is_refused() {
    for bytes in [&b""[..], b"SQLite", &[0; 4096]] {
        assert!(MappedDatabase::open(bytes).is_err());
    }
    let error = MappedDatabase::open(&database(1, "wal")).unwrap_err();
    assert!(error.to_string().contains("WAL"), "{error}");
    // A file that was cut short is an error of the query, not of the process.
    let cut = &database(2000, "delete")[..64 << 10];
    let database = MappedDatabase::open(cut).unwrap();
    let result = database.query_row("SELECT count(*), max(name) FROM item", (), |row| row.get::<_, u32>(0));
    assert!(result.is_err());
}

/// The page of a file, filled up with zeroes.
fn page_of(file: &[u8], offset: usize) -> Vec<u8> {
    file[offset..file.len().min(offset + PAGE_SIZE)].to_vec()
}

/// Copies what was written over the file; answers how many pages.
fn collect(memory: &TrackedMapping, file: &mut [u8]) -> usize {
    let mut ranges = Vec::new();
    memory.take_written(&mut ranges).unwrap();
    for range in &ranges {
        memory.copy_out(range.start, &mut file[range.clone()]).unwrap();
    }
    ranges.iter().map(ExactSizeIterator::len).sum::<usize>() / PAGE_SIZE
}

#[test]
fn rows_that_are_changed_in_place_are_found_by_their_pages() {
    if skipped("userfaultfd") {
        return;
    }
    let file = database(2000, "delete");
    let counter = |file: &[u8]| u32::from_be_bytes(file[24..28].try_into().unwrap());
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Hash] {
        let memory = TrackedMapping::new(file.len(), Some(tracking), false).unwrap();
        let mut store = file.clone();
        serving(
            &memory,
            |offset| page_of(&file, offset),
            || {
                let database = WritableDatabase::open(&memory, file.len()).unwrap();
                assert!(name_of(&database, 7).starts_with("item 7 "));
                assert_eq!(collect(&memory, &mut store), 0, "reading is no writing");
                for id in [3, 1500] {
                    database.execute("UPDATE item SET name = 'changed' WHERE id = ?1", [id]).unwrap();
                }
                let pages = collect(&memory, &mut store);
                assert!((3..=8).contains(&pages), "{pages} of {}", file.len() / PAGE_SIZE);
                assert_eq!(counter(&store), counter(&file) + 2, "the change counter counts transactions");

                // A transaction that is taken back leaves the rows as they were.
                database.execute_batch("BEGIN; DELETE FROM item; ROLLBACK").unwrap();
                database.execute("DELETE FROM item WHERE id = 1999", ()).unwrap();
                database.execute("INSERT INTO item VALUES (5000, 'new')", ()).unwrap();
                collect(&memory, &mut store);
            },
        );
        let database = MappedDatabase::open(&store).unwrap();
        let check: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "{tracking}");
        let all: u32 = database.query_row("SELECT count(*) FROM item", (), |row| row.get(0)).unwrap();
        assert_eq!(all, 2000);
        assert_eq!([3, 1500, 5000].map(|id| name_of(&database, id)), ["changed", "changed", "new"]);
        assert!(name_of(&database, 1998).starts_with("item 1998 "));
    }
}

#[test]
fn a_database_in_place_cannot_grow() {
    if skipped("userfaultfd") {
        return;
    }
    let file = database(50, "delete");
    let memory = TrackedMapping::new(file.len() + 64 * PAGE_SIZE, None, false).unwrap();
    serving(
        &memory,
        |offset| if offset < file.len() { page_of(&file, offset) } else { vec![0; PAGE_SIZE] },
        || {
            let grow = "INSERT INTO item SELECT id + 10000, name FROM item";
            let database = WritableDatabase::open(&memory, file.len()).unwrap();
            let error = database.execute(grow, ()).unwrap_err();
            assert!(error.to_string().contains("database or disk is full"), "{error}");
            let count = |database: &Connection| -> u32 {
                database.query_row("SELECT count(*) FROM item", (), |row| row.get(0)).unwrap()
            };
            assert_eq!(count(&database), 50, "it is as it was");
            drop(database);
            // Followed by zeroes it can, into these.
            let database = WritableDatabase::open(&memory, file.len() + 64 * PAGE_SIZE).unwrap();
            assert_eq!(database.execute(grow, ()).unwrap(), 50);
            assert_eq!(count(&database), 100);
            let check: String = database.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
        },
    );
}

#[test]
fn nobody_else_writes_the_memory_of_a_database() {
    if skipped("userfaultfd") {
        return;
    }
    let file = database(50, "delete");
    let memory = TrackedMapping::new(file.len(), Some(Tracking::Async), true).unwrap();
    serving(
        &memory,
        |offset| page_of(&file, offset),
        || {
            let database = WritableDatabase::open(&memory, file.len()).unwrap();
            let busy =
                |result: std::io::Result<()>| result.unwrap_err().kind() == std::io::ErrorKind::ResourceBusy;
            assert!(busy(memory.copy_in(0, &[1])) && busy(memory.mapping().copy_in(0, &[1])));
            assert!(busy(memory.discard(0, PAGE_SIZE)));
            assert!(memory.atomic_u8(0).is_none());
            assert!(WritableDatabase::open(&memory, file.len()).is_err());
            database.execute("UPDATE item SET name = '' WHERE id = 1", ()).unwrap();
            drop(database);
            memory.copy_in(0, &file[..10]).unwrap();
            assert!(WritableDatabase::open(&memory, memory.mapping().len() + 1).is_err());
            let error = WritableDatabase::open(&memory, 15).unwrap_err();
            assert!(error.to_string().contains("not an SQLite database"), "{error}");
            assert!(memory.atomic_u8(0).is_some());
            let error = WritableDatabase::open(&memory, file.len()).unwrap_err();
            assert!(error.to_string().contains("atomics"), "{error}");
        },
    );
}
