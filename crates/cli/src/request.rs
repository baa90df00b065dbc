//! A checked command line: from here on, flags are known to make sense together.

use tandem_mesh::DeviceMesh;
use tandem_model::{ModuleTree, Recompute};
use tandem_parallel::{AutoTp, DeepSpeed, Fsdp, Precision, ShardingLevel, Strategy};
use tandem_tensor::Kind;
use tandem_trainer::UpdateRule;

use crate::args::{CommonArgs, DeepSpeedArgs, Dtype, FsdpArgs, RecomputeChoice};
use crate::failure::{Failure, Outcome};

/// One of the two entry points, as asked for.
#[derive(Debug, Clone)]
pub enum Request {
    /// `train_deepspeed`
    DeepSpeed(DeepSpeedArgs),
    /// `train_fsdp`
    Fsdp(FsdpArgs),
}

impl Request {
    /// The flags that both entry points have.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::DeepSpeed(args) => &args.common,
            Self::Fsdp(args) => &args.common,
        }
    }

    /// The entry point's name.
    pub fn entry_point(&self) -> &'static str {
        match self {
            Self::DeepSpeed(_) => "train_deepspeed",
            Self::Fsdp(_) => "train_fsdp",
        }
    }

    /// The resolved flags, for `run_config.json`.
    pub fn to_json(&self) -> serde_json::Value {
        let flags = match self {
            Self::DeepSpeed(args) => serde_json::to_value(args),
            Self::Fsdp(args) => serde_json::to_value(args),
        };
        serde_json::json!({
            "entry_point": self.entry_point(),
            "version": env!("CARGO_PKG_VERSION"),
            "flags": flags.unwrap_or_default(),
        })
    }

    /// Refuses what cannot be, before anything is read or started.
    pub fn check(&self) -> Outcome<DeviceMesh> {
        let common = self.common();
        let mesh = DeviceMesh::for_workers(common.tp_size, common.dp_size, common.num_workers)
            .map_err(|error| Failure::usage(error.to_string()))?;
        check_numbers(common)?;
        common.cluster.check(common.device)?;
        if let Some(choice) = common.recompute
            && common.activation_checkpointing
            && choice != RecomputeChoice::Full
        {
            return Err(Failure::usage(
                "--activation_checkpointing is --recompute full, but --recompute says otherwise; leave one of them out",
            ));
        }
        common
            .checkpoints
            .check(common.experiment_name.as_deref())?;
        for name in [&common.experiment_name, &common.checkpoints.resume_from]
            .into_iter()
            .flatten()
        {
            tandem_launch::experiment::validate_name(name)
                .map_err(|error| Failure::usage(error.to_string()))?;
        }
        match self {
            Self::DeepSpeed(args) => {
                zero_level(args.zero_stage)?;
                AutoTp::with_overrides(&args.autotp_override)
                    .map_err(|error| Failure::usage(format!("--autotp_override: {error}")))?;
            }
            Self::Fsdp(args) if args.autocast && args.common.dtype == Dtype::Fp32 => {
                return Err(Failure::usage(
                    "--autocast runs matrix products in bf16, but --dtype is fp32; pass --dtype bf16, or leave --autocast out",
                ));
            }
            Self::Fsdp(_) => {}
        }
        Ok(mesh)
    }

    /// The strategy for a model.
    pub fn strategy(&self, tree: &ModuleTree) -> Outcome<Strategy> {
        let precision = precision(self.common().dtype);
        match self {
            Self::DeepSpeed(args) => {
                let usage = |error: tandem_parallel::AutoTpError| {
                    Failure::usage(format!("--autotp_override: {error}"))
                };
                let strategy = DeepSpeed {
                    zero_stage: zero_level(args.zero_stage)?,
                    autotp: AutoTp::with_overrides(&args.autotp_override).map_err(usage)?,
                    precision,
                }
                .strategy(tree)
                .map_err(usage)?;
                strategy
                    .plan
                    .check(tree)
                    .map_err(|error| Failure::usage(error.to_string()))?;
                Ok(strategy)
            }
            Self::Fsdp(args) => {
                let mut precision = if args.autocast {
                    Precision::autocast()
                } else {
                    precision
                };
                precision.reduce = match args.reduce_dtype {
                    Dtype::Fp32 => Kind::Float,
                    Dtype::Bf16 => Kind::BFloat16,
                };
                Ok(Fsdp {
                    precision,
                    reshard_after_forward: args.reshard_after_forward,
                }
                .strategy(tree))
            }
        }
    }

    /// Names the strategy for checkpoints: `deepspeed` or `fsdp`, and the ZeRO stage.
    pub fn strategy_name(&self) -> (&'static str, Option<u8>) {
        match self {
            Self::DeepSpeed(args) => ("deepspeed", Some(args.zero_stage)),
            Self::Fsdp(_) => ("fsdp", None),
        }
    }

    /// How gradients become updates.
    pub fn update_rule(&self) -> UpdateRule {
        let common = self.common();
        UpdateRule {
            beta1: common.adam_beta1,
            beta2: common.adam_beta2,
            eps: common.adam_eps,
            weight_decay: common.weight_decay,
            max_grad_norm: common.max_grad_norm,
        }
    }

    /// What happens to activations.
    pub fn recompute(&self) -> Recompute {
        let common = self.common();
        match common.recompute {
            _ if common.activation_checkpointing => Recompute::Full,
            Some(choice) => choice.into(),
            None => Recompute::Light,
        }
    }
}

