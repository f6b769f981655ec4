//! What the tests share: a server to mount from, mounts that are taken down, and deadlines. [`warden`] takes down what is
//! left of them when the process is killed.

#[path = "../promises/support/proxy.rs"]
pub(crate) mod proxy;
mod warden;

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pagewire::access::fuse::{Mount, MountOptions, Status};
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::{PeerAddress, RegionAddress, StoreAddress};
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{self, Blocking, FileOptions, FileStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, Error, ErrorKind, Result};

/// Longer than anything here may take: whatever waits as long as this hangs.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// The name of the region that most tests mount.
pub(crate) const NAME: &str = "region";

/// Writes the log to standard error, if `PAGEWIRE_LOG` says what of it.
pub(crate) fn log() {
    if let Ok(filter) = std::env::var("PAGEWIRE_LOG") {
        // Another test of this process may have done so.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

/// Bytes that differ from page to page and within a page, and from seed to seed; none is zero.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let seed = usize::from(seed) * 67;
    (0..length).map(|i| ((i / 4096) * 31 + i % 251 + seed) as u8 | 1).collect()
}

/// A server of one file, that can be started again at its address.
pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    file: PathBuf,
    capacity: u64,
    images: u64,
    server: Option<Server>,
    address: PeerAddress,
}

impl Host {
    /// Serves a file that holds `bytes` and can grow to `capacity`.
    pub(crate) fn new(bytes: &[u8], capacity: u64) -> Self {
        Self::with_images(bytes, capacity, FileOptions::default().images)
    }

    /// The same, which keeps at most `images` bytes for readers of older epochs.
    pub(crate) fn with_images(bytes: &[u8], capacity: u64, images: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("store");
        std::fs::write(&file, bytes).unwrap();
        let address = "pw://127.0.0.1:0".parse().unwrap();
        let mut host = Self { folder, file, capacity, images, server: None, address };
        host.start();
        host
    }

    /// Serves a file of a length that does not change.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::new(bytes, bytes.len() as u64)
    }

    /// Starts the server where it was.
    pub(crate) fn start(&mut self) {
        let deadline = Instant::now() + HANG;
        let (capacity, images) = (Some(self.capacity), self.images);
        let options = FileOptions { capacity, images, writable: true, ..FileOptions::default() };
        // The server before has the file until the last of its threads has ended.
        let store = loop {
            match FileStore::open_with(&self.file, &options) {
                Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                store => break store.unwrap(),
            }
        };
        let region = Region::new(NAME, Arc::new(store)).unwrap();
        let server = Server::new([region], ServerOptions::default()).unwrap();
        self.address = server.listen(&self.address).unwrap();
        self.server = Some(server);
    }

    /// Stops the server: what was written and not flushed is lost with it.
    pub(crate) fn stop(&mut self) {
        self.server.take();
    }

    pub(crate) fn address(&self) -> PeerAddress {
        self.address.clone()
    }

    /// A path for a mount.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Mounts the region at a path.
    pub(crate) fn mount(&self, name: &str, options: MountOptions) -> Mounted {
        mount(&self.address, &self.place(name), options, &RemoteOptions::default()).unwrap()
    }

    /// A reader of the region, beside every mount.
    pub(crate) fn reader(&self) -> RemoteStore {
        RemoteStore::connect(&region_at(&self.address, NAME), &RemoteOptions::default()).unwrap()
    }

    /// What the store holds at its newest epoch.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let reader = self.reader();
        let info = reader.info();
        reader.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
    }

    /// Writes, and flushes it as an epoch of its own, which is answered.
    pub(crate) fn write(&self, length: u64, changes: &[(u64, &[u8])]) -> u64 {
        let writer =
            RemoteStore::connect_writer(&region_at(&self.address, NAME), &RemoteOptions::default(), "a test")
                .unwrap();
        if writer.info().length != length {
            set_length(&writer, length);
        }
        for (offset, bytes) in changes {
            writer.write_bytes(*offset, bytes).unwrap();
        }
        writer.flush_all().unwrap().epoch
    }
}

fn set_length(store: &dyn Store, length: u64) {
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    store.set_length(length, Box::new(move |result| sender.send(result).unwrap()));
    answer.recv_timeout(HANG).expect("the length is never set").unwrap();
}

/// The region `name` at `peer`.
pub(crate) fn region_at(peer: &PeerAddress, name: &str) -> RegionAddress {
    RegionAddress { peer: peer.clone(), name: name.into() }
}

/// A client that loses its patience after so many milliseconds.
pub(crate) fn patient_for(milliseconds: u64) -> RemoteOptions {
    let patience = Duration::from_millis(milliseconds);
    RemoteOptions { connections: 2, patience, connect_timeout: patience, ..RemoteOptions::default() }
}

