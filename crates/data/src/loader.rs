//! Builds batches ahead of the training step, on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::batch::{Batch, BatchSource};
use crate::dataset::Rows;
use crate::error::{DataError, LoaderError};
use crate::label::IGNORED_LABEL;
use crate::panics::panic_message;
use crate::sampler::{Position, Sampler};
use crate::share::Share;

/// Steps that are ready before they are asked for.
const DEPTH: usize = 2;

/// What a loader needs besides data and their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Which rows of every global batch.
    pub share: Share,
    /// Where the run is: the position of its last checkpoint, or the beginning.
    pub start: Position,
}

/// The batches of one data parallel rank, over all epochs of the sampler.
pub struct Loader {
    /// `None` once the thread was stopped.
    steps: Option<Receiver<Step>>,
    thread: Option<JoinHandle<()>>,
    position: Position,
    steps_per_epoch: u64,
}

/// What the thread sends: a step's batches, and where the run is after them.
struct Step {
    batches: Vec<Batch>,
    after: Position,
}

impl Loader {
    /// Starts to build batches from `options.start` on.
    ///
    /// # Errors
    /// A share that cannot be, or does not fit the sampler; no thread.
    pub fn new(
        rows: Arc<dyn Rows>,
        sampler: Sampler,
        options: LoaderOptions,
    ) -> Result<Self, LoaderError> {
        let share = options.share.checked()?;
        if share.global_batch() as u64 != sampler.global_batch() {
            return Err(LoaderError::GlobalBatch {
                sampler: sampler.global_batch(),
                shares: share.global_batch(),
            });
        }
        let steps_per_epoch = sampler.steps_per_epoch();
        let (sender, receiver) = sync_channel(DEPTH);
        let mut position = options.start;
        let work = move || {
            while let Some(start) = sampler.next_batch(position) {
                position = sampler.after(start);
                let batches = build_step(rows.as_ref(), &sampler, share, start);
                let step = Step {
                    batches,
                    after: position,
                };
                // Nobody listens any more: the loader was dropped.
                if sender.send(step).is_err() {
                    return;
                }
            }
        };
        let thread = Builder::new()
            .name("data-loader".into())
            .spawn(work)
            .map_err(|source| LoaderError::Thread { source })?;
        Ok(Self {
            steps: Some(receiver),
            thread: Some(thread),
            position: options.start,
            steps_per_epoch,
        })
    }
}

impl BatchSource for Loader {
    fn next_step(&mut self) -> Result<Option<Vec<Batch>>, DataError> {
        let Some(steps) = &self.steps else {
            return Err(LoaderError::Stopped.into());
        };
        if let Ok(step) = steps.recv() {
            self.position = step.after;
            return Ok(Some(step.batches));
        }
        // The thread is over: because the data are, or because it failed.
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => {
                self.steps = None;
                let reason = panic_message(panic.as_ref());
                Err(LoaderError::Panicked { reason }.into())
            }
            Some(Ok(())) | None => Ok(None),
        }
    }

    fn position(&self) -> Position {
        self.position
    }

    fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // In this order: the thread ends at its next send, which fails.
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // A failure nobody asked for any more.
            let _ = thread.join();
        }
    }
}

fn build_step(rows: &dyn Rows, sampler: &Sampler, share: Share, start: Position) -> Vec<Batch> {
    (0..share.micro_batches)
        .map(|index| build_batch(rows, sampler, share, start, index))
        .collect()
}

