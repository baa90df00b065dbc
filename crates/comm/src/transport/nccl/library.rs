//! The few functions of NCCL that are needed, from the library that libtorch brings along.
//!
//! Declared as in `nccl.h` of NCCL 2.x, whose binary interface has been stable since 2.3.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;

use libloading::Symbol;

use crate::collective::{Collective, Element, ReduceOp};
use crate::group::operation::{Operation, sums};

/// As libtorch's wheels and most distributions name it; then as development packages do.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

pub(crate) const UNIQUE_ID_BYTES: usize = 128;

/// What the members of a communicator find each other by.
pub(super) type UniqueId = [u8; UNIQUE_ID_BYTES];

type Status = c_int;
type Stream = *mut c_void;

const SUCCESS: Status = 0;
/// A communicator that is being set up; not an error.
const IN_PROGRESS: Status = 7;

/// `ncclComm_t`. NCCL lets one thread abort a communicator that another is using.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Communicator(*mut c_void);

// SAFETY: an opaque handle; see above for its use by two threads.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawUniqueId([u8; UNIQUE_ID_BYTES]);

/// The loaded library. It stays: threads of its own, and calls that never returned, may be in it.
pub(crate) struct Library(ManuallyDrop<libloading::Library>);

macro_rules! nccl {
    ($library:expr, $name:literal, ($($kind:ty),*) -> $result:ty) => {
        $library.symbol::<unsafe extern "C" fn($($kind),*) -> $result>($name)
    };
}

impl Library {
    /// # Errors
    /// A sentence that says what to install.
    pub(crate) fn open() -> Result<Self, String> {
        let mut reasons = Vec::new();
        for name in NAMES {
            // SAFETY: loading runs the library's initialisers, which is what its users rely on.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Ok(Self(ManuallyDrop::new(library))),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(format!(
            "the library was not found ({}); install the nvidia-nccl package that belongs to torch",
            reasons.join("; ")
        ))
    }

    pub(super) fn unique_id(&self) -> Result<UniqueId, String> {
        let function = nccl!(self, "ncclGetUniqueId", (*mut RawUniqueId) -> Status)?;
        let mut id = RawUniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: the signature is that of nccl.h, and `id` is writable.
        self.check(unsafe { function(&raw mut id) })?;
        Ok(id.0)
    }

    /// Joins the communicator `id` as `rank` of `size`, on the calling thread's device. Blocks until all have joined.
    pub(super) fn join(
        &self,
        id: UniqueId,
        rank: usize,
        size: usize,
    ) -> Result<Communicator, String> {
        let function = nccl!(
            self,
            "ncclCommInitRank",
            (*mut *mut c_void, c_int, RawUniqueId, c_int) -> Status
        )?;
        let mut communicator = std::ptr::null_mut();
        // SAFETY: the signature is that of nccl.h, and `communicator` is writable.
        let status = unsafe {
            function(
                &raw mut communicator,
                size as c_int,
                RawUniqueId(id),
                rank as c_int,
            )
        };
        self.check(status)?;
        Ok(Communicator(communicator))
    }

    /// What has gone wrong in the background, if anything.
    pub(super) fn asynchronous_error(&self, communicator: Communicator) -> Result<(), String> {
        let function = nccl!(
            self,
            "ncclCommGetAsyncError",
            (*mut c_void, *mut Status) -> Status
        )?;
        let mut error = SUCCESS;
        // SAFETY: the signature is that of nccl.h; the communicator has not been destroyed.
        self.check(unsafe { function(communicator.0, &raw mut error) })?;
        if error == IN_PROGRESS {
            return Ok(());
        }
        self.check(error)
    }

    /// Ends a communicator whose operations are all done (`is_idle`), or ends it with them.
    pub(super) fn end(&self, communicator: Communicator, is_idle: bool) -> Result<(), String> {
        let function = if is_idle {
            nccl!(self, "ncclCommDestroy", (*mut c_void) -> Status)?
        } else {
            nccl!(self, "ncclCommAbort", (*mut c_void) -> Status)?
        };
        // SAFETY: the signature is that of nccl.h for both; the caller gives the communicator up.
        self.check(unsafe { function(communicator.0) })
    }

    /// Puts the operation on `stream`.
    pub(super) fn enqueue(
        &self,
        communicator: Communicator,
        stream: Stream,
        operation: &Operation,
        rank: usize,
    ) -> Result<(), String> {
        let call = Call {
            library: self,
            communicator,
            stream,
            element: element_code(operation.signature.element),
            op: op_code(operation.signature.reduce.unwrap_or(ReduceOp::Sum)),
        };
        let input = operation.input.cast::<c_void>();
        let output = operation.output.cast::<c_void>();
        let elements = operation.signature.elements as usize;
        let even = operation
            .counts
            .iter()
            .all(|count| *count == operation.counts[0]);
        match operation.signature.collective {
            Collective::AllReduce => call.all_reduce(input, output, elements),
            // The group's token, a byte.
            Collective::Barrier => call.all_reduce(input, output, 1),
            Collective::Broadcast => {
                call.broadcast(input, output, elements, operation.signature.root as usize)
            }
            Collective::AllGather if even => call.all_gather(input, output, operation.counts[rank]),
            Collective::ReduceScatter if even => {
                call.reduce_scatter(input, output, operation.counts[rank])
            }
            Collective::AllGather => self.grouped(|| call.ragged_gather(operation, rank)),
            Collective::ReduceScatter => self.grouped(|| call.ragged_scatter(operation, rank)),
            Collective::AllToAll => self.grouped(|| call.exchange(operation, rank)),
            Collective::NewGroup => Ok(()),
        }
    }

    /// Starts all that `calls` does at once.
    fn grouped(&self, calls: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let start = nccl!(self, "ncclGroupStart", () -> Status)?;
        let end = nccl!(self, "ncclGroupEnd", () -> Status)?;
        // SAFETY: the signature is that of nccl.h.
        self.check(unsafe { start() })?;
        let called = calls();
        // SAFETY: as above. A group that was started must be ended also when a call in it failed.
        let ended = self.check(unsafe { end() });
        called.and(ended)
    }

    fn symbol<F>(&self, name: &str) -> Result<Symbol<'_, F>, String> {
        // SAFETY: the callers give the type that nccl.h declares for this name.
        unsafe { self.0.get(name.as_bytes()) }.map_err(|error| error.to_string())
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        let describe = nccl!(self, "ncclGetErrorString", (Status) -> *const c_char)?;
        // SAFETY: the signature is that of nccl.h, which promises a constant string for every status.
        let text = unsafe {
            let text = describe(status);
            if text.is_null() {
                return Err(format!("status {status}"));
            }
            CStr::from_ptr(text)
        };
        Err(text.to_string_lossy().into_owned())
    }
}

