//! Continuing from a checkpoint: finding it, checking that it is of this run, loading it on all ranks.

mod mismatch;

pub use mismatch::DATA_SIZE;

use tandem_checkpoint::{CheckpointName, Reader, RunDir, TrainState, differences};
use tandem_data::Rows;
use tandem_trainer::{Engine, EventSink, TrainEvent, gather_problems};

use crate::failure::{Failure, Outcome};
use crate::prepare::Prepared;
use crate::ranks::Ranks;
use crate::storage::Storage;

/// Where a run continues.
pub struct Resumed {
    /// The checkpoint's name.
    pub name: String,
    /// Where the run stood.
    pub state: TrainState,
    /// The checkpoints before it, oldest first.
    pub older: Vec<String>,
}

/// What a run needs to know to continue from a checkpoint.
pub struct Origin<'a> {
    /// Model, data, seed and settings, which the checkpoint's must equal.
    pub identity: &'a TrainState,
    /// Its model and data.
    pub prepared: &'a Prepared,
    /// The checkpoint that the user has named.
    pub chosen: Option<&'a CheckpointName>,
    /// See [`RESUMED_AT`](crate::environment::RESUMED_AT).
    pub resumed_at: Option<i64>,
    /// Pass over checkpoints that are damaged.
    pub fallback: bool,
}

/// Loads the newest checkpoint of the experiment into `engine`; `None` when there is none. With `fallback`, one that is
/// damaged is passed over, and all ranks say so.
///
/// # Errors
/// A checkpoint of another model, other data or another seed (with the list of differences); one that is damaged.
pub fn resume(
    engine: &mut Engine,
    ranks: &Ranks,
    storage: &Storage,
    run: Option<&RunDir>,
    from: &Origin<'_>,
    sink: &mut dyn EventSink,
) -> Outcome<Option<Resumed>> {
    let Origin {
        identity, fallback, ..
    } = *from;
    let names = candidates(ranks, run, from)?;
    if names.is_empty() {
        return Ok(None);
    }
    let mut problems = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let own = load(engine, storage, name, from, sink);
        match agree(ranks, own)? {
            Ok(state) => {
                engine.publish().map_err(Failure::train)?;
                sink.event(TrainEvent::Summary(describe(
                    name, &state, identity, &problems,
                )));
                return Ok(Some(Resumed {
                    name: name.clone(),
                    state,
                    older: names[index + 1..].iter().rev().cloned().collect(),
                }));
            }
            Err(failure) if !fallback || failure.exit_code == tandem_launch::exit_code::USAGE => {
                return Err(failure.hinted(name, names.len()));
            }
            Err(failure) => problems.push(format!("{name} is passed over: {}", failure.message)),
        }
    }
    Err(Failure::other(format!(
        "none of the {} checkpoints of {} can be loaded:\n{}",
        names.len(),
        storage.location,
        problems.join("\n")
    )))
}

/// The checkpoints, newest first, as rank 0 sees them. With one that the user has named, only those that were saved since,
/// and then that one.
fn candidates(ranks: &Ranks, run: Option<&RunDir>, from: &Origin<'_>) -> Outcome<Vec<String>> {
    let since = match (from.chosen, from.resumed_at) {
        (None, _) => i64::MIN,
        (Some(_), moment) => moment.unwrap_or(i64::MAX),
    };
    let mut own: Vec<&str> = run
        .map(RunDir::checkpoints)
        .unwrap_or_default()
        .iter()
        .rev()
        .filter(|entry| entry.created_unix_us >= since)
        .map(|entry| entry.name.as_str())
        .collect();
    own.extend(from.chosen.map(CheckpointName::as_str));
    let names = ranks.text_of_first(&own.join("\n"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn load(
    engine: &mut Engine,
    storage: &Storage,
    name: &str,
    from: &Origin<'_>,
    sink: &mut dyn EventSink,
) -> Outcome<TrainState> {
    let reader = Reader::open(storage.store.clone(), name).map_err(Failure::other)?;
    check_same_run(reader.state(), from.identity, &reader.location())?;
    check_progress(reader.state(), from.prepared, &reader.location())?;
    let mut progress = |done, total| {
        sink.event(TrainEvent::Progress {
            what: format!("loading {name}"),
            done,
            total,
        });
    };
    engine
        .read_state(&reader, &mut progress)
        .map_err(Failure::train)?;
    Ok(reader.state().clone())
}

/// Refuses to continue a run as another one.
pub fn check_same_run(saved: &TrainState, identity: &TrainState, location: &str) -> Outcome<()> {
    let lines = mismatch::lines(saved, identity);
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "this run cannot continue from {location}, because it is not the same run:\n{}\nGive it what the checkpoint had, or \
         start a new experiment with another --experiment_name",
        lines.join("\n")
    )))
}

