//! Making a mount, and taking it down with everything flushed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::SystemTime;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use pagewire_sys::event::EventFd;
use pagewire_sys::mount::{self, ReadAhead};

use super::entries::{Attributes, Entries, Entry};
use super::filesystem::MountedRegions;
use super::live::LiveFile;
use super::passthrough::Passthrough;
use super::{MountOptions, Place, Shared, Status, upkeep};
use crate::access::region_file::RegionFile;
use crate::address::{PeerAddress, RegionAddress, StoreAddress};
use crate::engine::Region;
use crate::engine::migration::Live;
use crate::engine::trace::Trace;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, RemoteOptions, wait};

/// A mount. Dropping it flushes, and takes it down.
pub struct Mount {
    path: PathBuf,
    /// Whether the file that it is mounted over was made for it.
    made: bool,
    shared: Arc<Shared>,
    session: Mutex<Option<BackgroundSession>>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    ended: Arc<EventFd>,
}

impl Mount {
    /// Mounts a region over the file at `path`, which is made where there is none. The region is open for writing
    /// where the mount is writable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while somebody else has the region's lease, or something is mounted there;
    /// [`ErrorKind::Denied`] where this user may not mount; [`ErrorKind::Usage`] over anything but a file.
    pub fn region(region: &Arc<Region>, path: &Path, options: MountOptions) -> Result<Self> {
        let (path, made) = mount_point(path, false)?;
        let mounted = open(region, &options)
            .map(|file| Entries::file(file, attributes(&options, 0o644)))
            .and_then(|entries| Self::start(entries, &path, made, options));
        if mounted.is_err() && made {
            // It is empty, and was made for this.
            let _ = std::fs::remove_file(&path);
        }
        mounted
    }

    /// Mounts a directory of all regions that a peer offers over the directory at `path`. Each is opened when a
    /// program opens its file; where the mount is writable that takes the region's lease, and a region whose lease
    /// somebody else has can be read.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers; as [`Mount::region`].
    pub fn peer(
        peer: &PeerAddress,
        path: &Path,
        options: MountOptions,
        remote: &RemoteOptions,
    ) -> Result<Self> {
        if options.trace.is_some() {
            return Err(Error::new(ErrorKind::Usage, "a trace is of one region: mount that alone"));
        }
        let (path, made) = mount_point(path, true)?;
        let (asked, asking) = (peer.clone(), remote.clone());
        let list = Box::new(move || {
            let regions = store::list(&asked, &asking)?;
            Ok(regions.into_iter().map(|(name, info)| (name, info.length)).collect())
        });
        let (peer, remote, open_options) = (peer.clone(), remote.clone(), options.clone());
        let open_file = Box::new(move |name: &str| {
            let address = RegionAddress { peer: peer.clone(), name: name.into() };
            open_address(&StoreAddress::Remote(address), &open_options, &remote)
        });
        let entries =
            Entries::directory(list, open_file, attributes(&options, 0o755), attributes(&options, 0o644))?;
        Self::start(entries, &path, made, options)
    }

    fn start(entries: Entries, path: &Path, made: bool, options: MountOptions) -> Result<Self> {
        let failed = |error: &io::Error| {
            let text = format!("cannot mount {}", path.display());
            match error.raw_os_error() {
                // fusermount3 says why in words.
                None => Error::new(ErrorKind::Denied, format!("{text}: {}", error.to_string().trim())),
                Some(_) => Error::io(text, error),
            }
        };
        let config = config(&options);
        let writable = options.writable;
        let shared = Arc::new(Shared {
            entries,
            options,
            warmers: Arc::default(),
            write_backs: Arc::default(),
            passthrough: Passthrough::default(),
            place: OnceLock::new(),
        });
        let session =
            Session::new(MountedRegions(shared.clone()), path, &config).map_err(|error| failed(&error))?;
        let session = session.spawn().map_err(|error| failed(&error))?;
        let notifier = session.notifier();
        let ended = Arc::new(EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?);
        let stop = Arc::new(AtomicBool::new(false));
        let mount = Self {
            path: path.into(),
            made,
            shared: shared.clone(),
            session: Mutex::new(Some(session)),
            upkeep: Mutex::default(),
            stop: stop.clone(),
            ended: ended.clone(),
        };
        let (id, device) = mount::mount_of(path).map_err(|error| failed(&error))?;
        if let Err(error) = ReadAhead::of(device).set(shared.read_ahead()) {
            tracing::debug!(%error, "the kernel reads ahead as far as it wants to");
        }
        tracing::info!(path = %path.display(), writable, "mounted");
        // Nobody else sets it.
        let _ = shared.place.set(Place { path: path.into(), device, notifier: notifier.clone() });
        for (entry, file) in shared.entries.opened() {
            if file.is_writable() {
                shared.tell_length(&entry, file.length())?;
            }
            shared.warm(&entry, &file);
        }
        let thread = std::thread::Builder::new().name("pw-upkeep".into()).spawn(move || {
            upkeep::run(&shared, &notifier, id, &stop);
            // An event that cannot be signalled is one that is signalled already.
            let _ = ended.signal();
        });
        let thread = thread.map_err(|error| Error::io("cannot start a thread", &error))?;
        *mount.upkeep.lock().expect("no holder panics") = Some(thread);
        Ok(mount)
    }

