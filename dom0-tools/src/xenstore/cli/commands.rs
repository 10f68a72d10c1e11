//! What each command does.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::{Failure, ls, ls::Layout, text};
use crate::xenstore::{
    client::{Client, Error, Nodes},
    perms::Perm,
};

/// Asks for all keys in one transaction, if there are several.
pub(super) fn all<T>(
    store: &mut Client,
    keys: &[String],
    ask: impl Fn(&mut dyn Ask, &str) -> Result<T, Error>,
    failure: impl Fn(String, Error) -> Failure,
) -> Result<Vec<T>, Failure> {
    let mut failed = keys.first().cloned().unwrap_or_default();
    let answers = in_transaction(store, keys.len() > 1, |store| {
        let answers = keys.iter().map(|key| {
            failed.clone_from(key);
            ask(store, key)
        });
        answers.collect()
    });
    answers.map_err(|error| failure(failed, error))
}

/// What can be asked both of a client and of a transaction.
pub(super) trait Ask {
    fn read(&mut self, path: &str) -> Result<Vec<u8>, Error>;
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error>;
    fn exists(&mut self, path: &str) -> Result<bool, Error>;
    fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error>;
    fn rm(&mut self, path: &str) -> Result<(), Error>;
    fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Error>;
}

impl<N: Nodes> Ask for N {
    fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        Nodes::read(self, path)
    }
    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        Nodes::list(self, path)
    }
    fn exists(&mut self, path: &str) -> Result<bool, Error> {
        Nodes::exists(self, path)
    }
    fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        Nodes::write(self, path, value)
    }
    fn rm(&mut self, path: &str) -> Result<(), Error> {
        Nodes::rm(self, path)
    }
    fn set_perms(&mut self, path: &str, perms: &[Perm]) -> Result<(), Error> {
        Nodes::set_perms(self, path, perms)
    }
}

pub(super) fn in_transaction<T>(
    store: &mut Client,
    wanted: bool,
    mut body: impl FnMut(&mut dyn Ask) -> Result<T, Error>,
) -> Result<T, Error> {
    if wanted {
        store.transaction(|tx| body(tx))
    } else {
        body(store)
    }
}

/// A value as text: as it is where it is text, else with escapes.
pub(super) fn text_or_escaped(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).unwrap_or_else(|_| text::escape(value))
}

pub(super) fn print_json(
    out: &mut dyn Write,
    values: impl Iterator<Item = Value>,
    keys: &[String],
) -> Result<(), Failure> {
    let object: Map<String, Value> = keys.iter().cloned().zip(values).collect();
    writeln!(out, "{}", Value::Object(object))?;
    Ok(())
}

pub(super) fn print_values(
    out: &mut dyn Write,
    keys: &[String],
    values: &[Vec<u8>],
    prefix: bool,
    raw: bool,
) -> Result<(), Failure> {
    for (key, value) in keys.iter().zip(values) {
        if prefix {
            write!(out, "{key}: ")?;
        }
        if raw {
            out.write_all(value)?;
        } else {
            writeln!(out, "{}", text::escape(value))?;
        }
    }
    Ok(())
}

pub(super) fn print_lists(
    out: &mut dyn Write,
    keys: &[String],
    lists: &[Vec<String>],
    prefix: bool,
) -> Result<(), Failure> {
    for (key, list) in keys.iter().zip(lists) {
        for name in list {
            if prefix {
                write!(out, "{key}/")?;
            }
            writeln!(out, "{name}")?;
        }
    }
    Ok(())
}

pub(super) fn list_trees(
    store: &mut Client,
    out: &mut dyn Write,
    mut paths: Vec<String>,
    flat: bool,
    perms: bool,
    as_json: bool,
) -> Result<(), Failure> {
    if paths.is_empty() {
        paths.push("/".into());
    }
    let mut nodes = Map::new();
    for path in paths {
        if as_json {
            nodes.extend(ls::to_json(store, &path, perms)?);
        } else {
            ls::print(store, out, &path, Layout::new(flat, perms, columns()))?;
        }
    }
    if as_json {
        writeln!(out, "{}", Value::Object(nodes))?;
    }
    Ok(())
}

