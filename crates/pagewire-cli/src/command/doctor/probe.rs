//! What this machine is, asked of the kernel: by files of /proc and /sys, and by trying out what is only known when it is
//! tried, on a page of this process. Nothing is opened that could load a module.

use std::fs::read_to_string;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use pagewire::advice::{
    Access, Answer, Fuse, Installer, KernelVersion, Limits, Machine, Memory, Presence, Privileges, Tracked,
    Userfaultfd,
};
use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::pagemap::PagemapScan;
use pagewire_sys::tracked::Tracking;
use pagewire_sys::uffd::Uffd;
use pagewire_sys::{PAGE_SIZE, file};

/// This machine, as this user finds it.
pub(super) fn machine() -> Machine {
    let release = text("/proc/sys/kernel/osrelease").trim().to_owned();
    let status = text("/proc/self/status");
    let limits = text("/proc/self/limits");
    Machine {
        kernel: KernelVersion::of_release(&release).unwrap_or(KernelVersion(0, 0)),
        installer: Installer::of_os_release(&text("/etc/os-release")),
        privileges: privileges(&status, &text("/proc/self/uid_map"), &text("/etc/passwd")),
        userfaultfd: userfaultfd(),
        tracked: Tracking::best().ok().map(|tracking| match tracking {
            Tracking::Async => Tracked::Async,
            Tracking::Sync => Tracked::Faults,
            Tracking::Hash => Tracked::Hashing,
        }),
        pagemap_scan: answer(&scan_a_page()),
        fuse: fuse(&release),
        nbd: module("nbd", &release),
        ublk: module("ublk_drv", &release),
        tun: access("/dev/net/tun"),
        limits: Limits {
            locked_memory: limit(&limits, "Max locked memory"),
            open_files: limit(&limits, "Max open files"),
            mappings: text("/proc/sys/vm/max_map_count").trim().parse().ok(),
        },
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory(&text("/proc/meminfo")),
        release,
    }
}

fn text(path: &str) -> String {
    read_to_string(path).unwrap_or_default()
}

fn answer<T>(result: &io::Result<T>) -> Answer {
    match result {
        Ok(_) => Answer::Works,
        Err(error) => Answer::Refused(said(error)),
    }
}

/// What an error says, without its number.
fn said(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn access(path: &str) -> Access {
    match file::may_use(Path::new(path)) {
        Ok(true) => Access::Allowed,
        Ok(false) => Access::Denied,
        Err(_) => Access::Missing,
    }
}

fn userfaultfd() -> Userfaultfd {
    let ways = Uffd::ways();
    let answers = [answer(&ways.call), answer(&ways.device), answer(&ways.user_mode)];
    let features = [ways.call, ways.device, ways.user_mode].into_iter().find_map(Result::ok);
    let [call, device, user_mode] = answers;
    Userfaultfd {
        call,
        device,
        device_node: access("/dev/userfaultfd"),
        user_mode,
        sysctl: text("/proc/sys/vm/unprivileged_userfaultfd").trim().parse().ok(),
        features: features.map(|features| features.names().map(String::from).collect()).unwrap_or_default(),
    }
}

fn scan_a_page() -> io::Result<()> {
    let page = Mapping::anonymous(PAGE_SIZE, Protection::ReadWrite, false)?;
    let start = page.address() as u64;
    PagemapScan::open_self()?.present_pages(start..start + PAGE_SIZE as u64, &mut Vec::new()).map(drop)
}

fn fuse(release: &str) -> Fuse {
    let kernel = match text("/proc/filesystems").split_whitespace().any(|name| name == "fuse") {
        true => Presence::Loaded,
        false => module("fuse", release),
    };
    // Whoever asks has the module loaded, so only what is there is asked.
    let greeting = (kernel == Presence::Loaded).then(pagewire_sys::fuse::greeting).and_then(Result::ok);
    let allowed = text("/etc/fuse.conf").lines().any(|line| line.trim() == "user_allow_other");
    Fuse {
        kernel,
        device: access("/dev/fuse"),
        fusermount: fusermount(),
        protocol: greeting.map(|greeting| greeting.version),
        passthrough: greeting.map(|greeting| greeting.has_passthrough()),
        user_allow_other: allowed,
    }
}

/// The version that fusermount3 tells.
fn fusermount() -> Option<String> {
    let mut command = Command::new("fusermount3");
    let said = command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Some(said.trim().rsplit(' ').next().filter(|version| !version.is_empty())?.to_owned())
}

/// Whether a module is loaded (or built in), or could be.
fn module(name: &str, release: &str) -> Presence {
    if Path::new(&format!("/sys/module/{name}")).exists() {
        return Presence::Loaded;
    }
    let file = format!("/{name}.ko");
    let is_in = |list: &str| {
        let list = text(&format!("/lib/modules/{release}/{list}"));
        list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&file)))
    };
    match (is_in("modules.builtin"), is_in("modules.dep")) {
        (true, _) => Presence::Loaded,
        (_, true) => Presence::Loadable,
        _ => Presence::Absent,
    }
}

