//! The figures of several numbers of ranks as the rows of one table.

use serde::Serialize;

use super::figures::Figures;
use crate::group::Group;

/// What the values of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// When: start, always, step, save, end, restart.
    pub phase: &'static str,
    /// What is counted.
    pub what: &'static str,
    /// How it goes with `N` ranks, rows of `tp`, columns of `dp`.
    pub formula: &'static str,
    /// What the values are.
    pub quantity: Quantity,
    /// For each number of ranks.
    pub values: Vec<f64>,
}

impl Quantity {
    /// A value in words.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Count => grouped(value),
            Self::Seconds if value < 10.0 => format!("{value:.2} s"),
            Self::Seconds => format!("{} s", grouped(value)),
            Self::Bytes => match value {
                few if few < 1e3 => format!("{few:.0} B"),
                some if some < 1e6 => format!("{:.1} kB", some / 1e3),
                many if many < 1e9 => format!("{:.1} MB", many / 1e6),
                most if most < 1e12 => format!("{:.1} GB", most / 1e9),
                all => format!("{:.1} TB", all / 1e12),
            },
        }
    }
}

/// Digits in groups of three.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The rows that say something of any of the columns.
pub(super) fn rows(figures: &[Figures]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |phase, what, formula, quantity, value: &dyn Fn(&Figures) -> f64| {
        let values: Vec<f64> = figures.iter().map(value).collect();
        if values.iter().any(|value| *value > 0.0) {
            rows.push(Row {
                phase,
                what,
                formula,
                quantity,
                values,
            });
        }
    };
    use Quantity::{Bytes, Count, Seconds};
    let phase = "start";
    add(
        phase,
        "connections of rank 0's store, which one thread serves",
        "N",
        Count,
        &|it| it.hosts.ranks as f64,
    );
    add(
        phase,
        "messages of the store until all have met",
        "4 N",
        Count,
        &|it| (it.meeting.received + it.meeting.sent) as f64,
    );
    add(
        phase,
        "messages of the store for the groups",
        "2 to 6 a member",
        Count,
        &|it| (it.joining.received + it.joining.sent) as f64,
    );
    add(phase, "bytes from the store", "N^2", Bytes, &|it| {
        (it.meeting.sent_bytes + it.joining.sent_bytes) as f64
    });
    add(
        phase,
        "time of the store's thread, at most",
        "N^2",
        Seconds,
        &|it| it.store_s,
    );
    add(
        phase,
        "connections of a rank in the group of all ranks, over TCP",
        "N - 1",
        Count,
        &|it| it.to_all as f64,
    );
    add(
        phase,
        "connections of a rank in all groups, over TCP",
        "a group's size - 1",
        Count,
        &|it| it.connections as f64,
    );
    let phase = "always";
    add(
        phase,
        "buffers of a rank for groups over TCP, at most",
        "16.8 MB a group, or 4 KiB a member",
        Bytes,
        &|it| it.rings as f64,
    );
    add(
        phase,
        "open files of rank 0",
        "those of a rank + N + 6",
        Count,
        &|it| it.descriptors_of_first as f64,
    );
    add(
        phase,
        "open files of another rank",
        "connections + 8, + 1 a group in shared memory",
        Count,
        &|it| it.descriptors as f64,
    );
    add(
        phase,
        "open files that a worker makes sure of",
        "64 + 4 N",
        Count,
        &|it| it.descriptors_asked as f64,
    );
    add(
        phase,
        "process descriptors of a host's ranks together",
        "1 a rank and group in shared memory",
        Count,
        &|it| it.watched as f64,
    );
    let phase = "step";
    add(
        phase,
        "small messages of a rank to all others (norm of the gradient, requests)",
        "2 (N - 1)",
        Count,
        &|it| it.small_to_all as f64,
    );
    add(
        phase,
        "small messages of a rank to its row and column",
        "tp - 1 + 2 (dp - 1)",
        Count,
        &|it| it.small_to_few as f64,
    );
    for (group, what) in [
        (Group::Tp, "bytes that a rank sends to its row"),
        (Group::Dp, "bytes that a rank sends to its column"),
        (Group::Ep, "bytes that a rank sends to other experts"),
        (
            Group::Edp,
            "bytes that a rank sends to those with its experts",
        ),
    ] {
        add(
            phase,
            what,
            "(n - 1) / n of it, of a sum twice",
            Bytes,
            &|it| {
                let of_group = it.step.iter().find(|(other, _)| *other == group);
                of_group.map_or(0.0, |(_, bytes)| *bytes)
            },
        );
    }
    let phase = "save";
    add(phase, "files of a checkpoint", "N", Count, &|it| {
        it.files as f64
    });
    add(
        phase,
        "pieces in its list",
        "at most 3 (tensors tp + units N)",
        Count,
        &|it| it.list.pieces as f64,
    );
    add(phase, "bytes of its list", "as the pieces", Bytes, &|it| {
        it.list.bytes as f64
    });
    add(
        phase,
        "bytes that a rank writes",
        "12 a trained element, over N",
        Bytes,
        &|it| it.written as f64,
    );
    add(
        "end",
        "\"a rank has ended\", messages of the store at most",
        "N (N - 1) / 2",
        Count,
        &|it| it.ends.sent as f64,
    );
    let phase = "restart";
    add(
        phase,
        "bytes of the list that all ranks read together",
        "N lists",
        Bytes,
        &|it| it.list.bytes as f64 * it.hosts.ranks as f64,
    );
    add(
        phase,
        "files whose size is looked at, all ranks together",
        "N files",
        Count,
        &|it| it.files as f64 * it.hosts.ranks as f64,
    );
    add(
        phase,
        "bytes of the state that a rank reads",
        "12 an element that it owns",
        Bytes,
        &|it| it.read as f64,
    );
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_people_write_them() {
        use Quantity::{Bytes, Count, Seconds};
        for (quantity, value, text) in [
            (Count, 0.0, "0"),
            (Count, 999.4, "999"),
            (Count, 523_776.0, "523,776"),
            (Count, 1e7, "10,000,000"),
            (Bytes, 999.0, "999 B"),
            (Bytes, 1.54e9, "1.5 GB"),
            (Seconds, 0.1234, "0.12 s"),
            (Seconds, 1234.4, "1,234 s"),
        ] {
            assert_eq!(quantity.show(value), text);
        }
    }
}
