//! Limits of the system that a run could meet halfway: threads and file descriptors.
//!
//! A rank that cannot start a thread in the middle of a run takes the others along, minutes later and with a time-out for a
//! reason. So what a process will need is tried before it begins, and the error names the limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// Bytes of a thread's stack if nobody says otherwise.
const USUAL_STACK: usize = 2 << 20;

/// Bytes that a thread addresses besides: its guard page, and the stack for signals.
const BESIDE_A_STACK: usize = 64 << 10;

/// Bytes that are left for all the rest of a process.
const FOR_THE_REST: u64 = 16 << 20;

/// What a process will need besides what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Threads, its own and those of processes that it starts.
    pub threads: usize,
    /// Bytes of a thread's stack; `None` is the usual size. Those of other processes take none of this one's memory.
    pub stack: Option<usize>,
    /// File descriptors, all in all.
    pub descriptors: u64,
}

/// The system allows less than the run needs.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// Threads.
    #[error(
        "this run needs {needed} threads here, and the system refuses to start number {number} ({source}); {limits}; raise the \
         limit, or use fewer workers"
    )]
    Threads {
        /// How many there will be.
        needed: usize,
        /// The first that could not be started.
        number: usize,
        /// What the system said.
        source: io::Error,
        /// The limits that may be the reason, with their values.
        limits: String,
    },
    /// Descriptors.
    #[error(
        "this run needs about {needed} open files and connections in one process, and the limit is {limit} (`ulimit -n`, \
         RLIMIT_NOFILE); raise it, or use fewer workers"
    )]
    Descriptors {
        /// How many there will be.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
}

/// Tries whether `need` can be had. A soft limit on descriptors is raised where that is allowed.
///
/// # Errors
/// [`LimitError`] names the limit and its value.
pub fn check(need: Need) -> Result<(), LimitError> {
    check_descriptors(need.descriptors)?;
    check_address_space(need)?;
    check_threads(need)
}

/// Counts whether the stacks fit into what a process may address. Trying it would be dangerous: a thread that finds no
/// memory for its first allocation ends the process without a word.
fn check_address_space(need: Need) -> Result<(), LimitError> {
    let Some(limit) = getrlimit(Resource::As).current else {
        return Ok(());
    };
    let each = need.stack.unwrap_or(USUAL_STACK) + BESIDE_A_STACK;
    let left = limit.saturating_sub(address_space_used() + FOR_THE_REST);
    let fitting = usize::try_from(left / each as u64).unwrap_or(usize::MAX);
    if fitting >= need.threads {
        return Ok(());
    }
    Err(LimitError::Threads {
        needed: need.threads,
        number: fitting + 1,
        source: io::ErrorKind::OutOfMemory.into(),
        limits: limits_of_threads(),
    })
}

/// Bytes that this process addresses; 0 where the kernel does not tell.
fn address_space_used() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0_u64) << 10
}

fn check_descriptors(needed: u64) -> Result<(), LimitError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No value is no limit.
    if current.is_none_or(|limit| limit >= needed) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(maximum.map_or(needed, |limit| limit.min(needed))),
        maximum,
    };
    let is_raised = setrlimit(Resource::Nofile, raised).is_ok();
    match maximum {
        Some(limit) if limit < needed => Err(LimitError::Descriptors { needed, limit }),
        _ if is_raised => Ok(()),
        _ => Err(LimitError::Descriptors {
            needed,
            limit: current.unwrap_or(0),
        }),
    }
}

/// Starts all threads at a time, and ends them.
fn check_threads(need: Need) -> Result<(), LimitError> {
    let mut threads: Vec<(JoinHandle<()>, mpsc::Sender<()>)> = Vec::with_capacity(need.threads);
    let mut refused = None;
    for number in 1..=need.threads {
        let (end, ended) = mpsc::channel::<()>();
        let mut builder = Builder::new().name("limits".to_owned());
        if let Some(stack) = need.stack {
            builder = builder.stack_size(stack);
        }
        let wait = move || {
            // Nothing is sent: the other end is dropped.
            let _ = ended.recv();
        };
        match builder.spawn(wait) {
            Ok(thread) => threads.push((thread, end)),
            Err(source) => {
                refused = Some((number, source));
                break;
            }
        }
    }
    for (thread, end) in threads {
        drop(end);
        // It does nothing that could panic.
        let _ = thread.join();
    }
    match refused {
        None => Ok(()),
        Some((number, source)) => Err(LimitError::Threads {
            needed: need.threads,
            number,
            source,
            limits: limits_of_threads(),
        }),
    }
}

/// All limits that can refuse a thread, those that are none left out.
fn limits_of_threads() -> String {
    let mut words = Vec::new();
    if let Some(limit) = getrlimit(Resource::Nproc).current {
        words.push(format!(
            "processes and threads of this user: {limit} (`ulimit -u`, RLIMIT_NPROC)"
        ));
    }
    if let Some((path, limit)) = pids_max() {
        words.push(format!("this control group: {limit} ({})", path.display()));
    }
    if let Some(limit) = getrlimit(Resource::As).current {
        words.push(format!(
            "memory that a process may address: {} KiB (`ulimit -v`, RLIMIT_AS)",
            limit >> 10
        ));
    }
    if let Ok(limit) = std::fs::read_to_string("/proc/sys/kernel/threads-max") {
        words.push(format!(
            "this host: {} (/proc/sys/kernel/threads-max)",
            limit.trim()
        ));
    }
    let mut text = "the limits are: ".to_owned();
    // Writing to a string does not fail.
    let _ = write!(text, "{}", words.join("; "));
    text
}

/// The smallest `pids.max` of this process's control group and those around it.
fn pids_max() -> Option<(PathBuf, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            // `0::/a/b` is version 2; `7:pids:/a/b` is version 1.
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, group) = (parts.next()?, parts.next()?);
            let root = match controllers {
                "" => Path::new("/sys/fs/cgroup"),
                "pids" => Path::new("/sys/fs/cgroup/pids"),
                _ => return None,
            };
            smallest_in(root, group)
        })
        .min_by_key(|(_, limit)| *limit)
}

fn smallest_in(root: &Path, group: &str) -> Option<(PathBuf, u64)> {
    let folder = root.join(group.trim_start_matches('/'));
    folder
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            let path = folder.join("pids.max");
            let limit = std::fs::read_to_string(&path).ok()?.trim().parse().ok()?;
            Some((path, limit))
        })
        .min_by_key(|(_, limit)| *limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_process_may_have_is_no_problem() {
        check(Need {
            threads: 20,
            stack: Some(64 << 10),
            descriptors: 16,
        })
        .unwrap();
    }

    #[test]
    fn the_smallest_limit_of_nested_control_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(smallest_in(root.path(), "/a/b"), None);
        std::fs::write(inner.join("pids.max"), "max\n").unwrap();
        let outer = root.path().join("a/pids.max");
        std::fs::write(&outer, "40\n").unwrap();
        assert_eq!(
            smallest_in(root.path(), "/a/b"),
            Some((outer.clone(), 40)),
            "the outer one"
        );
        std::fs::write(inner.join("pids.max"), "30\n").unwrap();
        assert_eq!(
            smallest_in(root.path(), "/a/b").map(|(_, limit)| limit),
            Some(30)
        );
    }
}
