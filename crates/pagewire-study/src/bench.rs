//! What the benchmarks share: the command line, and rows of figures against a baseline.
//!
//! Each round measures Pagewire and then its baseline, so that what else the machine does meets both; a
//! row's ratio is the median of its rounds' ratios.

mod options;
mod table;

use std::process::ExitCode;

pub use options::{Asked, Options};
pub use table::{Row, Target, json, text};

/// Whatever went wrong, for whoever reads the terminal.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The whole of a benchmark: reads the command line, measures the rows that are wanted, and prints them.
pub fn run(name: &str, usage: &str, measure: impl FnOnce(&Options) -> Result<Vec<Row>, Failure>) -> ExitCode {
    crate::log::start();
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            println!("{usage}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{usage}");
            return ExitCode::from(2);
        }
    };
    match print(&options, measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(
    options: &Options,
    measure: impl FnOnce(&Options) -> Result<Vec<Row>, Failure>,
) -> Result<(), Failure> {
    let machine = machine();
    if !options.json {
        println!("{machine}");
        println!("a region of {}, {} rounds\n", pagewire::address::format_size(options.size), options.rounds);
    }
    let mut rows = measure(options)?;
    rows.retain(|row| options.wants(&row.name));
    if options.json {
        println!("{}", json(&rows, &machine, options)?);
    } else {
        print!("{}", text(&rows));
    }
    Ok(())
}

/// This machine, in a line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (model, total) = (field(&cpu, "model name"), field(&memory, "MemTotal"));
    format!("{cores} cores, {model}, memory {total}, Linux {}", kernel.trim())
}
