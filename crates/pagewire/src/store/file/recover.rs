//! Opening a file that may have a journal: what was flushed and is not in its place is found, checked, and
//! either used or refused.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::journal::{self, Area, BLOCK, Commit, Damaged, FileId, Index, SEGMENT, Stamp, State};

use super::sidecar::{Place, damaged, read_block, read_state};
use super::view::{Committed, View, ZERO};
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;

/// What is known of a file before its journal is looked at.
pub(super) struct Found {
    pub(super) file: FileId,
    pub(super) stamp: Stamp,
    /// The identity of a region that begins with the file as it is.
    pub(super) region: [u8; 16],
}

/// What a file and its journal come to.
pub(super) struct Recovered {
    pub(super) state: State,
    /// What is in the file.
    pub(super) view: View,
    /// What was flushed and is not in its place there.
    pub(super) committed: Option<Arc<Committed>>,
}

/// Looks at the journal of a file.
pub(super) fn recover(found: &Found, journal: Option<&dyn Disk>, place: &Place) -> Result<Recovered> {
    let Found { file, stamp, region } = *found;
    let length = stamp.size;
    let Some(journal) = journal else {
        let state = State { region, file, stamp, applied: 1, length, ..State::default() };
        return Ok(Recovered { state, view: View::new(1, length), committed: None });
    };
    let mut state = read_state(journal, place)?;
    let failed = |error: io::Error| Error::io(format!("cannot read the journal {place}"), &error);
    match read_commit(journal, state.applied + 1).map_err(failed)? {
        Ok((commit, committed)) => {
            if state.file != file {
                let text = format!(
                    "the journal {place} belongs to another file, and holds what was flushed there; \
                     to give that up, remove it"
                );
                return Err(Error::new(ErrorKind::Changed, text));
            }
            if commit.token == state.token {
                state.flushed = commit.flushed;
            }
            let view = View::new(state.applied, state.length);
            return Ok(Recovered { state, view, committed: Some(Arc::new(committed)) });
        }
        // The file may be a mix of two epochs.
        Err(error) if state.applying > state.applied => return Err(damaged(place, &error)),
        Err(_) => {}
    }
    if state.file != file || state.stamp != stamp {
        tracing::warn!("the file of the journal {place} was written to by others: it is another region now");
        let (sequence, token) = (state.sequence, state.token);
        let applied = state.applied + 1;
        state = State { region, file, stamp, applied, length, sequence, token, ..State::default() };
    }
    Ok(Recovered { state, view: View::new(state.applied, state.length), committed: None })
}

type Checked = Result<(Commit, Committed), Damaged>;

/// The commit of an epoch, if all of it is there.
fn read_commit(journal: &dyn Disk, epoch: u64) -> io::Result<Checked> {
    let mut block = [0; BLOCK];
    read_block(journal, &mut block, journal::commit_at(epoch))?;
    let commit = match Commit::decode(&block) {
        Ok(commit) if commit.epoch == epoch => commit,
        // That of an earlier epoch, which is in its place.
        Ok(_) => return Ok(Err(Damaged::Hash)),
        Err(error) => return Ok(Err(error)),
    };
    let size = journal.len()?;
    // Numbers that were written in part are noticed before they cost memory.
    if commit.index > size || commit.slots > size / PAGE_SIZE {
        return Ok(Err(Damaged::Hash));
    }
    let area = Area::of_epoch(epoch);
    let start = commit.slots * PAGE_SIZE;
    let mut bytes = vec![0; commit.index as usize];
    if !read(journal, area, ByteRange::new(start, start + commit.index), &mut bytes)? {
        return Ok(Err(Damaged::Hash));
    }
    let index = match Index::decode(commit.hash, &bytes) {
        Ok(index) => index,
        Err(error) => return Ok(Err(error)),
    };
    if !check_pages(journal, area, &commit, &index)? {
        tracing::info!(epoch, "a flush was interrupted; what it had written is dropped");
        return Ok(Err(Damaged::Hash));
    }
    let slots = index.pages.into_iter().map(|(page, slot, _)| (page, slot));
    let pages: HashMap<u64, u64> = slots.chain(index.zeroes.into_iter().map(|page| (page, ZERO))).collect();
    let committed = Committed { epoch, pages, length: commit.length, cut: commit.cut };
    Ok(Ok((commit, committed)))
}

/// Whether every page of an index has the bytes that it should have.
fn check_pages(journal: &dyn Disk, area: Area, commit: &Commit, index: &Index) -> io::Result<bool> {
    let mut pages = index.pages.clone();
    pages.sort_unstable_by_key(|(_, slot, _)| *slot);
    let per_segment = SEGMENT / PAGE_SIZE;
    let mut buffer = Vec::new();
    for chunk in pages.chunk_by(|one, next| one.1 / per_segment == next.1 / per_segment) {
        let (first, last) = (chunk[0].1, chunk[chunk.len() - 1].1);
        if last >= commit.slots {
            return Ok(false);
        }
        let range = ByteRange::new(first * PAGE_SIZE, (last + 1) * PAGE_SIZE);
        buffer.resize(range.len() as usize, 0);
        if !read(journal, area, range, &mut buffer)? {
            return Ok(false);
        }
        for (_, slot, hash) in chunk {
            let at = ((slot - first) * PAGE_SIZE) as usize;
            if journal::hash(&buffer[at..at + PAGE_SIZE as usize]) != *hash {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Reads bytes of an area; false where the journal is too short.
fn read(journal: &dyn Disk, area: Area, range: ByteRange, bytes: &mut [u8]) -> io::Result<bool> {
    let mut at = 0;
    for (place, length) in area.places(range) {
        match journal.read_exact_at(&mut bytes[at..at + length as usize], place) {
            Ok(()) => at += length as usize,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
