//! What a mount does beside answering requests: it moves on to newer epochs, and notices that it was taken down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fuser::{INodeNo, Notifier};
use pagewire_sys::mount::{MountId, MountTable};

use super::Shared;
use crate::error::ErrorKind;

/// How often to look for newer epochs; that there is one is told by the peer.
const LOOK: Duration = Duration::from_millis(20);

/// How long to leave a region alone that could not be moved on.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs until the mount is gone or `stop` is set; has the background pulls ended then, which hold the file system.
pub(super) fn run(shared: &Arc<Shared>, notifier: &Notifier, mount: MountId, stop: &AtomicBool) {
    let table = match MountTable::open() {
        Ok(table) => table,
        Err(error) => return tracing::warn!(%error, "newer epochs are not noticed"),
    };
    let mut not_before = Instant::now();
    // Some may have come and gone before the table was opened.
    let mut has_changed = true;
    while !stop.load(Ordering::Acquire) {
        if has_changed && matches!(table.has(mount), Ok(false)) {
            break;
        }
        has_changed = match table.wait(LOOK) {
            Ok(has_changed) => has_changed,
            Err(error) => return tracing::warn!(%error, "newer epochs are not noticed any more"),
        };
        if shared.options.follow && Instant::now() >= not_before && !follow(shared, notifier) {
            not_before = Instant::now() + PAUSE;
        }
    }
    shared.entries.opened().iter().for_each(|(_, file)| file.stay());
    shared.stop();
}

/// Moves every file on. Answers whether that went well.
fn follow(shared: &Shared, notifier: &Notifier) -> bool {
    let mut good = true;
    for (entry, file) in shared.entries.opened() {
        let changed = match file.follow() {
            Ok(None) => continue,
            Ok(Some(changed)) => changed,
            Err(error) => {
                let region = &entry.region;
                match error.kind() {
                    ErrorKind::Unavailable => tracing::debug!(region, %error, "a newer epoch waits"),
                    _ => tracing::warn!(region, %error, "a newer epoch cannot be shown"),
                }
                good = false;
                continue;
            }
        };
        entry.change_attributes(|attributes| {
            attributes.modified = SystemTime::now();
            attributes.changed = attributes.modified;
        });
        tracing::info!(region = entry.region, epoch = file.epoch(), "moved on to a newer epoch");
        // The attributes first: who finds new bytes finds the new length.
        let told = notifier.inval_inode(INodeNo(entry.ino), -1, 0);
        let told = changed.iter().fold(told, |told, range| {
            told.and(notifier.inval_inode(INodeNo(entry.ino), range.start as i64, range.len() as i64))
        });
        if let Err(error) = told {
            tracing::warn!(region = entry.region, %error, "the kernel may show bytes of an older epoch");
        }
    }
    good
}
