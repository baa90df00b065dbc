//! What each collective moves between each pair of members.

use crate::collective::{Collective, ReduceOp};
use crate::group::operation::{Operation, sums};

/// Up to this size every member sends everything to every other and reduces it all itself: one trip instead of two.
const ONE_ROUND_BYTES: usize = 8 << 10;

/// Memory that is sent or received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes {
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

impl Bytes {
    pub(super) const NONE: Self = Self {
        start: std::ptr::null_mut(),
        len: 0,
    };
}

/// This member's side of an exchange. On every connection the signature goes first, then what is listed here.
pub(super) struct Plan {
    /// For each member, what it is sent straight away.
    pub(super) sends: Vec<Bytes>,
    /// Then it is sent this member's result, while that becomes ready.
    pub(super) sends_result: bool,
    /// Each member first sends as many bytes as the result has, if this member reduces.
    pub(super) reduction: Option<Reduction>,
    /// Then what belongs here.
    pub(super) receives: Vec<Bytes>,
}

/// What this member reduces: its own bytes with those that arrive from all others.
pub(super) struct Reduction {
    pub(super) op: ReduceOp,
    pub(super) own: *const u8,
    /// May be the same memory as `own`.
    pub(super) result: Bytes,
}

impl Plan {
    /// The plan of the member `own` for `operation`. Copies what no other member takes part in.
    pub(super) fn new(operation: &Operation, own: usize, scratch: &mut Vec<u8>) -> Self {
        let whole = Bytes {
            start: operation.output,
            len: operation.bytes(),
        };
        match operation.signature.collective {
            Collective::AllReduce if whole.len <= ONE_ROUND_BYTES => {
                Self::one_round(operation, own, whole, scratch)
            }
            Collective::AllReduce => Self::reduced_parts(operation, own, true),
            Collective::ReduceScatter => Self::reduced_parts(operation, own, false),
            Collective::AllGather => Self::gathered_parts(operation, own),
            Collective::AllToAll => Self::exchanged_parts(operation, own),
            Collective::Broadcast => {
                let root = operation.signature.root as usize;
                let mut plan = Self::nothing(operation.members);
                if own == root {
                    plan.sends.fill(whole);
                } else {
                    plan.receives[root] = whole;
                }
                plan
            }
            Collective::Barrier | Collective::NewGroup => Self::nothing(operation.members),
        }
    }

    fn nothing(members: usize) -> Self {
        Self {
            sends: vec![Bytes::NONE; members],
            sends_result: false,
            reduction: None,
            receives: vec![Bytes::NONE; members],
        }
    }

    fn one_round(operation: &Operation, own: usize, whole: Bytes, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        scratch.resize(whole.len, 0);
        if whole.len > 0 {
            // SAFETY: the tensor has `whole.len` readable bytes, the scratch now as many writable ones. A slow member may
            // still be sent the input when the reduction overwrites the tensor, hence the copy.
            unsafe {
                std::ptr::copy_nonoverlapping(operation.input, scratch.as_mut_ptr(), whole.len);
            }
        }
        let mut plan = Self::nothing(operation.members);
        plan.sends.fill(Bytes {
            start: scratch.as_mut_ptr(),
            len: whole.len,
        });
        plan.sends[own] = Bytes::NONE;
        plan.reduction = Some(Reduction {
            op: operation.signature.reduce.unwrap_or(ReduceOp::Sum),
            own: operation.input,
            result: whole,
        });
        plan
    }

    /// Every member reduces its part; in an all-reduce it then sends it to all.
    fn reduced_parts(operation: &Operation, own: usize, is_all_reduce: bool) -> Self {
        let size = operation.signature.element.size();
        let parts = operation.parts();
        let mut plan = Self::nothing(operation.members);
        for (member, part) in parts.iter().enumerate() {
            // SAFETY: the parts lie within the tensor; where this points is only read, except in an all-reduce, whose
            // input is its output.
            let start = unsafe { operation.input.cast_mut().add(part.start * size) };
            let len = part.len() * size;
            if member != own {
                plan.sends[member] = Bytes { start, len };
                if is_all_reduce {
                    plan.receives[member] = Bytes { start, len };
                }
                continue;
            }
            plan.reduction = Some(Reduction {
                op: operation.signature.reduce.unwrap_or(ReduceOp::Sum),
                own: start,
                result: Bytes {
                    start: if is_all_reduce {
                        start
                    } else {
                        operation.output
                    },
                    len,
                },
            });
        }
        plan.sends_result = is_all_reduce;
        plan
    }

    fn exchanged_parts(operation: &Operation, own: usize) -> Self {
        let size = operation.signature.element.size();
        let bytes = |first: *mut u8, counts: &[usize]| -> Vec<Bytes> {
            let parts = sums(counts.iter().copied()).into_iter().zip(counts);
            let part = |(start, count): (usize, &usize)| Bytes {
                // SAFETY: the parts lie within the tensor; what is sent is only read.
                start: unsafe { first.add(start * size) },
                len: count * size,
            };
            parts.map(part).collect()
        };
        let mut plan = Self {
            sends: bytes(operation.input.cast_mut(), operation.sent_by(own)),
            receives: bytes(operation.output, &operation.received_by(own)),
            ..Self::nothing(operation.members)
        };
        let (from, to) = (plan.sends[own], plan.receives[own]);
        if from.len > 0 {
            // SAFETY: both are the part for itself, in the input and in the output, which are apart.
            unsafe { std::ptr::copy_nonoverlapping(from.start, to.start, from.len) };
        }
        (plan.sends[own], plan.receives[own]) = (Bytes::NONE, Bytes::NONE);
        plan
    }

    fn gathered_parts(operation: &Operation, own: usize) -> Self {
        let size = operation.signature.element.size();
        let mut plan = Self::nothing(operation.members);
        for (member, part) in operation.parts().iter().enumerate() {
            // SAFETY: the parts lie within the output.
            let start = unsafe { operation.output.add(part.start * size) };
            let len = part.len() * size;
            if member != own {
                plan.receives[member] = Bytes { start, len };
                continue;
            }
            plan.sends.fill(Bytes {
                start: operation.input.cast_mut(),
                len,
            });
            if len > 0 && !std::ptr::eq(operation.input, start) {
                // SAFETY: the input has `len` bytes; the operation's check made sure that it is this part of the output
                // or apart from it.
                unsafe { std::ptr::copy_nonoverlapping(operation.input, start, len) };
            }
        }
        plan.sends[own] = Bytes::NONE;
        plan
    }
}
