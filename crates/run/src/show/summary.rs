//! The lines that a run begins with: mesh, plan, sizes.

use tandem_data::Rows;
use tandem_mesh::DeviceMesh;
use tandem_parallel::ShardingLevel;

use crate::libtorch::Libtorch;
use crate::prepare::{Prepared, PreparedEvaluation};
use crate::spec::{Checkpoints, Compute, Evaluation, RunSpec, Strategy, Training};

/// Lines for the reader.
pub fn lines(
    spec: &RunSpec,
    prepared: &Prepared,
    run_dir: &str,
    libtorch: Option<Libtorch>,
) -> Vec<String> {
    let Compute {
        engine, training, ..
    } = &spec.compute;
    let mesh = engine.mesh;
    let config = &prepared.model.config;
    let mut lines = vec![
        format!("run       {run_dir}"),
        format!(
            "model     {}, {} layers, hidden {}, {} heads ({} key/value), vocabulary {}{}",
            config.family,
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.vocab_size,
            if config.tie_word_embeddings {
                ", tied head"
            } else {
                ""
            },
        ),
    ];
    lines.extend(spec.notes.iter().cloned());
    let notes = prepared
        .model
        .pretrained
        .iter()
        .flat_map(|found| &found.notes);
    lines.extend(notes.map(|note| format!("weights   {note}")));
    lines.extend([format!(
        "mesh      {} workers = tp {} x dp {}; rows {}",
        mesh.world_size(),
        mesh.tp_size(),
        mesh.dp_size(),
        rows(mesh),
    )]);
    let size = engine.expert_parallel_size;
    if size > 1 {
        lines.push(format!(
            "experts   each whole on one of {size} neighbouring ranks; {} ranks have the same ones",
            mesh.world_size() / size
        ));
    }
    lines.extend([
        format!(
            "sharding  {}",
            sharding(&engine.strategy, prepared.model.strategy.level)
        ),
        "plan      (tensor parallel)".to_owned(),
    ]);
    lines.extend(
        prepared
            .model
            .strategy
            .plan
            .rows(&prepared.model.tree)
            .into_iter()
            .map(|(path, kind, style)| format!("  {path:<44} {kind:<28} {style}")),
    );
    let total = prepared.model.tree.numel();
    let per_row: usize = prepared.model.layouts.iter().map(|unit| unit.numel).sum();
    lines.push(format!(
        "sizes     {} parameters, {} per tensor parallel rank",
        millions(total),
        millions(per_row)
    ));
    if let Some(adapter) = &prepared.model.adapter {
        let trained = adapter.tree.numel();
        let all = total + trained;
        let percent = 100.0 * trained as f64 / all as f64;
        lines.push(format!(
            "adapters  rank {}, scale {}; trainable params: {trained} || all params: {all} || trainable%: {percent:.4}",
            adapter.lora.r,
            adapter.lora.scale()
        ));
    }
    let memory = &prepared.model.memory;
    lines.push(format!(
        "memory    about {} MB per worker: parameters {}, master {}, moments {}, gradients {}, activations {}, collectives {}, logits {}, \
         fixed {}; {} more while a checkpoint is saved",
        mb(memory.total()),
        mb(memory.parameters),
        mb(memory.master),
        mb(memory.moments),
        mb(memory.gradients),
        mb(memory.activations),
        mb(memory.collectives),
        mb(memory.logits),
        mb(memory.fixed),
        mb(memory.saving),
    ));
    let rows_per_step = training.batch_size * training.gradient_accumulation_steps * mesh.dp_size();
    lines.push(format!(
        "data      {} rows of {} tokens; {rows_per_step} rows a step, {} steps; {}",
        prepared.dataset.len(),
        spec.identity.selection.data.seq_length,
        prepared.total_steps,
        end(training, prepared),
    ));
    let examples = prepared.examples.iter();
    lines.extend(examples.map(|what| format!("examples  {what}")));
    lines.extend(
        prepared
            .left_out
            .iter()
            .map(|what| format!("left out  {what}")),
    );
    if let Some(own) = &prepared.evaluation {
        lines.extend(evaluation(&spec.compute.evaluation, own));
    }
    lines.push(format!("saving    {}", saving(&spec.checkpoints)));
    // On a cluster, that is each node's own matter.
    let Some(libtorch) = libtorch else {
        return lines;
    };
    lines.push(format!("libtorch  {}", libtorch.describe()));
    lines.extend(
        libtorch
            .notes()
            .into_iter()
            .map(|note| format!("note      {note}")),
    );
    lines
}

