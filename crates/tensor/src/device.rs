//! Which device computes.

use std::str::FromStr;

use tch::Device;

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
    /// libtorch came without its CUDA part.
    #[error(
        "--device cuda, but no libtorch_cuda.so could be loaded ({reason}); build against a CUDA build of torch 2.13.0 \
         (LIBTORCH_USE_PYTORCH=1), or pass --device cpu"
    )]
    NoCudaLibrary {
        /// What the loader said.
        reason: String,
    },
    /// The library is there, a device is not.
    #[error(
        "--device cuda, but libtorch finds no CUDA device here; check the driver (nvidia-smi) or pass --device cpu"
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
        devices: i64,
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
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    // Fails only when the pool exists already, which then keeps the size it has.
    let _already_there = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("kernel-{index}"))
        .build_global();
}

fn cuda_device(local_rank: usize) -> Result<Device, DeviceError> {
    load_cuda()?;
    match tch::Cuda::device_count() {
        0 => Err(DeviceError::NoCudaDevice),
        devices if (local_rank as i64) < devices => Ok(Device::Cuda(local_rank)),
        devices => Err(DeviceError::TooFewDevices {
            local_rank,
            devices,
        }),
    }
}

/// Loads libtorch's CUDA part, which registers itself when it is loaded. The binary does not link it, so that one
/// binary runs on machines with and without CUDA.
fn load_cuda() -> Result<(), DeviceError> {
    if tch::Cuda::is_available() {
        return Ok(());
    }
    // SAFETY: loading runs the library's initialisers, which is what libtorch itself relies on; it belongs to the
    // same release as the libtorch_cpu.so that is already loaded, and it is never unloaded.
    let library = unsafe { libloading::Library::new("libtorch_cuda.so") };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(DeviceError::NoCudaLibrary {
            reason: error.to_string(),
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
