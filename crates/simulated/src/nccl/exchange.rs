//! What a group of collectives moves between the members, and what each member makes of it. Reductions add in rank order.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use half::{bf16, f16};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tandem_kernels::reduce::{ReduceOp, Reducible, Source, reduce};

/// The kinds of elements that Tandem sends, as in `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I32,
    I64,
    F16,
    F32,
    F64,
    Bf16,
}

impl Element {
    pub(super) fn of(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::U8,
            2 => Self::I32,
            4 => Self::I64,
            6 => Self::F16,
            7 => Self::F32,
            8 => Self::F64,
            9 => Self::Bf16,
            _ => return None,
        })
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }
}

/// Bytes to send to, or to receive from, another member.
#[derive(Debug)]
struct Transfer {
    address: usize,
    bytes: usize,
    moved: usize,
}

/// What remains to do when all is here.
#[derive(Debug)]
enum Finish {
    Copy {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Reduce {
        element: Element,
        op: ReduceOp,
        /// In rank order.
        sources: Vec<usize>,
        target: usize,
        elements: usize,
    },
}

/// Transfers to, or from, each member, in their order.
type Queues = Vec<VecDeque<Transfer>>;

/// Everything that one member does for a group of collectives.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// What all members do, where all take part.
    label: Option<u64>,
    outgoing: Queues,
    incoming: Queues,
    finish: Vec<Finish>,
    /// Where contributions arrive. In words, so that any element is aligned.
    stages: Vec<Vec<u64>>,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// A member is gone.
    Lost,
    /// A member does something else. NCCL does not notice, and leaves open what happens; here, nothing more does.
    Different,
    Aborted,
}

