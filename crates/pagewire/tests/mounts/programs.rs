//! Programs that know nothing of any of this: cp, cat, dd, sha256sum, fio.

use pagewire::access::fuse::MountOptions;

use crate::support::{Host, pattern, run, writable};

const LENGTH: usize = 2_345_679;

#[test]
fn programs_copy_out_what_there_is() {
    let bytes = pattern(LENGTH, 1);
    let host = Host::of(&bytes);
    let plain = host.place("plain");
    std::fs::write(&plain, &bytes).unwrap();
    let sum = |path: &str| run("sha256sum", &[path]).split(' ').next().unwrap().to_owned();
    for (name, options) in [
        ("cached", MountOptions::default()),
        ("direct", MountOptions { direct: true, ..MountOptions::default() }),
        ("writable", writable()),
    ] {
        let mounted = host.mount(name, options);
        let path = mounted.path().to_str().unwrap();
        assert_eq!(sum(path), sum(plain.to_str().unwrap()), "{name}");
        run("cmp", &[path, plain.to_str().unwrap()]);
        let copy = host.place("copy");
        run("cp", &[path, copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == bytes, "{name}");
        let to = format!("of={}", copy.display());
        run("dd", &[&format!("if={path}"), &to, "bs=7777", "status=none"]);
        assert!(std::fs::read(&copy).unwrap() == bytes, "{name}");
        run("sh", &["-c", &format!("cat {path} > {}", copy.display())]);
        assert!(std::fs::read(&copy).unwrap() == bytes, "{name}");
    }
}

#[test]
fn programs_copy_in_what_they_have() {
    let host = Host::new(&[], 4 << 20);
    let source = host.place("source");
    for (seed, length, options) in [
        (2, LENGTH, writable()),
        (3, LENGTH / 3, writable()),
        (4, LENGTH + 1, MountOptions { direct: true, ..writable() }),
        (5, 4097, MountOptions { atomic: true, ..writable() }),
    ] {
        let bytes = pattern(length, seed);
        std::fs::write(&source, &bytes).unwrap();
        let mounted = host.mount("mounted", options);
        let (from, to) = (source.to_str().unwrap(), mounted.path().to_str().unwrap());
        run("cp", &[from, to]);
        assert!(std::fs::read(to).unwrap() == bytes);
        // In the middle, in odd pieces, and without cutting it.
        let (from, to) = (format!("if={from}"), format!("of={to}"));
        let whole = ["bs=999", "skip=1", "seek=1", "count=3", "conv=notrunc,fsync", "status=none"];
        run("dd", &[&[&*from, &*to], &whole[..]].concat());
        assert!(host.bytes() == bytes, "{length} bytes");
        mounted.unmount();
        assert!(host.bytes() == bytes, "{length} bytes");
    }
}

#[test]
fn fio_finds_what_it_has_written() {
    let host = Host::of(&vec![0; 8 << 20]);
    let mounted = host.mount("mounted", writable());
    let file = format!("--filename={}", mounted.path().display());
    let fio = |arguments: &[&str]| {
        let always = [
            "--name=verify",
            &file,
            "--size=8M",
            "--io_size=4M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--allow_file_create=0",
            "--randrepeat=1",
            "--verify_state_save=0",
            "--thread",
        ];
        run("fio", &[&always, arguments].concat());
    };
    fio(&["--rw=randwrite", "--bs=4k", "--ioengine=psync"]);
    fio(&["--rw=write", "--bs=64k", "--ioengine=psync", "--fsync=32"]);
    fio(&["--rw=randwrite", "--bs=16k", "--ioengine=psync", "--direct=1"]);
    fio(&["--rw=write", "--bs=128k", "--ioengine=psync", "--direct=1"]);
    fio(&["--rw=randwrite", "--bs=4k", "--ioengine=mmap"]);
    fio(&["--rw=write", "--bs=4k", "--ioengine=mmap", "--fsync=64"]);
    let bytes = std::fs::read(mounted.path()).unwrap();
    mounted.unmount();
    assert!(host.bytes() == bytes);
}
