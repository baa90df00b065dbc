//! A group with trouble built in, for tests of what is above the collectives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tandem_tensor::{Kind, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::error::{CommError, Result};
use crate::group::process_group::ProcessGroup;
use crate::group::work::{Pending, Work};

/// What goes wrong with an operation on this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is submitted this much later.
    Delay(Duration),
    /// It fails with [`CommError::Injected`] and is not submitted; the peers wait for it.
    Error,
    /// The process is killed instead of submitting it, by SIGKILL.
    Kill,
    /// Its result differs in the lowest bit of the first element, once it has been waited for.
    CorruptResult,
}

/// Passes everything on to another group and injects faults on the way.
pub struct FaultyGroup {
    inner: Arc<dyn ProcessGroup>,
    faults: Vec<(Option<u64>, Fault)>,
    operations: AtomicU64,
}

impl FaultyGroup {
    /// `inner`, without any fault yet.
    pub fn new(inner: Arc<dyn ProcessGroup>) -> Self {
        Self {
            inner,
            faults: Vec::new(),
            operations: AtomicU64::new(0),
        }
    }

    /// With `fault` in the `nth` operation, counted from 1 for all collectives together.
    #[must_use]
    pub fn with_fault_at(mut self, nth: u64, fault: Fault) -> Self {
        self.faults.push((Some(nth), fault));
        self
    }

    /// With `fault` in every operation.
    #[must_use]
    pub fn with_fault_always(mut self, fault: Fault) -> Self {
        self.faults.push((None, fault));
        self
    }

    fn submit(
        &self,
        collective: Collective,
        result: Option<&Tensor>,
        submit: impl FnOnce() -> Result<Work>,
    ) -> Result<Work> {
        let nth = self.operations.fetch_add(1, Ordering::Relaxed) + 1;
        let is_due = |at: &Option<u64>| at.is_none_or(|at| at == nth);
        let mut corrupts = false;
        for (_, fault) in self.faults.iter().filter(|(at, _)| is_due(at)) {
            match fault {
                Fault::Delay(delay) => std::thread::sleep(*delay),
                Fault::Error => {
                    return Err(CommError::Injected {
                        collective,
                        group: self.name().into(),
                        nth,
                    });
                }
                Fault::Kill => {
                    // A process may always kill itself, and does not return from it.
                    let _killed = kill_process(getpid(), Signal::KILL);
                }
                Fault::CorruptResult => corrupts = true,
            }
        }
        let work = submit()?;
        let Some(result) = result.filter(|_| corrupts).map(Tensor::shallow_clone) else {
            return Ok(work);
        };
        Ok(Work::new(Corrupting {
            work: Some(work),
            result,
        }))
    }
}

/// An operation whose result is spoilt as soon as it has been waited for.
struct Corrupting {
    /// `None` once waited for.
    work: Option<Work>,
    result: Tensor,
}

impl Pending for Corrupting {
    fn start(&mut self) {
        if let Some(work) = &mut self.work {
            work.start();
        }
    }

    fn wait(&mut self) -> Result<()> {
        let outcome = self.work.take().map_or(Ok(()), Work::wait);
        corrupt(&self.result);
        outcome
    }

    fn is_finished(&self) -> bool {
        self.work.as_ref().is_none_or(Work::is_finished)
    }
}

fn corrupt(tensor: &Tensor) {
    if tensor.numel() > 0 {
        let bytes = tensor.view([-1]).view_dtype(Kind::Uint8);
        bytes.narrow(0, 0, 1).bitwise_xor_(1);
    }
}

impl ProcessGroup for FaultyGroup {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn ranks(&self) -> &[usize] {
        self.inner.ranks()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        self.submit(Collective::AllReduce, Some(tensor), || {
            self.inner.all_reduce(tensor, op)
        })
    }

    fn all_gather_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        self.submit(Collective::AllGather, Some(output), || {
            self.inner.all_gather_into(output, input, counts)
        })
    }

    fn reduce_scatter_into(
        &self,
        output: &Tensor,
        input: &Tensor,
        counts: &[usize],
        op: ReduceOp,
    ) -> Result<Work> {
        self.submit(Collective::ReduceScatter, Some(output), || {
            self.inner.reduce_scatter_into(output, input, counts, op)
        })
    }

    fn all_to_all_into(&self, output: &Tensor, input: &Tensor, counts: &[usize]) -> Result<Work> {
        self.submit(Collective::AllToAll, Some(output), || {
            self.inner.all_to_all_into(output, input, counts)
        })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        self.submit(Collective::Broadcast, Some(tensor), || {
            self.inner.broadcast(tensor, root)
        })
    }

    fn barrier(&self) -> Result<Work> {
        self.submit(Collective::Barrier, None, || self.inner.barrier())
    }

    fn check(&self) -> Result<()> {
        self.inner.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::single::SingleGroup;
    use std::time::Instant;
    use tandem_tensor::Device;

    #[test]
    fn faults_come_when_they_are_due_and_only_then() {
        let inner: Arc<dyn ProcessGroup> = Arc::new(SingleGroup::new("one", 0, Device::Cpu));
        let delay = Duration::from_millis(20);
        let group = FaultyGroup::new(inner)
            .with_fault_at(2, Fault::Error)
            .with_fault_at(3, Fault::CorruptResult)
            .with_fault_always(Fault::Delay(delay));
        let tensor = Tensor::from_slice(&[1i64, 2]);
        let reduce = || {
            group
                .all_reduce(&tensor, ReduceOp::Sum)
                .and_then(Work::wait)
        };
        let begin = Instant::now();
        reduce().unwrap();
        assert!(begin.elapsed() >= delay);
        let error = reduce().unwrap_err();
        assert_eq!(
            error.to_string(),
            "injected failure in all_reduce, operation 2 of group \"one\""
        );
        assert_eq!(tensor.get(0).int64_value(), 1);
        reduce().unwrap();
        assert_eq!(
            tensor.get(0).int64_value(),
            0,
            "1 with its lowest bit flipped"
        );
        reduce().unwrap();
        assert_eq!(tensor.get(0).int64_value(), 0);
    }
}
