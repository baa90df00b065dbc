//! `--tp_size auto`: which mesh so many workers make, by arithmetic over the model's description and the devices' sizes.

use tandem_data::{Hub, Weights};
use tandem_model::ModelConfig;
use tandem_model::ModuleTree;
use tandem_plan::{
    Candidate, CutChoice, Device, Kernels, NoCandidate, Place, Question, duration, search,
};
use tandem_tensor::torch::cuda;
use tandem_tensor::{Device as Here, device, memory};

use crate::failure::{Failure, Outcome};
use crate::place::place;
use crate::prepare::adapter;
use crate::progress::Shown;
use crate::spec::{Compute, RunSpec};

/// A mesh, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoMesh {
    /// Ranks of a row; columns follow.
    pub tp_size: usize,
    /// A line for the reader.
    pub why: String,
}

/// The mesh of `num_workers` workers that does what `spec` asks for, whatever its own mesh is, the fastest and fits.
///
/// Every process that asks the same on the same kind of machine gets the same answer: of memory, what the device has counts, and
/// not what is free.
///
/// # Errors
/// The model cannot be read, the devices are not known, or no mesh fits.
pub fn choose(spec: &RunSpec, num_workers: usize) -> Outcome<AutoMesh> {
    let name = &spec.identity.model_name;
    let selection = &spec.identity.selection;
    let hub = Hub::from_env().map_err(Failure::other)?;
    let folder = hub
        .model_dir(name, Weights::NotNeeded, &mut Shown::to(&mut ()))
        .map_err(|error| Failure::other(format!("--model_name: {error}")))?;
    let config = ModelConfig::from_dir(&folder)
        .and_then(|config| config.truncated(selection.num_layers))
        .map_err(Failure::other)?;
    let Compute {
        engine, training, ..
    } = &spec.compute;
    let tree = ModuleTree::new(&config);
    let strategy = engine.strategy_for(&config, &tree)?;
    let adapter = adapter(selection, &config)?;
    let device = devices(spec, num_workers)?;
    let mut candidates: Vec<Candidate> = Vec::new();
    for tp_size in (1..=num_workers).filter(|tp| num_workers.is_multiple_of(*tp)) {
        let rows = training.batch_size * training.gradient_accumulation_steps;
        let question = Question {
            config: &config,
            plan: &strategy.plan,
            adapters: adapter.as_ref().map(|it| (&it.lora, &it.tree)),
            devices: num_workers,
            device: &device,
            kernels: Kernels::of(&device),
            precision: strategy.precision,
            seq_length: selection.data.seq_length,
            rows: rows.saturating_mul(num_workers / tp_size),
            head_chunk_rows: engine.head_chunk_rows,
            cuts: &[CutChoice {
                level: strategy.level,
                reshard_after_forward: strategy.reshard_after_forward,
            }],
            tp_size: Some(tp_size),
            expert_parallel: Some(engine.expert_parallel_size),
            sequence_parallel: Some(engine.sequence_parallel),
            recompute: Some(engine.recompute()),
            batch_size: Some(training.batch_size),
        };
        match search(&question) {
            Ok(found) => candidates.extend(found),
            // A row may have more ranks than the model can be cut for.
            Err(NoCandidate::NoMesh { .. }) => {}
            Err(error) => return Err(Failure::usage(error.to_string())),
        }
    }
    decide(&candidates, &device)
}

