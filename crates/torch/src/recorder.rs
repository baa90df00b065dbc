//! Which operators a piece of code gives libtorch: over how many bytes, for how long, and where the host waits for the device.
//!
//! A view and an empty tensor need no kernel, so they are no operators; one of several kernels inside of libtorch counts as one.
//! What is recorded is this thread's.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::time::{Duration, Instant};

use crate::cuda;
use crate::device::Device;
use crate::pretend;

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It computes, or copies within the memory of its device.
    Compute,
    /// It copies from the host's memory to a device.
    ToDevice,
    /// It copies from a device to the host's memory, and the host waits for that; with the line that asked for it, outside of this
    /// crate.
    ToHost(&'static Location<'static>),
}

/// An operator that was called.
#[derive(Debug, Clone)]
pub struct Call {
    /// libtorch's name for it, or that of its C function.
    pub name: String,
    /// The part of the work that it belongs to ([`part`]); empty outside of all.
    pub part: &'static str,
    /// What it does.
    pub action: Action,
    /// The device among those of its arguments, where one is on a device; else the CPU.
    pub device: Device,
    /// Bytes of its arguments that it reads; an element that is broadcast counts once.
    pub read: u64,
    /// Bytes that it writes.
    pub written: u64,
    /// Sizes of what it reads, such as `[512, 896] [896, 9728]`.
    pub sizes: String,
    /// How long it took, the device included; zero unless times were asked for.
    pub time: Duration,
}

impl Call {
    /// What it has to move at least.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }

    /// Whether the host has to wait for the device.
    pub fn host_waits(&self) -> bool {
        matches!(self.action, Action::ToHost(_))
    }
}

/// What is noted of each operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Names, sizes, bytes. The code runs as it always does.
    Counts,
    /// Times as well: the host waits for the device before and after each, so that nothing overlaps.
    Times,
}

/// Which tensors an operator writes to.
#[derive(Clone, Copy)]
pub(crate) enum Writes {
    /// New ones, which are owned next, or one of those that it was given.
    Results,
    /// Its first, which it reads as well.
    First,
    /// The one of this address, of which it reads nothing.
    Over(usize),
}

/// A tensor that an operator is given, or makes.
pub(crate) struct Seen {
    /// Of its first element.
    pub address: usize,
    /// Of the elements that are there: a stride of 0 repeats one.
    pub bytes: u64,
    pub sizes: Vec<i64>,
    pub device: Device,
}

struct Recording {
    detail: Detail,
    calls: Vec<Call>,
    /// For the operator that is called next.
    given: Vec<Seen>,
    /// When it was given the last of them.
    start: Instant,
    /// What the last operator was given, as long as its results may follow.
    taken: Option<Vec<Seen>>,
    /// The last operator writes to its first tensor.
    in_place: bool,
}

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
    static PART: Cell<&'static str> = const { Cell::new("") };
}

/// Puts back what was before, also where the body panics.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        IS_ON.set(self.0);
    }
}

/// Runs `body`; returns what it returned, and the operators that this thread called in it, in order. A recording inside of another
/// takes its calls for itself.
pub fn record<R>(detail: Detail, body: impl FnOnce() -> R) -> (R, Vec<Call>) {
    /// As above, for the recording.
    struct Outer(Option<Recording>);
    impl Drop for Outer {
        fn drop(&mut self) {
            RECORDING.set(self.0.take());
        }
    }
    let own = Recording {
        detail,
        calls: Vec::new(),
        given: Vec::new(),
        start: Instant::now(),
        taken: None,
        in_place: false,
    };
    let _outer = Outer(RECORDING.replace(Some(own)));
    let _before = Before(IS_ON.replace(true));
    let result = body();
    let calls = RECORDING.take().map(|own| own.calls);
    (result, calls.unwrap_or_default())
}

