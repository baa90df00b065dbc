//! `tandem init`: a commented file of flags for a model and a dataset, as a place to begin.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser};
use tandem_launch::{exit_code, say, tell};
use tandem_run::facts::{Facts, dataset_kind};
use tandem_run::failure::{Failure, Outcome};
use tandem_tensor::memory;
use tandem_tensor::torch::{self, Surroundings, cuda};

use crate::flags::train::FsdpFlags;

/// Tokens of a row, unless the model is made for fewer.
const SEQ_LENGTH: usize = 2048;

/// Cores that a worker on the CPU makes good use of.
const CORES: usize = 8;

/// Write a commented file of flags for a model and a dataset, which `train_fsdp --config` and `train_deepspeed --config` take.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct InitArgs {
    /// A model on the hub, or its folder.
    #[arg(long)]
    pub model_name: String,

    /// A dataset on the hub, a folder, a file, or a list of files.
    #[arg(long)]
    pub dataset_name: String,

    /// The file to make (.yaml); without it, standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes the file. Returns the exit code.
pub fn run(args: &InitArgs) -> Outcome<i32> {
    if let Some(path) = &args.output {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if !matches!(ending, Some("yaml" | "yml")) {
            return Err(Failure::usage(format!(
                "--output {}: it must end with .yaml",
                path.display()
            )));
        }
        if path.exists() {
            return Err(Failure::usage(format!(
                "--output {} is there already; remove it, or name another file",
                path.display()
            )));
        }
    }
    let machine = Machine::here();
    let plan = Plan::for_machine(args, &machine)?;
    let kind = dataset_kind(&plan.spec(args)?)?;
    let text = plan.text(args, &machine, kind);
    let Some(path) = &args.output else {
        say!("{}", text.trim_end())?;
        return Ok(exit_code::OK);
    };
    let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Failure::other(format!("--output {}: {error}", path.display())))?;
    tell!(
        "{path} is for you to look through; then: train_fsdp --config {path}",
        path = path.display()
    );
    Ok(exit_code::OK)
}

/// What there is to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    /// GPUs; 0 is a CPU.
    gpus: usize,
    /// Cores for this process.
    cores: usize,
    /// Free bytes of each GPU, or of the machine.
    memory: u64,
}

impl Machine {
    fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let of_gpus = || {
            let torch = torch::open(&Surroundings::read()).ok()?;
            if !torch.has_cuda_part() {
                return None;
            }
            let gpus = cuda::device_count(torch).ok().filter(|count| *count > 0)?;
            let (free, _) = cuda::memory(0)?;
            Some((gpus, free))
        };
        match of_gpus() {
            Some((gpus, memory)) => Self {
                gpus,
                cores,
                memory,
            },
            None => Self {
                gpus: 0,
                cores,
                memory: memory::available_bytes().unwrap_or(u64::MAX),
            },
        }
    }

    /// Workers that compute side by side.
    fn workers(&self) -> usize {
        match self.gpus {
            0 => largest_power_of_two(self.cores / CORES),
            gpus => largest_power_of_two(gpus),
        }
    }

    /// What one of so many workers may need.
    fn share(&self, workers: usize) -> u64 {
        let share = match self.gpus {
            0 => self.memory / workers as u64,
            _ => self.memory,
        };
        // What else is there takes some, and estimates are estimates.
        share / 10 * 9
    }
}

fn largest_power_of_two(most: usize) -> usize {
    1 << most.max(1).ilog2()
}

/// What is proposed.
#[derive(Debug, Clone)]
struct Plan {
    tp_size: usize,
    dp_size: usize,
    dtype: &'static str,
    recompute: &'static str,
    seq_length: usize,
    facts: Facts,
    fits: bool,
}