pub(super) fn write_pairs(store: &mut Client, pairs: &[String], raw: bool) -> Result<(), Failure> {
    let (pairs, rest) = pairs.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Failure::Pairs);
    }
    let mut failed = String::new();
    let done = in_transaction(store, pairs.len() > 1, |store| {
        for [key, value] in pairs {
            failed.clone_from(key);
            if raw {
                store.write(key, value.as_bytes())?;
            } else {
                store.write(key, &text::unescape(value.as_bytes()))?;
            }
        }
        Ok(())
    });
    done.map_err(|error| Failure::Write(failed, error))
}

pub(super) fn remove(store: &mut Client, keys: &[String], tidy: bool) -> Result<(), Failure> {
    let mut failed = String::new();
    let done = in_transaction(store, tidy || keys.len() > 1, |store| {
        for key in keys {
            failed.clone_from(key);
            store.rm(key)?;
            if tidy {
                remove_empty_above(store, key)?;
            }
        }
        Ok(())
    });
    done.map_err(|error| Failure::Remove(failed, error))
}

/// Removes the nodes above `key` that have neither value nor children.
pub(super) fn remove_empty_above(store: &mut dyn Ask, key: &str) -> Result<(), Error> {
    let mut path = key;
    while let Some((above, _)) = path.rsplit_once('/') {
        if above.is_empty() || !store.read(above)?.is_empty() || !store.list(above)?.is_empty() {
            break;
        }
        store.rm(above)?;
        path = above;
    }
    Ok(())
}

pub(super) fn chmod(
    store: &mut Client,
    key: &str,
    modes: &[String],
    upto: bool,
    recurse: bool,
) -> Result<(), Failure> {
    let perms = modes
        .iter()
        .map(|mode| Perm::parse(mode.as_bytes()).map_err(|_| Failure::Mode(mode.clone())));
    let perms: Vec<Perm> = perms.collect::<Result<_, _>>()?;
    let mut failed = String::new();
    let done = in_transaction(store, upto || recurse, |store| {
        let mut paths = vec![key.to_owned()];
        if upto {
            let slashes = key.match_indices('/').map(|(at, _)| at);
            paths.extend(slashes.filter(|at| *at > 0).map(|at| key[..at].to_owned()));
        }
        while let Some(path) = paths.pop() {
            failed.clone_from(&path);
            store.set_perms(&path, &perms)?;
            if recurse && (path == key || path.starts_with(&format!("{key}/"))) {
                let base = path.strip_suffix('/').unwrap_or(&path);
                let names = store.list(&path)?.into_iter();
                paths.extend(names.map(|name| format!("{base}/{name}")));
            }
        }
        Ok(())
    });
    done.map_err(|error| Failure::SetPerms(failed, error))
}

pub(super) fn watch(
    store: &mut Client,
    out: &mut dyn Write,
    keys: &[String],
    number: Option<u64>,
    as_json: bool,
) -> Result<(), Failure> {
    for key in keys {
        let added = store.watch(key, key);
        added.map_err(|error| Failure::Watch(key.clone(), error))?;
    }
    let mut count = 0;
    while number.is_none_or(|number| count < number) {
        let Some(event) = store.next_event(None)? else {
            continue;
        };
        if as_json {
            writeln!(
                out,
                "{}",
                json!({ "path": event.path, "watch": event.token })
            )?;
        } else {
            writeln!(out, "{}", event.path)?;
        }
        out.flush()?;
        count += 1;
    }
    Ok(())
}

/// The width of the terminal, if stdout is one.
pub(super) fn columns() -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call writes at most a winsize, which `size` is.
    let done = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0 && size.ws_col > 0).then_some(size.ws_col)
}
