//! Frames over a stream: each with its length, four bytes in network order,
//! in front. What `passt` and QEMU's `-netdev stream` speak.
//!
//! Law: at most one frame that could not be sent whole is kept; while it is
//! there no other is taken. A length that no frame has ends the stream.

use std::io::{self, Read, Write};

use super::wire::{LARGEST_PACKET, Sent};

const PREFIX: usize = 4;

/// The sending half.
#[derive(Debug, Default)]
pub struct Outgoing {
    rest: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Whether a frame has not been sent whole yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.sent < self.rest.len()
    }

    /// Sends a frame, or as much of it as goes now.
    ///
    /// # Errors
    /// The stream's.
    pub fn send(&mut self, stream: &mut impl Write, frame: &[u8]) -> io::Result<Sent> {
        self.flush(stream)?;
        if self.is_busy() {
            return Ok(Sent::Full);
        }
        self.rest.clear();
        self.sent = 0;
        let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.rest.extend_from_slice(&len.to_be_bytes());
        self.rest.extend_from_slice(frame);
        self.flush(stream)?;
        Ok(Sent::Done)
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// The stream's.
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while self.is_busy() {
            match stream.write(&self.rest[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Incoming {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            bytes: vec![0; 2 * (LARGEST_PACKET + PREFIX)],
            start: 0,
            end: 0,
        }
    }
}

impl Incoming {
    /// The next frame, if it is here whole: its length.
    ///
    /// # Errors
    /// The stream's; `UnexpectedEof` at its end, `InvalidData` for an
    /// impossible length.
    pub fn receive(&mut self, stream: &mut impl Read, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(len) = self.take(buf)? {
                return Ok(Some(len));
            }
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match stream.read(&mut self.bytes[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let here = &self.bytes[self.start..self.end];
        let Some((prefix, rest)) = here.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > LARGEST_PACKET.min(buf.len()) {
            let text = format!("a frame of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(frame) = rest.get(..len) else {
            return Ok(None);
        };
        buf[..len].copy_from_slice(frame);
        self.start += PREFIX + len;
        Ok(Some(len))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, os::unix::net::UnixStream};

    use super::*;

    /// Gives as many bytes as the script says, one entry a call; 0 = "later".
    struct Trickle(VecDeque<u8>, VecDeque<usize>);

    impl Read for Trickle {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.1.pop_front().unwrap_or(0) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                n => self.0.read(&mut buf[..n.min(self.0.len())]),
            }
        }
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let mut bytes = VecDeque::new();
        for frame in [&b"one"[..], b"", b"a third"] {
            bytes.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
            bytes.extend(frame);
        }
        for cut in 1..9 {
            let mut stream = Trickle(bytes.clone(), [cut, 0].repeat(40).into());
            let (mut incoming, mut buf) = (Incoming::default(), [0; 100]);
            let mut got = Vec::new();
            while got.len() < 3 {
                if let Some(len) = incoming.receive(&mut stream, &mut buf).unwrap() {
                    got.push(buf[..len].to_vec());
                }
            }
            assert_eq!(got, [&b"one"[..], b"", b"a third"]);
        }
    }

    #[test]
    fn an_impossible_length_and_the_end_are_errors() {
        let mut incoming = Incoming::default();
        let mut stream = Trickle([0xff; 9].into(), [9].into());
        let error = incoming.receive(&mut stream, &mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = Incoming::default()
            .receive(&mut io::empty(), &mut [0; 100])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_stream_takes_no_more_and_loses_nothing() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
        let mut frame = vec![0; 60_000];
        let mut count = 0;
        while outgoing.send(&mut ours, &frame).unwrap() == Sent::Done {
            count += 1;
            frame[0] += 1;
        }
        assert!(outgoing.is_busy() && count > 1);
        let mut buf = vec![0; LARGEST_PACKET];
        for n in 0..count {
            let len = loop {
                outgoing.flush(&mut ours).unwrap();
                if let Some(len) = incoming.receive(&mut theirs, &mut buf).unwrap() {
                    break len;
                }
            };
            assert_eq!((len, buf[0]), (60_000, n));
        }
        assert!(!outgoing.is_busy());
    }
}
