//! qemu's tools.

use crate::support::{PYTHON, Served, fail, has, noise, run, same, succeed};

#[test]
fn qemu_img_looks_converts_and_compares() {
    if !has("qemu") {
        return;
    }
    let mut bytes = noise(4 << 20, 1);
    bytes[1 << 20..3 << 20].fill(0);
    let mut served = Served::new(&bytes, &[]);
    for uri in served.uris.clone() {
        let info = succeed("qemu-img", &["info", "--output=json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!((&info["virtual-size"], &info["format"]), (&(4 << 20).into(), &"raw".into()));
        let image = served.text("image.qcow2");
        succeed("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &image]);
        succeed("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, &image]);
    }
    // The other way, over what is there.
    std::fs::write(served.path("new"), noise(4 << 20, 2)).unwrap();
    let target = served.tcp().to_owned();
    succeed("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &served.text("new"), &target]);
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", served.unix(), &served.text("new")]);
    let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &target]);
    assert!(map.contains("\"data\": true"), "{map}");
    served.terminate();
    served.start(&[]);
    succeed("qemu-img", &["convert", "-f", "raw", "-O", "raw", served.unix(), &served.text("kept")]);
    assert!(same(&served.path("new"), &served.path("kept")));
}

#[test]
fn qemu_io_verifies_patterns() {
    if !has("qemu") {
        return;
    }
    let served = Served::new(&noise(8 << 20, 3), &[]);
    for uri in &served.uris {
        let said = succeed(
            "qemu-io",
            &[
                "-f",
                "raw",
                "-t",
                "writeback",
                "-c",
                "write -P 0xa1 0 1M",
                "-c",
                "write -P 0xb2 1000 3000",
                "-c",
                "read -P 0xb2 1000 3000",
                "-c",
                "read -P 0xa1 4096 1020k",
                "-c",
                "write -z 64k 128k",
                "-c",
                "read -P 0 64k 128k",
                "-c",
                "write -z -u 256k 64k",
                "-c",
                "read -P 0 256k 64k",
                "-c",
                "write -f -P 0xc3 2M 300k",
                "-c",
                "aio_write -P 0xd4 3M 1M",
                "-c",
                "aio_write -P 0xe5 4M 1M",
                "-c",
                "aio_read -P 0xc3 2M 300k",
                "-c",
                "aio_flush",
                "-c",
                "flush",
                "-c",
                "discard 5M 1M",
                "-c",
                "read -P 0xd4 3M 1M",
                "-c",
                "read -P 0xe5 4M 1M",
                "-c",
                "read -P 0 5M 1M",
                uri,
            ],
        );
        assert!(!said.contains("verification failed"), "{said}");
    }
    let again = succeed("qemu-io", &["-f", "raw", "-r", "-c", "read -P 0xe5 4M 1M", served.tcp()]);
    assert!(!again.contains("verification failed"), "{again}");
}

#[test]
fn qemu_knows_that_it_may_only_read() {
    if !has("qemu") {
        return;
    }
    let served = Served::new(&noise(1 << 20, 4), &["--read-only"]);
    let said = fail("qemu-io", &["-f", "raw", "-c", "write 0 4k", served.unix()]);
    assert!(said.contains("read-only") || said.contains("Permission denied"), "{said}");
    succeed("qemu-io", &["-f", "raw", "-r", "-c", "read 0 4k", served.unix()]);
}

#[test]
fn qemu_reads_the_dirty_bitmap_as_one_of_its_own() {
    if !has("qemu") {
        return;
    }
    let served = Served::new(&vec![0; 1 << 20], &[]);
    let held = format!(
        "import nbd, subprocess, sys\nh = nbd.NBD()\nh.connect_uri('{uri}')\nh.pwrite(b'x' * 4096, 131072)\n\
         spec = 'driver=nbd,server.type=unix,server.path={socket},export=disk,\
         x-dirty-bitmap=qemu:dirty-bitmap:unflushed'\n\
         print(subprocess.check_output(['qemu-img', 'map', '--output=json', '--image-opts', spec]).decode())\n",
        uri = served.tcp(),
        socket = served.text("socket"),
    );
    let map = succeed(PYTHON, &["-c", &held]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    // qemu shows what is dirty as what holds no data.
    let dirty: Vec<_> = map.iter().filter(|extent| extent["data"] == false).collect();
    assert_eq!(dirty.len(), 1, "{map:?}");
    assert_eq!((&dirty[0]["start"], &dirty[0]["length"]), (&131_072.into(), &4096.into()));
}

#[test]
fn qemu_with_extended_headers_is_understood_where_there_is_one() {
    if !has("qemu") {
        return;
    }
    // From version 9 on they are asked for. What is checked here is that whatever this one asks for works on more
    // than 4 GiB, which is what they are for.
    let mut served = Served::new(&[], &[]);
    served.terminate();
    std::fs::File::create(served.path("disk")).unwrap().set_len(6 << 30).unwrap();
    served.start(&[]);
    let uri = served.unix().to_owned();
    let said = succeed(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 9 5G 1M",
            "-c",
            "write -z -u -n 0 5G",
            "-c",
            "read -P 9 5G 1M",
            "-c",
            "flush",
            &uri,
        ],
    );
    assert!(!said.contains("failed"), "{said}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: Vec<serde_json::Value> = serde_json::from_slice(&map.stdout).unwrap();
    let data: Vec<_> = map.iter().filter(|extent| extent["data"] == true).collect();
    assert_eq!(
        (data.len(), &data[0]["start"], &data[0]["length"]),
        (1, &(5u64 << 30).into(), &(1 << 20).into())
    );
}
