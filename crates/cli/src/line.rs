//! The words behind a program's name: which flags they give, and what may be added to them.

pub mod mesh;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Command;
use serde_json::{Map, Value};
use tandem_run::failure::{Failure, Outcome};

/// Columns of a line of the summary.
const WIDTH: usize = 110;

/// Flags that belong together: one of them given, and a file does not decide the other.
const TOGETHER: [(&str, &str); 5] = [
    ("num_epochs", "max_steps"),
    ("warmup_steps", "warmup_ratio"),
    ("activation_checkpointing", "recompute"),
    ("device", "use_gpu"),
    ("experiment_name", "resume_from"),
];

/// What only makes sense with the value that the file has for another flag.
const OF_ANOTHER: [(&str, &str); 15] = [
    ("decay_steps", "lr_scheduler"),
    ("min_lr_ratio", "lr_scheduler"),
    ("warmup_type", "lr_scheduler"),
    ("warmup_min_ratio", "lr_scheduler"),
    ("schedule_steps", "lr_scheduler"),
    ("autocast", "dtype"),
    ("checkpoint_score_order", "checkpoint_score_attribute"),
    ("packing", "packing_strategy"),
    ("packing_strategy", "packing"),
    ("dataset_config", "dataset_name"),
    ("eval_steps", "eval_strategy"),
    ("eval_strategy", "eval_steps"),
    ("eval_split", "eval_dataset_name"),
    ("eval_dataset_config", "eval_dataset_name"),
    ("early_stopping_threshold", "early_stopping_patience"),
];

/// Words behind a program's name.
#[derive(Debug, Clone)]
pub struct Line {
    /// As clap takes them.
    pub words: Vec<OsString>,
}

impl Line {
    /// What was typed.
    pub fn new(args: &[OsString]) -> Self {
        Self {
            words: args.to_vec(),
        }
    }

    /// Whether it gives a flag.
    pub fn has(&self, flag: &str) -> bool {
        let long = format!("--{flag}");
        self.words.iter().any(|word| {
            let text = word.to_string_lossy();
            text == long || text.starts_with(&format!("{long}="))
        })
    }

    /// The last value that it gives a flag; `true` where the flag stands alone.
    pub fn value(&self, flag: &str) -> Option<String> {
        self.values(flag).pop()
    }

    /// All values that it gives a flag.
    pub fn values(&self, flag: &str) -> Vec<String> {
        let found = self.places(flag).into_iter().map(|(_, value)| value);
        let text = |value: Option<OsString>| {
            value.map_or_else(
                || "true".to_owned(),
                |value| value.to_string_lossy().into_owned(),
            )
        };
        found.map(text).collect()
    }

    /// A number that it gives a flag.
    pub fn number(&self, flag: &str) -> Option<u64> {
        self.value(flag)?.parse().ok()
    }

    /// Removes a flag that has a value, and returns that.
    pub fn take(&mut self, flag: &str) -> Option<PathBuf> {
        let mut found = None;
        for (place, value) in self.places(flag).into_iter().rev() {
            // Without a value it is an error, which is whoever parses it's to say.
            let value = value?;
            let is_apart = self.words[place].to_string_lossy() == format!("--{flag}");
            self.words.drain(place..=place + usize::from(is_apart));
            found = found.or(Some(value.into()));
        }
        found
    }

    /// Gives a flag a value. Nothing where the value is none that a flag can have.
    pub fn add(&mut self, flag: &str, value: &Value) -> Option<()> {
        // One word, so that a value may begin with a dash.
        let words = words(value)?;
        let words = words.iter().map(|word| format!("--{flag}={word}").into());
        self.words.extend(words);
        Some(())
    }

    /// Gives all flags of a file that it has not, and that what it has does not decide.
    pub fn add_missing(&mut self, keys: &Map<String, Value>) -> Result<(), String> {
        let given = self.clone();
        for (key, value) in keys {
            if given.has(key) || given.decides(key, keys) {
                continue;
            }
            self.add(key, value)
                .ok_or_else(|| format!("`{key}` is {value}, which no flag takes"))?;
        }
        Ok(())
    }

    /// Whether what a file says of `flag` is settled by other flags that are given.
    pub fn decides(&self, flag: &str, file: &Map<String, Value>) -> bool {
        let together = TOGETHER.iter().any(|&(one, other)| {
            (flag == one && self.has(other)) || (flag == other && self.has(one))
        });
        let of_another = OF_ANOTHER.iter().any(|&(own, other)| {
            let is_other = || {
                let own = file
                    .get(other)
                    .and_then(words)
                    .and_then(|mut all| all.pop());
                !same(self.value(other).as_deref(), own.as_deref())
            };
            flag == own && self.has(other) && is_other()
        });
        together || of_another
    }

