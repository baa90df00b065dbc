//! Collectives between the ranks of one host, through one memory segment per group.
//!
//! Every rank owns two slots of the segment. An *exchange* is: write into the own slot, meet ([`Meeting`]), read the
//! others' slots. Exchanges alternate between the two slots, which makes one meeting per exchange enough: whoever writes
//! a slot again has met everybody in the exchange between, and they came there after they had read it.
//!
//! A tensor that does not fit into a slot is cut into chunks, one exchange each. The chunks are small enough to stay in
//! the caches, so what crosses the segment does not go through main memory.

mod collectives;
mod meeting;
mod members;
mod negotiate;
mod segment;

use std::sync::Arc;

use crate::collective::{Collective, Signature};
use crate::context::GroupContext;
use crate::error::Result;
use crate::operation::Operation;
use crate::queue::{Backend, Place};
use meeting::Meeting;
use members::Members;
pub(crate) use negotiate::{Offer, accept, host_identity, offer};
pub(crate) use segment::Segment;

/// The transport of one group.
pub(crate) struct SharedMemory {
    context: Arc<GroupContext>,
    segment: Arc<Segment>,
    meeting: Meeting,
    /// Exchanges so far; its lowest bit picks the slot.
    exchanges: u64,
}

impl SharedMemory {
    pub(crate) fn new(context: Arc<GroupContext>, segment: Segment, pids: &[u32]) -> Self {
        let segment = Arc::new(segment);
        let members = Members::open(context.clone(), pids);
        let meeting = Meeting::new(context.clone(), segment.clone(), members);
        Self {
            context,
            segment,
            meeting,
            exchanges: 0,
        }
    }

    /// The slot of `member` in the current exchange.
    fn slot(&self, member: usize) -> *mut u8 {
        self.segment.slot(member, (self.exchanges & 1) as usize)
    }

    /// Meets the others for the first time in an operation and makes sure that all do the same.
    fn meet_first(&self, signature: &Signature) -> Result<()> {
        let parity = (self.exchanges & 1) as usize;
        for member in 0..self.context.size() {
            if member != self.context.rank {
                let theirs = self.segment.signature(member, parity).read();
                self.context.check_agreement(signature, member, theirs)?;
            }
        }
        Ok(())
    }
}

impl Backend for SharedMemory {
    fn execute(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let parity = (self.exchanges & 1) as usize;
        self.segment
            .signature(self.context.rank, parity)
            .write(operation.signature.encode());
        match operation.signature.collective {
            Collective::AllReduce => self.all_reduce(operation, place),
            Collective::AllGather => self.all_gather(operation, place),
            Collective::ReduceScatter => self.reduce_scatter(operation, place),
            Collective::Broadcast => self.broadcast(operation, place),
            Collective::Barrier | Collective::NewGroup => {
                self.meeting.arrive();
                self.meeting.wait(&operation.signature, place)?;
                self.meet_first(&operation.signature)?;
                self.exchanges += 1;
                Ok(())
            }
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        self.meeting.leave();
    }
}
