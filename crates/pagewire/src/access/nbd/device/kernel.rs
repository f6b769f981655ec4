//! Handing the kernel connections to make a device of, and taking it down.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_sys::nbd::{self, Bound, Control, Setup};

use super::whose::{Number, Owner};
use crate::error::{Error, ErrorKind, Result};

/// How long a device may take to be there: its file is made by whoever makes those.
const APPEARING: Duration = Duration::from_secs(5);

/// How often to look.
const LOOK: Duration = Duration::from_millis(5);

/// A device that the kernel has.
pub(super) struct Connected {
    pub(super) number: Number,
    owner: Owner,
    way: Way,
}

/// How it was made.
enum Way {
    Netlink(Control),
    /// By a thread that stays in the kernel for as long as the device is there.
    Ioctl(JoinHandle<io::Result<()>>),
}

impl Connected {
    /// Makes the device at `place`, or any that is free, of what answers at the other ends of `sockets`: by generic
    /// netlink, where the kernel has that and it is not to be `by_ioctl`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] where the device is in use, or none is free; [`ErrorKind::Denied`] for those who may not;
    /// [`ErrorKind::Unsupported`] where the kernel has no such devices.
    pub(super) fn make(
        place: Option<Number>,
        setup: &Setup,
        owner: Owner,
        sockets: Vec<UnixStream>,
        by_ioctl: bool,
    ) -> Result<Self> {
        let control = if by_ioctl { Err(io::ErrorKind::NotFound.into()) } else { Control::open() };
        let (number, way) = match control {
            Ok(control) => {
                clear(&control, place)?;
                let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
                let number = control.connect(place.map(|number| number.0), setup, &descriptors);
                (Number(number.map_err(|error| cannot(place, &error))?), Way::Netlink(control))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let number =
                    place.or_else(|| Number::all().into_iter().find(|number| !number.is_connected()));
                let Some(number) = number.filter(|number| number.path().exists()) else {
                    let text = "this kernel has no NBD device that is free: has its module been loaded (modprobe nbd)?";
                    return Err(Error::new(ErrorKind::Unsupported, text));
                };
                (number, Way::Ioctl(bind(number, setup, sockets)?))
            }
            Err(error) => return Err(Error::io("cannot talk to the kernel of NBD devices", &error)),
        };
        let connected = Self { number, owner, way };
        if let Err(error) = connected.wait_until_there(setup.length) {
            if let Err(also) = connected.take_down() {
                tracing::warn!(error = %also, "a device is left over");
            }
            return Err(error);
        }
        Ok(connected)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.number.path()
    }

    fn wait_until_there(&self, length: u64) -> Result<()> {
        let deadline = Instant::now() + APPEARING;
        while !self.path().exists() || !self.number.is_connected() || self.number.length() != Some(length) {
            let is_over = matches!(&self.way, Way::Ioctl(thread) if thread.is_finished());
            if is_over || Instant::now() > deadline {
                let text =
                    format!("the kernel has made no device {} of {length} bytes", self.path().display());
                return Err(Error::new(ErrorKind::Io, text));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Takes it down, whoever uses it; not one that is somebody else's by now.
    pub(super) fn take_down(self) -> Result<()> {
        let failed = |error| Error::io(format!("cannot take down {}", self.number.path().display()), &error);
        let is_ours = self.number.owner().is_none_or(|owner| owner == self.owner);
        match self.way {
            _ if !is_ours || !self.number.is_connected() => Ok(()),
            Way::Netlink(control) => control.disconnect(self.number.0).map_err(failed),
            Way::Ioctl(thread) => {
                nbd::disconnect(&self.number.path()).map_err(failed)?;
                // One that has panicked has ended, too; so has one that found the connections lost.
                let _ended = thread.join();
                Ok(())
            }
        }
    }
}

/// Takes down what processes of ours have left that were killed: of all devices, or of the one that is wanted.
fn clear(control: &Control, place: Option<Number>) -> Result<()> {
    for number in place.map_or_else(Number::all, |number| vec![number]) {
        let Some(owner) = number.owner().filter(Owner::is_gone) else { continue };
        let path = number.path();
        let users = number.users();
        // Who cannot be asked uses nothing: its connections are lost.
        if users.is_empty() && !nbd::is_claimed(&path).unwrap_or(false) {
            tracing::info!(path = %path.display(), owner.process, "taking down a device whose process is gone");
            control
                .disconnect(number.0)
                .map_err(|error| Error::io(format!("cannot take down {}", path.display()), &error))?;
        } else if place.is_some() {
            let (path, process, users) = (path.display(), owner.process, in_words(&users));
            let text =
                format!("{path} is what process {process} has left that was killed, and in use by {users}");
            return Err(Error::new(ErrorKind::Busy, text));
        }
    }
    Ok(())
}

/// Users in words.
pub(super) fn in_words(users: &[String]) -> String {
    if users.is_empty() { "somebody who is not seen from here".into() } else { users.join(", ") }
}

fn cannot(place: Option<Number>, error: &io::Error) -> Error {
    match (place, error.kind()) {
        (Some(number), io::ErrorKind::ResourceBusy) => {
            let text = format!("{} is in use", number.path().display());
            Error::new(
                ErrorKind::Busy,
                match number.owner() {
                    Some(Owner { process, region, .. }) => {
                        format!("{text}: it is {region}, of process {process}")
                    }
                    None => text,
                },
            )
        }
        (None, io::ErrorKind::ResourceBusy) => Error::new(ErrorKind::Busy, "every NBD device is in use"),
        (Some(number), _) => Error::io(format!("cannot make {} a device", number.path().display()), error),
        (None, _) => Error::io("cannot make an NBD device", error),
    }
}

/// Makes a device by ioctl, on a thread of its own.
fn bind(number: Number, setup: &Setup, sockets: Vec<UnixStream>) -> Result<JoinHandle<io::Result<()>>> {
    let setup = setup.clone();
    let (bound, waiting) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("nbd-device".into()).spawn(move || {
        let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        let made = Bound::new(&number.path(), &setup, &descriptors);
        drop(sockets);
        // There is room for the one answer.
        let _sent = bound.try_send(
            made.as_ref().map(drop).map_err(|error| io::Error::new(error.kind(), error.to_string())),
        );
        made?.run()
    });
    let thread = thread.map_err(|error| Error::io("cannot start a thread", &error))?;
    match waiting.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(cannot(Some(number), &error)),
        Err(_) => Err(Error::new(ErrorKind::Io, "the thread of an NBD device has ended")),
    }
}
