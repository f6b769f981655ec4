//! Machines that there could be.

use super::super::*;

/// An ordinary user of an up-to-date machine as distributions set it up.
pub(super) fn ordinary_user() -> Machine {
    let mut machine = Machine::unlimited();
    machine.installer = Installer::Apt;
    machine.privileges.uid = 1000;
    machine.privileges.user = Some("alice".into());
    machine.privileges.sys_admin = false;
    machine.privileges.sys_ptrace = false;
    machine.privileges.net_admin = false;
    machine.userfaultfd.call = Answer::Refused("Operation not permitted".into());
    machine.userfaultfd.device = Answer::Refused("Permission denied".into());
    machine.userfaultfd.device_node = Access::Denied;
    machine.fuse.protocol = None;
    machine.fuse.passthrough = None;
    machine.fuse.user_allow_other = false;
    machine.nbd = Presence::Loadable;
    machine.ublk = Presence::Loadable;
    machine.tun = Access::Denied;
    machine
}

/// Root of a machine with Linux 5.15.
pub(super) fn old_kernel() -> Machine {
    let mut machine = Machine::unlimited();
    machine.kernel = KernelVersion(5, 15);
    machine.release = "5.15.0-100-generic".into();
    machine.userfaultfd.device = Answer::Refused("No such file or directory".into());
    machine.userfaultfd.device_node = Access::Missing;
    machine.userfaultfd.features.retain(|name| !["POISON", "WP_ASYNC", "WP_UNPOPULATED"].contains(&&**name));
    machine.tracked = Some(Tracked::Faults);
    machine.pagemap_scan = Answer::Refused("Inappropriate ioctl for device".into());
    machine.fuse.protocol = Some((7, 34));
    machine.fuse.passthrough = Some(false);
    machine
}

/// Root of a container as it is started without options.
pub(super) fn container() -> Machine {
    let mut machine = ordinary_user();
    machine.privileges.uid = 0;
    machine.privileges.user = Some("root".into());
    machine.privileges.seccomp = true;
    machine.privileges.user_namespaces = false;
    machine.userfaultfd.user_mode = Answer::Refused("Operation not permitted".into());
    machine.userfaultfd.device = Answer::Refused("No such file or directory".into());
    machine.userfaultfd.device_node = Access::Missing;
    machine.userfaultfd.features.clear();
    machine.tracked = None;
    machine.fuse.device = Access::Missing;
    machine.fuse.fusermount = None;
    machine.nbd = Presence::Absent;
    machine.tun = Access::Missing;
    machine
}

/// Root of a machine whose FUSE is a module that is not loaded.
pub(super) fn without_fuse() -> Machine {
    let mut machine = Machine::unlimited();
    machine.fuse.kernel = Presence::Loadable;
    machine.fuse.device = Access::Missing;
    machine.fuse.protocol = None;
    machine.fuse.passthrough = None;
    machine
}

/// A machine that has nothing of all this.
pub(super) fn nothing() -> Machine {
    let mut machine = container();
    machine.privileges.seccomp = false;
    machine.installer = Installer::Unknown;
    machine.fuse.kernel = Presence::Absent;
    machine.ublk = Presence::Absent;
    machine.pagemap_scan = Answer::Refused("No such file or directory".into());
    machine.limits.open_files = Some(256);
    machine.limits.mappings = Some(1024);
    machine.processors = 1;
    machine
}
