//! What a machine has and lacks: each thing with what that means, the command that mends it, and what works without it.

use serde::Serialize;

use super::abilities::newer_kernel;
use super::machine::{Access, Answer, KernelVersion, Machine, Presence};
use super::phrase::size;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Good,
    /// It is there, with limits.
    Limited,
    /// It is not there.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What was found, in a few words.
    pub found: String,
    /// What mends it: a command, where there is one.
    pub mend: Option<String>,
    /// What works without it.
    pub without: Option<&'static str>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Good, found: found.into(), mend: None, without: None }
    }

    fn lacking(
        what: &'static str,
        state: State,
        found: impl Into<String>,
        mend: impl Into<String>,
        without: &'static str,
    ) -> Self {
        Self { what, state, found: found.into(), mend: Some(mend.into()), without: Some(without) }
    }
}

/// What is to be said of a machine, in the order in which it is told.
pub fn checkup(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![kernel(machine), userfaultfd(machine), userfaultfd_device(machine)];
    findings.extend([features(machine), tracking(machine)]);
    findings.extend([fuse(machine), fusermount(machine), passthrough(machine)]);
    findings.extend([nbd(machine), ublk(machine)]);
    findings.extend([capabilities(machine), user_namespaces(machine), tun(machine)]);
    findings.extend([open_files(machine), locked_memory(machine), mappings(machine)]);
    findings.extend([processors(machine), memory(machine), huge_pages(machine)]);
    findings
}

fn kernel(machine: &Machine) -> Finding {
    let found = format!("Linux {}", machine.release);
    let (what, newest) = ("kernel", KernelVersion(6, 9));
    match machine.kernel {
        version if version >= newest => Finding::good(what, found),
        version if version >= KernelVersion(5, 11) => Finding::lacking(
            what,
            State::Limited,
            found,
            newer_kernel(newest),
            "everything, some of it slower or with less: what exactly is said below",
        ),
        _ => Finding::lacking(
            what,
            State::Limited,
            format!("{found}, older than 5.11, with which all of Pagewire is meant to work"),
            newer_kernel(newest),
            "serving, copying, mirrors and NBD exports",
        ),
    }
}

fn userfaultfd(machine: &Machine) -> Finding {
    let (what, uffd) = ("userfaultfd", &machine.userfaultfd);
    let sysctl = match uffd.sysctl {
        Some(value) => format!("vm.unprivileged_userfaultfd={value}"),
        None => "no vm.unprivileged_userfaultfd".into(),
    };
    if uffd.call.works() {
        return Finding::good(what, format!("for faults of programs and of the kernel ({sysctl})"));
    }
    if uffd.device.works() {
        return Finding::good(what, "for faults of programs and of the kernel, by /dev/userfaultfd");
    }
    let without = "files and block devices: mount, copy, mirror, follow, serve";
    match uffd.user_mode.refusal() {
        None => Finding::lacking(
            what,
            State::Limited,
            format!("for faults of programs alone ({sysctl})"),
            machine.mend_userfaultfd(),
            "mappings that are prefaulted before system calls get to see them, and all that is mounted",
        ),
        Some(why) => {
            let mend = match machine.privileges.seccomp {
                true => machine.mend_userfaultfd(),
                false => "boot a kernel with CONFIG_USERFAULTFD=y".into(),
            };
            Finding::lacking(what, State::Missing, format!("refused: {why}"), mend, without)
        }
    }
}

fn userfaultfd_device(machine: &Machine) -> Finding {
    let (what, uffd) = ("/dev/userfaultfd", &machine.userfaultfd);
    let without = "what the system call allows, as said above";
    match (uffd.device_node, &uffd.device) {
        (_, Answer::Works) => Finding::good(what, "may be used"),
        (Access::Missing, _) if uffd.call.works() => {
            Finding::good(what, "not there (Linux 6.1), and not needed by this user")
        }
        (Access::Missing, _) => Finding::lacking(
            what,
            State::Missing,
            "not there (Linux 6.1)",
            "sudo sysctl -w vm.unprivileged_userfaultfd=1",
            without,
        ),
        (Access::Denied, _) if uffd.call.works() => {
            Finding::good(what, "not for this user, who does not need it")
        }
        (Access::Denied, _) => {
            let mend = format!("sudo setfacl -m u:{}:rw /dev/userfaultfd", machine.user_name());
            Finding::lacking(what, State::Limited, "not for this user", mend, without)
        }
        (Access::Allowed, Answer::Refused(why)) => Finding::lacking(
            what,
            State::Limited,
            format!("may be opened, and answers: {why}"),
            "sudo sysctl -w vm.unprivileged_userfaultfd=1",
            without,
        ),
    }
}

