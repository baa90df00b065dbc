//! `logs/rank_{r}.log`: what a worker printed, over all attempts.

use crate::output::is_note;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tandem_files::open_own;

/// The folder of the logs inside the run's folder.
pub(super) const FOLDER: &str = "logs";

/// How much of a log's end is read for an error message: lines may be long, but messages must not be.
const TAIL_BYTES: u64 = 8 * 1024;
const TAIL_LINES: usize = 20;

/// One worker's log in one attempt.
#[derive(Debug)]
pub(super) struct WorkerLog {
    path: PathBuf,
    /// Where this attempt's output begins.
    start: u64,
}

impl WorkerLog {
    /// Opens the log for appending and writes the attempt's header. The file is handed to the worker as its stdout and
    /// stderr, so that its output reaches the disk whatever happens to the controller.
    pub(super) fn open(run_dir: &Path, rank: usize, attempt: u32) -> io::Result<(Self, File)> {
        let path = run_dir.join(FOLDER).join(format!("rank_{rank}.log"));
        let mut file =
            open_own(&path, File::options().create(true).append(true)).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
        let time = Timestamp::now();
        writeln!(
            file,
            "=== attempt {attempt}, rank {rank}, {time:.0}, controller {} ===",
            std::process::id()
        )?;
        let start = file.seek(SeekFrom::End(0))?;
        Ok((Self { path, start }, file))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines that the worker printed in this attempt, without its notes. None when the file cannot be read: the tail is a
    /// courtesy of an error message, never an error of its own.
    pub(super) fn tail(&self) -> Vec<String> {
        self.read_tail().unwrap_or_default()
    }

    fn read_tail(&self) -> io::Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        let length = file.seek(SeekFrom::End(0))?;
        let start = self.start.max(length.saturating_sub(TAIL_BYTES));
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // What begins in the middle of a line is left out, unless the line is all there is.
        let whole = match text.split_once('\n') {
            Some((_, rest)) if start > self.start && !rest.is_empty() => rest,
            _ => &text,
        };
        let lines: Vec<_> = whole.lines().filter(|line| !is_note(line)).collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        Ok(lines[first..]
            .iter()
            .map(|line| (*line).to_owned())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{FOLDER, WorkerLog};
    use std::io::Write;

    #[test]
    fn attempts_append_and_the_tail_is_of_the_last_one() {
        let run_dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(run_dir.path().join(FOLDER)).unwrap();
        let (log, mut file) = WorkerLog::open(run_dir.path(), 2, 0).unwrap();
        assert_eq!(
            log.tail(),
            Vec::<String>::new(),
            "the header is not the worker's"
        );
        writeln!(file, "first").unwrap();
        let (log, mut file) = WorkerLog::open(run_dir.path(), 2, 1).unwrap();
        writeln!(file, "second\n-- 2026-01-31T17:05:09Z loading\nthird").unwrap();
        assert_eq!(log.tail(), ["second", "third"]);
        let text = std::fs::read_to_string(log.path()).unwrap();
        for part in [
            "=== attempt 0, rank 2, ",
            "first\n",
            "=== attempt 1, rank 2, ",
            "third\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        for number in 0..10_000 {
            writeln!(file, "line {number}").unwrap();
        }
        let tail = log.tail();
        assert_eq!((tail.len(), tail[19].as_str()), (20, "line 9999"));
        // Nine of these lines do not fit into what is read; the first is left out, for it would begin in its middle.
        for number in 0..9 {
            writeln!(file, "{number}{}", "x".repeat(1000)).unwrap();
        }
        let tail = log.tail();
        assert_eq!((tail.len(), &tail[0][..2]), (8, "1x"));
    }
}
