//! Archives that a kernel unpacks as its first file system: cpio in the format "newc".
//!
//! A kernel accepts several archives behind one another, and so what stays the same is made once.

use std::io::{self, Write};

/// What is written in front of each entry, and says which format this is.
const MAGIC: &str = "070701";

/// Entries and their names begin at multiples of so many bytes.
const ALIGNMENT: usize = 4;

/// The kinds of entries, as in the mode of a file.
const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

/// Writes an archive.
pub(crate) struct Archive<W: Write> {
    out: W,
    /// The folders that are there. Nobody else makes them.
    folders: std::collections::BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, folders: std::collections::BTreeSet::new(), entries: 0 }
    }

    /// Adds a file under an absolute path, and the folders that it is in.
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8], executable: bool) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.folder(&path[..at])?;
        }
        self.entry(path, REGULAR | if executable { 0o755 } else { 0o644 }, bytes)
    }

    /// Adds a folder that has not been added.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if self.folders.insert(path.into()) { self.entry(path, FOLDER | 0o755, &[]) } else { Ok(()) }
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let length =
            u32::try_from(bytes.len()).map_err(|_| io::Error::other(format!("{name} is too long")))?;
        self.entries += 1;
        // Its number, mode, owner, group, links, time, length, four numbers of devices, length of the name, and a sum
        // that this format does not have.
        let named = name.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, named, 0];
        let mut header = String::from(MAGIC);
        fields.iter().for_each(|field| header.push_str(&format!("{field:08X}")));
        header.push_str(name);
        let padding = |length: usize| &[0; ALIGNMENT][..length.next_multiple_of(ALIGNMENT) - length];
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&[0])?;
        self.out.write_all(padding(header.len() + 1))?;
        self.out.write_all(bytes)?;
        self.out.write_all(padding(bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_folders_are_made_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", b"1", true).unwrap();
        archive.file("/a/b/three", b"333", false).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], MAGIC.as_bytes());
            let (length, named) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + named - 1];
            names.push(String::from_utf8(name.into()).unwrap());
            at = (at + 110 + named).next_multiple_of(ALIGNMENT);
            at = (at + length).next_multiple_of(ALIGNMENT);
        }
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/three", "TRAILER!!!"]);
    }
}
