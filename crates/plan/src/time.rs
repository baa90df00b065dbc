//! How long a step takes on a device: its operations one after the other, and of collectives what computing does not hide.

use std::ops::AddAssign;

use serde::Serialize;

use crate::device::Device;
use crate::group::Group;
use crate::links;
use crate::settings::Settings;
use crate::share::{Layer, Share, Unit};
use crate::talk::{self, Collective, Reduction, Said, Verb};
use crate::work::{self, AsTensors, Operation, Part};

/// How passes over memory are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// One kernel for each: what this project has for processors, and what a compiler makes for GPUs.
    Fused,
    /// A row of libtorch's operators for each: what this project has for GPUs.
    Operators,
}

impl Kernels {
    /// Those that this project has for a device.
    pub fn of(device: &Device) -> Self {
        match device.cpu {
            true => Self::Fused,
            false => Self::Operators,
        }
    }
}

/// Seconds of a step, of the rank that all wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepTime {
    /// Matrix products.
    pub products_s: f64,
    /// Attention's kernels.
    pub attention_s: f64,
    /// All that only reads and writes: norms, rotations, activations, the loss, the update.
    pub memory_bound_s: f64,
    /// What the row says.
    pub tp: Conversation,
    /// What the columns say: the rank's own, and that of its experts where they are spread over ranks.
    pub dp: Conversation,
    /// What ranks over which experts are spread say: rows of tokens to where their experts are, and back.
    pub ep: Conversation,
}

/// What a group says in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Conversation {
    /// Bytes of the tensors; of what each rank sends to each, of the rank's own.
    pub bytes: f64,
    /// Seconds that computing waits for.
    pub exposed_s: f64,
    /// Seconds beside computing.
    pub hidden_s: f64,
}

impl StepTime {
    /// Seconds from one step to the next.
    pub fn total_s(&self) -> f64 {
        self.computing_s() + self.tp.exposed_s + self.dp.exposed_s + self.ep.exposed_s
    }

    fn computing_s(&self) -> f64 {
        self.products_s + self.attention_s + self.memory_bound_s
    }

    /// The time of a step on this device.
    pub fn of(share: &Share, settings: &Settings, device: &Device, kernels: Kernels) -> Self {
        let clock = Clock {
            settings,
            expert_ranks: share.expert_ranks,
            device,
            kernels,
        };
        let mut time = clock.step(share);
        for (collective, times) in talk::of_step(share, settings) {
            let said = match collective.group {
                Group::Tp => &mut time.tp,
                Group::Dp | Group::Edp => &mut time.dp,
                Group::Ep => &mut time.ep,
            };
            // Of what all ranks send, a rank's own.
            let part = match collective.verb {
                Verb::AllToAll => share.expert_ranks as f64,
                _ => 1.0,
            };
            said.bytes += collective.bytes as f64 / part * times as f64;
        }
        time
    }
}

/// What is said about the tokens of a part.
#[derive(Clone, Copy, Default)]
struct Talk {
    row: Conversation,
    /// Of the ranks over which experts are spread.
    experts: Conversation,
}

impl Talk {
    fn add(&mut self, group: Group, said: Conversation) {
        match group {
            Group::Ep => self.experts.add(said),
            _ => self.row.add(said),
        }
    }
}

/// Seconds of computing, by what it is.
#[derive(Debug, Clone, Copy, Default)]
struct Computing {
    products: f64,
    attention: f64,
    memory_bound: f64,
}

impl Computing {
    fn all(&self) -> f64 {
        self.products + self.attention + self.memory_bound
    }
}

impl AddAssign for Computing {
    fn add_assign(&mut self, other: Self) {
        self.products += other.products;
        self.attention += other.attention;
        self.memory_bound += other.memory_bound;
    }
}

/// A part of the model in one micro-batch.
#[derive(Clone, Copy, Default)]
struct Times {
    forward: Computing,
    backward: Computing,
    /// In forward and backward.
    said: Talk,
    /// The forward's part of that.
    said_forward: Talk,
}

/// Whose time is counted.
struct Clock<'a> {
    settings: &'a Settings,
    expert_ranks: usize,
    device: &'a Device,
    kernels: Kernels,
}

