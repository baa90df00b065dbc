//! Low-rank adapters (LoRA, arXiv 2106.09685) with the names, initial values and scaling of PEFT.
//!
//! The output of an adapted matrix is `W x + b + s B (A x)`, where `A` is `[r, in]` and `B` is `[out, r]`; `W` and `b` stay as they
//! are.

use std::fmt;

use regex::Regex;
use serde_json::{Map, Value, json};

/// Which modules have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraTargets {
    /// Every matrix but the output head, which is what PEFT's `all-linear` means.
    AllLinear,
    /// Those whose path is one of these or ends with a dot and one of these.
    Named(Vec<String>),
    /// Those whose whole path is matched.
    Matching(PathPattern),
}

/// A regular expression for the whole path of a module, as `re.fullmatch` takes it.
#[derive(Debug, Clone)]
pub struct PathPattern {
    text: String,
    whole: Regex,
}

impl PathPattern {
    /// # Errors
    /// The text is no expression, or one that takes more than matching from left to right: look-around and back-references.
    fn new(text: &str) -> Result<Self, LoraError> {
        let refused = |error: regex::Error| LoraError::Pattern {
            text: shortened(text),
            // The last line says what is wrong, those before where.
            problem: error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        // By itself first: what is not balanced must not close the group around it.
        Regex::new(text).map_err(refused)?;
        Ok(Self {
            text: text.to_owned(),
            whole: Regex::new(&format!(r"\A(?:{text})\z")).map_err(refused)?,
        })
    }

    /// As it was given.
    fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathPattern {}

impl LoraTargets {
    /// From one text, as flags have it: `all-linear`, names with commas between them, or, where there is anything in it that no name
    /// has, a regular expression.
    ///
    /// # Errors
    /// An empty name, or what is no expression.
    pub fn from_text(text: &str) -> Result<Self, LoraError> {
        let is_of_names = |c: char| c.is_ascii_alphanumeric() || "_-., ".contains(c);
        if is_all_linear(text) {
            return Ok(Self::AllLinear);
        }
        if !text.chars().all(is_of_names) {
            return Ok(Self::Matching(PathPattern::new(text)?));
        }
        let names = text.split(',').map(|name| name.trim().to_owned());
        let names: Vec<String> = names.collect();
        match names.iter().any(String::is_empty) {
            true => Err(LoraError::EmptyName),
            false => Ok(Self::Named(names)),
        }
    }
}

impl fmt::Display for LoraTargets {
    /// As [`Self::from_text`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllLinear => f.write_str(ALL_LINEAR),
            Self::Named(names) => f.write_str(&names.join(",")),
            Self::Matching(pattern) => f.write_str(pattern.text()),
        }
    }
}

/// What stands for every matrix but the head, in any case.
const ALL_LINEAR: &str = "all-linear";

fn is_all_linear(text: &str) -> bool {
    text.eq_ignore_ascii_case(ALL_LINEAR)
}

/// How a model is adapted.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The rank.
    pub r: usize,
    /// What the scale is made of.
    pub alpha: f64,
    /// Probability that an element of an adapter's input is dropped in training.
    pub dropout: f64,
    /// The scale is `alpha / sqrt(r)` (rsLoRA, arXiv 2312.03732) instead of `alpha / r`.
    pub use_rslora: bool,
    /// The adapted modules.
    pub targets: LoraTargets,
}

/// Why adapters cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoraError {
    /// A key that must be there is not, or has a value that is not supported.
    #[error("adapter_config.json: {key} is {value}, but {expected}")]
    Value {
        /// The key.
        key: String,
        /// What the file says.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A name that no matrix has.
    #[error(
        "no matrix of the model is called {name:?}; those of a layer are {modules}, and all-linear means all of them"
    )]
    Unused {
        /// What was asked for.
        name: String,
        /// The names of a layer's matrices.
        modules: String,
    },
    /// A name of no letters.
    #[error(
        "there is an empty name among the matrices; they are named like q_proj,v_proj, or all-linear"
    )]
    EmptyName,
    /// What is no regular expression, or too much of one.
    #[error(
        "{text:?} is no regular expression that can be matched here: {problem}; a name has letters, digits, dots, _ and - only, and \
         an expression is for a whole path, such as model.layers.0.self_attn.q_proj"
    )]
    Pattern {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An expression that no matrix has.
    #[error(
        "no matrix of the model has a path that is {text} as a whole; {example} is one, and all-linear means all of them"
    )]
    Unmatched {
        /// What was asked for.
        text: String,
        /// The path of a matrix.
        example: String,
    },
    /// A matrix of a mixture.
    #[error(
        "{path} belongs to a mixture of experts, whose matrices and router can have no adapters here (PEFT gives experts those of a \
         3D parameter, also for all-linear); name the matrices of the attention alone: --lora_target_modules \
         q_proj,k_proj,v_proj,o_proj"
    )]
    Experts {
        /// The path of the matrix.
        path: String,
    },
}

