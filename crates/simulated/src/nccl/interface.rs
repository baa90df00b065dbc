//! The functions of NCCL that Tandem calls, as `nccl.h` declares them.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_kernels::reduce::ReduceOp;

use super::call::{Call, INVALID_ARGUMENT, What, begin_group, end_group, submit};
use super::communicator::{Communicator, Trouble};
use super::exchange::Element;
use super::link;
use crate::fault::{self, Fault};

/// `ncclResult_t`.
const SYSTEM_ERROR: c_int = 2;
const INTERNAL_ERROR: c_int = 3;

const ID_BYTES: usize = 128;

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

/// What every collective begins with.
fn collective(
    name: &'static str,
    communicator: *mut c_void,
    stream: *mut c_void,
    kind: c_int,
    call: impl FnOnce(usize, Element) -> Option<Call>,
) -> c_int {
    let communicator = Communicator::of(communicator as usize, name);
    let mut trouble = Trouble::None;
    match fault::due(name) {
        None => {}
        Some(Fault::Error(status) | Fault::Broken(status)) => return status,
        Some(Fault::Stuck) => trouble = Trouble::Stuck,
        Some(Fault::Late) => trouble = Trouble::Late,
        Some(Fault::Async(status)) => {
            communicator.background.store(status, Ordering::Release);
            trouble = Trouble::Stuck;
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
    call.trouble = trouble;
    let submitted = submit(&communicator, stream as usize, call);
    submitted.err().unwrap_or(0)
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
    begin_group();
    0
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> c_int {
    end_group().err().unwrap_or(0)
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
        trouble: Trouble::None,
    }
}
