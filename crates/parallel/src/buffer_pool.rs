//! Large buffers that go round: what a layer is gathered into, and what its gradient is computed in.

use tandem_tensor::{Device, Kind, Tensor};

/// Free flat buffers of one device, by length and kind. Layers are equally long, so a few buffers serve all of them
/// and the steady state of training allocates none.
#[derive(Debug)]
pub struct BufferPool {
    device: Device,
    free: Vec<Tensor>,
}

impl BufferPool {
    /// An empty pool.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            free: Vec::new(),
        }
    }

    /// A buffer of `numel` elements with unspecified contents.
    pub fn take(&mut self, numel: usize, kind: Kind) -> Tensor {
        let fits = |t: &Tensor| t.kind() == kind && t.numel() == numel;
        match self.free.iter().position(fits) {
            Some(position) => self.free.swap_remove(position),
            None => Tensor::empty([numel as i64], (kind, self.device)),
        }
    }

    /// Gives a buffer back. The caller holds no view of it that it will use again.
    pub fn give(&mut self, buffer: Tensor) {
        self.free.push(buffer);
    }
}
