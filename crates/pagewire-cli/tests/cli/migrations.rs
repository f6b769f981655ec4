//! `pagewire migrate` as a user meets it: an application with a database moves from host to host, all of them this
//! one, and whatever fails or is killed on the way, it runs on one side and has all that it has committed.

mod application;
mod gate;
mod in_doubt;
mod killed;
mod link;
mod refused;
mod side;
mod witnessed;

use std::process::{Command, Stdio};

use application::{Application, NAME};
use side::Side;

use crate::driving::{run, stdout, wait_for};

/// An application at an origin that offers its database.
struct Place {
    application: Application,
    out: Side,
}

impl Place {
    /// One that writes already.
    fn start(extra: &[&str]) -> Self {
        let application = Application::new();
        let out = application.out(extra);
        application.go_on(&application.path("a"));
        application.wait_for_commits(3);
        Self { application, out }
    }
}

#[test]
fn a_database_moves_from_host_to_host_under_its_writer() {
    let Place { application, out } = Place::start(&[]);
    let mut here = out;
    // The last one goes back to where it began, and its files are those of then.
    let first = application.store_of("a");
    for (place, mode, store) in [
        ("b", "pre-copy", None),
        ("c", "post-copy", None),
        ("a", "hybrid", Some(&first)),
        ("b", "auto", None),
    ] {
        let path = application.path(place);
        let store = store.map(|store| ["--store", &**store]);
        let store = store.as_ref().map_or(&[][..], |store| &store[..]);
        let more = [&["--mode", mode, "--listen", "pw://127.0.0.1:0"], store].concat();
        let mut there = application.arrive(&here.region(NAME), &path, &more);
        let arrived = there.line("arrived ");
        assert!(arrived.contains(path.to_str().unwrap()) && arrived.contains("stood still"), "{arrived}");
        there.line("complete: ");
        there.line("listening ");
        here.ends_with(0);
        assert_eq!(side::mounts_in(application.folder()), [path]);
        let committed = application.committed();
        wait_for("it goes on", || application.committed() > committed + 2);
        here = there;
    }
    let status = stdout(&["migrate", "status", &here.region(NAME)]);
    assert!(status.starts_with("idle: "), "{status}");
    application.stop();
    application.check(&application.path("b"));
    here.signal("-TERM");
    here.ends_with(0);
    application.leaves_nothing();
}

#[test]
fn a_process_is_suspended_by_signals_and_killed_once_its_file_has_moved() {
    let application = Application::new();
    let path = application.path("a");
    std::fs::write(application.path("log"), "0\n").unwrap();
    let offer = format!("log=file:{}?capacity=64MiB", application.path("log").display());
    let ready = application.path("ready");
    // It waits for its file, since it has to be there before it is named.
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; n=1; while :; do echo $n >> {}; n=$((n+1)); done",
        ready.display(),
        path.display()
    );
    let mut writer =
        side::Child(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap());
    let pid = writer.0.id().to_string();
    let mut out = Side::start(
        application.folder(),
        &[
            "migrate",
            "out",
            &offer,
            "--mount",
            path.to_str().unwrap(),
            "--suspend-pid",
            &pid,
            "--listen",
            "pw://127.0.0.1:0",
        ],
    );
    out.line("listening ");
    std::fs::write(&ready, "").unwrap();
    wait_for("it writes", || std::fs::metadata(&path).unwrap().len() > 10_000);
    let there = application.path("b");
    // Refused in the middle of it: a downtime that nobody can keep.
    let failed = run(&[
        "migrate",
        "in",
        &out.region("log"),
        there.to_str().unwrap(),
        "--mode",
        "pre-copy",
        "--max-downtime",
        "1ms",
        "--deadline",
        "1ms",
    ]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let length = std::fs::metadata(&path).unwrap().len();
    wait_for("it goes on where it was", || std::fs::metadata(&path).unwrap().len() > length);
    let mut arrived = Side::start(
        application.folder(),
        &["migrate", "in", &out.region("log"), there.to_str().unwrap(), "--mode", "hybrid"],
    );
    arrived.line("complete: ");
    out.ends_with(0);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(writer.0.wait().unwrap().signal(), Some(9));
    let text = std::fs::read_to_string(&there).unwrap();
    // It may have been stopped in the middle of a line.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let numbers: Vec<u64> = lines.map(|line| line.trim().parse().unwrap()).collect();
    assert!(numbers.len() > 1000 && numbers.iter().zip(0..).all(|(number, expected)| *number == expected));
    assert!(text.len() as u64 >= length);
    arrived.signal("-INT");
    arrived.ends_with(0);
}

