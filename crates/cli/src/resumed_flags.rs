//! `--resume_from`: the flags that are not given are those of the run that goes on, from its `run_config.json`.

use clap::Command;
use serde_json::{Map, Value};
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::kept_spec;
use tandem_run::spec::Experiment;

use crate::flags::train::at_home;
use crate::line::{Line, folded, has_flag, same_all, words};

/// What is about one start of a run, or says where it is.
const OF_ONE_START: [&str; 6] = [
    "resume_from",
    "resume_fallback",
    "storage_path",
    "name",
    "profile",
    "binary",
];

/// The flags of a run that goes on.
#[derive(Debug)]
pub struct RunFlags {
    /// The run's name.
    pub name: String,
    /// The file that they are from.
    pub location: String,
    /// Their values, by name.
    pub keys: Map<String, Value>,
    /// The program that it was.
    entry_point: String,
}

/// The flags of the run that `from` means. Nothing where it has kept none, and `line` says all that must be said.
///
/// # Errors
/// Wrong usage: a run that is not there, or whose flags cannot be read.
pub fn read(
    command: &Command,
    line: &Line,
    from: &str,
    environment: &Environment,
) -> Outcome<Option<RunFlags>> {
    let storage_path = line
        .value("storage_path")
        .or_else(|| default_of(command, "storage_path"))
        .unwrap_or_default();
    let experiment = Experiment::continued(at_home(storage_path), &at_home(from.to_owned()))?;
    let kept = kept_spec::read(&experiment, environment)?;
    let says_enough = line.has("tp_size") && line.has("num_workers");
    let problem = match kept.text {
        None if says_enough => return Ok(None),
        None => "there is no such file".to_owned(),
        Some(text) => match parsed(&text, command) {
            Ok((entry_point, keys)) => {
                return Ok(Some(RunFlags {
                    name: experiment.name.given().unwrap_or_default().to_owned(),
                    location: kept.location,
                    keys,
                    entry_point,
                }));
            }
            Err(_) if says_enough => return Ok(None),
            Err(problem) => problem,
        },
    };
    Err(Failure::usage(format!(
        "--resume_from {from}: the flags of the run cannot be read from {} ({problem}); pass all flags that it had, --tp_size and \
         --num_workers among them",
        kept.location
    )))
}

/// The program and the flags that `command` has as well. What only the other strategy has is left to the defaults.
fn parsed(text: &str, command: &Command) -> Result<(String, Map<String, Value>), String> {
    let file = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Object(mut file) = file else {
        return Err("it is no object".to_owned());
    };
    let entry_point = match file.get("entry_point") {
        Some(Value::String(name)) => name.clone(),
        _ => return Err("it does not say of which program it is".to_owned()),
    };
    let mut keys = Map::new();
    for section in ["flags", "run", "ray"] {
        match file.remove(section) {
            Some(Value::Object(fields)) => keys.extend(fields),
            _ => return Err(format!("it has no `{section}`")),
        }
    }
    for name in ["num_workers", "cluster"] {
        keys.extend(file.remove_entry(name));
    }
    if let Some(address) = keys.remove("address") {
        keys.insert("ray_address".to_owned(), address);
    }
    for value in keys.values_mut() {
        if let Value::Object(pairs) = value {
            let pair = |(name, value): (&String, &Value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            };
            *value = pairs.iter().map(pair).collect();
        }
    }
    // The order of no scores says nothing.
    if keys
        .get("checkpoint_score_attribute")
        .is_none_or(Value::is_null)
    {
        keys.remove("checkpoint_score_order");
    }
    keys.retain(|key, value| {
        !value.is_null() && !OF_ONE_START.contains(&key.as_str()) && has_flag(command, key)
    });
    Ok((entry_point, keys))
}

impl RunFlags {
    /// Leaves out what a run elsewhere would not take.
    pub fn for_line(&self, line: &Line) -> Map<String, Value> {
        let mut keys = self.keys.clone();
        let is_on_ray = |text: Option<&str>| text == Some("ray");
        let of_run = keys.get("cluster").and_then(Value::as_str);
        let cluster = line.value("cluster");
        if !is_on_ray(cluster.as_deref().or(of_run)) {
            keys.retain(|key, _| !OF_RAY.contains(&key.as_str()));
        }
        keys
    }

    /// What is taken from it, and what is not because it is given; `keys` are its flags, with a mesh that fits.
    pub fn notes(&self, command: &Command, line: &Line, keys: &Map<String, Value>) -> Vec<String> {
        let mut taken = Vec::new();
        let mut changed = Vec::new();
        for (key, value) in keys {
            let own = self.keys.get(key).and_then(words).unwrap_or_default();
            let value = words(value).unwrap_or_default();
            let default: Vec<String> = default_of(command, key).into_iter().collect();
            if value.is_empty() {
                continue;
            }
            let now = match line.has(key) {
                true => given(line, key, value.len()),
                false if line.decides(key, &self.keys) => {
                    // No epochs are as many as the steps take.
                    let is_unlimited = key == "num_epochs" && own == ["0"];
                    if !same_all(&default, &own) && !is_unlimited {
                        changed.push(format!("not {}", shown(key, &value)));
                    }
                    continue;
                }
                false => value,
            };
            if !same_all(&now, &own) {
                let was = match own.is_empty() {
                    true => String::new(),
                    false => format!(", was {}", own.join(" ")),
                };
                changed.push(format!("{}{was}", shown(key, &now)));
            } else if !line.has(key) && !same_all(&default, &now) {
                taken.push(shown(key, &now));
            }
        }
        if self.entry_point != command.get_name() {
            changed.insert(
                0,
                format!("{}, was {}", command.get_name(), self.entry_point),
            );
        }
        let mut lines = folded(
            "resumed",
            &format!("{}: flags not given here are those of the run: ", self.name),
            &taken,
            " ",
        );
        if !changed.is_empty() {
            lines.extend(folded("differs", "", &changed, "; "));
        }
        lines
    }
}

/// What only runs on Ray take.
const OF_RAY: [&str; 7] = [
    "ray_address",
    "use_gpu",
    "resources_per_worker",
    "placement_strategy",
    "accelerator_type",
    "label_selector",
    "resource_timeout_s",
];

/// What the line gives a flag: of one that has one value, the last counts.
fn given(line: &Line, flag: &str, of_run: usize) -> Vec<String> {
    let mut values = line.values(flag);
    if of_run == 1 && flag != "dataset_name" {
        values.drain(..values.len() - 1);
    }
    values
}

fn shown(flag: &str, values: &[String]) -> String {
    let words: Vec<String> = values
        .iter()
        .map(|value| format!("--{flag} {value}"))
        .collect();
    words.join(" ")
}

/// A flag's value where nobody gives one.
fn default_of(command: &Command, flag: &str) -> Option<String> {
    let arg = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(flag))?;
    let value = arg.get_default_values().first()?;
    Some(value.to_string_lossy().into_owned())
}
