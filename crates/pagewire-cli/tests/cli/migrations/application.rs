//! The application that moves: commits rows to a database, each of which depends on the one before, and takes note of
//! each outside. Shell scripts start and stop it, as a service manager would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::side::{HANG, Side, mounts_in};
use crate::driving::{run, wait_for};

/// The name of the database's region.
pub(super) const NAME: &str = "db";

/// What a row has of the one before it.
const NEXT: &str = "INSERT INTO t SELECT n + 1, (s * 31 + n + 1) % 1000003, randomblob(2000) FROM t \
                    WHERE n = (SELECT max(n) FROM t);";

pub(super) struct Application {
    folder: tempfile::TempDir,
}

impl Application {
    /// One that does not run yet.
    pub(super) fn new() -> Self {
        let application = Self { folder: tempfile::tempdir().unwrap() };
        let folder = application.folder().display();
        // It looks whether it is to stop between two transactions, as one would that is told to end.
        let app = format!(
            "cd {folder}; while [ ! -e stop ] && [ -e app.sh ]; do \
             n=$(sqlite3 -batch -bail \"$1\" 'PRAGMA synchronous=FULL; {NEXT} SELECT max(n) FROM t;') || break; \
             echo $n >> committed; done; echo > stopped"
        );
        // To be started where it runs does no harm: whoever takes the mark away that it does not run, starts it.
        let start = format!(
            "cd {folder}; rm -f stop; rm stopped 2> /dev/null || exit 0; setsid sh app.sh \"${{PAGEWIRE_PATHS:-$1}}\" < /dev/null > /dev/null 2>> app.errors &"
        );
        let stop = format!("cd {folder}; echo > stop; while [ ! -e stopped ]; do sleep 0.01; done");
        for (name, script) in [("app.sh", app), ("start.sh", start), ("stop.sh", stop)] {
            std::fs::write(application.path(name), script).unwrap();
        }
        std::fs::write(application.path("committed"), "").unwrap();
        std::fs::write(application.path("stopped"), "").unwrap();
        let database = application.path("a.store");
        sqlite(&database, "CREATE TABLE t(n INTEGER PRIMARY KEY, s, x); INSERT INTO t VALUES(0, 1, '');");
        application
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What starts it, and what stops it.
    pub(super) fn script(&self, name: &str) -> String {
        format!("sh {}", self.path(&format!("{name}.sh")).display())
    }

    /// The address of the store of a place.
    pub(super) fn store_of(&self, place: &str) -> String {
        format!("file:{}", self.path(&format!("{place}.store")).display())
    }

    /// The record of a side.
    pub(super) fn record(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The words that offer the database at the place `a`; its commands are said behind them.
    fn offer(&self) -> [String; 7] {
        let (offer, path) = (format!("{NAME}={}?capacity=32MiB", self.store_of("a")), self.record("a"));
        ["migrate", "out", &offer, "--mount", &path, "--listen", "pw://127.0.0.1:0"].map(str::to_owned)
    }

    /// Offers the database at the place `a`, whose commands may be said otherwise.
    pub(super) fn out(&self, extra: &[&str]) -> Side {
        let (offer, stop, start) = (self.offer(), self.script("stop"), self.script("start"));
        let mut args = vec!["--on-resume", &start];
        if !extra.contains(&"--on-suspend") {
            args.extend(["--on-suspend", &stop]);
        }
        let offer = offer.each_ref().map(String::as_str);
        let mut side = Side::start(self.folder(), &[&offer, &args[..], extra].concat());
        side.line("listening ");
        side
    }

    /// The same, where that fails.
    pub(super) fn try_out(&self) -> Output {
        let offer = self.offer();
        run(&[&offer.each_ref().map(String::as_str), &["--on-suspend", "true"][..]].concat())
    }

    /// Takes the database over.
    pub(super) fn arrive(&self, region: &str, path: &Path, extra: &[&str]) -> Side {
        let (stop, start) = (self.script("stop"), self.script("start"));
        let mut args = vec!["migrate", "in", region, path.to_str().unwrap(), "--on-suspend", &stop];
        if !extra.contains(&"--on-resume") {
            args.extend(["--on-resume", &start]);
        }
        Side::start(self.folder(), &[&args, extra].concat())
    }

    /// Goes on with what a record tells of.
    pub(super) fn resume(&self, record: &str) -> Side {
        Side::start(self.folder(), &["migrate", "resume", record])
    }

    /// Starts it at a place.
    pub(super) fn go_on(&self, path: &Path) {
        let start = self.script("start");
        let started = Command::new("sh").args(["-c", &format!("{start} {}", path.display())]).status();
        assert!(started.unwrap().success());
    }

    /// Stops it between two transactions.
    pub(super) fn stop(&self) {
        std::fs::write(self.path("stop"), "").unwrap();
        wait_for("the application stops", || self.path("stopped").exists());
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.path("stopped").exists()
    }

    /// The last row that it knows to be committed.
    pub(super) fn committed(&self) -> u64 {
        let text = std::fs::read_to_string(self.path("committed")).unwrap();
        text.lines().rev().find_map(|line| line.parse().ok()).unwrap_or(0)
    }

    pub(super) fn wait_for_commits(&self, more: u64) {
        let before = self.committed();
        wait_for("it commits", || self.committed() >= before + more);
    }

    /// Whether the database at `path` has each row once, and all that were committed, while it does not run.
    pub(super) fn check(&self, path: &Path) {
        assert!(self.is_stopped());
        assert_eq!(sqlite(path, "PRAGMA integrity_check;"), "ok\n");
        let rows = sqlite(path, "SELECT n, s FROM t ORDER BY n;");
        let (mut last, mut sum) = (0, 1u64);
        for (line, n) in rows.lines().zip(0u64..) {
            if n > 0 {
                sum = (sum * 31 + n) % 1_000_003;
            }
            assert_eq!(line, format!("{n}|{sum}"));
            last = n;
        }
        let text = std::fs::read_to_string(self.path("committed")).unwrap();
        let errors = std::fs::read_to_string(self.path("app.errors")).unwrap_or_default();
        let committed: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(committed.is_sorted_by(|one, next| one < next), "{committed:?}");
        let noted = committed.last().copied().unwrap_or(0);
        // One may have been committed and not noted, for each time that it was killed.
        assert!(last >= noted && last - noted <= 1, "row {noted} of {last}: {errors}");
    }

    /// It runs at `path`, where `side` serves it, and stops; it has everything, and nothing is left behind.
    pub(super) fn runs_and_ends(&self, path: &Path, side: &mut Side) {
        self.wait_for_commits(2);
        self.stop();
        self.check(path);
        side.signal("-TERM");
        side.ends_with(0);
        self.leaves_nothing();
    }

    /// Nothing is mounted, or left of a mount.
    pub(super) fn leaves_nothing(&self) {
        assert_eq!(mounts_in(self.folder()), Vec::<PathBuf>::new());
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // It ends by itself then, also where it was started a moment ago.
        let _ = std::fs::write(self.path("stop"), "");
        let _ = std::fs::remove_file(self.path("app.sh"));
        for place in mounts_in(self.folder()) {
            let _ = Command::new("umount").args(["-q", "-f", "-l"]).arg(place).stderr(Stdio::null()).status();
        }
        let deadline = std::time::Instant::now() + HANG;
        while !self.path("stopped").exists() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// What SQLite answers.
pub(super) fn sqlite(database: &Path, statements: &str) -> String {
    let mut command = Command::new("timeout");
    command.args(["20", "sqlite3", "-batch", "-bail"]).arg(database).arg(statements);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{statements}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
