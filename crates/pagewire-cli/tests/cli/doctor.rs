//! `pagewire doctor` as root, as an ordinary user, in a container's namespaces, and about a region.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::driving::{Running, pagewire, pattern, run, stdout};

/// A copy of the binary that every user may run, and what runs it.
struct Anybody {
    folder: tempfile::TempDir,
    binary: PathBuf,
}

impl Anybody {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // Where the build is may be closed to others.
        let binary = folder.path().join("pagewire");
        std::fs::copy(env!("CARGO_BIN_EXE_pagewire"), &binary).unwrap();
        Self { folder, binary }
    }

    /// What a doctor says whom this program starts.
    fn asks(&self, program: &str, before: &[&str], doctor: &[&str]) -> Value {
        let mut command = Command::new(program);
        command.args(before).arg(&self.binary).args(["doctor", "--json"]).args(doctor);
        let output = command.current_dir(self.folder.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {before:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

fn finding<'a>(report: &'a Value, what: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["what"] == what).unwrap_or_else(|| panic!("{what}: {report}"))
}

fn ability<'a>(report: &'a Value, of: &str) -> &'a Value {
    let abilities = report["abilities"].as_array().unwrap();
    abilities.iter().find(|ability| ability["use"] == of).unwrap_or_else(|| panic!("{of}: {report}"))
}

#[test]
fn root_is_told_what_there_is() {
    let report = json(&["doctor", "--json"]);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(report["machine"]["release"], release.trim());
    assert_eq!(report["machine"]["privileges"]["uid"], 0);
    assert_eq!(finding(&report, "userfaultfd")["state"], "good");
    assert_eq!(ability(&report, "map")["works"], "yes");
    assert_eq!(ability(&report, "serve")["works"], "yes");
    assert!(report["machine"]["userfaultfd"]["features"].as_array().unwrap().len() > 5, "{report}");
    assert_eq!(report["machine"]["fuse"]["protocol"][0], 7, "the kernel was asked");
    assert_eq!(report.get("recommendation"), None, "nobody has asked for one");

    let text = stdout(&["doctor"]);
    assert!(text.starts_with("pagewire ") && text.contains(", asked by root\n"), "{text}");
    assert!(text.contains(release.trim()) && text.contains("What works here and now"), "{text}");
}

#[test]
fn nothing_is_changed() {
    // In a namespace of its own, since other tests mount meanwhile.
    let script = r#"cat /proc/self/mountinfo /proc/modules 2>/dev/null >"$1/before"
        "$2" doctor --for disk >"$1/said" || exit 1
        cat /proc/self/mountinfo /proc/modules 2>/dev/null >"$1/after"; true"#;
    let anybody = Anybody::new();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(anybody.folder.path()).arg(&anybody.binary).current_dir(anybody.folder.path());
    assert!(command.status().unwrap().success());
    let read = |name: &str| std::fs::read_to_string(anybody.folder.path().join(name)).unwrap();
    assert_eq!(read("before"), read("after"));
    let left = std::fs::read_dir(anybody.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["after", "before", "pagewire", "said"]);
}

#[test]
fn an_ordinary_user_is_told_what_they_may() {
    let anybody = Anybody::new();
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let report = anybody.asks("setpriv", &as_nobody, &["--for", "disk"]);
    assert_eq!(report["machine"]["privileges"]["uid"], 65534);
    assert_eq!(finding(&report, "capabilities")["state"], "limited");
    assert_eq!(ability(&report, "passthrough")["works"], "no");
    assert_eq!(ability(&report, "device")["works"], "no");
    assert_eq!(ability(&report, "mirror")["works"], "yes");
    assert!(report["machine"]["fuse"]["protocol"].is_null(), "who may not mount cannot ask");
    // Nothing else is a block device.
    let recommendation = &report["recommendation"];
    assert!(recommendation["ranked"].as_array().unwrap().is_empty(), "{recommendation}");
    let nothing_fits = recommendation["nothing_fits"].as_str().unwrap();
    assert!(nothing_fits.starts_with("No method works on this machine as it is."), "{nothing_fits}");
    assert!(recommendation["commands"].as_array().unwrap().is_empty());
}

