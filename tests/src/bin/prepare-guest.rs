//! Fetches the guest that tests and the demo use and says where it is: the
//! kernel's path on the first line, the user space's on the second.

use std::process::ExitCode;

fn main() -> ExitCode {
    match domus_tests::guest::prepare() {
        Ok(guest) => {
            println!("{}\n{}", guest.kernel.display(), guest.initramfs.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("prepare-guest: {error}");
            ExitCode::FAILURE
        }
    }
}
