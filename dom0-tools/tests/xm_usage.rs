//! What `xm` says and returns before it needs any service: usage errors,
//! unknown subcommands, help, and configurations that are wrong.
//!
//! Each test runs the program itself with a run directory of its own, and
//! sees to it that nothing was started.

use std::{
    fs,
    process::{Command, Output},
};

use tempfile::TempDir;

struct Xm {
    dir: TempDir,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Xm {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("dir"),
        }
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("write");
    }

    fn run(&self, args: &[&str]) -> Said {
        self.run_as(env!("CARGO_BIN_EXE_xm"), args)
    }

    fn run_as(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Said {
        let run_dir = self.dir.path().join("run");
        let output: Output = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .env("DOMUS_RUN_DIR", &run_dir)
            .env("PATH", "/nonexistent")
            .output()
            .expect("run xm");
        assert!(!run_dir.exists(), "{args:?} started something");
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

#[test]
fn unknown_subcommand() {
    let said = Xm::new().run(&["foo"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.out, "");
    assert!(
        said.err.starts_with("Error: Subcommand foo not found!\n"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("Usage: xm <subcommand> [args]"),
        "{}",
        said.err
    );
}

#[test]
fn no_subcommand() {
    let said = Xm::new().run(&[]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with("Usage: xm <subcommand> [args]"),
        "{}",
        said.err
    );
}

#[test]
fn wrong_number_of_arguments() {
    for (args, message) in [
        (&["pause"][..], "'xm pause' requires 1 argument."),
        (&["pause", "a", "b"], "'xm pause' requires 1 argument."),
        (&["rename", "a"], "'xm rename' requires 2 arguments."),
        (&["info", "x"], "'xm info' requires 0 arguments."),
        (&["reboot"], "'xm reboot' requires 1 argument."),
        (&["shutdown"], "'xm shutdown' requires 1 argument."),
        (
            &["shutdown", "a", "b"],
            "'xm shutdown' requires between 0 and 1 arguments.",
        ),
        (
            &["help", "a", "b"],
            "'xm help' requires between 0 and 1 arguments.",
        ),
    ] {
        let said = Xm::new().run(args);
        assert_eq!(said.code, Some(1), "{args:?}");
        let expected = format!("Error: {message}\n\nUsage: xm {}", args[0]);
        assert!(said.err.starts_with(&expected), "{args:?}: {}", said.err);
        assert_eq!(said.out, "", "{args:?}");
    }
}

#[test]
fn unknown_option() {
    let said = Xm::new().run(&["list", "--foo"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .starts_with("Error: unexpected argument '--foo' found\n"),
        "{}",
        said.err
    );
}

#[test]
fn prefixes_and_old_names() {
    let said = Xm::new().run(&["paus"]);
    assert!(
        said.err.starts_with("Error: 'xm pause' requires"),
        "{}",
        said.err
    );
    let said = Xm::new().run(&["p"]);
    assert!(
        said.err.starts_with("Error: Subcommand p not found!"),
        "{}",
        said.err
    );
    let said = Xm::new().run(&["vif"]);
    assert!(
        said.err.starts_with("Error: Subcommand vif not found!"),
        "{}",
        said.err
    );
    let said = Xm::new().run(&["balloon", "a", "64"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .starts_with("Command balloon is deprecated.  Please use xm mem-set instead.\n"),
        "{}",
        said.err
    );
}

#[test]
fn what_is_not_done_is_said() {
    for command in [
        "vtpm-list",
        "pci-attach",
        "tmem-list",
        "scsi-list",
        "usb-add",
        "setenforce",
        "migrate",
    ] {
        let said = Xm::new().run(&[command, "x", "y"]);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{command}");
        let expected = format!("Error: 'xm {command}' is not supported: ");
        assert!(said.err.starts_with(&expected), "{}", said.err);
    }
}

#[test]
fn help_lists_and_teaches() {
    let all = Xm::new().run(&["help"]);
    assert_eq!((all.code, all.err.as_str()), (Some(0), ""));
    for command in ["create", "list", "console", "shutdown", "destroy", "dmesg"] {
        assert!(
            all.out.contains(&format!("\n {command} ")),
            "{command}: {}",
            all.out
        );
        for args in [
            &["help", command][..],
            &[command, "--help"],
            &[command, "-h"],
        ] {
            let one = Xm::new().run(args);
            assert_eq!((one.code, one.err.as_str()), (Some(0), ""), "{args:?}");
            assert!(
                one.out.starts_with(&format!("Usage: xm {command}")),
                "{}",
                one.out
            );
            assert!(one.out.contains("Example"), "{args:?}: {}", one.out);
        }
    }
    assert!(!all.out.contains("vtpm-list"));
    let long = Xm::new().run(&["help", "--long"]);
    assert!(long.out.starts_with(&all.out) && long.out.len() > 3 * all.out.len());
    assert_eq!(Xm::new().run(&["--help"]).out, all.out);
}

#[test]
fn answers_to_xl_too() {
    let xm = Xm::new();
    let link = xm.dir.path().join("xl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xm"), &link).expect("link");
    let said = xm.run_as(&link, &["pause"]);
    assert!(
        said.err
            .starts_with("Error: 'xl pause' requires 1 argument."),
        "{}",
        said.err
    );
}

#[test]
fn output_that_nobody_reads() {
    let xm = Xm::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_xm"))
        .args(["help", "--long"])
        .env("DOMUS_RUN_DIR", xm.dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("run xm");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_wrong_configuration_shows_the_place() {
    let xm = Xm::new();
    xm.file("a.cfg", "name = 'a'\nkernel = '/k'\nmemory = 64 + 64\n");
    let said = xm.run(&["create", "-q", "a.cfg"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.err,
        "Error: ./a.cfg:3:13: this is Python: an expression with the operator '+'\n\
         \x20   memory = 64 + 64\n\
         \x20               ^\n\
         \x20 Configuration files are data and are not run: write the resulting value.\n"
    );
}

#[test]
fn nothing_is_started_for_what_cannot_work() {
    let xm = Xm::new();
    xm.file(
        "nokernel.cfg",
        "name = 'a'\nkernel = '/nonexistent/vmlinuz'\n",
    );
    xm.file("notakernel.cfg", "name = 'a'\nkernel = 'nokernel.cfg'\n");
    xm.file(
        "disk.cfg",
        "name = 'a'\nkernel = '/k'\ndisk = ['phy:/nonexistent/x,xvda,w']\n",
    );
    xm.file("latin1.cfg", "");
    fs::write(xm.dir.path().join("latin1.cfg"), b"name = 'a'\n# \xe4\n").expect("write");
    for (args, message) in [
        (&["create"][..], "no configuration file is given"),
        (
            &["create", "missing.cfg"],
            "Unable to open config file: missing.cfg: it is not in . or /etc/xen",
        ),
        (
            &["create", "./missing.cfg"],
            "Unable to open config file: ./missing.cfg: no such file",
        ),
        (
            &["create", "latin1.cfg"],
            "latin1.cfg: line 2: not UTF-8 text",
        ),
        (&["create", "nokernel.cfg"], "/nonexistent/vmlinuz"),
        (&["create", "notakernel.cfg"], "nokernel.cfg"),
        (
            &["create", "disk.cfg"],
            "disk xvda: there is no /nonexistent/x. Make it",
        ),
        (
            &["create", "disk.cfg", "memory=0"],
            "command line:1:8: 'memory' is 0 MiB",
        ),
        (&["create", "kernel=/k"], "'name' is not set"),
        (&["create", "."], "Unable to read config file ./."),
    ] {
        let said = xm.run(args);
        assert_eq!(said.code, Some(1), "{args:?}");
        assert!(said.err.contains(message), "{args:?}: {}", said.err);
        assert!(said.err.starts_with("Error: "), "{args:?}: {}", said.err);
    }
}
