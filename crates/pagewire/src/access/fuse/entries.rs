//! The files of a mount: one, which is its root; or those of a directory, a region each, that are opened when they
//! are needed for the first time.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use super::passthrough::Opens;
use crate::access::region_file::RegionFile;
use crate::address::encode_percent;
use crate::error::Result;

/// The number of the root.
pub(super) const ROOT: u64 = 1;

/// One file.
pub(super) struct Entry {
    pub(super) ino: u64,
    /// The region's name.
    pub(super) region: String,
    state: Mutex<State>,
    /// Held while it is opened.
    opening: Mutex<()>,
    pub(super) opens: Opens,
}

struct State {
    file: Option<Arc<RegionFile>>,
    /// The length as far as it is known without the file.
    length: u64,
    attributes: Attributes,
}

/// What a file has besides its bytes. It is the mount's alone, and goes with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) accessed: SystemTime,
    pub(super) modified: SystemTime,
    pub(super) changed: SystemTime,
}

/// Opens a region by its name.
pub(super) type OpenFile = Box<dyn Fn(&str) -> Result<Arc<RegionFile>> + Send + Sync>;

/// Lists regions: their names and lengths.
pub(super) type ListRegions = Box<dyn Fn() -> Result<Vec<(String, u64)>> + Send + Sync>;

/// The files of a mount.
pub(super) enum Entries {
    /// The root is a file.
    File(Arc<Entry>),
    /// The root is a directory.
    Directory(Box<Directory>),
}

/// A directory of regions.
pub(super) struct Directory {
    pub(super) attributes: Attributes,
    open: OpenFile,
    list: ListRegions,
    template: Attributes,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By the names of their files.
    by_name: BTreeMap<OsString, Arc<Entry>>,
    by_ino: BTreeMap<u64, Arc<Entry>>,
    /// Those that the peer offers now.
    offered: Vec<(OsString, u64)>,
}

