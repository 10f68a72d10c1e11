//! An HTTP server, as ArceOS' example of that name, with files of its disk
//! where that has a page in its program: a thread for each connection, by
//! `axstd::net`, `axstd::fs` and `axstd::thread`. (ArceOS' examples are not on
//! crates.io.)

#![no_std]
#![no_main]

extern crate axplat_x86_xen_pv;

use axstd::{
    format, fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    println,
    string::String,
    thread,
    vec::Vec,
};

const ADDRESS: &str = "0.0.0.0:5555";
/// A request longer than this is not read to its end.
const LONGEST: usize = 4096;
/// What is read of a file and sent at once.
const PIECE: usize = 16 * 1024;

#[unsafe(no_mangle)]
fn main() {
    let listener = TcpListener::bind(ADDRESS).expect("the port is free");
    println!("listen on: http://{ADDRESS}/");
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                thread::spawn(move || {
                    if let Err(error) = serve(stream) {
                        println!("{peer}: {error}");
                    }
                });
            }
            Err(error) => println!("accept: {error}"),
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let request = read_request(&mut stream)?;
    let Some(path) = path_of(&request) else {
        return refuse(&mut stream, "400 Bad Request");
    };
    match fs::File::open(&path) {
        Ok(file) if file.metadata()?.is_file() => send(&mut stream, file)?,
        _ => refuse(&mut stream, "404 Not Found")?,
    }
    wait_for_end(&mut stream)
}

/// Waits until the other side has all, and closes: what a socket of ArceOS'
/// has not sent when it is dropped is lost.
fn wait_for_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut piece = [0; 64];
    while stream.read(&mut piece)? > 0 {}
    Ok(())
}

/// Reads up to the empty line.
fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut piece = [0; 512];
    while !request.ends_with(b"\r\n\r\n") && request.len() < LONGEST {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            break;
        }
        request.extend_from_slice(&piece[..length]);
    }
    Ok(request)
}

/// The file that a `GET` asks for.
fn path_of(request: &[u8]) -> Option<String> {
    let text = core::str::from_utf8(request).ok()?;
    let path = text.strip_prefix("GET ")?.split(' ').next()?;
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return None;
    }
    let index = if path.ends_with('/') {
        "index.html"
    } else {
        ""
    };
    Some(format!("{path}{index}"))
}

fn send(stream: &mut TcpStream, mut file: fs::File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    head(stream, "200 OK", left)?;
    let mut piece = axstd::vec![0; PIECE];
    while left > 0 {
        let length = file.read(&mut piece)?;
        if length == 0 {
            break;
        }
        stream.write_all(&piece[..length])?;
        left = left.saturating_sub(length as u64);
    }
    Ok(())
}

fn refuse(stream: &mut TcpStream, status: &str) -> io::Result<()> {
    head(stream, status, status.len() as u64)?;
    stream.write_all(status.as_bytes())
}

fn head(stream: &mut TcpStream, status: &str, length: u64) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())
}
