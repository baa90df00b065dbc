//! The section `tensor_parallel`: AutoTP's rows, and corrections of its plan.

use serde_json::Value;

use super::Flags;
use super::section::{Said, Section};

/// The size of a row and the key that says so; nothing where the file leaves it open.
pub fn size(file: &Section<'_>) -> Result<Option<(u64, String)>, String> {
    let section = file.section("tensor_parallel")?;
    let mut found: Option<(u64, String)> = None;
    for setting in [
        section.whole("autotp_size")?,
        section.section("tp")?.whole("tp_size")?,
        section.section("partition_config")?.whole("tp_size")?,
    ] {
        let (Said::Value(size), key) = (setting.value, setting.key) else {
            continue;
        };
        // 0 is no tensor parallelism.
        let size = size.max(1);
        match &found {
            Some((other, of)) if *other != size => {
                return Err(format!(
                    "{of} is {other}, but {key} is {size}; leave one of them out"
                ));
            }
            _ => found = found.or(Some((size, key))),
        }
    }
    Ok(found)
}

/// The corrections, as `--autotp_override` has them.
pub fn read(file: &Section<'_>, flags: &mut Flags) -> Result<(), String> {
    let section = file
        .section("tensor_parallel")?
        .section("partition_config")?;
    let key = section.at("layer_specs");
    let mut overrides = Vec::new();
    if section.truth("use_default_specs")?.known() == Some(false) {
        // Nothing is cut but what is named.
        overrides.push(r"^model\.layers\.=replicate".to_owned());
    }
    // Of several that match, DeepSpeed takes the first, and here the last counts.
    for (index, spec) in section.list("layer_specs")?.iter().enumerate().rev() {
        let Value::Object(spec) = spec else {
            return Err(format!("{key}[{index}] is {spec}; it must be an object"));
        };
        overrides.push(layer_spec(&Section::new(&format!("{key}[{index}]"), spec))?);
    }
    if !overrides.is_empty() {
        flags.say("autotp_override", overrides, &key);
    }
    Ok(())
}

fn layer_spec(spec: &Section<'_>) -> Result<String, String> {
    let patterns = spec.list("patterns")?;
    let texts: Option<Vec<&str>> = patterns.iter().map(Value::as_str).collect();
    let texts = texts.filter(|texts| !texts.is_empty());
    let texts = texts.ok_or_else(|| {
        format!(
            "{} must be a list of regular expressions",
            spec.at("patterns")
        )
    })?;
    let kind = spec.text("partition_type")?.known();
    let (style, own_dim) = match kind.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("column") => ("colwise", 0),
        Some("row") => ("rowwise", 1),
        Some("skip") => ("replicate", 0),
        Some(other) => {
            return Err(format!(
                "{} is {other:?}; it must be row, column or skip",
                spec.at("partition_type")
            ));
        }
    };
    let dim = spec.whole("partition_dim")?.known();
    if style != "replicate" && dim.is_some_and(|dim| dim != own_dim) {
        return Err(format!(
            "{} must be {own_dim} with this partition_type; leave it out",
            spec.at("partition_dim")
        ));
    }
    if spec.has("model_types") {
        return Err(format!(
            "{} cannot be used here; leave out the layer_specs of other models",
            spec.at("model_types")
        ));
    }
    // From the begin of the name, as Python's re.match.
    let texts: Vec<String> = texts.iter().map(|text| format!("(?:{text})")).collect();
    Ok(format!("^(?:{})={style}", texts.join("|")))
}