#[test]
fn the_root_of_a_container_is_not_taken_for_that_of_the_machine() {
    let anybody = Anybody::new();
    let report = anybody.asks("unshare", &["--user", "--map-root-user", "--mount"], &[]);
    let privileges = &report["machine"]["privileges"];
    assert_eq!((&privileges["uid"], &privileges["initial_user_namespace"]), (&0.into(), &false.into()));
    assert_eq!(ability(&report, "passthrough")["works"], "no");
    assert!(
        finding(&report, "capabilities")["found"].as_str().unwrap().contains("user namespace alone"),
        "{report}"
    );
}

#[test]
fn devices_that_are_not_there_are_missed() {
    let anybody = Anybody::new();
    let script = r#"mount -t tmpfs none /dev && exec "$@""#;
    let before = ["--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let report = anybody.asks("unshare", &before, &["--for", "model"]);
    let fuse = finding(&report, "FUSE");
    assert_eq!(fuse["state"], "missing");
    assert!(fuse["mend"].as_str().unwrap().contains("mknod"), "{fuse}");
    assert_eq!(ability(&report, "mount")["works"], "no");
    assert_eq!(ability(&report, "links")["works"], "no");
    assert_eq!(finding(&report, "userfaultfd")["state"], "good", "root has the system call");
    let said = report["recommendation"]["nothing_fits"].as_str().unwrap();
    assert!(said.contains("pagewire copy"), "{said}");
}

#[test]
fn a_region_is_asked_for_what_can_be_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    std::fs::write(&path, pattern(3_000_001)).unwrap();
    let offer = format!("model=file:{}", path.display());
    let server = Running::start(&["serve", &offer, "--read-only", "--listen", "pw://127.0.0.1:0"]);
    let region = format!("{}/model", server.address);
    let report = json(&["doctor", &region, "--for", "database", "--json"]);
    let recommendation = &report["recommendation"];
    assert_eq!(recommendation["region"]["length"], 3_000_001);
    assert_eq!(recommendation["region"]["writable"], false);
    assert_eq!(recommendation["workload"]["region"], 3_000_001);
    assert_eq!(recommendation["workload"]["writes"]["per_second"], 0.0, "nobody can write there");
    let away = recommendation["workload"]["round_trip_seconds"].as_f64().unwrap();
    assert!(away > 0.0 && away < 1.0, "{away}");
    // Of so few bytes nothing is concluded, and what is usual is taken.
    assert!(
        recommendation["region"]["bytes_per_second"].is_number()
            != (recommendation["workload"]["rate"] == 1.25e9)
    );
    let best = &recommendation["ranked"][0];
    assert_eq!((&best["method"], &best["mode"]), (&"fuse".into(), &"managed".into()), "{best}");
    let command = recommendation["commands"][0]["line"].as_str().unwrap();
    assert!(command.starts_with(&format!("pagewire mount {region} ")), "{command}");
    // What is said has the last word.
    let report = json(&["doctor", &region, "--rtt", "25ms", "--memory", "--json"]);
    assert_eq!(report["recommendation"]["workload"]["round_trip_seconds"], 0.025);
    assert_eq!(report["recommendation"]["ranked"][0]["method"], "userfaultfd");
    // Nothing holds the region afterwards.
    let text = stdout(&["doctor", &region]);
    assert!(text.contains("asked      pw://") && text.contains("What to type"), "{text}");
}

