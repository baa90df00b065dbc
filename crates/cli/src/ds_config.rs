//! `--deepspeed FILE`: DeepSpeed's own configuration file. What it says becomes flags.
//!
//! A value "auto" is the flag's to say, as with transformers' Trainer. What the file leaves out is as DeepSpeed has it unless a
//! flag says otherwise. A flag that contradicts the file is an error: nobody could tell which of the two was meant.

mod batch;
mod keys;
mod optimizer;
mod section;
mod tensor_parallel;

use std::path::Path;

use serde_json::{Map, Value};
use tandem_files::read_small_text;
use tandem_run::failure::{Failure, Outcome};

use crate::line::{Line, NO_FP16, folded, same_all, words};
use section::{Section, Setting};

/// The flag.
pub const FLAG: &str = "deepspeed";

/// The most that the file may have.
const MAX_BYTES: u64 = 1 << 20;

/// A flag that the file decides.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    flag: &'static str,
    value: Value,
    /// The key that says so; `None` where DeepSpeed's default does.
    key: Option<String>,
}

/// What the file says.
#[derive(Debug, Default)]
struct Flags(Vec<Said>);

impl Flags {
    /// The flag is `value` because `key` says so.
    fn say(&mut self, flag: &'static str, value: impl Into<Value>, key: &str) {
        self.0.push(Said {
            flag,
            value: value.into(),
            key: Some(key.to_owned()),
        });
    }

    /// The flag is `value` because nobody says otherwise.
    fn leave(&mut self, flag: &'static str, value: impl Into<Value>) {
        self.0.push(Said {
            flag,
            value: value.into(),
            key: None,
        });
    }

    /// What `setting` says; DeepSpeed's `default` where it says nothing.
    fn take(&mut self, flag: &'static str, setting: Setting<Value>, default: Value) {
        match setting.value {
            section::Said::Auto => {}
            section::Said::Nothing => self.leave(flag, default),
            section::Said::Value(value) => self.say(flag, value, &setting.key),
        }
    }
}

/// The file.
#[derive(Debug)]
pub struct DsConfig {
    name: String,
    keys: Map<String, Value>,
}

impl DsConfig {
    /// Reads it.
    ///
    /// # Errors
    /// Wrong usage: it cannot be read, or is not an object of JSON.
    pub fn read(path: &Path) -> Outcome<Self> {
        let name = path.display().to_string();
        let wrong = |what: String| Failure::usage(format!("--deepspeed {name}: {what}"));
        let text = read_small_text(path, MAX_BYTES).map_err(|error| wrong(error.to_string()))?;
        let keys = match serde_json::from_str(&text) {
            Ok(Value::Object(keys)) => keys,
            Ok(_) => return Err(wrong("it must be an object of JSON".to_owned())),
            Err(error) => return Err(wrong(error.to_string())),
        };
        Ok(Self { name, keys })
    }

    /// The size of a row, where the file decides it, or nobody does.
    ///
    /// # Errors
    /// Wrong usage: `line` says otherwise; a value that it cannot have.
    pub fn tp_size(&self, line: &Line, of_run: &Map<String, Value>) -> Outcome<Option<u64>> {
        let file = Section::new("", &self.keys);
        let size = tensor_parallel::size(&file).map_err(|problem| self.wrong(&problem))?;
        match size {
            Some((size, key)) => {
                let said = Said {
                    flag: "tp_size",
                    value: size.into(),
                    key: Some(key),
                };
                self.agrees(line, &said)?;
                Ok((!line.has("tp_size")).then_some(size))
            }
            None if line.has("tp_size") || of_run.contains_key("tp_size") => Ok(None),
            None => Ok(Some(1)),
        }
    }

