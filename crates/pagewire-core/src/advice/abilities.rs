//! What works on a machine, for the user who asks.

use serde::Serialize;

use super::machine::{Access, Installer, KernelVersion, Machine, Presence, Tracked};

/// What an access method is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Mapping a region to read it, in a program.
    Map,
    /// Mapping a region to write to it, in a program.
    MapWritable,
    /// Serving the page faults of VM monitors.
    Monitor,
    /// Mounting a region as a file.
    Mount,
    /// Having the kernel read a mounted file past the mount.
    Passthrough,
    /// A block device.
    Device,
    /// Offering regions to peers and to NBD clients, and copying.
    Serve,
    /// Keeping files in step.
    Mirror,
    /// The links with a true round-trip time of the study.
    Links,
}

/// Whether something works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "works", content = "why", rename_all = "kebab-case")]
pub enum Works {
    /// It does.
    Yes,
    /// It does, with this to be known.
    Partly(String),
    /// It does not, for this reason.
    No(String),
}

/// Whether one use works, and what would make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ability {
    /// The use.
    #[serde(rename = "use")]
    pub of: Use,
    /// What a user says for it.
    pub said: &'static str,
    /// Whether it works.
    #[serde(flatten)]
    pub works: Works,
    /// The command that makes it work, or work wholly.
    pub mend: Option<String>,
}

impl Ability {
    /// Whether it works at all.
    pub fn is_there(&self) -> bool {
        !matches!(self.works, Works::No(_))
    }
}

/// What works on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Abilities(Vec<Ability>);

impl Abilities {
    /// One of them.
    ///
    /// # Panics
    ///
    /// Never: there is one for each use.
    pub fn of(&self, of: Use) -> &Ability {
        self.0.iter().find(|ability| ability.of == of).expect("there is one for each use")
    }

    /// All of them, in the order in which they are told.
    pub fn iter(&self) -> impl Iterator<Item = &Ability> {
        self.0.iter()
    }
}

impl Machine {
    /// What works on this machine.
    pub fn abilities(&self) -> Abilities {
        let ability = |of, said, (works, mend)| Ability { of, said, works, mend };
        Abilities(vec![
            ability(Use::Map, "a mapping that is read (library)", self.map()),
            ability(Use::MapWritable, "a mapping that is written (library)", self.map_writable()),
            ability(Use::Monitor, "pagewire uffd, for VM monitors", self.monitor()),
            ability(Use::Mount, "pagewire mount, a file", self.mount()),
            ability(Use::Passthrough, "mount --cache FILE --stay, read by the kernel", self.pass_through()),
            ability(Use::Device, "pagewire mount --via nbd, a block device", self.device()),
            ability(Use::Serve, "pagewire serve, copy, and --nbd for NBD clients", (Works::Yes, None)),
            ability(Use::Mirror, "pagewire mirror and follow", (Works::Yes, None)),
            ability(Use::Links, "links with a round-trip time, for the study", self.links()),
        ])
    }

    /// The way to have a userfaultfd that handles faults of the kernel, too, for this user alone where that is possible.
    pub(super) fn mend_userfaultfd(&self) -> String {
        if self.privileges.seccomp {
            return "docker run --security-opt seccomp=unconfined … (or a profile that allows userfaultfd)"
                .into();
        }
        match self.userfaultfd.device_node {
            Access::Missing => "sudo sysctl -w vm.unprivileged_userfaultfd=1".into(),
            _ => format!("sudo setfacl -m u:{}:rw /dev/userfaultfd", self.user_name()),
        }
    }

    /// The user who asks, as a command names them.
    pub(super) fn user_name(&self) -> String {
        self.privileges.user.clone().unwrap_or_else(|| self.privileges.uid.to_string())
    }

    /// Whether there is a userfaultfd for faults of the kernel, too.
    pub(super) fn handles_kernel_faults(&self) -> bool {
        self.userfaultfd.call.works() || self.userfaultfd.device.works()
    }

    fn map(&self) -> (Works, Option<String>) {
        if self.handles_kernel_faults() {
            return match self.userfaultfd.has("POISON") {
                true => (Works::Yes, None),
                false => (
                    Works::Partly(
                        "this kernel cannot poison pages (Linux 6.6): whoever touches bytes that cannot be had waits \
                         for them instead of getting SIGBUS"
                            .into(),
                    ),
                    Some(newer_kernel(KernelVersion(6, 6))),
                ),
            };
        }
        if self.userfaultfd.user_mode.works() {
            let text = "for faults of programs alone: a system call that is given an absent page answers EFAULT, so \
                        prefault what is given to one";
            return (Works::Partly(text.into()), Some(self.mend_userfaultfd()));
        }
        let why = self.userfaultfd.user_mode.refusal().unwrap_or("unknown");
        match self.kernel < KernelVersion(5, 11) && self.privileges.uid != 0 {
            true => (
                Works::No(format!(
                    "userfaultfd for ordinary users needs Linux 5.11, and this is {}",
                    self.kernel
                )),
                Some("sudo sysctl -w vm.unprivileged_userfaultfd=1".into()),
            ),
            false if self.privileges.seccomp => {
                let why =
                    format!("userfaultfd is refused ({why}), most likely by the container's seccomp filter");
                (Works::No(why), Some(self.mend_userfaultfd()))
            }
            false => (
                Works::No(format!("this kernel refuses userfaultfd ({why})")),
                Some("boot a kernel with CONFIG_USERFAULTFD=y".into()),
            ),
        }
    }

