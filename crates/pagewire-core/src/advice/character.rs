//! What is to be known of each method, whatever the workload: for whoever compares them.

use serde::Serialize;

use super::Method;

/// A method in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Character {
    /// What a program sees.
    pub sees: &'static str,
    /// How easy it is to use.
    pub to_use: &'static str,
    /// How easy it is to build into something.
    pub to_integrate: &'static str,
    /// What has to be allowed.
    pub privileges: &'static str,
    /// The kernel that it needs, and the one with which it is at its best.
    pub kernel: &'static str,
    /// Reading, writing, and by how many.
    pub access: &'static str,
    /// What moves towards the program, and when.
    pub pull: &'static str,
    /// What moves from it, and when.
    pub push: &'static str,
    /// What is lost when the program's host crashes.
    pub lost: &'static str,
}

/// A method in words.
pub fn character(method: Method) -> Character {
    match method {
        Method::Userfaultfd => Character {
            sees: "bytes in its memory",
            to_use: "one call; a VM monitor that has Firecracker's handshake needs one option",
            to_integrate: "a Rust library in the program; a handler process for VM monitors",
            privileges: "none for faults of programs; for those of the kernel root, /dev/userfaultfd, or \
                         vm.unprivileged_userfaultfd=1",
            kernel: "5.11; 6.6 for SIGBUS instead of waiting, 6.7 for changes that the kernel takes note of",
            access: "read and write; private to one process",
            pull: "each page that is touched, at once; the rest in the background",
            push: "pages that were written, in the background; a flush is one epoch",
            lost: "what was written since the last flush; with a cache, since the last local flush",
        },
        Method::Fuse => Character {
            sees: "a file",
            to_use: "one command; any program opens, reads, writes and maps the file",
            to_integrate: "nothing to build in: it is a path",
            privileges: "/dev/fuse, and root or fusermount3; passthrough needs CAP_SYS_ADMIN",
            kernel: "5.11; 6.9 for reads of a complete cache by the kernel itself",
            access: "read and write; by all programs of the host",
            pull: "by the kernel's readahead, as touched; the rest in the background; newer epochs are followed",
            push: "by the kernel's write-back, in the background; fsync is one epoch (all or nothing with --atomic)",
            lost: "what was written since the last fsync",
        },
        Method::Nbd => Character {
            sees: "a block device, or what an NBD client makes of an export",
            to_use: "one command, and a file system if there is to be one; an address for programs that speak NBD",
            to_integrate: "whatever takes a disk: VM monitors, backup programs, the kernel",
            privileges: "none for an export; CAP_SYS_ADMIN and the module nbd for a block device",
            kernel: "any for an export; 4.12 for a device, 5.14 to know whose it is",
            access: "read and write; by all programs of the host; one epoch for as long as it is there",
            pull: "as read; the rest in the background, into memory or a file; none of it when direct",
            push: "as the kernel writes back; a flush of the device is one epoch",
            lost: "what was written since the last flush, as with any disk that has a cache",
        },
        Method::Mirror => Character {
            sees: "the file that it has mapped anyway",
            to_use: "two commands, one at each side; the program knows nothing of it",
            to_integrate: "nothing to build in: it is a path",
            privileges: "none but to read the file",
            kernel: "any",
            access: "written by one program, read by any number of followers, each with a copy of its own",
            pull: "followers get each epoch; all of the region first",
            push: "what hashing finds changed, round by round: each round is one epoch",
            lost: "what was written since the last round; nobody waits for a mirror",
        },
    }
}
