//! The table at the end of a profile.

use std::time::Duration;

use serde::Serialize;

use super::Record;
use crate::gemm_floor::LinearTime;

/// Rows of the table, in the order of a step.
const KINDS: [&str; 10] = [
    "data",
    "agreement",
    "embedding",
    "layers, forward",
    "head and loss",
    "layers, backward",
    "gradient norm",
    "optimizer",
    "save",
    "evaluation",
];

/// Where the time of a step went, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Breakdown {
    /// The steps that it is the mean of.
    steps: Vec<u64>,
    /// A step's time.
    step_ms: f64,
    /// Its parts.
    parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    ms: f64,
}

impl Breakdown {
    pub fn of(record: &Record) -> Self {
        let steps = record.steps.len().max(1) as f64;
        let ms = |time: Duration| time.as_secs_f64() * 1e3 / steps;
        let step_ms = ms(record.steps.iter().map(|step| step.end - step.start).sum());
        let mut parts: Vec<Part> = Vec::new();
        for kind in KINDS {
            let ms = own_ms(record, kind);
            if ms > 0.0 {
                let name = kind.to_owned();
                parts.push(Part { name, ms });
            }
        }
        for group in groups(record) {
            let waits = record.waits.iter().filter(|wait| *wait.group == *group);
            let ms = ms(waits.map(|wait| wait.end - wait.start).sum());
            let name = format!("waiting for {group}");
            parts.push(Part { name, ms });
        }
        let explained: f64 = parts.iter().map(|part| part.ms).sum();
        parts.push(Part {
            name: "other".to_owned(),
            ms: step_ms - explained,
        });
        Self {
            steps: record.steps.iter().map(|step| step.number).collect(),
            step_ms,
            parts,
        }
    }
}

/// Milliseconds of a step that its activities of this kind took, without those in which they waited for others.
fn own_ms(record: &Record, kind: &str) -> f64 {
    let spans = record
        .spans
        .iter()
        .filter(|span| span.activity.kind() == kind);
    let time = spans.map(|span| {
        (span.end - span.start).saturating_sub(record.waited_between(span.start, span.end))
    });
    time.sum::<Duration>().as_secs_f64() * 1e3 / record.steps.len().max(1) as f64
}

pub(super) fn lines(record: &Record, products: &[LinearTime], micro_batches: usize) -> Vec<String> {
    let breakdown = Breakdown::of(record);
    let total = breakdown.step_ms;
    let row = |name: &str, ms: f64| format!("  {name:<24} {ms:>9.1} {:>6.1} %", ms / total * 100.0);

    let title = match (breakdown.steps.first(), breakdown.steps.last()) {
        (Some(first), Some(last)) if first != last => format!("steps {first} to {last}"),
        (Some(only), _) => format!("step {only}"),
        _ => "nothing".to_owned(),
    };
    let mut lines = vec![format!("profile of {title}, rank 0, ms in a step:")];
    lines.extend(breakdown.parts.iter().map(|part| row(&part.name, part.ms)));
    lines.push(row("step", total));
    lines.extend(collectives(record, record.steps.len().max(1) as f64));
    let own = |kind| own_ms(record, kind);
    let layers = own("layers, forward") + own("layers, backward");
    let by_place = [("layers", layers), ("head", own("head and loss"))];
    lines.extend(matrix_products(products, micro_batches, by_place));
    lines
}

/// The groups that were waited for, in the order of the first wait.
fn groups(record: &Record) -> Vec<&str> {
    let mut groups = Vec::new();
    for wait in &record.waits {
        if !groups.contains(&wait.group.as_ref()) {
            groups.push(wait.group.as_ref());
        }
    }
    groups
}

/// A row per group and collective: how many, how large, how long.
fn collectives(record: &Record, steps: f64) -> Vec<String> {
    let mut rows: Vec<(String, f64, f64, f64, f64)> = Vec::new();
    for operation in &record.operations {
        let name = format!("{} {}", operation.group, operation.collective);
        let index = rows
            .iter()
            .position(|row| row.0 == name)
            .unwrap_or(rows.len());
        if index == rows.len() {
            rows.push((name, 0.0, 0.0, 0.0, 0.0));
        }
        let row = &mut rows[index];
        let ms = (operation.end - operation.start).as_secs_f64() * 1e3;
        row.1 += 1.0 / steps;
        row.2 += operation.bytes as f64 / 1e6 / steps;
        row.3 += ms / steps;
        row.4 += if operation.in_background {
            ms / steps
        } else {
            0.0
        };
    }
    let mut lines = Vec::new();
    if !rows.is_empty() {
        lines.push("collectives in a step, with the time that peers came late:".to_owned());
    }
    for (name, count, megabytes, ms, beside) in rows {
        lines.push(format!(
            "  {name:<24} {count:>6.0} x {megabytes:>9.2} MB {ms:>9.1} ms, {beside:.1} ms of it beside computation"
        ));
    }
    lines
}

/// How much of what was computed is matrix products.
fn matrix_products(
    products: &[LinearTime],
    micro_batches: usize,
    by_place: [(&str, f64); 2],
) -> Vec<String> {
    let mut lines = Vec::new();
    if products.is_empty() {
        return lines;
    }
    lines.push("matrix products at the rate that this machine reaches for each shape:".to_owned());
    let ms = |product: &LinearTime| product.total_s() * 1e3 * micro_batches as f64;
    for product in products {
        let shape = &product.shape;
        lines.push(format!(
            "  {:<14} {:>4} x [{}, {}] -> {:<7} {:>9.1} ms {:>7.0} GFLOP/s",
            shape.name,
            shape.count * micro_batches,
            shape.tokens,
            shape.inputs,
            shape.outputs,
            ms(product),
            product.rate() / 1e9
        ));
    }
    for (place, spent) in by_place {
        let is_here = |product: &&LinearTime| (product.shape.name == "head") == (place == "head");
        let floor: f64 = products.iter().filter(is_here).map(ms).sum();
        if spent > 0.0 {
            lines.push(format!(
                "  {place}: {floor:.1} ms of products in {spent:.1} ms of computing, {:.0} %",
                floor / spent * 100.0
            ));
        }
    }
    lines
}
