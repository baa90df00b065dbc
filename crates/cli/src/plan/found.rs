//! What was found, for people and for programs.

use serde_json::{Value, json};
use tandem_model::ModelConfig;
use tandem_plan::scale::{Quantity, Scale};
use tandem_plan::{Candidate, Conversation, Device, duration, reasons, recompute_name};

use super::PlanArgs;
use super::operators::Operators;
use super::scale;
use crate::flags::choices::Dtype;

/// The candidates of a question.
pub(super) struct Found<'a> {
    pub args: &'a PlanArgs,
    pub config: &'a ModelConfig,
    pub parameters: usize,
    pub device: &'a Device,
    pub seq_length: usize,
    /// Rows of a step.
    pub rows: usize,
    pub candidates: &'a [Candidate],
    /// With `--operators`.
    pub operators: Option<&'a Operators>,
    /// With `--scale`.
    pub scale: Option<&'a Scale>,
}

fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

fn strategy(candidate: &Candidate) -> &'static str {
    match (
        candidate.cut.zero_stage(),
        candidate.cut.reshard_after_forward,
    ) {
        (Some(0), _) => "ZeRO-0",
        (Some(1), _) => "ZeRO-1",
        (Some(_), _) => "ZeRO-2",
        (None, true) => "FSDP",
        (None, false) => "FSDP, kept",
    }
}

