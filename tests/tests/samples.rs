//! The samples in the book are what they look like.
//!
//! **Scenario.** All `*.md` files of the repository. Each `rust` block is an
//! excerpt of the file that its first line names. Each `cfg` block is a domain's
//! configuration that xm takes without a warning, and so is one that a `sh` block
//! writes by `<<CFG`. Each `sh` block is a script that bash parses, and its words
//! that look like files of ours are there. Each line that calls xm is one whose
//! arguments xm takes. Each message in a table "message" or
//! "what you see" is one that some program of ours prints, or a guest.
//!
//! **Limits.** No command is run here: the whole-system tests do that.

use dom0_tools::{
    config,
    xm::table::{self, Kind, Resolved},
};
use domus_tests::repository::{files, root};
use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

fn texts(end: &str) -> Vec<(PathBuf, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        (path, text)
    };
    files(end).into_iter().map(read).collect()
}

/// A fenced block.
struct Block {
    place: String,
    text: String,
}

/// All blocks of a language.
fn blocks(language: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (path, text) in texts(".md") {
        let mut open: Option<Block> = None;
        for (line, n) in text.lines().zip(1..) {
            if let Some(fence) = line.strip_prefix("```") {
                match open.take() {
                    Some(block) => blocks.push(block),
                    None => {
                        let place = format!("{}:{n}", path.display());
                        let text = format!("{fence}\n");
                        open = Some(Block { place, text });
                    }
                }
            } else if let Some(block) = &mut open {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    let wanted = format!("{language}\n");
    let mut blocks: Vec<Block> = blocks
        .into_iter()
        .filter(|block| block.text.starts_with(&wanted))
        .collect();
    for block in &mut blocks {
        block.text.replace_range(..wanted.len(), "");
    }
    assert!(!blocks.is_empty(), "no {language} block anywhere");
    blocks
}

#[test]
fn rust_blocks_are_excerpts() {
    let mut wrong = Vec::new();
    for block in blocks("rust") {
        let (first, excerpt) = block.text.split_once('\n').unwrap_or(("", ""));
        let file = first.trim_start_matches("// ");
        let source = fs::read_to_string(root().join(file)).unwrap_or_default();
        if excerpt.trim().is_empty() || !source.contains(excerpt) {
            wrong.push(format!("{}: not in {file:?}", block.place));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Why xm would not take this configuration as it is.
fn objection(text: &str) -> Option<String> {
    // A sample may show a part: what every domain must have is added.
    let mut overrides = vec!["name=sample".to_owned()];
    if !text.contains("kernel ") && !text.contains("bootloader ") {
        overrides.push("kernel=/boot/vmlinuz".to_owned());
    }
    match config::load("sample", text, &overrides) {
        Err(error) => Some(error.to_string()),
        Ok(loaded) => loaded.warnings.first().map(ToString::to_string),
    }
}

#[test]
fn configurations_are_taken() {
    let scripts = blocks("sh").into_iter().filter_map(|block| {
        let (_, rest) = block.text.split_once("<<CFG\n")?;
        let (text, _) = rest.split_once("CFG\n")?;
        let text = text.replace("$PWD", "/srv");
        Some(Block { text, ..block })
    });
    let mut wrong = Vec::new();
    for block in blocks("cfg").into_iter().chain(scripts) {
        if let Some(objection) = objection(&block.text) {
            wrong.push(format!("{}: {objection}", block.place));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn scripts_parse_and_name_files_that_are_there() {
    let root = root();
    let mut wrong = Vec::new();
    for block in blocks("sh") {
        let mut bash = Command::new("bash")
            .arg("-n")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut input = bash.stdin.take().expect("a pipe");
        input.write_all(block.text.as_bytes()).expect("bash reads");
        drop(input);
        let done = bash.wait_with_output().expect("bash ends");
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            wrong.push(format!("{}: {said}", block.place));
        }
        let ours = [
            "docs/",
            "tests/",
            "guest-abi/",
            "dom0-tools/",
            "guest-kernel-patches/",
        ];
        for word in block.text.split_whitespace() {
            let mine = ours.iter().any(|start| word.starts_with(start));
            let made = format!("{word}/").contains("/target/") || word.contains('*');
            if mine && !made && !root.join(word).exists() {
                wrong.push(format!("{}: there is no {word}", block.place));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The words of a command line, as far as a sample in the book goes: quotes, and
/// no expansion. A comment, a pipe and what stands in a second column end it.
fn words(line: &str) -> Vec<String> {
    let line = line.split("   ").next().unwrap_or(line);
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '#' | '|' | ';' | '&' | '<' | '>') => break,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().expect("one").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Why xm would not understand this line.
fn misuse(line: &str) -> Option<String> {
    let words = words(line);
    let name = words.get(1)?;
    let (Resolved::Found(command) | Resolved::Renamed { command, .. }) = table::resolve(name)
    else {
        return Some(format!("there is no xm {name}"));
    };
    let Kind::Ready { clap, .. } = command.kind else {
        return Some(format!("xm {name} is not supported"));
    };
    if let Err(error) = clap().try_get_matches_from(&words[1..]) {
        return Some(error.to_string());
    }
    if words.get(2).is_some_and(|file| file == "/dev/null") {
        let overrides: Vec<String> = words[3..]
            .iter()
            .map(|word| word.replace("$PWD", "/srv"))
            .collect();
        return match config::load("/dev/null", "", &overrides) {
            Err(error) => Some(error.to_string()),
            Ok(loaded) => loaded.warnings.first().map(ToString::to_string),
        };
    }
    None
}

#[test]
fn calls_of_xm_are_taken() {
    let mut looked_at = 0;
    let mut wrong = Vec::new();
    for (path, text) in texts(".md") {
        // A call that goes over several lines is one.
        let mut parts = text.split("\\\n");
        let first = parts.next().unwrap_or_default().to_owned();
        let text = parts.fold(first, |text, part| text + part.trim_start_matches(' '));
        let mut script = false;
        for line in text.lines() {
            if let Some(language) = line.strip_prefix("```") {
                script = language == "sh";
                continue;
            }
            let Some(line) = line.strip_prefix("    ").or(script.then_some(line)) else {
                continue;
            };
            let line = line.trim_start_matches("$ ");
            let call = line.strip_prefix("sudo ").unwrap_or(line);
            // Synopses and pictures are no calls.
            let shown = call.contains("...") || call.contains("->");
            if !call.starts_with("xm ") || shown {
                continue;
            }
            looked_at += 1;
            if let Some(why) = misuse(call) {
                wrong.push(format!("{}: {call}: {why}", path.display()));
            }
        }
    }
    assert!(looked_at > 20, "{looked_at} calls found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The sources as one text in which a message can be looked for: lines that a
/// `\` joins are joined, quotes are plain.
fn messages() -> String {
    let mut all = String::new();
    for (_, text) in texts(".rs") {
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            match line.strip_suffix('\\') {
                Some(part) if !all.is_empty() => {
                    all.push_str(part);
                    if let Some(next) = lines.next() {
                        all.push_str(next.trim_start());
                    }
                }
                _ => all.push_str(line),
            }
            all.push('\n');
        }
    }
    all
}

#[test]
fn messages_in_tables_are_printed_by_somebody() {
    let sources = messages();
    let mut looked_at = 0;
    let mut wrong = Vec::new();
    for name in ["docs/operators-guide.md", "docs/porting.md"] {
        let text = fs::read_to_string(root().join(name)).expect(name);
        let mut in_table = false;
        for line in text.lines() {
            let first = line.trim_matches('|').split(" | ").next().unwrap_or("");
            match first.trim() {
                "message" | "what you see" => in_table = true,
                _ if !line.starts_with('|') => in_table = false,
                _ => {}
            }
            if !in_table || line.contains("(the guest's)") {
                continue;
            }
            // Errnos, hypercalls and the like are words; messages have spaces.
            let spans = first.split('`').skip(1).step_by(2);
            for part in spans.flat_map(|span| span.split("...")) {
                let part = part.trim_matches(['\'', ' ']);
                if part.contains(' ') {
                    looked_at += 1;
                    if !sources.contains(part) {
                        wrong.push(format!("{name}: nobody prints {part:?}"));
                    }
                }
            }
        }
    }
    assert!(looked_at > 20, "{looked_at} messages found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
