//! What the record of either side says, for those who look after a migration of which no process runs any more.

use std::io;
use std::path::Path;

use pagewire_core::migrate::record::RecordError;
use pagewire_core::migrate::{
    DestinationPhase, DestinationRecord, OriginPhase, OriginRecord, Phase, Refusal, WitnessAt,
};
use serde::Serialize;

use super::record::{DestinationFile, OriginFile, SLOT};
use crate::error::{Error, ErrorKind, Result};

/// Which side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The side that the application leaves.
    Origin,
    /// The side that it comes to.
    Destination,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Whose it is.
    pub side: Side,
    /// The phase, as [`Phase::name`] has it.
    pub phase: &'static str,
    /// The migration, in hexadecimal digits.
    pub migration: String,
    /// Where the regions come from, in the record of a destination.
    pub origin: Option<String>,
    /// The witness of each region at the switch, by its identity and epoch, in the record of a destination.
    pub witnesses: Vec<String>,
    /// Whether the application belongs here, and may run.
    pub may_run: bool,
    /// In words, for people.
    pub text: String,
}

enum Found {
    Origin(OriginRecord),
    Destination(DestinationRecord),
}

/// What the record at `path` says; none where there is no such file, or nothing was ever recorded in it.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for a file that is no record; [`ErrorKind::Io`] for one that is damaged, or cannot be read.
pub fn recorded(path: &Path) -> Result<Option<Recorded>> {
    Ok(find(path)?.map(|found| found.describe()))
}

/// Gives up the migration of a record that no process has, and answers what it says then.
///
/// In doubt this takes `force`, and the certainty that the destination does not own the application and never will: see
/// [`Origin::abort`](super::Origin::abort). What a destination gives up so its origin is told when the destination is started again.
///
/// # Errors
///
/// [`ErrorKind::Busy`] while a process has the record, and in doubt without `force`; [`ErrorKind::Fenced`] where the
/// application has moved; [`ErrorKind::NotFound`] where there is no migration; as [`recorded`].
pub fn abort_recorded(path: &Path, force: bool) -> Result<Recorded> {
    let missing = || {
        let text = format!("{} tells of no migration", path.display());
        Error::new(ErrorKind::NotFound, text)
    };
    match find(path)?.ok_or_else(missing)? {
        Found::Origin(_) => {
            let file = OriginFile::open(path)?;
            // Now that nobody else changes it.
            let id = match file.read()?.ok_or_else(missing)? {
                OriginPhase::Offered { .. } if !force => {
                    return Err(Error::new(ErrorKind::Busy, Refusal::InDoubt.to_string()));
                }
                OriginPhase::Offered { id, .. } => id,
                OriginPhase::Withdrawn { id } => id,
                OriginPhase::Moved { .. } => {
                    return Err(Error::new(ErrorKind::Fenced, Refusal::Moved.to_string()));
                }
                OriginPhase::Released { .. } => {
                    return Err(Error::new(ErrorKind::Fenced, Refusal::Released.to_string()));
                }
            };
            file.write(OriginPhase::Withdrawn { id })?;
        }
        Found::Destination(record) => {
            let file = DestinationFile::open(path, &record.origin)?;
            match file.read()?.ok_or_else(missing)?.phase {
                DestinationPhase::Begun { id } => file.write(DestinationPhase::Aborted { id })?,
                DestinationPhase::Aborted { .. } => {}
                DestinationPhase::Accepted { .. }
                | DestinationPhase::Home { .. }
                | DestinationPhase::Completed { .. } => {
                    let text = "the application belongs here already, and cannot be given back";
                    return Err(Error::new(ErrorKind::Fenced, text));
                }
            }
        }
    }
    recorded(path)?.ok_or_else(missing)
}

fn find(path: &Path) -> Result<Option<Found>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), &error)),
    };
    let slot = |index: usize| bytes.get(index * SLOT..(index + 1) * SLOT)?.first_chunk::<SLOT>();
    let (Some(one), Some(other)) = (slot(0), slot(1)) else {
        // One that was being made when its process was ended.
        return if bytes.iter().all(|byte| *byte == 0) { Ok(None) } else { Err(is_none(path)) };
    };
    let damaged = |error: RecordError| Error::new(ErrorKind::Io, format!("{}: {error}", path.display()));
    let has = |magic: &[u8]| one.starts_with(magic) || other.starts_with(magic);
    match (has(OriginRecord::MAGIC), has(DestinationRecord::MAGIC)) {
        (true, false) => Ok(OriginRecord::newest([one, other]).map_err(damaged)?.map(Found::Origin)),
        (false, true) => {
            Ok(DestinationRecord::newest([one, other]).map_err(damaged)?.map(Found::Destination))
        }
        _ if bytes.iter().all(|byte| *byte == 0) => Ok(None),
        _ => Err(is_none(path)),
    }
}

fn is_none(path: &Path) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{} is no record of a migration", path.display()))
}

