//! Refusing a run that cannot be, before anything is read or started.

use tandem_launch::experiment;
use tandem_model::Recompute;
use tandem_trainer::{Schedule, WarmupType};

use super::{Compute, RunSpec, Training, evaluation};
use crate::failure::{Failure, Outcome};

/// A million times what is trained in a step today.
const MAX_TOKENS_PER_STEP: usize = 1 << 44;

impl RunSpec {
    /// Refuses what cannot be. From here on, the values are known to make sense together.
    ///
    /// # Errors
    /// Wrong usage, with the flag to change.
    pub fn checked(self) -> Outcome<Self> {
        self.identity.selection.data.check()?;
        self.identity.selection.lora.check()?;
        check_counts(&self)?;
        check_ranges(&self)?;
        check_schedule(&self.compute.training)?;
        evaluation::check(&self)?;
        let engine = &self.compute.engine;
        if engine.activation_checkpointing
            && engine
                .recompute
                .is_some_and(|choice| choice != Recompute::Full)
        {
            return Err(Failure::usage(
                "--activation_checkpointing is --recompute full, but --recompute says otherwise; leave one of them out",
            ));
        }
        let kept = &self.checkpoints.kept;
        if kept.num_to_keep == Some(0) {
            return Err(Failure::usage(
                "--num_to_keep is 0; it must be at least 1, or left out to keep all checkpoints",
            ));
        }
        if kept.max_failures < -1 {
            return Err(Failure::usage(format!(
                "--max_failures is {}; it must be 0 or more, or -1 for no limit",
                kept.max_failures
            )));
        }
        let name = &self.output.experiment.name;
        if let Some(given) = name.given() {
            experiment::validate_name(given).map_err(|error| match name.continued() {
                Some(_) => Failure::usage(format!(
                    "--resume_from {given:?} names no run; it takes the name of an experiment in --storage_path, the folder \
                     of an experiment, or the folder of one of its checkpoints"
                )),
                None => Failure::usage(error.to_string()),
            })?;
        }
        engine.strategy.check(engine.dtype)?;
        engine.check_expert_groups()?;
        Ok(self)
    }
}

fn check_counts(spec: &RunSpec) -> Outcome<()> {
    let Compute {
        engine,
        training,
        evaluation,
    } = &spec.compute;
    let seq_length = spec.identity.selection.data.seq_length;
    let at_least_one = [
        ("batch_size", training.batch_size as u64),
        (
            "gradient_accumulation_steps",
            training.gradient_accumulation_steps as u64,
        ),
        ("comm_timeout_s", engine.comm_timeout_s),
        ("log_interval", spec.output.shown.log_interval),
    ];
    for (flag, value) in at_least_one {
        if value == 0 {
            return Err(Failure::usage(format!(
                "--{flag} is 0; it must be at least 1"
            )));
        }
    }
    // Numbers of tokens and rows are multiplied and added from here on.
    let eval_batch_size = evaluation.eval_batch_size.unwrap_or(1);
    let factors = [eval_batch_size, engine.mesh.dp_size(), seq_length];
    let tokens = factors.into_iter().try_fold(1, usize::checked_mul);
    if tokens.is_none_or(|tokens| tokens > MAX_TOKENS_PER_STEP) {
        return Err(Failure::usage(format!(
            "--eval_batch_size {eval_batch_size} x dp_size {} x --seq_length {seq_length} makes more than \
             {MAX_TOKENS_PER_STEP} tokens a batch, which no machine holds",
            engine.mesh.dp_size(),
        )));
    }
    let factors = [
        training.batch_size,
        training.gradient_accumulation_steps,
        engine.mesh.dp_size(),
        seq_length,
    ];
    let tokens = factors.into_iter().try_fold(1, usize::checked_mul);
    if tokens.is_none_or(|tokens| tokens > MAX_TOKENS_PER_STEP) {
        return Err(Failure::usage(format!(
            "--batch_size {} x --gradient_accumulation_steps {} x dp_size {} x --seq_length {seq_length} makes more than \
             {MAX_TOKENS_PER_STEP} tokens a step, which no machine holds",
            training.batch_size,
            training.gradient_accumulation_steps,
            engine.mesh.dp_size(),
        )));
    }
    if training.num_epochs == 0 && training.max_steps == 0 {
        return Err(Failure::usage(
            "--num_epochs is 0, which is no limit; pass 1 or more, or --max_steps",
        ));
    }
    if seq_length < 2 {
        return Err(Failure::usage(format!(
            "--seq_length is {seq_length}; a row needs at least 2 tokens to have one to predict"
        )));
    }
    Ok(())
}

