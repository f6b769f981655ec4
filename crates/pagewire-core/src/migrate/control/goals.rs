//! What the user wants of a migration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a region is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Whatever the measurements ask for.
    #[default]
    Auto,
    /// Everything before the switch, or not at all.
    PreCopy,
    /// Everything after the switch.
    PostCopy,
    /// Most of it before the switch, what was written last after it.
    Hybrid,
}

impl Mode {
    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mode that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to migrate: it is auto, pre-copy, post-copy or hybrid")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        [Self::Auto, Self::PreCopy, Self::PostCopy, Self::Hybrid]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// What matters to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Goals {
    /// How.
    pub mode: Mode,
    /// For how long the application may stand still; none for as short as it can be.
    pub max_downtime: Option<Duration>,
    /// When everything should be at the destination, from the beginning of the migration.
    pub deadline: Option<Duration>,
    /// How many bytes may be sent in all. Each is sent once at least, whatever is said here.
    pub max_bytes: Option<u64>,
}
