//! Boot loaders of somebody else's, run as xend and xl run them.
//!
//! `PROGRAM --output=FILE --output-format=simple0 --output-directory=DIR
//! --args=OPTIONS ARGUMENTS... DISK`; what it found it writes to FILE, as
//! `kernel PATH`, `ramdisk PATH` and `args OPTIONS`, each ended by a NUL.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::error::BootError;

/// A boot loader that asks nobody needs moments.
const PATIENCE: Duration = Duration::from_secs(300);
const MAX_ANSWER: usize = 1 << 20;

/// What a boot loader answered; the files are its to name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The ramdisk's file.
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line.
    pub options: String,
}

/// A directory for the files of one run; goes with it.
#[derive(Debug)]
pub struct Room(PathBuf);

impl Room {
    /// Makes one, for nobody but us.
    ///
    /// # Errors
    /// The file system's.
    pub fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("domus-boot.{}.{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a boot loader. The files that it names are used before `room` goes.
///
/// # Errors
/// It can't be run, fails, takes too long, or names no kernel.
pub fn run(
    program: &Path,
    args: &[String],
    options: &str,
    disk: &Path,
    room: &Room,
) -> Result<Answer, BootError> {
    let failed = |what: String| BootError::Program {
        program: program.to_owned(),
        what,
    };
    let output = room.path().join("answer");
    let mut child = Command::new(program)
        .arg(format!("--output={}", output.display()))
        .arg("--output-format=simple0")
        .arg(format!("--output-directory={}", room.path().display()))
        .arg(format!("--args={options}"))
        .args(args)
        .arg(disk)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| failed(format!("can't be run: {e}")))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(|e| failed(e.to_string()))? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("took more than {PATIENCE:?}")));
            }
        }
    };
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    let answer = fs::read(&output).map_err(|e| failed(format!("gave no answer: {e}")))?;
    parse(&answer).ok_or_else(|| failed("named no kernel".to_owned()))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(MAX_ANSWER)]);
    let mut found = Answer::default();
    for line in text.split(['\0', '\n']) {
        match line.split_once(' ') {
            Some(("kernel", path)) => found.kernel = path.into(),
            Some(("ramdisk", path)) => found.ramdisk = Some(path.into()),
            Some(("args", options)) => found.options = options.to_owned(),
            _ => {}
        }
    }
    (!found.kernel.as_os_str().is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_answers_as_pygrub_does() {
        use std::os::unix::fs::PermissionsExt;
        let room = Room::new().expect("a directory");
        let script = room.path().join("loader");
        let text = "#!/bin/sh\nout=${1#--output=}; dir=${3#--output-directory=}\n[ \"$5\" = --x ] || exit 3\n\
                    printf 'kernel %s/k\\0args root=%s %s\\0' $dir $6 \"${4#--args=}\" > $out\n";
        fs::write(&script, text).expect("a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("executable");
        let run = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            run(&script, &args, "quiet", Path::new("/disk"), &room)
        };
        let answer = run(&["--x"]).expect("an answer");
        assert_eq!(answer.kernel, room.path().join("k"));
        assert_eq!(
            (answer.ramdisk, answer.options.as_str()),
            (None, "root=/disk quiet")
        );
        let error = run(&["--y"]).expect_err("it fails").to_string();
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
