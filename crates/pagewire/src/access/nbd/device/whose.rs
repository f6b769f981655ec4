//! Whose a device is, and who uses it: what /sys and /proc say.
//!
//! A device of ours says in its backend identifier which process answers for it, so that one whose process was killed
//! is told from one that is at work.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pagewire_sys::mount::DeviceId;
use serde::Serialize;

/// Where the kernel's block devices are.
const BLOCKS: &str = "/sys/block";

/// The most of a region's name that is said.
const NAME: usize = 128;

/// The process that answers for a device, as long as it is the one that this names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// Its number.
    pub process: u32,
    /// When it was started, as the kernel counts: numbers are used again.
    started: u64,
    /// The namespace in which that is its number.
    namespace: String,
    /// The region that the device shows.
    pub region: String,
}

impl Owner {
    /// This process, for a region.
    pub(super) fn new(region: &str) -> io::Result<Self> {
        let process = std::process::id();
        let started = started(process).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { process, started, namespace: namespace()?, region: region.chars().take(NAME).collect() })
    }

    /// As a device says it.
    pub(super) fn backend(&self) -> String {
        let Self { process, started, namespace, region } = self;
        format!("pagewire process {process} started {started} in {namespace} for {region}")
    }

    /// Reads what [`Owner::backend`] has written; none where it is somebody else's.
    pub(super) fn parse(backend: &str) -> Option<Self> {
        let rest = backend.trim_end().strip_prefix("pagewire process ")?;
        let (process, rest) = rest.split_once(" started ")?;
        let (started, rest) = rest.split_once(" in ")?;
        let (namespace, region) = rest.split_once(" for ")?;
        let (process, started) = (process.parse().ok()?, started.parse().ok()?);
        Some(Self { process, started, namespace: namespace.into(), region: region.into() })
    }

    /// Whether the process is gone for certain: what is in another namespace cannot be told.
    pub(super) fn is_gone(&self) -> bool {
        namespace().is_ok_and(|here| here == self.namespace) && started(self.process) != Some(self.started)
    }
}

/// When a process was started, in the kernel's ticks.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything, the state is the third field, and this is the 22nd.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // One that has ended and was not waited for answers for nothing.
    let state = fields.next()?;
    (state != "Z" && state != "X").then_some(())?;
    fields.nth(18)?.parse().ok()
}

fn namespace() -> io::Result<String> {
    std::fs::read_link("/proc/self/ns/pid").map(|name| name.display().to_string())
}

/// An NBD device of the kernel, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(pub(super) u32);

impl Number {
    /// Which device is at a path.
    pub(super) fn at(path: &Path) -> Option<Self> {
        // A link may lead to it.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        if path.parent() != Some(Path::new("/dev")) {
            return None;
        }
        path.file_name()?.to_str()?.strip_prefix("nbd")?.parse().ok().map(Self)
    }

    /// Every device that there is.
    pub(super) fn all() -> Vec<Self> {
        let names = std::fs::read_dir(BLOCKS).into_iter().flatten().flatten();
        let number = |name: &str| name.strip_prefix("nbd")?.parse().ok().map(Self);
        names.filter_map(|entry| number(entry.file_name().to_str()?)).collect()
    }

    pub(super) fn path(self) -> PathBuf {
        format!("/dev/nbd{}", self.0).into()
    }

    fn attribute(self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(format!("{BLOCKS}/nbd{}/{name}", self.0)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Whether somebody has connected it, alive or not.
    pub(super) fn is_connected(self) -> bool {
        self.attribute("pid").is_some()
    }

    /// Who of us answers for it.
    pub(super) fn owner(self) -> Option<Owner> {
        Owner::parse(&self.attribute("backend")?)
    }

    /// Its length, in bytes.
    pub(super) fn length(self) -> Option<u64> {
        self.attribute("size")?.parse::<u64>().ok().map(|sectors| sectors * 512)
    }

    /// Whether it cannot be written to.
    pub(super) fn is_read_only(self) -> Option<bool> {
        self.attribute("ro").map(|text| text == "1")
    }

    /// Its number among all devices.
    pub(super) fn device(self) -> Option<DeviceId> {
        parse_device(&self.attribute("dev")?)
    }

    /// Who uses it or a partition of it, in words: those whom this process may know.
    pub(super) fn users(self) -> Vec<String> {
        let folder = PathBuf::from(format!("{BLOCKS}/nbd{}", self.0));
        let mut devices: Vec<DeviceId> = self.device().into_iter().collect();
        let mut folders = vec![folder.clone()];
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with("nbd")) {
                let device = std::fs::read_to_string(entry.path().join("dev")).ok();
                devices.extend(device.as_deref().and_then(|text| parse_device(text.trim_end())));
                folders.push(entry.path());
            }
        }
        let mut users = mounted(&devices);
        for folder in folders {
            let holders = std::fs::read_dir(folder.join("holders")).into_iter().flatten().flatten();
            users.extend(holders.map(|holder| holder.file_name().to_string_lossy().into_owned()));
        }
        users.extend(opened(&devices));
        users
    }
}

