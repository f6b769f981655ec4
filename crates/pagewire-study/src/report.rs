//! The report of a study: what its raw data says, as a page and as text with tables.
//!
//! Raw data goes through three stages, and only the outermost one reads or writes files:
//!
//! - `data`, `metric` and `statistics` group the records and aggregate them: a cell's number is the median of its rounds.
//! - `figures` are those that recommendations rest on.
//! - `sections` makes a `document` of that: sentences, tables and charts, each number with the name of the cell that it is
//!   made of. What to recommend is decided by [`pagewire::advice`], as it is for `pagewire doctor`.
//! - `agreement` compares two studies.
//! - `html` and `markdown` write the document down. The page is one file that needs no network and no script; `chart` draws
//!   its charts as SVG.
//!
//! ```no_run
//! pagewire_study::report::write(std::path::Path::new("study"))?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod agreement;
mod chart;
mod data;
mod document;
mod figures;
mod html;
mod markdown;
mod metric;
mod sections;
mod statistics;

#[cfg(test)]
mod made_up;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::study::record::{self, FILE_NAME};

pub use agreement::{Agreement, Apart, Compared, Recommended, Resting, Tally};

/// The page, within the folder of a study.
pub const HTML_NAME: &str = "report.html";

/// The text, within the folder of a study.
pub const MARKDOWN_NAME: &str = "report.md";

/// The files of a report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// The page.
    pub html: PathBuf,
    /// The text.
    pub markdown: PathBuf,
}

/// Makes the report of the raw data in `folder`, and writes it beside that. A report that is there is replaced.
///
/// # Errors
///
/// What reading and writing answer; invalid data for raw data that is none, with the number of its line.
pub fn write(folder: &Path) -> io::Result<Written> {
    let study = study_in(folder)?;
    let document = sections::document(&study);
    let written = Written { html: folder.join(HTML_NAME), markdown: folder.join(MARKDOWN_NAME) };
    replace(&written.html, &html::page(&document))?;
    replace(&written.markdown, &markdown::text(&document))?;
    Ok(written)
}

/// Compares the study in the folder `one` with that in `other`.
///
/// # Errors
///
/// What reading answers; invalid data for raw data that is none, with its name and the number of its line.
pub fn compare(one: &Path, other: &Path) -> io::Result<Agreement> {
    Ok(Agreement::of(&study_in(one)?, &study_in(other)?))
}

/// The study in a folder.
fn study_in(folder: &Path) -> io::Result<data::Study> {
    let raw = folder.join(FILE_NAME);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", raw.display()));
    let records = File::open(&raw).and_then(|file| record::read(BufReader::new(file))).map_err(named)?;
    let no_run = |error: data::NoRun| named(io::Error::new(io::ErrorKind::InvalidData, error));
    data::Study::of(records).map_err(no_run)
}

/// Whoever looks at the file sees the old one or the new one, whole.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = File::create(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, path));
    if written.is_err() {
        // It may not be there.
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
