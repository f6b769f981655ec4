//! Processor time of kernel threads: what is done for a method in no process's name. Most of what the kernel does is done
//! in the name of a process, and counted there.

use std::time::Duration;

/// The kernel's own process of all its threads.
const PARENT: &str = "2";

/// Processor time that all kernel threads of the machine have used so far. None where they cannot be seen.
///
/// Threads that end take theirs with them; few do within a second.
pub(in crate::study) fn thread_time() -> Option<Duration> {
    let processes = std::fs::read_dir("/proc").ok()?;
    let mut sum = None;
    for path in processes.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_numbered = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
        if !is_numbered {
            continue;
        }
        let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
        if read("stat").is_some_and(|stat| parent(&stat) == Some(PARENT))
            && let Some(used) = read("schedstat").and_then(|text| on_processor(&text))
        {
            *sum.get_or_insert(Duration::ZERO) += used;
        }
    }
    sum
}

/// The parent's number: the second field behind the name, which is in parentheses and may hold anything.
fn parent(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)
}

/// The first number of `schedstat`: nanoseconds on a processor.
fn on_processor(schedstat: &str) -> Option<Duration> {
    Some(Duration::from_nanos(schedstat.split_ascii_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        assert_eq!(parent("17 (odd ) name) S 2 0 0"), Some("2"));
        assert_eq!(parent("17"), None);
        assert_eq!(on_processor("1500 20 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(on_processor(""), None);
    }

    #[test]
    fn kernel_threads_use_more_and_more_where_they_can_be_seen() {
        let Some(before) = thread_time() else { return };
        assert!(thread_time().is_some_and(|after| after >= before));
    }
}