    /// Adds to `line` what the file says, for columns of `dp_size`. Returns what is to be said about it.
    ///
    /// # Errors
    /// Wrong usage: what is not possible here, is no key of DeepSpeed's, or contradicts a flag or itself.
    pub fn apply(&self, line: &mut Line, dp_size: Option<u64>) -> Outcome<Vec<String>> {
        let (flags, idle) = self
            .flags(line, dp_size)
            .map_err(|problem| self.wrong(&problem))?;
        let mut said = Vec::new();
        let mut defaults = Vec::new();
        for flag in &flags.0 {
            self.agrees(line, flag)?;
            let values = words(&flag.value).unwrap_or_default();
            let shown = values
                .iter()
                .map(|value| format!("--{} {value}", flag.flag));
            if flag.key.is_some() {
                said.extend(shown);
            } else if !line.has(flag.flag) {
                defaults.extend(shown);
            }
            if !line.has(flag.flag) {
                line.add(flag.flag, &flag.value);
            }
        }
        let mut notes = folded("deepspeed", &format!("{}: ", self.name), &said, " ");
        if !defaults.is_empty() {
            notes.extend(folded(
                "",
                "not in it, so as DeepSpeed has it: ",
                &defaults,
                " ",
            ));
        }
        for (why, keys) in idle {
            notes.extend(folded(
                "",
                &format!("without effect here, {why}: "),
                &keys,
                ", ",
            ));
        }
        Ok(notes)
    }

    /// Refuses a flag that says something else than the file.
    fn agrees(&self, line: &Line, said: &Said) -> Outcome<()> {
        let Some(key) = &said.key else {
            return Ok(());
        };
        if !line.has(said.flag) {
            return Ok(());
        }
        let given = line.values(said.flag);
        let own = words(&said.value).unwrap_or_default();
        // Of a flag that is given twice, the last counts, unless all do.
        let is_list = said.value.is_array();
        let counted = if is_list { 0 } else { given.len() - 1 };
        if same_all(&given[counted..], &own) {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--{} {} contradicts {key} in {}, which means {}; leave one of them out, or write \"auto\" into the file",
            said.flag,
            given.join(" "),
            self.name,
            own.join(" "),
        )))
    }

    fn wrong(&self, problem: &str) -> Failure {
        Failure::usage(format!("--deepspeed {}: {problem}", self.name))
    }

    /// All that it says, and what has no effect, by reason.
    fn flags(
        &self,
        line: &Line,
        dp_size: Option<u64>,
    ) -> Result<(Flags, keys::Ineffective), String> {
        let file = Section::new("", &self.keys);
        let mut flags = Flags::default();
        batch::read(&file, line, dp_size, &mut flags)?;
        precision(&file, &mut flags)?;
        let zero = file.section("zero_optimization")?;
        let stage = zero.whole("stage")?;
        if stage.value == section::Said::Value(3) {
            return Err(
                "zero_optimization.stage 3 cuts parameters: that is train_fsdp, so use train_fsdp; train_deepspeed has stages 0, 1 \
                 and 2"
                    .to_owned(),
            );
        }
        flags.take("zero_stage", stage.json(), 0.into());
        flags.take(
            "max_grad_norm",
            file.number("gradient_clipping")?.json(),
            0.0.into(),
        );
        let every = file.whole("steps_per_print")?;
        // DeepSpeed prints nothing where there is none, and the display has its own measure.
        if let section::Said::Value(steps) = every.value {
            flags.say("log_interval", steps.max(1), &every.key);
        }
        if let section::Said::Value(true) = file.truth("dataloader_drop_last")?.value {
            flags.say("drop_last", true, "dataloader_drop_last");
        }
        let rates = optimizer::optimizer(&file, &mut flags)?;
        optimizer::scheduler(&file, rates, &mut flags)?;
        tensor_parallel::read(&file, &mut flags)?;
        let idle = keys::check(&self.keys)?;
        Ok((flags, idle))
    }
}

fn precision(file: &Section<'_>, flags: &mut Flags) -> Result<(), String> {
    let is_on = |name: &str| file.section(name)?.truth("enabled");
    if let section::Said::Value(true) = is_on("fp16")?.value {
        return Err(format!("fp16.enabled: {NO_FP16} (bf16.enabled)"));
    }
    let name = match file.has("bfloat16") {
        true => "bfloat16",
        false => "bf16",
    };
    let enabled = is_on(name)?;
    match enabled.value {
        section::Said::Auto => {}
        section::Said::Nothing => flags.leave("dtype", "fp32"),
        section::Said::Value(true) => flags.say("dtype", "bf16", &enabled.key),
        section::Said::Value(false) => flags.say("dtype", "fp32", &enabled.key),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
