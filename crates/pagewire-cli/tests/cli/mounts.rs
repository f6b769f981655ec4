//! `pagewire mount` as a user meets it: how it comes and goes, and databases that outlive it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::driving::{Running, pagewire, pattern, run, stdout, wait_for};

/// Longer than anything here may take: whatever waits as long as this hangs.
const HANG: Duration = Duration::from_secs(20);

/// A process that mounts, and its mount: both are gone when this goes.
struct Mounted {
    child: Child,
    path: PathBuf,
}

impl Mounted {
    /// Mounts a region at `path`, and waits until it is there.
    fn start(region: &str, path: &Path, extra: &[&str]) -> Self {
        let place = path.to_str().unwrap();
        let args = [&["mount", region, place], extra].concat();
        let child = pagewire(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut mounted = Self { child, path: path.into() };
        let mut line = String::new();
        BufReader::new(mounted.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.starts_with("mounted ") {
            panic!("pagewire {args:?} said {line:?} and {:?}", mounted.errors());
        }
        mounted
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// How it ends, within a deadline.
    fn end(&mut self) -> ExitStatus {
        end(&mut self.child).expect("the mount does not end")
    }

    /// What it has said to standard error, once it has ended.
    fn errors(&mut self) -> String {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut text).unwrap();
        text
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What has ended well has left neither.
        let _ = self.child.kill();
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.path).stderr(Stdio::null()).status();
        end(&mut self.child);
    }
}

fn end(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + HANG;
    loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            status => return status,
        }
    }
}

/// What a command says, within a deadline: it is killed then, and the test fails.
fn output(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if end(&mut child).is_none() {
        let _ = child.kill();
        panic!("{command:?} hangs");
    }
    child.wait_with_output().unwrap()
}

