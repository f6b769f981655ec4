//! Processor time and memory of processes.

use std::io;
use std::time::Duration;

/// Processor time that this process has used since it started: user and system, all threads.
///
/// # Errors
///
/// What getrusage answers.
pub fn own_cpu() -> io::Result<Duration> {
    let usage = pagewire_sys::thread::process_usage()?;
    Ok(usage.user + usage.system)
}

/// The memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The most that was resident at once since the process started, or since [`reset_peak`].
    pub peak: u64,
    /// Resident now, and of no file: heap, stacks, private mappings.
    pub anonymous: u64,
    /// Resident now, and of files or shared.
    pub shared: u64,
}

impl Memory {
    /// The memory of the process `pid`.
    ///
    /// # Errors
    ///
    /// Not found for no such process; invalid data where the kernel does not tell.
    pub fn of(pid: u32) -> io::Result<Self> {
        parse(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel does not tell memory"))
    }

    /// The peak without what is of files: the program's code is not what a program uses.
    pub fn anonymous_peak(&self) -> u64 {
        self.peak.saturating_sub(self.shared).max(self.anonymous)
    }
}

/// Forgets the peak of this process: from now on it is of what is resident from now on.
///
/// # Errors
///
/// What the kernel answers to a write to `clear_refs`.
pub fn reset_peak() -> io::Result<()> {
    // 5 is CLEAR_REFS_MM_HIWATER_RSS.
    std::fs::write("/proc/self/clear_refs", "5")
}

fn parse(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(Memory {
        peak: field("VmHWM")?,
        anonymous: field("RssAnon")?,
        shared: field("RssFile")? + field("RssShmem")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_scaled() {
        let status = "Name:\tx\nVmHWM:\t  1200 kB\nVmRSS:\t 900 kB\nRssAnon:\t 500 kB\nRssFile:\t300 kB\nRssShmem: 100 kB\n";
        let memory = parse(status).unwrap();
        assert_eq!(memory, Memory { peak: 1200 << 10, anonymous: 500 << 10, shared: 400 << 10 });
        assert_eq!(memory.anonymous_peak(), 800 << 10);
        assert_eq!(parse("VmHWM:\t12 kB\n"), None);
    }

    #[test]
    fn a_process_that_works_and_allocates_shows_it() {
        let (cpu, memory) = (own_cpu().unwrap(), Memory::of(std::process::id()).unwrap());
        let mut state = 1;
        let numbers: Vec<u64> = (0..4 << 20).map(|_| crate::scatter::split_mix(&mut state)).collect();
        let numbers = std::hint::black_box(numbers);
        let after = Memory::of(std::process::id()).unwrap();
        assert!(own_cpu().unwrap() > cpu);
        assert!(
            after.anonymous >= memory.anonymous + (16 << 20) && after.peak >= after.anonymous,
            "{after:?}"
        );
        drop(numbers);
    }
}