/// How a mount is that is written to.
pub(crate) fn writable() -> MountOptions {
    MountOptions { writable: true, owner: Some("a mount of a test".into()), ..MountOptions::default() }
}

/// The same, whose flushes lose their patience after so many milliseconds.
pub(crate) fn writable_for(milliseconds: u64) -> MountOptions {
    let push = PushOptions { patience: Duration::from_millis(milliseconds), ..MountOptions::default().push };
    MountOptions { push, ..writable() }
}

/// A mount that is taken down at the end of the test, however it ends.
pub(crate) struct Mounted {
    mount: Option<Mount>,
    path: PathBuf,
}

/// The mounts of this process.
static MOUNTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Ends the connections of all mounts to the kernel, whatever waits for them: a process that serves a mount cannot
/// end while it has a file of that mount open which waits for an answer.
pub(crate) fn abort_mounts() {
    MOUNTS.lock().unwrap().drain(..).for_each(|path| warden::abort(&path));
}

/// Mounts the region `region` at `peer`.
pub(crate) fn mount(
    peer: &PeerAddress,
    path: &Path,
    options: MountOptions,
    remote: &RemoteOptions,
) -> Result<Mounted> {
    let address = StoreAddress::Remote(region_at(peer, NAME));
    let store = store::open(&address, options.writable, remote)?;
    let region = Region::at(&address, store)?;
    Mounted::at(path, |path| Mount::region(&region, path, options))
}

impl Mounted {
    /// Mounts something at a path, which is known to the [`warden`] before.
    pub(crate) fn at(path: &Path, mount: impl FnOnce(&Path) -> Result<Mount>) -> Result<Self> {
        MOUNTS.lock().unwrap().push(path.into());
        warden::watch(path);
        let mount = mount(path)?;
        Ok(Self { path: mount.path().into(), mount: Some(mount) })
    }

    /// The mounted file, to be read and written.
    pub(crate) fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    /// The mounted file, to be read.
    pub(crate) fn open_to_read(&self) -> File {
        File::open(&self.path).unwrap()
    }

    /// How the one file is doing that is mounted.
    pub(crate) fn status_of_file(&self) -> Status {
        self.status().remove(0)
    }

    /// Takes the mount down, which may be refused.
    pub(crate) fn unmount_now(&self, force: bool) -> Result<()> {
        Mount::unmount(self, force)
    }

    /// Takes the mount down, within a deadline; it has to succeed.
    pub(crate) fn unmount(mut self) {
        let mount = self.mount.take().unwrap();
        within("unmounting", HANG, move || mount.unmount(false)).unwrap();
    }
}

impl Deref for Mounted {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.mount.take());
        // It is gone already, unless that has failed.
        let _ = pagewire_sys::mount::unmount(&self.path, true);
    }
}

/// Reads so many bytes.
pub(crate) fn read_at(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Waits until `ready`, and fails with `what` when that takes too long.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `work` on a thread of its own, and fails with `what` when it hangs.
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        // The test has failed already if nobody listens.
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            abort_mounts();
            panic!("hangs: {what}")
        }
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// A program that is killed when it goes.
pub(crate) struct Program(pub(crate) Child);

impl Program {
    /// Starts a command.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for its end, within a limit.
    pub(crate) fn end_within(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.0.try_wait().unwrap() {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                status => return status,
            }
        }
    }

    /// What it says, and how it ends.
    pub(crate) fn output(mut self) -> Output {
        use std::io::Read;
        let (mut stdout, mut stderr) = (self.0.stdout.take().unwrap(), self.0.stderr.take().unwrap());
        let all = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let (stdout, stderr) = std::thread::scope(|scope| {
            let stderr = scope.spawn(move || all(&mut stderr));
            (all(&mut stdout), stderr.join().unwrap())
        });
        let status = self.end_within(HANG).expect("it has closed its output and does not end");
        Output { status, stdout, stderr }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already. Nobody waits for one that cannot be killed: the test tells.
        let _ = self.0.kill();
        self.end_within(Duration::from_secs(5));
    }
}

/// What a program says that must succeed, within a deadline.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let program = program.to_owned();
    let output =
        within(&format!("{program} {arguments:?}"), 3 * HANG, move || Program::start(&mut command).output());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The kind of an error that a test provokes.
pub(crate) fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().as_ref().map(Error::kind)
}

/// Whether a system call has failed with this number.
pub(crate) fn fails_with<T>(result: std::io::Result<T>, errno: i32) -> bool {
    result.err().is_some_and(|error| error.raw_os_error() == Some(errno))
}

/// Numbers of errors.
pub(crate) mod errno {
    pub(crate) const EIO: i32 = 5;
    pub(crate) const ENXIO: i32 = 6;
    pub(crate) const ENOSPC: i32 = 28;
    pub(crate) const EROFS: i32 = 30;
}
