//! `xenstore`, the command line of xenstore, and its names from Xen:
//! `xenstore-ls`, `xenstore-read` and so on.

mod commands;
mod ls;
mod text;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use self::commands::{
    all, chmod, list_trees, print_json, print_lists, print_values, remove, text_or_escaped, watch,
    write_pairs,
};
use super::client::{Client, Error};

/// Read and change xenstore.
#[derive(Debug, Parser)]
#[command(name = "xenstore", version, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print values
    Read {
        /// Print the key before each value
        #[arg(short, long)]
        prefix: bool,
        /// Print the bytes as they are, without escapes and newline
        #[arg(short = 'R', long)]
        raw: bool,
        #[command(flatten)]
        common: Common,
        #[arg(required = true)]
        key: Vec<String>,
    },
    /// Set values
    Write {
        /// Take the value as it is, without escapes
        #[arg(short = 'R', long)]
        raw: bool,
        #[command(flatten)]
        common: NoJson,
        /// Keys and values by turns
        #[arg(required = true, value_name = "KEY VALUE", allow_hyphen_values = true)]
        pairs: Vec<String>,
    },
    /// Print the names of children
    List {
        /// Print the key before each name
        #[arg(short, long)]
        prefix: bool,
        #[command(flatten)]
        common: Common,
        #[arg(required = true)]
        key: Vec<String>,
    },
    /// Print trees
    Ls {
        /// Whole paths instead of indented names
        #[arg(short, long)]
        flat: bool,
        /// Permissions too
        #[arg(short, long)]
        prefix: bool,
        #[command(flatten)]
        common: Common,
        /// Where to begin [default: /]
        path: Vec<String>,
    },
    /// Remove nodes and all below them
    Rm {
        /// Also remove the nodes above that become empty
        #[arg(short, long)]
        tidy: bool,
        #[command(flatten)]
        common: NoJson,
        #[arg(required = true)]
        key: Vec<String>,
    },
    /// Exit with 0 if the nodes exist, with 1 if one does not
    Exists {
        #[command(flatten)]
        common: Common,
        #[arg(required = true)]
        key: Vec<String>,
    },
    /// Set permissions
    Chmod {
        /// The nodes above as well
        #[arg(short, long)]
        upto: bool,
        /// All nodes below as well
        #[arg(short, long)]
        recurse: bool,
        #[command(flatten)]
        common: NoJson,
        key: String,
        /// n, r, w or b and a domid: the first one names the owner, and says
        /// what domains may do that are not named
        #[arg(required = true)]
        modes: Vec<String>,
    },
    /// Ask or tell the daemon itself: help, check, log, quota
    Control {
        #[arg(required = true)]
        words: Vec<String>,
    },
    /// Print what changes at or below the keys
    Watch {
        /// End after this many events
        #[arg(short, long, value_name = "NR")]
        number: Option<u64>,
        #[command(flatten)]
        common: Common,
        #[arg(required = true)]
        key: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rest: NoJson,
}

#[derive(Debug, Args)]
struct NoJson {
    /// Use the daemon's socket: always so, accepted for Xen's scripts
    #[arg(short, long)]
    socket: bool,
}

/// Why the program failed; the text goes to stderr, if there is one.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Store(#[from] Error),
    #[error("couldn't read path {0}: {1}")]
    Read(String, Error),
    #[error("could not write path {0}: {1}")]
    Write(String, Error),
    #[error("could not remove path {0}: {1}")]
    Remove(String, Error),
    #[error("could not list path {0}: {1}")]
    List(String, Error),
    #[error("Error occurred setting permissions on '{0}': {1}")]
    SetPerms(String, Error),
    #[error("Unable to add watch on {0}: {1}")]
    Watch(String, Error),
    #[error("Invalid permission specification: '{0}'; it is n, r, w or b and a domid")]
    Mode(String),
    #[error("a value is missing: keys and values come in pairs")]
    Pairs,
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("")]
    Missing,
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let name = split_name(&mut args);
    let options = match Options::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let done = run(options.command, &mut out).and_then(|()| Ok(out.flush()?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Missing) => ExitCode::FAILURE,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{name}: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Makes `xenstore-read KEY` read as `xenstore read KEY`, and tells the name
/// under which the program runs.
fn split_name(args: &mut Vec<OsString>) -> String {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    let name = name.map_or("xenstore".into(), |name| {
        name.to_string_lossy().into_owned()
    });
    if let Some(command) = name.strip_prefix("xenstore-") {
        args[0] = "xenstore".into();
        args.insert(1, command.into());
    }
    name
}

fn run(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    let mut store = Client::connect()?;
    match command {
        Command::Read {
            prefix,
            raw,
            common,
            key,
        } => {
            let values = all(
                &mut store,
                &key,
                |store, key| store.read(key),
                Failure::Read,
            )?;
            if common.json {
                return print_json(
                    out,
                    values.iter().map(|value| json!(text_or_escaped(value))),
                    &key,
                );
            }
            print_values(out, &key, &values, prefix, raw)
        }
        Command::List {
            prefix,
            common,
            key,
        } => {
            let lists = all(
                &mut store,
                &key,
                |store, key| store.list(key),
                Failure::List,
            )?;
            if common.json {
                return print_json(out, lists.iter().map(|list| json!(list)), &key);
            }
            print_lists(out, &key, &lists, prefix)
        }
        Command::Exists { common, key } => {
            let found = all(
                &mut store,
                &key,
                |store, key| store.exists(key),
                Failure::Read,
            )?;
            if common.json {
                print_json(out, found.iter().map(|found| json!(found)), &key)?;
                out.flush()?;
            }
            if found.into_iter().all(|found| found) {
                Ok(())
            } else {
                Err(Failure::Missing)
            }
        }
        Command::Ls {
            flat,
            prefix,
            common,
            path,
        } => list_trees(&mut store, out, path, flat, prefix, common.json),
        Command::Write { raw, pairs, .. } => write_pairs(&mut store, &pairs, raw),
        Command::Rm { tidy, key, .. } => remove(&mut store, &key, tidy),
        Command::Chmod {
            upto,
            recurse,
            key,
            modes,
            ..
        } => chmod(&mut store, &key, &modes, upto, recurse),
        Command::Control { words } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            writeln!(out, "{}", store.control(&words)?.trim_end())?;
            Ok(())
        }
        Command::Watch {
            number,
            common,
            key,
        } => watch(&mut store, out, &key, number, common.json),
    }
}
