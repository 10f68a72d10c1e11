//! Tracing a domain: what its vCPUs ask of the hypervisor, recorded while
//! somebody in Dom0 listens.
//!
//! Law: off, a trace costs one relaxed load where something could be recorded.
//! On, it costs the guest time but changes nothing that it can see; a reader
//! that is too slow loses records, which are counted, and delays nobody.
//!
//! Lock: the buffer's own, innermost; nothing is called with it held.

use crate::{
    cpu::reg,
    guest_access::GuestAccess,
    vcpu::{GuestState, Vcpu},
};
use domus_privcmd::trace::{Batch, MAX_DATA, Record, What, kind};
use guest_abi::{
    addr::{GuestVirt, PAGE_SIZE},
    errno::Errno,
    xen::*,
};
use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// Records that wait for their reader at most: some 20 MiB.
const CAPACITY: usize = 1 << 16;
/// Records in one reply: they fit in a message.
const BATCH: usize = 3000;

/// The trace of one domain.
#[derive(Debug, Default)]
pub struct Tracer {
    kinds: AtomicU32,
    buffer: Mutex<Buffer>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Buffer {
    /// The connection that listens.
    reader: Option<u64>,
    records: VecDeque<Record>,
    lost: u64,
    ended: bool,
}

impl Tracer {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether records of these kinds are wanted.
    #[must_use]
    pub fn wants(&self, kinds: u32) -> bool {
        self.kinds.load(Relaxed) & kinds != 0
    }

    /// Starts recording `kinds` for the connection `reader`.
    ///
    /// # Errors
    /// `EBUSY` if another one listens, `EINVAL` for no or unknown kinds.
    pub fn start(&self, reader: u64, kinds: u32) -> Result<(), Errno> {
        if kinds == 0 || kinds & !kind::ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let mut buffer = self.lock();
        if buffer.reader.is_some_and(|other| other != reader) {
            return Err(Errno::EBUSY);
        }
        buffer.reader = Some(reader);
        self.kinds.store(kinds, Relaxed);
        Ok(())
    }

    /// Stops recording, if it was for `reader`.
    pub fn stop(&self, reader: u64) {
        let mut buffer = self.lock();
        if buffer.reader == Some(reader) {
            self.kinds.store(0, Relaxed);
            *buffer = Buffer {
                ended: buffer.ended,
                ..Buffer::default()
            };
        }
    }

    /// No vCPU will record any more.
    pub fn end(&self) {
        self.lock().ended = true;
        self.news.notify_all();
    }

    fn push(&self, record: Record) {
        let mut buffer = self.lock();
        if buffer.reader.is_none() {
            return;
        }
        if buffer.records.len() < CAPACITY {
            buffer.records.push_back(record);
        } else {
            buffer.lost += 1;
        }
        let first = buffer.records.len() == 1;
        drop(buffer);
        if first {
            self.news.notify_all();
        }
    }

    /// Takes what is there, and waits up to `patience` for the first record.
    ///
    /// # Errors
    /// `EINVAL` if the trace was not started by `reader`.
    pub fn read(&self, reader: u64, patience: Duration) -> Result<Batch, Errno> {
        let buffer = self.lock();
        if buffer.reader != Some(reader) {
            return Err(Errno::EINVAL);
        }
        let silent = |buffer: &mut Buffer| buffer.records.is_empty() && !buffer.ended;
        let (mut buffer, _) = self
            .news
            .wait_timeout_while(buffer, patience, silent)
            .unwrap_or_else(PoisonError::into_inner);
        let count = buffer.records.len().min(BATCH);
        let records = buffer.records.drain(..count).collect();
        Ok(Batch {
            records,
            lost: std::mem::take(&mut buffer.lost),
            ended: buffer.ended && buffer.records.is_empty(),
        })
    }
}

/// A hypercall that is being recorded.
pub struct Open {
    began: u64,
    number: u64,
    args: [u64; 6],
}

impl Vcpu {
    /// The time, if records of `kinds` are wanted.
    pub(crate) fn trace_clock(&self, kinds: u32) -> Option<u64> {
        self.domain
            .tracer
            .wants(kinds)
            .then(|| self.domain.host.clock.now_ns())
    }

