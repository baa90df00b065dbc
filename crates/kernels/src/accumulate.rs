//! What happens to what a gradient buffer holds.

/// Whether a gradient buffer already holds a contribution of this optimizer step.
///
/// The first contribution overwrites, so gradient buffers are never cleared in a pass of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// Overwrite what the buffer holds.
    First,
    /// Add to what the buffer holds.
    Add,
}