/// Which of the two limits ends the run.
fn end(training: &Training, prepared: &Prepared) -> String {
    let of_epochs = prepared.sampler.total_steps();
    let per_epoch = prepared.sampler.steps_per_epoch().max(1);
    let (steps, epochs) = (training.max_steps, training.num_epochs);
    if steps > 0 && steps < of_epochs {
        let epoch = steps.div_ceil(per_epoch);
        let of = match epochs {
            0 => String::new(),
            epochs => format!(" of {epochs}"),
        };
        return format!("max_steps ends the run, in epoch {epoch}{of}");
    }
    let before = match steps {
        0 => String::new(),
        steps => format!(", before max_steps {steps}"),
    };
    format!("the end of epoch {epochs} ends the run{before}")
}

/// On what a run is evaluated, and when.
fn evaluation(own: &Evaluation, prepared: &PreparedEvaluation) -> Vec<String> {
    let data = &prepared.data;
    let used = match prepared.set.rows_used() {
        used if used < data.dataset.len() => format!(", of which the first {used} are used"),
        _ => String::new(),
    };
    let start = if own.eval_on_start {
        "before the first step, "
    } else {
        ""
    };
    let every = match own.eval_steps {
        0 => String::new(),
        every => format!("every {every} steps and "),
    };
    let mut lines = vec![format!(
        "eval      {}{used}; {start}{every}at the end of every epoch and of the run",
        data.described
    )];
    if own.early_stopping_patience > 0 {
        lines.push(format!(
            "early end after {} evaluations without a lower eval_loss",
            own.early_stopping_patience
        ));
    }
    let left_out = data.left_out.iter();
    lines.extend(left_out.map(|what| format!("left out  of the evaluation: {what}")));
    lines
}

fn saving(checkpoints: &Checkpoints) -> String {
    let when = match checkpoints.saving.save_steps {
        0 => "at the end of every epoch".to_owned(),
        every => format!("every {every} steps and at the end of every epoch"),
    };
    let kept = match checkpoints.kept.num_to_keep {
        None => "all are kept".to_owned(),
        Some(count) => format!("{count} are kept"),
    };
    let how = if checkpoints.saving.async_save {
        "while training goes on"
    } else {
        "while training waits"
    };
    format!("{when}, {how}; {kept}")
}

/// `{0,1} {2,3}`, shortened where there are many.
fn rows(mesh: DeviceMesh) -> String {
    let row = |dp_rank: usize| {
        let ranks: Vec<String> = mesh
            .tp_group(dp_rank * mesh.tp_size())
            .iter()
            .map(ToString::to_string)
            .collect();
        format!("{{{}}}", ranks.join(","))
    };
    let shown = mesh.dp_size().min(4);
    let mut text: Vec<String> = (0..shown).map(row).collect();
    if mesh.dp_size() > shown {
        text.push("...".to_owned());
    }
    text.join(" ")
}

fn sharding(strategy: &Strategy, level: ShardingLevel) -> String {
    let name = match strategy {
        Strategy::DeepSpeed(own) => format!("DeepSpeed, ZeRO stage {}", own.zero_stage),
        Strategy::Fsdp(own) if own.autocast => "FSDP2, autocast".to_owned(),
        Strategy::Fsdp(_) => "FSDP2".to_owned(),
    };
    let what = match level {
        ShardingLevel::Replicated => "nothing",
        ShardingLevel::Optimizer => "optimizer states",
        ShardingLevel::Gradients => "optimizer states and gradients",
        ShardingLevel::Parameters => "optimizer states, gradients and parameters",
    };
    format!("{name}: {what} cut over the data parallel group")
}

fn millions(count: usize) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

fn mb(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / 1e6)
}
