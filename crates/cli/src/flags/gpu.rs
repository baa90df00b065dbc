//! The flags of `tandem doctor --gpu`.

use std::path::PathBuf;

use clap::Args;
use tandem_tensor::DeviceChoice;

use crate::flags::choices::TransportChoice;

/// What to check, and where to write what was found.
#[derive(Debug, Clone, Args)]
pub struct GpuFlags {
    /// Check all that a GPU does: operations, training, collectives, a kill, memory, speed. Takes up to eight minutes, needs no
    /// network, and writes gpu.json and gpu.md (docs/gpu.md).
    #[arg(long)]
    pub gpu: bool,

    /// With --gpu: the device to check; cpu checks the checks.
    #[arg(long, default_value = "cuda", value_parser = named_device, requires = "gpu")]
    pub device: DeviceChoice,

    /// With --gpu: the folder for gpu.json and gpu.md.
    #[arg(long, default_value = ".", value_name = "DIR", requires = "gpu")]
    pub output: PathBuf,

    /// With --gpu: small sizes, for a first look.
    #[arg(long, requires = "gpu")]
    pub quick: bool,

    /// With --gpu: only stages with this in their name; may be repeated.
    #[arg(long, value_name = "NAME", requires = "gpu")]
    pub only: Vec<String>,

    /// With --gpu: seconds for all stages together.
    #[arg(long, default_value_t = 480, value_name = "SECONDS", requires = "gpu")]
    pub limit: u64,

    /// With --gpu: a Python with torch, for the same step in PyTorch.
    #[arg(long, default_value = "python3", value_name = "FILE", requires = "gpu")]
    pub python: PathBuf,

    /// The stage that this process is, and the folder of what was found before it.
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "DIR"], requires = "gpu")]
    pub stage: Vec<PathBuf>,

    /// How this worker talks to the others of its stage.
    #[arg(long, hide = true, value_enum, default_value_t = TransportChoice::Auto, requires = "gpu")]
    pub transport: TransportChoice,
}

/// What is checked is not left to chance.
fn named_device(text: &str) -> Result<DeviceChoice, String> {
    match text.parse()? {
        DeviceChoice::Auto => Err("name the device: cuda, or cpu to check the checks".to_owned()),
        named => Ok(named),
    }
}
