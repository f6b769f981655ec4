//! `pagewire migrate status`, `resume` and `abort`: for when something went wrong.

use anyhow::Result;
use pagewire::engine::migration::{MigrationAction, MigrationState, OriginState, Recorded, abort_recorded};
use pagewire::{Error, ErrorKind, store};
use serde::Serialize;

use super::record::{self, Words};
use crate::args::{MigrateAbort, MigrateResume, MigrateStatus, Subject};
use crate::output;

/// What is printed as JSON.
#[derive(Serialize)]
struct Status {
    /// `origin` or `destination`.
    side: &'static str,
    phase: String,
    /// None where there was none.
    migration: Option<String>,
    /// Who takes over, as far as an origin knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    /// Where the regions come from, as a destination knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    /// What else had everything at the switch, as a destination knows: which stores, at which epochs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    witnesses: Vec<String>,
    text: String,
}

impl From<MigrationState> for Status {
    fn from(state: MigrationState) -> Self {
        let hex = || state.id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Self {
            side: "origin",
            phase: phase(state.state).into(),
            migration: (state.id != [0; 16]).then(hex),
            destination: Some(state.destination).filter(|destination| !destination.is_empty()),
            origin: None,
            witnesses: Vec::new(),
            text: state.text,
        }
    }
}

impl From<Recorded> for Status {
    fn from(found: Recorded) -> Self {
        Self {
            side: if found.origin.is_some() { "destination" } else { "origin" },
            phase: found.phase.into(),
            migration: Some(found.migration),
            destination: None,
            origin: found.origin,
            witnesses: found.witnesses,
            text: found.text,
        }
    }
}

/// The phase of an origin, as peers are told.
fn phase(state: OriginState) -> &'static str {
    match state {
        OriginState::Running => "idle",
        OriginState::Tracking => "tracking",
        OriginState::Offered => "in-doubt",
        OriginState::Moved => "moved",
        OriginState::Released => "released",
    }
}

pub(super) fn status(args: &MigrateStatus) -> Result<()> {
    let status: Status = match &args.of {
        Subject::Region(region) => {
            store::migration(region, MigrationAction::Status, &args.remote.options())?.into()
        }
        Subject::Record(path) => {
            let missing = || {
                let text = format!("{} tells of no migration", path.display());
                Error::new(ErrorKind::NotFound, text)
            };
            record::read(Some(path))?.ok_or_else(missing)?.into()
        }
    };
    if args.json {
        return output::json(&status);
    }
    say(&status)?;
    Ok(())
}

fn say(status: &Status) -> std::io::Result<()> {
    // A peer may have written it; a terminal is not to obey that.
    let plain = |text: &str| text.replace(char::is_control, " ");
    output::line(format!("{}: {}", status.phase, plain(&status.text)))?;
    let rows = [
        ("side", Some(status.side)),
        ("migration", status.migration.as_deref()),
        ("destination", status.destination.as_deref()),
        ("origin", status.origin.as_deref()),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            output::line(format!("{name:<12} {}", plain(value)))?;
        }
    }
    for witness in &status.witnesses {
        output::line(format!("{:<12} {witness}", "witness"))?;
    }
    Ok(())
}

pub(super) fn resume(args: &MigrateResume) -> Result<()> {
    Words::beside(&args.record)?.run()
}

pub(super) fn abort(args: &MigrateAbort) -> Result<()> {
    let status: Status = match &args.of {
        Subject::Region(region) => {
            let action = MigrationAction::Abort { force: args.force };
            store::migration(region, action, &args.remote.options())?.into()
        }
        Subject::Record(path) => abort_recorded(path, args.force)?.into(),
    };
    say(&status)?;
    Ok(())
}
