//! The emulated machine, and what comes back from it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failed;

/// The emulator.
const PROGRAM: &str = "qemu-system-x86_64";

/// Everything that can be emulated but one instruction: with it, some boots on several processors end in a double
/// fault where the kernel allocates memory (Linux 6.12 under qemu 7.2).
const PROCESSOR: &str = "max,cx16=off";

/// How long the kernel may take until it runs the first process.
const BOOTING: Duration = Duration::from_secs(60);

/// How often a boot is tried that ends before the first process: that is the emulator's fault, and nobody else's.
const BOOTS: usize = 3;

/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// A machine.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Where everything goes that the kernel says, and all that scenarios do.
    pub(crate) console: &'a Path,
    /// Where it is told how scenarios have ended.
    pub(crate) results: &'a Path,
    pub(crate) memory: u32,
    /// How long it may take altogether.
    pub(crate) deadline: Duration,
}

/// How a scenario has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status of its script; 137 where it was killed since it took too long.
    pub status: i32,
    /// What it has said, on standard output and standard error.
    pub output: String,
}

/// What became of a boot.
#[derive(Debug)]
pub struct Report {
    pub(crate) outcomes: BTreeMap<String, Outcome>,
    /// Why there is no more, where something is missing.
    pub(crate) trouble: Option<String>,
    /// Where the console is, if something has failed.
    pub(crate) console: Option<PathBuf>,
    pub(crate) names: Vec<String>,
}

impl Report {
    /// How a scenario has ended; none where it was not asked for.
    ///
    /// # Panics
    ///
    /// If the machine has ended before it.
    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        if !self.names.iter().any(|known| known == name) {
            eprintln!("SKIPPED: PAGEWIRE_GUEST_ONLY does not name {name}");
            return None;
        }
        let outcome = self.outcomes.get(name);
        let trouble = self.trouble.as_deref().unwrap_or("it was not told");
        Some(outcome.unwrap_or_else(|| panic!("{name} has no end: {trouble}{}", self.kept())))
    }

    /// Makes sure that a scenario has ended well, and answers what it has said.
    ///
    /// # Panics
    ///
    /// If it has not.
    pub fn assert(&self, name: &str) -> &str {
        let Some(outcome) = self.outcome(name) else { return "" };
        let Outcome { status, output } = outcome;
        assert!(*status == 0, "{name} ended with status {status}{}:\n{output}", self.kept());
        output
    }

    fn kept(&self) -> String {
        let console = self.console.as_ref();
        console.map(|path| format!(" (the console is in {})", path.display())).unwrap_or_default()
    }
}

impl Machine<'_> {
    /// Boots it, and waits until it is over. The second answer is what has gone wrong with the machine.
    pub(crate) fn run(&self, names: &[String]) -> io::Result<(BTreeMap<String, Outcome>, Option<String>)> {
        let mut boots = 1;
        loop {
            let trouble = self.boot()?;
            let results = fs::read(self.results)?;
            if !results.starts_with(b"ready\n") && boots < BOOTS {
                boots += 1;
                eprintln!("the guest did not come up; it is booted again");
                continue;
            }
            let (outcomes, is_over) = parse(&results);
            let trouble = match trouble {
                Some(trouble) => Some(trouble),
                None if is_over && names.iter().all(|name| outcomes.contains_key(name)) => None,
                None => Some(match results.is_empty() {
                    true => "the kernel did not come up".into(),
                    false => "the machine has ended before it was over".into(),
                }),
            };
            return Ok((outcomes, trouble));
        }
    }

    fn boot(&self) -> io::Result<Option<String>> {
        File::create(self.results)?;
        let mut qemu = Running(self.command().spawn().map_err(|error| failed(Path::new(PROGRAM), &error))?);
        let since = Instant::now();
        let mut is_up = false;
        loop {
            if let Some(status) = qemu.0.try_wait()? {
                return Ok((!status.success()).then(|| format!("{PROGRAM} ended with {status}")));
            }
            is_up = is_up || fs::metadata(self.results)?.len() > 0;
            if since.elapsed() > if is_up { self.deadline } else { BOOTING } {
                return Ok(Some(format!("the machine was killed after {} s", since.elapsed().as_secs())));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn command(&self) -> Command {
        // It ends with the thread that has started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", PROGRAM]);
        command.args(["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2"]);
        command.args(["-m", &self.memory.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        command.args(["-append", "console=ttyS0 panic=-1"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        command.arg("-device").arg("virtio-serial-pci");
        command.arg("-chardev").arg(format!("file,id=results,path={}", self.results.display()));
        command.args(["-device", "virtserialport,chardev=results,name=results"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    }
}

/// The emulator, which ends when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads what the first process has told. The second answer is whether it has told that it is over.
fn parse(results: &[u8]) -> (BTreeMap<String, Outcome>, bool) {
    let mut outcomes = BTreeMap::new();
    let mut rest = results;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["over"] => return (outcomes, true),
            ["end", name, status, length] => {
                let (Ok(status), Ok(length)) = (status.parse(), length.parse::<usize>()) else { break };
                let Some((output, behind)) = rest.split_at_checked(length) else { break };
                rest = behind;
                let output = String::from_utf8_lossy(output).into_owned();
                outcomes.insert(name.to_owned(), Outcome { status, output });
            }
            _ => {}
        }
    }
    (outcomes, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scenarios_say_is_not_taken_for_what_is_told_of_them() {
        let said = "end b 0 0\nover\n";
        let text = format!("ready\nbegin a\nend a 3 {}\n{said}begin b\nend b 0 2\nokover\n", said.len());
        let (outcomes, is_over) = parse(text.as_bytes());
        assert!(is_over);
        assert_eq!(outcomes["a"], Outcome { status: 3, output: said.into() });
        assert_eq!(outcomes["b"], Outcome { status: 0, output: "ok".into() });
    }

    #[test]
    fn what_was_cut_off_is_not_there() {
        for text in ["", "ready\nbegin a\nend a 0 10\nabc", "ready\nend a 0", "ready\nend a x y\n"] {
            assert_eq!(parse(text.as_bytes()), (BTreeMap::new(), false), "{text}");
        }
    }
}
