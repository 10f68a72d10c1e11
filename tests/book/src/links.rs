//! Links in Markdown: where they are, and paths that are put together.

use std::path::{Component, Path, PathBuf};

/// Replaces each link's target that `new` has another one for. Code is left as
/// it is.
pub fn replace(text: &str, mut new: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut fenced = false;
    for line in text.split_inclusive('\n') {
        fenced ^= line.trim_start().starts_with("```");
        if fenced || line.starts_with("    ") {
            out.push_str(line);
        } else {
            replace_in_line(line, &mut out, &mut new);
        }
    }
    out
}

fn replace_in_line(line: &str, out: &mut String, new: &mut impl FnMut(&str) -> Option<String>) {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("](") {
        let Some((target, tail)) = after.split_once(')') else {
            break;
        };
        let inside_code = before.matches('`').count() % 2 == 1;
        let target = match inside_code {
            true => target.to_owned(),
            false => new(target).unwrap_or_else(|| target.to_owned()),
        };
        out.push_str(before);
        out.push_str("](");
        out.push_str(&target);
        out.push(')');
        rest = tail;
    }
    out.push_str(rest);
}

/// All targets that lead to files: no addresses, no mere anchors.
pub fn files(text: &str) -> Vec<String> {
    let mut files = Vec::new();
    replace(text, |target| {
        let file = target.split('#').next().unwrap_or(target);
        if !file.is_empty() && !is_address(target) {
            files.push(file.to_owned());
        }
        None
    });
    files
}

/// Whether a target leads out of the repository.
pub fn is_address(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// The path to which `target` leads from the page `from`, both from the top of
/// the repository; `None` if it leads out of it.
pub fn resolve(from: &Path, target: &str) -> Option<PathBuf> {
    let mut path = from.parent().map(PathBuf::from).unwrap_or_default();
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}
