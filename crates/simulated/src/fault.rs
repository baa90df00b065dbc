//! Failures on demand.

use std::collections::HashMap;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};

use crate::{FAULTS, forbidden};

/// What happens instead of a call's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The status to return.
    Error(i32),
    /// The status that this and all later calls of the driver return.
    Broken(i32),
    /// A collective that never ends.
    Stuck,
    /// A collective that is done half a second after it could be.
    Late,
    /// A call that never returns.
    Blocked,
    /// A collective that never ends and an error in the background.
    Async(i32),
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    function: String,
    number: u64,
    /// `None`: the process dies.
    what: Option<Fault>,
}

/// Counts a call of `function`; what is to go wrong with it, if anything.
pub(crate) fn due(function: &str) -> Option<Fault> {
    static WANTED: OnceLock<Vec<Wanted>> = OnceLock::new();
    static CALLS: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var(FAULTS).unwrap_or_default();
        parse(&text).unwrap_or_else(|| forbidden(&format!("{FAULTS}={text} cannot be read")))
    });
    if wanted.is_empty() {
        return None;
    }
    let number = {
        let mut calls = CALLS.lock();
        let count = calls.get_or_insert_default();
        let count = count.entry(function.to_owned()).or_insert(0);
        *count += 1;
        *count
    };
    let found = wanted
        .iter()
        .find(|it| it.function == function && it.number == number)?;
    if found.what.is_none() {
        // A process may always kill itself, and does not return from it.
        let _killed = kill_process(getpid(), Signal::KILL);
    }
    found.what
}

fn parse(text: &str) -> Option<Vec<Wanted>> {
    let one = |text: &str| {
        let mut parts = text.split(':');
        let (function, number, what) = (parts.next()?, parts.next()?, parts.next()?);
        let status = |text: &str| text.parse().ok();
        let what = match what.split_once('=') {
            Some(("error", code)) => Some(Fault::Error(status(code)?)),
            Some(("broken", code)) => Some(Fault::Broken(status(code)?)),
            Some(("async", code)) => Some(Fault::Async(status(code)?)),
            None if what == "stuck" => Some(Fault::Stuck),
            None if what == "late" => Some(Fault::Late),
            None if what == "blocked" => Some(Fault::Blocked),
            None if what == "die" => None,
            _ => return None,
        };
        Some(Wanted {
            function: function.to_owned(),
            number: number.parse().ok()?,
            what,
        })
    };
    text.split(',')
        .filter(|one| !one.is_empty())
        .map(one)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_or_refused() {
        let read = parse("ncclAllReduce:2:stuck,cuMemHostAlloc:1:error=2,ncclReduce:3:die");
        let read = read.expect("readable");
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].number, read[0].what), (2, Some(Fault::Stuck)));
        assert_eq!(read[1].what, Some(Fault::Error(2)));
        assert_eq!((&*read[2].function, read[2].what), ("ncclReduce", None));
        assert_eq!(parse(""), Some(Vec::new()));
        for wrong in [
            "ncclAllReduce",
            "ncclAllReduce:2:later",
            "ncclAllReduce:x:stuck",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