    fn map_writable(&self) -> (Works, Option<String>) {
        let (map, mend) = self.map();
        if let Works::No(_) = map {
            return (map, mend);
        }
        match self.tracked {
            Some(Tracked::Async) => (map, mend),
            Some(Tracked::Faults) => (
                Works::Partly(
                    "the first write to each page is a fault that the program itself resolves, since this kernel does \
                     not take note of writes (Linux 6.7)"
                        .into(),
                ),
                Some(newer_kernel(KernelVersion(6, 7))),
            ),
            Some(Tracked::Hashing) => (
                Works::Partly(
                    "changes are found by hashing all that is there, since this kernel has no write-protection by \
                     userfaultfd (Linux 5.7, and to be noted 6.7)"
                        .into(),
                ),
                Some(newer_kernel(KernelVersion(6, 7))),
            ),
            None => (Works::No("no way to find written pages works here".into()), mend),
        }
    }

    fn monitor(&self) -> (Works, Option<String>) {
        // The monitor makes the userfaultfd, with its own privileges: those of this user are the best guess. The handler
        // needs none.
        if self.handles_kernel_faults() {
            return (Works::Yes, None);
        }
        let (map, mend) = self.map();
        match map {
            Works::No(why) => (Works::No(why), mend),
            _ => (
                Works::Partly(
                    "the handler works, but a monitor of this user has no userfaultfd for faults of the kernel, which \
                     KVM's are: run the monitor as who may have one"
                        .into(),
                ),
                Some(self.mend_userfaultfd()),
            ),
        }
    }

    fn mount(&self) -> (Works, Option<String>) {
        let no = |why: &str, mend: String| (Works::No(why.into()), Some(mend));
        match (self.fuse.kernel, self.fuse.device) {
            (Presence::Absent, _) => {
                return no("this kernel has no FUSE", "boot a kernel with CONFIG_FUSE_FS".into());
            }
            (Presence::Loadable, _) => {
                return no("the kernel's module fuse is not loaded", "sudo modprobe fuse".into());
            }
            (Presence::Loaded, Access::Missing) => {
                return no("there is no /dev/fuse", self.mend_fuse_device());
            }
            (Presence::Loaded, Access::Denied) => {
                return no("/dev/fuse is not for this user", "sudo chmod 666 /dev/fuse".into());
            }
            (Presence::Loaded, Access::Allowed) => {}
        }
        match (self.privileges.sys_admin, &self.fuse.fusermount) {
            (true, _) => (Works::Yes, None),
            (false, Some(_)) if self.fuse.user_allow_other => (Works::Yes, None),
            (false, Some(_)) => (
                Works::Partly("for this user alone: --allow-other is not allowed by /etc/fuse.conf".into()),
                Some("echo user_allow_other | sudo tee -a /etc/fuse.conf".into()),
            ),
            (false, None) => {
                let why = "an ordinary user mounts with fusermount3, and there is none";
                no(why, self.installer.install_fuse())
            }
        }
    }

    fn mend_fuse_device(&self) -> String {
        match self.privileges.initial_user_namespace && !self.privileges.seccomp {
            true => "sudo mknod -m 666 /dev/fuse c 10 229".into(),
            false => "docker run --device /dev/fuse --cap-add SYS_ADMIN …".into(),
        }
    }

    fn pass_through(&self) -> (Works, Option<String>) {
        let (mount, mend) = self.mount();
        if let Works::No(why) = mount {
            return (Works::No(why), mend);
        }
        if self.fuse.passthrough == Some(false) || self.kernel < KernelVersion(6, 9) {
            let why = "this kernel does not offer it (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)";
            return (Works::No(why.into()), Some(newer_kernel(KernelVersion(6, 9))));
        }
        match self.privileges.administers() {
            true => (Works::Yes, None),
            false => (Works::No("it needs CAP_SYS_ADMIN".into()), Some("sudo pagewire mount …".into())),
        }
    }

    fn device(&self) -> (Works, Option<String>) {
        let privileged = self.privileges.administers();
        match self.nbd {
            Presence::Absent => {
                let why = "this kernel has no NBD client, neither built in nor as a module";
                let mend = match self.installer {
                    Installer::Apt => "sudo apt-get install linux-modules-extra-$(uname -r) (Ubuntu), or boot a kernel \
                                       with CONFIG_BLK_DEV_NBD",
                    Installer::Dnf => "sudo dnf install kernel-modules-extra && sudo modprobe nbd",
                    _ => "boot a kernel with CONFIG_BLK_DEV_NBD",
                };
                (Works::No(why.into()), Some(mend.into()))
            }
            Presence::Loadable => {
                (Works::No("the kernel's module nbd is not loaded".into()), Some("sudo modprobe nbd".into()))
            }
            Presence::Loaded if !privileged => (
                Works::No("making a block device needs CAP_SYS_ADMIN".into()),
                Some("sudo pagewire mount … --via nbd".into()),
            ),
            Presence::Loaded if self.kernel < KernelVersion(5, 14) => (
                Works::Partly(
                    "devices do not say whose they are before Linux 5.14: what a killed process has left is taken \
                     down by nbd-client -d"
                        .into(),
                ),
                Some(newer_kernel(KernelVersion(5, 14))),
            ),
            Presence::Loaded => (Works::Yes, None),
        }
    }

    fn links(&self) -> (Works, Option<String>) {
        if self.tun == Access::Missing {
            return (Works::No("there is no /dev/net/tun".into()), Some("sudo modprobe tun".into()));
        }
        match self.privileges.sys_admin && self.privileges.net_admin && self.tun == Access::Allowed {
            true => (Works::Yes, None),
            false => (
                Works::No("network namespaces and TUN devices need CAP_SYS_ADMIN and CAP_NET_ADMIN".into()),
                Some("sudo pagewire study".into()),
            ),
        }
    }
}

/// What to do where only another kernel helps.
pub(super) fn newer_kernel(version: KernelVersion) -> String {
    format!("boot Linux {version} or newer")
}
