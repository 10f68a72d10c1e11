//! Why a subcommand failed, how it says so, and the exit code.
//!
//! 0 done; 1 wrong usage or any failure; 3 the named domain does not exist.

use std::{io, process::ExitCode};

use domus_privcmd::client::ClientError;

use super::{Session, life::LifeError, table::Command, usage};
use crate::{
    config::Diagnostic, console::attach::AttachError, services::ServiceError,
    xenstore::client::Error as StoreError,
};

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub enum XmError {
    /// No subcommand at all.
    #[error("no subcommand")]
    NoCommand,
    /// Unknown.
    #[error("Subcommand {0} not found!")]
    NoSubcommand(String),
    /// A prefix of several.
    #[error("Subcommand {word} is ambiguous: {}", names.join(", "))]
    Ambiguous {
        /// What was typed.
        word: String,
        /// What it could be.
        names: Vec<&'static str>,
    },
    /// One of xm's that is not here.
    #[error("'{program} {command}' is not supported: {why}.")]
    Absent {
        /// `xm` or `xl`.
        program: &'static str,
        /// The subcommand.
        command: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Wrong arguments; the usage is shown too.
    #[error("{message}")]
    Usage {
        /// Of which subcommand.
        command: &'static Command,
        /// What is wrong with them.
        message: String,
    },
    /// No such domain.
    #[error("Domain '{0}' does not exist.")]
    NoDomain(String),
    /// A configuration that is wrong.
    #[error(transparent)]
    Config(#[from] Box<Diagnostic>),
    /// The services.
    #[error(transparent)]
    Services(#[from] ServiceError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] ClientError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Making or ending a domain.
    #[error(transparent)]
    Life(#[from] LifeError),
    /// The console.
    #[error(transparent)]
    Console(#[from] AttachError),
    /// An exit code that says it all.
    #[error("exit code {0}")]
    Quiet(u8),
    /// Who reads our output has gone.
    #[error("the output was closed")]
    OutputClosed,
    /// Our output can't be written.
    #[error("can't write the output: {0}")]
    Output(io::Error),
    /// Anything else, said in full.
    #[error("{0}")]
    Failed(String),
}

impl From<Diagnostic> for XmError {
    fn from(diagnostic: Diagnostic) -> Self {
        XmError::Config(Box::new(diagnostic))
    }
}

impl XmError {
    /// The exit code of a program that failed so.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            XmError::NoDomain(_) => 3,
            XmError::Quiet(code) => *code,
            _ => 1,
        }
    }

    /// Says it on stderr.
    #[must_use]
    pub fn report(&self, session: &Session) -> ExitCode {
        match self {
            XmError::OutputClosed | XmError::Quiet(_) => {}
            XmError::NoCommand => eprintln!("{}", usage::short(session)),
            XmError::NoSubcommand(_) => eprintln!("Error: {self}\n{}", usage::short(session)),
            XmError::Usage { command, .. } => {
                eprintln!("Error: {self}\n\n{}", usage::of(session, command));
            }
            _ => eprintln!("Error: {self}"),
        }
        ExitCode::from(self.exit_code())
    }
}
