//! From a caller's tensors to an operation that a transport can run: every argument is checked here, once.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use tandem_mesh::partition_aligned;
use tandem_tensor::{Device, Tensor};

use crate::collective::{Collective, Element, ReduceOp, Signature};
use crate::error::{CommError, Result};

/// Parts of a tensor that different ranks reduce start at multiples of this many bytes, so that no two ranks write to
/// one cache line.
const PART_ALIGNMENT: usize = 64;

/// A checked operation: plain memory and numbers.
pub(crate) struct Operation {
    pub(crate) signature: Signature,
    /// First byte of what this rank contributes.
    pub(crate) input: *const u8,
    /// First byte of where the result goes. May lie within the input where the collective allows it.
    pub(crate) output: *mut u8,
    /// Elements of each member's part, in group order: what it contributes to a gathering, what it receives of a
    /// scattering, what it reduces for everyone in an all-reduce. In an all-to-all, those that go from each member to each,
    /// sender by sender. Empty for broadcast and barrier.
    pub(crate) counts: Vec<usize>,
    /// Members of the group.
    pub(crate) members: usize,
    /// On a device: what the default stream was given before the operation was submitted. Nothing reads the input before.
    #[cfg(feature = "nccl")]
    pub(crate) ready: Option<std::sync::Arc<cudarc::driver::CudaEvent>>,
    /// The tensors that `input` and `output` point into stay alive as long as this does.
    _storage: [Option<Tensor>; 2],
    /// So does this.
    _kept: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: the pointers go into storage that the tensors in `_storage` own, or that `moved` was given; tensors may be sent between threads, and an
// operation is owned by one thread at a time.
unsafe impl Send for Operation {}

impl Operation {
    /// Bytes of all elements.
    pub(crate) fn bytes(&self) -> usize {
        self.signature.elements as usize * self.signature.element.size()
    }

    /// The memory that the member `rank` reads and writes, as addresses.
    pub(crate) fn spans(&self, rank: usize) -> Spans {
        let part = || self.counts[rank] * self.signature.element.size();
        let (input, output) = match self.signature.collective {
            Collective::AllReduce | Collective::Broadcast => (self.bytes(), self.bytes()),
            Collective::AllGather => (part(), self.bytes()),
            Collective::ReduceScatter => (self.bytes(), part()),
            Collective::AllToAll => {
                let size = self.signature.element.size();
                let sent: usize = self.sent_by(rank).iter().sum();
                let received: usize = self.received_by(rank).iter().sum();
                (sent * size, received * size)
            }
            Collective::Barrier | Collective::NewGroup => (0, 0),
        };
        let span = |start: usize, bytes: usize| start..start + bytes;
        Spans {
            input: span(self.input.addr(), input),
            output: span(self.output.addr(), output),
        }
    }

    /// The same operation between other memory, which is alive as long as `kept`, or as the caller sees to it.
    pub(crate) fn moved(
        &self,
        input: *const u8,
        output: *mut u8,
        kept: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        Self {
            signature: self.signature,
            input,
            output,
            counts: self.counts.clone(),
            members: self.members,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [None, None],
            _kept: kept,
        }
    }

    /// The elements of each member's part within the whole.
    pub(crate) fn parts(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let part = |count: &usize| {
            start += count;
            start - count..start
        };
        self.counts.iter().map(part).collect()
    }

    /// In an all-to-all, the elements that `member` sends to each member.
    pub(crate) fn sent_by(&self, member: usize) -> &[usize] {
        &self.counts[member * self.members..][..self.members]
    }

    /// In an all-to-all, the elements that `member` receives from each member.
    pub(crate) fn received_by(&self, member: usize) -> Vec<usize> {
        let sent_to_it = self.counts.iter().skip(member).step_by(self.members);
        sent_to_it.copied().collect()
    }
}

/// Sums of all items before each.
pub(crate) fn sums(items: impl Iterator<Item = usize>) -> Vec<usize> {
    items
        .scan(0, |sum, item| {
            let before = *sum;
            *sum += item;
            Some(before)
        })
        .collect()
}

/// What an operation reads and what it writes, as ranges of addresses. They are apart, or one lies within the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spans {
    pub(crate) input: Range<usize>,
    pub(crate) output: Range<usize>,
}

