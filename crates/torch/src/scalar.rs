//! Numbers beside tensors.

use crate::kind::Kind;
use crate::library::torch;
use crate::tensor::{Tensor, new_tensor};

/// A number that an operation takes beside its tensors. The result has the tensor's kind,
/// unless that is of integers and the number is not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// An integer.
    Int(i64),
    /// A floating point number.
    Float(f64),
}

impl From<i64> for Scalar {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Scalar {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl Scalar {
    pub(crate) fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    /// A tensor without dimensions, for operators of the dispatcher, which takes no scalars. Tensors without dimensions do not
    /// widen the kind of the other operand either.
    #[track_caller]
    pub(crate) fn tensor(self, beside: Kind) -> Tensor {
        let functions = &torch().functions;
        let result = match self {
            Self::Int(value) if !beside.is_floating_point() => new_tensor("a number", |out| {
                // SAFETY: `out` is writable.
                unsafe { (functions.aoti_torch_scalar_to_tensor_int64)(value, out) }
            }),
            number => new_tensor("a number", |out| {
                // SAFETY: as above.
                unsafe { (functions.aoti_torch_scalar_to_tensor_float64)(number.as_f64(), out) }
            }),
        };
        crate::error::expect(result)
    }
}
