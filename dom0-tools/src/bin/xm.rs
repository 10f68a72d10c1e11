//! `xm`, and `xl` where it is called so: see [`dom0_tools::xm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dom0_tools::xm::main(std::env::args_os())
}
