//! Standard error as all of this process shares it: a line is written above the progress bar, if there is one; and what it
//! says is kept in the run's log, `logs/run.log`.
//!
//! The bar and the log are the process's, not a display's, because anything may have a line to say: the log, from any thread.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use indicatif::ProgressBar;
use parking_lot::Mutex;
use tandem_files::open_own;
use tandem_launch::output::{stamped, to_stderr};

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);
static LOG: Mutex<Log> = Mutex::new(Log::Held(Vec::new()));

/// Lines that wait for a run's folder; a command without a run has fewer.
const MAX_HELD: usize = 1000;

/// Where lines are kept.
enum Log {
    /// As long as it is not certain that there will be a run.
    Held(Vec<String>),
    File(File),
    /// It could not be written: the disk of the run's folder may be the one that is full.
    Lost,
}

impl Log {
    fn add(&mut self, text: &str) {
        match self {
            Self::Held(lines) if lines.len() < MAX_HELD => lines.push(stamped(text)),
            Self::File(file) => {
                if file.write_all(stamped(text).as_bytes()).is_err() {
                    *self = Self::Lost;
                }
            }
            Self::Held(_) | Self::Lost => {}
        }
    }
}

/// From now on lines are written above `bar`, or, with none, as they come.
pub fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock() = bar;
}

/// Writes a line, or several.
///
/// # Errors
/// What the system said; the caller can go on.
pub fn line(text: &str) -> io::Result<()> {
    only_in_log(text);
    not_in_log(text)
}

/// Writes a line that the run's log has in other words.
///
/// # Errors
/// As [`line`].
pub fn not_in_log(text: &str) -> io::Result<()> {
    let bar = BAR.lock().clone();
    match bar {
        Some(bar) => bar.suspend(|| to_stderr(format_args!("{text}"))),
        None => to_stderr(format_args!("{text}")),
    }
}

/// The last words of a command: a line that nobody need take.
pub fn last_line(text: &str) {
    // There is nobody to tell.
    let _ = line(text);
}

/// Writes a line to the run's log that nobody could see elsewhere.
pub fn only_in_log(text: &str) {
    LOG.lock().add(text);
}

/// From now on lines are kept in the run's folder, as are those that were said so far. A log that cannot be written is no
/// reason to end a run, so what goes wrong is only returned.
///
/// # Errors
/// What the system said.
pub fn keep_log(run_dir: &Path) -> io::Result<()> {
    let folder = run_dir.join("logs");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("run.log");
    let mut file = open_own(&path, File::options().create(true).append(true))
        .map_err(|error| io::Error::new(error.kind(), format!("logs/run.log: {error}")))?;
    let mut log = LOG.lock();
    let said = match &*log {
        Log::Held(lines) => lines.concat(),
        Log::File(_) | Log::Lost => String::new(),
    };
    writeln!(file, "=== process {} ===", std::process::id())?;
    file.write_all(said.as_bytes())?;
    *log = Log::File(file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::sync::Arc;

    /// A terminal that remembers how often a line of it was cleared.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<usize>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
        fn write_str(&self, _: &str) -> io::Result<()> {
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            *self.0.lock() += 1;
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_is_taken_away_while_a_line_is_written() {
        let terminal = Terminal::default();
        let cleared = || *terminal.0.lock();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(3), target);
        bar.tick();
        set_bar(Some(bar.clone()));
        let before = cleared();
        line("a line from elsewhere").unwrap();
        assert!(cleared() > before, "the bar's line was not cleared first");
        set_bar(None);
        let before = cleared();
        line("a line with no bar").unwrap();
        assert_eq!(cleared(), before);
        bar.abandon();
    }

    #[test]
    fn what_was_said_before_there_was_a_folder_is_in_its_log_too() {
        let run = tempfile::tempdir().unwrap();
        line("said at first, of s3://KEY:SECRET@bucket").unwrap();
        keep_log(run.path()).unwrap();
        line("said then\nin two lines").unwrap();
        only_in_log("for nobody to see");
        let text = std::fs::read_to_string(run.path().join("logs/run.log")).unwrap();
        // Tests beside this one have words to say as well.
        let found = |words: &str| text.lines().filter(|line| line.ends_with(words)).count();
        for words in [
            "Z said at first, of s3://***@bucket",
            "Z said then",
            "Z in two lines",
            "Z for nobody to see",
        ] {
            assert_eq!(found(words), 1, "{words}: {text}");
        }
        assert!(text.starts_with("=== process "), "{text}");
    }
}
