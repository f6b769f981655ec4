//! A mounted region, in a process of its own, as a user would have one.

use std::io;
use std::path::Path;

use pagewire::PullOrder;
use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::address::StoreAddress;
use pagewire::engine::Region;
use pagewire::store::{self, RemoteOptions};
use pagewire_sys::net::NetNamespace;

use crate::child::{self, Child};

/// The hidden argument.
const ROLE: &str = "--pagewire-study-mount";

/// How it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For reading, with a background pull.
    Pulled,
    /// For reading what is asked for alone.
    Demand,
    /// For writing.
    Writable,
}

impl Mode {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Pulled, "pulled"), (Self::Demand, "demand"), (Self::Writable, "writable")];
}

/// Becomes the mount if this process was started by [`MountProcess::start`]; else returns. A program that uses it
/// begins its `main` with this.
pub fn mount_if_asked() {
    if let Some(arguments) = child::arguments_of(ROLE) {
        child::run(|| match arguments.as_slice() {
            [region, path, mode] => {
                let mode = Mode::ALL.into_iter().find(|(_, name)| mode == name);
                let (mode, _) = mode.ok_or(io::ErrorKind::InvalidInput)?;
                mount(&region.to_string_lossy(), Path::new(path), mode)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    }
}

fn mount(region: &str, path: &Path, mode: Mode) -> io::Result<()> {
    let address: StoreAddress = region.parse().map_err(io::Error::other)?;
    let writable = mode == Mode::Writable;
    let order = if mode == Mode::Demand { PullOrder::None } else { PullOrder::Sequential };
    let store = store::open(&address, writable, &RemoteOptions::default()).map_err(io::Error::other)?;
    let region = Region::at(&address, store).map_err(io::Error::other)?;
    let options = MountOptions { writable, order, ..MountOptions::default() };
    let mounted = Mount::region(&region, path, options).map_err(io::Error::other)?;
    child::listening(path.display())?;
    mounted.unmount(true).map_err(io::Error::other)
}

/// A process that has mounted a region, which is taken down when this is dropped.
pub struct MountProcess {
    child: Option<Child>,
}

impl MountProcess {
    /// Mounts the region over the file at `path`, inside `namespace` if there is one.
    ///
    /// # Errors
    ///
    /// Where the process cannot be started, or cannot mount.
    pub fn start(
        region: &StoreAddress,
        path: &Path,
        mode: Mode,
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        let region = region.to_string();
        let name = Mode::ALL.iter().find(|(known, _)| *known == mode).map_or("", |(_, name)| name);
        let child = Child::start(ROLE, &[region.as_ref(), path.as_os_str(), name.as_ref()], namespace)?;
        Ok(Self { child: Some(child) })
    }
}

impl Drop for MountProcess {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.child.take().map(Child::end) {
            eprintln!("a mount: {error}");
        }
    }
}
