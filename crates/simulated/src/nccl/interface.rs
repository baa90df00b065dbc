//! The functions of NCCL that Tandem calls, as `nccl.h` declares them.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_kernels::reduce::ReduceOp;

use super::communicator::Communicator;
use super::exchange::{Element, Exchange};
use super::link;
use crate::cuda::{Refused, Touch, enqueue_collective};
use crate::fault::{self, Fault};
use crate::forbidden;

/// `ncclResult_t`.
const SYSTEM_ERROR: c_int = 2;
const INTERNAL_ERROR: c_int = 3;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;

const ID_BYTES: usize = 128;

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

/// What one call asks for. Addresses are the device's.
#[derive(Debug, Clone, Copy)]
struct Call {
    name: &'static str,
    what: What,
    input: usize,
    output: usize,
    count: usize,
    element: Element,
    is_stuck: bool,
}

#[derive(Debug, Clone, Copy)]
enum What {
    AllReduce(ReduceOp),
    AllGather,
    ReduceScatter(ReduceOp),
    Broadcast { root: usize },
    Reduce { op: ReduceOp, root: usize },
    Send { peer: usize },
    Receive { peer: usize },
}

/// Calls between `ncclGroupStart` and `ncclGroupEnd`.
#[derive(Default)]
struct Group {
    depth: usize,
    calls: Vec<(Arc<Communicator>, usize, Call)>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
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
    let is_stuck = calls.iter().any(|call| call.is_stuck);
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
        let perform = move || working.perform(exchange, is_stuck);
        Box::new(perform) as Box<dyn FnOnce() + Send>
    };
    enqueue_collective(stream, name, &touches, make).map_err(|refused| match refused {
        Refused::Stream => INVALID_USAGE,
        Refused::Memory => INVALID_ARGUMENT,
    })
}

/// What every collective begins with.
fn collective(
    name: &'static str,
    communicator: *mut c_void,
    stream: *mut c_void,
    kind: c_int,
    call: impl FnOnce(usize, Element) -> Option<Call>,
) -> c_int {
    let communicator = Communicator::of(communicator as usize, name);
    let mut is_stuck = false;
    match fault::due(name) {
        None => {}
        Some(Fault::Error(status) | Fault::Broken(status)) => return status,
        Some(Fault::Stuck) => is_stuck = true,
        Some(Fault::Async(status)) => {
            communicator.background.store(status, Ordering::Release);
            is_stuck = true;
        }
        Some(Fault::Blocked) => {
            communicator.calls.fetch_add(1, Ordering::AcqRel);
            communicator.wait_for_abort();
            communicator.calls.fetch_sub(1, Ordering::AcqRel);
            return INTERNAL_ERROR;
        }
    }
    let Some(mut call) = Element::of(kind).and_then(|element| call(communicator.size, element))
    else {
        return INVALID_ARGUMENT;
    };
    call.is_stuck = is_stuck;
    let is_grouped = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group
                .calls
                .push((communicator.clone(), stream as usize, call));
        }
        group.depth > 0
    });
    if is_grouped {
        return 0;
    }
    launch(&communicator, stream as usize, &[call])
        .err()
        .unwrap_or(0)
}

fn reduction(code: c_int) -> Option<ReduceOp> {
    match code {
        0 => Some(ReduceOp::Sum),
        2 => Some(ReduceOp::Max),
        3 => Some(ReduceOp::Min),
        _ => None,
    }
}

