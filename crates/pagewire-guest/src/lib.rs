//! A guest kernel for tests: scripts that run under a Linux of their own, whose modules this host need not have.
//!
//! The kernel and its modules are those of a package of Debian, unpacked and never installed; the first file system is
//! made here, of busybox, the modules, some programs of this host with their libraries, and the program under test. qemu
//! emulates the machine, so that neither privileges nor hardware are needed; it takes some seconds to boot. One boot
//! runs several *scenarios*, each a script of a shell, and tells of each how it has ended and what it has said.
//! Servers run inside the guest, which has no network but its own loopback.
//!
//! ```no_run
//! # use pagewire_guest::Guest;
//! let report = Guest::new("devices")
//!     .module("nbd nbds_max=4")
//!     .program("mkfs.ext4")
//!     .binary("pagewire".as_ref())
//!     .scenario("is-there", "test -b /dev/nbd0; pagewire --version")
//!     .boot();
//! report.assert("is-there");
//! ```
//!
//! # How the parts meet
//!
//! - [`kernel`]: the kernel and its modules, unpacked once into the cache: `guest` in cargo's target folder.
//! - [`programs`]: programs of the host, with their libraries.
//! - [`archive`]: the first file system, as the kernel takes it. What stays the same from run to run is a part of its
//!   own, kept in the cache.
//! - [`machine`]: qemu, and what comes back from it: by a port of its own, so that nothing that the kernel says gets
//!   in between. The console goes to a file, which is kept when something fails.
//! - `init.sh`: the first process of the guest.
#![forbid(unsafe_code)]

mod archive;
mod kernel;
mod machine;
mod programs;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use archive::Archive;
use kernel::{Kernel, Module};

pub use machine::{Outcome, Report};

/// How long a scenario may take unless told otherwise, on an emulated machine beside a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// Memory of the machine, in MiB: what is unpacked lies in it twice for a moment.
const MEMORY: u32 = 1024;

/// A machine to be booted, and what it is to do.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    modules: Vec<String>,
    programs: Vec<String>,
    binaries: Vec<PathBuf>,
    scenarios: Vec<(String, String)>,
    limit: Duration,
    memory: u32,
}

/// Whether the environment says that tests are to go without a guest; prints so.
pub fn skipped() -> bool {
    let list = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    let skip = list.split(',').any(|name| name.trim() == "guest");
    if skip {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names guest");
    }
    skip
}

