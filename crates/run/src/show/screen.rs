//! Standard error as all of this process shares it: a line is written above the progress bar, if there is one.
//!
//! The bar is the process's, not a display's, because anything may have a line to say: the log, from any thread.

use std::io;

use indicatif::ProgressBar;
use parking_lot::Mutex;
use tandem_launch::output::to_stderr;

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// From now on lines are written above `bar`, or, with none, as they come.
pub fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock() = bar;
}

/// Writes a line, or several.
///
/// # Errors
/// What the system said; the caller can go on.
pub fn line(text: &str) -> io::Result<()> {
    let bar = BAR.lock().clone();
    match bar {
        Some(bar) => bar.suspend(|| to_stderr(format_args!("{text}"))),
        None => to_stderr(format_args!("{text}")),
    }
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
}