impl LoraConfig {
    /// What an adapter's output is multiplied with.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Whether the matrix with this path has an adapter.
    pub fn adapts(&self, path: &str) -> bool {
        match &self.targets {
            LoraTargets::AllLinear => path != "lm_head",
            LoraTargets::Named(names) => names.iter().any(|name| is_named(path, name)),
            LoraTargets::Matching(pattern) => pattern.whole.is_match(path),
        }
    }

    /// Refuses names that none of `paths`, the matrices of all layers, has, and an expression that is none of them.
    pub(crate) fn check_names(&self, paths: &[&str]) -> Result<(), LoraError> {
        let names = match &self.targets {
            LoraTargets::AllLinear => return Ok(()),
            LoraTargets::Matching(pattern) => {
                return match paths.iter().any(|path| self.adapts(path)) {
                    true => Ok(()),
                    false => Err(LoraError::Unmatched {
                        text: shortened(pattern.text()),
                        example: paths.first().copied().unwrap_or_default().to_owned(),
                    }),
                };
            }
            LoraTargets::Named(names) => names,
        };
        for name in names {
            if paths.iter().any(|path| is_named(path, name)) {
                continue;
            }
            let mut modules: Vec<&str> = Vec::new();
            for module in paths.iter().filter_map(|path| path.rsplit('.').next()) {
                if !modules.contains(&module) {
                    modules.push(module);
                }
            }
            return Err(LoraError::Unused {
                name: name.clone(),
                modules: modules.join(", "),
            });
        }
        Ok(())
    }

