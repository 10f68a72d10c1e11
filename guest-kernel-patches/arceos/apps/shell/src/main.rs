//! A shell on the console, as ArceOS' example of that name: the same commands,
//! by the same `axstd`. (ArceOS' examples are not on crates.io.)

#![no_std]
#![no_main]

extern crate axplat_x86_xen_pv;

mod command;

use axstd::{
    io::{self, Read, Write},
    println,
    string::String,
};

const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

#[unsafe(no_mangle)]
fn main() {
    println!("Available commands: {}", command::names());
    let mut line = String::new();
    loop {
        prompt();
        line.clear();
        read_line(&mut line);
        command::run(&line);
    }
}

fn prompt() {
    let path = axstd::env::current_dir().unwrap_or_default();
    show(&path);
    show("# ");
}

/// Reads a line and shows it while it is typed.
fn read_line(line: &mut String) {
    loop {
        let mut byte = [0];
        if io::stdin().read(&mut byte).is_err() {
            return;
        }
        match byte[0] {
            b'\n' => break,
            BACKSPACE | DELETE => {
                if line.pop().is_some() {
                    show("\x08 \x08");
                }
            }
            byte @ b' '..=b'~' => {
                line.push(char::from(byte));
                show(line.get(line.len() - 1..).unwrap_or_default());
            }
            _ => {}
        }
    }
    show("\n");
}

fn show(text: &str) {
    // The console has no failure to report.
    let _ = io::stdout().write_all(text.as_bytes());
}
