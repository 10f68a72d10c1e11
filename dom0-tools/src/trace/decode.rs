//! From a record to words.

use super::ops::{self, Field, Shown};
use domus_privcmd::trace::{Record, What};
use guest_abi::{
    addr::DomId, arch_x86::exception_name, errno::Errno, memory::MEMOP_CMD_MASK, sched::*, xen::*,
};
use std::{collections::HashMap, fmt::Write};

/// What the ports of the guest belong to, by name: "vbd/51712".
pub type Ports = HashMap<u32, String>;

/// A record in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is counted as: "event_channel_op.send", "#PF", "upcall".
    pub name: String,
    /// Its arguments: name and value.
    pub args: Vec<(&'static str, String)>,
    /// What it gave, where it gives something.
    pub result: Option<String>,
    /// It was refused.
    pub failed: bool,
}

impl Line {
    fn new(name: impl Into<String>) -> Self {
        Line {
            name: name.into(),
            args: Vec::new(),
            result: None,
            failed: false,
        }
    }

    fn arg(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.args.push((name, value.into()));
        self
    }

    /// As strace writes a call: `name(a=1, b=2) = 0`.
    #[must_use]
    pub fn text(&self) -> String {
        let args: Vec<_> = self
            .args
            .iter()
            .map(|(name, value)| match *name {
                "" => value.clone(),
                name => format!("{name}={value}"),
            })
            .collect();
        let mut text = format!("{}({})", self.name, args.join(", "));
        if let Some(result) = &self.result {
            let _ = write!(text, " = {result}");
        }
        text
    }
}

/// Puts a record in words.
#[must_use]
pub fn decode(record: &Record, ports: &Ports) -> Line {
    match &record.what {
        What::Hypercall {
            number,
            args,
            result,
            data,
            ..
        } => {
            let mut line = hypercall(*number, args, data, ports);
            line.failed = result.is_some_and(|value| (-4095..0).contains(&value));
            line.result = Some(outcome(*number, *result));
            line
        }
        What::Exception {
            vector,
            error,
            cr2,
            rip,
            user,
            bounced,
        } => {
            let mut line = Line::new(exception(*vector));
            if *vector == 14 {
                line = line.arg("addr", hex(*cr2)).arg("for", access(*error));
            } else if *error != 0 {
                line = line.arg("error", hex((*error).into()));
            }
            line.arg("rip", hex(*rip))
                .arg("mode", if *user { "user" } else { "kernel" })
                .arg("by", if *bounced { "guest" } else { "hypervisor" })
        }
        What::Upcall { ports: pending } => {
            let named: Vec<_> = pending.iter().map(|it| port(*it, ports)).collect();
            Line::new("upcall").arg("ports", format!("[{}]", named.join(", ")))
        }
        What::Slept => Line::new("slept"),
        What::Syscall { number, rip } => Line::new("syscall")
            .arg("rax", number.to_string())
            .arg("rip", hex(*rip)),
    }
}

