//! An SQLite database that lies in memory which is already there: a slice of a mapping, whose pages may arrive only
//! when SQLite touches them.

use std::marker::PhantomData;
use std::ops::Deref;

use rusqlite::{Connection, ffi};

/// The first bytes of every database file.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Where the header says by which journal the file is written and read; 2 is the write-ahead log.
const JOURNAL_VERSIONS: std::ops::Range<usize> = 18..20;
const WRITE_AHEAD_LOG: u8 = 2;

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
        if !bytes.starts_with(MAGIC) {
            return Err(failure(ffi::SQLITE_NOTADB, "the bytes are not an SQLite database"));
        }
        if bytes.get(JOURNAL_VERSIONS).is_some_and(|versions| versions.contains(&WRITE_AHEAD_LOG)) {
            return Err(failure(
                ffi::SQLITE_CANTOPEN,
                "a database in WAL mode cannot be read from memory; set PRAGMA journal_mode=DELETE on the original",
            ));
        }
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

fn failure(code: i32, message: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message.to_owned()))
}
