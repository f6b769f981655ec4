//! A child process does not inherit a mapping: in it, absent pages would read as zeroes.

use pagewire::PullOrder;
use pagewire::store::RemoteOptions;

use crate::support::{self, anywhere, file, file_region, pattern};

#[test]
fn a_mapping_is_not_inherited() {
    if !support::has_userfaultfd() {
        return;
    }
    let file = file(&pattern(1 << 20, 1));
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::None, &RemoteOptions::default()).unwrap();
    let start = mapping.as_ptr() as usize;
    let end = start + mapping.len();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut covered) = (false, 0);
    for line in smaps.lines() {
        let range = line.split(' ').next().unwrap().split_once('-').and_then(|(from, to)| {
            Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
        });
        if let Some((from, to)) = range {
            inside = from < end && start < to;
            covered += if inside { to.min(end) - from.max(start) } else { 0 };
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            assert!(flags.split_whitespace().any(|flag| flag == "dc"), "a child would inherit it: {flags}");
            assert!(flags.split_whitespace().any(|flag| flag == "um"), "a userfaultfd serves it: {flags}");
        }
    }
    assert_eq!(covered, mapping.len(), "all of it was seen");
}