impl Plan {
    /// The first that fits, of those that are ever slower.
    fn for_machine(args: &InitArgs, machine: &Machine) -> Outcome<Self> {
        let mut plan = Self {
            tp_size: 1,
            dp_size: 1,
            dtype: "bf16",
            recompute: "light",
            seq_length: 2,
            facts: Facts::of(&spec(args, (1, 1), "bf16", "light", 2)?, &mut ())?,
            fits: false,
        };
        plan.seq_length = plan.facts.max_positions.min(SEQ_LENGTH);
        // A CPU computes in fp32 about as fast, and exactly.
        let dtypes: &[&str] = match machine.gpus {
            0 => &["fp32", "bf16"],
            _ => &["bf16"],
        };
        let most = machine.workers();
        for workers in [most, 1] {
            for tp_size in (0..=most.ilog2()).map(|power| 1 << power) {
                for (recompute, dtype) in ["light", "full"]
                    .into_iter()
                    .flat_map(|how| dtypes.iter().map(move |dtype| (how, *dtype)))
                {
                    // More than one worker to a GPU's share of a row makes no sense, and a row is no wider than all.
                    if tp_size > workers {
                        continue;
                    }
                    plan.tp_size = tp_size;
                    plan.dp_size = workers / tp_size;
                    (plan.recompute, plan.dtype) = (recompute, dtype);
                    // A row may have more ranks than the model can be cut for.
                    let Ok(facts) = Facts::of(&plan.spec(args)?, &mut ()) else {
                        continue;
                    };
                    plan.facts = facts;
                    if plan.facts.memory <= machine.share(workers) {
                        plan.fits = true;
                        return Ok(plan);
                    }
                }
            }
        }
        Ok(plan)
    }

    fn spec(&self, args: &InitArgs) -> Outcome<tandem_run::spec::RunSpec> {
        let mesh = (self.tp_size, self.dp_size);
        spec(args, mesh, self.dtype, self.recompute, self.seq_length)
    }

    fn text(&self, args: &InitArgs, machine: &Machine, kind: Option<&str>) -> String {
        let Facts {
            family,
            num_layers,
            hidden_size,
            parameters,
            max_positions,
            memory,
            has_weights,
        } = &self.facts;
        let (tp, dp) = (self.tp_size, self.dp_size);
        let millions = *parameters as f64 / 1e6;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let place = match machine.gpus {
            0 => format!(
                "{} cores with {:.1} GB free",
                machine.cores,
                gb(machine.memory)
            ),
            gpus => format!(
                "{gpus} GPUs with {:.1} GB free on the first",
                gb(machine.memory)
            ),
        };
        let init = if *has_weights { "pretrained" } else { "random" };
        let why_init = match has_weights {
            true => "begin with the weights of the model; random: with new ones",
            false => "there are no weights in the folder, so begin with new ones",
        };
        let fits = match self.fits {
            true => format!("each worker needs about {:.1} GB", gb(*memory)),
            false => format!(
                "each worker needs about {:.1} GB, WHICH IS NOT HERE: use more GPUs, a shorter seq_length, or a smaller model",
                gb(*memory)
            ),
        };
        let rows = match kind {
            None => "looked at when it is downloaded".to_owned(),
            Some("text") => "text".to_owned(),
            Some("messages") => {
                "conversations; assistant_only_loss: true trains the answers alone".to_owned()
            }
            Some(_) => "prompts with completions; the completions are trained".to_owned(),
        };
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\
# Flags of a run, for `train_fsdp --config THIS_FILE` or `train_deepspeed --config THIS_FILE`. Flags on the command line win.
# `tandem data preview` shows the data as the model sees them; `--check_flags` looks whether the run could begin; `--help` has
# all flags.

# The model: {family}, {num_layers} layers, hidden size {hidden_size}, {millions:.1} million parameters.
model_name: {model}
# {why_init}.
init: {init}

# The data: {rows}.
dataset_name: {data}
# Tokens of a row; the model is made for {max_positions} at most.
seq_length: {seq}

# The mesh, for {place}: rows of tp_size workers share a model, and dp_size rows see different data; num_workers is
# tp_size x dp_size. Here {fits}.
tp_size: {tp}
dp_size: {dp}
num_workers: {workers}

# bf16: less memory, and fast on GPUs; fp32: exact.
dtype: {dtype}
# What backward computes again to save memory: none, light, or full (whole layers).
recompute: {recompute}

# A step is batch_size x gradient_accumulation_steps x dp_size rows.
batch_size: 1
gradient_accumulation_steps: {accumulation}
num_epochs: 3

# The learning rate rises for a part of all steps, then falls along a cosine to 0.
learning_rate: 1e-5
lr_scheduler: cosine
warmup_ratio: 0.03
weight_decay: 0.01
max_grad_norm: 1.0

# Checkpoints and logs: {{storage_path}}/{{experiment_name}}. A checkpoint takes 12 bytes a parameter, here {checkpoint:.2} GB.
storage_path: ./runs
save_steps: 500
num_to_keep: 2
seed: 0
",
            model = quoted(&args.model_name),
            data = quoted(&args.dataset_name),
            seq = self.seq_length,
            workers = tp * dp,
            dtype = self.dtype,
            recompute = self.recompute,
            accumulation = (8 / dp).max(1),
            checkpoint = gb(*parameters as u64 * 12),
        );
        text
    }
}

