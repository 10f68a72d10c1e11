//! The grammar.
//!
//! ```text
//! file      := { statement }
//! statement := [ IDENT ("=" | "+=") value ] (NEWLINE | ";" | end)
//! value     := STRING | NUMBER | "[" [ value { "," value } [","] ] "]"
//! ```
//!
//! Inside brackets newlines and comments (`#` to the end of the line) may
//! stand anywhere. Strings are in '...' or "..." with C's backslash escapes;
//! numbers are decimal, 0octal or 0xhex, never negative.
//!
//! Law: any text gives a tree or a [`Problem`]; none makes this panic or
//! recurse without bound.

use winnow::{
    LocatingSlice, ModalResult, Parser,
    combinator::{alt, opt},
    error::{ErrMode, ParserError},
    stream::{Location, Stream},
    token::{any, take_while},
};

use super::python::{self, Construct, Where};

/// Lists in lists in lists: nobody needs more.
const MAX_DEPTH: usize = 16;

/// `key = value` or `key += value`, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: usize,
    /// `+=`.
    pub append: bool,
    /// What is assigned.
    pub value: Value,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Place of its first byte.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
}

/// The three kinds of value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A quoted string, escapes replaced.
    Text(String),
    /// A number, and how it was written (a key that wants text takes that).
    Number {
        /// As written.
        text: String,
        /// Its value.
        value: u64,
    },
    /// A list.
    List(Vec<Value>),
}

/// Why a text does not follow the grammar, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Place of the offending byte.
    pub at: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What can be wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A construct that needs a Python interpreter.
    #[error("this is Python: {}", .0.what)]
    Python(Construct),
    /// Something else where a key should stand.
    #[error("expected a key, found {0}")]
    NoKey(String),
    /// No `=` behind a key.
    #[error("expected '=' or '+=' after '{key}', found {found}")]
    NoEquals {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
    },
    /// No value behind `=`.
    #[error("expected a value (a string in quotes, a number or a list), found {0}")]
    NoValue(String),
    /// Something behind a value.
    #[error("expected the end of the line after the value, found {0}")]
    TrailingText(String),
    /// Something else where a list's `,` or `]` should stand.
    #[error("expected ',' or ']' in the list, found {0}")]
    NoComma(String),
    /// `[` without `]`.
    #[error("this '[' is never closed")]
    OpenList,
    /// A string without its closing quote.
    #[error("this {0} is not closed before the end of the line")]
    OpenQuote(char),
    /// `\q`.
    #[error("'\\{0}' is no escape that strings have")]
    BadEscape(char),
    /// `\0` and the like.
    #[error("a string can't hold a NUL character")]
    Nul,
    /// `12a`.
    #[error("'{0}' is not a number")]
    BadNumber(String),
    /// Too large.
    #[error("{0} is too large: numbers go up to 18446744073709551615")]
    HugeNumber(String),
    /// Lists in lists in lists.
    #[error("lists are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl Fault {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Fault::Python(construct) => return Some(construct.remedy.clone()),
            Fault::NoKey(_) | Fault::NoEquals { .. } => "Each setting is: key = value",
            Fault::NoValue(_) => "Text needs quotes: key = \"text\"",
            Fault::TrailingText(_) => "Put one setting on each line, or ';' between two.",
            Fault::NoComma(_) | Fault::OpenList => "A list is: key = [ \"one\", \"two\" ]",
            Fault::OpenQuote(_) => "A string ends on the line on which it begins.",
            Fault::BadEscape(_) => "For a backslash itself write \\\\.",
            Fault::BadNumber(_) => "Write 12, 0xc or 014; text needs quotes.",
            Fault::Nul | Fault::HugeNumber(_) | Fault::TooDeep => return None,
        };
        Some(text.to_owned())
    }
}

/// Parses a whole text. Places count from `base`.
///
/// # Errors
/// The first [`Problem`].
pub fn parse(text: &str, base: usize) -> Result<Vec<Assignment>, Problem> {
    let mut input = LocatingSlice::new(text);
    match file(&mut input) {
        Ok(mut all) => {
            for one in &mut all {
                one.at += base;
                shift(&mut one.value, base);
            }
            Ok(all)
        }
        Err(ErrMode::Backtrack(problem) | ErrMode::Cut(problem)) => Err(Problem {
            at: problem.at + base,
            ..problem
        }),
        Err(ErrMode::Incomplete(_)) => Err(Problem {
            at: base + text.len(),
            fault: Fault::NoValue("the end of the text".into()),
        }),
    }
}

