//! gdb's remote protocol, spoken to `xm gdb`.
//!
//! **Mechanism.** A breakpoint is an `int3` that the hypervisor puts into the
//! guest's memory and hides from the debugger; a step is a run with TF set.
//!
//! **Scenario.** A kernel is stopped at its entry, stepped, stopped at its
//! `main`, read, written, and let go, or its debugger is killed.
//! In each case it goes on to its end as if nothing had been.
//!
//! **Limits.** This speaks the packets that gdb sends; gdb itself was tried by
//! hand.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use domus_tests::harness::{
    Config, Installation, PATIENCE, Programs, domains_can_run, eventually, kvm_is_usable,
};

/// A debugger.
struct Debugger {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Debugger {
    fn attach(domus: &Installation, name: &str) -> Self {
        let mut command = domus.command(Programs::get().program("xm"));
        let mut child = command
            .args(["gdb", "--stdio", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("xm starts");
        let to = child.stdin.take().expect("a pipe");
        let from = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut debugger = Debugger { child, to, from };
        let supported = debugger.ask("qSupported:multiprocess+;swbreak+;vContSupported+");
        assert!(supported.contains("PacketSize"), "{supported}");
        debugger
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.to, "${packet}#{sum:02x}").expect("xm reads");
        self.to.flush().expect("xm reads");
    }

    /// The next packet, without the run-length coding that it may have.
    fn receive(&mut self) -> String {
        let mut byte = || {
            let mut one = [0];
            self.from.read_exact(&mut one).expect("xm answers");
            one[0]
        };
        while byte() != b'$' {}
        let mut packet = String::new();
        loop {
            match byte() {
                b'#' => break,
                b'*' => {
                    let last = packet.chars().last().expect("something to repeat");
                    let more = usize::from(byte() - 29);
                    packet.extend(std::iter::repeat_n(last, more));
                }
                other => packet.push(other.into()),
            }
        }
        byte();
        byte();
        // With the packet that tells of the domain's end it may be gone.
        if let Err(error) = self.to.write_all(b"+") {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
        }
        packet
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive()
    }

    /// Register 16 of the packet of all.
    fn rip(&mut self) -> u64 {
        let all = self.ask("g");
        let digits = &all[16 * 16..17 * 16];
        let bytes = (0..8).map(|i| u64::from_str_radix(&digits[2 * i..2 * i + 2], 16));
        bytes.rev().fold(0, |n, byte| n << 8 | byte.expect("hex"))
    }
}

/// The entry point of `hello`, and where its `main` is.
fn places() -> (u64, u64) {
    let image = fs::read(Programs::get().kernel("hello")).expect("the kernel");
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| usize::try_from(word(at) & 0xffff_ffff).expect("32 bits");
    let place = |at: usize| usize::try_from(word(at)).expect("64 bits");
    let count = usize::from(u16::from_le_bytes([image[60], image[61]]));
    let section = |index: usize| place(40) + index * 64;
    let symbols = (0..count)
        .map(section)
        .find(|at| half(at + 4) == 2)
        .expect("a symbol table");
    let names = place(section(half(symbols + 40)) + 24);
    let mut entries = image[place(symbols + 24)..][..place(symbols + 32)].chunks_exact(24);
    let main = entries.find_map(|entry| {
        let name = u32::from_le_bytes(entry[..4].try_into().expect("4 bytes"));
        let name = &image[names + usize::try_from(name).expect("32 bits")..];
        let end = name.iter().position(|byte| *byte == 0)?;
        let value = u64::from_le_bytes(entry[8..16].try_into().expect("8 bytes"));
        name[..end].ends_with(b"5hello4main").then_some(value)
    });
    (word(24), main.expect("hello has a main"))
}

fn create_paused(domus: &Installation) {
    let config = Config::test_kernel("hello").line("on_poweroff = \"preserve\"");
    let file = config.write(domus);
    let file = file.to_str().expect("a path of ours");
    domus.xm(&["create", "-p", file]).ok();
}

fn assert_ends_well(domus: &Installation) {
    eventually("hello says goodbye", PATIENCE, || {
        let said = domus.xm(&["dmesg"]).output();
        said.contains("goodbye").then_some(())
    });
}

#[test]
fn a_kernel_is_stepped_stopped_read_and_written() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create_paused(&domus);
    let mut gdb = Debugger::attach(&domus, "hello");
    // Two pauses: the debugger's, and that of `create -p`.
    domus.xm(&["unpause", "hello"]).ok();
    let (entry, main) = places();
    assert_eq!(gdb.rip(), entry);
    let stopped = gdb.ask("vCont;s:p1.1");
    assert!(stopped.starts_with("T05"), "{stopped}");
    let first = gdb.rip();
    assert!(first > entry && first < entry + 16, "{first:#x}");