impl Found<'_> {
    /// The table, the best in detail, why it is the best, the operators of a layer of it, and what it takes with many ranks.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.of_candidates();
        lines.extend(self.operators.iter().flat_map(|it| it.lines()));
        lines.extend(self.scale.into_iter().flat_map(scale::lines));
        lines
    }

    fn of_candidates(&self) -> Vec<String> {
        let mut lines = vec![self.title()];
        let fitting = self.candidates.iter().filter(|it| it.fits).count();
        lines.push(format!(
            "{} ways to train it, of which {fitting} fit{}",
            self.candidates.len(),
            match fitting {
                0 => ". The smallest:",
                _ => ". The fastest:",
            }
        ));
        lines.push(format!(
            "  {:<15} {:<3} {:<10} {:<3} {:<9} {:>11} {:>9} {:>9} {:>10} {:>5}",
            "mesh",
            "ep",
            "strategy",
            "sp",
            "recompute",
            "batch",
            "memory",
            "step",
            "tokens/s",
            "MFU"
        ));
        let shown = self.candidates.iter().take(self.args.top);
        lines.extend(shown.map(row));
        let Some(best) = self.candidates.first() else {
            return lines;
        };
        lines.push(String::new());
        lines.extend(self.memory(best));
        if !best.fits {
            lines.push(
                "nothing fits: use more devices, adapters (--lora_r), a shorter --seq_length, or a smaller model".to_owned(),
            );
            return lines;
        }
        lines.extend(self.time(best));
        let why = reasons(self.candidates, self.device.memory_bytes);
        lines.extend(why.iter().enumerate().map(|(index, reason)| {
            let label = if index == 0 { "why" } else { "" };
            format!("{label:<10}{reason}")
        }));
        lines.push(format!("run       {}", self.command(best)));
        lines
    }

    fn title(&self) -> String {
        let Self {
            config,
            device,
            args,
            ..
        } = self;
        let dtype = match args.dtype {
            Dtype::Fp32 => "fp32",
            Dtype::Bf16 => "bf16",
        };
        let adapters = match args.lora_r {
            0 => String::new(),
            r => format!(", adapters of rank {r}"),
        };
        format!(
            "{}, {} parameters{adapters}, on {} x {} ({:.0} GB, {} a node): steps of {} rows of {} tokens, {dtype}",
            config.family,
            match self.parameters as f64 {
                many if many >= 1e9 => format!("{:.2} billion", many / 1e9),
                few => format!("{:.1} million", few / 1e6),
            },
            args.devices,
            device.name,
            device.memory_bytes / 1e9,
            device.devices_per_node,
            self.rows,
            self.seq_length,
        )
    }

    fn memory(&self, best: &Candidate) -> Vec<String> {
        let memory = &best.memory;
        vec![
            format!(
                "memory    {} of {:.0} GB a rank: parameters {}, master {}, moments {}, gradients {}, activations {},",
                gb(memory.total()),
                self.device.memory_bytes / 1e9,
                gb(memory.parameters),
                gb(memory.master),
                gb(memory.moments),
                gb(memory.gradients),
                gb(memory.activations),
            ),
            format!(
                "          collectives' buffers {}, logits of a chunk {}, libraries and context {}; {} of the host while it is saved",
                gb(memory.collectives),
                gb(memory.logits),
                gb(memory.fixed),
                gb(memory.saving),
            ),
        ]
    }

    fn time(&self, best: &Candidate) -> Vec<String> {
        let time = &best.time;
        let mesh = best.settings.mesh;
        let per_node = self.device.devices_per_node;
        let link = |ranks: usize| match ranks <= per_node {
            true => "within nodes",
            false => "between nodes",
        };
        let said = |name: &str, link: &str, it: &Conversation| {
            format!(
                "          {name} {:.2} GB a rank {link}: {} exposed, {} beside computing",
                it.bytes / 1e9,
                duration(it.exposed_s),
                duration(it.hidden_s)
            )
        };
        let mut lines = vec![format!(
            "time      {} a step: products {}, attention {}, memory-bound work {}",
            duration(time.total_s()),
            duration(time.products_s),
            duration(time.attention_s),
            duration(time.memory_bound_s)
        )];
        if mesh.tp_size() > 1 {
            lines.push(said("rows say   ", link(mesh.tp_size()), &time.tp));
        }
        if time.dp.bytes > 0.0 {
            lines.push(said("columns say", link(mesh.world_size()), &time.dp));
        }
        if best.expert_parallel > 1 {
            lines.push(said("to experts ", link(best.expert_parallel), &time.ep));
        }
        lines
    }

    /// The command line of a candidate.
    fn command(&self, candidate: &Candidate) -> String {
        let settings = &candidate.settings;
        let (tp, dp) = (settings.mesh.tp_size(), settings.mesh.dp_size());
        let args = self.args;
        let mut words = vec![
            match candidate.cut.zero_stage() {
                Some(stage) => format!("train_deepspeed --zero_stage {stage}"),
                None => "train_fsdp".to_owned(),
            },
            format!("--model_name {}", args.model_name),
            format!("--tp_size {tp} --dp_size {dp} --num_workers {}", tp * dp),
        ];
        if tp * dp > self.device.devices_per_node {
            words.push("--cluster ray".to_owned());
        }
        if !self.device.cpu {
            words.push("--device cuda".to_owned());
        }
        let optional = [
            (
                candidate.expert_parallel > 1,
                format!("--expert_parallel_size {}", candidate.expert_parallel),
            ),
            (
                args.num_layers > 0,
                format!("--num_layers {}", args.num_layers),
            ),
            (
                candidate.cut.zero_stage().is_none() && !candidate.cut.reshard_after_forward,
                "--reshard_after_forward false".to_owned(),
            ),
            (settings.sequence_parallel, "--sequence_parallel".to_owned()),
            (args.dtype == Dtype::Fp32, "--dtype fp32".to_owned()),
            (args.lora_r > 0, format!("--lora_r {}", args.lora_r)),
            (
                args.lora_r > 0 && args.lora_target_modules != "all-linear",
                format!("--lora_target_modules {}", args.lora_target_modules),
            ),
        ];
        words.extend(
            optional
                .into_iter()
                .filter(|(is, _)| *is)
                .map(|(_, word)| word),
        );
        words.push(format!(
            "--recompute {} --seq_length {} --batch_size {} --gradient_accumulation_steps {}",
            recompute_name(settings.recompute),
            settings.seq_length,
            settings.batch_size,
            settings.micro_batches
        ));
        words.join(" ")
    }

    /// All candidates.
    pub fn json(&self) -> Value {
        let candidates: Vec<Value> = self
            .candidates
            .iter()
            .map(|it| self.candidate(it))
            .collect();
        json!({
            "model": {
                "name": self.args.model_name, "family": self.config.family, "parameters": self.parameters,
                "num_layers": self.config.num_layers,
            },
            "devices": self.args.devices,
            "device": self.device,
            "seq_length": self.seq_length,
            "rows_per_step": self.rows,
            "candidates": candidates,
            "reasons": reasons(self.candidates, self.device.memory_bytes),
            "operators": self.operators,
            "scale": self.scale,
        })
    }

    fn candidate(&self, it: &Candidate) -> Value {
        let settings = &it.settings;
        json!({
            "strategy": match it.cut.zero_stage() { Some(_) => "deepspeed", None => "fsdp" },
            "zero_stage": it.cut.zero_stage(),
            "reshard_after_forward": it.cut.reshard_after_forward,
            "tp_size": settings.mesh.tp_size(),
            "dp_size": settings.mesh.dp_size(),
            "expert_parallel_size": it.expert_parallel,
            "sequence_parallel": settings.sequence_parallel,
            "recompute": recompute_name(settings.recompute),
            "batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.micro_batches,
            "fits": it.fits,
            "memory_bytes": it.memory,
            "total_memory_bytes": it.memory.total(),
            "step_s": it.time.total_s(),
            "step": it.time,
            "tokens_per_s": it.tokens_per_s,
            "mfu": it.mfu,
            "command": self.command(it),
        })
    }
}

fn row(it: &Candidate) -> String {
    let settings = &it.settings;
    let mesh = format!(
        "tp {} x dp {}",
        settings.mesh.tp_size(),
        settings.mesh.dp_size()
    );
    format!(
        "  {mesh:<15} {:<3} {:<10} {:<3} {:<9} {:>11} {:>9} {:>9} {:>10} {:>5.3}",
        it.expert_parallel,
        strategy(it),
        if settings.sequence_parallel {
            "yes"
        } else {
            "no"
        },
        recompute_name(settings.recompute),
        format!("{} x {}", settings.batch_size, settings.micro_batches),
        gb(it.memory.total()),
        duration(it.time.total_s()),
        Quantity::Count.show(it.tokens_per_s),
        it.mfu,
    )
}
