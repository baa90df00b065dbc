//! `--config FILE`: flags from a file. Its keys are the flags' names; flags on the command line win.

use std::ffi::OsStr;
use std::path::Path;

use clap::Command;
use serde_json::{Map, Value};
use tandem_files::read_small_text;

use crate::line::has_flag;

/// The flag.
pub const FLAG: &str = "config";

/// The most that a file of flags may have.
const MAX_BYTES: u64 = 1 << 20;

/// The flags in a file, by name.
///
/// # Errors
/// A file that cannot be read, or that has a key which is no flag.
pub fn flags(command: &Command, path: &Path) -> Result<Map<String, Value>, String> {
    let mut keys = read(path)?;
    if keys.contains_key("entry_point") && keys.contains_key("flags") {
        keys = of_run_config(keys, command.get_name())?;
    }
    // A file that names a file would be the begin of a search.
    let wrong = |key: &&String| *key == FLAG || !has_flag(command, key);
    match keys.keys().find(wrong) {
        Some(key) => Err(format!("`{key}` is no flag{}", nearest(command, key))),
        None => Ok(keys),
    }
}

/// A file's object. The ending says how it is written.
pub fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let text = read_small_text(path, MAX_BYTES).map_err(|error| error.to_string())?;
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    let value: Value = match ending.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
        "toml" => toml::from_str(&text).map_err(|error| error.to_string())?,
        "json" => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        _ => return Err("it must end with .yaml, .toml or .json".into()),
    };
    match value {
        Value::Object(keys) => Ok(keys),
        Value::Null => Ok(Map::new()),
        _ => Err("it must have the names of flags with their values".into()),
    }
}

/// The flags of a run, from its `run_config.json`, for a run of one's own: neither its name nor where it ran.
fn of_run_config(
    mut file: Map<String, Value>,
    program: &str,
) -> Result<Map<String, Value>, String> {
    let entry_point = file["entry_point"].as_str().unwrap_or_default();
    if entry_point != program {
        return Err(format!(
            "it is of a run of {entry_point}, and this is {program}"
        ));
    }
    let mut section = |name: &str| match file.remove(name) {
        Some(Value::Object(section)) => section,
        _ => Map::new(),
    };
    let mut keys = section("flags");
    let of_one = ["name", "resume_from", "resume_fallback"];
    keys.extend(section("run"));
    keys.extend(
        section("ray")
            .into_iter()
            .filter(|(key, _)| key == "hang_timeout_s"),
    );
    keys.extend(file.remove_entry("num_workers"));
    keys.retain(|key, value| !value.is_null() && !of_one.contains(&key.as_str()));
    Ok(keys)
}

/// The flag whose name is most like `key`.
fn nearest(command: &Command, key: &str) -> String {
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    let alike = flags.map(|flag| (strsim::jaro_winkler(flag, key), flag));
    match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((alike, flag)) if alike > 0.8 => format!("; did you mean `{flag}`?"),
        _ => " (--help lists them)".into(),
    }
}
