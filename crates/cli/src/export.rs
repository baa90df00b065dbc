//! `tandem export`: a checkpoint as a Hugging Face model folder.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tandem_checkpoint::{DEFAULT_SHARD_BYTES, FloatKind, export};
use tandem_launch::say;
use tandem_run::adapter::SavedAdapter;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};

mod adapter;

use crate::checkpoint_location::Located;
use crate::flags::choices::Dtype;

/// Write a checkpoint as a Hugging Face model folder: config, tokenizer and safetensors. One of adapters (LoRA) becomes a folder
/// as PEFT writes it, or with --merge a whole model.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ExportArgs {
    /// The checkpoint's folder or URL; of an experiment, its newest checkpoint.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: String,

    /// The folder to make; it must be absent or empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,

    /// Kind of the weights that are written [default: bf16, and fp32 for adapters].
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// Of a checkpoint of adapters (LoRA): write the whole model with the adapters added to its weights, instead of the
    /// adapters as PEFT keeps them.
    #[arg(long)]
    pub merge: bool,

    /// Of a checkpoint of adapters: the model that they were trained on, where it is not where it was.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
}

/// Writes the folder. Returns the exit code.
pub fn run(args: &ExportArgs, environment: &Environment) -> Outcome<i32> {
    let located = Located::open(&args.checkpoint, environment)?;
    let files = located.model_files()?;
    let reader = &located.reader;
    if !files.iter().any(|file| file.name == "config.json") {
        return Err(Failure::other(format!(
            "{} lies beside no folder model/ with a config.json; export a checkpoint where its run has written it",
            reader.location()
        )));
    }
    let adapter = SavedAdapter::of(reader.state())?;
    let default = match (&adapter, args.merge) {
        (Some(_), false) => Dtype::Fp32,
        _ => Dtype::Bf16,
    };
    let kind = match args.dtype.unwrap_or(default) {
        Dtype::Fp32 => FloatKind::F32,
        Dtype::Bf16 => FloatKind::Bf16,
    };
    if let Some(adapter) = adapter {
        return match args.merge {
            true => adapter::write_merged(args, &adapter, reader, &files, kind),
            false => adapter::write_peft(args, &adapter, reader, kind),
        };
    }
    if args.merge {
        return Err(Failure::usage(format!(
            "{} holds a whole model and no adapters; leave --merge out",
            reader.location()
        )));
    }
    let tensors = reader.manifest().tensors.len();
    let style = ProgressStyle::with_template("{pos}/{len} tensors [{wide_bar}] {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(tensors as u64).with_style(style);
    let result = export(
        reader,
        &files,
        &args.output,
        kind,
        DEFAULT_SHARD_BYTES,
        |name| {
            bar.set_message(name.to_owned());
            bar.inc(1);
        },
    );
    bar.finish_and_clear();
    result.map_err(Failure::other)?;
    say!(
        "{}: {tensors} tensors of {}, after step {}",
        args.output.display(),
        reader.location(),
        reader.state().global_step
    )?;
    Ok(0)
}
