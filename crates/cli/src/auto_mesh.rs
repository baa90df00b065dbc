//! `--tp_size auto`: turned into numbers before anything else is made of the command line, so that workers are told numbers.

use std::ffi::OsString;

use tandem_run::auto_mesh::choose;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::spec::RunSpec;

use crate::line::Line;
use crate::line::mesh::AUTO;

/// The words of a command line with the mesh that fits, and a note on it, where it asks for one; `spec` makes a run of words.
///
/// # Errors
/// The mesh is not to be chosen, or nothing fits.
pub fn resolved(
    args: Vec<OsString>,
    notes: &mut Vec<String>,
    spec: impl FnOnce(&[OsString]) -> Outcome<RunSpec>,
) -> Outcome<Vec<OsString>> {
    let mut line = Line::new(&args);
    if line.value("tp_size").as_deref() != Some(AUTO) {
        return Ok(args);
    }
    let workers = line.number("num_workers").filter(|count| *count > 0);
    let Some(workers) = workers.and_then(|count| usize::try_from(count).ok()) else {
        return Err(Failure::usage(
            "--tp_size auto needs --num_workers, the workers that it makes a mesh of",
        ));
    };
    if line.has("dp_size") {
        return Err(Failure::usage(
            "--tp_size auto chooses --dp_size too, from --num_workers; leave --dp_size out, or pass --tp_size as a number",
        ));
    }
    line.take("tp_size");
    let with_mesh = |tp_size: usize| {
        let mut line = line.clone();
        line.add("tp_size", &tp_size.into());
        line.add("dp_size", &(workers / tp_size).into());
        line.words
    };
    // Whatever the mesh is, the rest of the run is the same.
    let chosen = choose(&spec(&with_mesh(1))?, workers)?;
    notes.push(chosen.why);
    Ok(with_mesh(chosen.tp_size))
}
