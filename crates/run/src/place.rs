//! What kind of device a run computes on.

use tandem_plan::Place;
use tandem_tensor::DeviceChoice;
use tandem_tensor::device::Workers;

/// Whether there are enough devices for all workers is another question.
const ALONE: Workers = Workers {
    count: 1,
    may_share: false,
};

/// Where a run computes, as far as this machine can tell.
pub fn place(device: DeviceChoice) -> Place {
    match device {
        DeviceChoice::Cpu => Place::Cpu,
        DeviceChoice::Cuda => Place::Cuda,
        DeviceChoice::Auto => match device.select(0, ALONE) {
            Ok(found) if found.is_cuda() => Place::Cuda,
            _ => Place::Cpu,
        },
    }
}