/// What SQLite answers.
fn sqlite(database: &Path, statements: &str) -> String {
    let output = output(Command::new("sqlite3").args(["-batch", "-bail"]).arg(database).arg(statements));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{statements}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// A folder with a file that is served, and where to mount it.
struct Place {
    folder: tempfile::TempDir,
    server: Running,
    region: String,
    path: PathBuf,
}

impl Place {
    fn of(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::write(&store, bytes).unwrap();
        let server = Running::serve(&store);
        let region = format!("{}/file", server.address);
        let path = folder.path().join("mounted");
        Self { folder, server, region, path }
    }

    /// What the store holds: copied out by a command.
    fn bytes(&self) -> Vec<u8> {
        let copy = self.folder.path().join("copy");
        let ended = run(&["copy", &self.region, &format!("file:{}", copy.display()), "-q"]);
        assert!(ended.status.success(), "{ended:?}");
        std::fs::read(copy).unwrap()
    }
}

#[test]
fn signals_and_umount_flush_and_leave() {
    let mut bytes = pattern(300_000);
    let place = Place::of(&bytes);
    for (round, way) in ["-TERM", "-INT", "umount"].into_iter().enumerate() {
        let mut mounted = Mounted::start(&place.region, &place.path, &["--writable"]);
        assert!(std::fs::read(&place.path).unwrap() == bytes, "{way}");
        let file = std::fs::File::options().write(true).open(&place.path).unwrap();
        file.write_all_at(&[round as u8 + 1; 5000], 7777).unwrap();
        bytes[7777..12_777].fill(round as u8 + 1);
        drop(file);
        match way {
            "umount" => assert!(Command::new("umount").arg(&place.path).status().unwrap().success()),
            signal => mounted.signal(signal),
        }
        assert_eq!(mounted.end().code(), Some(0), "{way}: {}", mounted.errors());
        assert!(!is_mounted(&place.path) && !place.path.exists(), "{way}");
        assert!(place.bytes() == bytes, "{way}");
    }
}

#[test]
fn a_mount_in_use_that_is_told_to_end_says_who_uses_it() {
    let place = Place::of(&pattern(300_000));
    let mut mounted = Mounted::start(&place.region, &place.path, &[]);
    let mut user =
        Command::new("tail").args(["-c", "1", "-f"]).arg(&place.path).stdout(Stdio::piped()).spawn().unwrap();
    // It ends when nobody reads what it says.
    let mut says = user.stdout.take().unwrap();
    std::io::Read::read_exact(&mut says, &mut [0]).unwrap();
    mounted.signal("-TERM");
    let status = end(&mut mounted.child);
    let _ = user.kill();
    let _ = user.wait();
    assert_eq!(status.expect("it does not end").code(), Some(0));
    assert!(!is_mounted(&place.path));
    let errors = mounted.errors();
    assert!(errors.contains("tail") && errors.contains(&user.id().to_string()), "{errors}");
}

#[test]
fn a_mount_out_of_sight_serves_its_last_user_and_ends_when_it_is_told_to() {
    let bytes = pattern(300_000);
    let place = Place::of(&bytes);
    let mut mounted = Mounted::start(&place.region, &place.path, &["--writable", "--pull", "none"]);
    let file = std::fs::File::options().read(true).write(true).open(&place.path).unwrap();
    assert!(Command::new("umount").arg("-l").arg(&place.path).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(100));
    let mut read = vec![0; 5000];
    file.read_exact_at(&mut read, 200_000).unwrap();
    assert!(read == bytes[200_000..205_000]);
    file.write_all_at(&[5; 4096], 0).unwrap();
    file.sync_all().unwrap();
    mounted.signal("-TERM");
    assert_eq!(mounted.end().code(), Some(0));
    assert_eq!(place.bytes()[..4096], [5; 4096]);
}

#[test]
fn a_mount_that_was_killed_is_cleaned_up_by_the_next_one() {
    let bytes = pattern(8 << 20);
    let place = Place::of(&bytes);
    // With a background pull that is under way or done, known to the kernel or not.
    for rest in [0, 0, 20, 300] {
        let mut mounted = Mounted::start(&place.region, &place.path, &[]);
        assert_eq!(std::fs::metadata(&place.path).unwrap().len(), bytes.len() as u64);
        std::thread::sleep(Duration::from_millis(rest));
        mounted.child.kill().unwrap();
        mounted.end();
        assert!(is_mounted(&place.path), "a process that is killed takes down nothing");
        let read = output(Command::new("cat").arg(&place.path));
        assert!(!read.status.success(), "nobody answers");
        let mut again = Mounted::start(&place.region, &place.path, &[]);
        assert!(std::fs::read(&place.path).unwrap() == bytes);
        let second = run(&["mount", &place.region, place.path.to_str().unwrap()]);
        assert_eq!(second.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&second.stderr).contains("is mounted already"), "{second:?}");
        again.signal("-TERM");
        assert_eq!(again.end().code(), Some(0));
        assert!(!is_mounted(&place.path), "neither this one nor the dead one");
    }
}

/// Dirty pages of a program that lives on are lost with the mount, and nothing hangs.
#[test]
fn a_writable_mount_can_be_killed_at_any_time() {
    let place = Place::of(&pattern(8 << 20));
    let mut mounted = Mounted::start(&place.region, &place.path, &["--writable"]);
    let file = std::fs::File::options().write(true).open(&place.path).unwrap();
    file.write_all_at(&vec![5; 4 << 20], 0).unwrap();
    mounted.child.kill().unwrap();
    mounted.end();
    let failed = file.sync_all();
    assert!(failed.is_err(), "what was not flushed is lost, and that is told");
}

