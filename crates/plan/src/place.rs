//! What kind of device a rank computes on.

/// Where a rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A processor: all is in the host's memory.
    Cpu,
    /// A GPU: this is its memory.
    Cuda,
}
