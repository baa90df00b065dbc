//! This rank's end of a group's shared memory.

use std::sync::Arc;

use crate::collective::{Collective, Signature};
use crate::error::Result;
use crate::group::context::GroupContext;
use crate::group::operation::Operation;
use crate::group::queue::{Backend, Place};
use crate::transport::shm::meeting::Meeting;
use crate::transport::shm::negotiate::Process;
use crate::transport::shm::neighbour::Neighbour;
use crate::transport::shm::segment::Segment;

/// The transport of one group.
pub(crate) struct SharedMemory {
    pub(super) context: Arc<GroupContext>,
    segment: Arc<Segment>,
    pub(super) meeting: Meeting,
    /// Exchanges so far; its lowest bit picks the slot.
    pub(super) exchanges: u64,
}

impl SharedMemory {
    pub(super) fn new(context: Arc<GroupContext>, segment: Segment, processes: &[Process]) -> Self {
        let segment = Arc::new(segment);
        let neighbour = Neighbour::open(&context, processes);
        let meeting = Meeting::new(context.clone(), segment.clone(), neighbour);
        Self {
            context,
            segment,
            meeting,
            exchanges: 0,
        }
    }

    /// The slot of `member` in the current exchange.
    pub(super) fn slot(&self, member: usize) -> *mut u8 {
        self.segment.slot(member, (self.exchanges & 1) as usize)
    }

    /// Meets the others for the first time in an operation and makes sure that all do the same.
    pub(super) fn meet_first(&self, signature: &Signature) -> Result<()> {
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
            Collective::AllToAll => self.all_to_all(operation, place),
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
