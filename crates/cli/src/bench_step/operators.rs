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
    /// Where the host waits for the device: lines of the source, in the order of the step.
    pub host_waits: Vec<String>,
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
        let waits = counted.iter().filter_map(|call| match call.action {
            Action::ToHost(line) => Some(line.to_string()),
            Action::Compute | Action::ToDevice => None,
        });
        let mut rows: BTreeMap<(&str, &str), Row> = BTreeMap::new();
        for call in timed {
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
            row.bytes += call.bytes();
            row.time_ms += call.time.as_secs_f64() * 1e3;
        }
        let mut rows: Vec<Row> = rows.into_values().collect();
        rows.sort_by(|a, b| b.time_ms.total_cmp(&a.time_ms));
        Self {
            launches: counted.len(),
            bytes: counted.iter().map(Call::bytes).sum(),
            copies_to_device: number(Action::ToDevice),
            host_waits: waits.collect(),
            time_ms: rows.iter().map(|row| row.time_ms).sum(),
            rows,
        }
    }

    /// The twenty most expensive, for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} operators, {:.3} GB read and written; {:.1} ms where each is waited for:",
            self.launches,
            self.bytes as f64 / 1e9,
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
        let waits = self.host_waits.iter();
        lines.extend(waits.map(|line| format!("the host waits for the device in {line}")));
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

    use tandem_tensor::Device;

    fn call(name: &str, action: Action, ms: u64) -> Call {
        Call {
            name: name.into(),
            part: "",
            action,
            device: Device::Cuda(0),
            read: 3_000_000,
            written: 1_000_000,
            sizes: "[2, 3]".into(),
            time: Duration::from_millis(ms),
        }
    }

    #[test]
    fn calls_alike_are_one_row_and_waits_are_named() {
        let wait = Action::ToHost(Location::caller());
        let step = |[add, mm, copy, read]: [u64; 4]| {
            vec![
                call("add", Action::Compute, add),
                call("mm", Action::Compute, mm),
                call("mm", Action::Compute, mm),
                call("copy_", Action::ToDevice, copy),
                call("copy_", wait, read),
            ]
        };
        let found = Operators::of(&step([0; 4]), &step([5, 4, 1, 2]));
        assert_eq!((found.launches, found.copies_to_device), (5, 1));
        let [place] = found.host_waits.as_slice() else {
            panic!("{:?}", found.host_waits);
        };
        assert!(place.contains("operators.rs"), "{place}");
        assert_eq!(found.bytes, 20_000_000);
        let rows: Vec<_> = found
            .rows
            .iter()
            .map(|row| (row.name.as_str(), row.calls))
            .collect();
        assert_eq!(rows, [("mm", 2), ("add", 1), ("copy_", 2)]);
        assert!((found.time_ms - 16.0).abs() < 1e-9);
        assert_eq!(found.lines().len(), 5);
        assert_eq!(
            found.cells()[0],
            ["8.000 ms", "50.0 %", "2", "mm", "8.0 MB", "[2, 3]"]
        );
    }
}
