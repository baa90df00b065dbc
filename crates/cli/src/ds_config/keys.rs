//! The keys of the file: those that are read, those without effect here, with the reason, and those that are refused.

use serde_json::{Map, Value};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is read somewhere here.
    Read,
    /// It changes nothing here, for this reason.
    Idle(&'static str),
    /// It is refused, for this reason, unless it is off.
    Refused(&'static str),
}

use Fate::{Idle, Read, Refused};

const BUCKETS: &str = "because whole layers are gathered and reduced while others compute";
const MEASURED: &str = "because --profile measures";
const SHOWN: &str = "because the metrics of every step are in metrics.jsonl";
const STAGE_3: &str = "because it is about stage 3";
const OFFLOAD: &str = "states stay on the device; use more ranks or train_fsdp";
const IN_FP32: &str = "gradients are kept and sent in fp32";
const ADAM_KERNEL: &str = "because there is one AdamW, fused";
const OTHER_TRAINING: &str = "it is another way of training, which is not here";
const HALF: &str = "because it is about fp16, which is off";
const ITS_OWN: &str = "because checkpoints have a form of their own";
const PLAN: &str = "because the plan is inferred from the model";

/// Every key, with those around it. Below one that is [`Idle`] or [`Refused`], anything may stand.
const KEYS: &[(&str, Fate)] = &[
    ("train_batch_size", Read),
    ("train_micro_batch_size_per_gpu", Read),
    ("gradient_accumulation_steps", Read),
    ("gradient_clipping", Read),
    ("steps_per_print", Read),
    ("dataloader_drop_last", Read),
    ("optimizer", Read),
    ("optimizer.type", Read),
    ("optimizer.params", Read),
    ("optimizer.params.lr", Read),
    ("optimizer.params.betas", Read),
    ("optimizer.params.eps", Read),
    ("optimizer.params.weight_decay", Read),
    ("optimizer.params.torch_adam", Read),
    ("optimizer.params.adam_w_mode", Read),
    ("optimizer.params.bias_correction", Read),
    ("optimizer.params.amsgrad", Read),
    ("optimizer.params.maximize", Read),
    ("optimizer.params.fused", Idle(ADAM_KERNEL)),
    ("optimizer.params.foreach", Idle(ADAM_KERNEL)),
    ("optimizer.params.set_grad_none", Idle(ADAM_KERNEL)),
    ("optimizer.legacy_fusion", Idle(ADAM_KERNEL)),
    ("scheduler", Read),
    ("scheduler.type", Read),
    ("scheduler.params", Read),
    ("scheduler.params.warmup_min_lr", Read),
    ("scheduler.params.warmup_max_lr", Read),
    ("scheduler.params.warmup_num_steps", Read),
    ("scheduler.params.warmup_type", Read),
    ("scheduler.params.warmup_min_ratio", Read),
    ("scheduler.params.cos_min_ratio", Read),
    ("scheduler.params.total_num_steps", Read),
    ("scheduler.params.last_batch_iteration", Read),
    ("bf16", Read),
    ("bf16.enabled", Read),
    (
        "bf16.immediate_grad_update",
        Idle("because gradients are accumulated in fp32"),
    ),
    (
        "bf16.check_grad_overflow",
        Idle("because every step looks whether its numbers are finite"),
    ),
    (
        "bf16.bf16_master_weights_and_grads",
        Refused("master weights and gradients are fp32"),
    ),
    (
        "bf16.bf16_optimizer_states",
        Refused("optimizer states are fp32"),
    ),
    ("bfloat16", Read),
    ("bfloat16.enabled", Read),
    ("fp16", Read),
    ("fp16.enabled", Read),
    ("fp16.auto_cast", Idle(HALF)),
    ("fp16.loss_scale", Idle(HALF)),
    ("fp16.loss_scale_window", Idle(HALF)),
    ("fp16.initial_scale_power", Idle(HALF)),
    ("fp16.hysteresis", Idle(HALF)),
    ("fp16.consecutive_hysteresis", Idle(HALF)),
    ("fp16.min_loss_scale", Idle(HALF)),
    ("fp16.fp16_opt_level", Idle(HALF)),
    ("fp16.fp16_master_weights_and_grads", Idle(HALF)),
    ("amp", Refused("use bf16")),
    ("torch_autocast", Refused("train_fsdp has --autocast")),
    ("data_types", Read),
    ("data_types.grad_accum_dtype", Refused(IN_FP32)),
    ("communication_data_type", Refused(IN_FP32)),
    ("seq_parallel_communication_data_type", Refused(IN_FP32)),
    (
        "prescale_gradients",
        Idle("because fp32 sums need no scaling before them"),
    ),
    (
        "gradient_predivide_factor",
        Idle("because fp32 sums need no scaling before them"),
    ),
    ("sparse_gradients", Refused("gradients are dense")),
    ("zero_allow_untested_optimizer", Idle(ADAM_KERNEL)),
    ("zero_force_ds_cpu_optimizer", Idle(ADAM_KERNEL)),
    ("zero_optimization", Read),
    ("zero_optimization.stage", Read),
    ("zero_optimization.contiguous_gradients", Idle(BUCKETS)),
    ("zero_optimization.reduce_scatter", Idle(BUCKETS)),
    ("zero_optimization.reduce_bucket_size", Idle(BUCKETS)),
    (
        "zero_optimization.use_multi_rank_bucket_allreduce",
        Idle(BUCKETS),
    ),
    ("zero_optimization.allgather_partitions", Idle(BUCKETS)),
    ("zero_optimization.allgather_bucket_size", Idle(BUCKETS)),
    ("zero_optimization.overlap_comm", Idle(BUCKETS)),
    ("zero_optimization.round_robin_gradients", Idle(BUCKETS)),
    (
        "zero_optimization.ignore_unused_parameters",
        Idle("because all parameters are used"),
    ),
    ("zero_optimization.load_from_fp32_weights", Idle(ITS_OWN)),
    ("zero_optimization.elastic_checkpoint", Idle(ITS_OWN)),
    ("zero_optimization.legacy_stage1", Idle(BUCKETS)),
    ("zero_optimization.sub_group_size", Idle(STAGE_3)),
    (
        "zero_optimization.stage3_max_live_parameters",
        Idle(STAGE_3),
    ),
    ("zero_optimization.stage3_max_reuse_distance", Idle(STAGE_3)),
    (
        "zero_optimization.stage3_prefetch_bucket_size",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_param_persistence_threshold",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_model_persistence_threshold",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_gather_fp16_weights_on_model_save",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_module_granularity_threshold",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        Idle(STAGE_3),
    ),
    (
        "zero_optimization.gather_16bit_weights_on_model_save",
        Idle(STAGE_3),
    ),
    ("zero_optimization.zero_hpz_partition_size", Idle(STAGE_3)),
    ("zero_optimization.memory_efficient_linear", Idle(STAGE_3)),
    ("zero_optimization.override_module_apply", Idle(STAGE_3)),
    (
        "zero_optimization.pipeline_loading_checkpoint",
        Idle(ITS_OWN),
    ),
    ("zero_optimization.log_trace_cache_warnings", Idle(STAGE_3)),
    ("zero_optimization.offload_optimizer", Refused(OFFLOAD)),
    ("zero_optimization.offload_param", Refused(OFFLOAD)),
    ("zero_optimization.cpu_offload", Refused(OFFLOAD)),
    ("zero_optimization.cpu_offload_params", Refused(OFFLOAD)),
    (
        "zero_optimization.cpu_offload_use_pin_memory",
        Idle("because nothing is offloaded"),
    ),
    ("zero_optimization.zenflow", Refused(OFFLOAD)),
    (
        "zero_optimization.zero_quantized_weights",
        Refused("weights are sent as they are"),
    ),
    (
        "zero_optimization.zero_quantized_nontrainable_weights",
        Refused("weights are sent as they are"),
    ),
    (
        "zero_optimization.zero_quantized_gradients",
        Refused(IN_FP32),
    ),
    (
        "zero_optimization.mics_shard_size",
        Refused("states are cut over the whole column"),
    ),
    (
        "zero_optimization.mics_hierarchical_params_gather",
        Refused("states are cut over the whole column"),
    ),
    ("tensor_parallel", Read),
    ("tensor_parallel.autotp_size", Read),
    ("tensor_parallel.tp", Read),
    ("tensor_parallel.tp.tp_size", Read),
    ("tensor_parallel.tp.tp_grain_size", Idle(PLAN)),
    ("tensor_parallel.tp_grain_size", Idle(PLAN)),
    ("tensor_parallel.preset_model", Idle(PLAN)),
    ("tensor_parallel.tp_overlap_comm", Idle(BUCKETS)),
    (
        "tensor_parallel.dtype",
        Idle("because bf16.enabled says it"),
    ),
    (
        "tensor_parallel.keep_module_on_host",
        Idle("because a rank reads only what it keeps"),
    ),
    (
        "tensor_parallel.replace_with_kernel_inject",
        Refused("kernels are this program's own"),
    ),
    ("tensor_parallel.partition_config", Read),
    ("tensor_parallel.partition_config.tp_size", Read),
    ("tensor_parallel.partition_config.layer_specs", Read),
    ("tensor_parallel.partition_config.use_default_specs", Read),
    (
        "tensor_parallel.partition_config.strict_mode",
        Idle("because every module has a style"),
    ),
    (
        "tensor_parallel.partition_config.embedding_partition_dim",
        Idle(PLAN),
    ),
    (
        "tensor_parallel.partition_config.lm_head_patterns",
        Idle(PLAN),
    ),
    (
        "tensor_parallel.partition_config.layer_specs.patterns",
        Read,
    ),
    (
        "tensor_parallel.partition_config.layer_specs.partition_type",
        Read,
    ),
    (
        "tensor_parallel.partition_config.layer_specs.partition_dim",
        Read,
    ),
    (
        "tensor_parallel.partition_config.layer_specs.model_types",
        Read,
    ),
    (
        "tensor_parallel.partition_config.layer_specs.gather_output",
        Idle(PLAN),
    ),
    (
        "tensor_parallel.partition_config.layer_specs.shape",
        Idle(PLAN),
    ),
    (
        "activation_checkpointing",
        Idle("because --recompute decides it"),
    ),
    ("wall_clock_breakdown", Idle(MEASURED)),
    ("memory_breakdown", Idle(MEASURED)),
    ("flops_profiler", Idle(MEASURED)),
    ("comms_logger", Idle(MEASURED)),
    ("timers", Idle(MEASURED)),
    ("dump_state", Idle("because run_config.json has it")),
    ("tensorboard", Idle(SHOWN)),
    ("csv_monitor", Idle(SHOWN)),
    ("monitor_config", Idle(SHOWN)),
    (
        "wandb",
        Refused("metrics are not sent anywhere; metrics.jsonl has them"),
    ),
    (
        "comet",
        Refused("metrics are not sent anywhere; metrics.jsonl has them"),
    ),
    ("checkpoint", Idle(ITS_OWN)),
    ("load_universal_checkpoint", Idle(ITS_OWN)),
    ("nebula", Refused("checkpoints go to --storage_path")),
    (
        "datastates_ckpt",
        Refused("checkpoints go to --storage_path"),
    ),
    ("aio", Idle("because nothing is offloaded")),
    ("disable_allgather", Idle(BUCKETS)),
    ("compile", Refused("there is no graph to compile")),
    ("graph_harvesting", Refused("there is no graph to compile")),
    (
        "elasticity",
        Refused("--max_failures and --resume_from on another mesh are for that"),
    ),
    ("autotuning", Refused("there is nothing to tune by trial")),
    ("pipeline", Refused("there is no pipeline parallelism")),
    (
        "sequence_parallel_size",
        Refused("--sequence_parallel cuts over the tensor parallel row"),
    ),
    (
        "use_data_before_expert_parallelism",
        Refused("there is no expert parallelism"),
    ),
    ("data_efficiency", Refused(OTHER_TRAINING)),
    ("curriculum_learning", Refused(OTHER_TRAINING)),
    ("compression_training", Refused(OTHER_TRAINING)),
    ("progressive_layer_drop", Refused(OTHER_TRAINING)),
    ("eigenvalue", Refused(OTHER_TRAINING)),
    ("quantize_training", Refused(OTHER_TRAINING)),
    ("sparse_attention", Refused(OTHER_TRAINING)),
    ("hybrid_engine", Refused(OTHER_TRAINING)),
    ("weight_quantization", Refused(OTHER_TRAINING)),
];

/// Keys without an effect, by why they have none.
pub type Ineffective = Vec<(&'static str, Vec<String>)>;

/// The keys without effect, by reason.
///
/// # Errors
/// A key that is refused, with the reason, or that is none, with the one that is most like it.
pub fn check(file: &Map<String, Value>) -> Result<Ineffective, String> {
    let mut idle: Ineffective = Vec::new();
    below("", file, &mut idle)?;
    Ok(idle)
}

fn below(path: &str, keys: &Map<String, Value>, idle: &mut Ineffective) -> Result<(), String> {
    for (key, value) in keys {
        // People write comments in this way.
        if key.starts_with("//") || key.starts_with("_comment") || key == "comment" {
            continue;
        }
        let whole = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        match fate(&whole) {
            None => return Err(unknown(&whole)),
            Some(Refused(why)) if !is_off(value) => return Err(format!("{whole}: {why}")),
            Some(Refused(_)) => {}
            Some(Idle(why)) => match idle.iter_mut().find(|(other, _)| *other == why) {
                Some((_, keys)) => keys.push(whole),
                None => idle.push((why, vec![whole])),
            },
            Some(Read) => {
                let objects = match value {
                    Value::Object(object) => vec![object],
                    Value::Array(values) => values.iter().filter_map(Value::as_object).collect(),
                    _ => Vec::new(),
                };
                for object in objects {
                    below(&whole, object, idle)?;
                }
            }
        }
    }
    Ok(())
}

fn fate(key: &str) -> Option<Fate> {
    let found = KEYS.iter().find(|(known, _)| *known == key);
    found.map(|(_, fate)| *fate)
}

/// Whether a value asks for nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64().is_some_and(|number| number <= 1.0),
        Value::String(text) => ["auto", "none", "fp32", "float32"].contains(&text.as_str()),
        Value::Array(values) => values.is_empty(),
        Value::Object(object) => match (object.get("enabled"), object.get("device")) {
            (Some(enabled), _) => is_off(enabled),
            (None, Some(device)) => is_off(device),
            (None, None) => object.is_empty(),
        },
    }
}

fn unknown(key: &str) -> String {
    let alike = KEYS.iter().map(|(known, _)| {
        let place = |key: &str| key.rsplit_once('.').map(|(place, _)| place.to_owned());
        // A key in the right place is meant rather than one elsewhere.
        let bonus = if place(known) == place(key) {
            0.05
        } else {
            0.0
        };
        (strsim::jaro_winkler(known, key) + bonus, *known)
    });
    match alike.max_by(|(a, _), (b, _)| a.total_cmp(b)) {
        Some((alike, known)) if alike > 0.85 => {
            format!("{key} is no key that is known here; did you mean {known}?")
        }
        _ => format!("{key} is no key that is known here; leave it out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_once_and_below_one_that_is_read() {
        for (index, (key, _)) in KEYS.iter().enumerate() {
            assert!(
                KEYS[..index].iter().all(|(other, _)| other != key),
                "{key} twice"
            );
            if let Some((place, _)) = key.rsplit_once('.') {
                assert_eq!(fate(place), Some(Read), "{key}");
            }
        }
    }
}