fn shift(value: &mut Value, base: usize) {
    value.at += base;
    if let Kind::List(items) = &mut value.kind {
        items.iter_mut().for_each(|item| shift(item, base));
    }
}

type Input<'s> = LocatingSlice<&'s str>;
type Parse<T> = ModalResult<T, Problem>;

impl ParserError<Input<'_>> for Problem {
    type Inner = Self;

    fn from_input(input: &Input<'_>) -> Self {
        Problem {
            at: input.current_token_start(),
            fault: Fault::NoValue(found(input)),
        }
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

fn fail<T>(at: usize, fault: Fault) -> Parse<T> {
    Err(ErrMode::Cut(Problem { at, fault }))
}

/// A fault at the present place: the Python construct there, or else `fault`.
fn unexpected<T>(input: &Input<'_>, here: Where, fault: impl FnOnce(String) -> Fault) -> Parse<T> {
    let fault = match python::recognise(input.as_ref(), here) {
        Some(construct) => Fault::Python(construct),
        None => fault(found(input)),
    };
    fail(input.current_token_start(), fault)
}

fn found(input: &Input<'_>) -> String {
    match input.as_ref().chars().next() {
        None => "the end of the text".into(),
        Some('\n' | '\r') => "the end of the line".into(),
        Some('#') => "a comment".into(),
        Some(c) if c.is_control() => format!("the control character {:#04x}", u32::from(c)),
        Some(c) => format!("'{c}'"),
    }
}

fn file(input: &mut Input<'_>) -> Parse<Vec<Assignment>> {
    let mut all = Vec::new();
    loop {
        between_statements(input)?;
        if input.as_ref().is_empty() {
            return Ok(all);
        }
        all.push(assignment(input)?);
    }
}

fn assignment(input: &mut Input<'_>) -> Parse<Assignment> {
    let at = input.current_token_start();
    let start = input.checkpoint();
    let Some(key) = opt(ident).parse_next(input)? else {
        return unexpected(input, Where::Statement, Fault::NoKey);
    };
    let key = key.to_owned();
    spaces(input)?;
    let operator = alt(("+=", ("=", winnow::combinator::not("=")).take())).parse_next(input);
    let Ok(operator) = operator.map_err(|_: ErrMode<Problem>| ()) else {
        let behind = input.checkpoint();
        input.reset(&start);
        if let Some(construct) = python::recognise(input.as_ref(), Where::Statement) {
            return fail(at, Fault::Python(construct));
        }
        input.reset(&behind);
        let found = found(input);
        return fail(input.current_token_start(), Fault::NoEquals { key, found });
    };
    spaces(input)?;
    let value = value(input, 0)?;
    spaces(input)?;
    end_of_statement(input)?;
    Ok(Assignment {
        key,
        at,
        append: operator == "+=",
        value,
    })
}

fn end_of_statement(input: &mut Input<'_>) -> Parse<()> {
    match input.as_ref().chars().next() {
        None | Some('\n' | ';' | '#') => Ok(()),
        Some('\r') if input.as_ref().starts_with("\r\n") => Ok(()),
        Some(_) => unexpected(input, Where::AfterValue, Fault::TrailingText),
    }
}

fn value(input: &mut Input<'_>, depth: usize) -> Parse<Value> {
    let at = input.current_token_start();
    let kind = match input.as_ref().chars().next() {
        Some('[') => list(input, depth)?,
        Some(quote @ ('"' | '\'')) => Kind::Text(string(input, quote)?),
        Some(c) if c.is_ascii_digit() => number(input)?,
        _ => return unexpected(input, Where::Value, Fault::NoValue),
    };
    Ok(Value { at, kind })
}

fn list(input: &mut Input<'_>, depth: usize) -> Parse<Kind> {
    let open = input.current_token_start();
    if depth >= MAX_DEPTH {
        return fail(open, Fault::TooDeep);
    }
    "[".parse_next(input)?;
    let mut items = Vec::new();
    loop {
        between_items(input)?;
        if opt("]").parse_next(input)?.is_some() {
            return Ok(Kind::List(items));
        }
        if input.as_ref().is_empty() {
            return fail(open, Fault::OpenList);
        }
        items.push(value(input, depth + 1)?);
        between_items(input)?;
        match input.as_ref().chars().next() {
            Some(']') => {}
            Some(',') => {
                ",".parse_next(input)?;
            }
            None => return fail(open, Fault::OpenList),
            Some(_) => return unexpected(input, Where::AfterItem, Fault::NoComma),
        }
    }
}

fn number(input: &mut Input<'_>) -> Parse<Kind> {
    let at = input.current_token_start();
    let text = take_while(1.., |c: char| c.is_alphanumeric() || c == '_' || c == '.')
        .parse_next(input)?
        .to_owned();
    match number_value(&text) {
        Ok(value) => Ok(Kind::Number { text, value }),
        Err(fault) => fail(at, fault),
    }
}

/// The value of a number as C writes it.
///
/// # Errors
/// It is none, or it does not fit.
pub fn number_value(text: &str) -> Result<u64, Fault> {
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(Fault::BadNumber(text.to_owned()));
    }
    u64::from_str_radix(digits, radix).map_err(|_| Fault::HugeNumber(text.to_owned()))
}

