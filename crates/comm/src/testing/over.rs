//! What the groups of a test move data over.

use crate::Transport;

/// What the groups of a test move data over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Host memory, as this says.
    Host(Transport),
    /// Simulated GPUs, one for each rank, and NCCL.
    #[cfg(feature = "nccl")]
    Nccl,
    /// One simulated GPU that all ranks share, and host memory as this says.
    #[cfg(feature = "nccl")]
    Staged(Transport),
}

impl From<Transport> for Over {
    fn from(transport: Transport) -> Self {
        Self::Host(transport)
    }
}
