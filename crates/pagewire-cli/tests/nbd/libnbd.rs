//! libnbd's tools.

use crate::support::{PYTHON, Served, fail, has, noise, same, succeed};

#[test]
fn nbdinfo_sees_what_there_is() {
    if !has("libnbd") {
        return;
    }
    let served = Served::new(&noise(1 << 20, 1), &[]);
    let uris = served.uris.clone();
    for uri in &uris {
        assert_eq!(succeed("nbdinfo", &["--size", uri]).trim(), "1048576");
        let all = succeed("nbdinfo", &["--list", uri]);
        for words in [
            "newstyle-fixed without TLS, using structured packets",
            "export=\"disk\"",
            "description: Pagewire region",
            "epoch 1",
            "base:allocation",
            "qemu:dirty-bitmap:unflushed",
            "can_multi_conn: true",
            "can_cache: true",
            "is_read_only: false",
            "block_size_minimum: 1",
            "block_size_maximum: 33554432",
        ] {
            assert!(all.contains(words), "{words} is not in {all}");
        }
        let json: serde_json::Value = serde_json::from_str(&succeed("nbdinfo", &["--json", uri])).unwrap();
        let export = &json["exports"][0];
        assert_eq!(export["export-size"], 1 << 20);
        assert_eq!((&export["can_df"], &export["can_fua"]), (&true.into(), &true.into()));
    }
    for can in ["connect", "flush", "fua", "trim", "zero", "cache", "df", "multi-conn", "fast-zero", "write"]
    {
        succeed("nbdinfo", &["--can", can, served.unix()]);
    }
    assert!(fail("nbdinfo", &[&format!("{}/none", served.tcp())]).contains("No such file"));
}

#[test]
fn nbdinfo_maps_holes_and_dirty_pages() {
    if !has("libnbd") {
        return;
    }
    let mut bytes = vec![0; 1 << 20];
    bytes[65_536..131_072].copy_from_slice(&noise(65_536, 1));
    let mut served = Served::new(&[], &["--read-only"]);
    served.terminate();
    let file = std::fs::File::create(served.path("disk")).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[65_536..131_072], 65_536).unwrap();
    for options in [&["--read-only"][..], &[]] {
        served.start(options);
        let map = succeed("nbdinfo", &["--map", served.unix()]);
        let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected = [
            ["0", "65536", "3", "hole,zero"],
            ["65536", "65536", "0", "data"],
            ["131072", "917504", "3", "hole,zero"],
        ];
        assert_eq!(rows, expected, "{options:?}");
        if options.is_empty() {
            let script = format!(
                "import nbd, subprocess\nh = nbd.NBD()\nh.connect_uri('{}')\nh.pwrite(b'x' * 5000, 200704)\n\
                 print(subprocess.check_output(['nbdinfo', '--map=qemu:dirty-bitmap:unflushed', '{}']).decode())\n\
                 h.flush()\n\
                 print(subprocess.check_output(['nbdinfo', '--map=qemu:dirty-bitmap:unflushed', '{}']).decode())\n\
                 print(subprocess.check_output(['nbdinfo', '--map=qemu:dirty-bitmap:since-1', '{}']).decode())\n",
                served.tcp(),
                served.unix(),
                served.unix(),
                served.unix()
            );
            let said = succeed(PYTHON, &["-c", &script]);
            let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
            let rows: Vec<_> = rows.into_iter().filter(|row| !row.is_empty()).collect();
            let dirty = [
                vec!["0", "200704", "0", "clean"],
                vec!["200704", "8192", "1", "dirty"],
                vec!["208896", "839680", "0", "clean"],
            ];
            assert_eq!(rows[..3], dirty);
            assert_eq!(rows[3], ["0", "1048576", "0", "clean"]);
            assert_eq!(rows[4..], dirty, "what has changed since the first epoch");
        }
        served.terminate();
    }
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !has("libnbd") {
        return;
    }
    let mut bytes = noise(10_000_000, 2);
    bytes[1_000_000..5_000_000].fill(0);
    let mut served = Served::new(&vec![0; bytes.len()], &[]);
    std::fs::write(served.path("source"), &bytes).unwrap();
    for (n, uri) in served.uris.clone().iter().enumerate() {
        succeed("nbdcopy", &["--flush", &served.text("source"), uri]);
        let back = format!("back{n}");
        succeed("nbdcopy", &[uri, &served.text(&back)]);
        assert!(same(&served.path("source"), &served.path(&back)), "{uri}");
        succeed("nbdcopy", &["--synchronous", "--connections=1", "--requests=1", uri, &served.text(&back)]);
        assert!(same(&served.path("source"), &served.path(&back)), "{uri}");
    }
    // From one export to another, without a flush: what a client has left is there all the same.
    let other = Served::new(&vec![0; bytes.len()], &[]);
    succeed("nbdcopy", &[served.tcp(), other.unix()]);
    succeed("nbdcopy", &[other.tcp(), &served.text("through")]);
    assert!(same(&served.path("source"), &served.path("through")));
    served.terminate();
    served.start(&[]);
    succeed("nbdcopy", &[served.tcp(), &served.text("kept")]);
    assert!(same(&served.path("source"), &served.path("kept")), "it is there after a restart");
}

#[test]
fn memory_and_several_exports_are_served_too() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&noise(4096, 3), &[]);
    served.terminate();
    let offer = format!("disk=file:{}", served.text("disk"));
    let args =
        ["serve", "ram=mem:8MiB", &offer, "--nbd", "nbd://127.0.0.1:0", "--listen", "pw://127.0.0.1:0"];
    served.start_as(&args, 2);
    let nbd = served.uris.iter().find(|uri| uri.starts_with("nbd")).unwrap().clone();
    let pw = served.uris.iter().find(|uri| uri.starts_with("pw")).unwrap().clone();
    let list = succeed("nbdinfo", &["--list", &nbd]);
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"ram\""), "{list}");
    assert!(fail("nbdinfo", &[&nbd]).contains("default export"));
    assert_eq!(succeed("nbdinfo", &["--size", &format!("{nbd}/ram")]).trim(), "8388608");
    assert!(succeed("nbdinfo", &["--map", &format!("{nbd}/ram")]).contains("hole,zero"));
    // What NBD clients write is what peers read.
    std::fs::write(served.path("source"), noise(8 << 20, 4)).unwrap();
    succeed("nbdcopy", &["--flush", &served.text("source"), &format!("{nbd}/ram")]);
    crate::driving::stdout(&["copy", &format!("{pw}/ram"), &format!("file:{}", served.text("copy"))]);
    assert!(same(&served.path("source"), &served.path("copy")));
}
