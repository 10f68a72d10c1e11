//! `domus-boot`: see [`dom0_tools::bootloader::command`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dom0_tools::bootloader::command::main()
}
