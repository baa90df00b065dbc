//! Streams, each a queue with a thread, and the events between them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::memory::Memory;
use super::order::{Access, Clock, Moment};
use crate::{DEVICES, SEED, forbidden};

/// `CUresult`s.
pub(super) const INVALID_VALUE: i32 = 1;
pub(super) const OUT_OF_MEMORY: i32 = 2;
pub(super) const NO_DEVICE: i32 = 100;
pub(super) const INVALID_DEVICE: i32 = 101;
pub(super) const INVALID_CONTEXT: i32 = 201;
pub(super) const INVALID_HANDLE: i32 = 400;
pub(super) const NOT_READY: i32 = 600;
pub(super) const NOT_SUPPORTED: i32 = 801;

/// The handles of the devices' default streams begin here, those of other streams and of events further up.
const DEFAULT_STREAMS: usize = 0x1000;
const FIRST_HANDLE: usize = 0x10_0000;

/// What a stream is given.
type Command = Box<dyn FnOnce() + Send>;

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such stream for this thread.
    Stream,
    /// An address range is not within memory of the device.
    Memory,
}

/// A range of addresses that a command reads or writes.
#[derive(Debug, Clone)]
pub(crate) struct Touch {
    pub(crate) range: Range<usize>,
    pub(crate) writes: bool,
}

struct Stream {
    device: usize,
    number: usize,
    /// What it was given so far.
    tick: u64,
    done: Arc<AtomicU64>,
    clock: Clock,
    commands: Sender<(u64, Command)>,
}

/// What an event stands for since it was last recorded.
struct Record {
    clock: Clock,
    is_done: AtomicBool,
}

struct Event {
    device: usize,
    record: Option<Arc<Record>>,
}

/// All that the driver knows.
#[derive(Default)]
pub(super) struct Machine {
    streams: HashMap<usize, Stream>,
    events: HashMap<usize, Event>,
    pub(super) memory: Memory,
    /// What every thread of the host knows to be done.
    host: Clock,
    /// The status of a device that is beyond help.
    pub(super) broken: Option<i32>,
    streams_made: usize,
    handles_made: usize,
}

static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(Mutex::default);
/// A command is done.
static DONE: Condvar = Condvar::new();

thread_local! {
    /// What this thread has seen to be done by asking. (What it has waited for, all threads know: they are told so by their own
    /// locks, which cannot be seen from here.)
    static SEEN: RefCell<Clock> = const { RefCell::new(Clock::new()) };
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(super) fn machine() -> MutexGuard<'static, Machine> {
    MACHINE.lock()
}

/// Devices that there are.
pub(super) fn devices() -> usize {
    let number = |text: String| text.parse().ok();
    std::env::var(DEVICES).ok().and_then(number).unwrap_or(8)
}

/// The device that is this thread's current one.
pub(super) fn current() -> Option<usize> {
    CURRENT.get()
}

pub(super) fn set_current(device: Option<usize>) {
    CURRENT.set(device);
}

impl Machine {
    fn handle(&mut self) -> usize {
        self.handles_made += 1;
        FIRST_HANDLE + 16 * self.handles_made
    }

    /// A new stream of the current device.
    pub(super) fn new_stream(&mut self) -> Result<usize, i32> {
        let device = current().ok_or(INVALID_CONTEXT)?;
        let handle = self.handle();
        self.start(handle, device);
        Ok(handle)
    }

    fn start(&mut self, handle: usize, device: usize) {
        let number = self.streams_made;
        self.streams_made += 1;
        let (commands, receiver) = mpsc::channel();
        let done = Arc::new(AtomicU64::new(0));
        let progress = done.clone();
        let started = std::thread::Builder::new()
            .name(format!("stream-{number}"))
            .spawn(move || run(number, &receiver, &progress));
        if started.is_err() {
            forbidden("no thread for a stream");
        }
        let stream = Stream {
            device,
            number,
            tick: 0,
            done,
            clock: Clock::new(),
            commands,
        };
        self.streams.insert(handle, stream);
    }