    fn record(&self, began: u64, what: What) {
        let now = self.domain.host.clock.now_ns();
        self.domain.tracer.push(Record {
            time_ns: began,
            took_ns: now.saturating_sub(began),
            vcpu: self.shared.id.0,
            what,
        });
    }

    /// Begins the record of a hypercall, if it is wanted.
    pub(crate) fn trace_hypercall(&self, number: u64, args: [u64; 6]) -> Option<Open> {
        let began = self.trace_clock(kind::HYPERCALL)?;
        Some(Open {
            began,
            number,
            args,
        })
    }

    /// Ends the record of a hypercall; `result` is what it gave.
    pub(crate) fn trace_result(&self, open: Open, result: Option<u64>) {
        let data = argument(open.number, &open.args)
            .map(|(at, bytes)| self.peek(at, bytes))
            .unwrap_or_default();
        let what = What::Hypercall {
            number: open.number,
            args: open.args,
            result: result.map(u64::cast_signed),
            in_multicall: self.in_multicall,
            data,
        };
        self.record(open.began, what);
    }

    /// Up to `bytes` at `at`, not over the end of a page that nothing follows.
    fn peek(&self, at: GuestVirt, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes.min(MAX_DATA)];
        let access = self.access();
        if access.read_bytes(at, &mut data).is_ok() {
            return data;
        }
        let in_page = usize::try_from(PAGE_SIZE - at.0 % PAGE_SIZE).unwrap_or(0);
        data.truncate(in_page);
        match access.read_bytes(at, &mut data) {
            Ok(()) => data,
            Err(_) => Vec::new(),
        }
    }

    /// Records an exception that has been dealt with; `before` is the state
    /// that it was raised in.
    pub(crate) fn trace_exception(&self, began: u64, seen: Seen, handler: u64) {
        let bounced = self.state.context.rip == handler && handler != 0;
        let Seen {
            vector,
            error,
            cr2,
            rip,
            user,
        } = seen;
        let what = What::Exception {
            vector,
            error,
            cr2,
            rip,
            user,
            bounced,
        };
        self.record(began, what);
    }

    /// Records a user program's `syscall`.
    pub(crate) fn trace_syscall(&self, began: u64, number: u64, rip: u64) {
        self.record(began, What::Syscall { number, rip });
    }

    /// Records the delivery of events.
    pub(crate) fn trace_upcall(&self, began: u64, ports: Vec<u32>) {
        self.record(began, What::Upcall { ports });
    }

    /// Records a sleep.
    pub(crate) fn trace_sleep(&self, began: u64) {
        self.record(began, What::Slept);
    }
}

/// An exception as it was raised.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    vector: u8,
    error: u32,
    cr2: u64,
    rip: u64,
    user: bool,
}

impl Seen {
    /// The exception with this vector, error code and fault address.
    #[must_use]
    pub fn new(vector: u8, error: u32, cr2: GuestVirt, state: &GuestState) -> Self {
        Seen {
            vector,
            error,
            cr2: if vector == 14 { cr2.0 } else { 0 },
            rip: state.context.rip,
            user: state.user_mode,
        }
    }
}

/// Where a hypercall's argument in memory is, and how much of it is wanted.
fn argument(number: u64, args: &[u64; 6]) -> Option<(GuestVirt, usize)> {
    let list = |at: u64, count: u64, size: usize| {
        let count = usize::try_from(count & 0xffff_ffff).unwrap_or(usize::MAX);
        (GuestVirt(at), count.saturating_mul(size))
    };
    let (at, bytes) = match number {
        HYPERVISOR_MMU_UPDATE => list(args[0], args[1], 16),
        HYPERVISOR_MMUEXT_OP => list(args[0], args[1], 24),
        HYPERVISOR_CONSOLE_IO => list(args[2], args[1], 1),
        HYPERVISOR_SET_TRAP_TABLE => (GuestVirt(args[0]), 16),
        HYPERVISOR_VCPU_OP => (GuestVirt(args[2]), 32),
        HYPERVISOR_MEMORY_OP
        | HYPERVISOR_EVENT_CHANNEL_OP
        | HYPERVISOR_GRANT_TABLE_OP
        | HYPERVISOR_SCHED_OP
        | HYPERVISOR_PHYSDEV_OP
        | HYPERVISOR_CALLBACK_OP
        | HYPERVISOR_XEN_VERSION
        | HYPERVISOR_NMI_OP => (GuestVirt(args[1]), 48),
        _ => return None,
    };
    (at.0 != 0 && bytes != 0).then_some((at, bytes))
}

