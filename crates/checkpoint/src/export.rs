//! From a checkpoint to a Hugging Face model folder.

use std::path::Path;

use serde_json::Value;

use crate::element::FloatKind;
use crate::error::CheckpointError;
use crate::hf::HfWriter;
use crate::piece::Role;
use crate::reader::Reader;

/// The file that says what the model is.
const CONFIG_FILE: &str = "config.json";

/// Files are cut at this size, as transformers does.
pub const DEFAULT_SHARD_BYTES: usize = 5_000_000_000;

/// A small file that belongs to the model: config.json, the tokenizer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its name.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

/// Writes the parameters of a checkpoint as a model in `output`, which must be absent or empty, with `model_files` beside
/// them. A few megabytes of one tensor are in memory at a time. `progress` is told the name of every tensor that is done.
///
/// # Errors
/// A checkpoint that is damaged, or an output that cannot be written; then nothing appears.
pub fn export(
    reader: &Reader,
    model_files: &[ModelFile],
    output: &Path,
    kind: FloatKind,
    max_shard_bytes: usize,
    mut progress: impl FnMut(&str),
) -> Result<(), CheckpointError> {
    let tensors: Vec<(String, Vec<usize>)> = reader
        .manifest()
        .tensors
        .iter()
        .filter(|(_, tensor)| tensor.roles.contains_key(&Role::Param))
        .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
        .collect();
    let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    let mut writer = HfWriter::create(output, tensors, kind, max_shard_bytes)?;
    for name in &names {
        writer.write(name, |slice, out| {
            reader.read(name, &Role::Param, slice, out)
        })?;
        progress(name);
    }
    for file in model_files {
        if file.name == CONFIG_FILE {
            writer.add_file(&file.name, &with_dtype(&file.bytes, kind))?;
        } else {
            writer.add_file(&file.name, &file.bytes)?;
        }
    }
    Ok(writer.finish()?)
}

/// The config with the kind of numbers that was written: loaders believe it more than the files.
pub fn with_dtype(config: &[u8], kind: FloatKind) -> Vec<u8> {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(config) else {
        return config.to_vec();
    };
    let name = match kind {
        FloatKind::F32 => "float32",
        FloatKind::Bf16 => "bfloat16",
    };
    // transformers 5 calls it `dtype`, all before `torch_dtype`, which 5 reads too.
    let key = if object.contains_key("dtype") {
        "dtype"
    } else {
        "torch_dtype"
    };
    object.insert(key.to_owned(), Value::from(name));
    serde_json::to_vec_pretty(&object).unwrap_or_else(|_| config.to_vec())
}
