//! From tokens to statements. What can't be understood is passed over.

use super::lex::{Token, Word};

/// Deeper than anybody writes, and far from the end of our stack.
const MAX_DEPTH: usize = 40;

/// A statement.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command and its arguments; a menu entry with its body.
    Command {
        /// Its words.
        words: Vec<Word>,
        /// What stands in braces behind it.
        body: Option<Vec<Statement>>,
    },
    /// `if`, `elif`, ... and what is done then; `else` has no condition.
    If(Vec<Branch>),
}

/// One branch of an `if`.
#[derive(Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its condition: the last command's result. `None` is always so.
    pub condition: Option<Vec<Statement>>,
    /// What is done.
    pub body: Vec<Statement>,
}

/// Puts the tokens together.
#[must_use]
pub fn parse(tokens: &[Token]) -> Vec<Statement> {
    let mut parser = Parser { tokens, at: 0 };
    let mut all = Vec::new();
    while parser.at < tokens.len() {
        all.extend(parser.block(0, &[]));
        // A brace or keyword that ends nothing.
        parser.at += 1;
    }
    all
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn keyword(&self) -> &str {
        self.peek().and_then(Token::plain).unwrap_or_default()
    }

    /// Statements up to `}` or one of the keywords, which is left.
    fn block(&mut self, depth: usize, until: &[&str]) -> Vec<Statement> {
        let mut statements = Vec::new();
        loop {
            match self.peek() {
                None | Some(Token::Close) => return statements,
                Some(Token::End) => self.at += 1,
                Some(_) if until.contains(&self.keyword()) => return statements,
                Some(_) if depth > MAX_DEPTH => self.at += 1,
                Some(Token::Open) => {
                    statements.extend(self.braces(depth));
                }
                Some(Token::Word(_)) => statements.extend(self.statement(depth)),
            }
        }
    }

    fn braces(&mut self, depth: usize) -> Vec<Statement> {
        self.at += 1;
        let body = self.block(depth + 1, &[]);
        if self.peek() == Some(&Token::Close) {
            self.at += 1;
        }
        body
    }

    fn statement(&mut self, depth: usize) -> Option<Statement> {
        match self.keyword() {
            "if" => Some(self.branches(depth)),
            "while" | "until" | "for" => {
                self.at += 1;
                self.block(depth + 1, &["do"]);
                self.at += 1;
                self.block(depth + 1, &["done"]);
                self.at += 1;
                None
            }
            "function" => {
                self.command(depth);
                None
            }
            _ => Some(self.command(depth)),
        }
    }

    fn branches(&mut self, depth: usize) -> Statement {
        let mut branches = Vec::new();
        loop {
            let condition = match self.keyword() {
                "if" | "elif" => {
                    self.at += 1;
                    let condition = self.block(depth + 1, &["then", "fi"]);
                    if self.keyword() == "then" {
                        self.at += 1;
                    }
                    Some(condition)
                }
                "else" => {
                    self.at += 1;
                    None
                }
                "fi" => {
                    self.at += 1;
                    return Statement::If(branches);
                }
                _ => return Statement::If(branches),
            };
            let body = self.block(depth + 1, &["elif", "else", "fi"]);
            branches.push(Branch { condition, body });
        }
    }

    fn command(&mut self, depth: usize) -> Statement {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        let has_body = self.peek() == Some(&Token::Open) && depth <= MAX_DEPTH;
        let body = has_body.then(|| self.braces(depth));
        Statement::Command { words, body }
    }
}
