//! From a subcommand's arguments to its typed form, in xm's words.

use clap::{
    Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    Session,
    error::XmError,
    output,
    table::{COMMANDS, Command, Group, Kind},
};

/// Parses a subcommand's arguments. `None`: help was asked for and given.
///
/// # Errors
/// [`XmError::Usage`] with xm's wording.
pub fn parse<T: Parser>(
    session: &Session,
    command: &'static Command,
    args: &[String],
) -> Result<Option<T>, XmError> {
    let name = format!("{} {}", session.program, command.name);
    let clap = prepared(session, command, T::command());
    let argv = std::iter::once(&name).chain(args);
    let parsed = clap
        .try_get_matches_from(argv)
        .and_then(|matches| T::from_arg_matches(&matches));
    match parsed {
        Ok(parsed) => Ok(Some(parsed)),
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::bytes(e.render().to_string().as_bytes())?;
            Ok(None)
        }
        Err(error) => Err(XmError::Usage {
            command,
            message: message(&name, &error, T::command()),
        }),
    }
}

fn prepared(session: &Session, command: &Command, clap: clap::Command) -> clap::Command {
    let name = format!("{} {}", session.program, command.name);
    clap.name(command.name)
        .bin_name(name)
        .disable_version_flag(true)
        .help_template("{usage-heading} {usage}\n\n{about}\n\n{all-args}{after-help}")
}

/// xm's sentence for clap's error.
fn message(name: &str, error: &clap::Error, clap: clap::Command) -> String {
    let culprit = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let counting = match error.kind() {
        ErrorKind::MissingRequiredArgument | ErrorKind::TooManyValues => true,
        ErrorKind::UnknownArgument => !culprit.starts_with('-'),
        _ => false,
    };
    if counting {
        let missing = error.kind() == ErrorKind::MissingRequiredArgument;
        return format!("'{name}' requires {}.", wanted(clap, usize::from(missing)));
    }
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// "1 argument", "between 0 and 2 arguments"; `at_least` is known of the
/// arguments that an option may stand for.
fn wanted(clap: clap::Command, at_least: usize) -> String {
    let (mut least, mut most) = (0usize, Some(0usize));
    for arg in clap.get_positionals() {
        least += usize::from(arg.is_required_set());
        let unbounded = matches!(arg.get_action(), clap::ArgAction::Append);
        most = if unbounded { None } else { most.map(|n| n + 1) };
    }
    least = least.max(at_least);
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    match most {
        Some(most) if most == least => format!("{most} argument{}", plural(most)),
        Some(most) => format!("between {least} and {most} arguments"),
        None => format!("at least {least} argument{}", plural(least)),
    }
}

/// The usage of one subcommand, for an error.
#[must_use]
pub fn of(session: &Session, command: &Command) -> String {
    let Kind::Ready { clap, .. } = command.kind else {
        return String::new();
    };
    let mut clap = prepared(session, command, clap());
    let about = clap
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    format!("{}\n\n{about}", clap.render_usage())
}

/// The whole help of one subcommand.
#[must_use]
pub fn full(session: &Session, command: &Command) -> String {
    match command.kind {
        Kind::Ready { clap, .. } => prepared(session, command, clap()).render_help().to_string(),
        Kind::Absent { why } => {
            format!(
                "'{} {}' is not supported: {why}.\n",
                session.program, command.name
            )
        }
    }
}

/// What `xm` says when it is called in a way that it does not know.
#[must_use]
pub fn short(session: &Session) -> String {
    let program = session.program;
    let common = [
        "create", "list", "console", "shutdown", "reboot", "destroy", "pause", "unpause", "uptime",
        "info", "dmesg", "help",
    ];
    let rows: String = common
        .iter()
        .filter_map(|name| super::table::named(name))
        .map(row)
        .collect();
    format!(
        "Usage: {program} <subcommand> [args]\n\n\
         Control, list, and manipulate Xen guest instances.\n\n\
         Common '{program}' commands:\n\n{rows}\n\
         <Domain> can either be the Domain Name or Id.\n\
         '{program} help' lists all subcommands; '{program} help <subcommand>' explains one."
    )
}

/// The list of all subcommands that work.
#[must_use]
pub fn all(session: &Session) -> String {
    let program = session.program;
    let mut text = format!(
        "Usage: {program} <subcommand> [args]\n\n\
         Control, list, and manipulate Xen guest instances.\n"
    );
    for (title, group) in [
        ("Domains' lives", Group::Domains),
        ("Looking at domains", Group::Looking),
        ("Disks and network interfaces", Group::Devices),
        ("The host and its services", Group::Host),
    ] {
        text.push_str(&format!("\n{title}:\n"));
        let rows = COMMANDS.iter().filter(|c| c.group == group);
        text.extend(rows.map(row));
    }
    text.push_str(&format!(
        "\n<Domain> can either be the Domain Name or Id.\n\
         A prefix that only one subcommand has will do: '{program} li' is '{program} list'.\n\
         '{program} help <subcommand>' explains one, with examples; '{program} help --long' explains all.\n"
    ));
    text
}

fn row(command: &'static Command) -> String {
    match command.kind {
        Kind::Ready { clap, .. } => {
            let about = clap().get_about().map(ToString::to_string);
            format!(" {:<20} {}\n", command.name, about.unwrap_or_default())
        }
        Kind::Absent { .. } => String::new(),
    }
}
