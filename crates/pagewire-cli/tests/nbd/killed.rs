//! Flushed means flushed: the server is killed, or told to end, at any time.

use crate::driving::{run, stdout};
use crate::support::{PYTHON, Served, has, noise, same, succeed};

/// Writes and flushes, kills the server, and goes on after it was started again.
#[test]
fn what_was_flushed_is_there_after_the_server_was_killed() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&vec![0; 4 << 20], &[]);
    let script = served.text("script.py");
    std::fs::write(
        &script,
        "
import nbd, os, signal, sys
h, other = nbd.NBD(), nbd.NBD()
h.connect_uri(sys.argv[1])
other.connect_uri(sys.argv[1])
for n in range(100):
    h.pwrite(bytearray([n + 1]) * 40000, n * 40000)
# A flush by another client covers it.
other.flush()
# Not flushed, and so it may be lost.
h.pwrite(b'lost' * 1000, 0)
other.pwrite(b'kept' * 1000, 4100000, nbd.CMD_FLAG_FUA) if n == 99 else None
os.kill(int(sys.argv[2]), signal.SIGKILL)
try:
    h.pread(1, 0)
except nbd.Error:
    pass
",
    )
    .unwrap();
    let uri = served.unix().to_owned();
    let pid = served.pid();
    succeed(PYTHON, &[&script, &uri, &pid]);
    served.kill();
    served.start(&[]);
    let uri = served.unix().to_owned();
    let check = "
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for n in range(100):
    got = h.pread(40000, n * 40000)
    assert got == bytearray([n + 1]) * 40000 or (n == 0 and got[:4000] == b'lost' * 1000), n
assert h.pread(4000, 4100000) == b'kept' * 1000
";
    std::fs::write(&script, check).unwrap();
    succeed(PYTHON, &[&script, &uri]);
}

#[test]
fn a_server_that_is_told_to_end_keeps_what_was_written() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&vec![0; 1 << 20], &[]);
    std::fs::write(served.path("source"), noise(1 << 20, 5)).unwrap();
    // No flush, and the client is still there when the server ends.
    let script = format!(
        "import nbd, os, signal\nh = nbd.NBD()\nh.connect_uri('{}')\n\
         h.pwrite(open('{}', 'rb').read(), 0)\nos.kill({}, signal.SIGTERM)\nimport time\n\
         while os.path.exists('/proc/{}/exe'): time.sleep(0.01)\n",
        served.tcp(),
        served.text("source"),
        served.pid(),
        served.pid(),
    );
    // The server is a child of this process, and so stays until it is waited for.
    let client = std::thread::spawn(move || succeed(PYTHON, &["-c", &script]));
    served.ends();
    client.join().unwrap();
    served.start(&[]);
    succeed("nbdcopy", &[served.tcp(), &served.text("kept")]);
    assert!(same(&served.path("source"), &served.path("kept")));
}

/// A peer that writes keeps NBD clients to reading, and the other way round.
#[test]
fn peers_and_nbd_clients_share_one_lease() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&vec![7; 1 << 20], &[]);
    served.terminate();
    let offer = format!("disk=file:{}", served.text("disk"));
    let args =
        ["serve", &offer, "--nbd", "nbd://127.0.0.1:0", "--listen", "pw://127.0.0.1:0", "--lapse", "200ms"];
    served.start_as(&args, 2);
    let nbd = served.uris.iter().find(|uri| uri.starts_with("nbd")).unwrap().clone();
    let pw = served.uris.iter().find(|uri| uri.starts_with("pw")).unwrap().clone();
    std::fs::write(served.path("source"), noise(1 << 20, 6)).unwrap();
    let (from, to) = (format!("file:{}", served.text("source")), format!("{pw}/disk"));
    let script = format!(
        "import nbd, subprocess, sys\nh = nbd.NBD()\nh.connect_uri('{nbd}')\nassert not h.is_read_only()\n\
         refused = subprocess.run([sys.argv[1], 'copy', '{from}', '{to}'], capture_output=True)\n\
         assert refused.returncode == 1, refused\nassert b'NBD clients' in refused.stderr, refused\n\
         h.pwrite(b'mine', 0)\nh.flush()\nh.shutdown()\n"
    );
    succeed(PYTHON, &["-c", &script, env!("CARGO_BIN_EXE_pagewire")]);
    // It lapses.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !run(&["copy", &from, &to]).status.success() {
        assert!(std::time::Instant::now() < deadline, "the lease does not lapse");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let copy = served.text("copy");
    succeed("nbdcopy", &[&nbd, &copy]);
    assert!(same(&served.path("source"), &served.path("copy")));
    let info = stdout(&["info", &to, "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert!(info["epoch"].as_u64().unwrap() >= 3, "{info}");
}
