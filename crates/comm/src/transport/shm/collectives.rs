//! The collectives as sequences of exchanges.

use tandem_mesh::partition_aligned;

use crate::collective::ReduceOp;
use crate::error::Result;
use crate::group::operation::{Operation, sums};
use crate::group::queue::Place;
use crate::transport::reduce::reduce;
use crate::transport::shm::segment::SLOT_BYTES;
use crate::transport::shm::shared_memory::SharedMemory;

/// As long as everybody can read everybody's data with this much per rank, everybody reduces everything: that costs less
/// than a second meeting. (For two ranks both ways move the same number of bytes between cores.)
const ONE_ROUND_BYTES: usize = 64 << 10;

/// Parts of a slot start at cache lines.
const ALIGNMENT: usize = 64;

/// How the members' parts are cut so that one chunk of every part fits into one slot.
struct Chunks {
    chunks: usize,
    /// First byte of each member's chunk within a slot.
    offsets: Vec<usize>,
    /// First element of each member's part.
    starts: Vec<usize>,
    counts: Vec<usize>,
    align: usize,
    size: usize,
}

/// A run of elements, in bytes: where it is in the tensor and in the slot.
#[derive(Clone, Copy)]
struct Piece {
    in_tensor: usize,
    in_slot: usize,
    elements: usize,
    bytes: usize,
}

impl Chunks {
    /// For exchanges in which every slot holds a chunk of every part.
    fn of_all_parts(operation: &Operation) -> Self {
        let chunks = Self::needed(operation.bytes(), operation.members);
        Self::of_parts(operation, &operation.counts, chunks)
    }

    /// For an exchange in which each slot holds a chunk of what its owner, `member`, has for each member.
    fn of_sender(operation: &Operation, member: usize) -> Self {
        let sent = |member| operation.sent_by(member).iter().sum::<usize>();
        // All take as many chunks as the one that sends most.
        let most = (0..operation.members).map(sent).max().unwrap_or(0);
        let bytes = most * operation.signature.element.size();
        let chunks = Self::needed(bytes, operation.members);
        Self::of_parts(operation, operation.sent_by(member), chunks)
    }

    /// Chunks of `bytes` in parts for all members, each of which fits into a slot.
    fn needed(bytes: usize, members: usize) -> usize {
        // Each part may waste up to one unit of alignment by being rounded up.
        let room = SLOT_BYTES - members * ALIGNMENT;
        (bytes + members * ALIGNMENT).div_ceil(room)
    }

    fn of_parts(operation: &Operation, counts: &[usize], chunks: usize) -> Self {
        let size = operation.signature.element.size();
        let align = ALIGNMENT / size;
        let chunk_bytes = |count: &usize| count.div_ceil(align).div_ceil(chunks) * ALIGNMENT;
        Self {
            chunks,
            offsets: sums(counts.iter().map(chunk_bytes)),
            starts: sums(counts.iter().copied()),
            counts: counts.to_vec(),
            align,
            size,
        }
    }

    /// For exchanges in which every slot holds a chunk of its owner's part.
    fn of_own_parts(operation: &Operation) -> Self {
        let size = operation.signature.element.size();
        let largest = operation.counts.iter().max().copied().unwrap_or(0) * size;
        Self {
            chunks: (largest + ALIGNMENT).div_ceil(SLOT_BYTES - ALIGNMENT),
            offsets: vec![0; operation.counts.len()],
            starts: sums(operation.counts.iter().copied()),
            counts: operation.counts.clone(),
            align: ALIGNMENT / size,
            size,
        }
    }

    fn piece(&self, member: usize, chunk: usize) -> Piece {
        let range = partition_aligned(self.counts[member], self.chunks, chunk, self.align);
        Piece {
            in_tensor: (self.starts[member] + range.start) * self.size,
            in_slot: self.offsets[member],
            elements: range.len(),
            bytes: range.len() * self.size,
        }
    }
}