fn parse_device(text: &str) -> Option<DeviceId> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceId { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Where the devices are mounted.
pub(super) fn mount_points(devices: &[DeviceId], table: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = parse_device(fields.next()?)?;
        let path = fields.nth(1)?;
        devices.contains(&device).then(|| path.into())
    };
    table.lines().filter_map(place).collect()
}

fn mounted(devices: &[DeviceId]) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(devices, &table).iter().map(|path| format!("the mount at {}", path.display())).collect()
}

/// The processes, but this one, that have one of the devices open.
fn opened(devices: &[DeviceId]) -> Vec<String> {
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let descriptors = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let is_one = |path: &Path| {
            std::fs::metadata(path)
                .is_ok_and(|found| found.mode() & KIND == BLOCK && devices.contains(&device_of(found.rdev())))
        };
        if process != std::process::id() && descriptors.into_iter().any(|entry| is_one(&entry.path())) {
            let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            users.push(format!("{} (process {process})", command.trim_end()));
        }
    }
    users
}

/// Which bits of a mode say what a file is, and those of a block device.
const KIND: u32 = 0o170_000;
const BLOCK: u32 = 0o060_000;

/// A device's number, as the kernel packs it for programs.
fn device_of(packed: u64) -> DeviceId {
    DeviceId {
        major: ((packed >> 8 & 0xfff) | (packed >> 32 & 0xffff_f000)) as u32,
        minor: ((packed & 0xff) | (packed >> 12 & 0xffff_ff00)) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_here_and_another_one_of_its_number_is_not() {
        let owner = Owner::new("pw://127.0.0.1:7070/disk for all").unwrap();
        assert_eq!(Owner::parse(&owner.backend()), Some(owner.clone()));
        assert!(!owner.is_gone());
        assert!(Owner { started: owner.started + 1, ..owner.clone() }.is_gone());
        assert!(!Owner { started: 1, namespace: "pid:[1]".into(), ..owner }.is_gone());
        for wrong in ["", "nbdkit", "pagewire process x started 1 in a for b", "pagewire process 1 started 2"]
        {
            assert_eq!(Owner::parse(wrong), None);
        }
    }

    #[test]
    fn a_child_that_was_not_waited_for_answers_for_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn mounts_are_found_by_their_device() {
        let table = "24 29 43:0 / /mnt/a\\040b rw shared:5 - ext4 /dev/nbd0 rw\n\
                     25 29 43:32 / /other rw - ext4 /dev/nbd1 rw\n26 29 0:5 / /proc rw - proc proc rw\n";
        let device = DeviceId { major: 43, minor: 0 };
        assert_eq!(mount_points(&[device], table), [PathBuf::from("/mnt/a\\040b")]);
        assert!(mount_points(&[], table).is_empty());
    }

    #[test]
    fn devices_have_numbers_in_their_names() {
        assert_eq!(Number::at("/dev/nbd12".as_ref()), Some(Number(12)));
        for wrong in ["/dev/nbd", "/dev/nbd1p1", "/dev/sda", "/tmp/nbd1", "nbd1", ""] {
            assert_eq!(Number::at(wrong.as_ref()), None, "{wrong}");
        }
        assert_eq!(device_of(43 << 8 | 32), DeviceId { major: 43, minor: 32 });
    }
}
