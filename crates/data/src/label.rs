//! What is no target.

/// The label of a position that is no target: the loss leaves it out (the convention of Hugging Face and PyTorch).
pub const IGNORED_LABEL: i64 = -100;
