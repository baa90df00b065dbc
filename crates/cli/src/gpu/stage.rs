//! What a stage is, and what it is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_run::failure::{Failure, Outcome};
use tandem_run::libtorch::Libtorch;
use tandem_tensor::torch::{self, Surroundings, cuda};
use tandem_tensor::{Device, DeviceChoice};

use super::finding::Finding;
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
    /// GPUs of this machine, or ranks that a processor is checked with.
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
        Libtorch::ready(flags.device, 1)?;
        let device = flags.device.select(0).map_err(Failure::other)?;
        let devices = match device {
            Device::Cpu => 2,
            Device::Cuda(_) => torch::open(&Surroundings::read())
                .and_then(cuda::device_count)
                .map_err(Failure::other)?,
        };
        Ok(Self {
            device,
            device_name: match flags.device {
                DeviceChoice::Cpu => "cpu",
                _ => "cuda",
            },
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

    /// Whether so many ranks can talk: each with a GPU of its own, or by way of the host's memory.
    pub(super) fn can_run(&self, ranks: usize) -> Result<(), String> {
        match ranks <= self.devices || RANKS_SHARE_A_DEVICE {
            true => Ok(()),
            false => Err(format!(
                "{ranks} ranks want {ranks} devices, and here is {}; this build has no transport for ranks that share one",
                self.devices
            )),
        }
    }
}

/// Whether collectives can go by way of the host's memory, so that ranks can share a GPU.
const RANKS_SHARE_A_DEVICE: bool = false;
