//! The bytes that fuzzing begins with, and those that it has found, do no harm.

#[path = "../../../fuzz/bodies/nbd.rs"]
mod bodies;

use std::path::Path;

fn each(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        body(&bytes);
        // Nor do their beginnings, nor what is like them but for a bit.
        let step = bytes.len().div_ceil(200).max(1);
        for end in (0..bytes.len()).step_by(step) {
            body(&bytes[..end]);
            let mut changed = bytes.clone();
            changed[end] ^= 1 << (end % 8);
            body(&changed);
        }
        seen += 1;
    }
    assert!(seen > 5, "only {seen} files in {}", folder.display());
}

#[test]
fn handshakes() {
    each("nbd_handshake", bodies::handshake);
}

#[test]
fn requests() {
    each("nbd_requests", bodies::requests);
}

#[test]
fn replies() {
    each("nbd_replies", bodies::replies);
}