fn hypercall(number: u64, args: &[u64; 6], data: &[u8], ports: &Ports) -> Line {
    let name = hypercall_name(number).map_or_else(|| format!("hypercall_{number}"), String::from);
    if let Some(ops) = ops::of(number) {
        return operation(&name, number, ops, args, data, ports);
    }
    let line = Line::new(name);
    match number {
        HYPERVISOR_MMU_UPDATE => line
            .arg("", list(data, 16, args[1], update))
            .arg("count", low(args[1]).to_string())
            .arg("dom", dom(low16(args[3]))),
        HYPERVISOR_MMUEXT_OP => line
            .arg("", list(data, 24, args[1], extended))
            .arg("count", low(args[1]).to_string())
            .arg("dom", dom(low16(args[3]))),
        HYPERVISOR_MULTICALL => line
            .arg("calls", hex(args[0]))
            .arg("count", low(args[1]).to_string()),
        HYPERVISOR_UPDATE_VA_MAPPING => line
            .arg("va", hex(args[0]))
            .arg("val", hex(args[1]))
            .arg("flags", hex(args[2])),
        HYPERVISOR_SET_SEGMENT_BASE => line
            .arg("which", low(args[0]).to_string())
            .arg("base", hex(args[1])),
        HYPERVISOR_STACK_SWITCH => line.arg("ss", hex(args[0])).arg("rsp", hex(args[1])),
        HYPERVISOR_FPU_TASKSWITCH => line.arg("set", low(args[0]).to_string()),
        HYPERVISOR_UPDATE_DESCRIPTOR => line.arg("at", hex(args[0])).arg("value", hex(args[1])),
        HYPERVISOR_SET_TRAP_TABLE => line.arg("table", hex(args[0])),
        HYPERVISOR_SET_GDT => line
            .arg("frames", hex(args[0]))
            .arg("entries", low(args[1]).to_string()),
        HYPERVISOR_SET_TIMER_OP => line.arg("until", args[0].to_string()),
        HYPERVISOR_VM_ASSIST => line
            .arg("cmd", low(args[0]).to_string())
            .arg("type", low(args[1]).to_string()),
        HYPERVISOR_SET_DEBUGREG => line
            .arg("reg", low(args[0]).to_string())
            .arg("value", hex(args[1])),
        HYPERVISOR_GET_DEBUGREG => line.arg("reg", low(args[0]).to_string()),
        HYPERVISOR_IRET => line,
        _ => args[..3]
            .iter()
            .fold(line, |line, it| line.arg("", hex(*it))),
    }
}

fn operation(
    name: &str,
    number: u64,
    ops: &'static [ops::Op],
    args: &[u64; 6],
    data: &[u8],
    ports: &Ports,
) -> Line {
    let chosen = if number == HYPERVISOR_MEMORY_OP {
        args[0] & MEMOP_CMD_MASK
    } else {
        args[0]
    };
    let Some(op) = ops::find(ops, low(chosen)) else {
        return Line::new(format!("{name}.{}", low(chosen))).arg("arg", hex(args[1]));
    };
    let mut line = Line::new(format!("{name}.{}", op.name));
    if number == HYPERVISOR_VCPU_OP {
        line = line.arg("vcpu", low(args[1]).to_string());
    }
    if number == HYPERVISOR_CONSOLE_IO {
        let length = low(args[1]);
        if chosen == u64::from(CONSOLEIO_WRITE) {
            line = line.arg("", text(data, length));
        }
        return line.arg("count", length.to_string());
    }
    if number == HYPERVISOR_GRANT_TABLE_OP && low(args[2]) != 1 {
        line = line.arg("count", low(args[2]).to_string());
    }
    let fields = op.fields.iter();
    fields
        .filter_map(|it| Some((it.name, field(it, data, ports)?)))
        .fold(line, |line, (name, value)| line.arg(name, value))
}

fn field(field: &Field, data: &[u8], ports: &Ports) -> Option<String> {
    let u16_at = || number::<2>(data, field.offset).map(|n| u16::try_from(n).unwrap_or(0));
    let u32_at = || number::<4>(data, field.offset).map(low);
    Some(match field.shown {
        Shown::U16 => u16_at()?.to_string(),
        Shown::I16 => u16_at()?.cast_signed().to_string(),
        Shown::U32 => u32_at()?.to_string(),
        Shown::U64 => number::<8>(data, field.offset)?.to_string(),
        Shown::Hex => {
            hex(number::<8>(data, field.offset).or_else(|| number::<4>(data, field.offset))?)
        }
        Shown::Port => port(u32_at()?, ports),
        Shown::Dom => dom(u16_at()?),
        Shown::Virq => virq(u32_at()?),
        Shown::Shutdown => shutdown(u32_at()?),
    })
}

/// The little-endian number of `N` bytes at `offset`.
fn number<const N: usize>(data: &[u8], offset: usize) -> Option<u64> {
    let bytes = data.get(offset..offset.checked_add(N)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte)),
    )
}