impl Exchange {
    /// `label` tells apart what members may do, where all take part.
    pub(super) fn new(size: usize, label: Option<u64>) -> Self {
        Self {
            label,
            outgoing: queues(size),
            incoming: queues(size),
            finish: Vec::new(),
            stages: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, peer: usize, address: usize, bytes: usize) {
        self.outgoing[peer].push_back(Transfer {
            address,
            bytes,
            moved: 0,
        });
    }

    pub(super) fn receive(&mut self, peer: usize, address: usize, bytes: usize) {
        self.incoming[peer].push_back(Transfer {
            address,
            bytes,
            moved: 0,
        });
    }

    pub(super) fn copy(&mut self, from: usize, to: usize, bytes: usize) {
        if from != to {
            self.finish.push(Finish::Copy { from, to, bytes });
        }
    }

    /// Reduces the contributions of all members, of which this one's is at `own`, into `target`.
    pub(super) fn reduce(
        &mut self,
        rank: usize,
        own: usize,
        target: usize,
        element: Element,
        op: ReduceOp,
        elements: usize,
    ) {
        let bytes = elements * element.size();
        let mut sources = Vec::new();
        for peer in 0..self.outgoing.len() {
            if peer == rank {
                sources.push(own);
                continue;
            }
            let stage = vec![0u64; bytes.div_ceil(8)];
            sources.push(stage.as_ptr() as usize);
            self.receive(peer, stage.as_ptr() as usize, bytes);
            // The vector moves, its elements do not.
            self.stages.push(stage);
        }
        self.finish.push(Finish::Reduce {
            element,
            op,
            sources,
            target,
            elements,
        });
    }

    /// What a member sends to itself. False where it does not receive it in the same group.
    pub(super) fn deliver_to_itself(&mut self, rank: usize) -> bool {
        let sent = std::mem::take(&mut self.outgoing[rank]);
        let received = std::mem::take(&mut self.incoming[rank]);
        let fits = sent.len() == received.len();
        for (from, to) in sent.into_iter().zip(received) {
            if from.bytes != to.bytes {
                return false;
            }
            self.copy(from.address, to.address, from.bytes);
        }
        fits
    }

    /// Moves everything, then reduces and copies. `is_aborted` is asked often.
    pub(super) fn run(
        mut self,
        links: &[Option<UnixStream>],
        is_aborted: &dyn Fn() -> bool,
    ) -> Outcome {
        if let Some(label) = self.label {
            let compared = compare(label, links, is_aborted);
            if compared != Outcome::Done {
                return compared;
            }
        }
        let moved = move_all(&mut self.outgoing, &mut self.incoming, links, is_aborted);
        if moved == Outcome::Done {
            for finish in self.finish.drain(..) {
                finish.run();
            }
        }
        moved
    }
}

fn queues(size: usize) -> Queues {
    (0..size).map(|_| VecDeque::new()).collect()
}

/// Whether all members have the same label.
fn compare(label: u64, links: &[Option<UnixStream>], is_aborted: &dyn Fn() -> bool) -> Outcome {
    let mut theirs = vec![label; links.len()];
    let (mut outgoing, mut incoming) = (queues(links.len()), queues(links.len()));
    let of = |address| Transfer {
        address,
        bytes: size_of::<u64>(),
        moved: 0,
    };
    for (peer, place) in theirs.iter_mut().enumerate() {
        if links[peer].is_some() {
            outgoing[peer].push_back(of(&raw const label as usize));
            incoming[peer].push_back(of(&raw mut *place as usize));
        }
    }
    match move_all(&mut outgoing, &mut incoming, links, is_aborted) {
        Outcome::Done if theirs.iter().any(|other| *other != label) => Outcome::Different,
        outcome => outcome,
    }
}

fn move_all(
    outgoing: &mut Queues,
    incoming: &mut Queues,
    links: &[Option<UnixStream>],
    is_aborted: &dyn Fn() -> bool,
) -> Outcome {
    loop {
        if is_aborted() {
            return Outcome::Aborted;
        }
        let mut has_moved = false;
        let mut waits_for = Vec::new();
        for (peer, link) in links.iter().enumerate() {
            let Some(link) = link else { continue };
            for (queue, is_outgoing) in [(&mut outgoing[peer], true), (&mut incoming[peer], false)]
            {
                match advance(queue, link, is_outgoing) {
                    Ok(moved) => has_moved |= moved,
                    Err(()) => return Outcome::Lost,
                }
                if !queue.is_empty() {
                    let flags = if is_outgoing {
                        PollFlags::OUT
                    } else {
                        PollFlags::IN
                    };
                    waits_for.push(PollFd::new(link, flags));
                }
            }
        }
        if waits_for.is_empty() {
            return Outcome::Done;
        }
        if !has_moved {
            let look_around = Timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            // An interruption is as good as an event: the loop looks at everything anyway.
            let _ready = poll(&mut waits_for, Some(&look_around));
        }
    }
}

/// Moves what the socket takes or has. `Err`: the other end is gone.
fn advance(
    queue: &mut VecDeque<Transfer>,
    mut link: &UnixStream,
    is_outgoing: bool,
) -> Result<bool, ()> {
    let mut has_moved = false;
    while let Some(transfer) = queue.front_mut() {
        let (start, left) = (
            transfer.address + transfer.moved,
            transfer.bytes - transfer.moved,
        );
        if left == 0 {
            queue.pop_front();
            continue;
        }
        let moved = if is_outgoing {
            // SAFETY: within memory that the collective names; the order of accesses keeps writers away from it.
            link.write(unsafe { std::slice::from_raw_parts(start as *const u8, left) })
        } else {
            // SAFETY: as above, for readers and writers; or within a stage of this exchange.
            link.read(unsafe { std::slice::from_raw_parts_mut(start as *mut u8, left) })
        };
        match moved {
            Ok(0) => return Err(()),
            Ok(count) => transfer.moved += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(()),
        }
        has_moved = true;
    }
    Ok(has_moved)
}

impl Finish {
    fn run(self) {
        match self {
            Self::Copy { from, to, bytes } => {
                // SAFETY: both within memory that the collective names, and in use by it alone.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
            Self::Reduce {
                element,
                op,
                sources,
                target,
                elements,
            } => {
                let (sources, elements) = (sources.as_slice(), elements);
                match element {
                    Element::U8 => reduce_as::<u8>(op, sources, target, elements),
                    Element::I32 => reduce_as::<i32>(op, sources, target, elements),
                    Element::I64 => reduce_as::<i64>(op, sources, target, elements),
                    Element::F16 => reduce_as::<f16>(op, sources, target, elements),
                    Element::F32 => reduce_as::<f32>(op, sources, target, elements),
                    Element::F64 => reduce_as::<f64>(op, sources, target, elements),
                    Element::Bf16 => reduce_as::<bf16>(op, sources, target, elements),
                }
            }
        }
    }
}

fn reduce_as<E: Reducible>(op: ReduceOp, sources: &[usize], target: usize, elements: usize) {
    let source = |source: usize| {
        // SAFETY: all of it has arrived, aligned, and it is apart from the target.
        let slice = || unsafe { std::slice::from_raw_parts(source as *const E, elements) };
        match source == target {
            true => Source::Target(0),
            false => Source::Slice(slice()),
        }
    };
    let sources: Vec<Source<'_, E>> = sources.iter().copied().map(source).collect();
    // SAFETY: memory of the collective, aligned, and in use by it alone.
    let target = unsafe { std::slice::from_raw_parts_mut(target as *mut E, elements) };
    reduce(op, &sources, &mut [target]);
}
