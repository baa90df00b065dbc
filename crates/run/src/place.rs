//! What kind of device a run computes on.

use tandem_plan::Place;
use tandem_tensor::DeviceChoice;

/// Where a run computes, as far as this machine can tell.
pub fn place(device: DeviceChoice) -> Place {
    match device {
        DeviceChoice::Cpu => Place::Cpu,
        DeviceChoice::Cuda => Place::Cuda,
        DeviceChoice::Auto => match device.select(0) {
            Ok(found) if found.is_cuda() => Place::Cuda,
            _ => Place::Cpu,
        },
    }
}
