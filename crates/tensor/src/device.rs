//! Which device computes.

use std::cell::Cell;
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
        "{workers} workers need as many CUDA devices, but this host shows {devices}; start at most {devices} here, or let them share \
         devices with --transport staged"
    )]
    TooFewDevices {
        /// Ranks on this host.
        workers: usize,
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

/// The ranks of a host among which its devices are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Ranks on this host.
    pub count: usize,
    /// Several of them may use one device: how they communicate does not need one each.
    pub may_share: bool,
}

impl DeviceChoice {
    /// The device of the rank `local_rank` among those of this host. All of them get the same kind.
    ///
    /// # Errors
    /// [`DeviceError`] when CUDA is asked for and cannot be had; `Auto` never fails.
    pub fn select(self, local_rank: usize, workers: Workers) -> Result<Device, DeviceError> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        self.among(cuda_devices(), local_rank, workers)
    }

    fn among(
        self,
        devices: Result<usize, DeviceError>,
        local_rank: usize,
        workers: Workers,
    ) -> Result<Device, DeviceError> {
        let own = match devices {
            Err(error) => Err(error),
            Ok(0) => Err(DeviceError::NoCudaDevice),
            Ok(devices) if workers.count > devices && !workers.may_share => {
                Err(DeviceError::TooFewDevices {
                    workers: workers.count,
                    devices,
                })
            }
            Ok(devices) => Ok(Device::Cuda(local_rank % devices)),
        };
        match (self, own) {
            (Self::Cpu, _) | (Self::Auto, Err(_)) => Ok(Device::Cpu),
            (_, own) => own,
        }
    }
}

/// Threads that libtorch and this crate's kernels use inside one operation. The thread that trains calls it once, before anything
/// computes, and is one of them: it computes its part instead of waiting for others to do all.
pub fn set_threads(threads: usize) {
    let threads = threads.max(1);
    tandem_torch::set_num_threads(threads);
    let pool = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("kernel-{index}"))
    };
    // For all other threads. Fails only when that pool exists already, which then keeps the size it has.
    let _already_there = pool().build_global();
    // For this one, whatever size that pool has. Fails only in a thread of some pool, which then stays in that.
    if let Ok(own) = pool().use_current_thread().build() {
        COMPUTES_WITH.set(Some(own));
    }
}

thread_local! {
    /// The pool that this thread is one of. It ends with the thread.
    static COMPUTES_WITH: Cell<Option<rayon::ThreadPool>> = const { Cell::new(None) };
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

/// CUDA devices that this process sees.
fn cuda_devices() -> Result<usize, DeviceError> {
    let torch = tandem_torch::open(&Surroundings::read())?;
    Ok(tandem_torch::cuda::device_count(torch)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device_and_cuda_says_what_is_missing() {
        let alone = Workers {
            count: 1,
            may_share: false,
        };
        let device = DeviceChoice::Auto.select(0, alone).unwrap();
        match DeviceChoice::Cuda.select(0, alone) {
            Ok(cuda) => assert_eq!(device, cuda),
            Err(error) => {
                assert_eq!(device, Device::Cpu);
                assert!(error.to_string().contains("--device cpu"), "{error}");
            }
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    /// The devices of every local rank on a host that shows `devices`.
    fn placed(
        choice: DeviceChoice,
        devices: usize,
        count: usize,
        may_share: bool,
    ) -> Result<Vec<Device>, DeviceError> {
        let workers = Workers { count, may_share };
        (0..count)
            .map(|rank| choice.among(Ok(devices), rank, workers))
            .collect()
    }

    #[test]
    fn every_rank_has_a_device_of_its_own_unless_they_may_share() {
        use Device::{Cpu, Cuda};
        use DeviceChoice as Choice;
        let own = placed(Choice::Cuda, 4, 2, false);
        assert_eq!(own, Ok(vec![Cuda(0), Cuda(1)]));
        let shared = placed(Choice::Cuda, 2, 4, true);
        assert_eq!(shared, Ok(vec![Cuda(0), Cuda(1), Cuda(0), Cuda(1)]));
        let error = placed(Choice::Cuda, 1, 2, false).unwrap_err();
        assert!(error.to_string().contains("--transport staged"), "{error}");
        let none = placed(Choice::Cuda, 0, 1, true);
        assert_eq!(none, Err(DeviceError::NoCudaDevice));
        // Ranks of one host on two kinds of devices could not talk to each other: all of them fall back.
        assert_eq!(placed(Choice::Auto, 1, 2, false), Ok(vec![Cpu, Cpu]));
        assert_eq!(placed(Choice::Auto, 1, 2, true), Ok(vec![Cuda(0), Cuda(0)]));
        assert_eq!(placed(Choice::Auto, 8, 2, false), own);
        assert_eq!(placed(Choice::Cpu, 8, 2, false), Ok(vec![Cpu, Cpu]));
    }
}
