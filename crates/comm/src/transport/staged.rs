//! Collectives by way of host memory: what a rank contributes is copied into a stage in host memory, a transport for host memory
//! does the collective there, and the result is copied back. For devices whose ranks NCCL cannot connect. On CPUs it only
//! copies, so that it can be tried anywhere.
//!
//! The stage is as large as the largest operation so far.

use std::sync::Arc;

use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::operation::Operation;
use crate::group::queue::{Backend, Place};

/// Input and output in a stage begin at multiples of this many bytes.
const ALIGNMENT: usize = 64;

/// A stage in host memory, and the way to it from where the tensors live.
pub(crate) trait Stage: Send {
    /// The first byte of at least `bytes`, aligned for any element; until the next call.
    fn reserve(&mut self, bytes: usize) -> Result<*mut u8, String>;

    /// Copies what the operation reads to `stage`; it is there when this returns.
    fn fetch(&mut self, operation: &Operation, stage: *mut u8, bytes: usize) -> Result<(), String>;

    /// Copies what the operation has made of its output at `stage` to where it belongs; it is there when this returns.
    fn put_back(
        &mut self,
        operation: &Operation,
        stage: *const u8,
        bytes: usize,
    ) -> Result<(), String>;
}

/// A transport for host memory, with a stage before it.
pub(crate) struct Staged {
    context: Arc<GroupContext>,
    inner: Box<dyn Backend>,
    stage: Box<dyn Stage>,
}

impl Staged {
    pub(crate) fn new(
        context: Arc<GroupContext>,
        inner: Box<dyn Backend>,
        stage: Box<dyn Stage>,
    ) -> Self {
        Self {
            context,
            inner,
            stage,
        }
    }
}

impl Backend for Staged {
    fn execute(&mut self, operation: &Operation, place: Place) -> Result<()> {
        let failed = |reason: String| CommError::Device {
            library: "CUDA",
            reason,
            site: self.context.site(&operation.signature),
        };
        let spans = operation.spans(self.context.rank);
        let (read, written) = (spans.input.len(), spans.output.len());
        let (bytes, input, output) = match spans.joined() {
            Some(both) => (
                both.len(),
                spans.input.start - both.start,
                spans.output.start - both.start,
            ),
            None => {
                let output = read.next_multiple_of(ALIGNMENT);
                (output + written, 0, output)
            }
        };
        let start = self.stage.reserve(bytes).map_err(failed)?;
        // SAFETY: both begin within the bytes that were reserved.
        let (input, output) = unsafe { (start.add(input), start.add(output)) };
        self.stage.fetch(operation, input, read).map_err(failed)?;
        let moved = operation.moved(input, output, None);
        self.inner.execute(&moved, place)?;
        self.stage
            .put_back(operation, output, written)
            .map_err(failed)
    }
}

/// Stage for tensors that are in host memory.
#[derive(Default)]
pub(crate) struct HostStage(Vec<Line>);

/// Bytes that begin where any element may.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[expect(dead_code, reason = "its bytes are reached by address")] [u8; ALIGNMENT]);

impl Stage for HostStage {
    fn reserve(&mut self, bytes: usize) -> Result<*mut u8, String> {
        let lines = bytes.div_ceil(ALIGNMENT);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; ALIGNMENT]));
        }
        Ok(self.0.as_mut_ptr().cast())
    }

    fn fetch(&mut self, operation: &Operation, stage: *mut u8, bytes: usize) -> Result<(), String> {
        if bytes > 0 {
            // SAFETY: the operation's input has as many bytes, which nobody writes to; the stage is ours.
            unsafe { std::ptr::copy_nonoverlapping(operation.input, stage, bytes) };
        }
        Ok(())
    }

    fn put_back(
        &mut self,
        operation: &Operation,
        stage: *const u8,
        bytes: usize,
    ) -> Result<(), String> {
        if bytes > 0 {
            // SAFETY: the operation's output has room for as many bytes, which nobody else touches; the stage is ours.
            unsafe { std::ptr::copy_nonoverlapping(stage, operation.output, bytes) };
        }
        Ok(())
    }
}
