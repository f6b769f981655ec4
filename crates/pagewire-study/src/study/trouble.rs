//! Why something was not measured: the outcome of a cell, and its reason in words. Processes tell it each other.

use std::io;

use pagewire::ErrorKind;
use serde::{Deserialize, Serialize};

use super::record::Outcome;

/// Why something was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What becomes of the cell.
    pub outcome: Outcome,
    /// Why, in one line.
    pub reason: String,
}

/// What is measured, or why it was not.
pub(super) type Result<T> = std::result::Result<T, Trouble>;

impl Trouble {
    /// Something went wrong.
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, reason: reason.into() }
    }

    /// Whether other cells of the same method would end in the same way.
    pub fn lasts(&self) -> bool {
        matches!(self.outcome, Outcome::NotPermitted | Outcome::Unsupported)
    }

    /// The same with what it happened to in front.
    pub(super) fn of(self, what: &str) -> Self {
        Self { reason: format!("{what}: {}", self.reason), ..self }
    }
}

impl From<pagewire::Error> for Trouble {
    fn from(error: pagewire::Error) -> Self {
        let outcome = match error.kind() {
            ErrorKind::Denied => Outcome::NotPermitted,
            ErrorKind::Unsupported => Outcome::Unsupported,
            _ => Outcome::Failed,
        };
        Self { outcome, reason: in_words(&error) }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        let outcome = match error.kind() {
            io::ErrorKind::PermissionDenied => Outcome::NotPermitted,
            io::ErrorKind::Unsupported => Outcome::Unsupported,
            _ => Outcome::Failed,
        };
        Self { outcome, reason: in_words(&error) }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// An error with its causes, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_told_from_what_fails() {
        let denied = pagewire::Error::new(ErrorKind::Denied, "no");
        assert_eq!(Trouble::from(denied).outcome, Outcome::NotPermitted);
        let io = io::Error::from(io::ErrorKind::PermissionDenied);
        let trouble = Trouble::from(pagewire::Error::new(ErrorKind::Io, "cannot do it").because(io));
        assert_eq!(trouble.outcome, Outcome::Failed);
        assert_eq!(trouble.reason, "cannot do it: permission denied");
        assert!(!trouble.lasts() && !trouble.of("x\ny").lasts());
    }
}