impl SharedMemory {
    pub(super) fn all_reduce(&mut self, operation: &Operation, place: Place) -> Result<()> {
        if operation.bytes() * (self.context.size() - 1) <= ONE_ROUND_BYTES {
            return self.all_reduce_in_one_round(operation, place);
        }
        let cut = Chunks::of_all_parts(operation);
        self.copy_in(operation, &cut, 0);
        for chunk in 0..cut.chunks {
            self.meeting.arrive();
            self.meeting.wait(&operation.signature, place)?;
            if chunk == 0 {
                self.meet_first(&operation.signature)?;
            }
            let own = cut.piece(self.context.rank, chunk);
            // SAFETY: all have met, so the pieces for this rank are in the others' slots, and nobody writes there before
            // the meeting after next; this rank's own piece of its slot is read by others only after the next meeting.
            // The tensor is this rank's alone.
            unsafe {
                let result = operation.output.add(own.in_tensor);
                let shared = self.slot(self.context.rank).add(own.in_slot);
                self.reduce_piece(operation, own, [result, shared]);
            }
            self.meeting.arrive();
            let slots: Vec<*mut u8> = (0..self.context.size()).map(|m| self.slot(m)).collect();
            self.exchanges += 1;
            if chunk + 1 < cut.chunks {
                // Something to do while the others finish reducing.
                self.copy_in(operation, &cut, chunk + 1);
            }
            self.meeting.wait(&operation.signature, place)?;
            for (member, slot) in slots.into_iter().enumerate() {
                let piece = cut.piece(member, chunk);
                if member != self.context.rank {
                    // SAFETY: all have met, so `member` has put its result there; it writes to this slot again only
                    // after two more meetings, to which this rank comes after this copy.
                    unsafe {
                        let target = operation.output.add(piece.in_tensor);
                        copy(slot.add(piece.in_slot), target, piece.bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Latency counts here, not bytes: one meeting in all.
    fn all_reduce_in_one_round(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let bytes = operation.bytes();
        // SAFETY: the slot is this rank's to write until it arrives, and longer than the tensor.
        unsafe { copy(operation.input, self.slot(self.context.rank), bytes) };
        self.meeting.arrive();
        self.meeting.wait(&operation.signature, place)?;
        self.meet_first(&operation.signature)?;
        let whole = Piece {
            in_tensor: 0,
            in_slot: 0,
            elements: operation.signature.elements as usize,
            bytes,
        };
        // SAFETY: all have met, so every slot holds its owner's tensor until the meeting after next.
        unsafe { self.reduce_piece(operation, whole, [operation.output]) };
        self.exchanges += 1;
        Ok(())
    }

    pub(super) fn reduce_scatter(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let cut = Chunks::of_all_parts(operation);
        let part_start = cut.starts[self.context.rank] * cut.size;
        for chunk in 0..cut.chunks {
            self.copy_in(operation, &cut, chunk);
            self.meeting.arrive();
            self.meeting.wait(&operation.signature, place)?;
            if chunk == 0 {
                self.meet_first(&operation.signature)?;
            }
            let own = cut.piece(self.context.rank, chunk);
            // SAFETY: as in `all_reduce`; the output holds this rank's part only.
            unsafe {
                let result = operation.output.add(own.in_tensor - part_start);
                self.reduce_piece(operation, own, [result]);
            }
            self.exchanges += 1;
        }
        Ok(())
    }

    pub(super) fn all_gather(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let cut = Chunks::of_own_parts(operation);
        let own_rank = self.context.rank;
        let part_start = cut.starts[own_rank] * cut.size;
        for chunk in 0..cut.chunks {
            let own = cut.piece(own_rank, chunk);
            // SAFETY: the slot is this rank's to write until it arrives; the piece lies within its part of the output
            // and, less the part's start, within the input.
            unsafe {
                let source = operation.input.add(own.in_tensor - part_start);
                copy(source, self.slot(own_rank), own.bytes);
            }
            self.meeting.arrive();
            self.meeting.wait(&operation.signature, place)?;
            if chunk == 0 {
                self.meet_first(&operation.signature)?;
            }
            for member in 0..self.context.size() {
                let piece = cut.piece(member, chunk);
                // SAFETY: all have met, so the slot holds the owner's chunk until the meeting after next.
                unsafe {
                    let target = operation.output.add(piece.in_tensor);
                    if member != own_rank {
                        copy(self.slot(member), target, piece.bytes);
                    } else {
                        let source = operation.input.add(piece.in_tensor - part_start);
                        if !std::ptr::eq(source, target) {
                            copy(source, target, piece.bytes);
                        }
                    }
                }
            }
            self.exchanges += 1;
        }
        Ok(())
    }

    pub(super) fn all_to_all(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let own = self.context.rank;
        let senders: Vec<Chunks> = (0..self.context.size())
            .map(|member| Chunks::of_sender(operation, member))
            .collect();
        // Where what each member sends begins in this rank's output.
        let received = sums(operation.received_by(own).into_iter());
        let to_itself = senders[own].starts[own] * senders[own].size;
        for chunk in 0..senders[own].chunks {
            self.copy_in(operation, &senders[own], chunk);
            self.meeting.arrive();
            self.meeting.wait(&operation.signature, place)?;
            if chunk == 0 {
                self.meet_first(&operation.signature)?;
                let size = senders[own].size;
                // SAFETY: the part for itself lies within the input, and within the output, which is apart from it.
                unsafe {
                    let source = operation.input.add(to_itself);
                    let target = operation.output.add(received[own] * size);
                    copy(source, target, senders[own].counts[own] * size);
                }
            }
            for (member, sender) in senders.iter().enumerate() {
                let piece = sender.piece(own, chunk);
                if member != own {
                    let from_its_start = piece.in_tensor - sender.starts[own] * sender.size;
                    // SAFETY: all have met, so the slot holds its owner's chunk until the meeting after next; the piece
                    // lies within what this rank's output has room for, from this member.
                    unsafe {
                        let target = operation.output.add(received[member] * sender.size);
                        let source = self.slot(member).add(piece.in_slot);
                        copy(source, target.add(from_its_start), piece.bytes);
                    }
                }
            }
            self.exchanges += 1;
        }
        Ok(())
    }

    pub(super) fn broadcast(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let root = operation.signature.root as usize;
        let is_root = root == self.context.rank;
        let bytes = operation.bytes();
        // An empty tensor takes one exchange too, for the signatures.
        let mut start = 0;
        loop {
            let len = SLOT_BYTES.min(bytes - start);
            if is_root {
                // SAFETY: the slot is the root's to write until it arrives.
                unsafe { copy(operation.input.add(start), self.slot(root), len) };
            }
            self.meeting.arrive();
            self.meeting.wait(&operation.signature, place)?;
            if start == 0 {
                self.meet_first(&operation.signature)?;
            }
            if !is_root {
                // SAFETY: all have met, so the slot holds the root's chunk until the meeting after next.
                unsafe { copy(self.slot(root), operation.output.add(start), len) };
            }
            self.exchanges += 1;
            start += len;
            if start >= bytes {
                return Ok(());
            }
        }
    }

    /// Puts what is for the others into this rank's slot.
    fn copy_in(&self, operation: &Operation, cut: &Chunks, chunk: usize) {
        let slot = self.slot(self.context.rank);
        for member in 0..self.context.size() {
            let piece = cut.piece(member, chunk);
            // This rank's own part is taken from the tensor itself.
            if member != self.context.rank {
                // SAFETY: the slot is this rank's to write until it arrives; `Chunks` fits all pieces into it.
                unsafe {
                    let source = operation.input.add(piece.in_tensor);
                    copy(source, slot.add(piece.in_slot), piece.bytes);
                }
            }
        }
    }

    /// Reduces one piece of all ranks, this rank's from its tensor, the others' from their slots.
    ///
    /// # Safety
    /// The others' slots hold the piece and do not change; the targets are this rank's to write.
    unsafe fn reduce_piece<const N: usize>(
        &self,
        operation: &Operation,
        piece: Piece,
        targets: [*mut u8; N],
    ) {
        if piece.bytes == 0 {
            return;
        }
        let sources = (0..self.context.size()).map(|member| {
            // SAFETY: `Chunks` keeps pieces within tensor and slot.
            unsafe {
                if member == self.context.rank {
                    operation.input.add(piece.in_tensor)
                } else {
                    self.slot(member).add(piece.in_slot).cast_const()
                }
            }
        });
        let element = operation.signature.element;
        let op = operation.signature.reduce.unwrap_or(ReduceOp::Sum);
        // SAFETY: passed on from the caller. A target is the same memory as this rank's source, or none of the sources.
        unsafe { reduce(element, op, sources, targets, piece.elements) };
    }
}

/// Copies, also nothing from or to a null pointer.
///
/// # Safety
/// `bytes` readable at `source` and writable at `target`, apart from each other; nobody else uses the target meanwhile.
unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: passed on from the caller.
        unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
    }
}
