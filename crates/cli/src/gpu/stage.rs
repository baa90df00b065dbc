//! What a stage is, and what it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use tandem_comm::Transport;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::libtorch::{Libtorch, workers};
use tandem_tensor::torch::{self, Surroundings, cuda};
use tandem_tensor::{Device, DeviceChoice};

use super::finding::Finding;
use crate::flags::choices::TransportChoice;
use crate::flags::gpu::GpuFlags;

/// One thing to check, in a process of its own.
pub(super) struct Stage {
    /// For people and for `--only`.
    pub name: &'static str,
    /// When it is killed.
    pub limit: Duration,
    /// What it does; an error is a failure.
    pub run: fn(&Context) -> Outcome<Finding>,
}

/// What a stage works with.
pub(super) struct Context {
    /// The device that is checked.
    pub device: Device,
    /// As flags name it.
    pub device_name: &'static str,
    /// GPUs of this machine; a processor is one device, so that its ranks share it.
    pub devices: usize,
    /// Small sizes.
    pub quick: bool,
    /// A Python that may have torch.
    pub python: PathBuf,
    /// What earlier stages have found.
    pub findings: PathBuf,
    /// This stage's own place.
    pub scratch: PathBuf,
    /// The flags as they were given.
    pub flags: GpuFlags,
}

impl Context {
    pub(super) fn new(flags: &GpuFlags, findings: &Path, stage: &Stage) -> Outcome<Self> {
        let scratch = findings.join(format!("{}.scratch", stage.name));
        std::fs::create_dir_all(&scratch).map_err(Failure::other)?;
        let alone = workers(1, Transport::Auto);
        Libtorch::ready(flags.device, alone)?;
        let device = flags.device.select(0, alone).map_err(Failure::other)?;
        let devices = match device {
            Device::Cpu => 1,
            Device::Cuda(_) => torch::open(&Surroundings::read())
                .and_then(cuda::device_count)
                .map_err(Failure::other)?,
        };
        Ok(Self {
            device,
            device_name: device_name(flags.device),
            devices,
            quick: flags.quick,
            python: flags.python.clone(),
            findings: findings.into(),
            scratch,
            flags: flags.clone(),
        })
    }

    /// A number that an earlier stage has found.
    pub(super) fn found(&self, stage: &str, number: &str) -> Option<f64> {
        Finding::read(&self.findings, stage).ok()?.value(number)
    }

    /// The first size with `--quick`, else the second.
    pub(super) fn sized<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether the device is a GPU.
    pub(super) fn is_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    /// How so many ranks can talk: each with a GPU of its own, or by way of the host's memory.
    pub(super) fn transport(&self, ranks: usize) -> TransportChoice {
        match ranks <= self.devices {
            true => TransportChoice::Auto,
            false => TransportChoice::Staged,
        }
    }
}

/// As flags name it; none is left to chance.
pub(super) fn device_name(device: DeviceChoice) -> &'static str {
    match device {
        DeviceChoice::Cpu => "cpu",
        DeviceChoice::Auto | DeviceChoice::Cuda => "cuda",
    }
}

/// As flags name it.
pub(super) fn transport_name(transport: TransportChoice) -> String {
    let value = transport.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}
