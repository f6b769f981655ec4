//! This very program, started again as a server: what is measured between two processes needs two.
//!
//! The parent starts it with a hidden first argument, the role; the child says where it listens on
//! its standard output, and answers what processor time it has used. It ends when its standard input
//! does, so it never outlives its parent, however that ends.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_sys::event::{PollItem, poll};
use pagewire_sys::net::NetNamespace;

/// How long a process that was asked something may take: one that has been stopped is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server process, which is ended when this is dropped.
pub(crate) struct Child {
    process: std::process::Child,
    /// Taken when the child is to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    address: String,
}

impl Child {
    /// Starts this program in a role, inside `namespace` if there is one, and waits until it listens.
    ///
    /// # Errors
    ///
    /// Where the program cannot be started, or ends before it listens: its `main` must begin with a
    /// look at the role.
    pub(crate) fn start(
        role: &str,
        arguments: &[&OsStr],
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        let mut child = Self::spawn(role, arguments, namespace)?;
        child.address = child.line()?;
        Ok(child)
    }

    /// Starts this program in a role, and waits for nothing.
    ///
    /// # Errors
    ///
    /// Where the program cannot be started.
    pub(crate) fn spawn(
        role: &str,
        arguments: &[&OsStr],
        namespace: Option<&NetNamespace>,
    ) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A process is where the thread is that starts it.
        let mut process = match namespace {
            Some(namespace) => namespace.run(|| command.spawn())??,
            None => command.spawn()?,
        };
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let output = BufReader::new(output.expect("it was asked for"));
        Ok(Self { process, input, output, address: String::new() })
    }

    /// Says a line to it.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.input.as_mut().expect("taken on drop only"), "{line}")
    }

    /// The next line that it says, if it comes in time.
    ///
    /// # Errors
    ///
    /// Timed out; unexpected end of file where it has ended.
    pub(crate) fn hear(&mut self, within: Duration) -> io::Result<String> {
        let deadline = Instant::now() + within;
        // A line is written at once: where there is a part of one, the rest is about to come.
        if self.output.buffer().is_empty() {
            let mut items = [PollItem::readable(self.output.get_ref().as_fd())];
            if poll(&mut items, Some(deadline.saturating_duration_since(Instant::now())))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        self.line()
    }

    /// How it has ended: waits for that, if it has said all that it has to say.
    ///
    /// # Errors
    ///
    /// What wait answers.
    pub(crate) fn status(&mut self) -> io::Result<std::process::ExitStatus> {
        self.process.wait()
    }

    /// Where it listens, as it said.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Its process number.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Processor time that it has used since it started.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub(crate) fn cpu(&mut self) -> io::Result<Duration> {
        self.say("")?;
        let nanoseconds = self.hear(PATIENCE)?.parse().map_err(io::Error::other)?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// What it answers to a line: its processor time, unless its role is to say something else.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        self.say("")?;
        self.line()
    }

    /// Has it end by itself, and waits for that.
    ///
    /// # Errors
    ///
    /// Where it fails.
    pub(crate) fn end(mut self) -> io::Result<()> {
        drop(self.input.take());
        let status = self.process.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("a process ended with {status}")))
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let text = "the server process has ended; does this program's main begin with serve_if_asked?";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends by itself, and has nothing to put away; one that hangs is not waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The arguments behind the role, if this process was started in it.
pub(crate) fn arguments_of(role: &str) -> Option<Vec<OsString>> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == role).then(|| arguments.collect())
}

/// Runs the server of a role and ends the process: with 0 when the parent has gone.
pub(crate) fn run(serve: impl FnOnce() -> io::Result<()>) -> ! {
    crate::log::start();
    match serve() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("a server process fails: {error}");
            std::process::exit(1)
        }
    }
}

/// Tells the parent where this process listens, and answers it until it has gone.
///
/// # Errors
///
/// Where the parent cannot be told.
pub(crate) fn listening(address: impl std::fmt::Display) -> io::Result<()> {
    answering(address, || Ok(crate::usage::own_cpu()?.as_nanos().to_string()))
}

/// The same for a role that answers something else.
///
/// # Errors
///
/// Where the parent cannot be told, or the answer cannot be had.
pub(crate) fn answering(
    address: impl std::fmt::Display,
    answer: impl Fn() -> io::Result<String>,
) -> io::Result<()> {
    println!("{address}");
    for line in io::stdin().lines() {
        line?;
        println!("{}", answer()?);
    }
    Ok(())
}
