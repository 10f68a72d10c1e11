//! gdb's remote protocol for a domain: `xm gdb`.
//!
//! ```text
//! gdb <--remote protocol--> Wire <--gdbstub--> Guest <--privcmd--> hypervisor
//! ```
//!
//! A vCPU is a thread: thread n+1 is vCPU n. Registers are the integer ones;
//! those of the FPU read as zero.
//!
//! Law: nothing is kept here that the guest depends on. If this process dies,
//! the hypervisor takes breakpoints and pause back.

mod guest;
mod wire;

pub use guest::{GdbError, Guest};
pub use wire::Wire;

use domus_privcmd::debug::Stop;
use gdbstub::{
    common::Signal,
    conn::ConnectionExt,
    stub::{DisconnectReason, GdbStub, MultiThreadStopReason, run_blocking},
};
use guest::thread;
use guest_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_WATCHDOG};

/// How long to wait for the guest before looking at what gdb says.
const PATIENCE_MS: u32 = 20;
/// How long a guest may take to stop when gdb asks for that.
const HALT_PATIENCE_MS: u32 = 1000;

type Reason = MultiThreadStopReason<u64>;

/// Serves one gdb, to its end.
///
/// # Errors
/// The domain is gone, or the hypervisor.
pub fn serve(guest: &mut Guest, wire: Wire) -> Result<&'static str, GdbError> {
    match GdbStub::new(wire).run_blocking::<Loop>(guest) {
        Ok(DisconnectReason::TargetExited(_)) => Ok("the domain has ended"),
        Ok(DisconnectReason::TargetTerminated(_)) => Ok("the domain has crashed"),
        Ok(DisconnectReason::Disconnect) => Ok("gdb has detached"),
        Ok(DisconnectReason::Kill) => {
            guest.destroy()?;
            Ok("gdb has killed the domain")
        }
        Err(error) if error.is_connection_error() => Ok("gdb has gone"),
        Err(error) if error.is_target_error() => match error.into_target_error() {
            Some(error) => Err(error),
            None => Ok("gdb has gone"),
        },
        Err(error) => Err(GdbError::Protocol(error.to_string())),
    }
}

/// What happens while the guest runs.
struct Loop;

impl run_blocking::BlockingEventLoop for Loop {
    type Target = Guest;
    type Connection = Wire;
    type StopReason = Reason;

    fn wait_for_stop_reason(
        guest: &mut Self::Target,
        wire: &mut Wire,
    ) -> Result<
        run_blocking::Event<Reason>,
        run_blocking::WaitForStopReasonError<GdbError, std::io::Error>,
    > {
        use run_blocking::{Event, WaitForStopReasonError::*};
        loop {
            if wire.peek().map_err(Connection)?.is_some() {
                return Ok(Event::IncomingData(wire.read().map_err(Connection)?));
            }
            match guest.wait(PATIENCE_MS) {
                Ok(Some(stop)) => return Ok(Event::TargetStopped(reason(stop))),
                Ok(None) => {}
                Err(error) if error.is_gone() => {
                    return Ok(Event::TargetStopped(Reason::Exited(0)));
                }
                Err(error) => return Err(Target(error)),
            }
        }
    }

    fn on_interrupt(guest: &mut Self::Target) -> Result<Option<Reason>, GdbError> {
        guest.halt()?;
        Ok(guest.wait(HALT_PATIENCE_MS)?.map(reason))
    }
}

fn reason(stop: Stop) -> Reason {
    let signal = |tid, signal| Reason::SignalWithThread { tid, signal };
    match stop {
        Stop::Breakpoint { vcpu } => Reason::SwBreak(thread(vcpu)),
        Stop::Step { vcpu } => signal(thread(vcpu), Signal::SIGTRAP),
        Stop::Halted => signal(thread(0), Signal::SIGINT),
        // Its memory and registers can still be looked at.
        Stop::Shutdown {
            reason: SHUTDOWN_CRASH | SHUTDOWN_WATCHDOG,
        } => signal(thread(0), Signal::SIGABRT),
        Stop::Shutdown { .. } => Reason::Exited(0),
    }
}
