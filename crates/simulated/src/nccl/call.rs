//! What calls of NCCL's functions ask for, and how they come onto a stream.

use std::cell::RefCell;
use std::ffi::c_int;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use tandem_kernels::reduce::ReduceOp;

use super::communicator::{Communicator, Trouble};
use super::exchange::{Element, Exchange};
use crate::cuda::{Refused, Touch, enqueue_collective};
use crate::forbidden;

pub(super) const INVALID_ARGUMENT: c_int = 4;
pub(super) const INVALID_USAGE: c_int = 5;

/// What one call asks for. Addresses are the device's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) what: What,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) count: usize,
    pub(super) element: Element,
    pub(super) trouble: Trouble,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    AllReduce(ReduceOp),
    AllGather,
    ReduceScatter(ReduceOp),
    Broadcast { root: usize },
    Reduce { op: ReduceOp, root: usize },
    Send { peer: usize },
    Receive { peer: usize },
}

/// Calls between `ncclGroupStart` and `ncclGroupEnd`, with communicator and stream.
#[derive(Default)]
struct Group {
    depth: usize,
    calls: Vec<(Arc<Communicator>, usize, Call)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub(super) fn begin_group() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Launches what was called since the outermost group began.
pub(super) fn end_group() -> Result<(), c_int> {
    let calls = GROUP.with_borrow_mut(|group| {
        group.depth = group.depth.checked_sub(1)?;
        Some(match group.depth {
            0 => std::mem::take(&mut group.calls),
            _ => Vec::new(),
        })
    });
    let mut calls = calls.ok_or(INVALID_USAGE)?;
    let mut outcome = Ok(());
    while let Some((communicator, stream, _)) = calls.first().cloned() {
        let is_same = |call: &(Arc<Communicator>, usize, Call)| {
            Arc::ptr_eq(&call.0, &communicator) && call.1 == stream
        };
        let (same, others): (Vec<_>, Vec<_>) = calls.into_iter().partition(is_same);
        let same: Vec<Call> = same.into_iter().map(|(_, _, call)| call).collect();
        outcome = outcome.and(launch(&communicator, stream, &same));
        calls = others;
    }
    outcome
}

/// Launches the call, or keeps it for the end of its group.
pub(super) fn submit(
    communicator: &Arc<Communicator>,
    stream: usize,
    call: Call,
) -> Result<(), c_int> {
    let is_grouped = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.calls.push((communicator.clone(), stream, call));
        }
        group.depth > 0
    });
    match is_grouped {
        true => Ok(()),
        false => launch(communicator, stream, &[call]),
    }
}

impl Call {
    /// What this member reads and writes, in bytes of the device.
    fn ranges(&self, rank: usize, size: usize) -> [Option<Range<usize>>; 2] {
        let bytes = self.count * self.element.size();
        let input = |bytes: usize| Some(self.input..self.input + bytes);
        let output = |bytes: usize| Some(self.output..self.output + bytes);
        match self.what {
            What::AllReduce(_) => [input(bytes), output(bytes)],
            What::AllGather => [input(bytes), output(bytes * size)],
            What::ReduceScatter(_) => [input(bytes * size), output(bytes)],
            What::Broadcast { root } => [
                if root == rank { input(bytes) } else { None },
                output(bytes),
            ],
            What::Reduce { root, .. } => [
                input(bytes),
                if root == rank { output(bytes) } else { None },
            ],
            What::Send { .. } => [input(bytes), None],
            What::Receive { .. } => [None, output(bytes)],
        }
    }

    /// Adds what is to be done, now with the places where the bytes are.
    fn plan(&self, exchange: &mut Exchange, rank: usize, size: usize, input: usize, output: usize) {
        let (element, count) = (self.element, self.count);
        let bytes = count * element.size();
        let others = || (0..size).filter(|peer| *peer != rank);
        match self.what {
            What::AllReduce(op) => {
                others().for_each(|peer| exchange.send(peer, input, bytes));
                exchange.reduce(rank, input, output, element, op, count);
            }
            What::AllGather => {
                for peer in others() {
                    exchange.send(peer, input, bytes);
                    exchange.receive(peer, output + peer * bytes, bytes);
                }
                exchange.copy(input, output + rank * bytes, bytes);
            }
            What::ReduceScatter(op) => {
                others().for_each(|peer| exchange.send(peer, input + peer * bytes, bytes));
                exchange.reduce(rank, input + rank * bytes, output, element, op, count);
            }
            What::Broadcast { root } if root == rank => {
                others().for_each(|peer| exchange.send(peer, input, bytes));
                exchange.copy(input, output, bytes);
            }
            What::Broadcast { root } => exchange.receive(root, output, bytes),
            What::Reduce { op, root } if root == rank => {
                exchange.reduce(rank, input, output, element, op, count);
            }
            What::Reduce { root, .. } => exchange.send(root, input, bytes),
            What::Send { peer } => exchange.send(peer, input, bytes),
            What::Receive { peer } => exchange.receive(peer, output, bytes),
        }
    }
}

/// What tells a group of calls from another, where all members take part: all but the reduction, whose difference NCCL does not
/// notice.
fn label(calls: &[Call]) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    for call in calls {
        let root = match call.what {
            What::Broadcast { root } | What::Reduce { root, .. } => root,
            What::Send { .. } | What::Receive { .. } => return None,
            _ => 0,
        };
        (call.name, call.count, call.element as u8, root).hash(&mut hasher);
    }
    Some(hasher.finish())
}

/// Puts calls of one communicator on a stream, as one command.
fn launch(communicator: &Arc<Communicator>, stream: usize, calls: &[Call]) -> Result<(), c_int> {
    let (rank, size) = (communicator.rank, communicator.size);
    // Nothing moves nothing: NCCL enqueues no kernel either.
    let calls: Vec<Call> = calls
        .iter()
        .filter(|call| call.count > 0)
        .copied()
        .collect();
    let Some(first) = calls.first() else {
        return Ok(());
    };
    let mut touches = Vec::new();
    for call in &calls {
        let [input, output] = call.ranges(rank, size);
        touches.extend(input.map(|range| Touch {
            range,
            writes: false,
        }));
        touches.extend(output.map(|range| Touch {
            range,
            writes: true,
        }));
    }
    let name = first.name;
    let working = communicator.clone();
    let trouble = calls
        .iter()
        .map(|call| call.trouble)
        .max()
        .unwrap_or_default();
    let make = |places: &[usize]| {
        let mut places = places.iter().copied();
        let mut exchange = Exchange::new(size, label(&calls));
        for call in &calls {
            let [input, output] = call.ranges(rank, size);
            let input = input.and_then(|_| places.next()).unwrap_or(0);
            let output = output.and_then(|_| places.next()).unwrap_or(0);
            call.plan(&mut exchange, rank, size, input, output);
        }
        if !exchange.deliver_to_itself(rank) {
            forbidden("a member sends itself what it does not receive in the same group");
        }
        working.begin();
        let perform = move || working.perform(exchange, trouble);
        Box::new(perform) as Box<dyn FnOnce() + Send>
    };
    enqueue_collective(stream, name, &touches, make).map_err(|refused| match refused {
        Refused::Stream => INVALID_USAGE,
        Refused::Memory => INVALID_ARGUMENT,
    })
}