fn member(rank: c_int, size: usize) -> Option<usize> {
    usize::try_from(rank).ok().filter(|rank| *rank < size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    static MADE: AtomicU64 = AtomicU64::new(0);
    if let Some(Fault::Error(status)) = fault::due("ncclGetUniqueId") {
        return status;
    }
    if id.is_null() {
        return INVALID_ARGUMENT;
    }
    let mut bytes = [0; ID_BYTES];
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("simulated-nccl-{}-{number}", std::process::id());
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the caller passes a place for the result, as `nccl.h` asks.
    unsafe { id.write(UniqueId(bytes)) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRank(
    communicator: *mut *mut c_void,
    size: c_int,
    id: UniqueId,
    rank: c_int,
) -> c_int {
    match fault::due("ncclCommInitRank") {
        Some(Fault::Error(status)) => return status,
        Some(Fault::Blocked) => loop {
            std::thread::park();
        },
        _ => {}
    }
    let Some((size, rank)) = usize::try_from(size)
        .ok()
        .and_then(|size| Some((size, member(rank, size)?)))
    else {
        return INVALID_ARGUMENT;
    };
    let end = id.0.iter().position(|byte| *byte == 0).unwrap_or(ID_BYTES);
    let Ok(name) = std::str::from_utf8(&id.0[..end]) else {
        return INVALID_ARGUMENT;
    };
    let Ok(links) = link::meet(name, rank, size) else {
        return SYSTEM_ERROR;
    };
    let handle = Communicator::register(rank, size, links);
    // SAFETY: the caller passes a place for the result, as `nccl.h` asks.
    unsafe { communicator.write(handle as *mut c_void) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(communicator: *mut c_void, status: *mut c_int) -> c_int {
    let communicator = Communicator::of(communicator as usize, "ncclCommGetAsyncError");
    // SAFETY: the caller passes a place for the result, as `nccl.h` asks.
    unsafe { status.write(communicator.background.load(Ordering::Acquire)) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(communicator: *mut c_void) -> c_int {
    Communicator::destroy(communicator as usize);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(communicator: *mut c_void) -> c_int {
    Communicator::abort(communicator as usize);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(status: c_int) -> *const c_char {
    match status {
        0 => c"no error",
        1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        6 => c"remote process exited or there was a network error",
        _ => c"unknown result code",
    }
    .as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|group| group.depth += 1);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> c_int {
    let calls = GROUP.with_borrow_mut(|group| {
        group.depth = group.depth.checked_sub(1)?;
        Some(match group.depth {
            0 => std::mem::take(&mut group.calls),
            _ => Vec::new(),
        })
    });
    let Some(mut calls) = calls else {
        return INVALID_USAGE;
    };
    let mut status = 0;
    while let Some((communicator, stream, _)) = calls.first().cloned() {
        let is_same = |call: &(Arc<Communicator>, usize, Call)| {
            Arc::ptr_eq(&call.0, &communicator) && call.1 == stream
        };
        let (same, others): (Vec<_>, Vec<_>) = calls.into_iter().partition(is_same);
        let same: Vec<Call> = same.into_iter().map(|(_, _, call)| call).collect();
        if let Err(failed) = launch(&communicator, stream, &same) {
            status = failed;
        }
        calls = others;
    }
    status
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective("ncclAllReduce", communicator, stream, kind, |_, element| {
        let what = What::AllReduce(reduction(op)?);
        Some(call("ncclAllReduce", what, input, output, count, element))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    kind: c_int,
    root: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective(
        "ncclBroadcast",
        communicator,
        stream,
        kind,
        |size, element| {
            let what = What::Broadcast {
                root: member(root, size)?,
            };
            Some(call("ncclBroadcast", what, input, output, count, element))
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    kind: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective("ncclAllGather", communicator, stream, kind, |_, element| {
        Some(call(
            "ncclAllGather",
            What::AllGather,
            input,
            output,
            count,
            element,
        ))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduceScatter(
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective(
        "ncclReduceScatter",
        communicator,
        stream,
        kind,
        |_, element| {
            let what = What::ReduceScatter(reduction(op)?);
            Some(call(
                "ncclReduceScatter",
                what,
                input,
                output,
                count,
                element,
            ))
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduce(
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    kind: c_int,
    op: c_int,
    root: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective("ncclReduce", communicator, stream, kind, |size, element| {
        let what = What::Reduce {
            op: reduction(op)?,
            root: member(root, size)?,
        };
        Some(call("ncclReduce", what, input, output, count, element))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    input: *const c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective("ncclSend", communicator, stream, kind, |size, element| {
        let what = What::Send {
            peer: member(peer, size)?,
        };
        Some(call(
            "ncclSend",
            what,
            input,
            std::ptr::null_mut(),
            count,
            element,
        ))
    })
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    output: *mut c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> c_int {
    collective("ncclRecv", communicator, stream, kind, |size, element| {
        let what = What::Receive {
            peer: member(peer, size)?,
        };
        Some(call(
            "ncclRecv",
            what,
            std::ptr::null(),
            output,
            count,
            element,
        ))
    })
}

fn call(
    name: &'static str,
    what: What,
    input: *const c_void,
    output: *mut c_void,
    count: usize,
    element: Element,
) -> Call {
    Call {
        name,
        what,
        input: input as usize,
        output: output as usize,
        count,
        element,
        is_stuck: false,
    }
}
