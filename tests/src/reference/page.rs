//! One hypercall's doc comment, taken apart.

/// The sections of each page, in this order. `Operations` is there where a
/// hypercall has them.
pub const SECTIONS: [&str; 6] = [
    "Arguments",
    "Operations",
    "Errors",
    "Left out",
    "Guards against",
    "Source",
];

/// One operation of a hypercall.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The constant in `guest-abi`.
    pub constant: String,
    /// The structure of its argument.
    pub structure: Option<String>,
    /// What it does, and its errors.
    pub text: String,
}

/// One hypercall.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its number.
    pub number: u64,
    /// Xen's name.
    pub name: String,
    /// The module of its function.
    pub module: String,
    /// Its parameters' names.
    pub parameters: Vec<String>,
    /// What it is for.
    pub summary: String,
    /// Sections by title.
    pub sections: Vec<(String, String)>,
    /// Its operations.
    pub operations: Vec<Operation>,
}

/// The doc comment in front of a function.
#[must_use]
pub fn doc_of(source: &str, function: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().collect();
    let starts = ["pub fn", "pub(super) fn", "fn"].map(|word| format!("{word} {function}("));
    let at = lines
        .iter()
        .position(|line| starts.iter().any(|start| line.starts_with(start)))?;
    let doc = lines[..at]
        .iter()
        .rev()
        .map_while(|line| line.strip_prefix("///"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line));
    let mut doc: Vec<&str> = doc.collect();
    doc.reverse();
    Some(doc.join("\n"))
}

/// Cuts at lines that begin with `mark`: what is before, then title and text.
fn cut<'a>(text: &'a str, mark: &str) -> (&'a str, Vec<(&'a str, &'a str)>) {
    let mut parts = Vec::new();
    let mut head = text;
    let starts: Vec<usize> = text
        .split_inclusive('\n')
        .scan(0, |at, line| {
            let start = *at;
            *at += line.len();
            Some((start, line))
        })
        .filter_map(|(start, line)| line.starts_with(mark).then_some(start))
        .collect();
    for (n, start) in starts.iter().enumerate() {
        if n == 0 {
            head = &text[..*start];
        }
        let end = starts.get(n + 1).copied().unwrap_or(text.len());
        let (title, body) = text[*start..end]
            .split_once('\n')
            .unwrap_or((&text[*start..end], ""));
        parts.push((title[mark.len()..].trim(), body.trim()));
    }
    (head.trim(), parts)
}

impl Page {
    /// Takes a doc comment apart.
    #[must_use]
    pub fn parse(number: u64, name: &str, module: &str, doc: &str) -> Self {
        let (summary, sections) = cut(doc, "# ");
        let operations = sections
            .iter()
            .filter(|(title, _)| *title == "Operations")
            .flat_map(|(_, text)| cut(text, "## ").1)
            .map(|(title, text)| {
                let mut names = title.split('`').skip(1).step_by(2).map(str::to_owned);
                Operation {
                    constant: names.next().unwrap_or_default(),
                    structure: names.next(),
                    text: text.to_owned(),
                }
            })
            .collect();
        let parameters = summary
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')'))
            .map_or("", |(inner, _)| inner);
        Page {
            number,
            name: name.to_owned(),
            module: module.to_owned(),
            parameters: parameters
                .split(", ")
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            summary: summary.to_owned(),
            sections: sections
                .into_iter()
                .map(|(title, text)| (title.to_owned(), text.to_owned()))
                .collect(),
            operations,
        }
    }

    /// A section's text.
    #[must_use]
    pub fn section(&self, title: &str) -> Option<&str> {
        let mut sections = self.sections.iter();
        sections.find_map(|(t, text)| (t == title).then_some(&**text))
    }

    /// One line of the section `Source`: what stands in code font there.
    #[must_use]
    pub fn sources(&self, what: &str) -> Vec<&str> {
        let prefix = format!("- {what}: ");
        let lines = self.section("Source").unwrap_or("").lines();
        lines
            .filter_map(|line| line.strip_prefix(&prefix))
            .flat_map(|line| line.split('`').skip(1).step_by(2))
            .collect()
    }

    /// The errors and statuses that the page names.
    #[must_use]
    pub fn errors(&self) -> Vec<&str> {
        let texts = self
            .operations
            .iter()
            .map(|operation| &*operation.text)
            .chain(self.section("Errors"));
        let spans = texts.flat_map(|text| text.split('`').skip(1).step_by(2));
        let mut errors: Vec<&str> = spans
            .filter(|span| {
                let code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
                span.starts_with("GNTST_")
                    || span.starts_with('E') && span.len() > 3 && span.chars().all(code)
            })
            .collect();
        errors.sort_unstable();
        errors.dedup();
        errors
    }
}
