//! How a service goes into the background.
//!
//! `NAME` starts `NAME --ready-on-stdout`, waits until that one says that it
//! serves, and ends: with 0 then, and with the service's own exit status and
//! messages when it could not start. So whoever starts a service may use it as
//! soon as the command has returned.

use std::{
    env,
    fs::{DirBuilder, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// The option that the background process is started with.
pub const READY_ON_STDOUT: &str = "--ready-on-stdout";

const READY: &str = "ready\n";

/// Starts this program with the same arguments in the background and waits
/// until it is ready or has failed.
///
/// # Errors
/// When it can't be started at all.
pub fn launch() -> io::Result<ExitCode> {
    let mut child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .arg(READY_ON_STDOUT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let code = child
        .wait()?
        .code()
        .and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Says "ready" to [`launch`] and leaves its session, its terminal and its
/// output: from here on standard error goes to `log`.
///
/// # Errors
/// What the system gives.
pub fn detach(log: &Path) -> io::Result<()> {
    if let Some(dir) = log.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // Fails only for a process that leads a group, which is detached enough.
    let _ = setsid();
    io::stdout().write_all(READY.as_bytes())?;
    io::stdout().flush()?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(log.as_fd())?;
    Ok(())
}