impl Spans {
    /// Both in one, where they overlap: then they must stay as they are to each other.
    pub(crate) fn joined(&self) -> Option<Range<usize>> {
        let Self { input, output } = self;
        (input.start < output.end && output.start < input.end)
            .then(|| input.start.min(output.start)..input.end.max(output.end))
    }
}

/// Who asks for an operation and where its tensors must be.
pub(crate) struct Arguments<'a> {
    pub(crate) group: &'a Arc<str>,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    /// The device whose memory the transport reaches.
    pub(crate) device: Device,
    pub(crate) collective: Collective,
}

impl Arguments<'_> {
    pub(crate) fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Operation> {
        let element = self.element(tensor, "tensor")?;
        let align = PART_ALIGNMENT / element.size();
        let counts = (0..self.size)
            .map(|member| partition_aligned(tensor.numel(), self.size, member, align).len())
            .collect();
        let memory = tensor.data_ptr().cast::<u8>();
        Ok(Operation {
            signature: self.signature(element, tensor.numel(), Some(op)),
            input: memory,
            output: memory,
            counts,
            members: self.size,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [Some(tensor.shallow_clone()), None],
            _kept: None,
        })
    }

    pub(crate) fn all_gather(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
    ) -> Result<Operation> {
        self.ragged((output, "output"), (input, "input"), counts, None)
    }

    pub(crate) fn reduce_scatter(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
        op: ReduceOp,
    ) -> Result<Operation> {
        self.ragged((input, "input"), (output, "output"), counts, Some(op))
    }

    pub(crate) fn all_to_all(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
    ) -> Result<Operation> {
        let element = self.element(input, "input")?;
        self.element(output, "output")?;
        self.one_kind((output, "output"), (input, "input"))?;
        if counts.len() != self.size * self.size {
            return Err(self.invalid(format!(
                "there are {} counts for {} ranks, which send to {} each",
                counts.len(),
                self.size,
                self.size
            )));
        }
        let total = counts
            .iter()
            .try_fold(0, |sum: usize, n| sum.checked_add(*n));
        let Some(total) = total else {
            return Err(self.invalid("the counts add up to more than there can be".to_owned()));
        };
        let operation = Operation {
            signature: self.signature_of_parts(element, total, counts, None),
            input: input.data_ptr().cast::<u8>().cast_const(),
            output: output.data_ptr().cast(),
            counts: counts.to_vec(),
            members: self.size,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [Some(output.shallow_clone()), Some(input.shallow_clone())],
            _kept: None,
        };
        let sent = operation.sent_by(self.rank).iter().sum();
        let received: usize = operation.received_by(self.rank).iter().sum();
        for (tensor, name, wanted) in [(input, "input", sent), (output, "output", received)] {
            self.check_len((tensor, name), wanted, counts)?;
        }
        let (from, to) = (operation.input.addr(), operation.output.addr());
        let size = element.size();
        if sent > 0 && received > 0 && from < to + received * size && to < from + sent * size {
            return Err(self.invalid("output overlaps input".to_owned()));
        }
        Ok(operation)
    }

    pub(crate) fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Operation> {
        let element = self.element(tensor, "tensor")?;
        if root >= self.size {
            return Err(self.invalid(format!(
                "the root is {root}, but the group has ranks 0 to {}; roots are ranks in the group, not in the world",
                self.size - 1
            )));
        }
        let memory = tensor.data_ptr().cast::<u8>();
        let mut signature = self.signature(element, tensor.numel(), None);
        signature.root = root as u32;
        Ok(Operation {
            signature,
            input: memory,
            output: memory,
            counts: Vec::new(),
            members: self.size,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [Some(tensor.shallow_clone()), None],
            _kept: None,
        })
    }

    pub(crate) fn barrier(&self) -> Operation {
        Operation {
            signature: self.signature(Element::U8, 0, None),
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
            counts: Vec::new(),
            members: self.size,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [None, None],
            _kept: None,
        }
    }

    /// A collective between a tensor that holds all parts and one that holds this rank's.
    fn ragged(
        &self,
        (whole, whole_name): (&Tensor, &str),
        (part, part_name): (&Tensor, &str),
        counts: &[usize],
        reduce: Option<ReduceOp>,
    ) -> Result<Operation> {
        let element = self.element(whole, whole_name)?;
        self.element(part, part_name)?;
        self.one_kind((whole, whole_name), (part, part_name))?;
        if counts.len() != self.size {
            return Err(self.invalid(format!(
                "there are {} counts for {} ranks",
                counts.len(),
                self.size
            )));
        }
        let total: usize = counts.iter().sum();
        let own = counts[self.rank];
        for (tensor, name, wanted) in [(whole, whole_name, total), (part, part_name, own)] {
            self.check_len((tensor, name), wanted, counts)?;
        }
        let whole_memory = whole.data_ptr().cast::<u8>();
        let part_memory = part.data_ptr().cast::<u8>();
        let offset = counts[..self.rank].iter().sum::<usize>() * element.size();
        let (start, end) = (
            whole_memory.addr(),
            whole_memory.addr() + total * element.size(),
        );
        let (part_start, part_end) = (
            part_memory.addr(),
            part_memory.addr() + own * element.size(),
        );
        let overlaps = own > 0 && part_start < end && start < part_end;
        if overlaps && part_start != start + offset {
            return Err(self.invalid(format!(
                "{part_name} overlaps {whole_name} without being this rank's own range of it"
            )));
        }
        let signature = self.signature_of_parts(element, total, counts, reduce);
        let (input, output) = match self.collective {
            Collective::AllGather => (part_memory, whole_memory),
            _ => (whole_memory, part_memory),
        };
        Ok(Operation {
            signature,
            input,
            output,
            counts: counts.to_vec(),
            members: self.size,
            #[cfg(feature = "nccl")]
            ready: None,
            _storage: [Some(whole.shallow_clone()), Some(part.shallow_clone())],
            _kept: None,
        })
    }

    fn one_kind(&self, (a, a_name): (&Tensor, &str), (b, b_name): (&Tensor, &str)) -> Result<()> {
        if a.kind() == b.kind() {
            return Ok(());
        }
        Err(self.invalid(format!(
            "the output and the input must have one element type, but {a_name} is {:?} and {b_name} is {:?}",
            a.kind(),
            b.kind()
        )))
    }

    fn check_len(
        &self,
        (tensor, name): (&Tensor, &str),
        wanted: usize,
        counts: &[usize],
    ) -> Result<()> {
        if tensor.numel() == wanted {
            return Ok(());
        }
        Err(self.invalid(format!(
            "{name} has {} elements, but the counts {counts:?} make it {wanted} for group rank {}",
            tensor.numel(),
            self.rank
        )))
    }

    fn element(&self, tensor: &Tensor, name: &str) -> Result<Element> {
        if tensor.device() != self.device {
            return Err(self.invalid(format!(
                "{name} is on {:?}, but this group works on {:?}",
                tensor.device(),
                self.device
            )));
        }
        if !tensor.is_contiguous() {
            return Err(self.invalid(format!(
                "{name} of shape {:?} is not contiguous; pass tensor.contiguous()",
                tensor.size()
            )));
        }
        Element::of(tensor.kind()).ok_or_else(|| {
            self.invalid(format!(
                "{name} is {:?}; use Float, BFloat16, Half, Double, Int64, Int or Uint8",
                tensor.kind()
            ))
        })
    }

    fn signature(&self, element: Element, elements: usize, reduce: Option<ReduceOp>) -> Signature {
        Signature {
            collective: self.collective,
            reduce,
            element,
            root: 0,
            elements: elements as u64,
            layout: 0,
            // The queue numbers operations in the order in which it takes them.
            sequence: 0,
        }
    }

    /// As [`Self::signature`], of a tensor that is split by `counts`.
    fn signature_of_parts(
        &self,
        element: Element,
        elements: usize,
        counts: &[usize],
        reduce: Option<ReduceOp>,
    ) -> Signature {
        let mut layout = DefaultHasher::new();
        counts.hash(&mut layout);
        Signature {
            layout: layout.finish(),
            ..self.signature(element, elements, reduce)
        }
    }

    fn invalid(&self, reason: String) -> CommError {
        CommError::Invalid {
            collective: self.collective,
            group: self.group.clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_tensor::Kind;

    fn reason(result: Result<Operation>) -> String {
        match result {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn bad_arguments_are_refused_with_the_reason() {
        let group: Arc<str> = "g".into();
        let arguments = |collective| Arguments {
            group: &group,
            rank: 1,
            size: 2,
            device: Device::Cpu,
            collective,
        };
        let tensor = |size: i64| Tensor::zeros([size], (Kind::Float, Device::Cpu));
        let gather = arguments(Collective::AllGather);
        let reduce = arguments(Collective::AllReduce);
        let exchange = arguments(Collective::AllToAll);
        let matrix = tensor(6).view([2, 3]);
        let whole = tensor(6);
        for (expected, actual) in [
            (
                "not contiguous",
                reason(reduce.all_reduce(&matrix.tr(), ReduceOp::Sum)),
            ),
            (
                "is Bool",
                reason(reduce.all_reduce(&tensor(2).to_kind(Kind::Bool), ReduceOp::Sum)),
            ),
            (
                "the root is 2",
                reason(arguments(Collective::Broadcast).broadcast(&matrix, 2)),
            ),
            (
                "1 counts for 2 ranks",
                reason(gather.all_gather(&whole, &tensor(3), &[6])),
            ),
            (
                "output has 6 elements, but the counts [3, 4] make it 7",
                reason(gather.all_gather(&whole, &tensor(4), &[3, 4])),
            ),
            (
                "input has 3 elements, but the counts [2, 4] make it 4",
                reason(gather.all_gather(&whole, &tensor(3), &[2, 4])),
            ),
            (
                "one element type",
                reason(gather.all_gather(&whole, &tensor(3).to_kind(Kind::Half), &[3, 3])),
            ),
            (
                "overlaps",
                reason(gather.all_gather(&whole, &whole.narrow(0, 1, 3), &[3, 3])),
            ),
            (
                "2 counts for 2 ranks, which send to 2 each",
                reason(exchange.all_to_all(&whole, &tensor(3), &[3, 3])),
            ),
            (
                "input has 3 elements, but the counts [0, 2, 1, 3] make it 4 for group rank 1",
                reason(exchange.all_to_all(&tensor(5), &tensor(3), &[0, 2, 1, 3])),
            ),
            (
                "output has 6 elements, but the counts [0, 2, 1, 3] make it 5 for group rank 1",
                reason(exchange.all_to_all(&whole, &tensor(4), &[0, 2, 1, 3])),
            ),
            (
                "more than there can be",
                reason(exchange.all_to_all(&whole, &whole, &[usize::MAX, 1, 0, 0])),
            ),
            (
                "output overlaps input",
                reason(exchange.all_to_all(&whole, &whole.narrow(0, 2, 4), &[0, 3, 1, 3])),
            ),
            (
                "accepted",
                reason(exchange.all_to_all(
                    &whole.narrow(0, 0, 3),
                    &whole.narrow(0, 3, 3),
                    &[0, 2, 2, 1],
                )),
            ),
            (
                "accepted",
                reason(gather.all_gather(&whole, &whole.narrow(0, 3, 3), &[3, 3])),
            ),
            (
                "accepted",
                reason(gather.all_gather(&whole, &whole.narrow(0, 6, 0), &[6, 0])),
            ),
        ] {
            println!("{actual}");
            assert!(actual.contains(expected), "{actual:?} lacks {expected:?}");
        }
    }

    #[test]
    fn parts_follow_the_counts() {
        let group: Arc<str> = "g".into();
        let arguments = Arguments {
            group: &group,
            rank: 0,
            size: 3,
            device: Device::Cpu,
            collective: Collective::AllGather,
        };
        let whole = Tensor::zeros([7], (Kind::Int64, Device::Cpu));
        let part = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
        let operation = arguments.all_gather(&whole, &part, &[2, 0, 5]).unwrap();
        assert_eq!(operation.parts(), [0..2, 2..2, 2..7]);
        assert_eq!(operation.bytes(), 56);
    }
}
