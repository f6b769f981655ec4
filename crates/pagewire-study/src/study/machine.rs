//! The machine that a study runs on, and who runs it.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::record::{Machine, User};

/// This machine.
///
/// # Errors
///
/// Where the kernel does not tell what it is.
pub fn here() -> io::Result<Machine> {
    let read = |path: &str| std::fs::read_to_string(path);
    let kernel =
        |name: &str| Ok::<_, io::Error>(read(&format!("/proc/sys/kernel/{name}"))?.trim().to_owned());
    let memory = field(&read("/proc/meminfo")?, "MemTotal");
    let kilobytes = memory.and_then(|value| value.strip_suffix("kB")?.trim().parse::<u64>().ok());
    // Not all processors say what they are.
    let cpu = field(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    Ok(Machine {
        kernel: format!("{} {}", kernel("osrelease")?, kernel("version")?),
        cpu,
        cores: std::thread::available_parallelism()?.get() as u32,
        memory_bytes: kilobytes.ok_or(io::ErrorKind::InvalidData)? * 1024,
    })
}

/// Who this process is.
///
/// # Errors
///
/// Where `/proc` is not mounted.
pub fn user() -> io::Result<User> {
    Ok(User { uid: std::fs::metadata("/proc/self")?.uid() })
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_the_same_every_time() {
        let machine = here().expect("the kernel tells");
        assert_eq!(machine, here().expect("the kernel tells"));
        assert!(machine.cores > 0 && machine.memory_bytes > 64 << 20 && !machine.kernel.is_empty());
    }
}
