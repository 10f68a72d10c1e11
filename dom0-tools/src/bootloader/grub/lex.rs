//! Words, separators and braces of GRUB's script language.

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Letters as they are.
    Text(String),
    /// A variable's value.
    Variable {
        /// Its name.
        name: String,
        /// In quotes: an empty value leaves an empty word.
        quoted: bool,
    },
}

/// A word, which may hold variables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Word {
    /// Its pieces.
    pub parts: Vec<Part>,
    /// Some of it was in quotes: it stays a word if it is empty.
    pub quoted: bool,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A word.
    Word(Word),
    /// The end of a command: a new line, `;`, `|` or `&`.
    End,
    /// `{`.
    Open,
    /// `}`.
    Close,
}

impl Token {
    /// The text of a word that is nothing but unquoted text: a keyword, maybe.
    #[must_use]
    pub fn plain(&self) -> Option<&str> {
        match self {
            Token::Word(word) if !word.quoted => match word.parts.as_slice() {
                [Part::Text(text)] => Some(text),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Takes a text apart. There is no text that can't be.
#[must_use]
pub fn lex(text: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        rest: text,
        tokens: Vec::new(),
    };
    while lexer.token() {}
    lexer.tokens
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn token(&mut self) -> bool {
        let blank = |c: char| c.is_whitespace() && c != '\n';
        self.rest = self.rest.trim_start_matches(blank);
        let Some(first) = self.rest.chars().next() else {
            return false;
        };
        match first {
            '#' => {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            }
            '\n' | ';' | '|' | '&' => self.take(first, Token::End),
            '{' => self.take(first, Token::Open),
            '}' => self.take(first, Token::Close),
            _ => self.word(),
        }
        true
    }

    fn take(&mut self, first: char, token: Token) {
        self.next();
        debug_assert!(first.len_utf8() == 1);
        self.tokens.push(token);
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn word(&mut self) {
        let mut word = Word::default();
        let mut text = String::new();
        while let Some(c) = self.rest.chars().next() {
            if c.is_whitespace() || matches!(c, ';' | '|' | '&' | '{' | '}') {
                break;
            }
            self.next();
            match c {
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(c) => text.push(c),
                },
                '\'' => {
                    word.quoted = true;
                    while let Some(c) = self.next().filter(|c| *c != '\'') {
                        text.push(c);
                    }
                }
                '"' => {
                    word.quoted = true;
                    self.double_quoted(&mut word, &mut text);
                }
                '$' => self.variable(&mut word, &mut text, false),
                c => text.push(c),
            }
        }
        flush(&mut word, &mut text);
        self.tokens.push(Token::Word(word));
    }

    fn double_quoted(&mut self, word: &mut Word, text: &mut String) {
        while let Some(c) = self.next().filter(|c| *c != '"') {
            match c {
                '\\' => match self.next() {
                    Some(c @ ('"' | '\\' | '$')) => text.push(c),
                    Some('\n') | None => {}
                    Some(c) => text.extend(['\\', c]),
                },
                '$' => self.variable(word, text, true),
                c => text.push(c),
            }
        }
    }

    /// `$name`, `${name}`, `$1`; a `$` before anything else is itself.
    fn variable(&mut self, word: &mut Word, text: &mut String, quoted: bool) {
        let braced = self.rest.strip_prefix('{');
        let from = braced.unwrap_or(self.rest);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = from.find(|c| !is_name(c)).unwrap_or(from.len());
        let (name, after) = from.split_at(length);
        let after = match braced {
            Some(_) => after.strip_prefix('}'),
            None => Some(after),
        };
        match after {
            Some(after) if !name.is_empty() => {
                flush(word, text);
                let name = name.to_owned();
                word.parts.push(Part::Variable { name, quoted });
                self.rest = after;
            }
            _ => text.push('$'),
        }
    }
}

fn flush(word: &mut Word, text: &mut String) {
    if !text.is_empty() {
        word.parts.push(Part::Text(std::mem::take(text)));
    }
}
