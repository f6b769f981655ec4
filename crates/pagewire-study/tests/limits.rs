//! The bare-system-call limits at work. They start this binary again, so it has a main of its own.

use std::io::Write;
use std::time::Duration;

use pagewire_study::limits;

fn main() {
    limits::serve_if_asked();
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    // No multiple of a page for each of three connections.
    file.write_all(&vec![5; (9 << 20) + 5000]).expect("a written file");

    let pulled = limits::pull(file.path(), 3, 64 << 10).expect("a pull");
    assert_eq!(pulled.bytes, ((9 << 20) + 5000) / 3 / 4096 * 4096 * 3);
    assert!(pulled.seconds > 0.0, "{pulled:?}");
    assert!(pulled.client_cpu > Duration::ZERO && pulled.server_cpu > Duration::ZERO, "{pulled:?}");
    for (connections, block) in [(0, 4096), (1, 0), (1, 5000)] {
        assert!(limits::pull(file.path(), connections, block).is_err(), "{connections}, {block}");
    }

    for page in [4096, 64 << 10] {
        // More than there are: each is touched once.
        let fault = limits::fault(file.path(), 1_000_000, page).expect("faults");
        assert!(fault.p50 > Duration::from_micros(1) && fault.p50 <= fault.p99, "{fault:?}");
    }
    assert!(limits::fault(file.path(), 0, 4096).is_err(), "no faults have no median");
    assert!(limits::fault(file.path(), 1, 5000).is_err());
    println!("limits: ok");
}