/// Runs `body`, whose operators belong to the part of this name; to an inner one where there is one.
pub fn part<R>(name: &'static str, body: impl FnOnce() -> R) -> R {
    /// As above, for the part.
    struct Outer(&'static str);
    impl Drop for Outer {
        fn drop(&mut self) {
            PART.set(self.0);
        }
    }
    let _outer = Outer(PART.replace(name));
    body()
}

/// Does something that no device would be asked for.
pub(crate) fn unrecorded<R>(body: impl FnOnce() -> R) -> R {
    let _before = Before(IS_ON.replace(false));
    body()
}

/// Whether anybody records.
#[inline]
pub(crate) fn is_on() -> bool {
    IS_ON.get()
}

/// The next operator gets this tensor.
#[cold]
pub(crate) fn given(given: Seen) {
    RECORDING.with_borrow_mut(|slot| {
        if let Some(recording) = slot {
            if recording.given.is_empty() {
                recording.wait(given.device);
            }
            recording.given.push(given);
            recording.start = Instant::now();
        }
    });
}

/// An operator was called with what was given.
#[cold]
pub(crate) fn called(operator: &str, writes: Writes, action: Action) {
    RECORDING.with_borrow_mut(|slot| {
        if let Some(recording) = slot {
            recording.called(operator, writes, action);
        }
    });
}

/// The last operator has made this tensor, or written to it.
#[cold]
pub(crate) fn made(made: &Seen) {
    RECORDING.with_borrow_mut(|slot| {
        if let Some(recording) = slot {
            recording.made(made);
        }
    });
}

impl Recording {
    fn called(&mut self, operator: &str, writes: Writes, action: Action) {
        let mut given = std::mem::take(&mut self.given);
        self.taken = None;
        if given.is_empty() {
            return;
        }
        let device = given.iter().map(|it| it.device).find(|it| it.is_cuda());
        let device = device.unwrap_or(Device::Cpu);
        self.wait(device);
        let time = match self.detail {
            Detail::Counts => Duration::ZERO,
            Detail::Times => self.start.elapsed(),
        };
        let written = match writes {
            Writes::Results => 0,
            Writes::First => given[0].bytes,
            Writes::Over(address) => {
                let found = given.iter().position(|it| it.address == address);
                found.map_or(0, |place| given.remove(place).bytes)
            }
        };
        let sizes: Vec<String> = given.iter().map(|it| format!("{:?}", it.sizes)).collect();
        self.calls.push(Call {
            name: operator.to_owned(),
            part: PART.get(),
            action,
            device,
            read: given.iter().map(|it| it.bytes).sum(),
            written,
            sizes: sizes.join(" "),
            time,
        });
        self.in_place = matches!(writes, Writes::First);
        self.taken = Some(given);
    }

    fn made(&mut self, made: &Seen) {
        let (Some(taken), Some(call)) = (&self.taken, self.calls.last_mut()) else {
            return;
        };
        let place = taken
            .iter()
            .position(|it| it.address == made.address && it.bytes > 0);
        match place {
            Some(0) if self.in_place => {}
            // A view: nothing has run.
            Some(0) => {
                self.calls.pop();
                self.taken = None;
            }
            // A tensor that was given to be filled, or one more that is written in place.
            Some(place) => {
                call.written += made.bytes;
                if !self.in_place {
                    call.read -= taken[place].bytes;
                }
            }
            None => call.written += made.bytes,
        }
    }

    fn wait(&self, device: Device) {
        if let (Detail::Times, Device::Cuda(index)) = (self.detail, device)
            && !pretend::is_on()
        {
            cuda::synchronize(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use crate::tensor::Tensor;

    fn floats(shape: &[i64]) -> Tensor {
        Tensor::ones(shape, (Kind::Float, Device::Cpu))
    }

    /// Name, bytes read, bytes written.
    fn told(calls: &[Call]) -> Vec<(&str, u64, u64)> {
        let told = calls
            .iter()
            .map(|call| (call.name.as_str(), call.read, call.written));
        told.collect()
    }

    #[test]
    fn operators_are_counted_with_their_bytes_and_views_are_none() {
        let (a, b) = (floats(&[3, 4]), floats(&[4, 5]));
        let (sum, calls) = record(Detail::Counts, || {
            let product = a.mm(&b).tr().view_dtype(Kind::Float).narrow(0, 0, 2);
            let flat = (product + 1.0).exp().flatten(0, 1).view([-1]);
            flat.sum(Kind::Double).double_value()
        });
        assert!(sum > 0.0);
        let expected = [
            ("mm", 4 * 32, 4 * 15),
            ("add", 4 * 6, 4 * 6),
            ("aten::exp", 4 * 6, 4 * 6),
            ("aten::flatten.using_ints", 4 * 6, 4 * 6),
            ("aten::sum", 4 * 6, 8),
        ];
        // The sum of a transposed matrix is transposed, so its rows are joined by a copy.
        assert_eq!(told(&calls), expected);
        assert_eq!(calls[0].sizes, "[3, 4] [4, 5]");
        assert!(calls.iter().all(|call| call.time.is_zero()));
    }

    #[test]
    fn what_is_written_in_place_or_over_is_told_apart() {
        let (a, b, c) = (floats(&[2, 2]), floats(&[2, 2]), floats(&[2, 2]));
        let (row, indices) = (floats(&[1, 2]), Tensor::from_slice(&[1i64, 2]));
        let ((), calls) = record(Detail::Counts, || {
            a.zero_();
            a.copy_(&b);
            a.addmm_(&b, &c);
            indices.bitwise_xor_(1);
            a.mul_into(&b, &c);
            a.copy_(&row);
        });
        let expected = [
            ("zero_", 0, 16),
            ("copy_", 16, 16),
            ("addmm", 48, 16),
            // The number is a tensor, too.
            ("aten::bitwise_xor_.Tensor", 24, 16),
            ("aten::mul.out", 32, 16),
            ("copy_", 8, 16),
        ];
        assert_eq!(told(&calls), expected);
    }

    #[test]
    fn copies_between_the_host_and_a_device_say_so() {
        let _pretended = pretend::cuda();
        let x = floats(&[8]);
        let (_, calls) = record(Detail::Times, || {
            let there = x.to_device(Device::Cuda(0));
            (&there + 1.0).to_vec::<f32>()
        });
        let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["copy_", "add", "copy_"]);
        assert_eq!(calls[0].action, Action::ToDevice);
        assert_eq!(calls[1].action, Action::Compute);
        let Action::ToHost(place) = calls[2].action else {
            panic!("{:?}", calls[2]);
        };
        assert!(place.file().ends_with("recorder.rs"), "{place}");
        assert!(calls.iter().all(|call| call.device == Device::Cuda(0)));
        assert!(calls.iter().all(|call| !call.time.is_zero()));
    }

    #[test]
    fn an_operator_belongs_to_the_innermost_part() {
        let x = floats(&[8]);
        let ((), calls) = record(Detail::Counts, || {
            part("outer", || {
                x.zero_();
                part("inner", || x.zero_());
                x.zero_();
            });
            x.zero_();
        });
        let parts: Vec<&str> = calls.iter().map(|call| call.part).collect();
        assert_eq!(parts, ["outer", "inner", "outer", ""]);
    }

    #[test]
    fn nobody_records_outside_and_each_recording_has_its_own() {
        let x = floats(&[8]);
        let ((), outer) = record(Detail::Counts, || {
            let _ = &x + &x;
            let ((), inner) = record(Detail::Counts, || drop(x.exp()));
            assert_eq!(inner.len(), 1);
            x.zero_();
        });
        let names: Vec<&str> = outer.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["add", "zero_"]);
        let _ = &x + &x;
        assert_eq!(record(Detail::Counts, || ()).1.len(), 0);
    }
}