    /// The stream of a handle that the caller passed; null is the default stream of the current device.
    fn stream(&mut self, handle: usize) -> Result<&mut Stream, i32> {
        let device = current().ok_or(INVALID_CONTEXT)?;
        let handle = match handle {
            0 => DEFAULT_STREAMS + device,
            handle => handle,
        };
        if handle == DEFAULT_STREAMS + device && !self.streams.contains_key(&handle) {
            self.start(handle, device);
        }
        let stream = self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)?;
        match stream.device == device {
            true => Ok(stream),
            false => Err(INVALID_CONTEXT),
        }
    }

    /// Its thread ends once it has done what it was given.
    pub(super) fn destroy_stream(&mut self, handle: usize) -> Result<(), i32> {
        self.streams.remove(&handle).map(drop).ok_or(INVALID_HANDLE)
    }

    /// Gives a stream a command that touches these ranges.
    pub(super) fn enqueue(
        &mut self,
        stream: usize,
        what: &'static str,
        touches: &[Touch],
        command: Command,
    ) -> Result<(), i32> {
        let known = self.known();
        let stream = self.stream(stream)?;
        stream.tick += 1;
        stream.clock.join(&known);
        let at = Moment {
            stream: stream.number,
            tick: stream.tick,
        };
        let mut clock = stream.clock.clone();
        stream.clock.learn(at);
        // Of a stream, what it was given before is done first.
        clock.learn(Moment {
            tick: at.tick - 1,
            ..at
        });
        // The other end lives as long as this one.
        let _sent = stream.commands.send((at.tick, command));
        for touch in touches.iter().filter(|touch| !touch.range.is_empty()) {
            let access = Access {
                range: touch.range.clone(),
                writes: touch.writes,
                at,
                what,
            };
            // A command may read and write the same bytes.
            clock.learn(at);
            self.memory.access(access, &clock);
        }
        Ok(())
    }

    /// What this thread knows to be done.
    pub(super) fn known(&self) -> Clock {
        let mut known = self.host.clone();
        SEEN.with_borrow(|seen| known.join(seen));
        known
    }

    pub(super) fn new_event(&mut self) -> Result<usize, i32> {
        let device = current().ok_or(INVALID_CONTEXT)?;
        let handle = self.handle();
        let event = Event {
            device,
            record: None,
        };
        self.events.insert(handle, event);
        Ok(handle)
    }

    pub(super) fn destroy_event(&mut self, handle: usize) -> Result<(), i32> {
        self.events.remove(&handle).map(drop).ok_or(INVALID_HANDLE)
    }

    pub(super) fn record(&mut self, event: usize, stream: usize) -> Result<(), i32> {
        let known = self.known();
        let on = self.stream(stream)?;
        on.clock.join(&known);
        let (clock, device) = (on.clock.clone(), on.device);
        let record = Arc::new(Record {
            clock,
            is_done: AtomicBool::new(false),
        });
        let event = self.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        if event.device != device {
            return Err(INVALID_HANDLE);
        }
        event.record = Some(record.clone());
        let done = move || record.is_done.store(true, Ordering::Release);
        self.enqueue(stream, "cuEventRecord", &[], Box::new(done))
    }

    /// The stream goes on when the event has happened as it is recorded now.
    pub(super) fn wait_for(&mut self, stream: usize, event: usize) -> Result<(), i32> {
        let event = self.events.get(&event).ok_or(INVALID_HANDLE)?;
        let Some(record) = event.record.clone() else {
            return Ok(());
        };
        self.stream(stream)?.clock.join(&record.clock);
        let wait = move || {
            let mut machine = machine();
            while !record.is_done.load(Ordering::Acquire) {
                DONE.wait(&mut machine);
            }
        };
        self.enqueue(stream, "cuStreamWaitEvent", &[], Box::new(wait))
    }

    /// Whether the event has happened, which the thread knows from then on.
    pub(super) fn has_happened(&mut self, event: usize) -> Result<bool, i32> {
        let event = self.events.get(&event).ok_or(INVALID_HANDLE)?;
        let Some(record) = event.record.clone() else {
            return Ok(true);
        };
        if !record.is_done.load(Ordering::Acquire) {
            return Ok(false);
        }
        SEEN.with_borrow_mut(|seen| seen.join(&record.clock));
        self.memory.waited(&record.clock);
        Ok(true)
    }
}