/// As many elements as the record holds of a list of `count`.
fn list(data: &[u8], size: usize, count: u64, show: fn(&[u8]) -> Option<String>) -> String {
    let mut shown: Vec<_> = data.chunks_exact(size).filter_map(show).collect();
    if shown.len() < usize::try_from(low(count)).unwrap_or(usize::MAX) {
        shown.push("...".into());
    }
    format!("[{}]", shown.join(", "))
}

fn update(element: &[u8]) -> Option<String> {
    let (ptr, val) = (number::<8>(element, 0)?, number::<8>(element, 8)?);
    let kind = match ptr & MMU_UPDATE_COMMAND_MASK {
        MMU_NORMAL_PT_UPDATE => "",
        MMU_MACHPHYS_UPDATE => "M2P ",
        MMU_PT_UPDATE_PRESERVE_AD => "PRESERVE_AD ",
        _ => "NO_TRANSLATE ",
    };
    Some(format!(
        "{kind}{:#x}: {val:#x}",
        ptr & !MMU_UPDATE_COMMAND_MASK
    ))
}

fn extended(element: &[u8]) -> Option<String> {
    let cmd = low(number::<4>(element, 0)?);
    let name = ops::find(ops::MMUEXT, cmd).map_or_else(|| cmd.to_string(), |op| op.name.into());
    let (first, second) = (number::<8>(element, 8)?, number::<8>(element, 16)?);
    Some(match cmd {
        MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_TLB_FLUSH_ALL | MMUEXT_FLUSH_CACHE => name,
        MMUEXT_SET_LDT | MMUEXT_COPY_PAGE | MMUEXT_TLB_FLUSH_MULTI | MMUEXT_INVLPG_MULTI => {
            format!("{name} {first:#x} {second:#x}")
        }
        _ => format!("{name} {first:#x}"),
    })
}

fn outcome(number: u64, result: Option<i64>) -> String {
    match result {
        None if number == HYPERVISOR_IRET => "?".into(),
        None => "? (goes on later)".into(),
        Some(value) => match Errno::from_return(value) {
            Ok(value) => value.to_string(),
            Err(errno) => format!("{value} {errno}"),
        },
    }
}

/// The name of an exception, as the hypervisor counts it.
fn exception(vector: u8) -> String {
    exception_name(vector).map_or_else(|| format!("exception_{vector}"), String::from)
}

/// What a page fault was for.
fn access(error: u32) -> String {
    let what = match (error & 16 != 0, error & 2 != 0) {
        (true, _) => "fetch",
        (_, true) => "write",
        _ => "read",
    };
    let why = if error & 1 != 0 {
        "protected"
    } else {
        "missing"
    };
    format!("{what} ({why})")
}

fn port(number: u32, ports: &Ports) -> String {
    match ports.get(&number) {
        Some(name) => format!("{number} ({name})"),
        None => number.to_string(),
    }
}

fn dom(number: u16) -> String {
    if DomId(number) == DomId::SELF {
        "SELF".into()
    } else {
        number.to_string()
    }
}

fn virq(number: u32) -> String {
    let name = match number {
        VIRQ_TIMER => "TIMER",
        VIRQ_DEBUG => "DEBUG",
        VIRQ_CONSOLE => "CONSOLE",
        VIRQ_DOM_EXC => "DOM_EXC",
        VIRQ_XENOPROF => "XENOPROF",
        VIRQ_XENPMU => "XENPMU",
        _ => return number.to_string(),
    };
    name.into()
}

fn shutdown(reason: u32) -> String {
    let name = match reason {
        SHUTDOWN_POWEROFF => "poweroff",
        SHUTDOWN_REBOOT => "reboot",
        SHUTDOWN_SUSPEND => "suspend",
        SHUTDOWN_CRASH => "crash",
        SHUTDOWN_WATCHDOG => "watchdog",
        SHUTDOWN_SOFT_RESET => "soft_reset",
        _ => return reason.to_string(),
    };
    name.into()
}