/// Refuses progress that these data cannot have had: what a file says is not believed because it is there.
pub fn check_progress(saved: &TrainState, prepared: &Prepared, location: &str) -> Outcome<()> {
    let rows = prepared.dataset.len();
    if is_possible(saved, rows) {
        return Ok(());
    }
    let TrainState {
        epoch,
        next_sample,
        global_step,
        next_global_sample,
        tokens_seen,
        ..
    } = *saved;
    Err(Failure::other(format!(
        "{location} is damaged: step {global_step} with {next_global_sample} samples and {tokens_seen} tokens, then sample \
         {next_sample} of epoch {epoch}, cannot be where a run on {rows} rows stood"
    )))
}

/// Whether a run on so many rows can have come this far. What it was told (batch sizes, meshes, steps of an epoch) may have
/// changed on the way.
fn is_possible(saved: &TrainState, rows: u64) -> bool {
    let (epochs, samples) = (
        u128::from(saved.epoch),
        u128::from(saved.next_global_sample),
    );
    let (steps, next) = (u128::from(saved.global_step), u128::from(saved.next_sample));
    let rows = u128::from(rows);
    // An epoch that is over had a step at least, and a step a row. Of this one, all rows before the next were trained on.
    let least = epochs + next;
    let most = epochs * rows + next;
    let steps_of_this = u128::from(next > 0);
    next <= rows
        && (least..=most).contains(&samples)
        && (epochs + steps_of_this..=samples).contains(&steps)
        && u128::from(saved.tokens_seen) <= samples * saved.seq_length as u128
}

/// All ranks' verdict: the state when every rank has loaded it. A rank whose own part is fine fails because of others'.
fn agree(ranks: &Ranks, own: Outcome<TrainState>) -> Outcome<Outcome<TrainState>> {
    let text = own.as_ref().err().map(|failure| failure.message.as_str());
    let problems = gather_problems(ranks.everyone.as_ref(), text, ranks.device);
    let problems = problems.map_err(Failure::comm)?;
    Ok(match (own, problems.into_iter().next()) {
        (Ok(_), Some(first)) => Err(Failure {
            secondary: true,
            ..Failure::other(first)
        }),
        (own, _) => own,
    })
}

fn describe(
    name: &str,
    state: &TrainState,
    identity: &TrainState,
    problems: &[String],
) -> Vec<String> {
    let mut lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("warning: {problem}"))
        .collect();
    // Epochs are counted from 1 wherever people read them.
    lines.push(format!(
        "continuing from {name}: step {}, epoch {}, sample {}",
        state.global_step,
        state.epoch.saturating_add(1),
        state.next_sample
    ));
    let changed = differences(state, identity).allowed;
    lines.extend(changed.iter().map(|one| format!("  changed  {one}")));
    lines
}

impl Failure {
    /// Says what to do about a checkpoint that cannot be loaded.
    fn hinted(self, name: &str, candidates: usize) -> Self {
        if self.exit_code == tandem_launch::exit_code::USAGE {
            return self;
        }
        let hint = if candidates > 1 {
            "; --resume_fallback takes the one before"
        } else {
            "; there is no other in this experiment"
        };
        Self {
            message: format!("cannot continue from {name}: {}{hint}", self.message),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_cannot_have_been_is_not_believed() {
        // The third epoch of 10 rows of 8 tokens, 2 rows a step.
        let good = TrainState {
            epoch: 2,
            next_sample: 4,
            global_step: 12,
            next_global_sample: 24,
            tokens_seen: 24 * 7,
            seq_length: 8,
            ..TrainState::default()
        };
        assert!(is_possible(&good, 10));
        assert!(is_possible(&TrainState::default(), 10), "nothing done yet");
        let with = |change: fn(&mut TrainState)| {
            let mut state = good.clone();
            change(&mut state);
            state
        };
        // Rows of an epoch may have been left out, and the end of one is also the begin of the next.
        let fewer = |s: &mut TrainState| (s.next_global_sample, s.tokens_seen) = (20, 20 * 7);
        assert!(is_possible(&with(fewer), 10));
        assert!(is_possible(
            &with(|s| (s.epoch, s.next_sample) = (3, 0)),
            10
        ));
        assert!(is_possible(
            &with(|s| {
                (s.epoch, s.next_sample) = (1, 10);
                (s.next_global_sample, s.tokens_seen) = (20, 20 * 7);
            }),
            10
        ));
        for wrong in [
            with(|s| s.epoch = u64::MAX),
            with(|s| s.epoch = 0),
            with(|s| s.next_sample = 11),
            with(|s| s.next_sample = u64::MAX),
            with(|s| s.global_step = 25),
            with(|s| s.global_step = 2),
            with(|s| s.global_step = 0),
            with(|s| s.global_step = u64::MAX),
            with(|s| s.next_global_sample = 25),
            with(|s| s.next_global_sample = 5),
            with(|s| s.next_global_sample = u64::MAX),
            with(|s| s.tokens_seen = 24 * 8 + 1),
            with(|s| s.tokens_seen = u64::MAX),
        ] {
            assert!(!is_possible(&wrong, 10), "{wrong:?}");
        }
    }
}