#[test]
fn a_mount_in_the_background_answers_when_the_command_returns() {
    let bytes = pattern(300_000);
    let place = Place::of(&bytes);
    let path = place.path.to_str().unwrap();
    let started = pagewire(&["mount", &place.region, path, "--background", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It goes with the test, whatever comes.
    let mut started = Mounted { child: started, path: place.path.clone() };
    assert_eq!(started.end().code(), Some(0));
    assert!(std::fs::read(&place.path).unwrap() == bytes);
    assert!(Command::new("umount").arg(&place.path).status().unwrap().success());
    let deadline = Instant::now() + HANG;
    while place.path.exists() {
        assert!(Instant::now() < deadline, "the process in the background does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let failed = run(&["mount", "pw://127.0.0.1:1/none", path, "--background", "--patience", "100ms"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
}

#[test]
fn a_mount_whose_server_is_gone_ends_after_the_patience() {
    let mut place = Place::of(&pattern(300_000));
    let mut mounted =
        Mounted::start(&place.region, &place.path, &["--writable", "--pull", "none", "--patience", "300ms"]);
    let file = std::fs::File::options().read(true).write(true).open(&place.path).unwrap();
    file.write_all_at(&[5; 4096], 0).unwrap();
    place.server.child.kill().unwrap();
    place.server.child.wait().unwrap();
    let read = output(
        Command::new("dd").arg(format!("if={}", place.path.display())).args(["of=/dev/null", "skip=500"]),
    );
    assert!(String::from_utf8_lossy(&read.stderr).contains("Input/output error"), "{read:?}");
    let synced = output(Command::new("sync").arg("-d").arg(&place.path));
    assert!(String::from_utf8_lossy(&synced.stderr).contains("Input/output error"), "{synced:?}");
    drop(file);
    mounted.signal("-TERM");
    assert_eq!(mounted.end().code(), Some(1), "what could not be flushed is a failure");
    assert!(!is_mounted(&place.path));
}

#[test]
fn a_trace_of_one_mount_is_the_order_of_the_next() {
    let bytes = pattern(2 << 20);
    let place = Place::of(&bytes);
    let trace = place.folder.path().join("trace");
    let trace = trace.to_str().unwrap();
    let mut mounted = Mounted::start(&place.region, &place.path, &["--trace", trace, "--read-ahead", "4KiB"]);
    let file = std::fs::File::open(&place.path).unwrap();
    for chunk in [20, 3, 31] {
        file.read_exact_at(&mut [0; 10], chunk * 65536).unwrap();
    }
    drop(file);
    mounted.signal("-TERM");
    assert_eq!(mounted.end().code(), Some(0));
    assert_eq!(std::fs::read_to_string(trace).unwrap(), "pagewire trace 1\nchunk 65536\n20\n3\n31\n");
    let pull = format!("trace:{trace}");
    let _mounted = Mounted::start(&place.region, &place.path, &["--pull", &pull]);
    assert!(std::fs::read(&place.path).unwrap() == bytes);
    let missing = run(&["mount", &place.region, "elsewhere", "--pull", "trace:/no/such/trace"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/trace"), "{missing:?}");
}

#[test]
fn a_mount_fills_its_cache_and_says_how_it_is_doing() {
    let bytes = pattern(2 << 20);
    let place = Place::of(&bytes);
    let (cache, path) = (place.folder.path().join("cache"), place.path.to_str().unwrap());
    let cache = cache.to_str().unwrap();
    for round in 0..2 {
        let mut mounted = Mounted::start(&place.region, &place.path, &["--pull", "none", "--cache", cache]);
        assert!(std::fs::read(&place.path).unwrap() == bytes, "round {round}");
        let status: serde_json::Value = serde_json::from_str(&stdout(&["info", path, "--json"])).unwrap();
        assert_eq!((status["length"].as_u64(), status["path"].as_str()), (Some(2 << 20), Some("page-cache")));
        assert_eq!(status["demand_bytes"], 2 << 20);
        let text = stdout(&["info", path]);
        assert!(text.contains("access       read, by the page cache"), "{text}");
        mounted.signal("-TERM");
        assert_eq!(mounted.end().code(), Some(0));
    }
    let staying = Mounted::start(&place.region, &place.path, &["--stay", "--cache", cache]);
    let way = "access       read, by the kernel, from the cache's file";
    wait_for("all is checked", || stdout(&["info", path]).contains(way));
    assert!(std::fs::read(&place.path).unwrap() == bytes);
    drop(staying);
    let described = stdout(&["info", &place.region, "--cache", cache, "--json"]);
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    assert_eq!(described["cache"]["present_bytes"], 2 << 20);
    let refused = run(&["mount", &place.server.address, path, "--cache", cache]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

/// What was committed is there, whatever is killed between transactions.
#[test]
fn databases_outlive_their_mounts_and_servers() {
    for journal in ["DELETE", "WAL"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, database) = (folder.path().join("store"), folder.path().join("db"));
        std::fs::write(&store, "").unwrap();
        let offer = format!("file=file:{}?capacity=16MiB", store.display());
        let mut listen = "pw://127.0.0.1:0".to_owned();
        let mut rows = 0;
        for round in 0..4 {
            let mut server = Running::start(&["serve", &offer, "--listen", &listen]);
            listen.clone_from(&server.address);
            let region = format!("{}/file", server.address);
            let mut mounted = Mounted::start(&region, &database, &["--writable"]);
            if round > 0 {
                assert_eq!(
                    sqlite(&database, "PRAGMA integrity_check; SELECT count(*), sum(length(x)) FROM t;"),
                    format!("ok\n{rows}|{}\n", rows * 500),
                    "{journal}, round {round}"
                );
            }
            let insert = "INSERT INTO t(x) SELECT randomblob(500) FROM generate_series(1, 200);";
            let settings =
                format!("PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL; PRAGMA mmap_size=16777216;");
            sqlite(
                &database,
                &format!("{settings} CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x);"),
            );
            for _ in 0..3 {
                sqlite(
                    &database,
                    &format!(
                        "{settings} BEGIN; {insert} COMMIT; BEGIN; {insert} UPDATE t SET x = 0; ROLLBACK;"
                    ),
                );
                rows += 200;
            }
            match round {
                0 => mounted.child.kill().unwrap(),
                1 => {
                    server.child.kill().unwrap();
                    server.child.wait().unwrap();
                    mounted.child.kill().unwrap();
                }
                _ => mounted.signal("-TERM"),
            }
            mounted.end();
            drop(server);
        }
    }
}

/// A mount namespace with a `/dev/fuse` that is for everybody, in which an ordinary user runs the rest of the arguments.
const AS_NOBODY: &str = r#"
mkdir "$1" && mount -t tmpfs -o dev none "$1" && mknod "$1/fuse" c 10 229 && chmod 666 "$1/fuse" &&
mount --bind "$1/fuse" /dev/fuse && shift &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@""#;

#[test]
fn an_ordinary_user_mounts_with_fusermount3() {
    let skip = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if skip.split(',').any(|name| name == "userfuse") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names userfuse");
        return;
    }
    let bytes = pattern(300_000);
    let place = Place::of(&bytes);
    let folder = place.folder.path();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).unwrap();
    // Where the build is may be closed to others.
    let binary = folder.join("pagewire");
    std::fs::copy(env!("CARGO_BIN_EXE_pagewire"), &binary).unwrap();
    let child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh"])
        .arg(folder.join("dev"))
        .arg(&binary)
        .args(["mount", &place.region, place.path.to_str().unwrap(), "--writable"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut mounted = Mounted { child, path: place.path.clone() };
    let mut line = String::new();
    BufReader::new(mounted.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("mounted "), "{line:?}: {}", mounted.errors());
    let pid = mounted.child.id().to_string();
    let as_nobody = |script: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid, "setpriv", "--reuid=65534", "--regid=65534"]);
        command.args(["--clear-groups", "--", "sh", "-c", script, "sh"]).arg(&place.path);
        output(&mut command)
    };
    let same =
        as_nobody(r#"head -c 1000 "$1" | sha256sum && printf changed | dd of="$1" conv=notrunc,fsync"#);
    assert!(same.status.success(), "{same:?}");
    mounted.signal("-TERM");
    assert_eq!(mounted.end().code(), Some(0), "{}", mounted.errors());
    let mut expected = bytes;
    expected[..7].copy_from_slice(b"changed");
    assert!(place.bytes() == expected);
}
