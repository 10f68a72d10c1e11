//! The wire against everything that is not a message.

use std::{
    io::Write,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use guest_abi::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proptest::prelude::*;

use super::*;
use crate::protocol::{Failure, Reply, Request, Response};

fn pair(patience: Patience) -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (Channel::over(a, patience), Channel::over(b, patience))
}

fn impatient() -> Patience {
    Patience {
        idle: Some(Duration::from_millis(80)),
        message: Some(Duration::from_millis(80)),
    }
}

fn raw_pair() -> (UnixStream, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    (a, Channel::over(b, impatient()))
}

#[test]
fn messages_arrive_in_order_and_whole() {
    let (a, b) = pair(Patience::default());
    let big = Request::SetVcpuContext {
        dom: 1,
        vcpu: 0,
        context: vec![7; MAX_MESSAGE - 64],
    };
    let sent = [Request::HostInfo, big, Request::Hello { version: 9 }];
    let copy = sent.clone();
    let sender = thread::spawn(move || copy.iter().for_each(|m| a.send(m, &[]).unwrap()));
    for message in sent {
        let (got, fds) = b.receive::<Request>(0).unwrap().unwrap();
        assert_eq!(got, message);
        assert!(fds.is_empty());
    }
    sender.join().unwrap();
    assert!(b.receive::<Request>(0).unwrap().is_none());
}

#[test]
fn hello_and_refusals_keep_their_bytes() {
    // Fixed for all versions: see the law in protocol.rs.
    let hello = encode(&Request::Hello {
        version: 0x0102_0304,
    })
    .unwrap();
    assert_eq!(hello, [8, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1]);
    let refusal: Response = Err(Failure::new(Errno::EACCES, "x"));
    let bytes = encode(&refusal).unwrap();
    let expected = [15, 0, 0, 0, 1, 0, 0, 0, 13, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x'];
    assert_eq!(bytes, expected);
    assert_eq!(encode(&Response::Ok(Reply::Done)).unwrap()[4..], [0; 8]);
}

#[test]
fn descriptors_arrive_close_on_exec_and_surplus_ones_are_closed() {
    let (a, b) = pair(Patience::default());
    let (watched, sent) = UnixStream::pair().unwrap();
    a.send(&Reply::Done, &[sent.as_fd(), sent.as_fd(), sent.as_fd()])
        .unwrap();
    drop(sent);
    let (_, fds) = b.receive::<Reply>(1).unwrap().unwrap();
    assert_eq!(fds.len(), 1);
    let flags = fcntl(&fds[0], FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    // When that one is closed too the pair is hung up: no copy was left open.
    drop(fds);
    assert_hung_up(watched);
}

#[test]
fn a_receiver_that_wants_no_descriptors_gets_none() {
    let (a, b) = pair(Patience::default());
    let (watched, sent) = UnixStream::pair().unwrap();
    a.send(&Reply::Done, &[sent.as_fd()]).unwrap();
    drop(sent);
    let (_, fds) = b.receive::<Reply>(0).unwrap().unwrap();
    assert!(fds.is_empty());
    assert_hung_up(watched);
}

fn assert_hung_up(mut stream: UnixStream) {
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let got = stream.read(&mut [0; 1]);
    assert!(matches!(got, Ok(0)), "fd {}: {got:?}", stream.as_raw_fd());
}

#[test]
fn descriptors_stay_with_their_message() {
    let (a, b) = pair(Patience::default());
    let (_x, y) = UnixStream::pair().unwrap();
    a.send(&Reply::Port(1), &[]).unwrap();
    a.send(&Reply::Port(2), &[y.as_fd()]).unwrap();
    a.send(&Reply::Port(3), &[]).unwrap();
    for (port, count) in [(1, 0), (2, 1), (3, 0)] {
        let (reply, fds) = b.receive::<Reply>(MAX_FDS).unwrap().unwrap();
        assert_eq!((reply, fds.len()), (Reply::Port(port), count));
    }
}

#[test]
fn an_oversized_message_is_refused_on_both_sides() {
    let (a, b) = pair(impatient());
    let huge = Reply::VcpuContext(vec![0; MAX_MESSAGE]);
    assert!(matches!(a.send(&huge, &[]), Err(WireError::TooLong { .. })));
    assert!(matches!(b.receive::<Reply>(0), Err(WireError::TimedOut)));

    let (mut raw, channel) = raw_pair();
    raw.write_all(&u32::MAX.to_le_bytes()).unwrap();
    match channel.receive::<Request>(0) {
        Err(WireError::TooLong { length }) => assert_eq!(length, u64::from(u32::MAX)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_inner_length_beyond_the_body_is_garbage() {
    let (mut raw, channel) = raw_pair();
    let mut body = Vec::from(10u32.to_le_bytes()); // Reply::VcpuContext
    body.extend(u64::MAX.to_le_bytes());
    raw.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes())
        .unwrap();
    raw.write_all(&body).unwrap();
    let got = channel.receive::<Reply>(0);
    assert!(matches!(got, Err(WireError::Garbage(_))), "{got:?}");
}

#[test]
fn a_truncated_message_says_how_much_came() {
    for (bytes, got, expected) in [(&[5u8, 0][..], 2, 4), (&[5, 0, 0, 0, 1, 2], 2, 5)] {
        let (mut raw, channel) = raw_pair();
        raw.write_all(bytes).unwrap();
        drop(raw);
        match channel.receive::<Request>(0) {
            Err(WireError::Truncated {
                got: g,
                expected: e,
            }) => {
                assert_eq!((g, e), (got, expected));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_dripping_sender_runs_out_of_time() {
    let (mut raw, channel) = raw_pair();
    let dripper = thread::spawn(move || {
        raw.write_all(&64u32.to_le_bytes()).unwrap();
        while raw.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let started = Instant::now();
    let got = channel.receive::<Request>(0);
    assert!(matches!(got, Err(WireError::TimedOut)), "{got:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(channel);
    dripper.join().unwrap();
}

#[test]
fn a_receiver_that_never_reads_does_not_hold_the_sender() {
    let (a, _b) = pair(impatient());
    let reply = Reply::VcpuContext(vec![0; MAX_MESSAGE / 2]);
    let stuck = (0..64).find_map(|_| a.send(&reply, &[]).err());
    assert!(matches!(stuck, Some(WireError::TimedOut)), "{stuck:?}");
}

#[test]
fn trailing_bytes_are_garbage() {
    let mut body = encode(&Request::HostInfo).unwrap().split_off(4);
    body.push(0);
    assert!(matches!(
        decode::<Request>(&body),
        Err(WireError::Garbage(_))
    ));
}

proptest! {
    #[test]
    fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode::<Request>(&body);
        let _ = decode::<Response>(&body);
    }

    #[test]
    fn arbitrary_streams_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let (mut raw, channel) = raw_pair();
        raw.write_all(&bytes).unwrap();
        drop(raw);
        while let Ok(Some(_)) = channel.receive::<Request>(0) {}
    }

    #[test]
    fn a_known_variant_with_noise_decodes_or_fails_cleanly(
        variant in 0u32..32,
        noise in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..200),
    ) {
        let mut body = Vec::from(variant.to_le_bytes());
        body.extend(noise);
        if let Ok(request) = decode::<Request>(&body) {
            prop_assert_eq!(&encode(&request).unwrap()[4..], &body[..]);
        }
    }
}
