//! Reads a checkpoint: where the run stood, what is in it, and the values of one parameter, whole or as one rank of a mesh holds it.
//!
//! `cargo run -p tandem-checkpoint --example read_checkpoint -- RUN_FOLDER [PARAMETER]`

use std::error::Error;
use std::io::Write;

use tandem_checkpoint::{Role, RunDir, open_store};
use tandem_mesh::{ShardSlice, partition};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let folder = words
        .next()
        .ok_or("usage: read_checkpoint RUN_FOLDER [PARAMETER]")?;
    let mut out = std::io::stdout().lock();

    // The folder may also be the URL of object storage, in a build with that feature.
    let run = RunDir::open(open_store(&folder, std::env::vars())?, Default::default())?;
    let newest = run
        .latest()
        .ok_or("there is no checkpoint in this folder")?;
    let reader = run.reader(&newest.name)?;
    let state = reader.state();
    writeln!(
        out,
        "{}: step {}, epoch {}, written by {} on tp {} x dp {}",
        newest.name, state.global_step, state.epoch, state.strategy, state.tp_size, state.dp_size
    )?;

    let contents = reader.manifest().contents();
    writeln!(
        out,
        "{} parameters, {} bytes",
        contents.shapes.len(),
        contents.bytes
    )?;
    let name = match words.next() {
        Some(name) => name,
        None => contents.shapes.keys().next().ok_or("it is empty")?.clone(),
    };
    let shape = contents
        .shapes
        .get(&name)
        .ok_or("there is no such parameter")?;

    // All of it ...
    let whole = ShardSlice::whole(shape);
    let mut values = vec![0.0; whole.numel()];
    reader.read(&name, &Role::Param, &whole, &mut values)?;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    writeln!(out, "{name} {shape:?}: mean {mean:.6}")?;

    // ... or the rows that the second of two tensor parallel ranks would hold. No code knows on which mesh it was written.
    let rows = ShardSlice::narrow(shape, 0, partition(shape[0], 2, 1));
    let mut part = vec![0.0; rows.numel()];
    reader.read(&name, &Role::Param, &rows, &mut part)?;
    writeln!(
        out,
        "the second half: {} values, first {}",
        part.len(),
        part[0]
    )?;
    Ok(())
}
