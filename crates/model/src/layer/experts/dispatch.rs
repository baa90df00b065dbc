//! Rows of tokens on their way to the ranks that have their experts, and back.

use std::ops::Range;

use tandem_tensor::Tensor;
use tandem_tensor::experts::{Arrivals, Groups, Routing};

use crate::error::TpError;
use crate::expert_peers::ExpertPeers;
use crate::pending_tensor::PendingTensor;

/// Which rows this rank's experts compute.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// The rows of each of this rank's experts.
    pub(super) groups: Groups,
    /// How they come here, where experts are spread over ranks. Otherwise they are those of this rank's tokens.
    way: Option<Way>,
}

#[derive(Debug)]
struct Way {
    /// From each rank to each, the rows that go to experts.
    there: Vec<usize>,
    /// The same for the way back.
    back: Vec<usize>,
    arrivals: Arrivals,
}

impl Dispatch {
    /// For the rows that `routing` makes of this rank's tokens.
    pub(super) fn new(routing: &Routing, peers: Option<&dyn ExpertPeers>) -> Result<Self, TpError> {
        let groups = routing.groups();
        let Some(peers) = peers else {
            return Ok(Self { groups, way: None });
        };
        // For each rank, its rows for each of all experts.
        let counts = peers.gather_counts(&groups.sizes())?;
        let shares = peers.shares(counts[0].len());
        let rows = |from: &Vec<usize>, to: &Range<usize>| from[to.clone()].iter().sum::<usize>();
        let there = counts
            .iter()
            .flat_map(|from| shares.iter().map(move |to| rows(from, to)))
            .collect();
        let back = shares
            .iter()
            .flat_map(|to| counts.iter().map(move |from| rows(from, to)))
            .collect();
        let own = &shares[peers.rank()];
        let here: Vec<&[usize]> = counts.iter().map(|from| &from[own.clone()]).collect();
        let arrivals = Arrivals::new(&here, routing.factors().device());
        Ok(Self {
            groups: arrivals.groups(),
            way: Some(Way {
                there,
                back,
                arrivals,
            }),
        })
    }

    /// Whether rows come from other ranks.
    pub(super) fn is_over_ranks(&self) -> bool {
        self.way.is_some()
    }

    /// From the rows of this rank's tokens, `[rows, features]`, to those of its experts; both sorted by expert.
    pub(super) fn send(
        &self,
        rows: Tensor,
        peers: Option<&dyn ExpertPeers>,
    ) -> Result<Tensor, TpError> {
        match (&self.way, peers) {
            (Some(way), Some(peers)) => {
                let came = peers.exchange(&rows, &way.there)?;
                Ok(way.arrivals.sorted(&came))
            }
            _ => Ok(rows),
        }
    }

    /// The reverse of [`Self::send`].
    pub(super) fn send_back(
        &self,
        rows: Tensor,
        peers: Option<&dyn ExpertPeers>,
    ) -> Result<Tensor, TpError> {
        match (&self.way, peers) {
            (Some(way), Some(peers)) => {
                peers.exchange(&way.arrivals.as_they_came(&rows), &way.back)
            }
            _ => Ok(rows),
        }
    }

    /// [`Self::send_back`] that runs while the caller computes something else.
    pub(super) fn start_back(
        &self,
        rows: Tensor,
        peers: Option<&dyn ExpertPeers>,
    ) -> Result<Box<dyn PendingTensor>, TpError> {
        match (&self.way, peers) {
            (Some(way), Some(peers)) => {
                let sent = way.arrivals.as_they_came(&rows);
                drop(rows);
                peers.start_exchange(&sent, &way.back)
            }
            _ => Ok(Box::new(rows)),
        }
    }
}
