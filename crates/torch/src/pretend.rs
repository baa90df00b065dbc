//! A CUDA device that is none: host memory and libtorch's operators for the CPU, in tensors that say they are on a CUDA device.
//! So whatever decides by a tensor's device decides as it would on one, on any machine: which operators run, and what the host
//! reads, which is refused and recorded as there. What it says about is this thread.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

/// An operator that was given tensors of the pretended device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// libtorch's name, or that of its C function.
    pub operator: String,
    /// Bytes of the tensors that it was given and made: what it has to move at least.
    pub bytes: u64,
    /// The host has to wait for the device.
    pub host_waits: bool,
}

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    /// Bytes of the tensors of the device that the next operator was given.
    static TOUCHED: Cell<Option<u64>> = const { Cell::new(None) };
    /// The last operator had such tensors, so its results are on the device, too.
    static RESULTS: Cell<bool> = const { Cell::new(false) };
    static RECORD: RefCell<Option<Vec<Recorded>>> = const { RefCell::new(None) };
}

/// While it lives, this thread's CUDA devices are pretended ones.
pub struct Pretended(PhantomData<*const ()>);

/// Pretends that there are CUDA devices.
pub fn cuda() -> Pretended {
    IS_ON.set(true);
    Pretended(PhantomData)
}

impl Drop for Pretended {
    fn drop(&mut self) {
        IS_ON.set(false);
    }
}

pub(crate) fn is_on() -> bool {
    IS_ON.get()
}

/// What operators `body` gives tensors of the pretended device, in their order.
pub fn record<T>(body: impl FnOnce() -> T) -> (T, Vec<Recorded>) {
    let before = RECORD.replace(Some(Vec::new()));
    let result = body();
    (result, RECORD.replace(before).unwrap_or_default())
}

/// Does something that no device would be asked for.
pub(crate) fn unrecorded<T>(body: impl FnOnce() -> T) -> T {
    let before = RECORD.take();
    let result = body();
    RECORD.set(before);
    result
}

/// An operator gets a tensor of the device, of so many bytes.
#[cold]
pub(crate) fn touched(bytes: u64) {
    TOUCHED.set(Some(TOUCHED.get().unwrap_or(0) + bytes));
}

/// An operator was called. What was touched were its tensors.
#[inline]
pub(crate) fn called(operator: &str) {
    let touched = TOUCHED.take();
    RESULTS.set(touched.is_some());
    if let Some(bytes) = touched {
        noted(operator, bytes, false);
    }
}

/// The host reads what the device has computed.
pub(crate) fn host_waits(what: &str) {
    noted(what, 0, true);
}

#[cold]
fn noted(operator: &str, bytes: u64, host_waits: bool) {
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.push(Recorded {
                operator: operator.to_owned(),
                bytes,
                host_waits,
            });
        }
    });
}

/// Whether a tensor that the last operator has made is on the device.
#[inline]
pub(crate) fn is_result() -> bool {
    RESULTS.get()
}

/// The last operator has made a tensor.
#[cold]
pub(crate) fn made(bytes: u64) {
    RECORD.with_borrow_mut(|record| {
        if let Some(last) = record.as_mut().and_then(|record| record.last_mut()) {
            last.bytes += bytes;
        }
    });
}