fn text(data: &[u8], length: u32) -> String {
    let shown = &data[..data.len().min(usize::try_from(length).unwrap_or(0))];
    let more = usize::try_from(length).is_ok_and(|length| length > shown.len());
    let dots = if more { "..." } else { "" };
    format!("\"{}\"{dots}", shown.escape_ascii())
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_abi::event_channel::{EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_SEND};
    use proptest::prelude::*;

    fn call(number: u64, args: [u64; 6], result: Option<i64>, data: &[u8]) -> Record {
        Record {
            time_ns: 0,
            took_ns: 0,
            vcpu: 0,
            what: What::Hypercall {
                number,
                args,
                result,
                in_multicall: false,
                data: data.to_vec(),
            },
        }
    }

    fn text_of(record: &Record) -> String {
        let ports = Ports::from([(5, "vbd/51712".to_owned())]);
        decode(record, &ports).text()
    }

    #[test]
    fn an_operation_shows_its_fields_and_whose_port_it_is() {
        let send = [EVTCHNOP_SEND.into(), 0x1000, 0, 0, 0, 0];
        let record = call(HYPERVISOR_EVENT_CHANNEL_OP, send, Some(0), &[5, 0, 0, 0]);
        assert_eq!(
            text_of(&record),
            "event_channel_op.send(port=5 (vbd/51712)) = 0"
        );
        let alloc = [EVTCHNOP_ALLOC_UNBOUND.into(), 0x1000, 0, 0, 0, 0];
        let data = [0xf0, 0x7f, 3, 0, 9, 0, 0, 0];
        let record = call(HYPERVISOR_EVENT_CHANNEL_OP, alloc, Some(0), &data);
        assert_eq!(
            text_of(&record),
            "event_channel_op.alloc_unbound(dom=SELF, remote_dom=3, port=9) = 0"
        );
    }

    #[test]
    fn lists_show_what_was_recorded_of_them() {
        let mut data = Vec::new();
        data.extend(0x1235_0002u64.to_le_bytes());
        data.extend(0x67u64.to_le_bytes());
        let args = [0x1000, 2, 0, 0x7ff0, 0, 0];
        let record = call(HYPERVISOR_MMU_UPDATE, args, Some(-22), &data);
        assert_eq!(
            text_of(&record),
            "mmu_update([PRESERVE_AD 0x12350000: 0x67, ...], count=2, dom=SELF) = -22 EINVAL (invalid argument)"
        );
        assert!(decode(&record, &Ports::new()).failed);
    }

    #[test]
    fn a_guests_text_cannot_control_the_terminal() {
        let args = [CONSOLEIO_WRITE.into(), 6, 0x1000, 0, 0, 0];
        let record = call(HYPERVISOR_CONSOLE_IO, args, Some(0), b"a\x1b[2J\n");
        assert_eq!(
            text_of(&record),
            r#"console_io.write("a\x1b[2J\n", count=6) = 0"#
        );
    }

    #[test]
    fn a_page_fault_says_who_deals_with_it() {
        let record = Record {
            time_ns: 0,
            took_ns: 0,
            vcpu: 1,
            what: What::Exception {
                vector: 14,
                error: 6,
                cr2: 0x1000,
                rip: 0x2000,
                user: true,
                bounced: true,
            },
        };
        assert_eq!(
            text_of(&record),
            "#PF(addr=0x1000, for=write (missing), rip=0x2000, mode=user, by=guest)"
        );
    }

    proptest! {
        #[test]
        fn any_record_has_a_text(
            number in 0u64..70,
            args in prop::array::uniform6(any::<u64>()),
            small in 0u64..32,
            data in prop::collection::vec(any::<u8>(), 0..96),
        ) {
            let mut chosen = args;
            chosen[0] = small;
            for args in [args, chosen] {
                let text = text_of(&call(number, args, None, &data));
                prop_assert!(!text.is_empty() && text.chars().all(|c| !c.is_control()));
            }
        }
    }
}
