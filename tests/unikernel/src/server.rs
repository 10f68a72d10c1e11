//! Just enough of HTTP: `GET` gives the page, `PUT` takes another.
//!
//! Law: what is on the disk is a whole page or none. `PUT` takes the old page's
//! header away, and writes the new one's when its data are durable.

use core::fmt::Write;

use guest_abi::{
    kernel::{
        blkfront::{BlkError, SECTOR},
        text::Text,
        xenbus::Bus,
    },
    kprintln,
};
use smoltcp::{iface::SocketHandle, socket::tcp};

use crate::Blk;

/// What is read from the disk, and written to it, at once.
pub const PIECE: usize = 128 * 1024;

const MARK: [u8; 8] = *b"DOMUSWEB";

/// One connection at a time on one socket.
pub struct Server {
    pub socket: SocketHandle,
    piece: &'static mut [u8; PIECE],
    work: Work,
}

enum Work {
    /// A request's head is coming in.
    Head(Head),
    /// Its body.
    Take(Upload),
    /// The answer is going out.
    Give(Answer),
}

/// A request's head, as far as it is here.
struct Head {
    bytes: [u8; 1024],
    length: usize,
}

/// A page that is coming in.
struct Upload {
    length: u64,
    /// Bytes that are on the disk.
    written: u64,
    /// Bytes in the piece.
    gathered: usize,
}

/// What is being sent.
struct Answer {
    head: Text<160>,
    head_sent: usize,
    length: u64,
    /// Bytes that were read from the disk.
    read: u64,
    /// What of the piece is to be sent.
    from: usize,
    to: usize,
}

impl Server {
    pub fn new(socket: SocketHandle, piece: &'static mut [u8; PIECE]) -> Self {
        Self {
            socket,
            piece,
            work: Work::new(),
        }
    }

    pub fn go_on(&mut self, socket: &mut tcp::Socket<'_>, bus: &mut Bus, disk: &mut Blk) {
        if !socket.is_open() {
            self.work = Work::new();
            socket.listen(80).expect("80 is a port");
        }
        if let Work::Head(head) = &mut self.work {
            if head.is_whole(socket) {
                self.work = head.request(bus, disk);
            } else if !socket.may_recv() && socket.may_send() {
                socket.close();
            }
        }
        if let Work::Take(upload) = &mut self.work
            && let Some(status) = upload.go_on(self.piece, socket, bus, disk)
        {
            self.work = Work::Give(Answer::new(status, 0));
        }
        if let Work::Give(answer) = &mut self.work
            && answer.go_on(self.piece, socket, bus, disk)
        {
            socket.close();
        }
    }
}

impl Work {
    fn new() -> Self {
        Self::Head(Head {
            bytes: [0; 1024],
            length: 0,
        })
    }
}

impl Head {
    /// Takes what has come. A head that is too long is whole, too, and no
    /// request.
    fn is_whole(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        loop {
            if self.bytes[..self.length].ends_with(b"\r\n\r\n") {
                return true;
            }
            let Some(place) = self.bytes.get_mut(self.length..self.length + 1) else {
                return true;
            };
            if !socket.can_recv() || socket.recv_slice(place) != Ok(1) {
                return false;
            }
            self.length += 1;
        }
    }

    fn request(&self, bus: &mut Bus, disk: &mut Blk) -> Work {
        let text = core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("");
        let answer = match (text.split(' ').next(), content_length(text)) {
            (Some("GET"), _) => Answer::of_page(bus, disk),
            (Some("PUT"), Some(length)) => match Upload::begin(length, bus, disk) {
                Ok(upload) => return Work::Take(upload),
                Err(status) => Answer::new(status, 0),
            },
            _ => Answer::new("400 Bad Request", 0),
        };
        Work::Give(answer)
    }
}

fn content_length(head: &str) -> Option<u64> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}

