//! Debian packages without installing them.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{PrepareError, io_error, output};

/// apt with the system's sources and, where the system's package lists are
/// missing or too old, with lists of our own in `dir`.
pub struct Apt {
    dir: PathBuf,
}

/// Which package lists to use.
#[derive(Clone, Copy)]
enum Lists {
    System,
    Own,
}

impl Apt {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The package whose name begins with `prefix`: the one itself, or what a
    /// metapackage depends on.
    pub fn resolve(&self, package: &str, prefix: &str) -> Result<String, PrepareError> {
        self.with_either(|lists| {
            let depends = self.run("apt-cache", lists, &["depends", "--important", package])?;
            let concrete = depends
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .find(|name| name.starts_with(prefix));
            Ok(concrete.unwrap_or(package).to_owned())
        })
    }

    /// Unpacks those files of a package that match `pattern` into `to`.
    pub fn unpack(&self, package: &str, pattern: &str, to: &Path) -> Result<(), PrepareError> {
        self.unpack_all(package, &[pattern], to)
    }

    /// As [`Apt::unpack`]; there has to be a file for each pattern.
    pub fn unpack_all(
        &self,
        package: &str,
        patterns: &[&str],
        to: &Path,
    ) -> Result<(), PrepareError> {
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(to).map_err(io_error(to))?;
        eprintln!("domus: fetching {package} through apt ({ARCH}; not installed)");
        let deb = self.with_either(|lists| self.download(lists, package, to))?;
        let mut tar = Command::new("dpkg-deb");
        tar.arg("--fsys-tarfile").arg(&deb).stdout(Stdio::piped());
        let failed = |why: String| PrepareError::Command {
            command: format!(
                "dpkg-deb --fsys-tarfile {} | tar -x {}",
                deb.display(),
                patterns.join(" ")
            ),
            why,
        };
        let mut tar = tar.spawn().map_err(|error| failed(error.to_string()))?;
        let stdout = tar.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let unpacked = output(
            Command::new("tar")
                .arg("-C")
                .arg(to)
                .args(["-x", "--no-same-owner", "--wildcards"])
                .args(patterns)
                .stdin(stdout),
        );
        let status = tar.wait().map_err(|error| failed(error.to_string()))?;
        unpacked?;
        if !status.success() {
            return Err(failed(status.to_string()));
        }
        fs::remove_file(&deb).map_err(io_error(&deb))
    }

    fn download(&self, lists: Lists, package: &str, to: &Path) -> Result<PathBuf, PrepareError> {
        let mut command = self.command("apt-get", lists);
        output(command.args(["download", package]).current_dir(to))?;
        let files = fs::read_dir(to).map_err(io_error(to))?;
        files
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
            .ok_or(PrepareError::Missing {
                package: package.into(),
                what: ".deb file",
            })
    }

    /// Tries with the system's lists, then with fresh ones.
    fn with_either<T>(
        &self,
        attempt: impl Fn(Lists) -> Result<T, PrepareError>,
    ) -> Result<T, PrepareError> {
        match attempt(Lists::System) {
            Ok(value) => Ok(value),
            Err(_) => {
                self.update()?;
                attempt(Lists::Own)
            }
        }
    }

    fn update(&self) -> Result<(), PrepareError> {
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        }
        self.run("apt-get", Lists::Own, &["update"]).map(drop)
    }

    fn run(&self, program: &str, lists: Lists, args: &[&str]) -> Result<String, PrepareError> {
        output(self.command(program, lists).args(args))
    }

    fn command(&self, program: &str, lists: Lists) -> Command {
        let mut command = Command::new(program);
        command.arg("-q").env("LC_ALL", "C");
        // Root's apt would otherwise fetch as a user who can't write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if let Lists::Own = lists {
            for (option, dir) in [("Dir::State", "state"), ("Dir::Cache", "cache")] {
                let dir = self.dir.join(dir);
                command.arg("-o").arg(format!("{option}={}", dir.display()));
            }
            command.args(["-o", "Dir::State::lists=lists/"]);
            command.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
        }
        command
    }
}
