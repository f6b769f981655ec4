//! The clients, and what each of them has reached.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_study::bench::Failure;
use pagewire_study::nbd::copy_process;

use crate::peers::Served;

fn rate(size: u64, took: Duration) -> f64 {
    size as f64 / took.as_secs_f64() / 1e9
}

/// nbdcopy of everything to nowhere, in GB/s.
pub(crate) fn nbdcopy_to_null(served: &Served, size: u64) -> Result<f64, Failure> {
    nbdcopy(&[&served.uri, "null:"]).map(|took| rate(size, took))
}

/// nbdcopy of everything to a file, in GB/s.
pub(crate) fn nbdcopy_to_file(served: &Served, target: &Path, size: u64) -> Result<f64, Failure> {
    let _ = std::fs::remove_file(target);
    nbdcopy(&[&served.uri, &target.display().to_string()]).map(|took| rate(size, took))
}

fn nbdcopy(arguments: &[&str]) -> Result<Duration, Failure> {
    let begun = Instant::now();
    let status = Command::new("nbdcopy").args(arguments).status()?;
    if status.success() { Ok(begun.elapsed()) } else { Err(format!("nbdcopy ended with {status}").into()) }
}

/// Our copy of everything to a file, in GB/s.
pub(crate) fn copy_to_file(served: &Served, target: &Path, size: u64) -> Result<f64, Failure> {
    let _ = std::fs::remove_file(target);
    let to = format!("file:{}?size={size}&journal=off", target.display());
    Ok(rate(size, copy_process(&served.uri, &to)?))
}

/// What fio does with its nbd engine.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fio {
    /// 4 KiB here and there, so many at once.
    RandRead(u32),
    /// The same, written.
    RandWrite(u32),
    /// 1 MiB in order, written.
    Write,
}

impl Fio {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fio::RandRead(1) => "randread-1",
            Fio::RandRead(_) => "randread-16",
            Fio::RandWrite(_) => "randwrite-16",
            Fio::Write => "write-1m",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        if matches!(self, Fio::Write) { "GB/s" } else { "kIOPS" }
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Fio::RandRead(_))
    }

    pub(crate) fn run(self, served: &Served, size: u64) -> Result<f64, Failure> {
        let (kind, depth, block) = match self {
            Fio::RandRead(depth) => ("randread", depth, 4096),
            Fio::RandWrite(depth) => ("randwrite", depth, 4096),
            Fio::Write => ("write", 4, 1 << 20),
        };
        let mut fio = Command::new("fio");
        fio.args(["--name=x", "--ioengine=nbd", "--output-format=json", "--time_based", "--runtime=3"]);
        fio.args(["--randrepeat=1", "--norandommap", &format!("--uri={}", served.uri)]);
        fio.args([format!("--rw={kind}"), format!("--iodepth={depth}")]);
        fio.args([format!("--bs={block}"), format!("--size={size}")]);
        let output = fio.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("fio ended with {}", output.status).into());
        }
        // What libraries have said before it is no JSON.
        let begin = output.stdout.iter().position(|byte| *byte == b'{').ok_or("fio says nothing")?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout[begin..])?;
        let job = &said["jobs"][0][if self.writes() { "write" } else { "read" }];
        let iops = job["iops"].as_f64().ok_or("fio does not tell its IOPS")?;
        Ok(if matches!(self, Fio::Write) { iops * f64::from(block) / 1e9 } else { iops / 1e3 })
    }
}
