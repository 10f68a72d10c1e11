//! The commands.

use axstd::{
    env, fs,
    io::{self, Read, Write},
    println,
    string::String,
    thread,
    time::Duration,
    vec::Vec,
};

type Command = fn(&[&str]) -> io::Result<()>;

const COMMANDS: &[(&str, Command)] = &[
    ("cat", cat),
    ("cd", cd),
    ("echo", echo),
    ("exit", exit),
    ("help", help),
    ("ls", ls),
    ("mkdir", mkdir),
    ("pwd", pwd),
    ("rm", rm),
    ("sleep", sleep),
    ("uname", uname),
];

/// All of them, in one line.
pub fn names() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|&(name, _)| name).collect();
    names.join(" ")
}

/// Does what a line says; `> FILE` at its end takes what `echo` says.
pub fn run(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((name, arguments)) = words.split_first() else {
        return;
    };
    match COMMANDS.iter().find(|(known, _)| known == name) {
        Some((_, command)) => {
            if let Err(error) = command(arguments) {
                println!("{name}: {error}");
            }
        }
        None => println!("{name}: command not found"),
    }
}

fn cat(files: &[&str]) -> io::Result<()> {
    let mut piece = [0; 1024];
    for path in files {
        let mut file = fs::File::open(path)?;
        loop {
            let length = file.read(&mut piece)?;
            if length == 0 {
                break;
            }
            io::stdout().write_all(&piece[..length])?;
        }
    }
    Ok(())
}

fn cd(to: &[&str]) -> io::Result<()> {
    env::set_current_dir(to.first().unwrap_or(&"/"))
}

fn echo(words: &[&str]) -> io::Result<()> {
    match words {
        [text @ .., ">", path] => {
            let mut file = fs::File::create(path)?;
            file.write_all(text.join(" ").as_bytes())?;
            file.write_all(b"\n")
        }
        text => {
            println!("{}", text.join(" "));
            Ok(())
        }
    }
}

fn exit(_: &[&str]) -> io::Result<()> {
    println!("Bye~");
    axstd::process::exit(0)
}

fn help(_: &[&str]) -> io::Result<()> {
    println!("{}", names());
    Ok(())
}

fn ls(paths: &[&str]) -> io::Result<()> {
    let here = [env::current_dir()?];
    let paths: Vec<&str> = match paths {
        [] => here.iter().map(String::as_str).collect(),
        some => some.to_vec(),
    };
    for path in paths {
        if !fs::metadata(path)?.is_dir() {
            println!("{path}");
            continue;
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let mark = if entry.file_type().is_dir() { "/" } else { "" };
            println!("{}{mark}", entry.file_name());
        }
    }
    Ok(())
}

fn mkdir(paths: &[&str]) -> io::Result<()> {
    paths.iter().try_for_each(|path| fs::create_dir(path))
}

fn pwd(_: &[&str]) -> io::Result<()> {
    println!("{}", env::current_dir()?);
    Ok(())
}

fn rm(paths: &[&str]) -> io::Result<()> {
    paths.iter().try_for_each(|path| {
        if fs::metadata(path)?.is_dir() {
            fs::remove_dir(path)
        } else {
            fs::remove_file(path)
        }
    })
}

fn sleep(seconds: &[&str]) -> io::Result<()> {
    let seconds = seconds.first().and_then(|text| text.parse().ok());
    thread::sleep(Duration::from_secs(seconds.unwrap_or(1)));
    Ok(())
}

fn uname(_: &[&str]) -> io::Result<()> {
    println!("ArceOS x86_64, platform x86-xen-pv");
    Ok(())
}
