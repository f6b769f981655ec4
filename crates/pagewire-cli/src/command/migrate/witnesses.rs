//! What `--witness` names: a third store for each region, which either side reaches by an address of its own.

use pagewire::address::StoreAddress;
use pagewire::engine::migration::Witness;
use pagewire::store::RemoteOptions;
use pagewire::{Error, ErrorKind, Result};

/// A witness by the name of its region.
pub(super) type Named = (String, Witness);

/// The witnesses that an origin writes to.
pub(super) fn to_write(names: &[String], words: &[String], remote: &RemoteOptions) -> Result<Vec<Named>> {
    let named = named(names, words)?.into_iter();
    Ok(named.map(|(name, address)| (name, Witness::to_write(&address, remote))).collect())
}

/// The witnesses that a destination reads from.
pub(super) fn to_read(names: &[String], words: &[String], remote: &RemoteOptions) -> Result<Vec<Named>> {
    let named = named(names, words)?.into_iter();
    Ok(named.map(|(name, address)| (name, Witness::to_read(&address, remote))).collect())
}

/// Whether each of them can be used, as far as it can be reached: what is wrong with one is better known before
/// somebody counts on it.
pub(super) fn check(witnesses: &[Named]) -> Result<()> {
    for (name, witness) in witnesses {
        match witness.open() {
            Ok(store) if !store.info().writable => {
                let text = format!("{witness} of '{name}' cannot be written to");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            Ok(_) => {}
            Err(error) if error.can_retry() => {
                tracing::warn!(region = name, %error, "no migration can begin until it is there");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn named(names: &[String], words: &[String]) -> Result<Vec<(String, StoreAddress)>> {
    let usage = |text: String| Error::new(ErrorKind::Usage, text);
    let mut found: Vec<(String, StoreAddress)> = Vec::new();
    for word in words {
        // Of two names one may begin as the other, with a '=' behind.
        let of = names.iter().filter_map(|name| Some((name, word.strip_prefix(&**name)?.strip_prefix('=')?)));
        let (name, address) = match (of.max_by_key(|(name, _)| name.len()), names) {
            (Some(named), _) => named,
            (None, [name]) => (name, &**word),
            (None, _) => {
                let text =
                    format!("--witness {word} names none of the regions: write NAME=STORE, once for each");
                return Err(usage(text));
            }
        };
        let address: StoreAddress = address.parse()?;
        if let StoreAddress::Memory { .. } = address {
            let text = format!(
                "--witness {address} is memory of this process, and is lost with it: name a store elsewhere"
            );
            return Err(usage(text));
        }
        if found.iter().any(|(known, _)| known == name) {
            return Err(usage(format!("'{name}' can have one witness")));
        }
        found.push((name.clone(), address));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_region_has_its_witness() {
        let named = |names: &[&str], words: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let named = named(&owned(names), &owned(words));
            named.map_err(|error| error.to_string()).map(|named| {
                named.into_iter().map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>()
            })
        };
        assert_eq!(named(&["db"], &["file:/w"]).unwrap(), ["db file:/w"]);
        assert_eq!(named(&["db"], &["db=file:/w"]).unwrap(), ["db file:/w"]);
        assert_eq!(named(&["db"], &["pw://h:1/w"]).unwrap(), ["db pw://h:1/w"]);
        assert_eq!(named(&["a", "a=b"], &["a=b=file:/w"]).unwrap(), ["a=b file:/w"]);
        assert!(named(&["a", "b"], &["file:/w"]).unwrap_err().contains("names none"));
        assert!(named(&["a", "b"], &["a=file:/w", "a=file:/x"]).unwrap_err().contains("one witness"));
        assert!(named(&["a"], &["mem:1MiB"]).unwrap_err().contains("lost with it"));
    }
}
