//! A CUDA device that is none: host memory and libtorch's operators for the CPU, in tensors that say they are on a CUDA device.
//! So whatever decides by a tensor's device decides as it would on one, on any machine: which operators run, and what the host
//! reads, which is refused and recorded as there ([`crate::recorder`]). What it says about is this thread.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    /// The next operator was given a tensor of the device.
    static TOUCHED: Cell<bool> = const { Cell::new(false) };
    /// The last operator had such tensors, so its results are on the device, too.
    static RESULTS: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread has one CUDA device, a pretended one.
pub struct Pretended(PhantomData<*const ()>);

/// Pretends that there is a CUDA device.
pub fn cuda() -> Pretended {
    IS_ON.set(true);
    Pretended(PhantomData)
}

impl Drop for Pretended {
    fn drop(&mut self) {
        IS_ON.set(false);
    }
}

/// Whether this thread has a pretended device. Its memory is the host's.
pub fn is_on() -> bool {
    IS_ON.get()
}

/// An operator gets a tensor of the device.
#[cold]
pub(crate) fn touched() {
    TOUCHED.set(true);
}

/// An operator was called. What was touched were its tensors.
#[inline]
pub(crate) fn called() {
    RESULTS.set(TOUCHED.take());
}

/// Whether a tensor that the last operator has made is on the device.
#[inline]
pub(crate) fn is_result() -> bool {
    RESULTS.get()
}
