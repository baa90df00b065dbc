//! What `/proc` says about processes: whether one is stopped or stuck, and when it started, which tells a process from a
//! later one with the same id.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

/// A process that cannot be confused with a later one of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Clock ticks from the host's boot to the process's start (field 22 of `/proc/pid/stat`).
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// The process with this id now, or none.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: stat_fields(pid)?.1,
        })
    }

    /// Whether this very process exists still and has not exited.
    pub(crate) fn is_alive(self) -> bool {
        stat_fields(self.pid)
            .is_some_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }
}

/// Whether the process was started with `name=value` in its environment. `false` also where we may not look.
pub(crate) fn was_started_with(pid: u32, name: &str, value: &OsStr) -> bool {
    let wanted = [name.as_bytes(), b"=", value.as_bytes()].concat();
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted)
    })
}

/// Why a process is stopped, if it is.
pub(crate) fn why_stopped(pid: u32) -> Option<&'static str> {
    match stat_fields(pid)?.0 {
        'T' => Some("stopped by a signal (SIGSTOP or Ctrl-Z)"),
        't' => Some("stopped by a debugger"),
        _ => None,
    }
}

/// Why a process does not run, where the kernel says so. Unlike a stop, waiting for a disk may pass any moment: it
/// explains a process that has not run for long, but not one that was looked at once.
pub(crate) fn why_not_running(pid: u32) -> Option<&'static str> {
    match stat_fields(pid)?.0 {
        'D' => Some("waiting for a disk or a device"),
        _ => why_stopped(pid),
    }
}

/// State letter and start time. The second field, the program's name, may hold anything, spaces and parentheses
/// included, so fields are counted from its last parenthesis.
fn stat_fields(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::ProcessId;

    #[test]
    fn this_process_is_alive_and_a_later_one_of_its_id_would_be_another() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert_eq!(ProcessId::of(u32::MAX), None);
    }
}
