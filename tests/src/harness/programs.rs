//! What cargo built, built anew if need be.
//!
//! A test that runs programs of other packages is not built together with
//! them. So the first test of a process asks cargo for them, in the profile
//! and the target directory that the test itself came from: that takes less
//! than a second where all is there, and never tests an old program.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Directories of programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Where `xm` and the services are.
    pub dir: PathBuf,
}

impl Programs {
    /// The programs of this checkout.
    ///
    /// # Panics
    /// When they can't be built.
    #[must_use]
    pub fn get() -> &'static Self {
        static PROGRAMS: OnceLock<Programs> = OnceLock::new();
        PROGRAMS.get_or_init(|| {
            let programs = Self { dir: own_dir() };
            programs.build();
            programs
        })
    }

    /// A program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The image of a small PV kernel: `hello`, or one of `tests/guests`.
    #[must_use]
    pub fn kernel(&self, name: &str) -> PathBuf {
        let path = self.dir.join("examples").join(name);
        assert!(path.exists(), "there is no test kernel {}", path.display());
        path
    }

    /// The image of a kernel that is a workspace of its own, built now; from
    /// what was fetched before, where that is all.
    ///
    /// # Panics
    /// When it can't be built.
    #[must_use]
    pub fn kernel_of(&self, workspace: &Path, name: &str) -> PathBuf {
        let target = self.dir.with_file_name("kernels");
        let build = |network: &[&str]| {
            let mut command = Command::new(cargo());
            command.args(["build", "--quiet"]).args(network);
            command.arg("--manifest-path");
            command.arg(workspace.join("Cargo.toml"));
            command.env("CARGO_TARGET_DIR", &target);
            command.output().expect("cargo can be run")
        };
        let mut built = build(&["--offline"]);
        if !built.status.success() {
            built = build(&[]);
        }
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{}:\n{said}", workspace.display());
        target.join("debug").join(name)
    }

    fn build(&self) {
        self.cargo(&["--workspace", "--bins"]);
        self.cargo(&[
            "--package=test-guests",
            "--package=guest-abi",
            "--features=guest-abi/kernel",
            "--examples",
        ]);
    }

    fn cargo(&self, args: &[&str]) {
        let mut command = Command::new(cargo());
        command
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(["build", "--quiet"])
            .args(args)
            .env(
                "CARGO_TARGET_DIR",
                self.dir.parent().expect("a profile's directory"),
            );
        if self.dir.ends_with("release") {
            command.arg("--release");
        }
        let built = command.output().expect("cargo can be run");
        assert!(
            built.status.success(),
            "{command:?}:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
    }
}

fn cargo() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into())
}

/// `target/debug` of `target/debug/deps/system-0123`.
fn own_dir() -> PathBuf {
    let own = env::current_exe().expect("a program knows its path");
    let dir = own.ancestors().find(|dir| {
        dir.file_name()
            .is_some_and(|name| name == "debug" || name == "release")
    });
    dir.expect("cargo puts tests into debug/ or release/")
        .to_owned()
}
