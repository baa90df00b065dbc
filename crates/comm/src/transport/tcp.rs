//! Collectives over TCP, between ranks that cannot share memory.
//!
//! The members of a group are connected pairwise. Each operation is one exchange: every member has something to send to and
//! to receive from every other ([`plan`]), and all of it moves at the same time in both directions ([`exchange`]). A
//! reduction sends each member its part of the tensor, which that member reduces in rank order while it arrives and sends
//! to the others as it becomes ready; the two halves of an all-reduce therefore overlap.

mod connect;
mod exchange;
mod peer;
mod plan;
mod ring;

#[cfg(feature = "testing")]
pub use ring::ring_bytes;

use std::sync::Arc;

use crate::error::Result;
use crate::group::context::GroupContext;
use crate::group::operation::Operation;
use crate::group::queue::{Backend, Place};
use crate::meet::membership::Membership;
use crate::transport::tcp::exchange::exchange;
use crate::transport::tcp::peer::Peer;
use crate::transport::tcp::plan::Plan;

/// The transport of one group.
pub(crate) struct Tcp {
    context: Arc<GroupContext>,
    /// By place in the group; `None` for this rank itself.
    peers: Vec<Option<Peer>>,
    /// Holds a small tensor while it is both sent and overwritten by its reduction.
    scratch: Vec<u8>,
}

impl Tcp {
    /// Connects this member to all others.
    pub(crate) fn connect(
        context: &Arc<GroupContext>,
        membership: &Membership<'_>,
    ) -> Result<Self> {
        let sockets = connect::connect(context, membership)?;
        Ok(Self {
            context: context.clone(),
            peers: sockets
                .into_iter()
                .map(|socket| socket.map(Peer::new))
                .collect(),
            scratch: Vec::new(),
        })
    }
}

impl Backend for Tcp {
    fn execute(&mut self, operation: &Operation, _place: Place) -> Result<()> {
        let plan = Plan::new(operation, self.context.rank, &mut self.scratch);
        exchange(&self.context, &mut self.peers, operation, &plan)
    }
}