fn build_batch(
    rows: &dyn Rows,
    sampler: &Sampler,
    share: Share,
    start: Position,
    index: usize,
) -> Batch {
    let seq = rows.seq_length();
    let cells = share.batch_size * seq;
    // Rows that the last step of an epoch lacks have no targets: they add nothing to the loss, which is a mean over targets,
    // nor to any gradient. So all ranks do the same collectives whatever they have, and every mesh gives the same numbers.
    let (mut input_ids, mut mask) = (vec![0; cells], vec![0; cells]);
    let mut labels = vec![IGNORED_LABEL; cells];
    let range = share.rows(index);
    let samples = sampler.samples(start, range.start as u64..range.end as u64);
    let row_slices = input_ids
        .chunks_exact_mut(seq)
        .zip(labels.chunks_exact_mut(seq))
        .zip(mask.chunks_exact_mut(seq));
    let mut documents = vec![vec![0]; share.batch_size];
    for ((((input_ids, labels), mask), documents), sample) in
        row_slices.zip(&mut documents).zip(samples)
    {
        let row = rows.row_at(start.epoch, sample);
        rows.fill(row, input_ids, labels, mask);
        *documents = rows.documents(row);
    }
    Batch {
        rows: share.batch_size,
        seq,
        hash: Batch::hash_of(&input_ids, &labels, &documents),
        input_ids,
        labels,
        attention_mask: mask,
        documents,
        epoch: start.epoch,
        step_in_epoch: start.sample / sampler.global_batch(),
        first_sample: start.sample + range.start as u64,
        step_samples: sampler.batch_at(start),
        ends_epoch: sampler.ends_epoch(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::EpochLimit;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Row `n` is `[n, n, n]`; one row may be a trap.
    struct Numbers {
        len: u64,
        trap: Option<u64>,
        filled: AtomicUsize,
    }

    fn numbers(len: u64, trap: Option<u64>) -> Arc<Numbers> {
        Arc::new(Numbers {
            len,
            trap,
            filled: AtomicUsize::new(0),
        })
    }

    impl Rows for Numbers {
        fn len(&self) -> u64 {
            self.len
        }

        fn seq_length(&self) -> usize {
            3
        }

        fn fill(&self, sample: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
            assert_ne!(Some(sample), self.trap, "row {sample} is a trap");
            self.filled.fetch_add(1, Ordering::SeqCst);
            input_ids.fill(sample as i64);
            labels.fill(sample as i64 + 1000);
            mask.fill(1);
        }
    }

    const SHARE: Share = Share {
        dp_rank: 0,
        dp_size: 1,
        batch_size: 2,
        micro_batches: 2,
    };

    fn loader(len: u64, share: Share, start: Position) -> Loader {
        let limit = EpochLimit {
            epochs: 2,
            steps_per_epoch: None,
        };
        let sampler = Sampler::new(len, 5, share.global_batch() as u64).unwrap();
        let options = LoaderOptions { share, start };
        Loader::new(numbers(len, None), sampler.limited(limit), options).unwrap()
    }

    fn drain(loader: &mut Loader) -> Vec<Batch> {
        let mut batches = Vec::new();
        while let Some(step) = loader.next_step().unwrap() {
            batches.extend(step);
        }
        batches
    }

    #[test]
    fn steps_come_in_order_with_their_place() {
        let mut loader = loader(11, SHARE, Position::default());
        assert_eq!(loader.steps_per_epoch(), 2);
        let batches = drain(&mut loader);
        let places: Vec<_> = batches
            .iter()
            .map(|b| (b.epoch, b.step_in_epoch, b.first_sample, b.ends_epoch))
            .collect();
        let epoch = |epoch| {
            [
                (epoch, 0, 0, false),
                (epoch, 0, 2, false),
                (epoch, 1, 4, true),
                (epoch, 1, 6, true),
            ]
        };
        assert_eq!(places, [epoch(0), epoch(1)].concat());
        for batch in &batches {
            assert_eq!((batch.rows, batch.seq), (2, 3));
            let hash = Batch::hash_of(&batch.input_ids, &batch.labels, &batch.documents);
            assert_eq!(batch.hash, hash);
            assert!(
                batch
                    .input_ids
                    .iter()
                    .zip(&batch.labels)
                    .all(|(i, l)| i + 1000 == *l)
            );
        }
        assert_eq!(loader.next_step().unwrap(), None, "the end stays the end");
        let end = Position {
            epoch: 1,
            sample: 8,
        };
        assert_eq!(loader.position(), end);
    }

    #[test]
    fn ranks_share_each_global_batch() {
        let whole = Share {
            batch_size: 4,
            micro_batches: 1,
            ..SHARE
        };
        let expected = drain(&mut loader(20, whole, Position::default()));
        let mut ranks: Vec<Loader> = (0..2)
            .map(|dp_rank| {
                let share = Share {
                    dp_rank,
                    dp_size: 2,
                    batch_size: 1,
                    micro_batches: 2,
                };
                loader(20, share, Position::default())
            })
            .collect();
        for batch in expected {
            let mut joined = Vec::new();
            for rank in &mut ranks {
                for part in rank.next_step().unwrap().unwrap() {
                    joined.extend(part.input_ids);
                }
            }
            assert_eq!(joined, batch.input_ids);
        }
    }

    #[test]
    fn the_last_step_of_an_epoch_has_what_is_left() {
        for (dp_size, batch_size, micro_batches) in [(1, 4, 1), (1, 2, 2), (2, 2, 1), (4, 1, 1)] {
            let mut steps: Vec<(u64, Vec<i64>)> = Vec::new();
            for dp_rank in 0..dp_size {
                let share = Share {
                    dp_rank,
                    dp_size,
                    batch_size,
                    micro_batches,
                };
                let options = LoaderOptions {
                    share,
                    start: Position::default(),
                };
                let sampler = Sampler::of_all(9, 5, 4).unwrap();
                let mut loader = Loader::new(numbers(9, None), sampler, options).unwrap();
                assert_eq!(loader.steps_per_epoch(), 3);
                let mut step = 0;
                while let Some(batches) = loader.next_step().unwrap() {
                    steps.resize(steps.len().max(step + 1), (0, Vec::new()));
                    for batch in batches {
                        assert_eq!(
                            (batch.rows, batch.labels.len()),
                            (batch_size, 3 * batch_size)
                        );
                        steps[step].0 = batch.step_samples;
                        let rows = batch.labels.chunks(3).zip(batch.attention_mask.chunks(3));
                        for (labels, mask) in rows {
                            if mask == [1; 3] {
                                steps[step].1.push(labels[0] - 1000);
                            } else {
                                assert_eq!((labels, mask), (&[IGNORED_LABEL; 3][..], &[0; 3][..]));
                            }
                        }
                    }
                    step += 1;
                }
            }
            let order = crate::permutation::Permutation::new(9, 5, 0);
            let expected: Vec<i64> = (0..9).map(|sample| order.at(sample) as i64).collect();
            let expected = [
                (4, &expected[..4]),
                (4, &expected[4..8]),
                (1, &expected[8..]),
            ];
            assert_eq!(steps.len(), 3);
            for ((samples, rows), expected) in steps.iter().zip(expected) {
                assert_eq!(
                    (*samples, &rows[..]),
                    expected,
                    "{dp_size} x {batch_size} x {micro_batches}"
                );
            }
        }
    }

    /// Other rows in every epoch, each of two documents.
    struct Turning(Arc<Numbers>);

    impl Rows for Turning {
        fn len(&self) -> u64 {
            4
        }

        fn seq_length(&self) -> usize {
            3
        }

        fn row_at(&self, epoch: u64, sample: u64) -> u64 {
            4 * epoch + sample
        }

        fn documents(&self, row: u64) -> Vec<u32> {
            vec![0, 1 + row as u32 % 2]
        }

        fn fill(&self, row: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
            self.0.fill(row, input_ids, labels, mask);
        }
    }

    #[test]
    fn batches_have_the_rows_of_their_epoch_and_where_documents_begin() {
        let limit = EpochLimit {
            epochs: 2,
            steps_per_epoch: None,
        };
        let share = Share {
            batch_size: 3,
            micro_batches: 1,
            ..SHARE
        };
        let sampler = Sampler::of_all(4, 5, 3).unwrap().limited(limit);
        let start = Position::default();
        let rows = Arc::new(Turning(numbers(8, None)));
        let mut loader = Loader::new(rows, sampler, LoaderOptions { share, start }).unwrap();
        let mut seen = Vec::new();
        for batch in drain(&mut loader) {
            let rows = batch.input_ids.chunks(3).zip(&batch.documents);
            for (place, (ids, starts)) in rows.enumerate() {
                // The last step of an epoch has one row, and two that are empty.
                if batch.attention_mask[3 * place] == 0 {
                    assert_eq!(starts, &[0]);
                    continue;
                }
                assert_eq!(starts, &[0, 1 + ids[0] as u32 % 2]);
                seen.push((batch.epoch, ids[0]));
            }
        }
        seen.sort_unstable();
        let expected: Vec<(u64, i64)> = (0..8).map(|row| (row as u64 / 4, row)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_resumed_run_continues() {
        let mut first = loader(23, SHARE, Position::default());
        let mut steps = Vec::new();
        let mut positions = vec![first.position()];
        while let Some(step) = first.next_step().unwrap() {
            steps.push(step);
            positions.push(first.position());
        }
        for (done, position) in positions.into_iter().enumerate() {
            let rest = drain(&mut loader(23, SHARE, position));
            assert_eq!(rest, steps[done..].concat(), "after {done} steps");
        }
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        let sampler = Sampler::new(8, 5, 4).unwrap();
        let trap = sampler
            .samples(
                Position {
                    epoch: 0,
                    sample: 4,
                },
                0..1,
            )
            .next();
        let options = LoaderOptions {
            share: SHARE,
            start: Position::default(),
        };
        let mut loader = Loader::new(numbers(8, trap), sampler, options).unwrap();
        assert!(
            loader.next_step().unwrap().is_some(),
            "the first step is good"
        );
        let error = loader.next_step().unwrap_err().to_string();
        assert!(error.contains("is a trap"), "{error}");
        let error = loader.next_step().unwrap_err().to_string();
        assert!(error.contains("after the loader failed"), "{error}");
    }

    /// Were the thread not to stop, dropping the loader would wait for millions of steps.
    #[test]
    fn dropping_the_loader_stops_its_thread() {
        let rows = numbers(1 << 40, None);
        let sampler = Sampler::new(1 << 40, 5, 4).unwrap();
        let options = LoaderOptions {
            share: SHARE,
            start: Position::default(),
        };
        let mut loader = Loader::new(rows.clone(), sampler, options).unwrap();
        loader.next_step().unwrap();
        drop(loader);
        assert_eq!(
            Arc::strong_count(&rows),
            1,
            "the thread has let go of the data"
        );
        let steps = rows.filled.load(Ordering::SeqCst) / 4;
        assert!(steps <= 1 + DEPTH + 1, "{steps} steps built, one taken");
    }

    #[test]
    fn shares_must_fit_the_sampler() {
        let options = LoaderOptions {
            share: SHARE,
            start: Position::default(),
        };
        let error = Loader::new(numbers(9, None), Sampler::new(9, 0, 3).unwrap(), options);
        let error = error.err().unwrap().to_string();
        assert!(
            error.contains("3 samples a step") && error.contains("add up to 4"),
            "{error}"
        );
    }
}
