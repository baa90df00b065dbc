//! `tandem eval`: loss and perplexity of a model on a dataset.

use std::ffi::OsString;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use tandem_launch::client::ControlClient;
use tandem_launch::env::WorkerEnv;
use tandem_launch::{exit_code, say};
use tandem_mesh::DeviceMesh;
use tandem_run::environment::Environment;
use tandem_run::evaluation::{self, EvalJob, EvalModel};
use tandem_run::failure::{Failure, Outcome};
use tandem_run::spec::{EngineSpec, EvalChoice, HEAD_CHUNK_ROWS};
use tandem_tensor::DeviceChoice;

use crate::checkpoint_location::Located;
use crate::flags::choices::Dtype;
use crate::flags::data::DataFlags;
use crate::replay::StrategyChoice;

/// Measure loss and perplexity of a model, or of a checkpoint, on a dataset.
#[derive(Debug, Clone, Args)]
#[command(
    rename_all = "snake_case",
    mut_arg("dataset_split", |arg| arg
        .default_value("validation,test,train")
        .help("The dataset's split; of several with commas between them, the first that there is")
        .long_help(None))
)]
pub struct EvalArgs {
    /// A Hugging Face model: hub name, or folder with config.json, tokenizer.json and *.safetensors. Beside a checkpoint of
    /// adapters, the model that they were trained on, where it is not where it was.
    #[arg(long, required_unless_present = "checkpoint")]
    pub model_name: Option<String>,

    /// A checkpoint's folder or URL; of an experiment, its newest checkpoint.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<String>,

    /// Ranks that share one copy of the model (a row of the mesh).
    #[arg(long, default_value_t = 1, help_heading = "Mesh")]
    pub tp_size: usize,

    /// Copies of the model that see different rows.
    #[arg(long, default_value_t = 1, help_heading = "Mesh")]
    pub dp_size: usize,

    /// Ranks over which the experts of a mixture are spread, whole; with 1, each is cut over the row.
    #[arg(long, default_value_t = 1, help_heading = "Mesh")]
    pub expert_parallel_size: usize,

    /// How the model is cut.
    #[arg(long, value_enum, default_value_t = StrategyChoice::Fsdp, help_heading = "Mesh")]
    pub strategy: StrategyChoice,

    /// Where to compute.
    #[arg(long, default_value = "auto", value_parser = |text: &str| text.parse::<DeviceChoice>(), help_heading = "Mesh")]
    pub device: DeviceChoice,

    /// Kind of parameters and activations.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,

    /// Rows per worker in one forward. The result does not depend on it.
    #[arg(long, default_value_t = 1, help_heading = "Batch")]
    pub batch_size: usize,

    /// Use the rows of the first N batches of --batch_size only; 0: all. How many ranks share them does not matter.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Batch")]
    pub max_batches: u64,

    #[command(flatten)]
    pub data: DataFlags,

    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
}

impl EvalArgs {
    fn job(&self, environment: &Environment) -> Outcome<EvalJob> {
        let mesh = DeviceMesh::new(self.tp_size, self.dp_size)
            .and_then(|mesh| {
                mesh.check_expert_groups(self.expert_parallel_size)?;
                Ok(mesh)
            })
            .map_err(|error| Failure::usage(error.to_string()))?;
        if self.batch_size == 0 || self.data.seq_length < 2 {
            return Err(Failure::usage(
                "--batch_size must be at least 1, and --seq_length at least 2",
            ));
        }
        let model = match (&self.model_name, &self.checkpoint) {
            (Some(name), None) => EvalModel::named(name)?,
            (base, Some(place)) => {
                let located = Located::open(place, environment)?;
                let files = located.model_files()?;
                EvalModel::saved(located.reader, &files, base.as_deref())?
            }
            (None, None) => {
                return Err(Failure::usage("pass --model_name or --checkpoint"));
            }
        };
        let data = self.data.to_spec();
        let mut datasets = data.datasets().into_iter();
        let (Some(dataset), None) = (datasets.next(), datasets.next()) else {
            return Err(Failure::usage(
                "tandem eval takes one --dataset_name: losses of several are several numbers",
            ));
        };
        let splits = data.dataset_split.split(',');
        Ok(EvalJob {
            model,
            engine: EngineSpec {
                mesh,
                expert_parallel_size: self.expert_parallel_size,
                strategy: self.strategy.spec(1, true),
                device: self.device,
                dtype: self.dtype.into(),
                sequence_parallel: false,
                activation_checkpointing: false,
                recompute: None,
                comm_timeout_s: 300,
                head_chunk_rows: HEAD_CHUNK_ROWS,
            },
            choice: EvalChoice {
                dataset: dataset.name,
                splits: splits.map(|split| split.trim().to_owned()).collect(),
                data,
                is_named: true,
            },
            batch_size: self.batch_size,
            max_batches: self.max_batches,
        })
    }
}

/// Starts workers and prints what they measured. Returns the exit code.
pub fn run(args: &EvalArgs, line: &[OsString], environment: &Environment) -> Outcome<i32> {
    let job = args.job(environment)?;
    let bar = ProgressBar::new(0);
    let result = evaluation::run(&job, line, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    match result? {
        Ok(result) => print(args, &result).map(|()| exit_code::OK),
        Err(code) => Ok(code),
    }
}

/// What one worker does. Without a process that waits for it, rank 0 prints.
pub fn run_worker(
    args: &EvalArgs,
    env: &WorkerEnv,
    control: &ControlClient,
    environment: &Environment,
) -> Outcome<()> {
    let job = args.job(environment)?;
    match evaluation::work(&job, env, control, environment)? {
        Some(result) => print(args, &result),
        None => Ok(()),
    }
}

fn print(args: &EvalArgs, result: &Value) -> Outcome<()> {
    if args.json {
        say!("{result}")?;
        return Ok(());
    }
    let number = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
    let (tokens, seconds) = (number("eval_tokens"), number("eval_seconds"));
    if let Some(data) = result["data"].as_str() {
        say!("data        {data}")?;
    }
    say!("eval_loss   {:.6}", number("eval_loss"))?;
    say!("perplexity  {:.4}", number("perplexity"))?;
    say!("eval_tokens {tokens}, in {seconds:.1} s")?;
    Ok(())
}