impl Upload {
    /// Nothing of the old page is to be found from here on.
    fn begin(length: u64, bus: &mut Bus, disk: &mut Blk) -> Result<Self, &'static str> {
        let room = disk.disk().sectors.saturating_sub(1) * SECTOR as u64;
        if length > room {
            return Err("413 Content Too Large");
        }
        let gone = disk.write(bus, 0, &[0; SECTOR]);
        gone.and_then(|()| disk.flush(bus)).map_err(status_of)?;
        Ok(Self {
            length,
            written: 0,
            gathered: 0,
        })
    }

    /// Takes what has come. The status, when it is over.
    fn go_on(
        &mut self,
        piece: &mut [u8; PIECE],
        socket: &mut tcp::Socket<'_>,
        bus: &mut Bus,
        disk: &mut Blk,
    ) -> Option<&'static str> {
        loop {
            let missing = self.length - self.written - self.gathered as u64;
            if missing == 0 || self.gathered == PIECE {
                if let Err(error) = self.write(piece, bus, disk) {
                    return Some(status_of(error));
                }
            }
            if missing == 0 {
                let done = self.finish(bus, disk);
                return Some(done.map_or_else(status_of, |()| "201 Created"));
            }
            let room = &mut piece[self.gathered..];
            let here = usize::try_from(missing).unwrap_or(PIECE).min(room.len());
            match socket.recv_slice(&mut room[..here]) {
                Ok(0) => return None,
                Ok(count) => self.gathered += count,
                Err(_) => return Some("400 Bad Request"),
            }
        }
    }

    fn write(
        &mut self,
        piece: &mut [u8; PIECE],
        bus: &mut Bus,
        disk: &mut Blk,
    ) -> Result<(), BlkError> {
        let whole = self.gathered.next_multiple_of(SECTOR);
        piece[self.gathered..whole].fill(0);
        disk.write(bus, 1 + self.written / SECTOR as u64, &piece[..whole])?;
        self.written += self.gathered as u64;
        self.gathered = 0;
        Ok(())
    }

    /// The data, then what says that they are there; the room behind is given
    /// back.
    fn finish(&self, bus: &mut Bus, disk: &mut Blk) -> Result<(), BlkError> {
        disk.flush(bus)?;
        let mut header = [0; SECTOR];
        header[..8].copy_from_slice(&MARK);
        header[8..16].copy_from_slice(&self.length.to_le_bytes());
        disk.write(bus, 0, &header)?;
        disk.flush(bus)?;
        let end = 1 + self.length.div_ceil(SECTOR as u64);
        let behind = disk.disk().sectors.saturating_sub(end);
        if disk.disk().discard && behind > 0 {
            disk.discard(bus, end, behind)?;
        }
        Ok(())
    }
}

fn status_of(error: BlkError) -> &'static str {
    kprintln!("web: {error}");
    match error {
        BlkError::ReadOnly => "403 Forbidden",
        _ => "500 Internal Server Error",
    }
}

impl Answer {
    fn new(status: &str, length: u64) -> Self {
        let mut head = Text::new();
        let _ = write!(
            head,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        Self {
            head,
            head_sent: 0,
            length,
            read: 0,
            from: 0,
            to: 0,
        }
    }

    /// Reads the page's length from the disk.
    fn of_page(bus: &mut Bus, disk: &mut Blk) -> Self {
        let mut sector = [0; SECTOR];
        match (
            disk.read(bus, 0, &mut sector),
            sector.split_first_chunk::<8>(),
        ) {
            (Ok(()), Some((&MARK, rest))) => {
                let length = rest.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
                Self::new("200 OK", length.unwrap_or(0))
            }
            (Ok(()), _) => Self::new("404 Not Found", 0),
            (Err(error), _) => Self::new(status_of(error), 0),
        }
    }

    /// Sends what there is room for. `true`: all is sent.
    fn go_on(
        &mut self,
        piece: &mut [u8; PIECE],
        socket: &mut tcp::Socket<'_>,
        bus: &mut Bus,
        disk: &mut Blk,
    ) -> bool {
        if !socket.may_send() {
            return true;
        }
        let rest = &self.head.as_bytes()[self.head_sent..];
        self.head_sent += socket.send_slice(rest).unwrap_or(0);
        while self.head_sent == self.head.len() {
            if self.from < self.to {
                let sent = socket.send_slice(&piece[self.from..self.to]).unwrap_or(0);
                self.from += sent;
                if sent == 0 {
                    return false;
                }
            } else if self.read == self.length {
                return true;
            } else if let Err(error) = self.read_on(piece, bus, disk) {
                kprintln!("web: {error}");
                socket.abort();
                return true;
            }
        }
        false
    }

    /// The next piece of the page.
    fn read_on(
        &mut self,
        piece: &mut [u8; PIECE],
        bus: &mut Bus,
        disk: &mut Blk,
    ) -> Result<(), BlkError> {
        let rest = usize::try_from(self.length - self.read).unwrap_or(PIECE);
        let here = rest.min(PIECE);
        let whole = here.next_multiple_of(SECTOR);
        let first = 1 + self.read / SECTOR as u64;
        disk.read(bus, first, &mut piece[..whole])?;
        self.read += here as u64;
        (self.from, self.to) = (0, here);
        Ok(())
    }
}