/// The fastest that fits, and what was to be chosen from.
fn decide(candidates: &[Candidate], device: &Device) -> Outcome<AutoMesh> {
    let tp = |it: &Candidate| it.settings.mesh.tp_size();
    let gb = |bytes: f64| bytes / 1e9;
    let fitting = candidates.iter().filter(|it| it.fits);
    let best = fitting.max_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s));
    let Some(best) = best else {
        let smallest = candidates.iter().min_by_key(|it| it.memory.total());
        let (tp_size, needed) = smallest.map_or((0, 0.0), |it| (tp(it), it.memory.total() as f64));
        return Err(Failure::usage(format!(
            "--tp_size auto: no mesh of these workers fits into {:.1} GB each; the smallest, --tp_size {tp_size}, needs {:.1} GB; use \
             more workers, a smaller --batch_size or --seq_length, --recompute full, or adapters (--lora_r); `tandem plan` shows what \
             fits",
            gb(device.memory_bytes),
            gb(needed),
        )));
    };
    let described = |it: &Candidate| match it.fits {
        true => format!("tp {} {:.0} tokens/s", tp(it), it.tokens_per_s),
        false => format!(
            "tp {} too large ({:.1} GB)",
            tp(it),
            gb(it.memory.total() as f64)
        ),
    };
    let all: Vec<String> = candidates.iter().map(described).collect();
    Ok(AutoMesh {
        tp_size: tp(best),
        why: format!(
            "auto      tp_size {} of --tp_size auto: {:.2} of {:.1} GB a worker ({}), {} a step; estimated {}",
            tp(best),
            gb(best.memory.total() as f64),
            gb(device.memory_bytes),
            device.name,
            duration(best.time.total_s()),
            all.join(", "),
        ),
    })
}

/// The devices that the workers will have.
fn devices(spec: &RunSpec, num_workers: usize) -> Outcome<Device> {
    let engine = &spec.compute.engine;
    if let Some(ray) = &spec.cluster.ray {
        return of_cluster(ray.use_gpu, ray.accelerator_type.as_deref());
    }
    match place(engine.device) {
        Place::Cpu => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let here = num_workers as f64;
            let all = memory::total_bytes().unwrap_or(u64::MAX) as f64;
            Ok(Device::processor(
                cores as f64 / here,
                all / here,
                num_workers,
            ))
        }
        Place::Cuda => {
            let name = device::name(Here::Cuda(0)).unwrap_or_default();
            let known = Device::of_driver(&name).ok_or_else(|| {
                Failure::usage(format!(
                    "--tp_size auto: {name:?} is not in the table of devices ({}); pass --tp_size as a number",
                    Device::names().collect::<Vec<_>>().join(", ")
                ))
            })?;
            Ok(match cuda::memory(0) {
                Some((_, total)) => Device {
                    memory_bytes: total as f64,
                    ..known
                },
                None => known,
            })
        }
    }
}

/// Of Ray's nodes, what is asked for is all that is known before the run.
fn of_cluster(use_gpu: bool, accelerator: Option<&str>) -> Outcome<Device> {
    let unknown = || {
        Failure::usage(
            "--tp_size auto with --cluster ray needs --use_gpu and --accelerator_type, such as H100, to know the devices before the \
             run begins; or pass --tp_size as a number",
        )
    };
    let name = accelerator.filter(|_| use_gpu).ok_or_else(unknown)?;
    // Ray's names are those of the table, with capitals and more detail: A100-80G.
    let name = name.to_ascii_lowercase();
    let name = name
        .strip_suffix('g')
        .filter(|it| it.ends_with("-80") || it.ends_with("-40"));
    let full = accelerator.unwrap_or_default();
    Device::named(name.unwrap_or(full)).map_err(|error| {
        Failure::usage(format!(
            "--tp_size auto: --accelerator_type {full}: {error}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rays_names_of_accelerators_are_devices() {
        for (name, expected) in [
            ("H100", "h100"),
            ("A100-80G", "a100-80"),
            ("A100-40G", "a100-40"),
            ("L4", "l4"),
        ] {
            let device = of_cluster(true, Some(name)).unwrap();
            assert_eq!(device.name, expected);
        }
        for (use_gpu, name) in [(false, Some("H100")), (true, None)] {
            let failure = of_cluster(use_gpu, name).unwrap_err();
            assert!(
                failure.message.contains("--accelerator_type"),
                "{}",
                failure.message
            );
        }
        assert!(of_cluster(true, Some("TPU-V4")).is_err());
    }
}