fn string(input: &mut Input<'_>, quote: char) -> Parse<String> {
    let open = input.current_token_start();
    if let Some(construct) = python::triple_quotes(input.as_ref()) {
        return fail(open, Fault::Python(construct));
    }
    any.parse_next(input)?;
    let mut text = String::new();
    loop {
        let at = input.current_token_start();
        let c = match opt(any).parse_next(input)? {
            None | Some('\n') => return fail(open, Fault::OpenQuote(quote)),
            Some('\r') if input.as_ref().starts_with('\n') => {
                return fail(open, Fault::OpenQuote(quote));
            }
            Some(c) if c == quote => return Ok(text),
            Some('\\') => escape(input, open, quote)?,
            Some(c) => c,
        };
        if c == '\0' {
            return fail(at, Fault::Nul);
        }
        text.push(c);
    }
}

/// What stands for a backslash and what follows it.
fn escape(input: &mut Input<'_>, open: usize, quote: char) -> Parse<char> {
    let at = input.current_token_start();
    Ok(match opt(any).parse_next(input)? {
        None | Some('\n') => return fail(open, Fault::OpenQuote(quote)),
        Some(c @ ('\\' | '\'' | '"')) => c,
        Some('a') => '\x07',
        Some('b') => '\x08',
        Some('f') => '\x0c',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('v') => '\x0b',
        Some('x') => coded(input, at, 2, 16)?,
        Some(c) if c.is_digit(8) => {
            // Its first digit is read already: up to two more.
            let first = c.to_digit(8).unwrap_or(0);
            coded_from(input, at, first, 2, 8)?
        }
        Some(c) => return fail(at.saturating_sub(1), Fault::BadEscape(c)),
    })
}

fn coded(input: &mut Input<'_>, at: usize, digits: usize, radix: u32) -> Parse<char> {
    if !input.as_ref().starts_with(|c: char| c.is_digit(radix)) {
        return fail(at.saturating_sub(1), Fault::BadEscape('x'));
    }
    coded_from(input, at, 0, digits, radix)
}

fn coded_from(
    input: &mut Input<'_>,
    at: usize,
    first: u32,
    digits: usize,
    radix: u32,
) -> Parse<char> {
    let text = take_while(0..=digits, |c: char| c.is_digit(radix)).parse_next(input)?;
    let code = text
        .chars()
        .filter_map(|c| c.to_digit(radix))
        .fold(first, |sum, digit| sum * radix + digit);
    match char::from_u32(code) {
        Some(c) if code < 0x100 => Ok(c),
        _ => fail(at.saturating_sub(1), Fault::BadEscape('0')),
    }
}

fn ident<'s>(input: &mut Input<'s>) -> Parse<&'s str> {
    (
        winnow::token::one_of(|c: char| c.is_ascii_alphabetic() || c == '_'),
        take_while(0.., |c: char| c.is_ascii_alphanumeric() || c == '_'),
    )
        .take()
        .parse_next(input)
}

fn spaces(input: &mut Input<'_>) -> Parse<()> {
    take_while(0.., (' ', '\t')).void().parse_next(input)
}

/// What may stand between two statements: blanks, ends of lines, `;`,
/// comments.
fn between_statements(input: &mut Input<'_>) -> Parse<()> {
    filler(input, |c| matches!(c, ' ' | '\t' | '\r' | '\n' | ';'))
}

/// What may stand between a list's items.
fn between_items(input: &mut Input<'_>) -> Parse<()> {
    filler(input, |c| matches!(c, ' ' | '\t' | '\r' | '\n'))
}

fn filler(input: &mut Input<'_>, blank: impl Fn(char) -> bool + Copy) -> Parse<()> {
    loop {
        take_while(0.., blank).void().parse_next(input)?;
        if !input.as_ref().starts_with('#') {
            return Ok(());
        }
        take_while(0.., |c| c != '\n').void().parse_next(input)?;
    }
}

#[cfg(test)]
#[path = "syntax_tests.rs"]
mod tests;
