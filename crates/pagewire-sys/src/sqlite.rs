//! An SQLite database that lies in memory which is already there: a mapping, whose pages may arrive only when
//! SQLite touches them. [`MappedDatabase`] reads one from a slice; [`WritableDatabase`] also writes one, in
//! place.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering};

use rusqlite::{Connection, ffi};

use crate::gate::Lent;
use crate::tracked::TrackedMapping;

/// The first bytes of every database file.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Where the header says by which journal the file is written and read; 2 is the write-ahead log.
const JOURNAL_VERSIONS: std::ops::Range<usize> = 18..20;
const WRITE_AHEAD_LOG: u8 = 2;
/// Bytes of the header that are looked at.
const HEADER: usize = JOURNAL_VERSIONS.end;

/// A read-only SQLite connection whose main database is a slice. SQLite reads the slice itself, page by page as
/// queries need them; nothing is copied up front.
///
/// It derefs to the [`Connection`]; use that as any other. SQLite copies each page that it reads into its page cache;
/// `PRAGMA mmap_size` makes it use the slice in place.
#[derive(Debug)]
pub struct MappedDatabase<'a> {
    connection: Connection,
    /// SQLite holds the address of the bytes until the connection is closed.
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> MappedDatabase<'a> {
    /// Opens the database in `bytes`, which is the content of a database file. Reads the header, so that the first
    /// page must be there or arrive.
    ///
    /// # Errors
    ///
    /// `SQLITE_NOTADB` when it is no database; `SQLITE_CANTOPEN` for one in WAL mode, which SQLite can read from
    /// files only (`PRAGMA journal_mode=DELETE` on the original changes that).
    pub fn open(bytes: &'a [u8]) -> rusqlite::Result<MappedDatabase<'a>> {
        check_header(&bytes[..bytes.len().min(HEADER)])?;
        let connection = Connection::open_in_memory()?;
        let size = bytes.len() as ffi::sqlite3_int64;
        // SAFETY: the handle is that of a live connection. With READONLY alone SQLite refuses every lock that a writer
        // needs, so that it never writes the bytes, and neither frees nor moves them. They outlive the
        // connection: it is owned by the value that has their lifetime, is handed out by shared reference only (it
        // cannot be moved out or replaced), and is closed on drop.
        let code = unsafe {
            ffi::sqlite3_deserialize(
                connection.handle(),
                c"main".as_ptr(),
                bytes.as_ptr().cast_mut(),
                size,
                size,
                ffi::SQLITE_DESERIALIZE_READONLY,
            )
        };
        if code != ffi::SQLITE_OK {
            return Err(failure(code, "SQLite refused the bytes as a database"));
        }
        Ok(MappedDatabase { connection, bytes: PhantomData })
    }
}

impl Deref for MappedDatabase<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// An SQLite connection that reads and writes a database in tracked memory, in place.
///
/// It derefs to the [`Connection`]. What a transaction changes is written to the memory when it commits (or
/// earlier, when SQLite's page cache overflows), page by page and with all that SQLite does to a file, its
/// change counter included; [`TrackedMapping::take_written`] then finds these pages. A copy that is to be a
/// valid database is of a moment at which no transaction is open: SQLite keeps the rollback journal in its
/// own memory. The database cannot grow beyond the length that it was given ("database or disk is full");
/// what is to grow in place is made larger beforehand (a file whose header has fewer pages than the file may
/// be followed by zeroes).
///
/// # Why this is safe
///
/// SQLite uses plain loads and stores, so nobody else may write these bytes meanwhile. The memory is lent: as
/// long as the database lives, [`TrackedMapping::copy_in`], [`TrackedMapping::discard`] and a second database
/// are refused, and atomics are not handed out; where they were before, the memory is not lent. Copying out
/// is done by the kernel, which reads what is there. Placing fills absent pages only, which nobody can have
/// read. Who writes through a raw pointer promised not to race ([`crate::mapping::Mapping::as_mut_ptr`]).
///
/// To touch a page that is poisoned is a SIGBUS, as for all who read the memory.
#[derive(Debug)]
pub struct WritableDatabase<'a> {
    // Closed first; then others may write again.
    connection: Connection,
    _lent: Lent<'a>,
}

impl<'a> WritableDatabase<'a> {
    /// Opens the database in the first `len` bytes of the memory. Reads the header, so that the first page
    /// must be there or arrive.
    ///
    /// # Errors
    ///
    /// As [`MappedDatabase::open`]; `SQLITE_BUSY` when the memory cannot be lent: another database has it, it
    /// is just being written, or atomics of it were handed out. `SQLITE_MISUSE` when `len` is more than the
    /// memory.
    pub fn open(memory: &'a TrackedMapping, len: usize) -> rusqlite::Result<WritableDatabase<'a>> {
        if len > memory.mapping().len() {
            return Err(failure(ffi::SQLITE_MISUSE, "the database is longer than its memory"));
        }
        let lent = memory.mapping().lend().map_err(|error| failure(ffi::SQLITE_BUSY, &error.to_string()))?;
        let mut header = [0; HEADER];
        let header = &mut header[..len.min(HEADER)];
        for (at, byte) in header.iter_mut().enumerate() {
            // Loaded here and not copied by the kernel, which does not wait for an absent page when the
            // userfaultfd is for user mode only.
            // SAFETY: the byte lies in the mapping, which outlives this; it is lent to us, so that no store
            // of another thread races.
            *byte = unsafe { AtomicU8::from_ptr(memory.as_mut_ptr().add(at)) }.load(Ordering::Relaxed);
        }
        check_header(header)?;
        let connection = Connection::open_in_memory()?;
        let size = len as ffi::sqlite3_int64;
        // SAFETY: the handle is that of a live connection. Without RESIZEABLE and FREEONCLOSE SQLite neither
        // moves, nor frees, nor exceeds the `size` bytes, all of which are mapped for writing. Nobody else
        // writes them until `lent` is dropped, which is after the connection was closed: it is owned here,
        // and handed out by shared reference only. When the database is leaked, so is the connection, which
        // then nobody can use.
        let code = unsafe {
            ffi::sqlite3_deserialize(
                connection.handle(),
                c"main".as_ptr(),
                memory.as_mut_ptr(),
                size,
                size,
                0,
            )
        };
        if code != ffi::SQLITE_OK {
            return Err(failure(code, "SQLite refused the bytes as a database"));
        }
        Ok(WritableDatabase { connection, _lent: lent })
    }
}

impl Deref for WritableDatabase<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// Whether the first bytes are those of a database that can be used in memory.
fn check_header(header: &[u8]) -> rusqlite::Result<()> {
    if !header.starts_with(MAGIC) {
        return Err(failure(ffi::SQLITE_NOTADB, "the bytes are not an SQLite database"));
    }
    if header.get(JOURNAL_VERSIONS).is_some_and(|versions| versions.contains(&WRITE_AHEAD_LOG)) {
        return Err(failure(
            ffi::SQLITE_CANTOPEN,
            "a database in WAL mode cannot be read from memory; set PRAGMA journal_mode=DELETE on the original",
        ));
    }
    Ok(())
}

fn failure(code: i32, message: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message.to_owned()))
}
