//! The guest's kernel and its modules: those of a package of Debian, unpacked into the cache and never installed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{failed, output};

/// What the packages are called that `./test` puts into the cache.
const PACKAGE: (&str, &str) = ("linux-image-", ".deb");

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// What to boot.
    pub(crate) image: PathBuf,
    /// As it calls itself.
    pub(crate) version: String,
    modules: PathBuf,
    unpacked: PathBuf,
}

/// A module, unpacked: its name, where it is, and what to tell it.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) parameters: String,
}

impl Kernel {
    /// The kernel of the newest package in the cache, which is unpacked if it was not yet. Nobody else is to be at it.
    pub(crate) fn unpack(cache: &Path) -> io::Result<Self> {
        let mut packages: Vec<PathBuf> = fs::read_dir(cache)?.flatten().map(|entry| entry.path()).collect();
        packages.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(PACKAGE.0) && name.ends_with(PACKAGE.1)
        });
        let newest = packages
            .into_iter()
            .max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok());
        let Some(package) = newest else {
            let text = format!("there is no kernel package in {}: ./test fetches one", cache.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        let folder = package.with_extension("");
        if !folder.exists() {
            let new = package.with_extension("new");
            let _left_over = fs::remove_dir_all(&new);
            output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&new))?;
            fs::rename(&new, &folder)?;
        }
        Self::in_folder(&folder).map_err(|error| failed(&package, &error))
    }

    fn in_folder(folder: &Path) -> io::Result<Self> {
        let only = |folder: PathBuf| -> io::Result<PathBuf> {
            let found = fs::read_dir(&folder)?.flatten().next().map(|entry| entry.path());
            found.ok_or_else(|| io::Error::other(format!("{} is empty", folder.display())))
        };
        // Where the file systems of the system were merged, packages have it below usr.
        let modules = only(folder.join("lib/modules")).or_else(|_| only(folder.join("usr/lib/modules")))?;
        let version = modules.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let image = folder.join("boot").join(format!("vmlinuz-{version}"));
        Ok(Self { image, version, modules, unpacked: folder.join("unpacked") })
    }

    /// The modules that are asked for, `NAME PARAMETERS` each, in front of each those that it needs. What is built into
    /// the kernel is left out.
    pub(crate) fn modules(&self, asked: &[String]) -> io::Result<Vec<Module>> {
        let mut files = Vec::new();
        files_below(&self.modules, &mut files)?;
        let builtin = fs::read_to_string(self.modules.join("modules.builtin"))?;
        let mut found = Vec::new();
        for asked in asked {
            let (name, parameters) = asked.split_once(' ').unwrap_or((asked, ""));
            self.add(name, parameters, &files, &builtin, &mut found)?;
        }
        Ok(found)
    }

    fn add(
        &self,
        name: &str,
        parameters: &str,
        files: &[PathBuf],
        builtin: &str,
        found: &mut Vec<Module>,
    ) -> io::Result<()> {
        let name = name.replace('-', "_");
        if found.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(file) = files.iter().find(|path| module_name(path).as_deref() == Some(&*name)) else {
            if builtin.lines().any(|line| module_name(Path::new(line)).as_deref() == Some(&*name)) {
                return Ok(());
            }
            return Err(io::Error::other(format!("Linux {} has no module {name}", self.version)));
        };
        let path = self.unpacked.join(format!("{name}.ko"));
        if !path.exists() {
            fs::create_dir_all(&self.unpacked)?;
            let new = path.with_extension("new");
            decompress(file, &new)?;
            fs::rename(&new, &path)?;
        }
        for needed in needed_by(&fs::read(&path)?) {
            self.add(&needed, "", files, builtin, found)?;
        }
        found.push(Module { name, path, parameters: parameters.into() });
        Ok(())
    }
}

/// The name of the module in a file, without what it is compressed with.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn decompress(file: &Path, to: &Path) -> io::Result<()> {
    let program = match file.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::copy(file, to).map(drop),
    };
    let mut command = Command::new(program);
    let status = command.arg("-dc").arg(file).stdin(Stdio::null()).stdout(File::create(to)?).status();
    match status.map_err(|error| failed(Path::new(program), &error))? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("{program} -dc {} ended with {status}", file.display()))),
    }
}

/// The modules that one says it needs.
fn needed_by(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(needed_by(b"license=GPL\0depends=a,b\0name=c\0"), ["a", "b"]);
        assert!(needed_by(b"license=GPL\0depends=\0name=c\0").is_empty());
        assert!(needed_by(b"").is_empty());
    }

    #[test]
    fn modules_have_one_name_however_they_are_written() {
        assert_eq!(module_name(Path::new("kernel/net/sch-netem.ko.xz")).as_deref(), Some("sch_netem"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