    /// What PEFT's `adapter_config.json` says.
    ///
    /// # Errors
    /// For what would change the computation and is not supported, by its name.
    pub fn from_peft(json: &Map<String, Value>) -> Result<Self, LoraError> {
        for (key, value) in json {
            if !has_no_effect(key, value) {
                return Err(wrong(key, value, "this is not supported"));
            }
        }
        let text = json.get("peft_type").and_then(Value::as_str);
        if text != Some("LORA") {
            let found = json.get("peft_type").unwrap_or(&Value::Null);
            return Err(wrong("peft_type", found, "only LORA is supported"));
        }
        let number = |key: &str, default: f64| match json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(number),
                None => Err(wrong(key, value, "it must be a number")),
            },
        };
        let r = json.get("r").unwrap_or(&Value::Null);
        let rank = r.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank));
        let dropout = number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            let found = json.get("lora_dropout").unwrap_or(&Value::Null);
            return Err(wrong("lora_dropout", found, "it must be from 0 to below 1"));
        }
        Ok(Self {
            r: rank.ok_or_else(|| wrong("r", r, "it must be a whole number from 1 to 65536"))?
                as usize,
            alpha: number("lora_alpha", 8.0)?,
            dropout,
            use_rslora: json.get("use_rslora") == Some(&Value::Bool(true)),
            targets: targets(json.get("target_modules").unwrap_or(&Value::Null))?,
        })
    }

    /// PEFT's `adapter_config.json`.
    pub fn to_peft(&self, base_model: Option<&str>) -> Value {
        let targets = match &self.targets {
            LoraTargets::AllLinear => json!(ALL_LINEAR),
            LoraTargets::Named(names) => json!(names),
            LoraTargets::Matching(pattern) => json!(pattern.text()),
        };
        json!({
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// Beyond every width of a layer.
const MAX_RANK: u64 = 65_536;

/// Whether a module's path is `name` or ends with it, as PEFT compares them.
fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn targets(value: &Value) -> Result<LoraTargets, LoraError> {
    let refused = || {
        let expected = "it must be a list of names, a regular expression, or \"all-linear\"";
        wrong("target_modules", value, expected)
    };
    match value {
        Value::String(text) if is_all_linear(text) => Ok(LoraTargets::AllLinear),
        // Whatever it looks like: PEFT takes a text that is no list as an expression for the whole path.
        Value::String(text) => Ok(LoraTargets::Matching(PathPattern::new(text)?)),
        Value::Array(names) if !names.is_empty() => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            let names: Option<Vec<String>> = names.collect();
            Ok(LoraTargets::Named(names.ok_or_else(refused)?))
        }
        _ => Err(refused()),
    }
}

/// Whether a key is one of those that are read, or says nothing that would change the computation.
fn has_no_effect(key: &str, value: &Value) -> bool {
    match key {
        "peft_type" | "r" | "lora_alpha" | "lora_dropout" | "target_modules" | "use_rslora" => true,
        // About where the adapter comes from, or about making it.
        "base_model_name_or_path"
        | "task_type"
        | "inference_mode"
        | "init_lora_weights"
        | "peft_version"
        | "revision"
        | "megatron_core"
        | "qalora_group_size"
        | "ensure_weight_tying"
        | "auto_mapping" => true,
        "bias" => value == "none",
        _ => match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        },
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> LoraError {
    LoraError::Value {
        key: key.to_owned(),
        value: shortened(&value.to_string()),
        expected: expected.to_owned(),
    }
}

/// No more of a text than a line of an error has room for.
fn shortened(text: &str) -> String {
    match text.chars().count() > 100 {
        true => text.chars().take(100).collect::<String>() + "...",
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peft(changes: Value) -> Map<String, Value> {
        let mut json = json!({
            "peft_type": "LORA", "r": 6, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"],
            "bias": "none", "rank_pattern": {}, "use_dora": false, "lora_bias": false, "corda_config": null,
        });
        let map = json.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        map.clone()
    }

    #[test]
    fn the_file_is_understood_and_written_alike() {
        let config = LoraConfig::from_peft(&peft(json!({"use_rslora": true}))).unwrap();
        assert!((config.scale() - 10.0 / 6f64.sqrt()).abs() < 1e-12);
        assert!(config.adapts("model.layers.3.self_attn.q_proj"));
        assert!(!config.adapts("model.layers.3.self_attn.xq_proj"));
        assert!(!config.adapts("model.layers.3.mlp.up_proj"));
        let again = config.to_peft(Some("base"));
        let again = LoraConfig::from_peft(again.as_object().unwrap());
        assert_eq!(again.unwrap(), config);
        let all = LoraConfig::from_peft(&peft(json!({"target_modules": "all-linear"}))).unwrap();
        assert!(all.adapts("model.layers.0.mlp.down_proj") && !all.adapts("lm_head"));
    }

    /// The answers are those of PEFT 0.21 (`check_target_module_exists`), which matches whole paths.
    #[test]
    fn an_expression_is_matched_with_the_whole_path() {
        let path = "model.layers.11.self_attn.q_proj";
        for (pattern, is_adapted) in [
            (r".*\.(q|v)_proj", true),
            (r".*\.layers\.\d+\.self_attn\.q_proj$", true),
            (r"^model\.layers\.(1[01]|2)\..*", true),
            (r"(?i).*Q_PROJ", true),
            (r"q_proj", false),
            (r"q_proj|model.*", true),
            (r"model\.layers\.1\..*", false),
            (r".*self_attn", false),
            (r"model.layers.11.self_attn.q_proj", true),
        ] {
            let json = peft(json!({"target_modules": pattern}));
            let config = LoraConfig::from_peft(&json).unwrap();
            assert_eq!(config.adapts(path), is_adapted, "{pattern}");
            assert_eq!(config.to_peft(None)["target_modules"], pattern);
        }
        let all = LoraConfig::from_peft(&peft(json!({"target_modules": "All-Linear"}))).unwrap();
        assert_eq!(all.targets, LoraTargets::AllLinear);
        let paths = ["model.layers.0.self_attn.q_proj"];
        let none = LoraConfig::from_peft(&peft(json!({"target_modules": "q_proj"}))).unwrap();
        let error = none.check_names(&paths).unwrap_err().to_string();
        assert!(
            error.contains("q_proj as a whole") && error.contains(paths[0]),
            "{error}"
        );
        for bad in [
            r"(q_proj",
            r"a)|(b",
            r"(?!x).*",
            r"(.)\1",
            r"\p{Nonsense}",
            "x{1000}{1000}{1000}",
        ] {
            match LoraTargets::from_text(bad) {
                Err(LoraError::Pattern { problem, .. }) => assert!(!problem.is_empty(), "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_text_is_names_unless_something_in_it_is_in_no_name() {
        let named = LoraTargets::from_text("q_proj, self_attn.v_proj").unwrap();
        let names = ["q_proj", "self_attn.v_proj"].map(str::to_owned);
        assert_eq!(named, LoraTargets::Named(names.to_vec()));
        assert_eq!(
            LoraTargets::from_text("ALL-linear"),
            Ok(LoraTargets::AllLinear)
        );
        for pattern in [r".*proj", r"model\.layers\.[0-9]{1,2}\.mlp\..*"] {
            let found = LoraTargets::from_text(pattern).unwrap();
            assert_eq!(
                found,
                LoraTargets::Matching(PathPattern::new(pattern).unwrap())
            );
            assert_eq!(found.to_string(), pattern);
        }
        assert_eq!(LoraTargets::from_text("q_proj,"), Err(LoraError::EmptyName));
    }

    #[test]
    fn what_changes_the_computation_is_refused_by_name() {
        for (change, key) in [
            (json!({"use_dora": true}), "use_dora"),
            (json!({"rank_pattern": {"q_proj": 4}}), "rank_pattern"),
            (json!({"bias": "all"}), "bias"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"peft_type": "IA3"}), "peft_type"),
            (json!({"r": 0}), "r"),
            (json!({"lora_dropout": 1.0}), "lora_dropout"),
            (json!({"lora_alpha": "x"}), "lora_alpha"),
            (json!({"target_modules": [3]}), "target_modules"),
            (json!({"target_modules": []}), "target_modules"),
            (
                json!({"target_parameters": ["mlp.experts.down_proj"]}),
                "target_parameters",
            ),
        ] {
            match LoraConfig::from_peft(&peft(change)) {
                Err(LoraError::Value { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}
