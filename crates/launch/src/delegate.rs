//! A program that does this one's work in its place: it gets its request on standard input, what it prints is passed on
//! line by line, and the signals that ask this process to end or to save go to it.

use crate::stop_signals::hang_up_is_ignored;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// How soon the end of a program is noticed whose standard output something else still holds open.
const TICK: Duration = Duration::from_millis(100);

/// Runs `command` to its end, in a process group of its own, and returns its exit code (128 + the number of the signal
/// that ended it, as shells do).
///
/// SIGINT, SIGTERM and SIGUSR1 of this process are passed on, each time they come, and SIGHUP, unless it is ignored, as SIGTERM. A terminal's Ctrl-C reaches this process only,
/// so the program gets it once. After the call these signals do nothing: this process is expected to end soon.
///
/// # Errors
/// What the system said when the program could not be started or waited for.
pub fn run(command: &mut Command, input: &[u8], on_line: &mut dyn FnMut(&str)) -> io::Result<i32> {
    // Installed first, so that a signal which comes while the program starts is not lost.
    let mut passed_on = vec![SIGINT, SIGTERM, SIGUSR1];
    if !hang_up_is_ignored() {
        passed_on.push(SIGHUP);
    }
    let mut signals = Signals::new(passed_on)?;
    let handle = signals.handle();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_child(&child);
    let lines = match lines_of(&mut child) {
        Ok(lines) => lines,
        Err(error) => return end(child, error),
    };
    let forward = move || {
        for number in signals.forever() {
            let signal = match number {
                SIGINT => Signal::INT,
                SIGUSR1 => Signal::USR1,
                // A driver does for SIGTERM what a hang-up means here.
                _ => Signal::TERM,
            };
            // It may have ended in the same moment.
            let _ = kill_process(pid, signal);
        }
    };
    let forwarder = match Builder::new().name("signals".into()).spawn(forward) {
        Ok(forwarder) => forwarder,
        Err(error) => return end(child, error),
    };
    feed(&mut child, input);
    while let Some(line) = next(&lines, pid)? {
        on_line(&line);
    }
    // The process id stays taken until the last `wait`, so no signal can hit another process.
    waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    )?;
    handle.close();
    // A panic of that thread has no consequence: the program has ended.
    let _ = forwarder.join();
    Ok(exit_code(child.wait()?))
}

/// A program that ends before it has read its request says why in its own way.
fn feed(child: &mut Child, input: &[u8]) {
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
}

/// Ends a program for which a thread is missing.
fn end(mut child: Child, error: io::Error) -> io::Result<i32> {
    let _ = child.kill();
    child.wait()?;
    Err(error)
}

fn lines_of(child: &mut Child) -> io::Result<Receiver<String>> {
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        let read = move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        };
        Builder::new().name("lines".into()).spawn(read)?;
    }
    Ok(receiver)
}

/// The next line, or `None` when there will be none.
fn next(lines: &Receiver<String>, pid: Pid) -> io::Result<Option<String>> {
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => return Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
                if waitid(WaitId::Pid(pid), options)?.is_some() {
                    return Ok(lines.try_recv().ok());
                }
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    let of_signal = || 128 + status.signal().unwrap_or(0);
    status.code().unwrap_or_else(of_signal)
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn shell(script: &str, input: &str) -> (i32, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let code = run(&mut command, input.as_bytes(), &mut |line| {
            lines.push(line.to_owned());
        });
        (code.unwrap(), lines)
    }

    #[test]
    fn input_output_and_exit_code_pass_through() {
        assert_eq!(
            shell("cat; echo two; exit 7", "one\n"),
            (7, vec!["one".to_owned(), "two".to_owned()])
        );
        assert_eq!(shell("kill -TERM $$", "").0, 143);
        assert_eq!(shell("exit 3", &"unread ".repeat(100_000)).0, 3);
        let mut missing = Command::new("/no/such/program");
        assert!(run(&mut missing, b"", &mut |_| {}).is_err());
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_keeps_nobody_waiting() {
        let start = Instant::now();
        assert_eq!(shell("sleep 30 & echo $!", "").1.len(), 1, "its process id");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