/// The value of a line `NAME:  VALUE` of a file in /proc.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;

fn privileges(status: &str, uid_map: &str, passwd: &str) -> Privileges {
    let capabilities = field(status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok());
    let has = |bit: u32| capabilities.unwrap_or(0) >> bit & 1 == 1;
    // The second number is the effective one.
    let uid =
        field(status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok()).unwrap_or(u32::MAX);
    let mut users = passwd.lines().map(|line| line.split(':'));
    let user = users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    let map: Vec<&str> = uid_map.split_whitespace().collect();
    let initial_user_namespace = map.is_empty() || map == ["0", "0", "4294967295"];
    let set = |path: &str| text(path).trim().parse::<u64>().ok();
    let most = set("/proc/sys/user/max_user_namespaces").is_none_or(|most| most > 0);
    let cloned = set("/proc/sys/kernel/unprivileged_userns_clone") != Some(0);
    let confined = set("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    Privileges {
        uid,
        user,
        sys_admin: has(CAP_SYS_ADMIN),
        sys_ptrace: has(CAP_SYS_PTRACE),
        net_admin: has(CAP_NET_ADMIN),
        initial_user_namespace,
        seccomp: field(status, "Seccomp").is_some_and(|mode| mode != "0"),
        user_namespaces: most && (has(CAP_SYS_ADMIN) || cloned && !confined),
    }
}

/// The soft limit of this name; none for no limit.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory(meminfo: &str) -> Memory {
    let first = |name: &str| -> u64 {
        let value = field(meminfo, name).and_then(|value| value.split_whitespace().next()?.parse().ok());
        value.unwrap_or(0)
    };
    // The count is of the size that is the default; others are not used.
    let is_usual = first("Hugepagesize") == 2048;
    let pages = |name: &str| if is_usual { first(name) } else { 0 };
    Memory {
        total: first("MemTotal") * 1024,
        available: first("MemAvailable") * 1024,
        huge_pages: pages("HugePages_Total"),
        huge_pages_free: pages("HugePages_Free"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        let status = "Name:\tpagewire\nUid:\t0\t1000\t1000\t1000\nSeccomp:\t2\nSeccomp_filters:\t1\n\
                      CapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n";
        let found = privileges(status, "0 1000 1\n", "root:x:0:0::/:\nalice:x:1000:1000::/:\n");
        assert_eq!((found.uid, found.user.as_deref()), (1000, Some("alice")));
        assert_eq!((found.sys_admin, found.sys_ptrace, found.net_admin), (true, false, true));
        assert!(found.seccomp && !found.initial_user_namespace && !found.administers());
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 4096                 files\n\
                      Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert_eq!(limit(limits, "Max locked memory"), None);
        let meminfo = "MemTotal:       1000 kB\nMemAvailable:    500 kB\nHugePages_Total:       3\n\
                       HugePages_Free:        1\nHugepagesize:       2048 kB\n";
        let memory = memory(meminfo);
        assert_eq!((memory.total, memory.available), (1_024_000, 512_000));
        assert_eq!((memory.huge_pages, memory.huge_pages_free), (3, 1));
    }

    #[test]
    fn nothing_that_is_missing_is_an_obstacle() {
        let found = privileges("", "", "");
        assert!(!found.sys_admin && found.user.is_none());
        assert_eq!(memory("").total, 0);
        assert_eq!(limit("", "Max open files"), None);
        assert_eq!(module("no-such-module", "0.0"), Presence::Absent);
        assert_eq!(access("/no/such/device"), Access::Missing);
    }
}
