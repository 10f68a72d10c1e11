//! Prints what the domain builder knows of a kernel image:
//! `cargo run -p dom0-tools --example kernel-info -- /boot/vmlinuz-...`

use std::{env, path::Path, process::ExitCode};

use dom0_tools::builder::{KernelImage, describe};

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: kernel-info IMAGE");
        return ExitCode::FAILURE;
    };
    match KernelImage::open(Path::new(&path)) {
        Ok(image) => {
            print!("{}", describe(&image));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
