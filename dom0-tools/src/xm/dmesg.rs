//! `xm dmesg`.

use clap::Parser;

use super::{Session, error::XmError, host::Host, output, table::Subcommand};

/// Read and/or clear the hypervisor's message buffer.
#[derive(Debug, Parser)]
#[command(
    after_help = "Guests write to the same buffer with the hypercall console_io.

Examples:
  xm dmesg
  xm dmesg -c      and clear it"
)]
pub struct Dmesg {
    /// Clear the buffer after printing it
    #[arg(short, long)]
    clear: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Subcommand for Dmesg {
    fn run(self, _: &Session) -> Result<(), XmError> {
        let host = Host::connect()?;
        let mut all = Vec::new();
        let mut from = 0;
        loop {
            let (start, bytes) = host.hypervisor.read_console(from, false)?;
            let Some(next) = u64::try_from(bytes.len())
                .ok()
                .and_then(|n| start.checked_add(n))
            else {
                break;
            };
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
            from = next;
        }
        if self.clear {
            // What came in between is printed, not lost.
            let (_, rest) = host.hypervisor.read_console(from, true)?;
            all.extend(rest);
        }
        if self.json {
            let text = String::from_utf8_lossy(&all);
            return output::json(&text.lines().collect::<Vec<_>>());
        }
        if all.last().is_some_and(|last| *last != b'\n') {
            all.push(b'\n');
        }
        output::bytes(&all)
    }
}