/// What all calls of one operation have in common.
struct Call<'a> {
    library: &'a Library,
    communicator: Communicator,
    stream: Stream,
    element: c_int,
    op: c_int,
}

// In all of these: the signatures are those of nccl.h, and the memory is device memory that the operation keeps alive until
// the stream has passed it.
impl Call<'_> {
    fn all_reduce(
        &self,
        input: *const c_void,
        output: *mut c_void,
        elements: usize,
    ) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclAllReduce",
            (*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, op, communicator) = (self.element, self.op, self.communicator.0);
        // SAFETY: see above.
        self.library.check(unsafe {
            function(
                input,
                output,
                elements,
                element,
                op,
                communicator,
                self.stream,
            )
        })
    }

    fn broadcast(
        &self,
        input: *const c_void,
        output: *mut c_void,
        elements: usize,
        root: usize,
    ) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclBroadcast",
            (*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, root, communicator) = (self.element, root as c_int, self.communicator.0);
        // SAFETY: see above.
        self.library.check(unsafe {
            function(
                input,
                output,
                elements,
                element,
                root,
                communicator,
                self.stream,
            )
        })
    }

    fn all_gather(
        &self,
        input: *const c_void,
        output: *mut c_void,
        each: usize,
    ) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclAllGather",
            (*const c_void, *mut c_void, usize, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, communicator) = (self.element, self.communicator.0);
        // SAFETY: see above.
        self.library
            .check(unsafe { function(input, output, each, element, communicator, self.stream) })
    }

    fn reduce_scatter(
        &self,
        input: *const c_void,
        output: *mut c_void,
        each: usize,
    ) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclReduceScatter",
            (*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, op, communicator) = (self.element, self.op, self.communicator.0);
        // SAFETY: see above.
        self.library
            .check(unsafe { function(input, output, each, element, op, communicator, self.stream) })
    }

    fn reduce(
        &self,
        input: *const c_void,
        output: *mut c_void,
        elements: usize,
        root: usize,
    ) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclReduce",
            (*const c_void, *mut c_void, usize, c_int, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, op, communicator) = (self.element, self.op, self.communicator.0);
        // SAFETY: see above.
        self.library.check(unsafe {
            function(
                input,
                output,
                elements,
                element,
                op,
                root as c_int,
                communicator,
                self.stream,
            )
        })
    }

    fn send(&self, part: *const c_void, elements: usize, peer: usize) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclSend",
            (*const c_void, usize, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, peer, communicator) = (self.element, peer as c_int, self.communicator.0);
        // SAFETY: see above.
        self.library
            .check(unsafe { function(part, elements, element, peer, communicator, self.stream) })
    }

    fn receive(&self, part: *mut c_void, elements: usize, peer: usize) -> Result<(), String> {
        let function = nccl!(
            self.library,
            "ncclRecv",
            (*mut c_void, usize, c_int, c_int, *mut c_void, Stream) -> Status
        )?;
        let (element, peer, communicator) = (self.element, peer as c_int, self.communicator.0);
        // SAFETY: see above.
        self.library
            .check(unsafe { function(part, elements, element, peer, communicator, self.stream) })
    }

    /// Every member sends to every member, itself included, which NCCL allows within a group of calls.
    fn exchange(&self, operation: &Operation, rank: usize) -> Result<(), String> {
        let size = operation.signature.element.size();
        let (sent, received) = (operation.sent_by(rank), operation.received_by(rank));
        let starts = sums(sent.iter().copied()).into_iter();
        let starts = starts.zip(sums(received.iter().copied()));
        for (peer, (from, to)) in starts.enumerate() {
            // SAFETY: the parts lie within the input, and within the output.
            let (from, to) = unsafe {
                (
                    operation.input.add(from * size),
                    operation.output.add(to * size),
                )
            };
            if sent[peer] > 0 {
                self.send(from.cast(), sent[peer], peer)?;
            }
            if received[peer] > 0 {
                self.receive(to.cast(), received[peer], peer)?;
            }
        }
        Ok(())
    }

    /// Every member broadcasts its part.
    fn ragged_gather(&self, operation: &Operation, rank: usize) -> Result<(), String> {
        let size = operation.signature.element.size();
        for (member, part) in operation.parts().into_iter().enumerate() {
            // SAFETY: the parts lie within the output.
            let place = unsafe { operation.output.add(part.start * size) };
            let input = match member == rank {
                true => operation.input,
                false => place.cast_const(),
            };
            if !part.is_empty() {
                self.broadcast(input.cast(), place.cast(), part.len(), member)?;
            }
        }
        Ok(())
    }

    /// Every member's part is reduced to it.
    fn ragged_scatter(&self, operation: &Operation, rank: usize) -> Result<(), String> {
        let size = operation.signature.element.size();
        for (member, part) in operation.parts().into_iter().enumerate() {
            // SAFETY: the parts lie within the input.
            let place = unsafe { operation.input.add(part.start * size) };
            // Only the root writes; the others' receive buffer is not looked at.
            let output = match member == rank {
                true => operation.output,
                false => std::ptr::null_mut(),
            };
            if !part.is_empty() {
                self.reduce(place.cast(), output.cast(), part.len(), member)?;
            }
        }
        Ok(())
    }
}

/// `ncclDataType_t`.
fn element_code(element: Element) -> c_int {
    match element {
        Element::U8 => 1,
        Element::I32 => 2,
        Element::I64 => 4,
        Element::F16 => 6,
        Element::F32 => 7,
        Element::F64 => 8,
        Element::Bf16 => 9,
    }
}

/// `ncclRedOp_t`.
fn op_code(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Max => 2,
        ReduceOp::Min => 3,
    }
}
