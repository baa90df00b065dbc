//! What all ranks decide together after a step: ranks hear of a request, or finish writing, at different moments, and
//! must act in the same step.

use tandem_comm::{CommError, ProcessGroup, all_gather_bytes, all_gather_numbers};
use tandem_tensor::Device;

/// What somebody outside asks of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requests {
    /// Finish the step, save and leave.
    pub stop: bool,
    /// Save after this step and go on.
    pub save_now: bool,
}

impl Requests {
    /// What one or the other asks for.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            stop: self.stop || other.stop,
            save_now: self.save_now || other.save_now,
        }
    }
}

/// How far a rank's part in the save under way is; over all ranks, how far the slowest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Stage {
    /// Nothing is being saved.
    #[default]
    Idle,
    /// Done well.
    Done,
    /// Done, and not well.
    Failed,
    /// Not done.
    Busy,
}

/// What one rank brings, and what comes out for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Agreement {
    pub requests: Requests,
    pub stage: Stage,
}

impl Agreement {
    /// Brings all ranks' views together: a request of one is everybody's, and the save is as far as the slowest rank.
    pub fn reach(self, world: &dyn ProcessGroup, device: Device) -> Result<Self, CommError> {
        let packed = all_gather_numbers(world, &[self.packed()], device)?;
        Ok(packed
            .concat()
            .into_iter()
            .map(Self::unpacked)
            .fold(Self::default(), Self::joined))
    }

    fn joined(self, other: Self) -> Self {
        Self {
            requests: self.requests.or(other.requests),
            stage: self.stage.max(other.stage),
        }
    }

    fn packed(self) -> i64 {
        let stage = match self.stage {
            Stage::Idle => 0,
            Stage::Done => 1,
            Stage::Failed => 2,
            Stage::Busy => 3,
        };
        i64::from(self.requests.stop) | i64::from(self.requests.save_now) << 1 | stage << 2
    }

    fn unpacked(packed: i64) -> Self {
        Self {
            requests: Requests {
                stop: packed & 1 != 0,
                save_now: packed & 2 != 0,
            },
            stage: match packed >> 2 {
                0 => Stage::Idle,
                1 => Stage::Done,
                2 => Stage::Failed,
                _ => Stage::Busy,
            },
        }
    }
}

/// What went wrong on any rank, on all ranks, in rank order and with the rank's number before it; nothing where all is well.
///
/// # Errors
/// When a peer fails.
pub fn gather_problems(
    world: &dyn ProcessGroup,
    own: Option<&str>,
    device: Device,
) -> Result<Vec<String>, CommError> {
    let all = all_gather_bytes(world, own.unwrap_or_default().as_bytes(), device)?;
    Ok(all
        .iter()
        .enumerate()
        .filter(|(_, problem)| !problem.is_empty())
        .map(|(rank, problem)| format!("rank {rank}: {}", String::from_utf8_lossy(problem)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_is_everybodys_and_the_slowest_counts() {
        let with = |stop, save_now, stage| Agreement {
            requests: Requests { stop, save_now },
            stage,
        };
        let views = [
            with(false, false, Stage::Done),
            with(true, false, Stage::Failed),
            with(false, true, Stage::Done),
        ];
        for view in views {
            assert_eq!(Agreement::unpacked(view.packed()), view);
        }
        let all = views
            .into_iter()
            .fold(Agreement::default(), Agreement::joined);
        assert_eq!(all, with(true, true, Stage::Failed));
        assert_eq!(
            all.joined(with(false, false, Stage::Busy)).stage,
            Stage::Busy
        );
    }
}
