//! Which device computes.

use std::str::FromStr;

use tandem_torch::{Device, Surroundings, TorchError};

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// CUDA when this machine has it, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// One CUDA device per local rank.
    Cuda,
}

/// Why the wanted device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no libtorch, or it has no part for CUDA.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// The library is there, a device is not.
    #[error(
        "--device cuda, but CUDA finds no device here; check the driver (nvidia-smi) or pass --device cpu"
    )]
    NoCudaDevice,
    /// More ranks on this host than devices.
    #[error(
        "local rank {local_rank} needs CUDA device {local_rank}, but this host shows {devices}; start at most {devices} workers here"
    )]
    TooFewDevices {
        /// The rank on this host.
        local_rank: usize,
        /// Visible devices.
        devices: usize,
    },
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            other => Err(format!("{other:?} is not a device; use auto, cpu or cuda")),
        }
    }
}

impl DeviceChoice {
    /// The device of the rank `local_rank` of this host.
    ///
    /// # Errors
    /// [`DeviceError`] when CUDA is asked for and cannot be had; `Auto` never fails.
    pub fn select(self, local_rank: usize) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => cuda_device(local_rank),
            Self::Auto => Ok(cuda_device(local_rank).unwrap_or(Device::Cpu)),
        }
    }
}

/// Threads that libtorch and this crate's kernels use inside one operation. Call it once, before anything computes.
pub fn set_threads(threads: usize) {
    let threads = threads.max(1);
    tandem_torch::set_num_threads(threads);
    // Fails only when the pool exists already, which then keeps the size it has.
    let _already_there = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("kernel-{index}"))
        .build_global();
}

/// Waits until a device has done all that it was given: on CUDA an operation returns when it is launched, on the CPU when
/// it is done.
pub fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tandem_torch::cuda::synchronize(index);
    }
}

/// What its driver calls a device; `None` for a CPU, and where the driver does not tell.
pub fn name(device: Device) -> Option<String> {
    match device {
        Device::Cpu => None,
        Device::Cuda(index) => tandem_torch::cuda::name(index),
    }
}

fn cuda_device(local_rank: usize) -> Result<Device, DeviceError> {
    let torch = tandem_torch::open(&Surroundings::read())?;
    match tandem_torch::cuda::device_count(torch)? {
        0 => Err(DeviceError::NoCudaDevice),
        devices if local_rank < devices => Ok(Device::Cuda(local_rank)),
        devices => Err(DeviceError::TooFewDevices {
            local_rank,
            devices,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device_and_cuda_says_what_is_missing() {
        let device = DeviceChoice::Auto.select(0).unwrap();
        match DeviceChoice::Cuda.select(0) {
            Ok(cuda) => assert_eq!(device, cuda),
            Err(error) => {
                assert_eq!(device, Device::Cpu);
                assert!(error.to_string().contains("--device cpu"), "{error}");
            }
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
