//! Who may write a mapping's bytes by safe calls: everybody, or the one to whom it is lent.
//!
//! A program in another language (SQLite) reads and writes memory with plain loads and stores, and takes for
//! granted that what it has checked stays so. While it has the memory, nobody else may write. One word holds
//! all that must be known: whether the memory is lent, whether atomics of it were ever handed out (a
//! reference to one may live as long as the mapping, so that the memory can never be lent afterwards), and
//! how many writes are under way.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

const LENT: usize = 1;
const ATOMICS: usize = 2;
const WRITE: usize = 4;

/// The word.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicUsize);

/// A write through the kernel that is under way; it keeps the memory from being lent.
#[derive(Debug)]
pub(crate) struct Write<'a>(&'a Gate);

/// The memory is lent until this is dropped.
#[cfg(any(test, feature = "sqlite"))]
#[derive(Debug)]
pub(crate) struct Lent<'a>(&'a Gate);

impl Gate {
    /// Begins a write, or a discard.
    pub(crate) fn write(&self) -> io::Result<Write<'_>> {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                (word & LENT == 0).then(|| word + WRITE)
            })
            .map(|_| Write(self))
            .map_err(|_| busy("the memory is lent for writing"))
    }

    /// Takes note that atomics are handed out; false while the memory is lent.
    pub(crate) fn hand_out_atomics(&self) -> bool {
        if self.0.load(Ordering::Relaxed) & ATOMICS != 0 {
            return true;
        }
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                (word & LENT == 0).then_some(word | ATOMICS)
            })
            .is_ok()
    }

    /// Lends the memory.
    #[cfg(any(test, feature = "sqlite"))]
    pub(crate) fn lend(&self) -> io::Result<Lent<'_>> {
        match self.0.compare_exchange(0, LENT, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Lent(self)),
            Err(word) if word & LENT != 0 => Err(busy("the memory is lent for writing already")),
            Err(word) if word & ATOMICS != 0 => Err(busy("atomics of the memory were handed out")),
            Err(_) => Err(busy("the memory is being written")),
        }
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(WRITE, Ordering::Release);
    }
}

#[cfg(any(test, feature = "sqlite"))]
impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_and(!LENT, Ordering::Release);
    }
}

fn busy(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_memory_is_written_by_nobody_else() {
        let gate = Gate::default();
        let lent = gate.lend().unwrap();
        assert!(gate.write().is_err() && gate.lend().is_err() && !gate.hand_out_atomics());
        drop(lent);
        let (one, two) = (gate.write().unwrap(), gate.write().unwrap());
        drop(one);
        assert_eq!(gate.lend().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(two);
        drop(gate.lend().unwrap());
        assert!(gate.hand_out_atomics() && gate.hand_out_atomics());
        assert!(gate.lend().is_err(), "a reference to an atomic may still live");
        assert!(gate.write().is_ok());
    }
}
