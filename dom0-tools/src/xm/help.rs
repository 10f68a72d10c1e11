//! `xm help`.

use clap::Parser;

use super::{
    Session,
    error::XmError,
    output,
    table::{self, COMMANDS, Kind, Resolved, Subcommand},
    usage,
};

/// Display this message, or the help of a subcommand.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  xm help            the list of subcommands
  xm help create     all about one of them
  xm help --long     all about all of them")]
pub struct Help {
    /// The subcommand to explain
    #[arg(value_name = "Subcommand")]
    word: Option<String>,
    /// Explain all subcommands
    #[arg(short, long)]
    long: bool,
}

impl Subcommand for Help {
    fn run(self, session: &Session) -> Result<(), XmError> {
        match self.word {
            None if self.long => print_long(session),
            None => print_all(session),
            Some(word) => match table::resolve(&word) {
                Resolved::Found(command) | Resolved::Renamed { command, .. } => {
                    output::bytes(usage::full(session, command).as_bytes())
                }
                Resolved::Ambiguous(names) => Err(XmError::Ambiguous { word, names }),
                Resolved::Unknown => Err(XmError::NoSubcommand(word)),
            },
        }
    }
}

/// The list of subcommands.
pub fn print_all(session: &Session) -> Result<(), XmError> {
    output::bytes(usage::all(session).as_bytes())
}

fn print_long(session: &Session) -> Result<(), XmError> {
    let mut text = usage::all(session);
    for command in COMMANDS {
        if matches!(command.kind, Kind::Ready { .. }) {
            text.push_str(&format!(
                "\n{}\n{}",
                "-".repeat(72),
                usage::full(session, command)
            ));
        }
    }
    output::bytes(text.as_bytes())
}
