//! Large buffers that go round: what a layer is gathered into, and what its gradient is computed in.

use tandem_tensor::{Device, Kind, Tensor};

/// Elements of the buffer that serves `numel`: somewhat more, so that units of nearly one size (an embedding, and an untied
/// head with its norm) have one buffer in turns.
pub fn buffer_capacity(numel: usize) -> usize {
    let grain = 1 << (numel / 64).max(1).ilog2();
    (numel + numel / 256).next_multiple_of(grain)
}

/// Free flat buffers of one device, by capacity and kind. Layers are equally long, so a few buffers serve all of them
/// and the steady state of training allocates none. What was allocated once is kept.
#[derive(Debug)]
pub struct BufferPool {
    device: Device,
    free: Vec<Tensor>,
    lent: Vec<Tensor>,
}

impl BufferPool {
    /// An empty pool.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            free: Vec::new(),
            lent: Vec::new(),
        }
    }

    /// A buffer of `numel` elements with unspecified contents.
    pub fn take(&mut self, numel: usize, kind: Kind) -> Tensor {
        let capacity = buffer_capacity(numel);
        let fits = |t: &Tensor| t.kind() == kind && t.numel() == capacity;
        let whole = match self.free.iter().position(fits) {
            Some(position) => self.free.swap_remove(position),
            None => Tensor::empty([capacity as i64], (kind, self.device)),
        };
        let buffer = whole.narrow(0, 0, numel as i64);
        self.lent.push(whole);
        buffer
    }

    /// Takes a buffer back. The caller holds no view of it that it will use again.
    pub fn give(&mut self, buffer: &Tensor) {
        let is_it = |whole: &Tensor| whole.data_ptr() == buffer.data_ptr();
        if let Some(position) = self.lent.iter().position(is_it) {
            self.free.push(self.lent.swap_remove(position));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_embedding_and_its_head_take_turns_and_a_layer_does_not_join() {
        let mut pool = BufferPool::new(Device::Cpu);
        let (table, head, layer) = (512 * 128, 512 * 128 + 128, 20_000);
        let first = pool.take(table, Kind::Float);
        let place = first.data_ptr();
        assert_eq!(first.numel(), table);
        assert_ne!(pool.take(table, Kind::Float).data_ptr(), place);
        pool.give(&first);
        assert_ne!(pool.take(layer, Kind::Float).data_ptr(), place);
        assert_ne!(pool.take(head, Kind::BFloat16).data_ptr(), place);
        let again = pool.take(head, Kind::Float);
        assert_eq!((again.data_ptr(), again.numel()), (place, head));
    }

    #[test]
    fn a_buffer_is_little_larger_than_what_it_is_for() {
        for numel in [1, 2, 100, 65_536, 65_537, 136_134_656] {
            assert!(buffer_capacity(numel) >= numel);
            assert!(buffer_capacity(numel) as f64 <= 1.04 * numel as f64 + 1.0);
        }
    }
}