impl Clock<'_> {
    fn operation(&self, operation: &Operation) -> Computing {
        let device = self.device;
        // A GPU's launches overlap with what runs; a processor's threads have to begin and to end.
        let at_least = |seconds: f64| match device.cpu {
            true => seconds + device.operation_s,
            false => seconds.max(device.operation_s),
        };
        let memory = device.memory_bandwidth * device.memory_efficiency;
        let mut time = Computing::default();
        match *operation {
            Operation::Product {
                rows,
                inner,
                columns,
                count,
                kind,
            } => {
                let sides = [rows as f64, inner as f64, columns as f64];
                let full = device.part_of_short_sides(sides);
                let rate = device.peak(kind) * device.product_efficiency * full;
                let [m, k, n] = sides;
                let each = kind.elt_size_in_bytes() as f64;
                let moving = each * (m * k + k * n + m * n) / memory;
                let once = at_least((2.0 * m * k * n / rate).max(moving));
                time.products = count as f64 * once;
            }
            Operation::Attention { flops, is_backward } => {
                let efficiency = device.attention_efficiency[usize::from(is_backward)];
                let rate = device.peak(self.settings.precision.matmul) * efficiency;
                time.attention = at_least(flops / rate);
            }
            Operation::Pass {
                bytes,
                as_tensors,
                count,
            } => {
                let AsTensors { factor, operations } = as_tensors;
                time.memory_bound = count
                    * match self.kernels {
                        Kernels::Fused => at_least(bytes / memory),
                        Kernels::Operators => {
                            (bytes * factor / memory).max(device.operation_s * operations)
                        }
                    };
            }
        }
        time
    }

    fn operations(&self, operations: &[Operation]) -> Computing {
        let mut sum = Computing::default();
        for operation in operations {
            sum += self.operation(operation);
        }
        sum
    }

    /// Seconds of a collective that nothing disturbs.
    fn collective(&self, collective: &Collective) -> f64 {
        let members = collective.group.members(self.settings, self.expert_ranks);
        links::seconds(collective, members, self.device)
    }

    /// Collectives, of which up to `beside` seconds of computing hide what they can.
    fn say(&self, collectives: impl IntoIterator<Item = Collective>, beside: f64) -> Conversation {
        let all = collectives.into_iter();
        let seconds: f64 = all.map(|it| self.collective(&it)).sum();
        let hidden = seconds.min(self.device.overlap * beside);
        Conversation {
            exposed_s: seconds - hidden,
            hidden_s: hidden,
            ..Conversation::default()
        }
    }

    /// Of `beside` seconds of computing, those beside which there is room when what takes `taken` seconds has been said.
    fn left(&self, beside: f64, taken: f64) -> f64 {
        (beside - taken / self.device.overlap.max(1e-9)).max(0.0)
    }

    fn part(&self, part: &Part, said: &Said) -> Times {
        let mut all = Talk::default();
        // Computing waits for these.
        let mut wait_for = |said: &[(Collective, u128)]| {
            for (collective, times) in said {
                let once = self.say([*collective], 0.0);
                all.add(collective.group, once.times(*times as f64));
            }
            all
        };
        let said_forward = wait_for(&said.forward);
        wait_for(&said.backward);
        for (beside, collectives) in part.beside.iter().zip(&said.beside) {
            let Some(first) = collectives.first() else {
                continue;
            };
            let computing = self.operations(beside).all();
            let said = self.say(collectives.iter().copied(), computing);
            all.add(first.group, said);
        }
        Times {
            forward: self.operations(&part.forward),
            backward: self.operations(&part.backward),
            said: all,
            said_forward,
        }
    }

    fn layers(&self, share: &Share) -> Vec<Times> {
        let mut known: Vec<(&Layer, Times)> = Vec::new();
        let mut times = |layer| match known.iter().find(|(its, _)| *its == layer) {
            Some((_, times)) => *times,
            None => {
                let part = work::layer(layer, share, self.settings);
                let times = self.part(&part, &talk::layer(layer, share, self.settings));
                known.push((layer, times));
                times
            }
        };
        share.layers.iter().map(&mut times).collect()
    }

    fn step(&self, share: &Share) -> StepTime {
        let settings = self.settings;
        let micro = settings.micro_batches as f64;
        let layers = self.layers(share);
        let embedding = self.part(
            &work::embedding(share, settings),
            &talk::embedding(share, settings),
        );
        let head = self.part(&work::head(share, settings), &talk::head(share, settings));
        let ahead = match share.looks_ahead && settings.micro_batches > 1 {
            true => micro,
            false => 0.0,
        };

        let mut computing = Computing::default();
        let mut tp = Conversation::default();
        let mut ep = Conversation::default();
        for times in layers.iter().chain([&embedding, &head]) {
            for (time, count) in [(times.forward, micro + ahead), (times.backward, micro)] {
                computing += Computing {
                    products: count * time.products,
                    attention: count * time.attention,
                    memory_bound: count * time.memory_bound,
                };
            }
            for (said, count) in [(times.said, micro), (times.said_forward, ahead)] {
                tp.add(said.row.times(count));
                ep.add(said.experts.times(count));
            }
        }
        computing += self.operations(&work::update(share, settings));

        let columns = Columns {
            clock: self,
            share,
            layers: &layers,
            embedding,
        };
        let mut dp = columns.gathering().times(micro);
        dp.add(columns.gathering_ahead().times(ahead));
        dp.add(columns.reducing(&mut tp));
        dp.add(columns.refreshing());
        StepTime {
            products_s: computing.products,
            attention_s: computing.attention,
            memory_bound_s: computing.memory_bound,
            tp,
            dp,
            ep,
        }
    }
}

