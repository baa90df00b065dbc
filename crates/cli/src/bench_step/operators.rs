//! What a step runs, operator by operator: how often, over how many bytes, for how long.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_run::failure::Outcome;
use tandem_tensor::torch::recorder::{Action, Call, Detail};

/// Rows that are shown.
const SHOWN: usize = 20;

/// The operators of one step of one rank. An operator of several kernels inside of libtorch counts as one launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operators {
    /// Operators that compute or copy.
    pub launches: usize,
    /// Bytes that they read and write, all together: what passes between a GPU and its memory where no cache helps.
    pub bytes: u64,
    /// Copies from the host's memory to a GPU's.
    pub copies_to_device: usize,
    /// How often the host reads a number of a tensor, for which it waits where that is on a GPU.
    pub host_reads: usize,
    /// The sum of all rows' times.
    pub time_ms: f64,
    /// The most expensive first: by time.
    pub rows: Vec<Row>,
}

/// All calls of one operator with arguments of the same sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// libtorch's name for it.
    pub name: String,
    pub sizes: String,
    pub calls: usize,
    /// Bytes that all of them read and write.
    pub bytes: u64,
    /// Time of all of them, each waited for alone.
    pub time_ms: f64,
}

/// Counts with one step, and takes the times with another: waiting for each operator changes what runs beside it.
pub fn of_a_step(mut step: impl FnMut(Detail) -> Outcome<Vec<Call>>) -> Outcome<Operators> {
    let counted = step(Detail::Counts)?;
    Ok(Operators::of(&counted, &step(Detail::Times)?))
}

impl Operators {
    fn of(counted: &[Call], timed: &[Call]) -> Self {
        let number = |action| counted.iter().filter(|call| call.action == action).count();
        let mut rows: BTreeMap<(&str, &str), Row> = BTreeMap::new();
        for call in timed.iter().filter(|call| call.action != Action::HostReads) {
            let row = rows
                .entry((&call.name, &call.sizes))
                .or_insert_with(|| Row {
                    name: call.name.clone(),
                    sizes: call.sizes.clone(),
                    calls: 0,
                    bytes: 0,
                    time_ms: 0.0,
                });
            row.calls += 1;
            row.bytes += call.read + call.written;
            row.time_ms += call.time.as_secs_f64() * 1e3;
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        rows.sort_by(|a, b| b.time_ms.total_cmp(&a.time_ms));
        let moved = counted
            .iter()
            .filter(|call| call.action != Action::HostReads);
        Self {
            launches: number(Action::Compute) + number(Action::ToDevice),
            bytes: moved.map(|call| call.read + call.written).sum(),
            copies_to_device: number(Action::ToDevice),
            host_reads: number(Action::HostReads),
            time_ms: rows.iter().map(|row| row.time_ms).sum(),
            rows,
        }
    }

    /// The twenty most expensive, for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} operators, {:.3} GB read and written, {} reads by the host; {:.1} ms where each is waited for:",
            self.launches,
            self.bytes as f64 / 1e9,
            self.host_reads,
            self.time_ms
        )];
        lines.extend(self.rows.iter().take(SHOWN).map(|row| {
            format!(
                "{:>9.3} ms {:>5} x {:<24} {:>9.1} MB  {}",
                row.time_ms,
                row.calls,
                row.name,
                row.bytes as f64 / 1e6,
                row.sizes
            )
        }));
        lines
    }

    /// The same as cells of a table: time, its part of all, calls, operator, megabytes, sizes.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let shown = self.rows.iter().take(SHOWN);
        let cells = shown.map(|row| {
            vec![
                format!("{:.3} ms", row.time_ms),
                format!("{:.1} %", 100.0 * row.time_ms / self.time_ms),
                row.calls.to_string(),
                row.name.clone(),
                format!("{:.1} MB", row.bytes as f64 / 1e6),
                row.sizes.clone(),
            ]
        });
        cells.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::Location;
    use std::time::Duration;

    fn call(name: &str, action: Action, ms: u64) -> Call {
        Call {
            name: name.into(),
            action,
            read: 3_000_000,
            written: 1_000_000,
            sizes: "[2, 3]".into(),
            time: Duration::from_millis(ms),
            place: Location::caller(),
        }
    }

    #[test]
    fn calls_alike_are_one_row_and_reads_are_none() {
        let counted = [
            call("mm", Action::Compute, 0),
            call("mm", Action::Compute, 0),
            call("copy_", Action::ToDevice, 0),
            call("a read", Action::HostReads, 0),
        ];
        let timed = [
            call("add", Action::Compute, 5),
            call("mm", Action::Compute, 4),
            call("mm", Action::Compute, 4),
            call("a read", Action::HostReads, 9),
        ];
        let found = Operators::of(&counted, &timed);
        assert_eq!(
            (found.launches, found.copies_to_device, found.host_reads),
            (3, 1, 1)
        );
        assert_eq!(found.bytes, 12_000_000);
        let rows: Vec<_> = found
            .rows
            .iter()
            .map(|row| (row.name.as_str(), row.calls))
            .collect();
        assert_eq!(rows, [("mm", 2), ("add", 1)]);
        assert!((found.time_ms - 13.0).abs() < 1e-9);
        assert_eq!(found.lines().len(), 3);
        assert_eq!(
            found.cells()[0],
            ["8.000 ms", "61.5 %", "2", "mm", "8.0 MB", "[2, 3]"]
        );
    }
}
