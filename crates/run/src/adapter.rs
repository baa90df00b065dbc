//! Adapters: those of a PEFT folder, those of a run, and those of a checkpoint with the model that they belong to.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_checkpoint::{Digest, HfWeights, TrainState};
use tandem_data::{Hub, Weights};
use tandem_files::read_small;
use tandem_mesh::ShardSlice;
use tandem_model::lora::LoraConfig;
use tandem_model::{ModelConfig, ModuleTree, ParamSpec};
use tandem_parallel::{RandomInit, WeightSource};
use tandem_trainer::Engine;

use crate::failure::{Failure, Outcome};
use crate::weights::{Pretrained, expected};

/// PEFT's names of its files.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// As [`CONFIG_FILE`].
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The config of adapters is a page of text.
const MAX_BYTES: u64 = 1 << 20;

/// Where [`TrainState::extra`] says that a checkpoint holds adapters.
pub const LORA: &str = "lora";

/// What a run trains in the place of the model.
pub struct Adapter {
    /// How the model is adapted.
    pub lora: LoraConfig,
    /// The adapters' modules.
    pub tree: ModuleTree,
    /// Their first values, unless they are new.
    pub source: Option<AdapterFolder>,
}

impl Adapter {
    /// Sets their first values: those of their folder, or new ones from the seed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn load(&self, engine: &mut Engine, seed: u64) -> Outcome<()> {
        let new = RandomInit {
            seed,
            initializer_range: engine.config.initializer_range,
        };
        match &self.source {
            Some(folder) => engine.load_adapters(folder),
            None => engine.load_adapters(&new),
        }
        .map_err(Failure::train)
    }
}

/// A folder as PEFT writes it.
#[derive(Debug)]
pub struct AdapterFolder {
    /// What it says of itself.
    pub lora: LoraConfig,
    weights: HfWeights,
}

impl AdapterFolder {
    /// # Errors
    /// It is none, or what it says is not supported.
    pub fn open(folder: &Path) -> Outcome<Self> {
        let path = folder.join(CONFIG_FILE);
        let in_file =
            |error: &dyn std::fmt::Display| Failure::other(format!("{}: {error}", path.display()));
        let bytes = read_small(&path, MAX_BYTES).map_err(|error| in_file(&error))?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|error| in_file(&error))?;
        let Some(json) = json.as_object() else {
            return Err(in_file(&"it is no JSON object"));
        };
        let lora = LoraConfig::from_peft(json).map_err(|error| in_file(&error))?;
        let weights = HfWeights::open_file(folder, WEIGHTS_FILE).map_err(Failure::other)?;
        Ok(Self { lora, weights })
    }

    /// Refuses adapters that are not those of `tree`.
    ///
    /// # Errors
    /// All that is missing, superfluous or has another shape.
    pub fn check(&self, tree: &ModuleTree) -> Outcome<()> {
        let tensors = expected(tree);
        self.weights
            .expect(&tensors, &|_| false)
            .map_err(Failure::other)?;
        Ok(())
    }
}

impl WeightSource for AdapterFolder {
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.weights.read(&param.name, slice, out)?)
    }
}

/// The frozen model of a checkpoint of adapters.
pub enum Base {
    /// Its weights are in a folder.
    Pretrained(Box<Pretrained>),
    /// They are made from a seed.
    Random(RandomInit),
}

impl Base {
    /// The weights.
    pub fn source(&self) -> &dyn WeightSource {
        match self {
            Self::Pretrained(weights) => weights.as_ref(),
            Self::Random(init) => init,
        }
    }
}

/// What a checkpoint of adapters says of them and of its model.
#[derive(Debug, Clone)]
pub struct SavedAdapter {
    /// How the model is adapted.
    pub lora: LoraConfig,
    /// The model's name or folder; `None` where it was made from the seed.
    pub base: Option<String>,
    fingerprint: String,
    seed: u64,
}

impl SavedAdapter {
    /// What `state` says, where it is one of adapters.
    ///
    /// # Errors
    /// It says something else than this program writes.
    pub fn of(state: &TrainState) -> Outcome<Option<Self>> {
        let Some(saved) = state.extra.get(LORA) else {
            return Ok(None);
        };
        let damaged = || {
            Failure::other("the checkpoint is damaged: what it says of its adapters cannot be read")
        };
        let config = saved["config"].as_object().ok_or_else(damaged)?;
        let lora = LoraConfig::from_peft(config).map_err(Failure::other)?;
        let fingerprint = saved["base_fingerprint"].as_str().ok_or_else(damaged)?;
        Ok(Some(Self {
            lora,
            base: saved["base"].as_str().map(str::to_owned),
            fingerprint: fingerprint.to_owned(),
            seed: state.seed,
        }))
    }

