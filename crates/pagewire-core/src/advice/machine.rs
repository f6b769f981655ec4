//! What a machine was found to have: facts alone, as the kernel told them. What they mean is for `abilities` and
//! `checkup` to say.

use std::fmt;

use serde::{Serialize, Serializer};

/// A machine, as one of its users finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its kernel's version.
    pub kernel: KernelVersion,
    /// How the kernel names its own version.
    pub release: String,
    /// By what programs are installed.
    pub installer: Installer,
    /// Who asks, and what they may do.
    pub privileges: Privileges,
    /// userfaultfd.
    pub userfaultfd: Userfaultfd,
    /// How the pages that were written are found, tried out on a page; nothing where no way works.
    pub tracked: Option<Tracked>,
    /// What `PAGEMAP_SCAN` of a page answers.
    pub pagemap_scan: Answer,
    /// FUSE.
    pub fuse: Fuse,
    /// The kernel's NBD client.
    pub nbd: Presence,
    /// Block devices that are answered for through io_uring.
    pub ublk: Presence,
    /// TUN devices, of which links for measurements are made.
    pub tun: Access,
    /// What is limited.
    pub limits: Limits,
    /// How many processors may be used.
    pub processors: usize,
    /// Memory.
    pub memory: Memory,
}

/// The first two numbers of a kernel's version, which is what features are known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl KernelVersion {
    /// The version that a release begins with, such as `6.12.95-cloud-amd64`.
    pub fn of_release(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Serialize for KernelVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// By what programs are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Installer {
    /// Debian, Ubuntu and their kin.
    Apt,
    /// Fedora, RHEL and their kin.
    Dnf,
    /// Arch and its kin.
    Pacman,
    /// SUSE.
    Zypper,
    /// Alpine.
    Apk,
    /// Something else.
    Unknown,
}

impl Installer {
    /// The one of the system that `/etc/os-release` describes with this text.
    pub fn of_os_release(text: &str) -> Installer {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let names = format!("{} {}", field("ID"), field("ID_LIKE"));
        let of = |name: &str| match name {
            "debian" | "ubuntu" => Some(Installer::Apt),
            "fedora" | "rhel" | "centos" => Some(Installer::Dnf),
            "arch" => Some(Installer::Pacman),
            "suse" | "opensuse" | "sles" => Some(Installer::Zypper),
            "alpine" => Some(Installer::Apk),
            _ => None,
        };
        names.split_whitespace().find_map(of).unwrap_or(Installer::Unknown)
    }

    /// The command that installs the FUSE programs.
    pub(super) fn install_fuse(self) -> String {
        match self {
            Installer::Apt => "sudo apt-get install fuse3".into(),
            Installer::Dnf => "sudo dnf install fuse3".into(),
            Installer::Pacman => "sudo pacman -S fuse3".into(),
            Installer::Zypper => "sudo zypper install fuse3".into(),
            Installer::Apk => "sudo apk add fuse3".into(),
            Installer::Unknown => "install the package that has fusermount3 (fuse3)".into(),
        }
    }
}

/// Who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// The number of the user.
    pub uid: u32,
    /// The name of the user, where there is one.
    pub user: Option<String>,
    /// `CAP_SYS_ADMIN`: mounting, NBD devices, FUSE passthrough.
    pub sys_admin: bool,
    /// `CAP_SYS_PTRACE`: userfaultfd without the sysctl, forks as events.
    pub sys_ptrace: bool,
    /// `CAP_NET_ADMIN`: network devices.
    pub net_admin: bool,
    /// Whether these count for the whole machine, and not within a container's user namespace alone.
    pub initial_user_namespace: bool,
    /// Whether a seccomp filter refuses some system calls, as those of containers do.
    pub seccomp: bool,
    /// Whether this user may make user namespaces, as far as the sysctls say.
    pub user_namespaces: bool,
}

impl Privileges {
    /// Whether the capability to administer counts for the whole machine.
    pub fn administers(&self) -> bool {
        self.sys_admin && self.initial_user_namespace
    }
}

/// userfaultfd: the three ways to have one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Userfaultfd {
    /// What the system call answers where faults of the kernel are to be handled, too.
    pub call: Answer,
    /// What `/dev/userfaultfd` answers.
    pub device: Answer,
    /// Whether there is that device, and for whom.
    pub device_node: Access,
    /// What the system call answers for faults of programs alone.
    pub user_mode: Answer,
    /// `vm.unprivileged_userfaultfd`, where there is that.
    pub sysctl: Option<u32>,
    /// The features that the kernel's `UFFDIO_API` has told.
    pub features: Vec<String>,
}