#[test]
fn regions_of_one_application_move_together_or_not_at_all() {
    let application = Application::new();
    let mut args = vec!["migrate".to_owned(), "out".into(), "--listen".into(), "pw://127.0.0.1:0".into()];
    for name in ["one", "two"] {
        let store = application.path(&format!("{name}.store"));
        std::fs::write(&store, name.repeat(10_000)).unwrap();
        args.push(format!("{name}=file:{}", store.display()));
        args.extend(["--mount".into(), format!("{name}={}", application.path(name).display())]);
    }
    args.extend([
        "--on-suspend".into(),
        format!("printf '%s' \"$PAGEWIRE_PATHS\" > {}", application.path("told").display()),
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut out = Side::start(application.folder(), &args);
    out.line("listening ");
    let (one, two) = (out.region("one"), out.region("two"));
    let (here, there) = (application.path("here"), application.path("there"));
    let (here, there) = (here.to_str().unwrap(), there.to_str().unwrap());
    let alone = run(&["migrate", "in", &one, here]);
    let text = String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.code() == Some(2) || alone.status.code() == Some(1), "{alone:?}");
    assert!(text.contains("'two'"), "{text}");
    assert!(std::fs::read(application.path("one")).unwrap() == "one".repeat(10_000).as_bytes());

    let mut came = Side::start(application.folder(), &["migrate", "in", &one, here, &two, there, "--json"]);
    let line = came.line("{");
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(report["regions"][1]["path"], there);
    assert_eq!(report["phase"], "completed");
    assert!(report["downtime"].as_f64().unwrap() > 0.0 && report["decisions"][0].is_string(), "{line}");
    out.ends_with(0);
    assert!(std::fs::read(here).unwrap() == "one".repeat(10_000).as_bytes());
    assert!(std::fs::read(there).unwrap() == "two".repeat(10_000).as_bytes());
    let told = std::fs::read_to_string(application.path("told")).unwrap();
    let paths = [application.path("one"), application.path("two")].map(|path| path.display().to_string());
    assert_eq!(told, paths.join("\n"));
    came.signal("-TERM");
    came.ends_with(0);
}

#[test]
fn what_has_arrived_is_there_again_after_a_restart() {
    let Place { application, mut out } = Place::start(&[]);
    let path = application.path("b");
    let mut there = application.arrive(&out.region(NAME), &path, &[]);
    there.line("complete: ");
    out.ends_with(0);
    let region = out.region(NAME);
    // What the origin's file holds is older, and is not offered again by mistake.
    let again = application.try_out();
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("has moved with everything"), "{again:?}");
    application.stop();
    there.signal("-TERM");
    there.ends_with(0);
    let mut again = application.arrive(&region, &path, &[]);
    assert!(again.line("arrived ").contains("everything was here already"));
    let committed = application.committed();
    wait_for("it goes on", || application.committed() > committed + 2);
    application.stop();
    application.check(&path);
    again.signal("-TERM");
    again.ends_with(0);
    application.leaves_nothing();
}

#[test]
fn a_destination_in_the_background_returns_when_the_application_runs() {
    let Place { application, mut out } = Place::start(&[]);
    let path = application.path("b");
    let mut started = application.arrive(&out.region(NAME), &path, &["--background", "-q"]);
    started.line("arrived ");
    started.ends_with(0);
    out.ends_with(0);
    let committed = application.committed();
    wait_for("it goes on", || application.committed() > committed + 2);
    application.stop();
    application.check(&path);
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    wait_for("the process in the background ends", || !path.exists());
}
