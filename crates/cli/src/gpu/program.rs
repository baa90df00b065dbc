//! Other programs, and this one again, as processes that end: at their limit, or with the process that started them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::DeserializeOwned;
use tandem_launch::env::CONTROLLER_PID;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::start::local::own_file;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It did not, and was killed.
    TimedOut,
}

/// How often a process is looked at.
const TICK: Duration = Duration::from_millis(20);

/// How long a killed process may take to go. One that is stuck in a driver may never go, and nobody waits for it.
const GONE: Duration = Duration::from_secs(10);

/// Runs a program, in a process group of its own, for `limit` at most. What it prints goes to `log`.
pub(super) fn run_for(command: &mut Command, limit: Duration, log: &Path) -> io::Result<End> {
    let file = File::create(log)?;
    let mut child = command
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()?;
    if let Some(status) = wait_for(&mut child, limit)? {
        return Ok(end_of(status));
    }
    // The process was not waited for, so its group is still its own. It may end in this moment.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    wait_for(&mut child, GONE)?;
    Ok(End::TimedOut)
}

fn wait_for(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() >= limit {
            return Ok(None);
        }
        std::thread::sleep(TICK);
    }
}

fn end_of(status: ExitStatus) -> End {
    match status.code() {
        Some(code) => End::Exited(code),
        None => End::Killed(status.signal().unwrap_or(0)),
    }
}

/// The last lines of a log that say something.
pub(super) fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&text))
}

/// What a log warns of, each once.
pub(super) fn warnings(log: &Path) -> Vec<String> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().filter(|line| line.starts_with("warning: "));
    let distinct: BTreeSet<String> = found.map(str::to_owned).collect();
    distinct.into_iter().collect()
}

fn last_lines(text: &str) -> String {
    const LINES: usize = 3;
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join(" / ")
}

/// A program that ends with this process, if it is ours or looks for that, as ours do (`die_with_parent`): also where no process
/// group reaches it.
pub(super) fn dependent(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env(CONTROLLER_PID, std::process::id().to_string())
        .stdin(Stdio::null());
    command
}

/// This program with these arguments, to end with this process.
pub(super) fn own(args: impl IntoIterator<Item: AsRef<OsStr>>) -> Outcome<Command> {
    let mut command = dependent(own_file()?);
    command.args(args);
    Ok(command)
}

/// What a program prints, which must end well.
pub(super) fn output(command: &mut Command) -> Outcome<String> {
    let result = command.output().map_err(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        Failure::other(format!("cannot start {program}: {error}"))
    })?;
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    let said = [result.stdout, result.stderr].concat();
    let last = last_lines(&String::from_utf8_lossy(&said));
    Err(Failure::other(format!("{}: {last}", result.status)))
}

/// The same as the last line of JSON.
pub(super) fn json<T: DeserializeOwned>(command: &mut Command) -> Outcome<T> {
    let text = output(command)?;
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_default()).map_err(Failure::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (End, String) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let end = run_for(Command::new("sh").args(["-c", script]), limit, &log).unwrap();
        (end, last_words(&log))
    }

    #[test]
    fn ends_and_last_words_are_told_apart() {
        const LONG: Duration = Duration::from_secs(60);
        assert_eq!(
            shell("echo one; exit 0", LONG),
            (End::Exited(0), "one".into())
        );
        let (end, words) = shell("for i in 1 2 3 4; do echo $i >&2; done; exit 7", LONG);
        assert_eq!((end, words.as_str()), (End::Exited(7), "2 / 3 / 4"));
        assert_eq!(shell("kill -9 $$", LONG).0, End::Killed(9));
    }

    #[test]
    fn a_log_is_searched_for_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, "warning: b\nfine\nwarning: a\nwarning: b\n").unwrap();
        assert_eq!(warnings(&log), ["warning: a", "warning: b"]);
        assert!(warnings(&folder.path().join("none")).is_empty());
    }

    /// What it has started goes with it: the log is no longer held open by anybody.
    #[test]
    fn what_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "sleep 1000 & echo $!; wait";
        let mut command = Command::new("sh");
        let end = run_for(
            command.args(["-c", script]),
            Duration::from_millis(500),
            &log,
        );
        assert_eq!(end.unwrap(), End::TimedOut);
        let process = format!("/proc/{}/stat", last_words(&log));
        let begin = Instant::now();
        // A zombie until its new parent looks.
        let is_gone = || fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "));
        while !is_gone() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{process} is there"
            );
            std::thread::sleep(TICK);
        }
    }
}
