//! A trace as a file for trace viewers: the JSON form that Chrome defined and
//! Perfetto reads.
//!
//! The process is the domain, a thread is a vCPU, times are in us.

use super::Line;
use domus_privcmd::trace::Record;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Writes the file piece by piece: it is complete after [`finish`](Self::finish),
/// and viewers read one that was cut off too.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    dom: u16,
}

impl<W: Write> Writer<W> {
    /// Begins the file for a domain.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, dom: u16, name: &str) -> io::Result<Self> {
        let first = json!({
            "name": "process_name", "ph": "M", "pid": dom,
            "args": { "name": format!("domain {dom}: {name}") },
        });
        write!(out, "[\n{first}")?;
        Ok(Writer { out, dom })
    }

    /// Writes one.
    ///
    /// # Errors
    /// What the file says.
    pub fn add(&mut self, record: &Record, line: &Line) -> io::Result<()> {
        write!(self.out, ",\n{}", event(self.dom, record, line))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// What the file says.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(b"\n]\n")?;
        self.out.flush()
    }
}

fn event(dom: u16, record: &Record, line: &Line) -> Value {
    let mut args = serde_json::Map::new();
    for (index, (name, value)) in line.args.iter().enumerate() {
        let name = if name.is_empty() {
            format!("arg{index}")
        } else {
            (*name).to_owned()
        };
        args.insert(name, json!(value));
    }
    if let Some(result) = &line.result {
        args.insert("result".into(), json!(result));
    }
    let category = line.name.split('.').next().unwrap_or_default();
    json!({
        "name": line.name, "cat": category, "ph": "X",
        "ts": micros(record.time_ns), "dur": micros(record.took_ns),
        "pid": dom, "tid": record.vcpu, "args": args,
    })
}

#[allow(clippy::cast_precision_loss)] // 52 bits of ns are 52 days
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Ports, decode};
    use domus_privcmd::trace::What;

    #[test]
    fn the_file_is_json_with_an_event_for_each_record() {
        let record = Record {
            time_ns: 2500,
            took_ns: 1250,
            vcpu: 1,
            what: What::Slept,
        };
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 3, "web").unwrap();
        writer
            .add(&record, &decode(&record, &Ports::new()))
            .unwrap();
        writer.finish().unwrap();
        let parsed: Value = serde_json::from_slice(&file).unwrap();
        let event = &parsed[1];
        assert_eq!(event["name"], "slept");
        assert_eq!((&event["ts"], &event["dur"]), (&json!(2.5), &json!(1.25)));
        assert_eq!((&event["pid"], &event["tid"]), (&json!(3), &json!(1)));
    }
}