    /// The model that they belong to: of the name `given`, or else of the name that the run had for it. `config` is the
    /// checkpoint's.
    ///
    /// # Errors
    /// It cannot be found, or has other weights now.
    pub fn base(&self, given: Option<&str>, config: &ModelConfig) -> Outcome<Base> {
        let Some(name) = given.or(self.base.as_deref()) else {
            return Ok(Base::Random(RandomInit {
                seed: self.seed,
                initializer_range: config.initializer_range,
            }));
        };
        let hub = Hub::from_env().map_err(Failure::other)?;
        let dir: PathBuf = hub
            .model_dir(name, Weights::Needed, &mut ())
            .map_err(|error| {
                Failure::other(format!(
                    "the checkpoint holds adapters of the model {name}, which cannot be found ({error}); pass --model_name with its \
                     folder"
                ))
            })?;
        let pretrained = Pretrained::open(&dir, config.clone())?;
        if fingerprint(Some(&pretrained), 0, config)? != self.fingerprint {
            return Err(Failure::other(format!(
                "the checkpoint holds adapters of a model with other weights than those in {}; pass --model_name with the model \
                 that they were trained on",
                dir.display()
            )));
        }
        Ok(Base::Pretrained(Box::new(pretrained)))
    }
}

/// For [`TrainState::extra`]: the adapters of a run, and their model.
pub(crate) fn described(
    lora: &LoraConfig,
    name: &str,
    pretrained: Option<&Pretrained>,
    seed: u64,
    config: &ModelConfig,
) -> Outcome<Value> {
    let name = match Path::new(name).is_dir() {
        true => std::path::absolute(name)
            .ok()
            .and_then(|path| path.into_os_string().into_string().ok())
            .unwrap_or_else(|| name.to_owned()),
        false => name.to_owned(),
    };
    Ok(json!({
        "config": lora.to_peft(None),
        "base": pretrained.map(|_| name),
        "base_fingerprint": fingerprint(pretrained, seed, config)?,
    }))
}

/// Elements of each tensor that are looked at: reading a model twice would take as long as loading it.
const LOOKED_AT: usize = 256;

/// Two models with one fingerprint have the same weights, as far as the first of each tensor tell.
fn fingerprint(
    pretrained: Option<&Pretrained>,
    seed: u64,
    config: &ModelConfig,
) -> Outcome<String> {
    let Some(pretrained) = pretrained else {
        return Ok(format!("seed {seed}"));
    };
    let mut bytes = Vec::new();
    for spec in ModuleTree::new(config).parameters() {
        let first = ShardSlice::whole(&spec.shape).with_flat(0..spec.numel().min(LOOKED_AT));
        let mut values = vec![0.0; first.numel()];
        pretrained
            .weights
            .read(&spec.name, &first, &mut values)
            .map_err(Failure::other)?;
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(format!("{}", Digest::of(&bytes)))
}

/// Why a run with the adapters `current` does not continue from a checkpoint with those that `saved` says; lines.
pub(crate) fn mismatch(saved: Option<&Value>, current: Option<&Value>) -> Vec<String> {
    let flag = |saved: &Value, current: &Value, key: &str| {
        (saved["config"][key] != current["config"][key]).then(|| {
            format!(
                "  adapters: {key} is {}, and was {}",
                current["config"][key], saved["config"][key]
            )
        })
    };
    match (saved, current) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec![
            "  adapters: the checkpoint holds adapters (--lora_r, --adapter), and this run trains the whole model".to_owned(),
        ],
        (None, Some(_)) => vec![
            "  adapters: the checkpoint holds a whole model, and this run trains adapters (--lora_r, --adapter)".to_owned(),
        ],
        (Some(saved), Some(current)) => {
            let keys = ["r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"];
            let mut lines: Vec<String> =
                keys.iter().filter_map(|key| flag(saved, current, key)).collect();
            if saved["base_fingerprint"] != current["base_fingerprint"] {
                lines.push(
                    "  model: its weights are not those that the checkpoint's adapters were trained on (--model_name, --init)".to_owned(),
                );
            }
            lines
        }
    }
}
