//! fio's engine for NBD, which verifies what it has written.

use crate::support::{Served, has, noise, succeed};

#[test]
fn fio_finds_what_it_has_written() {
    if !has("fio") {
        return;
    }
    let served = Served::new(&noise(16 << 20, 1), &[]);
    let folder = served.folder.path().display().to_string();
    for (uri, mode, block, depth) in [
        (served.tcp(), "randwrite", "4k", "16"),
        (served.unix(), "randwrite", "512-64k", "8"),
        (served.unix(), "write", "1m", "4"),
        (served.tcp(), "randrw", "4k", "1"),
    ] {
        let said = succeed(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={uri}"),
                &format!("--rw={mode}"),
                &format!("--bs{}={block}", if block.contains('-') { "range" } else { "" }),
                &format!("--iodepth={depth}"),
                "--size=16m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--fsync=64",
                "--randseed=7",
                &format!("--aux-path={folder}"),
                "--verify_state_save=0",
            ],
        );
        assert!(said.contains("err= 0"), "{mode} {block}: {said}");
    }
}