/// What a schedule does not have is refused, and what it needs asked for.
fn check_schedule(training: &Training) -> Outcome<()> {
    let schedule = training.lr_scheduler;
    let decays = schedule == Schedule::WarmupStableDecay;
    let is_of_deepspeed = schedule.is_of_deepspeed();
    let has_own_warmup =
        training.warmup_type != WarmupType::default() || training.warmup_min_ratio > 0.0;
    let has_warmup = training.warmup_steps > 0 || training.warmup_ratio > 0.0;
    let problem = if has_own_warmup && !is_of_deepspeed {
        "--warmup_type and --warmup_min_ratio need --lr_scheduler warmup_lr, warmup_decay_lr or warmup_cosine_lr"
    } else if is_of_deepspeed && !has_warmup {
        "--lr_scheduler warmup_lr, warmup_decay_lr and warmup_cosine_lr need --warmup_steps or --warmup_ratio"
    } else if training.warmup_steps > 0 && training.warmup_ratio > 0.0 {
        "--warmup_steps and --warmup_ratio say the same: pass one of them"
    } else if training.min_lr_ratio > 0.0 && !schedule.has_min_lr() {
        "--min_lr_ratio needs --lr_scheduler cosine_with_min_lr, warmup_stable_decay or warmup_cosine_lr"
    } else if training.decay_steps > 0 && !decays {
        "--decay_steps needs --lr_scheduler warmup_stable_decay"
    } else if decays && training.decay_steps == 0 {
        "--lr_scheduler warmup_stable_decay needs --decay_steps, the last steps in which the rate falls"
    } else {
        return Ok(());
    };
    Err(Failure::usage(problem))
}

fn check_ranges(spec: &RunSpec) -> Outcome<()> {
    let training = &spec.compute.training;
    let ranges: [(&str, f64, bool, &str); 11] = [
        (
            "learning_rate",
            training.learning_rate,
            training.learning_rate > 0.0,
            "above 0",
        ),
        (
            "warmup_ratio",
            training.warmup_ratio,
            (0.0..=1.0).contains(&training.warmup_ratio),
            "from 0 to 1",
        ),
        (
            "warmup_min_ratio",
            training.warmup_min_ratio,
            (0.0..=1.0).contains(&training.warmup_min_ratio),
            "from 0 to 1",
        ),
        (
            "min_lr_ratio",
            training.min_lr_ratio,
            (0.0..=1.0).contains(&training.min_lr_ratio),
            "from 0 to 1",
        ),
        (
            "weight_decay",
            training.weight_decay,
            training.weight_decay >= 0.0,
            "0 or more",
        ),
        (
            "max_grad_norm",
            training.max_grad_norm,
            training.max_grad_norm >= 0.0,
            "0 or more",
        ),
        (
            "router_aux_loss_coef",
            training.router_aux_loss_coef.unwrap_or(0.0),
            training.router_aux_loss_coef.is_none_or(|it| it >= 0.0),
            "0 or more",
        ),
        (
            "z_loss",
            training.z_loss,
            training.z_loss >= 0.0,
            "0 or more",
        ),
        (
            "adam_eps",
            training.adam_eps,
            training.adam_eps > 0.0,
            "above 0",
        ),
        (
            "adam_beta1",
            training.adam_beta1,
            (0.0..1.0).contains(&training.adam_beta1),
            "at least 0 and below 1",
        ),
        (
            "adam_beta2",
            training.adam_beta2,
            (0.0..1.0).contains(&training.adam_beta2),
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
    let percentage = spec.identity.selection.data.dataset_percentage;
    if !(percentage > 0.0 && percentage <= 100.0) {
        return Err(Failure::usage(format!(
            "--dataset_percentage is {percentage}; it must be above 0 and at most 100"
        )));
    }
    Ok(())
}
