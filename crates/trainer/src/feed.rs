//! How a batch comes to where the engine computes.

use tandem_comm::{Upload, Uploads};
use tandem_tensor::torch::pretend;
use tandem_tensor::{Device, HostElement, Tensor};

use crate::error::TrainError;

/// The way of batches to the engine's device: on a GPU by way of pinned memory, on a stream beside the computation. So a micro-batch
/// is copied while those before it are computed, and the host waits for neither.
pub(crate) struct Feed {
    device: Device,
    /// `None` on the CPU, where there is no way to go, and on a device that is pretended.
    uploads: Option<Uploads>,
}

impl Feed {
    /// To `device`.
    pub(crate) fn new(device: Device) -> Self {
        let uploads = match device {
            Device::Cuda(ordinal) if !pretend::is_on() => Uploads::open(ordinal)
                .inspect_err(|reason| {
                    tracing::warn!(
                        reason,
                        "batches are copied to the device by the stream that computes, which is slower"
                    );
                })
                .ok(),
            _ => None,
        };
        Self { device, uploads }
    }

    /// Starts to copy, and adds to `under_way` what to wait for before the tensor is read, where that is something.
    ///
    /// # Errors
    /// [`TrainError::Feed`] when the device fails.
    pub(crate) fn copy<T: HostElement>(
        &mut self,
        values: &[T],
        under_way: &mut Vec<Upload>,
    ) -> Result<Tensor, TrainError> {
        let Some(uploads) = &mut self.uploads else {
            return Ok(Tensor::from_slice(values).to_device(self.device));
        };
        let (tensor, upload) = uploads.start(values).map_err(TrainError::Feed)?;
        under_way.push(upload);
        Ok(tensor)
    }

    /// Where it ends.
    pub(crate) fn device(&self) -> Device {
        self.device
    }
}
