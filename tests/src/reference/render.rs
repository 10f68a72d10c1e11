//! Pages as Markdown.

use super::{Abi, CODE, Page, Reference, Structure, page::Operation};
use std::fmt::Write as _;

/// Registers of the arguments, in their order.
const REGISTERS: [&str; 6] = ["rdi", "rsi", "rdx", "r10", "r8", "r9"];

/// Who makes these pages.
const COMMAND: &str = "cargo run -p domus-tests --bin hypercall-reference";

/// Writes a line. A string takes any.
macro_rules! line {
    ($out:expr, $($what:tt)*) => {{
        let _ = writeln!($out, $($what)*);
    }};
}

/// A hypercall's page.
pub(super) fn page(abi: &Abi, page: &Page) -> String {
    let mut out = String::new();
    line!(out, "# {} ({})\n", page.name, page.number);
    line!(out, "{}\n", page.summary);
    facts(&mut out, page);
    for (title, text) in &page.sections {
        match &**title {
            "Operations" => operations(&mut out, abi, page),
            "Source" => {}
            _ => line!(out, "\n## {title}\n\n{}", linked(page, text)),
        }
        if title == "Arguments" {
            for name in structures_in(abi, text) {
                structure(&mut out, abi, page, name);
            }
        }
    }
    line!(
        out,
        "\n---\n\nMade by `{COMMAND}` from the comments in the code. [All hypercalls](README.md)"
    );
    out
}

fn facts(out: &mut String, page: &Page) {
    let link = |file: &str| format!("[`{file}`](../../hypervisor/src/{file})");
    let own = format!("hypercall/{}.rs", page.module);
    let code: Vec<String> = std::iter::once(&*own)
        .chain(page.sources("Here"))
        .map(link)
        .collect();
    let headers: Vec<String> = page
        .sources("Xen")
        .iter()
        .map(|header| format!("`{header}`"))
        .collect();
    let arguments = page.parameters.iter().zip(REGISTERS);
    let arguments: String = arguments
        .map(|(name, register)| format!(", `{register}` = {name}"))
        .collect();
    line!(out, "| | |\n|---|---|");
    line!(out, "| registers | `rax` = {}{arguments} |", page.number);
    line!(out, "| Xen's header | {} |", headers.join(", "));
    line!(out, "| code | {} |", code.join(", "));
    let book = page.section("Source").unwrap_or("").lines();
    for pages in book.filter_map(|line| line.strip_prefix("- Book: ")) {
        line!(out, "| see also | {pages} |");
    }
}

fn operations(out: &mut String, abi: &Abi, page: &Page) {
    line!(
        out,
        "\n## Operations\n\n| n | operation | argument |\n|---|---|---|"
    );
    for operation in &page.operations {
        let name = xen_name(&operation.constant);
        let argument = operation.structure.as_deref();
        let argument = argument.map_or(String::new(), |name| format!("`{name}`"));
        line!(
            out,
            "| {} | [{name}](#{}) | {argument} |",
            value(abi, operation),
            anchor(&name)
        );
    }
    let mut shown = Vec::new();
    for operation in &page.operations {
        line!(
            out,
            "\n### {}\n\n{}",
            xen_name(&operation.constant),
            linked(page, &operation.text)
        );
        let named = operation.structure.as_deref();
        let inside = structures_in(abi, &operation.text);
        for name in named.into_iter().chain(inside) {
            if !shown.contains(&name) {
                shown.push(name);
                structure(out, abi, page, name);
            }
        }
    }
}

/// A text whose mentions of the page's operations lead there.
fn linked(page: &Page, text: &str) -> String {
    let mut text = text.to_owned();
    for operation in &page.operations {
        let name = xen_name(&operation.constant);
        let mention = format!("`{}`", operation.constant);
        text = text.replace(&mention, &format!("[{name}](#{})", anchor(&name)));
    }
    text
}

fn value<'a>(abi: &'a Abi, operation: &Operation) -> &'a str {
    abi.constant(&operation.constant)
        .map_or("?", |constant| &constant.value)
}

