//! Names the Python constructs that xm's files could hold and ours can't.
//!
//! xm executed its configuration files. People have files with variables,
//! imports and `%` in them; to tell them "syntax error" would be true and
//! useless. This looks at the text where the grammar ended and says what
//! stands there and what to write in its place. It decides nothing else: a
//! construct that it does not know still is an error of the grammar.

/// A Python construct, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Construct {
    /// What it is.
    pub what: String,
    /// What to write in its place.
    pub remedy: String,
}

/// Where the grammar ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// At the start of a statement.
    Statement,
    /// Where a value was expected.
    Value,
    /// Behind a value.
    AfterValue,
    /// Behind a value in a list.
    AfterItem,
}

const STATEMENTS: [&str; 23] = [
    "import", "from", "def", "class", "if", "elif", "else", "for", "while", "try", "except",
    "finally", "with", "print", "exec", "return", "raise", "assert", "del", "global", "pass",
    "lambda", "async",
];

const NOT_RUN: &str = "Configuration files are data and are not run:";

/// The construct at the start of `rest`, if it is a known one.
#[must_use]
pub fn recognise(rest: &str, here: Where) -> Option<Construct> {
    match here {
        Where::Statement => statement(rest),
        Where::Value => value(rest),
        Where::AfterValue => after_value(rest),
        Where::AfterItem => comprehension(rest).or_else(|| after_value(rest)),
    }
}

/// A triple-quoted string at the start of `rest`.
#[must_use]
pub fn triple_quotes(rest: &str) -> Option<Construct> {
    (rest.starts_with("\"\"\"") || rest.starts_with("'''")).then(|| {
        construct(
            "a triple-quoted string",
            "Write \"...\" on one line, with \\n for a line's end; comments begin with #.",
        )
    })
}