/// fp32 throughout, or bf16 over fp32 master weights.
pub fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::Fp32 => Precision::fp32(),
        Dtype::Bf16 => Precision::bf16(),
    }
}

/// The sharding level of a ZeRO stage.
pub fn zero_level(stage: u8) -> Outcome<ShardingLevel> {
    match stage {
        0 => Ok(ShardingLevel::Replicated),
        1 => Ok(ShardingLevel::Optimizer),
        2 => Ok(ShardingLevel::Gradients),
        3 => Err(Failure::usage(
            "--zero_stage 3 shards parameters: that is train_fsdp; or use --zero_stage 0, 1 or 2",
        )),
        other => Err(Failure::usage(format!(
            "--zero_stage is {other}; use 0, 1 or 2"
        ))),
    }
}

fn check_numbers(common: &CommonArgs) -> Outcome<()> {
    let at_least_one = [
        ("batch_size", common.batch_size as u64),
        (
            "gradient_accumulation_steps",
            common.gradient_accumulation_steps as u64,
        ),
        ("num_epochs", common.num_epochs),
        ("comm_timeout_s", common.comm_timeout_s),
        ("log_interval", common.log_interval),
    ];
    for (flag, value) in at_least_one {
        if value == 0 {
            return Err(Failure::usage(format!(
                "--{flag} is 0; it must be at least 1"
            )));
        }
    }
    if common.seq_length < 2 {
        return Err(Failure::usage(format!(
            "--seq_length is {}; a row needs at least 2 tokens to have one to predict",
            common.seq_length
        )));
    }
    let ranges: [(&str, f64, bool, &str); 6] = [
        (
            "learning_rate",
            common.learning_rate,
            common.learning_rate > 0.0,
            "above 0",
        ),
        (
            "weight_decay",
            common.weight_decay,
            common.weight_decay >= 0.0,
            "0 or more",
        ),
        (
            "max_grad_norm",
            common.max_grad_norm,
            common.max_grad_norm >= 0.0,
            "0 or more",
        ),
        (
            "adam_eps",
            common.adam_eps,
            common.adam_eps > 0.0,
            "above 0",
        ),
        (
            "adam_beta1",
            common.adam_beta1,
            (0.0..1.0).contains(&common.adam_beta1),
            "at least 0 and below 1",
        ),
        (
            "adam_beta2",
            common.adam_beta2,
            (0.0..1.0).contains(&common.adam_beta2),
            "at least 0 and below 1",
        ),
    ];
    for (flag, value, good, expected) in ranges {
        if !good || !value.is_finite() {
            return Err(Failure::usage(format!(
                "--{flag} is {value}; it must be {expected}"
            )));
        }
    }
    if !(common.dataset_percentage > 0.0 && common.dataset_percentage <= 100.0) {
        return Err(Failure::usage(format!(
            "--dataset_percentage is {}; it must be above 0 and at most 100",
            common.dataset_percentage
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const MESH: [&str; 6] = ["--tp_size", "2", "--dp_size", "2", "--num_workers", "4"];

    fn fsdp(extra: &[&str]) -> Outcome<DeviceMesh> {
        let args = ["train_fsdp"].iter().chain(&MESH).chain(extra);
        Request::Fsdp(FsdpArgs::try_parse_from(args).unwrap()).check()
    }

    fn deepspeed(extra: &[&str]) -> Outcome<DeviceMesh> {
        let args = ["train_deepspeed"].iter().chain(&MESH).chain(extra);
        Request::DeepSpeed(DeepSpeedArgs::try_parse_from(args).unwrap()).check()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = FsdpArgs::try_parse_from(["train_fsdp"].iter().chain(&MESH)).unwrap();
        let common = &args.common;
        assert_eq!(common.model_name, "Qwen/Qwen2-7B");
        assert_eq!(
            (common.batch_size, common.seq_length, common.num_epochs),
            (1, 2048, 3)
        );
        assert_eq!(
            (common.learning_rate, common.dataset_name.as_str()),
            (1e-5, "wikitext")
        );
        assert_eq!(common.storage_path, "/mnt/cluster_storage");
        assert!(!args.autocast && args.reshard_after_forward && common.packing);
        assert!(FsdpArgs::try_parse_from(["train_fsdp", "--tp_size", "1"]).is_err());
        let args = DeepSpeedArgs::try_parse_from(["train_deepspeed"].iter().chain(&MESH)).unwrap();
        assert_eq!(args.zero_stage, 1);
        // --flag and --flag true mean the same.
        let args = ["train_fsdp", "--autocast"].iter().chain(&MESH);
        assert!(FsdpArgs::try_parse_from(args).unwrap().autocast);
    }

    #[test]
    fn impossible_flags_are_usage_errors_that_name_the_flag() {
        for (extra, word) in [
            (vec!["--num_workers", "3"], "--num_workers 4"),
            (vec!["--tp_size", "0"], "tp_size is 0"),
            (vec!["--batch_size", "0"], "--batch_size"),
            (vec!["--seq_length", "1"], "--seq_length"),
            (vec!["--learning_rate", "0"], "--learning_rate"),
            (vec!["--learning_rate", "NaN"], "--learning_rate"),
            (vec!["--dataset_percentage", "101"], "--dataset_percentage"),
            (vec!["--adam_beta2", "1"], "--adam_beta2"),
            (vec!["--experiment_name", "a/b"], "experiment"),
            (
                vec!["--resume_from", "a", "--experiment_name", "b"],
                "--resume_from a",
            ),
            (vec!["--resume_from", "a/b"], "experiment"),
            (vec!["--num_to_keep", "0"], "--num_to_keep"),
            (vec!["--max_failures", "-2"], "--max_failures"),
            (vec!["--autocast", "--dtype", "fp32"], "--autocast"),
        ] {
            let args: Vec<&str> = MESH.iter().copied().filter(|_| true).collect();
            let mut line = vec!["train_fsdp"];
            // A flag that the case sets replaces the mesh's.
            for pair in args.chunks(2) {
                if !extra.contains(&pair[0]) {
                    line.extend(pair);
                }
            }
            line.extend(&extra);
            let failure = Request::Fsdp(FsdpArgs::try_parse_from(line).unwrap())
                .check()
                .unwrap_err();
            assert_eq!(failure.exit_code, 2, "{extra:?}");
            assert!(
                failure.message.contains(word),
                "{extra:?}: {}",
                failure.message
            );
        }
        assert!(fsdp(&[]).is_ok() && deepspeed(&["--zero_stage", "2"]).is_ok());
        let failure = deepspeed(&["--zero_stage", "3"]).unwrap_err();
        assert!(failure.message.contains("train_fsdp") && failure.exit_code == 2);
        let failure = deepspeed(&["--autotp_override", "x"]).unwrap_err();
        assert!(failure.message.contains("REGEX") || failure.message.contains("PATTERN"));
    }
}
