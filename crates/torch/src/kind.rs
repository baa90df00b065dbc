//! Kinds of numbers.

/// A kind of numbers that tensors are made of. Names are libtorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes.
    Uint8,
    /// 32-bit integers.
    Int,
    /// 64-bit integers.
    Int64,
    /// IEEE half precision.
    Half,
    /// fp32.
    Float,
    /// fp64.
    Double,
    /// A byte each.
    Bool,
    /// bf16.
    BFloat16,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Uint8,
        Self::Int,
        Self::Int64,
        Self::Half,
        Self::Float,
        Self::Double,
        Self::Bool,
        Self::BFloat16,
    ];

    /// Bytes of one element.
    pub fn elt_size_in_bytes(self) -> usize {
        match self {
            Self::Uint8 | Self::Bool => 1,
            Self::Half | Self::BFloat16 => 2,
            Self::Int | Self::Float => 4,
            Self::Int64 | Self::Double => 8,
        }
    }

    pub(crate) fn is_floating_point(self) -> bool {
        matches!(
            self,
            Self::Half | Self::BFloat16 | Self::Float | Self::Double
        )
    }
}
