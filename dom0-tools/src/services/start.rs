//! Starting a service, as a process of its own.

use std::{
    env, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{PATIENCE, Service, ServiceError, log};

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Starts a service and waits until it answers. The caller holds the lock.
pub(super) fn start(service: Service) -> Result<(), ServiceError> {
    let program = find_program(service.program())?;
    let path = service.log();
    let (output, before) = log::open(&path).map_err(|source| ServiceError::File {
        path: path.clone(),
        source,
    })?;
    let duplicate = output.try_clone().map_err(|source| ServiceError::File {
        path: path.clone(),
        source,
    })?;
    let mut command = Command::new(&program);
    command
        .args(service.args())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(duplicate);
    detach(&mut command);
    let mut child = command.spawn().map_err(|source| ServiceError::Spawn {
        path: program,
        source,
    })?;
    wait_until_it_answers(service, &mut child, before)
}

/// A session of its own: no terminal's hang-up or Ctrl+C reaches it.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: the closure runs in the child between fork and exec; setsid is
    // async-signal-safe and nothing else happens in it.
    unsafe {
        command.pre_exec(|| match nix::unistd::setsid() {
            Ok(_) => Ok(()),
            Err(errno) => Err(io::Error::from(errno)),
        });
    }
}

fn wait_until_it_answers(
    service: Service,
    child: &mut Child,
    before: u64,
) -> Result<(), ServiceError> {
    let program = service.program();
    let give_up = Instant::now() + PATIENCE;
    loop {
        if !service.goes_into_background() && service.answers()? {
            return Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Perhaps because another one was faster.
            if service.answers()? {
                return Ok(());
            }
            return Err(ServiceError::Ended {
                program,
                status: status.to_string(),
                tail: with_hint(service, log::tail(&service.log(), before)),
                log: service.log(),
            });
        }
        if Instant::now() >= give_up {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ServiceError::Silent {
                program,
                tail: log::tail(&service.log(), before),
                log: service.log(),
            });
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// What most often keeps a hypervisor from starting, if it did not say so.
fn with_hint(service: Service, tail: String) -> String {
    let kvm_is_asked_for = env::var_os("DOMUS_ENGINE").is_some_and(|engine| engine == "kvm");
    if service != Service::Hypervisor || !kvm_is_asked_for || tail.contains("/dev/kvm") {
        return tail;
    }
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let hint = match opened.map_err(|e| e.kind()) {
        Err(io::ErrorKind::NotFound) => {
            "/dev/kvm is not there: load the module (modprobe kvm_intel or kvm_amd), or switch virtualisation on in \
             the firmware or in the cloud instance's settings"
        }
        Err(io::ErrorKind::PermissionDenied) => {
            "/dev/kvm may not be opened: run as root, or add yourself to the group that owns it (kvm)"
        }
        _ => return tail,
    };
    format!("{tail}\n  {hint}")
        .trim_start_matches('\n')
        .to_owned()
}

/// A program of ours: beside the running one, else in `PATH`.
///
/// # Errors
/// It is in neither.
pub fn find_program(name: &'static str) -> Result<PathBuf, ServiceError> {
    let own = env::current_exe().and_then(|exe| exe.canonicalize());
    let beside = own.ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let in_path = env::var_os("PATH");
    let in_path = in_path.iter().flat_map(env::split_paths);
    beside
        .iter()
        .cloned()
        .chain(in_path.filter(|dir| dir.is_absolute()))
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
        .ok_or_else(|| ServiceError::NoProgram {
            program: name,
            beside: beside.unwrap_or_default(),
        })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
