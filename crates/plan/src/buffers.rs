//! The buffers that units borrow while a step walks through them: as many exist as are borrowed at the same time, and what was
//! made once is kept (`tandem_parallel::BufferPool`).

use std::collections::BTreeMap;

use tandem_parallel::ShardingLevel;

use crate::settings::Settings;
use crate::share::Share;

/// Bytes of the buffers that exist after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Borrowed {
    /// What parameters are gathered into.
    pub gathered: u128,
    /// What gradients are computed in until they are with their owners.
    pub gradients: u128,
}

/// What a buffer is for; those of one purpose and capacity serve each other's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Gathering,
    Gradient,
}

/// How many buffers are free, and how many there are.
#[derive(Default)]
struct Pool {
    free: BTreeMap<(Purpose, usize), usize>,
    made: BTreeMap<(Purpose, usize), usize>,
}

/// One step over the units, as `train_step` walks.
struct Walk<'a> {
    share: &'a Share,
    settings: &'a Settings,
    pool: Pool,
    held: Vec<[bool; 2]>,
}

/// The buffers of a step.
pub(crate) fn borrowed(share: &Share, settings: &Settings) -> Borrowed {
    let mut walk = Walk {
        share,
        settings,
        pool: Pool::default(),
        held: vec![[false; 2]; share.units.len()],
    };
    walk.step();
    let bytes = |purpose: Purpose, each: u128| {
        let made = walk.pool.made.iter();
        let own = made.filter(|((its, _), _)| *its == purpose);
        own.map(|((_, capacity), count)| *capacity as u128 * *count as u128 * each)
            .sum()
    };
    let param = match share.is_frozen() {
        true => settings.precision.frozen().param,
        false => settings.precision.param,
    };
    Borrowed {
        gathered: bytes(Purpose::Gathering, param.elt_size_in_bytes() as u128),
        gradients: bytes(Purpose::Gradient, 4),
    }
}

impl Walk<'_> {
    fn step(&mut self) {
        const EMBEDDING: usize = 0;
        let share = self.share;
        let trains = !share.is_frozen();
        let layers = share.layers.len();
        let head = if share.tied { EMBEDDING } else { layers + 1 };
        self.gather(EMBEDDING);
        self.gather(EMBEDDING + 1);
        if !share.tied {
            self.release(EMBEDDING);
        }
        for layer in 0..layers {
            self.gather(1 + layer);
            self.gather(2 + layer);
            if self.settings.reshard_after_forward && layer + 1 < layers {
                self.release(1 + layer);
            }
        }
        self.gather(head);
        if trains {
            self.take_gradient(head);
        }
        if head != EMBEDDING {
            self.release(head);
        }
        for layer in (0..layers).rev() {
            let unit = 1 + layer;
            self.gather(unit);
            if layer > 0 {
                self.gather(unit - 1);
            }
            if trains {
                self.take_gradient(unit);
            }
            self.release(unit);
            self.give_gradient(unit + 1);
        }
        if trains {
            self.take_gradient(EMBEDDING);
        }
    }

    fn borrows(&self, unit: usize, purpose: Purpose) -> bool {
        let settings = self.settings;
        let level = self.share.units[unit].level(settings);
        match purpose {
            Purpose::Gathering => level == ShardingLevel::Parameters,
            Purpose::Gradient => level >= ShardingLevel::Gradients,
        }
    }

    fn take(&mut self, unit: usize, purpose: Purpose) {
        if !self.borrows(unit, purpose) || self.held[unit][purpose as usize] {
            return;
        }
        self.held[unit][purpose as usize] = true;
        let key = (purpose, self.share.units[unit].capacity);
        match self.pool.free.get_mut(&key) {
            Some(free) if *free > 0 => *free -= 1,
            _ => *self.pool.made.entry(key).or_default() += 1,
        }
    }

    fn give(&mut self, unit: usize, purpose: Purpose) {
        if std::mem::take(&mut self.held[unit][purpose as usize]) {
            let key = (purpose, self.share.units[unit].capacity);
            *self.pool.free.entry(key).or_default() += 1;
        }
    }

    fn gather(&mut self, unit: usize) {
        self.with_experts(unit, |walk, unit| walk.take(unit, Purpose::Gathering));
    }

    fn release(&mut self, unit: usize) {
        self.with_experts(unit, |walk, unit| walk.give(unit, Purpose::Gathering));
    }

    fn take_gradient(&mut self, unit: usize) {
        self.with_experts(unit, |walk, unit| walk.take(unit, Purpose::Gradient));
    }

    fn give_gradient(&mut self, unit: usize) {
        self.with_experts(unit, |walk, unit| walk.give(unit, Purpose::Gradient));
    }

    /// For a layer's unit, and for that of its experts where they are spread; for nothing behind the last unit.
    fn with_experts(&mut self, unit: usize, each: impl Fn(&mut Self, usize)) {
        for unit in self.share.with_experts(unit) {
            each(self, unit);
        }
    }
}
