//! `xenstore ls`: a tree as text, in the columns of Xen's tool, or as JSON.

use std::io::{self, Write};

use guest_abi::errno::Errno;
use serde_json::{Map, Value, json};

use super::{Failure, text::escape};
use crate::xenstore::client::{Client, Error, Nodes};

/// What a cut-off value needs at least: ` = "..."`.
const TAG_LEN: usize = 8;

/// How a tree is printed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Lines are cut off here.
    pub(super) max_width: usize,
    /// Permissions begin here.
    pub(super) perms_column: usize,
    /// Whole paths instead of indented names.
    pub(super) flat: bool,
    /// Permissions too.
    pub(super) perms: bool,
}

impl Layout {
    /// The layout for a terminal of this width; without one it is 80.
    pub(super) fn new(flat: bool, perms: bool, columns: Option<u16>) -> Layout {
        let columns = columns.map_or(80, |columns| usize::from(columns).saturating_sub(2));
        Layout {
            max_width: if flat { usize::MAX / 2 } else { columns },
            perms_column: if flat { 0 } else { 60 },
            flat,
            perms,
        }
    }
}

/// A node as it is found on the way.
struct Found {
    path: String,
    depth: usize,
    value: Option<Vec<u8>>,
    perms: Option<String>,
}

/// Prints everything below `path`.
pub(super) fn print(
    store: &mut Client,
    out: &mut dyn Write,
    path: &str,
    layout: Layout,
) -> Result<(), Failure> {
    walk(store, path, layout.perms, |found| {
        out.write_all(line(found, layout).as_bytes())
    })
}

/// Calls `visit` for each node below `top`, parents first. Nodes that vanish
/// or close meanwhile are passed over.
fn walk(
    store: &mut Client,
    top: &str,
    with_perms: bool,
    mut visit: impl FnMut(&Found) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut stack = children(top, 0, store.list(top)?);
    while let Some((path, depth)) = stack.pop() {
        let perms = if with_perms {
            passing_over(store.perms(&path))?
        } else {
            None
        };
        let spelt = perms.map(|perms| {
            let entries: Vec<String> = perms.iter().map(ToString::to_string).collect();
            entries.join(",")
        });
        let value = passing_over(store.read(&path))?;
        visit(&Found {
            path: path.clone(),
            depth,
            value,
            perms: spelt,
        })?;
        let below = passing_over(store.list(&path))?.unwrap_or_default();
        stack.extend(children(&path, depth + 1, below));
    }
    Ok(())
}

/// The children's paths, last one first.
fn children(path: &str, depth: usize, names: Vec<String>) -> Vec<(String, usize)> {
    let base = path.strip_suffix('/').unwrap_or(path);
    let names = names.into_iter().rev();
    names
        .map(|name| (format!("{base}/{name}"), depth))
        .collect()
}

fn passing_over<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EACCES)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn line(found: &Found, layout: Layout) -> String {
    let mut line = if layout.flat {
        found.path.clone()
    } else {
        let name = found.path.rsplit('/').next().unwrap_or("");
        let room = layout.max_width.saturating_sub(TAG_LEN + found.depth);
        format!("{:depth$}{name:.room$}", "", depth = found.depth)
    };
    // A whole path does not count: with it no line is ever cut off.
    let width = if layout.flat { 0 } else { line.len() };
    match &found.value {
        None => line.push(':'),
        Some(value) if layout.max_width < width + value.len() + TAG_LEN => {
            let room = layout.max_width.saturating_sub(TAG_LEN + width);
            line.push_str(&format!(" = \"{:.room$}\\...\"", escape(value)));
        }
        Some(value) => {
            let text = format!(" = \"{}\"", escape(value));
            line.push_str(&text);
            if found.perms.is_some() {
                let end = layout.perms_column.min(layout.max_width);
                line.push(' ');
                line.extend(
                    (width + text.len() + 1..end).map(|at| if at & 1 == 1 { '.' } else { ' ' }),
                );
            }
        }
    }
    if let Some(perms) = &found.perms {
        line.push_str(&format!("  ({perms})"));
    }
    line.push('\n');
    line
}

/// Everything below `path`, keyed by whole path.
pub(super) fn to_json(
    store: &mut Client,
    path: &str,
    with_perms: bool,
) -> Result<Map<String, Value>, Failure> {
    let mut nodes = Map::new();
    walk(store, path, with_perms, |found| {
        let value = found.value.as_deref().map(super::commands::text_or_escaped);
        let node = match &found.perms {
            Some(perms) => json!({ "value": value, "perms": perms.split(',').collect::<Vec<_>>() }),
            None => json!(value),
        };
        nodes.insert(found.path.clone(), node);
        Ok(())
    })?;
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, depth: usize, value: &str, perms: Option<&str>) -> Found {
        Found {
            path: path.into(),
            depth,
            value: Some(value.into()),
            perms: perms.map(Into::into),
        }
    }

    #[test]
    fn lines_are_those_of_xenstore_ls() {
        let plain = Layout::new(false, false, None);
        let line_of = |value: &str| line(&found("/a/name", 1, value, None), plain);
        assert_eq!(line_of("x"), " name = \"x\"\n");
        assert_eq!(
            line_of(&"v".repeat(68)),
            format!(" name = \"{}\\...\"\n", "v".repeat(67))
        );
        assert_eq!(
            line_of(&"v".repeat(67)),
            format!(" name = \"{}\"\n", "v".repeat(67))
        );
    }

    #[test]
    fn permissions_stand_in_a_column() {
        let layout = Layout::new(false, true, None);
        let line = line(&found("/a/name", 1, "x", Some("n0,r5")), layout);
        let expected = format!(" name = \"x\" {}  (n0,r5)\n", " .".repeat(24));
        assert_eq!(line, expected);
        assert_eq!(line.find("  (").unwrap(), 60);
    }

    #[test]
    fn flat_lines_have_whole_paths_and_are_never_cut() {
        let layout = Layout::new(true, true, None);
        let value = "v".repeat(500);
        let line = line(&found("/a/name", 1, &value, Some("n0")), layout);
        assert_eq!(line, format!("/a/name = \"{value}\"   (n0)\n"));
    }
}
