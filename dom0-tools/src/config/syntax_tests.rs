use proptest::prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{Kind, Value, parse};

fn one(text: &str) -> Value {
    let mut all = parse(text, 0).unwrap_or_else(|p| panic!("{text:?}: {} at {}", p.fault, p.at));
    assert_eq!(all.len(), 1, "{text:?}");
    all.remove(0).value
}

fn text(text: &str) -> Kind {
    Kind::Text(text.into())
}

fn problem(text: &str) -> (usize, String) {
    let problem = parse(text, 0).expect_err(text);
    (problem.at, problem.fault.to_string())
}

#[test]
fn strings() {
    assert_eq!(one("a = 'x\"y'").kind, text("x\"y"));
    assert_eq!(
        one(r#"a = "\\ \" \' \n \t \x41 \101 é""#).kind,
        text("\\ \" ' \n \t A A é")
    );
    assert_eq!(one("a=''").kind, text(""));
    assert_eq!(one("a=\"\" # comment").kind, text(""));
}

#[test]
fn numbers() {
    for (written, value) in [("0", 0), ("128", 128), ("0x80", 128), ("0200", 128)] {
        let expected = Kind::Number {
            text: written.into(),
            value,
        };
        assert_eq!(one(&format!("a = {written}")).kind, expected);
    }
    for wrong in ["08", "0x", "1.5", "12a", "1_000", "0x8000000000000000g"] {
        assert_eq!(
            problem(&format!("a = {wrong}")),
            (4, format!("'{wrong}' is not a number"))
        );
    }
    assert!(problem("a = 18446744073709551616").1.contains("too large"));
}

#[test]
fn lists() {
    let Kind::List(items) = one("a = [ 'x', [1,\n 2 ,], # why\n\n 'y'\n , ]").kind else {
        panic!("no list")
    };
    assert_eq!(items.len(), 3);
    assert_eq!(items[2].kind, text("y"));
    assert_eq!(one("a = []").kind, Kind::List(vec![]));
    assert_eq!(problem("x = 1\na = [ 1,\n").0, 10);
    assert_eq!(
        problem("a = [1 2]"),
        (7, "expected ',' or ']' in the list, found '2'".into())
    );
    assert!(problem("a = [,]").1.starts_with("expected a value"));
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(problem(&deep).1.contains("deeper"));
}

#[test]
fn statements() {
    let all = parse("a=1;b += 'x' ;; # c\r\n\n \t c = [\r\n]\r\n#end", 0).expect("parse");
    let keys: Vec<_> = all.iter().map(|a| (a.key.as_str(), a.append)).collect();
    assert_eq!(keys, [("a", false), ("b", true), ("c", false)]);
    assert_eq!(parse("", 0), Ok(vec![]));
    assert_eq!(parse("# only a comment", 0), Ok(vec![]));
}

#[test]
fn places_count_from_the_base() {
    let all = parse("a = [1]", 100).expect("parse");
    assert_eq!((all[0].at, all[0].value.at), (100, 104));
    assert_eq!(parse("a = ?", 100).expect_err("error").at, 104);
}

#[test]
fn faults() {
    assert_eq!(
        problem("a"),
        (
            1,
            "expected '=' or '+=' after 'a', found the end of the text".into()
        )
    );
    assert_eq!(
        problem("a = "),
        (
            4,
            "expected a value (a string in quotes, a number or a list), found the end of the text"
                .into()
        )
    );
    assert_eq!(
        problem("a = 'x\nb = 'y'"),
        (4, "this ' is not closed before the end of the line".into())
    );
    assert_eq!(
        problem("a = 'x\\q'"),
        (6, "'\\q' is no escape that strings have".into())
    );
    assert_eq!(
        problem("a = 'x\\0'").1,
        "a string can't hold a NUL character"
    );
    assert_eq!(problem("= 3"), (0, "expected a key, found '='".into()));
    assert_eq!(
        problem("a = 1 b = 2"),
        (
            6,
            "expected the end of the line after the value, found 'b'".into()
        )
    );
}

#[test]
fn python_is_named() {
    for (line, what) in [
        ("import os", "the statement 'import'"),
        ("if arch == 'x':", "the statement 'if'"),
        ("def f(x): return x", "the statement 'def'"),
        ("print 'hello'", "the statement 'print'"),
        ("disk.append('x')", "a method or attribute of 'disk'"),
        ("disk[0] = 'x'", "an index into 'disk'"),
        ("a, b = 1, 2", "an assignment to several names"),
        ("memory -= 1", "the operator '-='"),
        ("check()", "a call of the function 'check'"),
        ("\"\"\"doc\"\"\"", "a triple-quoted string"),
        ("a = '''x'''", "a triple-quoted string"),
        ("a = os.uname()", "an attribute of 'os'"),
        ("a = str(1)", "a call of the function 'str'"),
        ("a = vmid", "the variable 'vmid'"),
        ("a = True", "the constant True"),
        ("a = None", "the constant None"),
        ("a = (1, 2)", "a tuple or an expression in parentheses"),
        ("a = {'x': 1}", "a dictionary"),
        ("a = -1", "a number with a sign ('-')"),
        ("a = r'x'", "a string with the prefix 'r'"),
        ("a = 'x%d' % 3", "string formatting with '%'"),
        ("a = 'x' + 'y'", "an expression with the operator '+'"),
        ("a = 'x' 'y'", "two strings side by side"),
        ("a = 'x'.upper()", "a method call on a value"),
        ("a = 1, 2", "a tuple without parentheses"),
        ("a = 1 if b else 2", "an expression with 'if'"),
        ("a = ['x' for i in y]", "a list comprehension"),
        ("a = ['x' % i]", "string formatting with '%'"),
        ("a = \\\n 1", "a line continued with a backslash"),
    ] {
        assert_eq!(problem(line).1, format!("this is Python: {what}"), "{line}");
        let fault = parse(line, 0).expect_err(line).fault;
        assert!(fault.remedy().is_some(), "{line}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in any::<String>()) {
        if let Err(problem) = parse(&text, 0) {
            prop_assert!(problem.at <= text.len());
            let _ = (problem.fault.to_string(), problem.fault.remedy());
        }
    }

    /// Text made of the grammar's own pieces gets deeper than random text.
    #[test]
    fn never_panics_near_the_grammar(pieces in proptest::collection::vec(
        prop_oneof![
            Just("a"), Just("="), Just("+="), Just("["), Just("]"), Just(","), Just("'"), Just("\""),
            Just("\\"), Just("\\x4"), Just("\\7"), Just("\n"), Just("\r\n"), Just("#"), Just(";"), Just("12"),
            Just("0x"), Just(" "), Just("é"), Just("import "), Just("'x'"), Just("%"), Just("\0"),
        ],
        0..40,
    )) {
        let text = pieces.concat();
        if let Err(problem) = parse(&text, 0) {
            prop_assert!(problem.at <= text.len());
            prop_assert!(text.is_char_boundary(problem.at));
        }
    }

    #[test]
    fn any_string_survives_quoting(text in "[^\0]*") {
        let quoted: String = text.chars().flat_map(|c| match c {
            '\\' | '"' => vec!['\\', c],
            '\n' => vec!['\\', 'n'],
            '\r' => vec!['\\', 'r'],
            _ => vec![c],
        }).collect();
        prop_assert_eq!(one(&format!("key = \"{quoted}\"")).kind, Kind::Text(text));
    }
}