/// The features that Pagewire uses where they are, and the version that brought them.
const FEATURES: [(&str, KernelVersion, &str); 5] = [
    ("PAGEFAULT_FLAG_WP", KernelVersion(5, 7), "written pages are found by hashing"),
    ("MISSING_HUGETLBFS", KernelVersion(4, 11), "guests in ordinary pages"),
    ("WP_UNPOPULATED", KernelVersion(6, 4), "written pages are found by faults or by hashing"),
    ("POISON", KernelVersion(6, 6), "who touches bytes that cannot be had waits for them, without SIGBUS"),
    ("WP_ASYNC", KernelVersion(6, 7), "written pages are found by faults or by hashing"),
];

fn features(machine: &Machine) -> Finding {
    let (what, uffd) = ("userfaultfd features", &machine.userfaultfd);
    if uffd.features.is_empty() {
        let (found, without) = ("none told: the kernel could not be asked", "what needs no userfaultfd");
        return Finding::lacking(what, State::Missing, found, "see userfaultfd above", without);
    }
    let missing: Vec<_> = FEATURES.iter().filter(|(name, _, _)| !uffd.has(name)).collect();
    match missing.iter().max_by_key(|(_, version, _)| *version) {
        None => Finding::good(what, format!("{} told by UFFDIO_API, all that are used", uffd.features.len())),
        Some((_, version, without)) => {
            let names: Vec<&str> = missing.iter().map(|(name, _, _)| *name).collect();
            let found = format!("without {}", names.join(", "));
            Finding::lacking(what, State::Limited, found, newer_kernel(*version), without)
        }
    }
}

fn tracking(machine: &Machine) -> Finding {
    let what = "PAGEMAP_SCAN";
    match machine.pagemap_scan.refusal() {
        None => Finding::good(what, "answers: written pages are found by asking the kernel"),
        Some(why) => Finding::lacking(
            what,
            State::Limited,
            format!("refused: {why}"),
            newer_kernel(KernelVersion(6, 7)),
            "mappings that are written, with their changes found by faults or by hashing",
        ),
    }
}

fn fuse(machine: &Machine) -> Finding {
    let (what, fuse) = ("FUSE", &machine.fuse);
    let without = "mappings, block devices, copies and mirrors";
    let lacking = |found: &str, mend: String| Finding::lacking(what, State::Missing, found, mend, without);
    let ability = machine.abilities();
    let mend = ability.of(super::Use::Mount).mend.clone().unwrap_or_default();
    match (fuse.kernel, fuse.device) {
        (Presence::Absent, _) => lacking("not in this kernel", mend),
        (Presence::Loadable, _) => lacking("a module that is not loaded", mend),
        (_, Access::Missing) => lacking("there is no /dev/fuse", mend),
        (_, Access::Denied) => lacking("/dev/fuse is not for this user", mend),
        (_, Access::Allowed) => Finding::good(
            what,
            match fuse.protocol {
                Some((major, minor)) => format!("/dev/fuse may be used; the kernel speaks {major}.{minor}"),
                None => "/dev/fuse may be used".into(),
            },
        ),
    }
}

fn fusermount(machine: &Machine) -> Finding {
    let what = "fusermount3";
    match (&machine.fuse.fusermount, machine.privileges.sys_admin) {
        (Some(version), _) => Finding::good(what, version.clone()),
        (None, true) => Finding::good(what, "not there, and not needed by who may mount"),
        (None, false) => Finding::lacking(
            what,
            State::Missing,
            "not there: an ordinary user mounts with it",
            machine.installer.install_fuse(),
            "mounts by root, mappings, copies and mirrors",
        ),
    }
}

fn passthrough(machine: &Machine) -> Finding {
    let what = "FUSE passthrough";
    let ability = machine.abilities();
    match &ability.of(super::Use::Passthrough).works {
        super::Works::Yes => {
            Finding::good(what, "the kernel reads caches itself (mount --cache FILE --stay)")
        }
        super::Works::Partly(why) | super::Works::No(why) => Finding::lacking(
            what,
            State::Missing,
            why.clone(),
            ability.of(super::Use::Passthrough).mend.clone().unwrap_or_default(),
            "all mounts: they read from the page cache, and what that lacks through the daemon",
        ),
    }
}

fn nbd(machine: &Machine) -> Finding {
    let (what, ability) = ("NBD devices", machine.abilities());
    let device = ability.of(super::Use::Device);
    match &device.works {
        super::Works::Yes => Finding::good(what, "the module nbd is there, and may be used"),
        super::Works::Partly(why) | super::Works::No(why) => Finding::lacking(
            what,
            if device.is_there() { State::Limited } else { State::Missing },
            why.clone(),
            device.mend.clone().unwrap_or_default(),
            "NBD exports for clients that are programs (serve --nbd: qemu, libnbd), and files by FUSE",
        ),
    }
}

