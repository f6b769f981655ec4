//! What either side of a migration keeps on its disk: the record of who owns the regions, and beside it the words that
//! the command was begun with, so that it can be gone on with.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pagewire::ErrorKind;
use pagewire::address::StoreAddress;
use pagewire::engine::migration::{Recorded, recorded};
use serde::{Deserialize, Serialize};

/// Behind the name of a store's file: the record of an origin, and that of a destination.
pub(super) const ORIGIN: &str = "migration";
pub(super) const DESTINATION: &str = "arrival";

/// How a command was begun.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Words {
    folder: PathBuf,
    arguments: Vec<String>,
    /// The lengths that the regions may have, where they come here: nobody can be asked once the origin is gone.
    #[serde(default)]
    pub(super) capacities: Vec<u64>,
}

impl Words {
    /// Those of this process.
    pub(super) fn of_this_process(capacities: Vec<u64>) -> Result<Self> {
        let arguments = std::env::args_os().skip(1).map(|word| word.into_string());
        let arguments = arguments.collect::<Result<_, _>>();
        let arguments = arguments.map_err(|word| anyhow::anyhow!("{} is not UTF-8", word.display()))?;
        Ok(Self { folder: std::env::current_dir()?, arguments, capacities })
    }

    /// Keeps them beside a record.
    pub(super) fn keep(&self, record: &Path) -> Result<()> {
        let path = with_suffix(record, "command");
        let text = serde_json::to_string(self)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Those beside a record.
    pub(super) fn beside(record: &Path) -> Result<Self> {
        let path = with_suffix(record, "command");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("{} is missing, which says how it was begun: begin it again by hand", path.display())
            }
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Becomes the command.
    pub(super) fn run(&self) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(&self.arguments).current_dir(&self.folder);
        Err(command.exec()).context("cannot go on with what was begun")
    }
}

/// A record beside the first file among `stores`; none where none is a file.
pub(super) fn beside<'a>(
    stores: impl IntoIterator<Item = &'a StoreAddress>,
    suffix: &str,
) -> Option<PathBuf> {
    stores.into_iter().find_map(|store| match store {
        StoreAddress::File(file) => Some(with_suffix(&file.path, suffix)),
        _ => None,
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OsStr::new("."));
    name.push(suffix);
    name.into()
}

/// What a record says, where there is one.
pub(super) fn read(record: Option<&Path>) -> pagewire::Result<Option<Recorded>> {
    record.map_or(Ok(None), recorded)
}

/// A store holds a whole region, unless one was on its way there.
pub(super) fn check_whole<'a>(stores: impl IntoIterator<Item = &'a StoreAddress>) -> pagewire::Result<()> {
    for store in stores {
        let Some(record) = beside([store], DESTINATION) else { continue };
        let Some(found) = recorded(&record)?.filter(|found| !is_whole(found)) else { continue };
        let text = format!(
            "{store} holds a part of a region only ({}): go on by 'pagewire migrate resume {}', or remove that file if it \
             is the region after all",
            found.text,
            record.display()
        );
        return Err(pagewire::Error::new(ErrorKind::Busy, text));
    }
    Ok(())
}

/// Whether everything has come, whether the origin knows of that or not.
fn is_whole(found: &Recorded) -> bool {
    matches!(found.phase, "completed" | "completing")
}

/// What a record says does not count any more. It is durable that it is gone.
pub(super) fn forget(record: &Path) -> pagewire::Result<()> {
    let failed =
        |error: io::Error| pagewire::Error::io(format!("cannot remove {}", record.display()), &error);
    for path in [record.to_owned(), with_suffix(record, "command")] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let folder = record.parent().filter(|folder| !folder.as_os_str().is_empty());
    let synced = std::fs::File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
    synced.map_err(failed)
}
