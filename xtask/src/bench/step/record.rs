//! Measurements as files that stay: `benches/runs/<date>/step-<time>.json`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::configuration::Configuration;
use super::machine::Machine;
use super::options::Options;
use super::summary::Summary;
use crate::workspace::Workspace;

/// Where the numbers of this run go.
pub fn path(workspace: &Workspace, options: &Options, machine: &Machine) -> PathBuf {
    let runs = options
        .output
        .clone()
        .unwrap_or_else(|| workspace.root().join("benches/runs"));
    runs.join(&machine.date)
        .join(format!("step-{}.json", machine.time))
}

/// Writes all results so far, over what this run has written before.
///
/// # Errors
/// If the file cannot be written.
pub fn store(
    workspace: &Workspace,
    options: &Options,
    machine: &Machine,
    results: &[(Configuration, Vec<Summary>)],
) -> Result<()> {
    let path = path(workspace, options, machine);
    let write = || -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let text = serde_json::to_string_pretty(&json(options, machine, results))?;
        Ok(fs::write(&path, text + "\n")?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn json(options: &Options, machine: &Machine, results: &[(Configuration, Vec<Summary>)]) -> Value {
    let results = results.iter().map(|(configuration, summaries)| {
        json!({
            "configuration": {
                "name": configuration.name,
                "model": configuration.model,
                "lora_r": configuration.lora_r,
                "layers": configuration.layers,
                "seq": configuration.seq,
                "batch": configuration.batch,
                "tp": configuration.tp,
                "dp": configuration.dp,
                "ep": configuration.ep,
            },
            "contenders": summaries.iter().map(Summary::to_json).collect::<Vec<_>>(),
        })
    });
    json!({
        "machine": machine.to_json(),
        "steps": options.steps,
        "turns": options.turns,
        "results": results.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::contender::{Contender, Variant};
    use super::super::options::{Request, parse};
    use super::super::summary::tests::summary_of;
    use super::super::{configuration, machine::Machine};
    use super::*;

    #[test]
    fn what_is_stored_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(directory.path());
        let Request::Measure(options) = parse(lexopt::Parser::from_args(["--steps", "4"])).unwrap()
        else {
            panic!("nothing to measure");
        };
        let machine = Machine::look(&Workspace::of_this_checkout()).unwrap();
        let summary = summary_of(
            Contender::Ours(Variant::Fsdp),
            &[0.5, 0.25, 0.125],
            Some(0.2),
        );
        let results = [(configuration::named("dp2").remove(0), vec![summary])];
        store(&workspace, &options, &machine, &results).unwrap();

        let text = fs::read_to_string(path(&workspace, &options, &machine)).unwrap();
        let stored: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(stored["steps"], 4);
        assert_eq!(stored["results"][0]["configuration"]["dp"], 2);
        let contender = &stored["results"][0]["contenders"][0];
        assert_eq!(contender["contender"], "tandem fsdp");
        assert_eq!(contender["step_time_s"], 0.25);
        assert_eq!(contender["turns"].as_array().map(Vec::len), Some(3));
    }
}
