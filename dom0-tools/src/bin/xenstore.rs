//! `xenstore`, and `xenstore-ls` and the like where it is called so: see
//! [`dom0_tools::xenstore::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dom0_tools::xenstore::cli::main(std::env::args_os())
}