impl Found {
    fn describe(&self) -> Recorded {
        match self {
            Found::Origin(record) => {
                let (phase, id, text) = match record.phase {
                    OriginPhase::Offered { id, .. } => (
                        Phase::InDoubt,
                        id,
                        "in doubt: the application was suspended here, and the destination may own it; ask there",
                    ),
                    OriginPhase::Withdrawn { id } => {
                        (Phase::Idle, id, "the migration was given up: the application belongs here")
                    }
                    OriginPhase::Moved { id, .. } => (
                        Phase::Moved,
                        id,
                        "the application has moved, and what it left is still needed: serve it until it is released",
                    ),
                    OriginPhase::Released { id, .. } => {
                        (Phase::Released, id, "the application has moved with everything")
                    }
                };
                let may_run = phase == Phase::Idle;
                Recorded {
                    side: Side::Origin,
                    phase: phase.name(),
                    migration: id.to_string(),
                    origin: None,
                    witnesses: Vec::new(),
                    may_run,
                    text: text.into(),
                }
            }
            Found::Destination(record) => {
                let (phase, id, may_run, text) = match record.phase {
                    DestinationPhase::Begun { id } => (
                        Phase::Copying,
                        id,
                        false,
                        "begun, and not accepted: the application belongs to the origin",
                    ),
                    DestinationPhase::Aborted { id } => {
                        (Phase::Aborted, id, false, "given up: the application belongs to the origin")
                    }
                    DestinationPhase::Accepted { id, .. } => (
                        Phase::PostCopy,
                        id,
                        true,
                        "the application belongs here, and part of its regions may be at the origin still",
                    ),
                    DestinationPhase::Home { id, .. } => (
                        Phase::Completing,
                        id,
                        true,
                        "the application belongs here, and everything is here; its origin could not be told",
                    ),
                    DestinationPhase::Completed { id, .. } => {
                        (Phase::Completed, id, true, "the application belongs here, and everything is here")
                    }
                };
                Recorded {
                    side: Side::Destination,
                    phase: phase.name(),
                    migration: id.to_string(),
                    origin: Some(record.origin.clone()),
                    witnesses: record.witnesses.iter().map(named).collect(),
                    may_run,
                    text: text.into(),
                }
            }
        }
    }
}

fn named(at: &WitnessAt) -> String {
    format!("{} at epoch {}", uuid::Uuid::from_bytes(at.store), at.epoch)
}

#[cfg(test)]
mod tests {
    use pagewire_core::migrate::{MigrationId, Token};

    use super::*;

    const ID: MigrationId = MigrationId([7; 16]);
    const TOKEN: Token = Token(5);

    #[test]
    fn what_was_offered_is_taken_back_by_force_only_and_what_has_moved_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        assert_eq!(recorded(&path).unwrap(), None);
        assert_eq!(abort_recorded(&path, true).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!path.exists(), "nothing is made by asking");
        let file = OriginFile::open(&path).unwrap();
        assert_eq!(recorded(&path).unwrap(), None);
        file.write(OriginPhase::Offered { id: ID, token: TOKEN }).unwrap();
        let found = recorded(&path).unwrap().unwrap();
        assert_eq!((found.side, found.phase, found.may_run), (Side::Origin, "in-doubt", false));
        assert_eq!(found.migration, ID.to_string());
        let busy = abort_recorded(&path, true).unwrap_err();
        assert!(busy.kind() == ErrorKind::Busy && busy.to_string().contains("another process"), "{busy}");
        drop(file);
        let doubt = abort_recorded(&path, false).unwrap_err();
        assert!(doubt.kind() == ErrorKind::Busy && doubt.to_string().contains("in doubt"), "{doubt}");
        let found = abort_recorded(&path, true).unwrap();
        assert_eq!((found.phase, found.may_run), ("idle", true));
        assert_eq!(abort_recorded(&path, false).unwrap(), found, "as often as one likes");
        for phase in
            [OriginPhase::Moved { id: ID, token: TOKEN }, OriginPhase::Released { id: ID, token: TOKEN }]
        {
            let file = OriginFile::open(&path).unwrap();
            file.read().unwrap();
            file.write(phase).unwrap();
            drop(file);
            assert_eq!(abort_recorded(&path, true).unwrap_err().kind(), ErrorKind::Fenced);
            assert!(!recorded(&path).unwrap().unwrap().may_run);
        }
    }

    #[test]
    fn what_was_not_accepted_is_given_up_and_what_was_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        let write = |phase| {
            let file = DestinationFile::open(&path, "pw://there/x").unwrap();
            file.read().unwrap();
            file.write(phase).unwrap();
        };
        write(DestinationPhase::Begun { id: ID });
        let found = recorded(&path).unwrap().unwrap();
        assert_eq!((found.side, found.phase, found.may_run), (Side::Destination, "copying", false));
        assert_eq!(found.origin.as_deref(), Some("pw://there/x"));
        assert_eq!(abort_recorded(&path, false).unwrap().phase, "aborted");
        for (phase, name) in [
            (DestinationPhase::Accepted { id: ID, token: TOKEN }, "post-copy"),
            (DestinationPhase::Home { id: ID, token: TOKEN }, "completing"),
            (DestinationPhase::Completed { id: ID, token: TOKEN }, "completed"),
        ] {
            write(phase);
            assert_eq!(abort_recorded(&path, true).unwrap_err().kind(), ErrorKind::Fenced);
            let found = recorded(&path).unwrap().unwrap();
            assert_eq!((found.phase, found.may_run), (name, true));
        }
    }

    #[test]
    fn other_files_and_damaged_records_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        for (bytes, expected) in [
            (b"something else".repeat(1000), Some(ErrorKind::Unsupported)),
            (b"short".to_vec(), Some(ErrorKind::Unsupported)),
            (vec![0; 100], None),
            (vec![0; 2 * SLOT], None),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(recorded(&path).err().map(|error| error.kind()), expected, "{} bytes", bytes.len());
        }
        let mut slot = OriginRecord { sequence: 1, phase: OriginPhase::Withdrawn { id: ID } }.encode();
        slot[20] ^= 1;
        std::fs::write(&path, [slot, slot].concat()).unwrap();
        assert_eq!(recorded(&path).unwrap_err().kind(), ErrorKind::Io);
    }
}
