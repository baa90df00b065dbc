//! Memory for a large temporary that every step needs again.

use std::cell::RefCell;

use tandem_torch::{Device, Kind, Tensor};

/// A buffer that is kept between uses. Blocks as large as a chunk of logits always come fresh from the system, and
/// touching fresh memory costs as much as computing with it.
#[derive(Debug, Default)]
pub struct Scratch(RefCell<Option<Tensor>>);

impl Scratch {
    /// A contiguous tensor with unspecified contents. It is the same memory every time: the caller is done with what an
    /// earlier call returned.
    pub fn take(&self, shape: &[i64], kind: Kind, device: Device) -> Tensor {
        let numel: i64 = shape.iter().product();
        let mut kept = self.0.borrow_mut();
        let fits =
            |t: &&Tensor| t.kind() == kind && t.device() == device && t.numel() >= numel as usize;
        let flat = match kept.as_ref().filter(fits) {
            Some(flat) => flat.shallow_clone(),
            None => {
                // The old one goes first, so that the two are not there at the same time.
                *kept = None;
                kept.insert(Tensor::empty([numel], (kind, device)))
                    .shallow_clone()
            }
        };
        flat.narrow(0, 0, numel).view(shape)
    }
}

/// A copy has memory of its own.
impl Clone for Scratch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_tensors_reuse_the_memory_of_larger_ones() {
        let scratch = Scratch::default();
        let take = |shape: &[i64], kind| scratch.take(shape, kind, Device::Cpu);
        let first = take(&[4, 6], Kind::Float);
        let smaller = take(&[3, 6], Kind::Float);
        assert_eq!(smaller.data_ptr(), first.data_ptr());
        assert_eq!(smaller.size(), [3, 6]);
        assert!(smaller.is_contiguous());
        assert_eq!(take(&[5, 6], Kind::Float).numel(), 30);
        assert_eq!(take(&[1], Kind::BFloat16).kind(), Kind::BFloat16);
        let copy = scratch.clone().take(&[1], Kind::BFloat16, Device::Cpu);
        assert_ne!(copy.data_ptr(), take(&[1], Kind::BFloat16).data_ptr());
    }
}