fn construct(what: impl Into<String>, remedy: impl Into<String>) -> Construct {
    Construct {
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn statement(rest: &str) -> Option<Construct> {
    if let Some(found) = triple_quotes(rest) {
        return Some(found);
    }
    if rest.starts_with('@') {
        return Some(construct(
            "a decorator",
            format!("{NOT_RUN} remove the function."),
        ));
    }
    let (word, behind) = split_word(rest)?;
    let next = behind.trim_start_matches([' ', '\t']);
    if let Some(keyword) = STATEMENTS.iter().find(|k| **k == word) {
        return Some(construct(
            format!("the statement '{keyword}'"),
            format!("{NOT_RUN} write the resulting settings themselves."),
        ));
    }
    if next.starts_with('(') {
        return Some(call(word));
    }
    if next.starts_with('.') {
        return Some(construct(
            format!("a method or attribute of '{word}'"),
            format!("{NOT_RUN} to add to a list write {word} += [ ... ]"),
        ));
    }
    if next.starts_with('[') {
        return Some(construct(
            format!("an index into '{word}'"),
            format!("{NOT_RUN} write the whole list: {word} = [ ... ]"),
        ));
    }
    if next.starts_with(',') {
        return Some(construct(
            "an assignment to several names",
            "Write one key = value on each line.",
        ));
    }
    if next.starts_with("==") {
        return Some(construct("a comparison", "To set a key write one '='."));
    }
    let operator = next.split_once('=')?.0;
    let augmented = matches!(
        operator,
        "-" | "*" | "/" | "//" | "%" | "**" | "&" | "|" | "^" | "<<" | ">>" | ":"
    );
    augmented.then(|| {
        construct(
            format!("the operator '{operator}='"),
            format!("{NOT_RUN} only = and += (for lists and strings) exist."),
        )
    })
}

fn value(rest: &str) -> Option<Construct> {
    match rest.chars().next()? {
        '(' => Some(construct(
            "a tuple or an expression in parentheses",
            format!("{NOT_RUN} write a list in [ ] or the resulting value."),
        )),
        '{' => Some(construct(
            "a dictionary",
            "Write a string of options, such as \"mac=...,bridge=...\"",
        )),
        sign @ ('-' | '+') => Some(construct(
            format!("a number with a sign ('{sign}')"),
            "Where a negative number has a meaning, write it in quotes: \"-1\"",
        )),
        '\\' => Some(continuation()),
        '`' => Some(construct(
            "backquotes",
            format!("{NOT_RUN} write the resulting value."),
        )),
        _ => value_word(rest),
    }
}

fn value_word(rest: &str) -> Option<Construct> {
    let (word, behind) = split_word(rest)?;
    let next = behind.trim_start_matches([' ', '\t']);
    let prefix = matches!(
        word.to_ascii_lowercase().as_str(),
        "r" | "u" | "b" | "f" | "br" | "rb" | "ur"
    );
    Some(match word {
        "True" => construct("the constant True", "Write 1."),
        "False" => construct("the constant False", "Write 0."),
        "None" => construct("the constant None", "Leave the key out."),
        "lambda" | "not" => construct(
            format!("an expression with '{word}'"),
            format!("{NOT_RUN} write the resulting value."),
        ),
        _ if prefix && behind.starts_with(['"', '\'']) => construct(
            format!("a string with the prefix '{word}'"),
            format!("Remove the '{word}'; for a backslash write \\\\."),
        ),
        _ if next.starts_with('(') => call(word),
        _ if next.starts_with('.') => construct(
            format!("an attribute of '{word}'"),
            format!("{NOT_RUN} write the resulting value."),
        ),
        _ if next.starts_with('[') => construct(
            format!("an index into '{word}'"),
            format!("{NOT_RUN} write the resulting value."),
        ),
        _ => construct(
            format!("the variable '{word}'"),
            format!("{NOT_RUN} write its value; text needs quotes: \"{word}\""),
        ),
    })
}

fn after_value(rest: &str) -> Option<Construct> {
    let first = rest.chars().next()?;
    match first {
        '%' => Some(construct(
            "string formatting with '%'",
            format!("{NOT_RUN} write the resulting string."),
        )),
        '+' | '-' | '*' | '/' | '<' | '>' | '&' | '|' | '^' | '=' | '!' => Some(construct(
            format!("an expression with the operator '{first}'"),
            format!("{NOT_RUN} write the resulting value."),
        )),
        '.' => Some(construct(
            "a method call on a value",
            format!("{NOT_RUN} write the resulting value."),
        )),
        '[' => Some(construct(
            "an index into a value",
            format!("{NOT_RUN} write the resulting value."),
        )),
        ',' => Some(construct(
            "a tuple without parentheses",
            "Write a list: key = [ \"one\", \"two\" ]",
        )),
        '"' | '\'' => Some(construct(
            "two strings side by side",
            "Write them as one string, or put a comma between a list's items.",
        )),
        '\\' => Some(continuation()),
        _ => {
            let (word, _) = split_word(rest)?;
            matches!(word, "if" | "for" | "and" | "or" | "in" | "is" | "not").then(|| {
                construct(
                    format!("an expression with '{word}'"),
                    format!("{NOT_RUN} write the resulting value."),
                )
            })
        }
    }
}

fn comprehension(rest: &str) -> Option<Construct> {
    let (word, _) = split_word(rest)?;
    (word == "for").then(|| {
        construct(
            "a list comprehension",
            format!("{NOT_RUN} write out the list's items."),
        )
    })
}

fn call(name: &str) -> Construct {
    construct(
        format!("a call of the function '{name}'"),
        format!("{NOT_RUN} write the resulting value."),
    )
}

fn continuation() -> Construct {
    construct(
        "a line continued with a backslash",
        "Write it on one line; inside [ ] lines may be broken anywhere.",
    )
}

/// The identifier at the start of `rest`, and what follows it.
fn split_word(rest: &str) -> Option<(&str, &str)> {
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
        .then_some((word, behind))
}
