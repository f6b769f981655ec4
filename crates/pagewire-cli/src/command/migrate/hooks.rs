//! Suspending an application and having it go on: by the commands that a user gives, by signals to processes, or by
//! both.
//!
//! A command has a process group of its own, which is killed when it takes too long; and its shell is killed with this
//! process, so that it resumes nothing when nobody waits for it any more. What it starts may outlive it: so it
//! has no pipe of ours, and blocks no signal.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pagewire::engine::migration::Application;
use pagewire::{Error, ErrorKind, Result};
use pagewire_sys::event::{PidFd, PollItem, poll};
use pagewire_sys::process::{SIGCONT, SIGKILL, SIGSTOP, is_stopped, kill_group, kill_with_thread, signal};
use pagewire_sys::signals::unblock_all_in;

use crate::args::Hooks;

/// How often to look whether a process is stopped: a signal takes a moment to arrive.
const LOOK: Duration = Duration::from_micros(200);

/// Which side of a migration this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Origin,
    Destination,
}

/// Which migration is under way, as far as that is known.
type WhichMigration = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// An application that is suspended and goes on as a user says.
pub(super) struct Hooked {
    hooks: Hooks,
    role: Role,
    names: Vec<String>,
    paths: Vec<PathBuf>,
    processes: Vec<Process>,
    migration: OnceLock<WhichMigration>,
}

struct Process {
    pid: u32,
    descriptor: PidFd,
}

impl Hooked {
    /// The application of regions with these names, at these paths.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where there is no process that is named.
    pub(super) fn new(hooks: &Hooks, role: Role, names: Vec<String>, paths: Vec<PathBuf>) -> Result<Self> {
        let open = |&pid: &u32| {
            let descriptor = PidFd::open(pid).map_err(|error| {
                let text = format!("there is no process {pid} to be suspended");
                Error::new(ErrorKind::NotFound, text).because(error)
            })?;
            Ok(Process { pid, descriptor })
        };
        let processes = match role {
            Role::Origin => hooks.suspend_pid.iter().map(open).collect::<Result<_>>()?,
            Role::Destination => Vec::new(),
        };
        Ok(Self { hooks: hooks.clone(), role, names, paths, processes, migration: OnceLock::new() })
    }

    /// Says how to find out which migration is under way, which commands are told.
    pub(super) fn know_migration(&self, which: impl Fn() -> Option<String> + Send + Sync + 'static) {
        // It is said once.
        let _ = self.migration.set(Box::new(which));
    }

    /// Has the application go on.
    ///
    /// # Errors
    ///
    /// What keeps it from going on, as far as that can be told.
    pub(super) fn go_on(&self) -> Result<()> {
        for process in &self.processes {
            if let Err(error) = signal(&process.descriptor, SIGCONT) {
                tracing::warn!(process = process.pid, %error, "cannot continue a process");
            }
        }
        self.hooks.on_resume.as_ref().map_or(Ok(()), |command| self.run("--on-resume", command))
    }

    /// Runs a command, and waits for its end.
    fn run(&self, option: &str, command: &str) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(format!("cannot run the command of {option}"), &error);
        let lines = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join("\n");
        let role = match self.role {
            Role::Origin => "origin",
            Role::Destination => "destination",
        };
        let migration = self.migration.get().and_then(|which| which()).unwrap_or_default();
        tracing::info!(option, command, migration, "a command is run");
        // Standard output is for results.
        let said = std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .env("PAGEWIRE_MIGRATION", migration)
            .env("PAGEWIRE_ROLE", role)
            .env("PAGEWIRE_REGIONS", lines(&mut self.names.iter().cloned()))
            .env("PAGEWIRE_PATHS", lines(&mut self.paths.iter().map(|path| path.display().to_string())))
            .stdin(Stdio::null())
            .stdout(said)
            .process_group(0);
        let mut child = kill_with_thread(unblock_all_in(&mut shell)).spawn().map_err(failed)?;
        let ended = PidFd::open(child.id()).map_err(failed).and_then(|process| {
            let mut items = [PollItem::readable(process.as_fd())];
            poll(&mut items, Some(self.hooks.hook_timeout)).map_err(failed)
        });
        if !matches!(ended, Ok(1..)) {
            // It has no process left, or those are gone now.
            let _ = kill_group(child.id());
        }
        let status = child.wait().map_err(failed)?;
        match ended? {
            0 => {
                let text = format!(
                    "the command of {option} took longer than {:?} and was killed",
                    self.hooks.hook_timeout
                );
                Err(Error::new(ErrorKind::Io, text))
            }
            _ if status.success() => Ok(()),
            _ => Err(Error::new(ErrorKind::Io, format!("the command of {option} failed: {status}"))),
        }
    }

    /// Stops the processes, and waits until none of their threads runs.
    fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + self.hooks.hook_timeout;
        for process in &self.processes {
            match signal(&process.descriptor, SIGSTOP) {
                Err(error) if !process.has_ended() => {
                    return Err(Error::io(format!("cannot suspend process {}", process.pid), &error));
                }
                _ => {}
            }
        }
        for process in &self.processes {
            while !process.has_ended() {
                let stopped = is_stopped(process.pid);
                // The number may be another process's by now.
                if stopped.is_ok_and(|stopped| stopped) {
                    break;
                }
                if Instant::now() > deadline {
                    let text =
                        format!("process {} does not stop within {:?}", process.pid, self.hooks.hook_timeout);
                    return Err(Error::new(ErrorKind::Io, text));
                }
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }
}

impl Process {
    fn has_ended(&self) -> bool {
        poll(&mut [PollItem::readable(self.descriptor.as_fd())], Some(Duration::ZERO))
            .is_ok_and(|ready| ready > 0)
    }
}

impl Application for Hooked {
    fn suspend(&self) -> Result<()> {
        if let Some(command) = &self.hooks.on_suspend {
            self.run("--on-suspend", command)?;
        }
        self.stop()
    }

    fn resume(&self) {
        match self.go_on() {
            Ok(()) => tracing::warn!("the migration was given up; the application goes on here"),
            Err(error) => {
                tracing::error!(%error, "the migration was given up, and the application could not be resumed here: resume it by hand");
            }
        }
    }

    fn moved(&self) {
        for process in self.processes.iter().filter(|process| !process.has_ended()) {
            tracing::info!(process = process.pid, "its regions have moved; it is killed");
            if let Err(error) = signal(&process.descriptor, SIGKILL) {
                tracing::error!(process = process.pid, %error, "cannot kill a process whose regions have moved");
            }
        }
    }
}
