//! A third store that a region is streamed to before it moves, so that the loss of its origin loses nothing.
//!
//! Each side has it by an address of its own: the origin to write to it, the destination to read what has not
//! arrived when the origin is gone. Nobody tells the other side an address, so that neither can make the other
//! connect anywhere; what the origin tells is which store it was, and at which epoch that has all of the region.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::address::StoreAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, RemoteOptions, Store};

/// How long a witness that fails is tried again, and how long a suspended application waits for one.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long an origin that does not answer may be silent before a witness is asked in its place.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

type Open = dyn Fn() -> Result<Arc<dyn Store>> + Send + Sync;

/// The witness of a region, as one side of a migration reaches it. It is opened when it is needed, and again when it
/// was lost.
#[derive(Clone)]
pub struct Witness {
    what: Arc<str>,
    open: Arc<Open>,
}

impl Witness {
    /// The store at an address, which an origin writes to, as its only writer for as long as a migration lasts.
    pub fn to_write(address: &StoreAddress, remote: &RemoteOptions) -> Self {
        let (address, remote) = (address.clone(), remote.clone());
        let what = address.to_string();
        Self::opened_by(&what, move || store::open_as(&address, Some(&store::this_process()), &remote))
    }

    /// The store at an address, which a destination reads from.
    pub fn to_read(address: &StoreAddress, remote: &RemoteOptions) -> Self {
        let (address, remote) = (address.clone(), remote.clone());
        let what = address.to_string();
        Self::opened_by(&what, move || store::open_as(&address, None, &remote))
    }

    /// A store that is opened by other means; `what` says for people which it is.
    pub fn opened_by(what: &str, open: impl Fn() -> Result<Arc<dyn Store>> + Send + Sync + 'static) -> Self {
        Self { what: what.into(), open: Arc::new(open) }
    }

    /// Opens it.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being opened; the text says that it is the witness.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        (self.open)().map_err(|error| error.context(self.to_string()))
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the witness {}", self.what)
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Witness").field(&self.what).finish()
    }
}

/// The witness of each of `regions`, in their order.
///
/// # Errors
///
/// [`ErrorKind::Usage`] for one of a region that there is not, and for a second one.
pub(super) fn of_each<'a>(
    regions: impl Iterator<Item = &'a str>,
    witnesses: &[(String, Witness)],
) -> Result<Vec<Option<Witness>>> {
    let usage = |text: String| Err(Error::new(ErrorKind::Usage, text));
    let names: Vec<&str> = regions.collect();
    if let Some((name, _)) = witnesses.iter().find(|(name, _)| !names.contains(&&**name)) {
        return usage(format!("'{name}' has a witness and is not moved"));
    }
    let mut found = vec![None; names.len()];
    for (of, witness) in witnesses {
        let Some(index) = names.iter().position(|name| name == of) else { continue };
        if found[index].replace(witness.clone()).is_some() {
            return usage(format!("'{of}' can have one witness"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_region_has_the_witness_that_was_named_for_it() {
        let witness = |what: &str| Witness::opened_by(what, || unreachable!("nobody opens it"));
        let named = |names: &[&str]| -> Vec<(String, Witness)> {
            names.iter().map(|name| ((*name).to_owned(), witness(name))).collect()
        };
        let found = of_each(["a", "b"].into_iter(), &named(&["b"])).unwrap();
        assert!(found[0].is_none());
        assert_eq!(found[1].as_ref().unwrap().to_string(), "the witness b");
        for (names, expected) in [(&["c"][..], "not moved"), (&["a", "a"], "one witness")] {
            let error = of_each(["a", "b"].into_iter(), &named(names)).unwrap_err();
            assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(expected), "{error}");
        }
    }
}
