//! The groups of ranks that say something to each other in a step.

use crate::settings::Settings;

/// Whom a collective is said to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The row.
    Tp,
    /// The column.
    Dp,
    /// The ranks over which experts are spread.
    Ep,
    /// Those that have the same of these experts.
    Edp,
}

/// The ranks of a group, which are equally far from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Members {
    pub count: usize,
    /// Ranks from one to the next.
    pub stride: usize,
}

impl Group {
    /// Its ranks, where experts are spread over `expert_ranks`.
    pub(crate) fn members(self, settings: &Settings, expert_ranks: usize) -> Members {
        let (count, stride) = match self {
            Self::Tp => (settings.tp(), 1),
            Self::Dp => (settings.dp(), settings.tp()),
            Self::Ep => (expert_ranks, 1),
            Self::Edp => (settings.mesh.world_size() / expert_ranks, expert_ranks),
        };
        Members { count, stride }
    }
}
