//! What a run of many ranks takes, by calculation: what each phase costs, and which limit is met first when ranks are made more. Rows
//! of the mesh stay as they are; columns grow.
//!
//! Numbers that another crate decides are written down here with their place. A test of a crate that sees both holds them together.

mod figures;
mod groups;
mod limits;
mod list;
mod rows;
mod store;

use serde::Serialize;

pub use figures::{
    FILES_BESIDES, Figures, ScaleError, Subject, descriptors_asked, open_files, ring_buffers,
};
pub use groups::{Groups, Hosts, Way, Wire};
pub use limits::{Descriptors, LARGEST_LIST, Limit, PATIENCE_S, Then};
pub use list::{List, Saved};
pub use rows::{Quantity, Row};
pub use store::{Said, ends, starting};

use figures::Known;

/// Numbers of ranks that are shown beside the run's own.
pub const SHOWN: [usize; 3] = [64, 256, 1024];

/// What a run takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scale {
    /// Its ranks.
    pub ranks: usize,
    /// Those of a host.
    pub ranks_per_host: usize,
    /// The numbers of ranks for which each row has a value, in this order.
    pub columns: Vec<usize>,
    /// What each phase takes.
    pub rows: Vec<Row>,
    /// All limits, those that are met first in front.
    pub limits: Vec<Limit>,
}

impl Scale {
    /// What `subject` takes with the ranks that it has, and with those of [`SHOWN`] that such rows can be made of.
    ///
    /// # Errors
    /// When the model is too small for such rows.
    pub fn of(subject: &Subject<'_>, descriptors: Descriptors) -> Result<Self, ScaleError> {
        let known = Known::new(subject)?;
        let ranks = subject.settings.mesh.world_size();
        let shown = SHOWN
            .into_iter()
            .filter(|it| it.is_multiple_of(known.unit()));
        let mut columns: Vec<usize> = shown.chain([ranks]).collect();
        columns.sort_unstable();
        columns.dedup();
        let figures = columns.iter().map(|ranks| known.figures(*ranks));
        let figures = figures.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            ranks,
            ranks_per_host: subject.ranks_per_host,
            rows: rows::rows(&figures),
            limits: limits::limits(&known, ranks, descriptors),
            columns,
        })
    }

    /// The limit that ends a run with the fewest ranks, where all hosts are as this one.
    pub fn first_end(&self) -> Option<&Limit> {
        let ends = |it: &&Limit| it.then == Then::Ends && !it.elsewhere && it.met_at.is_some();
        self.limits.iter().find(ends)
    }
}

/// The numbers of a run of so many ranks.
///
/// # Errors
/// When the model is too small for such rows, or the ranks make no mesh of them.
pub fn figures(subject: &Subject<'_>, ranks: usize) -> Result<Figures, ScaleError> {
    Known::new(subject)?.figures(ranks)
}
