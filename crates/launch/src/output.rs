//! Printing that cannot end a run.
//!
//! `println!` and `eprintln!` panic when nobody takes what is printed: the terminal was closed, the reader of a pipe has
//! ended, the disk with the log is full. What a run does is in its folder anyway, so a word that cannot be said is dropped
//! ([`tell!`](crate::tell)); and what a command was asked to print is an error when it cannot be written, unless the reader
//! has seen enough ([`say!`](crate::say)).
//!
//! A line for a log begins with its time ([`stamped`]); a worker that has one writes down there what it does ([`note`]).
//!
//! And nothing secret is printed: what is secret in a URL ([`redacted`]) is taken out of every line here, whoever made it, so
//! that no error, log or summary has to think of it.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, Write};

use jiff::Timestamp;

/// The result of a command could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct OutputError(#[source] io::Error);

/// Prints a line of a command's result to standard output. A reader that has ended (`| head`) is no error.
///
/// # Errors
/// What the system said.
pub fn to_stdout(line: Arguments<'_>) -> Result<(), OutputError> {
    let result = write_line(&mut io::stdout().lock(), line);
    unless_closed(result).map_err(OutputError)
}

/// Prints a line about what happens to standard error.
///
/// # Errors
/// What the system said; the caller can go on.
pub fn to_stderr(line: Arguments<'_>) -> io::Result<()> {
    write_line(&mut io::stderr().lock(), line)
}

/// `text` as lines of a log, each with the time.
#[must_use]
pub fn stamped(text: &str) -> String {
    let time = format!("{:.0}", Timestamp::now());
    let text = redacted(text);
    text.lines()
        .map(|line| format!("{time} {line}\n"))
        .collect()
}

/// What a note begins with.
const NOTE: &str = "-- ";

/// Writes down what a worker does, in its log, which is its standard error. When it fails, the end of the log is shown without
/// its notes: an error says where it happened.
pub fn note(text: &str) {
    let lines = stamped(text);
    for line in lines.lines() {
        // There is nobody to tell.
        let _ = to_stderr(format_args!("{NOTE}{line}"));
    }
}

/// Whether a line of a log is such a note.
#[must_use]
pub fn is_note(line: &str) -> bool {
    let time = line.strip_prefix(NOTE).unwrap_or_default();
    time.split(' ')
        .next()
        .is_some_and(|it| it.parse::<Timestamp>().is_ok())
}

/// One write per line, so that the lines of several processes do not mix.
fn write_line(out: &mut dyn Write, line: Arguments<'_>) -> io::Result<()> {
    out.write_all(redacted(&format!("{line}\n")).as_bytes())?;
    out.flush()
}

fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// `text` with `***` for the user and password of every URL in it, and for what follows a `?` (signatures are there).
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    const SEPARATOR: &str = "://";
    if !text.contains(SEPARATOR) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(SEPARATOR) {
        let (before, after) = rest.split_at(at + SEPARATOR.len());
        shown.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
        let (url, behind) = after.split_at(after.find(ends).unwrap_or(after.len()));
        let (place, query) = match url.split_once('?') {
            Some((place, query)) if query.contains('=') => (place, Some(query)),
            _ => (url, None),
        };
        match secret_of(place) {
            Some(end) => shown.extend(["***", &place[end..]]),
            None => shown.push_str(place),
        }
        if query.is_some() {
            shown.push_str("?***");
        }
        rest = behind;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// Where the `@` is behind the user and password that `place`, a URL without its scheme, begins with.
fn secret_of(place: &str) -> Option<usize> {
    let authority = place.split('/').next().unwrap_or_default();
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    // A secret key of a store may itself have a `/`, and is then taken for a host and its port.
    let (_, port) = authority.split_once(':')?;
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
    place.rfind('@').filter(|_| !is_port)
}

/// Prints a line of a command's result to standard output, as `println!` does, but returns an
/// [`OutputError`](crate::output::OutputError) instead of a panic.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::output::to_stdout(::std::format_args!($($text)*)) };
}

/// Prints a line about what happens to standard error, as `eprintln!` does, but drops it where it cannot be written.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => {{
        // There is nobody to tell.
        let _ = $crate::output::to_stderr(::std::format_args!($($text)*));
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_urls_are_not_shown() {
        for (text, shown) in [
            ("no URL, but a@b: c", "no URL, but a@b: c"),
            ("s3://bucket/runs", "s3://bucket/runs"),
            ("s3://KEY:SECRET@bucket/runs", "s3://***@bucket/runs"),
            (
                "at s3://KEY:SE/CR+ET@bucket/x: no",
                "at s3://***@bucket/x: no",
            ),
            (
                "https://token@host:80/a, \"http://u:p@h\"",
                "https://***@host:80/a, \"http://***@h\"",
            ),
            ("http://host:8080/a@b", "http://host:8080/a@b"),
            ("https://h/x?sig=abc&se=1 end", "https://h/x?*** end"),
            ("file:///a@b", "file:///a@b"),
        ] {
            assert_eq!(redacted(text), shown);
        }
        let mut out = Vec::new();
        write_line(&mut out, format_args!("{}", "s3://K:S@b")).unwrap();
        assert_eq!(out, b"s3://***@b\n");
    }

    #[test]
    fn notes_are_told_from_what_else_a_worker_prints() {
        let lines = stamped("first\nat s3://K:S@b");
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with("Z at s3://***@b"), "{lines:?}");
        assert!(is_note(&format!("{NOTE}{}", lines[0])));
        assert!(!is_note(lines[0]) && !is_note("-- a list") && !is_note(""));
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_reader_that_left_is_none() {
        let mut full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let error = unless_closed(write_line(&mut full, format_args!("x"))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        unless_closed(write_line(&mut writer, format_args!("x"))).unwrap();
    }
}