impl Entry {
    fn new(ino: u64, region: &str, length: u64, attributes: Attributes) -> Arc<Self> {
        let state = Mutex::new(State { file: None, length, attributes });
        Arc::new(Self {
            ino,
            region: region.into(),
            state,
            opening: Mutex::default(),
            opens: Opens::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The file, if it was opened.
    pub(super) fn file(&self) -> Option<Arc<RegionFile>> {
        self.lock().file.clone()
    }

    /// The length as far as it is known.
    pub(super) fn length(&self) -> u64 {
        let state = self.lock();
        state.file.as_ref().map_or(state.length, |file| file.length())
    }

    pub(super) fn attributes(&self) -> Attributes {
        self.lock().attributes
    }

    pub(super) fn change_attributes(&self, change: impl FnOnce(&mut Attributes)) -> Attributes {
        let mut state = self.lock();
        change(&mut state.attributes);
        state.attributes
    }
}

impl Entries {
    /// A root that is a file.
    pub(super) fn file(file: Arc<RegionFile>, attributes: Attributes) -> Self {
        let entry = Entry::new(ROOT, file.region().name(), 0, attributes);
        entry.lock().file = Some(file);
        Self::File(entry)
    }

    /// A root that is a directory of what `list` lists.
    ///
    /// # Errors
    ///
    /// As `list`.
    pub(super) fn directory(
        list: ListRegions,
        open: OpenFile,
        attributes: Attributes,
        template: Attributes,
    ) -> Result<Self> {
        let directory = Directory { attributes, open, list, template, known: Mutex::default() };
        directory.refresh()?;
        Ok(Self::Directory(Box::new(directory)))
    }

    /// The file of a number.
    pub(super) fn by_ino(&self, ino: u64) -> Option<Arc<Entry>> {
        match self {
            Entries::File(entry) => (ino == ROOT).then(|| entry.clone()),
            Entries::Directory(directory) => directory.lock().by_ino.get(&ino).cloned(),
        }
    }

    /// The file of a region, if it was listed.
    pub(super) fn by_region(&self, name: &str) -> Option<Arc<Entry>> {
        match self {
            Entries::File(entry) => Some(entry.clone()).filter(|entry| entry.region == name),
            Entries::Directory(directory) => directory.lock().by_name.get(&file_name(name)).cloned(),
        }
    }

    /// The files that were opened.
    pub(super) fn opened(&self) -> Vec<(Arc<Entry>, Arc<RegionFile>)> {
        let entries = match self {
            Entries::File(entry) => vec![entry.clone()],
            Entries::Directory(directory) => directory.lock().by_ino.values().cloned().collect(),
        };
        entries.into_iter().filter_map(|entry| entry.file().map(|file| (entry, file))).collect()
    }

    /// Where a file is below the root: nowhere, where it is the root.
    pub(super) fn path_of(&self, entry: &Entry) -> OsString {
        match self {
            Entries::File(_) => OsString::new(),
            Entries::Directory(_) => file_name(&entry.region),
        }
    }

    /// Opens a file, where nobody has done so. It may take a while. The second answer is whether it was opened by
    /// this call.
    ///
    /// # Errors
    ///
    /// Whatever keeps the region from being opened.
    pub(super) fn open(&self, entry: &Entry) -> Result<(Arc<RegionFile>, bool)> {
        let _one = entry.opening.lock().expect("no holder panics");
        if let Some(file) = entry.file() {
            return Ok((file, false));
        }
        match self {
            Entries::File(_) => unreachable!("it was opened from the first"),
            Entries::Directory(directory) => {
                let file = (directory.open)(&entry.region)?;
                entry.lock().file = Some(file.clone());
                Ok((file, true))
            }
        }
    }
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder panics")
    }

    /// Asks for what there is now. It may take a while.
    ///
    /// # Errors
    ///
    /// If the peer cannot be asked.
    pub(super) fn refresh(&self) -> Result<()> {
        let regions = (self.list)()?;
        let mut known = self.lock();
        known.offered.clear();
        for (region, length) in regions {
            let name = file_name(&region);
            let entry = match known.by_name.get(&name) {
                Some(entry) => entry.clone(),
                None => {
                    let ino = ROOT + 1 + known.by_ino.len() as u64;
                    let entry = Entry::new(ino, &region, length, self.template);
                    known.by_name.insert(name.clone(), entry.clone());
                    known.by_ino.insert(ino, entry.clone());
                    entry
                }
            };
            entry.lock().length = length;
            known.offered.push((name, entry.ino));
        }
        Ok(())
    }

    /// A file by its name, if it was offered when that was asked for last.
    pub(super) fn lookup(&self, name: &OsStr) -> Option<Arc<Entry>> {
        let known = self.lock();
        let is_offered = known.offered.iter().any(|(offered, _)| offered == name);
        known.by_name.get(name).filter(|_| is_offered).cloned()
    }

    /// The names and numbers of the files.
    pub(super) fn names(&self) -> Vec<(OsString, u64)> {
        self.lock().offered.clone()
    }
}

/// The name of a region's file: what a file's name cannot hold is percent-encoded.
fn file_name(region: &str) -> OsString {
    let plain: String = (' '..='~').filter(|char| !matches!(char, '/' | '%')).collect();
    match region {
        "." | ".." => region.replace('.', "%2E").into(),
        _ if region.bytes().all(|byte| byte != b'/' && byte != b'%') => region.into(),
        _ => encode_percent(region, &plain).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_has_a_name_that_a_file_can_have() {
        for (region, name) in [
            ("db", "db"),
            ("a/b c", "a%2Fb c"),
            ("50%", "50%25"),
            ("..", "%2E%2E"),
            ("ä", "ä"),
            ("ä/", "%C3%A4%2F"),
        ] {
            assert_eq!(file_name(region), name);
        }
    }
}
