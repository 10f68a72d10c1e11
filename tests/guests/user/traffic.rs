//! TCP streams to measure and check a network with: a program for a guest's
//! user space and for the host, without any crate.
//!
//! ```text
//! traffic serve PORT                  takes streams, for ever; checks patterns
//! traffic send  ADDRESS:PORT MIB      sends that much of a pattern, and prints
//!                                     "sent MIB MiB in S s: R MiB/s"
//! traffic fetch ADDRESS:PORT MIB      the other way round: "got ..."
//! traffic load  ADDRESS:PORT MIB N    N streams out and N in at the same time:
//!                                     "moved ..."
//! ```
//!
//! A stream begins with 8 bytes: how many MiB, and in the top bit who sends
//! them. Each MiB differs from the one before, so that bytes that are lost,
//! doubled or out of order are noticed.

use std::{
    env,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::Instant,
};

const MIB: usize = 1 << 20;
/// The stream's other end is to send.
const SEND_TO_ME: u64 = 1 << 63;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve", port] => serve(port),
        ["send", to, mib] => send(to, number(mib)),
        ["fetch", from, mib] => fetch(from, number(mib)),
        ["load", with, mib, streams] => load(with, number(mib), number(streams)),
        _ => Err(io::Error::other(
            "usage: traffic serve PORT | send TO MIB | fetch FROM MIB | load WITH MIB STREAMS",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(1)
}

fn serve(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse().map_err(io::Error::other)?))?;
    println!("traffic: serving");
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(&mut stream) {
                println!("traffic: {error}");
            }
        });
    }
    Ok(())
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut word = [0; 8];
    stream.read_exact(&mut word)?;
    let word = u64::from_le_bytes(word);
    if word & SEND_TO_ME != 0 {
        pour(stream, word & !SEND_TO_ME)?;
        // Until the other end has taken all.
        stream.read_exact(&mut [0])
    } else {
        drain(stream, word)?;
        stream.write_all(&[1])
    }
}

fn send(to: &str, mib: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let start = Instant::now();
    stream.write_all(&mib.to_le_bytes())?;
    pour(&mut stream, mib)?;
    stream.read_exact(&mut [0])?;
    say("sent", mib, start);
    Ok(())
}

fn fetch(from: &str, mib: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(from)?;
    let start = Instant::now();
    stream.write_all(&(mib | SEND_TO_ME).to_le_bytes())?;
    drain(&mut stream, mib)?;
    say("got", mib, start);
    stream.write_all(&[1])
}

fn load(with: &str, mib: u64, streams: u64) -> io::Result<()> {
    let start = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..2 * streams)
            .map(|n| scope.spawn(move || if n % 2 == 0 { send(with, mib) } else { fetch(with, mib) }))
            .collect();
        let ended = all.into_iter().map(|stream| stream.join());
        let failed = |_| io::Error::other("a stream's thread has died");
        ended.map(|end| end.map_err(failed)?).collect::<io::Result<Vec<()>>>()
    })?;
    say("moved", 2 * streams * mib, start);
    Ok(())
}

fn say(what: &str, mib: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what} {mib} MiB in {seconds:.3} s: {:.1} MiB/s", mib as f64 / seconds);
}

fn pour(stream: &mut TcpStream, mib: u64) -> io::Result<()> {
    let mut block = pattern();
    for n in 0..mib {
        block[..8].copy_from_slice(&n.to_le_bytes());
        stream.write_all(&block)?;
    }
    Ok(())
}

fn drain(stream: &mut TcpStream, mib: u64) -> io::Result<()> {
    let (mut expected, mut got) = (pattern(), vec![0; MIB]);
    for n in 0..mib {
        stream.read_exact(&mut got)?;
        expected[..8].copy_from_slice(&n.to_le_bytes());
        if got != expected {
            return Err(io::Error::other(format!("MiB {n} is wrong")));
        }
    }
    Ok(())
}

/// A MiB in which no two neighbouring pages are the same.
fn pattern() -> Vec<u8> {
    let mut state = 1_u32;
    (0..MIB)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}