/// Structures that a text names.
fn structures_in<'a>(abi: &Abi, text: &'a str) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for name in text.split('`').skip(1).step_by(2) {
        if abi.structure(name).is_some() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn structure(out: &mut String, abi: &Abi, page: &Page, name: &str) {
    let Some(Structure { doc, size, fields }) = abi.structure(name) else {
        return;
    };
    let first = linked(page, &plain(doc));
    let first = first
        .split(". ")
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    line!(out, "\n`{name}`, {size} bytes. {first}.\n");
    line!(
        out,
        "| offset | bytes | field | type | |\n|---|---|---|---|---|"
    );
    let ends = fields
        .iter()
        .skip(1)
        .map(|field| field.offset)
        .chain([*size]);
    for (field, end) in fields.iter().zip(ends) {
        if field.name.contains("pad") {
            continue;
        }
        line!(
            out,
            "| {} | {} | `{}` | `{}` | {} |",
            field.offset,
            end - field.offset,
            field.name,
            field.kind,
            plain(&field.doc)
        );
    }
}

/// A doc comment without its links: `[`A`](crate::A)` and `[`A`]` are `A`.
fn plain(doc: &str) -> String {
    let mut out = String::new();
    let mut rest = doc;
    while let Some((before, after)) = rest.split_once("[`") {
        out.push_str(before);
        out.push('`');
        let Some((name, tail)) = after.split_once("`]") else {
            rest = after;
            continue;
        };
        out.push_str(name);
        out.push('`');
        rest = match tail.strip_prefix('(').and_then(|tail| tail.split_once(')')) {
            Some((_, tail)) => tail,
            None => tail,
        };
    }
    out.push_str(rest);
    out.replace('|', "\\|")
}

/// A constant as Xen's headers spell it.
pub(super) fn xen_name(constant: &str) -> String {
    const CAPITALS: [&str; 3] = ["MMUEXT_", "MMU_", "SEGBASE_"];
    if CAPITALS.iter().any(|prefix| constant.starts_with(prefix)) {
        return constant.to_owned();
    }
    let prefix = if constant.starts_with("VMASST_CMD_") {
        "VMASST_CMD"
    } else {
        constant.split('_').next().unwrap_or(constant)
    };
    let (head, tail) = constant.split_at(prefix.len());
    format!("{head}{}", tail.to_lowercase())
}

fn anchor(heading: &str) -> String {
    heading.to_lowercase()
}

/// The table of all numbers.
pub(super) fn index(reference: &Reference) -> String {
    let mut out = String::from(
        "# Hypercalls\n\n\
         A page each: arguments, structures, errors, what Domus leaves out, which class of bugs it guards \
         against, Xen's header.\nHow a hypercall is made, and what holds for all of them: \
         [the boundary](../boundary.md#how-a-hypercall-is-made).\n\n\
         Numbers of Xen that stand here without a page answer as the table says; all other numbers `ENOSYS`.\n\n\
         | n | name | operations | |\n|---|---|---|---|\n",
    );
    for (constant, number, name) in reference.abi.hypercalls() {
        let page = reference.pages.iter().find(|page| page.number == number);
        match page {
            Some(page) => {
                let operations = match page.operations.len() {
                    0 => String::new(),
                    n => n.to_string(),
                };
                let what = page.summary.replace('\n', " ");
                let what = what.split_once(": ").map_or("", |(_, what)| what);
                let what = what
                    .split(". ")
                    .next()
                    .unwrap_or(what)
                    .trim_end_matches('.');
                line!(
                    out,
                    "| {number} | [{name}]({name}.md) | {operations} | {what} |"
                );
            }
            None if reference.dispatcher.forbidden.iter().any(|c| c == constant) => {
                line!(
                    out,
                    "| {number} | {name} | | `EPERM`: the control domain's |"
                );
            }
            None => line!(out, "| {number} | {name} | | `ENOSYS` |"),
        }
    }
    line!(
        out,
        "\nDom0 is no guest here: what it asks for goes over the [privcmd socket](../privcmd.md).\n\n\
         ---\n\nMade by `{COMMAND}` from the comments in `{CODE}`."
    );
    out
}
