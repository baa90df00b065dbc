//! Printing that cannot end a run.
//!
//! `println!` and `eprintln!` panic when nobody takes what is printed: the terminal was closed, the reader of a pipe has
//! ended, the disk with the log is full. What a run does is in its folder anyway, so a word that cannot be said is dropped
//! ([`tell!`](crate::tell)); and what a command was asked to print is an error when it cannot be written, unless the reader
//! has seen enough ([`say!`](crate::say)).

use std::fmt::Arguments;
use std::io::{self, Write};

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

/// One write per line, so that the lines of several processes do not mix.
fn write_line(out: &mut dyn Write, line: Arguments<'_>) -> io::Result<()> {
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
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
