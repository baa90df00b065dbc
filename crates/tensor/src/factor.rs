//! Numbers that multiply, wherever they are.

use tandem_torch::Tensor;

/// A number that multiplies: one that the host knows, or one that a device computes, which nobody waits for.
#[derive(Debug, Clone, Copy)]
pub enum Factor<'a> {
    /// The host knows it.
    Number(f64),
    /// fp32, without dimensions, on the device of what it multiplies.
    OnDevice(&'a Tensor),
}

impl From<f64> for Factor<'_> {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl Factor<'_> {
    /// The product with `t`, in its kind, which is of floating point numbers.
    pub fn times(self, t: &Tensor) -> Tensor {
        match self {
            Self::Number(number) => t * number,
            Self::OnDevice(number) => t * number,
        }
    }
}