impl Guest {
    /// A machine with busybox alone. The console of one that fails is kept under its name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            modules: Vec::new(),
            programs: Vec::new(),
            binaries: Vec::new(),
            scenarios: Vec::new(),
            limit: LIMIT,
            memory: MEMORY,
        }
    }

    /// Loads a module, `NAME` or `NAME PARAMETERS`, and those that it needs.
    pub fn module(mut self, module: &str) -> Self {
        self.modules.push(module.into());
        self
    }

    /// Has a program of this host, in /sbin under its name: what busybox has by the same name is what its shell takes else.
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push(name.into());
        self
    }

    /// Has a program that was just built, under the name of its file, without what debuggers need.
    pub fn binary(mut self, path: &Path) -> Self {
        self.binaries.push(path.into());
        self
    }

    /// Runs a script after those before it, in an empty folder, until its first command that fails. Its name is a
    /// single word.
    pub fn scenario(mut self, name: &str, script: &str) -> Self {
        self.scenarios.push((name.into(), script.into()));
        self
    }

    /// How long each scenario may take: it is killed then.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// How much memory the machine has, in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Boots, runs all scenarios, and tells how they have ended. Where `PAGEWIRE_GUEST_ONLY` names scenarios,
    /// these alone.
    ///
    /// # Panics
    ///
    /// If there can be no machine: something is missing, or it does not come up.
    pub fn boot(&self) -> Report {
        match self.try_boot() {
            Ok(report) => report,
            Err(error) => panic!("there is no guest (PAGEWIRE_TEST_SKIP=guest goes without): {error}"),
        }
    }

    fn try_boot(&self) -> io::Result<Report> {
        let cache = cache()?;
        let only = std::env::var("PAGEWIRE_GUEST_ONLY").ok();
        let is_asked_for =
            |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|word| word == name));
        let scenarios = self.scenarios.iter().filter(|(name, _)| is_asked_for(name));
        let scenarios: Vec<_> = scenarios.cloned().collect();
        let folder = RunFolder::make(&cache, &self.name)?;
        let image = {
            let _alone = lock(&cache)?;
            let kernel = Kernel::unpack(&cache)?;
            let base = self.base(&cache, &kernel)?;
            let mut initramfs = File::create(folder.path("initramfs"))?;
            io::copy(&mut File::open(base)?, &mut initramfs)?;
            self.overlay(BufWriter::new(initramfs), &folder, &scenarios)?;
            kernel.image
        };
        let machine = machine::Machine {
            kernel: &image,
            initramfs: &folder.path("initramfs"),
            console: &folder.path("console"),
            results: &folder.path("results"),
            memory: self.memory,
            deadline: self.limit * (scenarios.len() as u32).max(1) + LIMIT,
        };
        let names: Vec<String> = scenarios.into_iter().map(|(name, _)| name).collect();
        let (outcomes, trouble) = machine.run(&names)?;
        let is_good = trouble.is_none() && outcomes.values().all(|outcome| outcome.status == 0);
        let kept = cache.join(format!("{}.console", self.name));
        let console = if is_good {
            let _of_before = fs::remove_file(&kept);
            None
        } else {
            fs::rename(folder.path("console"), &kept)?;
            Some(kept)
        };
        Ok(Report { outcomes, trouble, console, names })
    }

    /// What stays the same from run to run: made anew when any part of it has changed.
    fn base(&self, cache: &Path, kernel: &Kernel) -> io::Result<PathBuf> {
        let modules = kernel.modules(&self.modules)?;
        let mut programs = vec![("/bin/busybox".to_owned(), programs::find("busybox")?)];
        for name in &self.programs {
            programs.push((format!("/sbin/{name}"), programs::find(name)?));
        }
        let mut libraries = BTreeSet::new();
        for (_, path) in &programs {
            programs::libraries(path, &mut libraries)?;
        }
        let mut made_of = format!("{}\n", kernel.version);
        let files = modules.iter().map(|module| &module.path).chain(programs.iter().map(|(_, path)| path));
        for path in files.chain(&libraries) {
            let found = fs::metadata(path)?;
            let modified = found.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            made_of.push_str(&format!("{} {} {}\n", path.display(), found.len(), modified.as_nanos()));
        }
        let order: Vec<String> =
            modules.iter().map(|Module { name, parameters, .. }| format!("{name} {parameters}\n")).collect();
        made_of.push_str(&order.concat());
        let (base, list) =
            (cache.join(format!("{}.cpio", self.name)), cache.join(format!("{}.parts", self.name)));
        if base.exists() && fs::read_to_string(&list).is_ok_and(|made| made == made_of) {
            return Ok(base);
        }
        let _of_before = fs::remove_file(&list);
        let mut archive = Archive::new(BufWriter::new(File::create(&base)?));
        for folder in ["dev", "proc", "sys", "scenarios"] {
            archive.folder(folder)?;
        }
        for (name, path) in &programs {
            archive.file(name, &fs::read(path)?, true)?;
        }
        for path in &libraries {
            archive.file(&path.display().to_string(), &fs::read(path)?, true)?;
        }
        for module in &modules {
            archive.file(&format!("/modules/{}.ko", module.name), &fs::read(&module.path)?, false)?;
        }
        archive.file("/modules/order", order.concat().as_bytes(), false)?;
        archive.finish()?.flush()?;
        fs::write(list, made_of)?;
        Ok(base)
    }

    /// What is of this run alone.
    fn overlay(
        &self,
        out: BufWriter<File>,
        folder: &RunFolder,
        scenarios: &[(String, String)],
    ) -> io::Result<()> {
        let mut archive = Archive::new(out);
        let mut libraries = BTreeSet::new();
        for path in &self.binaries {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let stripped = folder.path(name);
            output(Command::new("strip").arg("-o").arg(&stripped).arg(path))?;
            archive.file(&format!("/bin/{name}"), &fs::read(&stripped)?, true)?;
            programs::libraries(path, &mut libraries)?;
        }
        for path in &libraries {
            archive.file(&path.display().to_string(), &fs::read(path)?, true)?;
        }
        archive.file("/init", include_bytes!("init.sh"), true)?;
        archive.file("/limit", self.limit.as_secs().to_string().as_bytes(), false)?;
        for (number, (name, script)) in scenarios.iter().enumerate() {
            assert!(
                !name.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
                "'{name}' is no name of a scenario"
            );
            archive.file(&format!("/scenarios/{number:03}.{name}"), script.as_bytes(), false)?;
        }
        archive.finish()?.flush()
    }
}

/// The folder of one run, which goes with it.
struct RunFolder(PathBuf);

impl RunFolder {
    fn make(cache: &Path, name: &str) -> io::Result<Self> {
        let folder = cache.join(format!("{name}.{}", std::process::id()));
        let _of_before = fs::remove_dir_all(&folder);
        fs::create_dir(&folder)?;
        Ok(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _may_be_gone = fs::remove_dir_all(&self.0);
    }
}

/// Where kernels and archives are kept: in the target folder that this program was built in.
fn cache() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // target/PROFILE/deps/PROGRAM
    let target = program.ancestors().nth(3).ok_or_else(|| io::Error::other("this is no test of cargo's"))?;
    let cache = target.join("guest");
    fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// Has the cache for this process alone, as long as what is answered lives.
fn lock(cache: &Path) -> io::Result<File> {
    let file = File::create(cache.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// What a command says that must succeed.
fn output(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_owned();
    let output = output.map_err(|error| failed(Path::new(&program), &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (said, also) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    Err(io::Error::other(format!(
        "{command:?} ended with {}: {} {}",
        output.status,
        said.trim(),
        also.trim()
    )))
}

/// An error with what it was about.
fn failed(what: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}