    /// A flag's places: where each stands, and its value, where it has one.
    fn places(&self, flag: &str) -> Vec<(usize, Option<OsString>)> {
        let long = format!("--{flag}");
        let with_value = format!("{long}=");
        let place = |(index, word): (usize, &OsString)| {
            let text = word.to_string_lossy();
            if text == long {
                let next = self.words.get(index + 1);
                let value = next.filter(|next| !is_flag(next)).cloned();
                return Some((index, value));
            }
            let value = text.strip_prefix(&with_value)?;
            Some((index, Some(value.into())))
        };
        self.words.iter().enumerate().filter_map(place).collect()
    }

    /// The kind that many recipes have, and this program for a reason not.
    pub fn refuse_fp16(&self) -> Outcome<()> {
        for flag in ["dtype", "reduce_dtype"] {
            let value = self.value(flag).unwrap_or_default();
            if ["fp16", "float16", "half"].contains(&value.as_str()) {
                return Err(Failure::usage(format!("--{flag} {value}: {NO_FP16}")));
            }
        }
        Ok(())
    }
}

/// Why.
pub const NO_FP16: &str = "fp16 has so small a range that gradients vanish or overflow in it unless the loss is scaled up and \
     steps are dropped, which this program does not do; bf16 costs the same and has the range of fp32: use bf16";

fn is_flag(word: &OsStr) -> bool {
    word.to_string_lossy().starts_with("--")
}

/// Whether two values of a flag mean the same.
pub fn same(one: Option<&str>, other: Option<&str>) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    match (one, other) {
        (Some(one), Some(other)) => {
            one == other || number(one).is_some_and(|value| Some(value) == number(other))
        }
        (one, other) => one == other,
    }
}

/// The same of flags that may be given several times.
pub fn same_all(one: &[String], other: &[String]) -> bool {
    let pairs = || one.iter().zip(other);
    one.len() == other.len() && pairs().all(|(one, other)| same(Some(one), Some(other)))
}

/// The words of a value, each for a flag of its own.
pub fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Bool(_) | Value::Number(_) => Some(vec![value.to_string()]),
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) => {
            let all = values.iter().map(|value| match value {
                Value::Array(_) | Value::Null => None,
                one => words(one),
            });
            all.collect::<Option<Vec<_>>>().map(|all| all.concat())
        }
        Value::Object(_) => None,
    }
}

/// Whether a program has a flag.
pub fn has_flag(command: &Command, flag: &str) -> bool {
    command
        .get_arguments()
        .any(|arg| arg.get_long() == Some(flag))
}

/// Parts one after the other, in lines that are not too long, with a label before the first.
pub fn folded(label: &str, begin: &str, parts: &[String], between: &str) -> Vec<String> {
    let mut lines = vec![format!("{label:<10}{begin}")];
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        let part = format!("{part}{}", if is_last { "" } else { between });
        match lines.last_mut() {
            Some(line) if line.len() + part.trim_end().len() <= WIDTH => line.push_str(&part),
            _ => lines.push(format!("{:10}{part}", "")),
        }
    }
    lines
        .into_iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Line {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Line::new(&words)
    }

    #[test]
    fn a_flag_has_the_value_behind_it() {
        let mut line = line(&[
            "--a", "1", "--b=2", "--c", "--a=3", "--d", "-1", "--e", "x", "--e=y",
        ]);
        assert_eq!(line.value("a").as_deref(), Some("3"));
        assert_eq!(line.value("b").as_deref(), Some("2"));
        assert_eq!(line.value("c").as_deref(), Some("true"));
        assert_eq!(line.value("d").as_deref(), Some("-1"));
        assert_eq!(line.value("f"), None);
        assert_eq!(line.values("e"), ["x", "y"]);
        assert!(line.has("c") && !line.has("1"));
        assert_eq!(line.take("e"), Some("y".into()));
        assert!(!line.has("e") && line.has("d"));
        assert_eq!(line.words.len(), 7, "{line:?}");
    }

    #[test]
    fn what_is_given_decides_what_belongs_to_it() {
        let file = serde_json::json!({"lr_scheduler": "warmup_stable_decay", "decay_steps": 6, "max_steps": 9,
            "recompute": "full", "autocast": true, "dtype": "bf16"});
        let file = file.as_object().unwrap();
        let given = line(&["--lr_scheduler", "cosine", "--num_epochs", "2"]);
        assert!(given.decides("decay_steps", file) && given.decides("max_steps", file));
        assert!(!given.decides("recompute", file) && !given.decides("autocast", file));
        let given = line(&["--lr_scheduler=warmup_stable_decay", "--dtype=bf16"]);
        assert!(!given.decides("decay_steps", file) && !given.decides("autocast", file));
        assert!(line(&["--dtype", "fp32"]).decides("autocast", file));
    }

    #[test]
    fn values_are_the_same_as_numbers_too() {
        assert!(same(Some("1e-5"), Some("0.00001")) && same(None, None));
        assert!(!same(Some("1"), Some("true")) && !same(Some("a"), None));
    }

    #[test]
    fn fp16_is_refused_with_a_reason() {
        let refusal = line(&["--dtype", "fp16"]).refuse_fp16().unwrap_err();
        assert!(refusal.message.contains("bf16") && refusal.exit_code == 2);
        assert!(line(&["--dtype", "bf16"]).refuse_fp16().is_ok());
    }
}