/// The host waits until the event has happened.
pub(super) fn wait_for_event(
    machine: &mut MutexGuard<'_, Machine>,
    event: usize,
) -> Result<(), i32> {
    let event = machine.events.get(&event).ok_or(INVALID_HANDLE)?;
    let Some(record) = event.record.clone() else {
        return Ok(());
    };
    while !record.is_done.load(Ordering::Acquire) {
        DONE.wait(machine);
    }
    learn(machine, &record.clock);
    Ok(())
}

/// The host waits until a stream has done what it was given.
pub(super) fn wait_for_stream(
    machine: &mut MutexGuard<'_, Machine>,
    stream: usize,
) -> Result<(), i32> {
    let stream = machine.stream(stream)?;
    let (clock, tick, done) = (stream.clock.clone(), stream.tick, stream.done.clone());
    while done.load(Ordering::Acquire) < tick {
        DONE.wait(machine);
    }
    learn(machine, &clock);
    Ok(())
}

/// The host waits for all streams of the current device.
pub(super) fn wait_for_device(machine: &mut MutexGuard<'_, Machine>) -> Result<(), i32> {
    let device = current().ok_or(INVALID_CONTEXT)?;
    let of_device = machine
        .streams
        .iter()
        .filter(|(_, stream)| stream.device == device);
    let handles: Vec<usize> = of_device.map(|(handle, _)| *handle).collect();
    for handle in handles {
        // A stream that was destroyed meanwhile is nobody's any more.
        let _waited = wait_for_stream(machine, handle);
    }
    Ok(())
}

fn learn(machine: &mut Machine, clock: &Clock) {
    machine.host.join(clock);
    let host = machine.host.clone();
    machine.memory.waited(&host);
    machine.memory.forget(&host);
}

/// Puts a collective on a stream. `make` gets where the bytes of the ranges are.
pub(crate) fn enqueue_collective(
    stream: usize,
    what: &'static str,
    touches: &[Touch],
    make: impl FnOnce(&[usize]) -> Box<dyn FnOnce() + Send>,
) -> Result<(), Refused> {
    let mut machine = machine();
    let backing = |touch: &Touch| match touch.range.is_empty() {
        true => Some(0),
        false => machine.memory.backing(&touch.range),
    };
    let places: Option<Vec<usize>> = touches.iter().map(backing).collect();
    let command = make(&places.ok_or(Refused::Memory)?);
    machine
        .enqueue(stream, what, touches, command)
        .map_err(|_| Refused::Stream)
}

/// A stream's thread.
fn run(number: usize, commands: &Receiver<(u64, Command)>, done: &AtomicU64) {
    let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let mut random = seed.unwrap_or(1u64).wrapping_add(number as u64) | 1;
    for (tick, command) in commands {
        dawdle(&mut random);
        command();
        // Under the lock, so that nobody looks before and sleeps after it.
        let machine = machine();
        done.store(tick, Ordering::Release);
        DONE.notify_all();
        drop(machine);
    }
}

/// Mostly nothing, often some microseconds, now and then a millisecond.
fn dawdle(random: &mut u64) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let micros = match *random % 32 {
        0 => 1500,
        1..8 => *random / 32 % 100,
        _ => return,
    };
    std::thread::sleep(Duration::from_micros(micros));
}
