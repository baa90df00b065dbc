//! Which operators a piece of code runs: how many, over how many bytes, for how long, and where the host waits for the device.
//!
//! Every operation of this crate that computes, copies or reads passes here. What has no kernel (views, empty tensors) is not
//! an operator, and an operator of several kernels inside of libtorch counts as one.

use std::cell::RefCell;
use std::panic::Location;
use std::time::{Duration, Instant};

use crate::cuda;
use crate::device::Device;
use crate::tensor::Tensor;

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It computes where its tensors are: a launch, on a GPU.
    Compute,
    /// It copies to a device from the host's memory.
    ToDevice,
    /// The host reads numbers of a tensor. If that is on a GPU, it waits for all that the GPU was given.
    HostReads,
}

/// One operator that ran.
#[derive(Debug, Clone)]
pub struct Call {
    /// libtorch's name for it.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Bytes of its arguments that it reads; an element that is broadcast counts once.
    pub read: u64,
    /// Bytes that it writes.
    pub written: u64,
    /// Sizes of its arguments, such as `[512, 896] [896, 9728]`.
    pub sizes: String,
    /// How long it took, the device included; zero unless times were asked for.
    pub time: Duration,
    /// The line that asked for it: of a read, the first outside of this crate.
    pub place: &'static Location<'static>,
}

/// What is noted of each operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Names, sizes, bytes. The code runs as it always does.
    Counts,
    /// Times as well: the host waits for the device before and after each, so that nothing overlaps.
    Times,
}

struct Recording {
    detail: Detail,
    calls: Vec<Call>,
}

thread_local! {
    /// Operators of other threads are not ours: a rank's own thread computes, others only move bytes.
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Runs `body`, and returns what it returned and the operators that this thread ran in it, in order. A recording inside of another
/// takes its calls for itself.
pub fn record<R>(detail: Detail, body: impl FnOnce() -> R) -> (R, Vec<Call>) {
    /// Puts back what was before, also where `body` panics.
    struct Outer(Option<Recording>);
    impl Drop for Outer {
        fn drop(&mut self) {
            RECORDING.with(|slot| *slot.borrow_mut() = self.0.take());
        }
    }
    let calls = Vec::new();
    let outer = RECORDING.with(|slot| slot.borrow_mut().replace(Recording { detail, calls }));
    let _outer = Outer(outer);
    let result = body();
    let own = RECORDING.with(|slot| slot.borrow_mut().take());
    (result, own.map(|own| own.calls).unwrap_or_default())
}

/// An operator that is about to run, if anybody records.
pub(crate) struct Begun {
    start: Instant,
    place: &'static Location<'static>,
}

/// Says that an operator over `first` begins.
#[inline]
#[track_caller]
pub(crate) fn begin(first: Option<&Tensor>) -> Option<Begun> {
    let detail = RECORDING.with(|slot| slot.borrow().as_ref().map(|it| it.detail))?;
    wait(detail, first);
    Some(Begun {
        start: Instant::now(),
        place: Location::caller(),
    })
}

/// Says that it has run: it read `read` and wrote `written`.
#[inline]
pub(crate) fn end(
    begun: Option<Begun>,
    name: &str,
    action: Action,
    read: &[&Tensor],
    written: &[&Tensor],
) {
    if let Some(begun) = begun {
        note(&begun, name, action, read, written);
    }
}

#[cold]
fn note(begun: &Begun, name: &str, action: Action, read: &[&Tensor], written: &[&Tensor]) {
    let total = |tensors: &[&Tensor]| tensors.iter().map(|tensor| bytes(tensor)).sum();
    let sizes: Vec<String> = read.iter().map(|t| format!("{:?}", t.size())).collect();
    RECORDING.with(|slot| {
        let mut slot = slot.borrow_mut();
        let Some(recording) = slot.as_mut() else {
            return;
        };
        wait(recording.detail, written.first().or(read.first()).copied());
        recording.calls.push(Call {
            name: name.to_owned(),
            action,
            read: total(read),
            written: total(written),
            sizes: sizes.join(" "),
            time: match recording.detail {
                Detail::Counts => Duration::ZERO,
                Detail::Times => begun.start.elapsed(),
            },
            place: begun.place,
        });
    });
}

fn wait(detail: Detail, tensor: Option<&Tensor>) {
    if let (Detail::Times, Some(Device::Cuda(device))) = (detail, tensor.map(Tensor::device)) {
        cuda::synchronize(device);
    }
}

/// Bytes of the elements that are there: a stride of 0 repeats one.
fn bytes(tensor: &Tensor) -> u64 {
    let sizes = tensor.size().iter().zip(tensor.stride());
    let elements: i64 = sizes
        .map(|(size, stride)| if *stride == 0 { (*size).min(1) } else { *size })
        .product();
    elements as u64 * tensor.kind().elt_size_in_bytes() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn floats(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn operators_are_counted_with_their_bytes_and_views_are_none() {
        let (a, b) = (floats(&[3, 4]), floats(&[4, 5]));
        let (sum, calls) = record(Detail::Counts, || {
            let product = a.mm(&b).tr().view_dtype(Kind::Float).narrow(0, 0, 2);
            (product + 1.0).exp().sum(Kind::Double).double_value()
        });
        assert!(sum > 0.0);
        let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["mm", "add", "aten::exp", "aten::sum", "a read"]);
        assert_eq!((calls[0].read, calls[0].written), (4 * 32, 4 * 15));
        assert_eq!(calls[0].sizes, "[3, 4] [4, 5]");
        assert_eq!((calls[1].read, calls[1].written), (4 * 6, 4 * 6));
        let reads = calls.iter().filter(|call| call.action == Action::HostReads);
        assert_eq!(reads.map(|call| call.read).collect::<Vec<_>>(), [8]);
        assert!(calls.iter().all(|call| call.time.is_zero()));
        let read = &calls[4];
        assert!(read.place.file().ends_with("recorder.rs"), "{}", read.place);
    }

    #[test]
    fn nobody_records_outside_and_each_recording_has_its_own() {
        let x = floats(&[8]);
        let ((), outer) = record(Detail::Times, || {
            let _ = &x + &x;
            let ((), inner) = record(Detail::Counts, || drop(x.exp()));
            assert_eq!(inner.len(), 1);
            x.zero_();
        });
        let names: Vec<&str> = outer.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["add", "zero_"]);
        assert!(outer.iter().all(|call| !call.time.is_zero()));
        let _ = &x + &x;
        assert_eq!(record(Detail::Counts, || ()).1.len(), 0);
    }
}