    let before = gdb.ask(&format!("m{main:x},8"));
    assert_eq!(gdb.ask(&format!("Z0,{main:x},1")), "OK");
    assert_eq!(gdb.ask(&format!("m{main:x},8")), before, "it does not show");
    let stopped = gdb.ask("vCont;c");
    assert!(
        stopped.starts_with("T05") && stopped.contains("swbreak"),
        "{stopped}"
    );
    assert_eq!(gdb.rip(), main);

    // Its stack can be read, and written with what is there.
    let stack = {
        let all = gdb.ask("g");
        let digits = &all[7 * 16..8 * 16];
        let bytes: Vec<_> = (0..8).rev().map(|i| &digits[2 * i..2 * i + 2]).collect();
        bytes.concat()
    };
    let word = gdb.ask(&format!("m{stack},8"));
    assert_eq!(word.len(), 16, "{word}");
    assert_eq!(gdb.ask(&format!("M{stack},8:{word}")), "OK");
    // Nothing is there, and its page tables are not for writing.
    assert!(gdb.ask("m10,8").starts_with('E'));

    assert_eq!(gdb.ask(&format!("z0,{main:x},1")), "OK");
    assert_eq!(gdb.ask("D;1"), "OK");
    assert!(gdb.child.wait().expect("one's own child").success());
    assert_ends_well(&domus);
}

#[test]
fn a_killed_debugger_leaves_nothing_in_its_guest() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    create_paused(&domus);
    let mut gdb = Debugger::attach(&domus, "hello");
    domus.xm(&["unpause", "hello"]).ok();
    let main = places().1;
    assert_eq!(gdb.ask(&format!("Z0,{main:x},1")), "OK");
    let stopped = gdb.ask("vCont;c");
    assert!(stopped.contains("swbreak"), "{stopped}");
    let second = domus.xm(&["gdb", "--stdio", "hello"]);
    let holder = format!("another debugger: xm gdb, process {},", gdb.child.id());
    second.fails(1, &holder);
    gdb.child.kill().expect("one's own child");
    gdb.child.wait().expect("one's own child");
    assert_ends_well(&domus);
}

#[test]
fn gdb_is_told_of_the_end_and_an_unknown_domain_is_refused() {
    if !kvm_is_usable() {
        return;
    }
    let domus = Installation::new();
    domus
        .xm(&["gdb", "--stdio", "nobody"])
        .fails(3, "Domain 'nobody' does not exist");
    create_paused(&domus);
    let mut gdb = Debugger::attach(&domus, "hello");
    domus.xm(&["unpause", "hello"]).ok();
    assert_eq!(gdb.ask("vCont;c"), "W00");
    domus.xm(&["destroy", "hello"]).ok();
    assert!(gdb.child.wait().expect("one's own child").success());
}

/// One that waits for its gdb on the domain's socket keeps it: who comes second
/// is told who that is, in either mode, and the first is still reached.
#[test]
fn a_second_debugger_does_not_take_the_firsts_socket() {
    if !domains_can_run() {
        return;
    }
    let domus = Installation::new();
    create_paused(&domus);
    let mut command = domus.command(Programs::get().program("xm"));
    let command = command.args(["gdb", "hello"]).stderr(Stdio::piped());
    let mut first = command.spawn().expect("xm starts");
    let mut said = BufReader::new(first.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says something");
    let socket = line.trim_end().rsplit(' ').next().expect("a path");

    let holder = format!("another debugger: xm gdb, process {},", first.id());
    domus.xm(&["gdb", "hello"]).fails(1, &holder);
    domus.xm(&["gdb", "--stdio", "hello"]).fails(1, &holder);

    let gdb = UnixStream::connect(socket).expect("the first listens");
    drop(gdb);
    assert!(first.wait().expect("one's own child").success());
    assert!(!Path::new(socket).exists(), "{socket} is left");
}