/// The run that these flags make, for its model alone.
fn spec(
    args: &InitArgs,
    (tp_size, dp_size): (usize, usize),
    dtype: &str,
    recompute: &str,
    seq_length: usize,
) -> Outcome<tandem_run::spec::RunSpec> {
    let line = [
        "train_fsdp".to_owned(),
        format!("--model_name={}", args.model_name),
        format!("--dataset_name={}", args.dataset_name),
        format!("--tp_size={tp_size}"),
        format!("--dp_size={dp_size}"),
        format!("--num_workers={}", tp_size * dp_size),
        format!("--dtype={dtype}"),
        format!("--recompute={recompute}"),
        format!("--seq_length={seq_length}"),
        // It is the size of the weights that counts.
        "--init=random".to_owned(),
    ];
    let flags = FsdpFlags::try_parse_from(line);
    flags
        .map_err(|error| Failure::usage(error.to_string()))?
        .into_spec()
}

/// A string as YAML has it in any case.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use clap::CommandFactory;
    use tandem_run::environment::Environment;

    use super::*;
    use crate::command_line::complete;
    use crate::flags::train::DeepSpeedFlags;

    fn args(model: &Path) -> InitArgs {
        InitArgs {
            model_name: model.to_str().unwrap().to_owned(),
            dataset_name: "some/data: # set".to_owned(),
            output: None,
        }
    }

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden/qwen2_tied")
    }

    #[test]
    fn what_is_written_is_a_command_line() {
        let machine = Machine {
            gpus: 0,
            cores: 16,
            memory: 64_000_000_000,
        };
        let args = args(&golden());
        let plan = Plan::for_machine(&args, &machine).unwrap();
        assert!(plan.fits);
        assert_eq!((plan.tp_size, plan.dp_size, plan.dtype), (1, 2, "fp32"));
        assert_eq!(
            plan.seq_length, plan.facts.max_positions,
            "it is made for no more"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        std::fs::write(&path, plan.text(&args, &machine, Some("messages"))).unwrap();
        let line: [OsString; 2] = ["--config".into(), path.into()];
        let environment = Environment::read();
        let fsdp = complete(&FsdpFlags::command(), &line, &environment).unwrap();
        let name = || std::iter::once(OsString::from("train"));
        let spec = FsdpFlags::try_parse_from(name().chain(fsdp.args))
            .unwrap()
            .into_spec()
            .unwrap();
        assert_eq!(spec.identity.model_name, args.model_name);
        assert_eq!(
            spec.identity.selection.data.dataset_name,
            [args.dataset_name.as_str()]
        );
        assert_eq!(spec.output.experiment.storage_path, "./runs");
        let other = complete(&DeepSpeedFlags::command(), &line, &environment).unwrap();
        assert!(
            DeepSpeedFlags::try_parse_from(name().chain(other.args))
                .unwrap()
                .into_spec()
                .is_ok()
        );
    }

    #[test]
    fn memory_decides_the_mesh() {
        let args = args(&golden());
        let plan = |gpus, memory| {
            let machine = Machine {
                gpus,
                cores: 4,
                memory,
            };
            Plan::for_machine(&args, &machine).unwrap()
        };
        let large = plan(4, 80_000_000_000);
        assert_eq!((large.tp_size, large.dp_size, large.dtype), (1, 4, "bf16"));
        assert_eq!(large.recompute, "light");
        let small = plan(4, 1);
        assert!(!small.fits);
        let machine = Machine {
            gpus: 4,
            cores: 4,
            memory: 1,
        };
        let text = small.text(&args, &machine, None);
        assert!(text.contains("WHICH IS NOT HERE"), "{text}");
    }
}
