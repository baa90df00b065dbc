//! train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x the size of a column.

use super::Flags;
use super::section::{Said, Section};
use crate::line::Line;

const TRAIN: &str = "train_batch_size";
const MICRO: &str = "train_micro_batch_size_per_gpu";
const STEPS: &str = "gradient_accumulation_steps";

/// Any two give the third, and flags count as what the file leaves out.
pub fn read(
    file: &Section<'_>,
    line: &Line,
    dp_size: Option<u64>,
    flags: &mut Flags,
) -> Result<(), String> {
    let known = |key: &'static str, flag: &'static str| -> Result<Option<(u64, String)>, String> {
        let setting = file.whole(key)?;
        Ok(match setting.value {
            Said::Value(0) => return Err(format!("{key} is 0; it must be at least 1")),
            Said::Value(value) => Some((value, key.to_owned())),
            _ => line.number(flag).map(|value| (value, format!("--{flag}"))),
        })
    };
    let micro = known(MICRO, "batch_size")?;
    let steps = known(STEPS, "gradient_accumulation_steps")?;
    // No flag has the whole of a batch.
    let train = known(TRAIN, "")?;
    let (Some((train, _)), Some(dp)) = (train, dp_size) else {
        say(flags, micro, steps);
        return Ok(());
    };
    let parts = |given: &[&Option<(u64, String)>]| {
        let mut product = u128::from(dp);
        let mut text = Vec::new();
        for (value, name) in given.iter().copied().flatten() {
            product *= u128::from(*value);
            text.push(format!("{name} {value}"));
        }
        text.push(format!("dp_size {dp}"));
        (product, text.join(" x "))
    };
    let (product, text) = parts(&[&micro, &steps]);
    let whole = u128::from(train);
    let is_all = micro.is_some() && steps.is_some();
    let fits = product > 0 && whole.is_multiple_of(product) && (!is_all || whole == product);
    if !fits {
        let then = if is_all {
            format!("is {product}")
        } else {
            format!("is {product}, of which {train} is no multiple")
        };
        return Err(format!(
            "{TRAIN} is {train}, but {text} {then}; change one of them"
        ));
    }
    let rest = u64::try_from(whole / product).unwrap_or(u64::MAX);
    let from = |value: u64| Some((value, TRAIN.to_owned()));
    match (micro, steps) {
        // As DeepSpeed: all of it at once.
        (None, None) => say(flags, from(rest), from(1)),
        (None, steps) => say(flags, from(rest), steps),
        (micro, None) => say(flags, micro, from(rest)),
        (micro, steps) => say(flags, micro, steps),
    }
    Ok(())
}

fn say(flags: &mut Flags, micro: Option<(u64, String)>, steps: Option<(u64, String)>) {
    for (flag, known) in [
        ("batch_size", micro),
        ("gradient_accumulation_steps", steps),
    ] {
        if let Some((value, key)) = known {
            flags.say(flag, value, &key);
        }
    }
}