/// The number of a user program's system call.
pub(crate) fn syscall_number(state: &GuestState) -> u64 {
    state.context.gpr[reg::RAX]
}

#[cfg(test)]
mod tests {
    use super::*;
    use domus_privcmd::wire::{Channel, Patience};
    use std::os::unix::net::UnixStream;

    fn record(time_ns: u64) -> Record {
        Record {
            time_ns,
            took_ns: 1,
            vcpu: 0,
            what: What::Slept,
        }
    }

    #[test]
    fn nothing_is_kept_while_nobody_listens() {
        let tracer = Tracer::default();
        assert!(!tracer.wants(kind::ALL));
        tracer.push(record(1));
        tracer.start(7, kind::EVENT).unwrap();
        assert!(tracer.wants(kind::EVENT) && !tracer.wants(kind::HYPERCALL));
        let batch = tracer.read(7, Duration::ZERO).unwrap();
        assert_eq!(batch, Batch::default());
    }

    #[test]
    fn a_slow_reader_loses_records_and_is_told_how_many() {
        let tracer = Tracer::default();
        tracer.start(7, kind::ALL).unwrap();
        for time in 0..CAPACITY as u64 + 5 {
            tracer.push(record(time));
        }
        let first = tracer.read(7, Duration::ZERO).unwrap();
        assert_eq!((first.lost, first.records.len()), (5, BATCH));
        assert_eq!(first.records[0].time_ns, 0);
        tracer.end();
        let mut total = first.records.len();
        loop {
            let batch = tracer.read(7, Duration::ZERO).unwrap();
            total += batch.records.len();
            assert_eq!(batch.lost, 0);
            if batch.ended {
                break;
            }
        }
        assert_eq!(total, CAPACITY);
    }

    #[test]
    fn one_connection_listens_at_a_time() {
        let tracer = Tracer::default();
        assert_eq!(tracer.start(7, 0), Err(Errno::EINVAL));
        assert_eq!(tracer.start(7, 1 << 30), Err(Errno::EINVAL));
        tracer.start(7, kind::ALL).unwrap();
        assert_eq!(tracer.start(8, kind::ALL), Err(Errno::EBUSY));
        assert_eq!(tracer.read(8, Duration::ZERO), Err(Errno::EINVAL));
        tracer.stop(8);
        assert!(tracer.wants(kind::EVENT), "only its reader stops a trace");
        tracer.stop(7);
        assert!(!tracer.wants(kind::ALL));
        tracer.start(8, kind::ALL).unwrap();
    }

    #[test]
    fn a_full_batch_fits_in_a_message() {
        let big = Record {
            time_ns: u64::MAX,
            took_ns: u64::MAX,
            vcpu: u32::MAX,
            what: What::Hypercall {
                number: u64::MAX,
                args: [u64::MAX; 6],
                result: Some(-1),
                in_multicall: true,
                data: vec![0xff; MAX_DATA],
            },
        };
        let batch = Batch {
            records: vec![big; BATCH],
            ..Batch::default()
        };
        let (here, there) = UnixStream::pair().unwrap();
        let sent = std::thread::spawn(move || {
            let channel = Channel::over(here, Patience::default());
            channel.send(&batch, &[]).unwrap();
        });
        let channel = Channel::over(there, Patience::default());
        let (got, _) = channel.receive::<Batch>(0).unwrap().unwrap();
        sent.join().unwrap();
        assert_eq!(got.records.len(), BATCH);
    }
}
