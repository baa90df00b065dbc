//! What stands for uploads in a program that was built without the feature `nccl`: there are none.

use std::convert::Infallible;

use tandem_tensor::{HostElement, Tensor};

/// The way to a device, which there is not.
pub struct Uploads(Infallible);

/// A copy under way, which there is not.
#[derive(Debug)]
pub struct Upload(Infallible);

impl Uploads {
    /// # Errors
    /// Always.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        Err(format!(
            "this program was built without NCCL, so nothing is copied to device {ordinal} beside its computation; build with the \
             feature \"nccl\""
        ))
    }

    /// # Errors
    /// Never: there is none to call it.
    pub fn start<T: HostElement>(&mut self, _values: &[T]) -> Result<(Tensor, Upload), String> {
        match self.0 {}
    }
}

impl Upload {
    /// # Errors
    /// Never: there is none to call it.
    pub fn wait(self) -> Result<(), String> {
        match self.0 {}
    }
}