#[test]
fn what_the_link_carries_is_counted_on_the_link() {
    let folder = tempfile::tempdir().unwrap();
    let (full, hollow) = (folder.path().join("full"), folder.path().join("hollow"));
    std::fs::write(&full, pattern(24 << 20)).unwrap();
    std::fs::File::create(&hollow).unwrap().set_len(24 << 20).unwrap();
    for (path, is_told) in [(&full, true), (&hollow, false)] {
        let server = Running::serve(path);
        let region = format!("{}/file", server.address);
        let asked = |more: &[&str]| json(&[&["doctor", "--json", &*region], more].concat());
        let recommendation = &asked(&[])["recommendation"];
        let carried = recommendation["region"]["bytes_per_second"].as_f64();
        assert_eq!(carried.is_some(), is_told, "{recommendation}");
        assert_eq!(recommendation["workload"]["rate"].as_f64(), Some(carried.unwrap_or(1.25e9)));
        // What is said is not measured.
        let recommendation = &asked(&["--rate", "1MB/s"])["recommendation"];
        assert!(recommendation["region"]["bytes_per_second"].is_null());
        assert_eq!(recommendation["workload"]["rate"], 1e6);
    }
}

#[test]
fn an_export_of_nbd_is_asked_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, pattern(1 << 20)).unwrap();
    let offer = format!("disk=file:{}", path.display());
    for (read_only, writable) in [(&["--read-only"][..], false), (&[], true)] {
        let args = [&["serve", &offer, "--nbd", "nbd://127.0.0.1:0"], read_only].concat();
        let server = Running::start(&args);
        let export = format!("{}/disk", server.address.trim_end_matches('/'));
        let report = json(&["doctor", &export, "--for", "disk", "--json"]);
        let recommendation = &report["recommendation"];
        assert_eq!(recommendation["region"]["length"], 1 << 20);
        assert_eq!(recommendation["region"]["writable"], writable, "{recommendation}");
        assert!(recommendation["workload"]["round_trip_seconds"].as_f64().unwrap() > 0.0, "{recommendation}");
    }
}

#[test]
fn flags_make_a_workload() {
    let said = json(&[
        "doctor",
        "--json",
        "--shared-file",
        "--unmodified-program",
        "--region=40GiB",
        "--touched=5%",
        "--rtt=20ms",
        "--rate=100Mbit/s",
        "--writes-per-second=10",
        "--survives-crash",
        "--goal=latency",
    ]);
    let workload = &said["recommendation"]["workload"];
    assert_eq!((&workload["need"], &workload["shared"]), (&"file".into(), &true.into()));
    assert_eq!((&workload["rate"], &workload["touched"]), (&12.5e6.into(), &0.05.into()));
    assert_eq!(workload["writes"]["dirty_per_second"], 40960.0);
    assert_eq!(said["recommendation"]["ranked"][0]["method"], "fuse");
    assert_eq!(said["recommendation"]["ranked"][0]["background"], false);
    let text = stdout(&["doctor", "--for", "vm-ram", "--dirty-rate", "3GB/s"]);
    assert!(text.contains("Move by post-copy"), "{text}");
}

#[test]
fn wrong_flags_are_refused() {
    for (args, text) in [
        (&["--for", "nonsense"][..], "there is no use case 'nonsense'"),
        (&["--region", "0"], "needs no method"),
        (&["--region", "1QB"], "no size"),
        (&["--rtt", "soon"], "no time"),
        (&["--rate", "fast"], "no rate"),
        (&["--touched", "0"], "no share"),
        (&["--goal", "both"], "latency or throughput"),
        (&["--file", "--block-device"], "cannot be used with"),
        (&["--read-only", "--writes-per-second", "5"], "cannot be used with"),
        (&["--unmodified-program=maybe"], "invalid value"),
        (&["file:/etc/hostname"], "is on this host"),
        (&["somewhere"], "somewhere"),
    ] {
        let output = run(&[&["doctor"], args].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(errors.contains(text) && output.stdout.is_empty(), "{args:?}: {errors}");
    }
    // A peer that does not answer is no wrong usage.
    let output = pagewire(&["doctor", "pw://127.0.0.1:1/x", "--patience", "300ms"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}