impl Userfaultfd {
    /// Whether the kernel has told this feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// How the pages that were written are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracked {
    /// The kernel takes note, and `PAGEMAP_SCAN` asks it.
    Async,
    /// By a fault for each first write to a page.
    Faults,
    /// By hashing all that is there.
    Hashing,
}

/// What the kernel answers to an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "answer", content = "why", rename_all = "kebab-case")]
pub enum Answer {
    /// It works.
    Works,
    /// It does not, for this reason.
    Refused(String),
}

impl Answer {
    /// Whether it works.
    pub fn works(&self) -> bool {
        *self == Answer::Works
    }

    /// Why it does not.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Answer::Works => None,
            Answer::Refused(why) => Some(why),
        }
    }
}

/// Whether there is a device, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// This user may read and write it.
    Allowed,
    /// It is there, and not for this user.
    Denied,
    /// It is not there.
    Missing,
}

/// Whether a part of the kernel is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It is there.
    Loaded,
    /// It is a module, which is not loaded.
    Loadable,
    /// This kernel has neither it nor a module of it.
    Absent,
}

/// FUSE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fuse {
    /// The file system.
    pub kernel: Presence,
    /// `/dev/fuse`.
    pub device: Access,
    /// The version that `fusermount3` tells, where there is that program.
    pub fusermount: Option<String>,
    /// The protocol that the kernel has spoken when it was asked, for those who may ask.
    pub protocol: Option<(u32, u32)>,
    /// Whether the kernel has offered to read the file below by itself, where it was asked.
    pub passthrough: Option<bool>,
    /// Whether ordinary users may let others use their mounts.
    pub user_allow_other: bool,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes that may be locked in memory; none is no limit.
    pub locked_memory: Option<u64>,
    /// Descriptors of a process; none is no limit.
    pub open_files: Option<u64>,
    /// Mappings of a process.
    pub mappings: Option<u64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
    /// Huge pages of 2 MiB that are set aside.
    pub huge_pages: u64,
    /// Those of them that nobody uses.
    pub huge_pages_free: u64,
}

impl Machine {
    /// A machine that lacks nothing, used by its administrator: what can be said where no machine is asked about.
    pub fn unlimited() -> Machine {
        let features = [
            "PAGEFAULT_FLAG_WP",
            "MISSING_HUGETLBFS",
            "MISSING_SHMEM",
            "WP_UNPOPULATED",
            "POISON",
            "WP_ASYNC",
            "EVENT_REMOVE",
        ];
        Machine {
            kernel: KernelVersion(6, 18),
            release: "6.18".into(),
            installer: Installer::Unknown,
            privileges: Privileges {
                uid: 0,
                user: Some("root".into()),
                sys_admin: true,
                sys_ptrace: true,
                net_admin: true,
                initial_user_namespace: true,
                seccomp: false,
                user_namespaces: true,
            },
            userfaultfd: Userfaultfd {
                call: Answer::Works,
                device: Answer::Works,
                device_node: Access::Allowed,
                user_mode: Answer::Works,
                sysctl: Some(0),
                features: features.map(String::from).to_vec(),
            },
            tracked: Some(Tracked::Async),
            pagemap_scan: Answer::Works,
            fuse: Fuse {
                kernel: Presence::Loaded,
                device: Access::Allowed,
                fusermount: Some("3.14.0".into()),
                protocol: Some((7, 44)),
                passthrough: Some(true),
                user_allow_other: true,
            },
            nbd: Presence::Loaded,
            ublk: Presence::Loaded,
            tun: Access::Allowed,
            limits: Limits { locked_memory: None, open_files: Some(1 << 20), mappings: Some(1 << 20) },
            processors: 8,
            memory: Memory { total: 256 << 30, available: 200 << 30, huge_pages: 0, huge_pages_free: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_and_systems_are_read() {
        assert_eq!(KernelVersion::of_release("6.12.95+deb12-cloud-amd64"), Some(KernelVersion(6, 12)));
        assert_eq!(KernelVersion::of_release("5.4.0-1-generic"), Some(KernelVersion(5, 4)));
        assert_eq!(KernelVersion::of_release("6"), None);
        assert_eq!(KernelVersion::of_release("linux"), None);
        assert!(KernelVersion(6, 9) < KernelVersion(6, 12));
        let of = Installer::of_os_release;
        assert_eq!(of("NAME=\"Debian\"\nID=debian\n"), Installer::Apt);
        assert_eq!(of("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Installer::Apt);
        assert_eq!(of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Installer::Dnf);
        assert_eq!(of("ID=nixos\n"), Installer::Unknown);
        assert_eq!(of(""), Installer::Unknown);
    }
}