fn ublk(machine: &Machine) -> Finding {
    let found = match machine.ublk {
        Presence::Loaded => "loaded; Pagewire does not use it yet",
        Presence::Loadable => "a module that is not loaded; Pagewire does not use it yet",
        Presence::Absent => "not in this kernel; Pagewire does not use it yet",
    };
    Finding::good("ublk", found)
}

fn capabilities(machine: &Machine) -> Finding {
    let (what, privileges) = ("capabilities", &machine.privileges);
    let all = [
        (privileges.sys_admin, "CAP_SYS_ADMIN"),
        (privileges.sys_ptrace, "CAP_SYS_PTRACE"),
        (privileges.net_admin, "CAP_NET_ADMIN"),
    ];
    let there: Vec<&str> = all.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    let mut found = if there.is_empty() { "none of those that matter".into() } else { there.join(", ") };
    if !privileges.initial_user_namespace {
        found += ", within a user namespace alone";
    }
    if privileges.seccomp {
        found += ", with a seccomp filter";
    }
    match all.iter().all(|(has, _)| *has) && privileges.initial_user_namespace {
        true => Finding::good(what, found),
        false => Finding::lacking(
            what,
            State::Limited,
            found,
            "sudo pagewire …",
            "mounts by fusermount3, mappings where userfaultfd allows them, copies, mirrors and serving",
        ),
    }
}

fn user_namespaces(machine: &Machine) -> Finding {
    let found = match machine.privileges.user_namespaces {
        true => "this user may make them",
        false => "this user may not make them; Pagewire does not need any",
    };
    Finding::good("user namespaces", found)
}

fn tun(machine: &Machine) -> Finding {
    let what = "TUN devices";
    let lacking = |found: &str, mend: &str| {
        Finding::lacking(what, State::Missing, found, mend, "everything but the study's links")
    };
    match machine.tun {
        Access::Allowed => Finding::good(what, "/dev/net/tun may be used"),
        Access::Denied => lacking("/dev/net/tun is not for this user", "sudo pagewire study"),
        Access::Missing => lacking("there is no /dev/net/tun", "sudo modprobe tun"),
    }
}

/// What 200 clients of a server take, with three connections each.
const FILES_FOR_MANY: u64 = 1024;

fn open_files(machine: &Machine) -> Finding {
    let what = "open files";
    match machine.limits.open_files {
        Some(limit) if limit < FILES_FOR_MANY => Finding::lacking(
            what,
            State::Limited,
            format!("{limit} for each process"),
            "ulimit -n 65536",
            "servers of few clients: each takes up to 6",
        ),
        Some(limit) => Finding::good(what, format!("{limit} for each process")),
        None => Finding::good(what, "without a limit"),
    }
}

fn locked_memory(machine: &Machine) -> Finding {
    let found = match machine.limits.locked_memory {
        Some(limit) => format!("{}; Pagewire locks none", size(limit as f64)),
        None => "without a limit".into(),
    };
    Finding::good("locked memory", found)
}

fn mappings(machine: &Machine) -> Finding {
    let what = "mappings";
    match machine.limits.mappings {
        Some(limit) if limit < 65_530 => Finding::lacking(
            what,
            State::Limited,
            format!("vm.max_map_count={limit}"),
            "sudo sysctl -w vm.max_map_count=65530",
            "programs with few mappings: each region that is mapped takes at least one",
        ),
        Some(limit) => Finding::good(what, format!("vm.max_map_count={limit}")),
        None => Finding::good(what, "the limit is not known"),
    }
}

fn processors(machine: &Machine) -> Finding {
    let what = "processors";
    match machine.processors {
        1 => Finding::lacking(
            what,
            State::Limited,
            "1: who waits for a byte and who brings it take turns",
            "give this machine a second processor",
            "everything, more slowly",
        ),
        count => Finding::good(what, count.to_string()),
    }
}

fn memory(machine: &Machine) -> Finding {
    let (total, available) = (machine.memory.total as f64, machine.memory.available as f64);
    Finding::good("memory", format!("{}, {} of it free for use", size(total), size(available)))
}

fn huge_pages(machine: &Machine) -> Finding {
    let (set, free) = (machine.memory.huge_pages, machine.memory.huge_pages_free);
    let found = match set {
        0 => "none set aside; only guests that want them need any (sudo sysctl -w vm.nr_hugepages=N)".into(),
        _ => format!("{set} of 2 MiB set aside, {free} of them free"),
    };
    Finding::good("huge pages", found)
}