    /// The file that is mounted, to be moved to another host while programs use it; not of a mount of all regions of a
    /// peer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] for a mount that is not writable; [`ErrorKind::Usage`] for a directory.
    pub fn live(&self) -> Result<Arc<dyn Live>> {
        let Entries::File(entry) = &self.shared.entries else {
            return Err(Error::new(ErrorKind::Usage, "name the file of the directory that is meant"));
        };
        self.live_file(entry)
    }

    /// The file of the region `name`, to be moved to another host while programs use it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where the mount has no such region; [`ErrorKind::Denied`] where it is not written to.
    pub fn live_of(&self, name: &str) -> Result<Arc<dyn Live>> {
        let entry = self.shared.entries.by_region(name);
        let missing = || {
            let text = format!("{} has no region '{name}'", self.path.display());
            Error::new(ErrorKind::NotFound, text)
        };
        self.live_file(&entry.ok_or_else(missing)?)
    }

    fn live_file(&self, entry: &Arc<Entry>) -> Result<Arc<dyn Live>> {
        let file = self.shared.open(entry)?;
        Ok(Arc::new(LiveFile::new(&self.shared, entry, file)?))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the files are doing that programs have opened.
    pub fn status(&self) -> Vec<Status> {
        self.shared.entries.opened().iter().map(|(entry, _)| self.shared.status_of(entry)).collect()
    }

    /// Is readable as soon as the mount was taken down by somebody else: [`Mount::unmount`] then ends it.
    pub fn taken_down(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Has the kernel write back what programs have written, and flushes it.
    ///
    /// # Errors
    ///
    /// Whatever the store says; a later flush does it.
    pub fn flush(&self) -> Result<()> {
        let write_back = || match std::fs::File::open(&self.path) {
            Ok(file) => mount::sync_file_system(file.as_fd()),
            // Of a mount that was taken down the kernel has written back everything.
            Err(_) => Ok(()),
        };
        let written_back = if self.shared.options.writable { super::apart(write_back) } else { Ok(()) };
        let failed = |error| Error::io(format!("cannot write back {}", self.path.display()), &error);
        let written_back = written_back.map_err(failed);
        // What could be written back is flushed in any case.
        self.flush_written().and(written_back)
    }

    /// Flushes what the kernel has written back.
    fn flush_written(&self) -> Result<()> {
        let files = self.shared.entries.opened();
        let flushes: Vec<_> = files.iter().map(|(_, file)| wait(|done| file.flush(done))).collect();
        flushes.into_iter().try_for_each(|flush| flush.map(drop))
    }

    /// Flushes, and takes the mount down. With `force` that is done also when programs still use it, and when it
    /// cannot be flushed: what they do with it fails from then on.
    ///
    /// # Errors
    ///
    /// As [`Mount::flush`]; [`ErrorKind::Busy`] while programs use it, which are named. It goes on then, but for the
    /// background pull.
    pub fn unmount(&self, force: bool) -> Result<()> {
        let Some(session) = self.session.lock().expect("no holder panics").take() else { return Ok(()) };
        let put_back = |session| *self.session.lock().expect("no holder panics") = Some(session);
        self.shared.stop();
        let is_there = mount::mount_of(&self.path)
            .is_ok_and(|(_, device)| self.shared.place.get().is_some_and(|place| place.device == device));
        let flushed = if is_there { self.flush() } else { Ok(()) };
        if let Err(error) = &flushed {
            if !force {
                put_back(session);
                return flushed;
            }
            tracing::error!(%error, "what was written could not be flushed");
        }
        let mut is_used = force;
        if is_there {
            is_used = match self.take_down(force) {
                Ok(is_used) => is_used,
                Err(error) => {
                    put_back(session);
                    return Err(error);
                }
            };
        }
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.upkeep.lock().expect("no holder panics").take() {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
        if is_used {
            // Programs may hold it for ever; nobody waits for them.
            drop(session);
        } else if let Err(error) = session.join() {
            tracing::debug!(%error, "the session has ended");
        }
        let written = self.flush_written();
        // Who still holds a file does not keep its trace from being there.
        let traced = self.shared.entries.opened().iter().try_for_each(|(_, file)| file.save_trace());
        if self.made {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
        flushed.and(written).and(traced)
    }

    /// Answers whether programs use it still, who are named, and who may only with `force`.
    fn take_down(&self, force: bool) -> Result<bool> {
        let failed = |error: &io::Error| Error::io(format!("cannot unmount {}", self.path.display()), error);
        match unmount(&self.path, false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let users = self.users();
                if !force {
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("{} is in use by {users}", self.path.display()),
                    ));
                }
                tracing::warn!(path = %self.path.display(), users, "taken down while it is in use");
                unmount(&self.path, true).map(|()| true).map_err(|error| failed(&error))
            }
            result => result.map(|()| false).map_err(|error| failed(&error)),
        }
    }

    /// Who uses the mount, in words.
    fn users(&self) -> String {
        let users = self.shared.place.get().map(|place| mount::users_of(place.device)).transpose();
        let users = users.ok().flatten().unwrap_or_default();
        let names: Vec<String> =
            users.iter().map(|user| format!("{} (process {})", user.command, user.pid)).collect();
        if names.is_empty() { "some program".into() } else { names.join(", ") }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(true) {
            tracing::error!(path = %self.path.display(), %error, "unmounting");
        }
    }
}

/// Opens a region to be mounted.
pub(super) fn open(region: &Arc<Region>, options: &MountOptions) -> Result<Arc<RegionFile>> {
    let trace = || -> Result<_> {
        let path = options.trace.as_ref();
        path.map(|path| Trace::record_to(path, options.chunk).map(Arc::new)).transpose()
    };
    let file = if options.writable {
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let writer = region.writer(&owner)?;
        let trace = trace()?;
        RegionFile::writable(writer, &options.push, options.atomic, trace)?
    } else {
        RegionFile::read_only(region.clone(), options.follow, trace()?)?
    };
    Ok(Arc::new(file))
}

/// Opens the region at an address; for reading, where somebody else writes to it.
fn open_address(
    address: &StoreAddress,
    options: &MountOptions,
    remote: &RemoteOptions,
) -> Result<Arc<RegionFile>> {
    let open_it = |writable: bool| {
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let store = store::open_as(address, writable.then_some(&*owner), remote)?;
        let options = MountOptions { writable, ..options.clone() };
        open(&Region::at(address, store)?, &options)
    };
    match open_it(options.writable) {
        Err(error) if options.writable && matches!(error.kind(), ErrorKind::Busy | ErrorKind::Denied) => {
            tracing::info!(%address, %error, "opened for reading");
            open_it(false)
        }
        result => result,
    }
}

/// What files and directories have when they are mounted.
fn attributes(options: &MountOptions, mode: u16) -> Attributes {
    let now = SystemTime::now();
    let mode = if options.writable { mode } else { mode & !0o222 };
    let owner = std::fs::metadata("/proc/self").ok();
    use std::os::unix::fs::MetadataExt;
    let (uid, gid) = owner.map_or((0, 0), |owner| (owner.uid(), owner.gid()));
    Attributes { mode, uid, gid, accessed: now, modified: now, changed: now }
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("pagewire".into()),
        MountOption::Subtype("pagewire".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if options.writable { MountOption::RW } else { MountOption::RO },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = options.threads > 1;
    config
}

/// Where to mount: what a dead process has left there is taken down, and a file is made where there is none. The
/// second answer is whether it was.
fn mount_point(path: &Path, directory: bool) -> Result<(PathBuf, bool)> {
    let failed = |error: io::Error| Error::io(format!("cannot mount at {}", path.display()), &error);
    if is_dead(path) {
        tracing::info!(path = %path.display(), "taking down a mount whose process is gone");
        unmount(path, true).map_err(failed)?;
    }
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !directory => {
            std::fs::File::create_new(path).map_err(failed)?;
            return Ok((path.canonicalize().map_err(failed)?, true));
        }
        Err(error) => return Err(failed(error)),
    };
    if directory != found.is_dir() || !(found.is_dir() || found.is_file()) {
        let text = if directory {
            format!("{} is no directory, and the regions of a peer are mounted over one", path.display())
        } else {
            format!("{} is no file, and a region is mounted over one", path.display())
        };
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let path = path.canonicalize().map_err(failed)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let (here, above) = (mount::mount_of(&path).map_err(failed)?, mount::mount_of(parent).map_err(failed)?);
    if here.0 != above.0 && mount::is_of_type(&path, "pagewire") {
        return Err(Error::new(ErrorKind::Busy, format!("{} is mounted already", path.display())));
    }
    Ok((path, false))
}

/// Whether a mount is at `path` whose process is gone.
fn is_dead(path: &Path) -> bool {
    let is_dead = |error: io::Error| error.kind() == io::ErrorKind::NotConnected;
    match std::fs::metadata(path) {
        Err(error) => is_dead(error),
        // The kernel tells of a mount's root what it remembers, but it cannot open it.
        Ok(found) if found.is_file() || found.is_dir() => {
            path.canonicalize().is_ok_and(|path| mount::is_of_type(&path, "pagewire"))
                && std::fs::File::open(path).is_err_and(is_dead)
        }
        Ok(_) => false,
    }
}

/// Takes a mount down: an ordinary user has fusermount3 do it.
fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    match mount::unmount(path, detach) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    let mut command = std::process::Command::new("fusermount3");
    command.arg("-u").args(detach.then_some("-z")).arg("--").arg(path);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match text.contains("busy") {
        true => Err(io::Error::new(io::ErrorKind::ResourceBusy, text)),
        false => Err(io::Error::other(text)),
    }
}