/// What the columns say, and what it runs beside.
struct Columns<'a> {
    clock: &'a Clock<'a>,
    share: &'a Share,
    layers: &'a [Times],
    embedding: Times,
}

impl Columns<'_> {
    /// A unit of the walk, and its layer's experts where they are spread over ranks.
    fn units(&self, index: usize) -> impl Iterator<Item = &Unit> {
        let all = self.share.with_experts(index);
        all.map(|unit| &self.share.units[unit])
    }

    /// The gathering of these.
    fn gather(&self, index: usize) -> impl Iterator<Item = Collective> {
        let gather = |unit| talk::gather(unit, self.share, self.clock.settings);
        self.units(index).filter_map(gather)
    }

    /// Beside which computing a unit is gathered for forward: that of the unit before.
    fn before(&self, unit: usize) -> f64 {
        let forward = |layer: usize| self.layers.get(layer).map_or(0.0, |it| it.forward.all());
        match unit {
            0 => 0.0,
            1 => self.embedding.forward.all(),
            _ => forward(unit - 2),
        }
    }

    /// Before its first use in the forward pass, every unit.
    fn gathering_ahead(&self) -> Conversation {
        let mut said = Conversation::default();
        for index in self.share.walked() {
            said.add(self.clock.say(self.gather(index), self.before(index)));
        }
        said
    }

    /// Of one micro-batch. In the backward pass a layer is gathered while the layer above computes; what is reduced then has the
    /// rest of that time.
    fn gathering(&self) -> Conversation {
        let mut said = self.gathering_ahead();
        if self.clock.settings.reshard_after_forward {
            for layer in 0..self.layers.len().saturating_sub(1) {
                let beside = self.layers[layer + 1].backward.all();
                said.add(self.clock.say(self.gather(1 + layer), beside));
            }
        }
        said
    }

    /// Of all micro-batches. A layer's gradient is reduced while the layer below computes.
    fn reducing(&self, tp: &mut Conversation) -> Conversation {
        let settings = self.clock.settings;
        let micro = settings.micro_batches as f64;
        let mut said = Conversation::default();
        for (index, units) in self.trained().into_iter().enumerate() {
            // Of adapters, each layer has one, as good as.
            let layer = match self.share.is_frozen() {
                true => index,
                false => index.wrapping_sub(1),
            };
            let below = match layer.checked_sub(1) {
                Some(below) if layer <= self.layers.len() => self.layers[below].backward.all(),
                Some(_) => 0.0,
                None => self.embedding.backward.all(),
            };
            // The head's runs beside the last layer.
            let below = match (self.share.tied, index == self.layers.len() + 1) {
                (false, true) => self.layers.last().map_or(0.0, |it| it.backward.all()),
                _ => below,
            };
            let taken = match self.clock.settings.reshard_after_forward {
                true => {
                    let two_below = layer.checked_sub(2);
                    let gathered = two_below.into_iter().flat_map(|it| self.gather(1 + it));
                    gathered.map(|it| self.clock.collective(&it)).sum()
                }
                false => 0.0,
            };
            let mut beside = self.clock.left(below, taken);
            for unit in units {
                let Reduction {
                    partial,
                    column,
                    every_time,
                    ..
                } = talk::reduction(unit, settings);
                let times = if every_time { micro } else { 1.0 };
                let column = self.clock.say(column, beside);
                beside = self.clock.left(beside, column.hidden_s);
                said.add(column.times(times));
                tp.add(self.clock.say(partial, 0.0).times(times));
            }
        }
        said
    }

    /// What is reduced together, in the order of the walk: units with their experts, or adapters in their place.
    fn trained(&self) -> Vec<Vec<&Unit>> {
        match self.share.is_frozen() {
            true => self.share.adapters.iter().map(|unit| vec![unit]).collect(),
            false => {
                let walked = self.share.walked();
                walked.map(|index| self.units(index).collect()).collect()
            }
        }
    }

    /// Updated parameters are gathered beside the next step, until each is needed.
    fn refreshing(&self) -> Conversation {
        let mut said = Conversation::default();
        let (mut until, mut busy) = (0.0, 0.0);
        for (index, units) in self.trained().into_iter().enumerate() {
            let refresh = |unit: &Unit| talk::reduction(unit, self.clock.settings).refresh;
            let refreshes = units.into_iter().filter_map(refresh);
            let seconds: f64 = refreshes.map(|it| self.clock.collective(&it)).sum();
            until += self.before(index);
            let hidden = seconds.min((self.clock.device.overlap * until - busy).max(0.0));
            busy += hidden;
            said.add(Conversation {
                exposed_s: seconds - hidden,
                hidden_s: hidden,
                ..Conversation::default()
            });
        }
        said
    }
}

impl Conversation {
    fn add(&mut self, other: Self) {
        self.exposed_s += other.exposed_s;
        self.hidden_s += other.hidden_s;
    }

    fn times(self, times: f64) -> Self {
        Self {
            exposed_s: times * self.exposed_s,
            hidden_s: times * self.hidden_s,
            ..self
        }
    }
}
