//! Which ranges of a file to read for a slice of a tensor.

use std::ops::Range;

use tandem_mesh::{Run, ShardSlice};

/// Reads are at most this long, so that a rank's buffers stay small whatever the tensor's size.
const MAX_BLOCK_BYTES: usize = 4 << 20;

/// Up to this distance, reading what lies between two runs costs less than a second call.
const MAX_GAP_BYTES: usize = 32 << 10;

/// Neighbouring runs that are read with one call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Elements of the flattened tensor to read.
    pub elements: Range<usize>,
    /// What of them to keep. Targets ascend without gaps from block to block.
    pub runs: Vec<Run>,
}

impl Block {
    /// Elements kept.
    pub fn kept(&self) -> usize {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// Blocks that hold all of `slice`, in ascending order.
pub(crate) fn blocks(slice: &ShardSlice, element_bytes: usize) -> Vec<Block> {
    let max_block = (MAX_BLOCK_BYTES / element_bytes).max(1);
    let max_gap = MAX_GAP_BYTES / element_bytes;
    let mut blocks: Vec<Block> = Vec::new();
    for run in slice
        .runs()
        .into_iter()
        .flat_map(|run| pieces(run, max_block))
    {
        let end = run.source + run.len;
        match blocks.last_mut() {
            Some(block)
                if run.source - block.elements.end <= max_gap
                    && end - block.elements.start <= max_block =>
            {
                block.elements.end = end;
                block.runs.push(run);
            }
            _ => blocks.push(Block {
                elements: run.source..end,
                runs: vec![run],
            }),
        }
    }
    blocks
}

/// The run in parts of at most `max` elements.
fn pieces(run: Run, max: usize) -> impl Iterator<Item = Run> {
    (0..run.len).step_by(max).map(move |start| Run {
        source: run.source + start,
        target: run.target + start,
        len: max.min(run.len - start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_gaps_are_bridged_and_wide_ones_skipped() {
        let narrow = ShardSlice::narrow(&[10, 2000], 1, 0..1000);
        assert_eq!(blocks(&narrow, 4).len(), 1);
        let wide = ShardSlice::narrow(&[10, 20_000], 1, 0..10_000);
        assert_eq!(blocks(&wide, 4).len(), 10);
    }

    #[test]
    fn long_runs_are_cut_and_targets_ascend_without_gaps() {
        let whole = ShardSlice::whole(&[3, 1 << 20]);
        let blocks = blocks(&whole, 4);
        assert_eq!(blocks.len(), 3);
        let mut target = 0;
        for run in blocks.iter().flat_map(|block| &block.runs) {
            assert_eq!(run.target, target);
            target += run.len;
        }
        assert_eq!(target, whole.numel());
    }
}
