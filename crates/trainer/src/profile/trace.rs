//! The trace: Chrome's trace event format, which Perfetto reads as well.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tandem_files::open_own;

use super::{Activity, Record};
use crate::error::TrainError;

/// Rows of a rank in the viewer.
const STEPS: usize = 0;
const COMPUTE: usize = 1;
/// The first group's; the others' follow.
const GROUPS: usize = 2;

pub(super) fn write(
    record: &Record,
    origin: (Instant, SystemTime),
    path: &Path,
    rank: usize,
) -> Result<(), TrainError> {
    let failed = |source: std::io::Error| TrainError::Write {
        path: path.to_path_buf(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut options = File::options();
    options.create(true).truncate(true).write(true);
    let file = open_own(path, &options).map_err(failed)?;
    let trace = json!({ "traceEvents": events(record, origin, rank), "displayTimeUnit": "ms" });
    serde_json::to_writer(BufWriter::new(file), &trace).map_err(|error| failed(error.into()))
}

fn events(record: &Record, origin: (Instant, SystemTime), rank: usize) -> Vec<Value> {
    let started = origin.1.duration_since(UNIX_EPOCH).unwrap_or_default();
    let microseconds = |moment: Instant| {
        // What happened before the origin is of no step.
        let since = moment.saturating_duration_since(origin.0);
        (started + since).as_nanos() as f64 / 1e3
    };
    let slice = |name: String, row: usize, start: Instant, end: Instant, args: Value| {
        json!({
            "name": name, "ph": "X", "pid": rank, "tid": row,
            "ts": microseconds(start), "dur": (end - start).as_nanos() as f64 / 1e3, "args": args,
        })
    };
    let mut groups: Vec<&str> = Vec::new();
    for operation in &record.operations {
        if !groups.contains(&operation.group.as_ref()) {
            groups.push(&operation.group);
        }
    }
    let row_of = |group: &str| GROUPS + groups.iter().position(|it| *it == group).unwrap_or(0);

    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": rank, "args": { "name": format!("rank {rank}") },
    })];
    let rows = [(STEPS, "steps".to_owned()), (COMPUTE, "compute".to_owned())];
    let group_rows = groups
        .iter()
        .map(|group| (row_of(group), format!("collectives of {group}")));
    for (row, name) in rows.into_iter().chain(group_rows) {
        events.push(json!({
            "name": "thread_name", "ph": "M", "pid": rank, "tid": row, "args": { "name": name },
        }));
    }
    events.extend(record.steps.iter().map(|step| {
        let name = format!("step {}", step.number);
        slice(name, STEPS, step.start, step.end, json!({}))
    }));
    events.extend(record.spans.iter().map(|span| {
        let name = name_of(span.activity);
        slice(name, COMPUTE, span.start, span.end, json!({}))
    }));
    events.extend(record.waits.iter().map(|wait| {
        let name = format!("wait for {}", wait.group);
        slice(name, COMPUTE, wait.start, wait.end, json!({}))
    }));
    events.extend(record.operations.iter().map(|operation| {
        let args = json!({
            "bytes": operation.bytes,
            "number": operation.sequence,
            "beside computation": operation.in_background,
        });
        let name = operation.collective.to_string();
        let row = row_of(&operation.group);
        slice(name, row, operation.start, operation.end, args)
    }));
    events
}

fn name_of(activity: Activity) -> String {
    match activity {
        Activity::Data => "data".to_owned(),
        Activity::Agreement => "agreement".to_owned(),
        Activity::Embedding => "embedding".to_owned(),
        Activity::Layer(index) => format!("layer {index}"),
        Activity::Head => "head and loss".to_owned(),
        Activity::LayerBackward(index) => format!("layer {index} backward"),
        Activity::EmbeddingBackward => "embedding backward".to_owned(),
        Activity::GradientNorm => "gradient norm".to_owned(),
        Activity::Optimizer => "optimizer".to_owned(),
        Activity::Save => "save".to_owned(),
        Activity::Evaluation => "evaluation".to_owned(),
    }
}
