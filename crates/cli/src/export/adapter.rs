//! Exports of adapters: as PEFT keeps them, or added to the model.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tandem_checkpoint::{
    DEFAULT_SHARD_BYTES, FloatKind, HfWriter, ModelFile, NamedTensor, Reader, Role, with_dtype,
    write_safetensors,
};
use tandem_launch::say;
use tandem_mesh::ShardSlice;
use tandem_model::{ModelConfig, ModuleTree, adapted_module};
use tandem_run::adapter::{CONFIG_FILE, SavedAdapter, WEIGHTS_FILE};
use tandem_run::failure::{Failure, Outcome};

use super::ExportArgs;

/// A tensor of the checkpoint.
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// All adapters; they are small.
fn read(reader: &Reader) -> Outcome<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &reader.manifest().tensors {
        if !tensor.roles.contains_key(&Role::Param) {
            continue;
        }
        let whole = ShardSlice::whole(&tensor.shape);
        let mut values = vec![0.0; whole.numel()];
        reader
            .read(name, &Role::Param, &whole, &mut values)
            .map_err(Failure::other)?;
        let shape = tensor.shape.clone();
        tensors.insert(name.clone(), Tensor { shape, values });
    }
    Ok(tensors)
}

/// Writes `adapter_config.json` and `adapter_model.safetensors`. Returns the exit code.
pub fn write_peft(
    args: &ExportArgs,
    adapter: &SavedAdapter,
    reader: &Reader,
    kind: FloatKind,
) -> Outcome<i32> {
    let tensors = read(reader)?;
    let output = args.output.as_path();
    let cannot = |error: std::io::Error| {
        Failure::other(format!("cannot write {}: {error}", output.display()))
    };
    let is_free = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !is_free {
        return Err(Failure::other(format!(
            "{} is there already and not empty; choose another folder",
            output.display()
        )));
    }
    // The folder appears when all is in it.
    let mut building = output.as_os_str().to_owned();
    building.push(format!(".partial-{}", std::process::id()));
    let building = Path::new(&building);
    std::fs::create_dir_all(building).map_err(cannot)?;
    let named: Vec<NamedTensor<'_>> = tensors
        .iter()
        .map(|(name, tensor)| NamedTensor {
            name,
            shape: &tensor.shape,
            data: &tensor.values,
        })
        .collect();
    let base = args.model_name.as_deref().or(adapter.base.as_deref());
    let config = serde_json::to_vec_pretty(&adapter.lora.to_peft(base)).map_err(Failure::other)?;
    let written = write_safetensors(&building.join(WEIGHTS_FILE), &named, kind)
        .map_err(Failure::other)
        .and_then(|()| {
            tandem_files::write_whole(&building.join(CONFIG_FILE), &config).map_err(cannot)
        })
        .and_then(|()| std::fs::rename(building, output).map_err(cannot));
    if let Err(failure) = written {
        // What is left of it is nobody's.
        std::fs::remove_dir_all(building).ok();
        return Err(failure);
    }
    say!(
        "{}: {} tensors of adapters of {}, after step {}",
        output.display(),
        tensors.len(),
        reader.location(),
        reader.state().global_step
    )?;
    Ok(0)
}

/// Writes the model with `scale B A` added to every adapted matrix. Returns the exit code.
pub fn write_merged(
    args: &ExportArgs,
    adapter: &SavedAdapter,
    reader: &Reader,
    files: &[ModelFile],
    kind: FloatKind,
) -> Outcome<i32> {
    let is_config = |file: &&ModelFile| file.name == "config.json";
    let config = files.iter().find(is_config).map(|file| &file.bytes);
    let config: Value = serde_json::from_slice(config.map_or(&[], Vec::as_slice))
        .map_err(|error| Failure::other(format!("config.json of the run: {error}")))?;
    let Some(config) = config.as_object() else {
        return Err(Failure::other("config.json of the run is no JSON object"));
    };
    let config = ModelConfig::from_json(config).map_err(Failure::other)?;
    let base = adapter.base(args.model_name.as_deref(), &config)?;
    let tensors = read(reader)?;
    let tree = ModuleTree::new(&config);
    let mut merged = 0;
    let announced = tree
        .parameters()
        .map(|spec| (spec.name.clone(), spec.shape.clone()))
        .collect();
    let mut writer = HfWriter::create(&args.output, announced, kind, DEFAULT_SHARD_BYTES)
        .map_err(Failure::other)?;
    for spec in tree.parameters() {
        let of = |end: &str| {
            let is_it = |name: &&String| {
                name.strip_suffix(".weight").is_some_and(|path| {
                    path.ends_with(end) && adapted_module(path) == spec.module()
                })
            };
            let found = tensors.keys().find(is_it);
            found.filter(|_| spec.name.ends_with(".weight"))
        };
        let pair = of("lora_A").zip(of("lora_B"));
        merged += usize::from(pair.is_some());
        writer
            .write(&spec.name, |slice, out| {
                base.source().read(spec, slice, out)?;
                if let Some((a, b)) = pair {
                    add_product(&tensors[a], &tensors[b], adapter.lora.scale(), slice, out);
                }
                Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
            })
            .map_err(Failure::other)?;
    }
    for file in files {
        let bytes = match is_config(&file) {
            true => with_dtype(&file.bytes, kind),
            false => file.bytes.clone(),
        };
        writer
            .add_file(&file.name, &bytes)
            .map_err(Failure::other)?;
    }
    writer.finish().map_err(Failure::other)?;
    say!(
        "{}: a model with {merged} adapters of {} in it, after step {}",
        args.output.display(),
        reader.location(),
        reader.state().global_step
    )?;
    Ok(0)
}

/// Adds the elements of `scale B A` that are in `slice` of the whole matrix.
fn add_product(a: &Tensor, b: &Tensor, scale: f64, slice: &ShardSlice, out: &mut [f32]) {
    let (rank, columns) = (a.shape[0], a.shape[1]);
    for run in slice.runs() {
        for (index, value) in out[run.target..run.target + run.len].iter_mut().enumerate() {
            let (row, column) = (
                (run.source + index) / columns,
                (run.source + index) % columns,
            );
            let products = (0..rank).map(|k| {
                f64::from(b.values[row * rank + k]) * f64::from(a.values[k * columns + column])
            });
            *value = (f64::from(*value) + scale * products.sum::<f64>()) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_gets_its_part_of_the_product() {
        let a = Tensor {
            shape: vec![2, 3],
            values: vec![1.0, 2.0, 3.0, -1.0, 0.5, 4.0],
        };
        let b = Tensor {
            shape: vec![2, 2],
            values: vec![1.0, 2.0, 0.0, -3.0],
        };
        // Twice [1 - 2, 2 + 1, 3 + 8] and [3, -1.5, -12].
        let product = [-2.0, 6.0, 22.0, 6.0, -3.0, -24.0];
        for range in [0..6, 1..5, 4..6] {
            let slice = ShardSlice::whole(&[2, 3]).with_flat(range.clone());
            let mut out = vec![10.0f32; range.len()];
            add_product(&a, &b, 2.0, &slice, &mut out);
            let expected: Vec<f32> = range.map(|index| 10.0 + product[index]).collect();
            assert_eq!(out, expected);
        }
    }
}
