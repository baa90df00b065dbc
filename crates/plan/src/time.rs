//! How long a step takes on a device: its operations one after the other, and of collectives what computing does not hide.

use std::ops::AddAssign;

use serde::Serialize;

use crate::device::{Device, Link};
use crate::settings::Settings;
use crate::share::{Layer, Share, Unit};
use crate::talk::{self, Collective, Group, Reduction, Row, Verb};
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
    /// What the column says.
    pub dp: Conversation,
}

/// What a group says in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Conversation {
    /// Bytes of the tensors.
    pub bytes: f64,
    /// Seconds that computing waits for.
    pub exposed_s: f64,
    /// Seconds beside computing.
    pub hidden_s: f64,
}

impl StepTime {
    /// Seconds from one step to the next.
    pub fn total_s(&self) -> f64 {
        self.computing_s() + self.tp.exposed_s + self.dp.exposed_s
    }

    fn computing_s(&self) -> f64 {
        self.products_s + self.attention_s + self.memory_bound_s
    }

    /// The time of a step on this device.
    pub fn of(share: &Share, settings: &Settings, device: &Device, kernels: Kernels) -> Self {
        let clock = Clock {
            settings,
            device,
            kernels,
        };
        let mut time = clock.step(share);
        for (collective, times) in talk::of_step(share, settings) {
            let said = match collective.group {
                Group::Tp => &mut time.tp,
                Group::Dp => &mut time.dp,
            };
            said.bytes += collective.bytes as f64 * times as f64;
        }
        time
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
    /// Of the row: in forward, and in backward, each exposed and hidden.
    row: Conversation,
    /// The forward's part of what the row has exposed.
    row_forward: Conversation,
}

/// Whose time is counted.
struct Clock<'a> {
    settings: &'a Settings,
    device: &'a Device,
    kernels: Kernels,
}

impl Clock<'_> {
    /// A product whose sides are short leaves units idle: half of them at this length, on GPUs.
    const SHORT: f64 = 48.0;

    fn operation(&self, operation: &Operation) -> Computing {
        let device = self.device;
        let least = device.operation_s;
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
                let full: f64 = match device.cpu {
                    true => 1.0,
                    false => sides
                        .iter()
                        .map(|side| side / (side + Self::SHORT))
                        .product(),
                };
                let rate = device.peak(kind) * device.product_efficiency * full;
                let [m, k, n] = sides;
                let each = kind.elt_size_in_bytes() as f64;
                let moving = each * (m * k + k * n + m * n) / memory;
                let once = (2.0 * m * k * n / rate).max(moving).max(least);
                time.products = count as f64 * once;
            }
            Operation::Attention { flops, is_backward } => {
                let efficiency = device.attention_efficiency[usize::from(is_backward)];
                let rate = device.peak(self.settings.precision.matmul) * efficiency;
                time.attention = (flops / rate).max(least);
            }
            Operation::Pass {
                bytes,
                as_tensors,
                count,
            } => {
                let AsTensors { factor, operations } = as_tensors;
                time.memory_bound = count
                    * match self.kernels {
                        Kernels::Fused => (bytes / memory).max(least),
                        Kernels::Operators => (bytes * factor / memory).max(least * operations),
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

    /// Seconds of a collective that nothing disturbs: rings for large tensors (each byte goes round once, or twice for a sum that
    /// all get), trees for small ones.
    fn collective(&self, collective: &Collective) -> f64 {
        let (tp, dp) = (self.settings.tp(), self.settings.dp());
        let per_node = self.device.devices_per_node;
        // Members in one node, of a group whose neighbours are `stride` ranks apart.
        let (members, stride) = match collective.group {
            Group::Tp => (tp, 1),
            Group::Dp => (dp, tp),
        };
        if members < 2 {
            return 0.0;
        }
        let here = (per_node / stride).clamp(1, members);
        let (n, bytes) = (members as f64, collective.bytes as f64);
        let rounds = match collective.verb {
            Verb::AllReduce => 2.0,
            Verb::AllGather | Verb::ReduceScatter => 1.0,
        };
        let moved = rounds * bytes * (n - 1.0) / n;
        let Link { latency_s, .. } = self.device.link;
        let within = moved / self.device.link.rate();
        if here == members {
            return within + rounds * latency_s * n.log2().ceil();
        }
        // The groups beside this one use the same adapters, so that a group has those of its members.
        let network = self.device.network;
        let own = network.rate() * here as f64 / per_node as f64;
        let hops = rounds * (network.latency_s * (n / here as f64).log2().ceil());
        let within = if here > 1 { within } else { 0.0 };
        (moved / own).max(within) + hops + rounds * latency_s * (here as f64).log2().ceil()
    }

    /// Collectives, of which up to `beside` seconds of computing hide what they can.
    fn say(&self, collective: Option<Collective>, beside: f64) -> Conversation {
        let seconds: f64 = collective.iter().map(|it| self.collective(it)).sum();
        let hidden = seconds.min(self.device.overlap * beside);
        Conversation {
            exposed_s: seconds - hidden,
            hidden_s: hidden,
            ..Conversation::default()
        }
    }

    /// Collectives that computing waits for.
    fn say_all(&self, said: &[(Collective, u128)]) -> Conversation {
        let mut all = Conversation::default();
        for (collective, times) in said {
            all.add(self.say(Some(*collective), 0.0).times(*times as f64));
        }
        all
    }

    fn part(&self, part: &Part, row: &Row) -> Times {
        let row_forward = self.say_all(&row.forward);
        let mut said = row_forward;
        said.add(self.say_all(&row.backward));
        for (beside, collective) in part.beside.iter().zip(&row.beside) {
            let computing = self.operations(beside).all();
            said.add(self.say(*collective, computing));
        }
        Times {
            forward: self.operations(&part.forward),
            backward: self.operations(&part.backward),
            row: said,
            row_forward,
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
        for times in layers.iter().chain([&embedding, &head]) {
            for (time, count) in [(times.forward, micro + ahead), (times.backward, micro)] {
                computing += Computing {
                    products: count * time.products,
                    attention: count * time.attention,
                    memory_bound: count * time.memory_bound,
                };
            }
            tp.add(times.row.times(micro));
            tp.add(times.row_forward.times(ahead));
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
    fn gather(&self, unit: &Unit) -> Option<Collective> {
        talk::gather(unit, self.share, self.clock.settings)
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
        for (index, unit) in self.share.units.iter().enumerate() {
            let collective = self.gather(unit);
            said.add(self.clock.say(collective, self.before(index)));
        }
        said
    }

    /// Of one micro-batch. In the backward pass a layer is gathered while the layer above computes; what is reduced then has the
    /// rest of that time.
    fn gathering(&self) -> Conversation {
        let mut said = self.gathering_ahead();
        if self.clock.settings.reshard_after_forward {
            for layer in 0..self.layers.len().saturating_sub(1) {
                let collective = self.gather(&self.share.units[1 + layer]);
                let beside = self.layers[layer + 1].backward.all();
                said.add(self.clock.say(collective, beside));
            }
        }
        said
    }

    /// Of all micro-batches. A layer's gradient is reduced while the layer below computes.
    fn reducing(&self, tp: &mut Conversation) -> Conversation {
        let settings = self.clock.settings;
        let micro = settings.micro_batches as f64;
        let mut said = Conversation::default();
        let trained: Vec<(usize, &Unit)> = match self.share.is_frozen() {
            true => self.share.adapters.iter().enumerate().collect(),
            false => self.share.units.iter().enumerate().collect(),
        };
        for (index, unit) in trained {
            let Reduction {
                partial,
                column,
                every_time,
                ..
            } = talk::reduction(unit, settings);
            let times = if every_time { micro } else { 1.0 };
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
                    let gathered = layer
                        .checked_sub(2)
                        .and_then(|layer| self.gather(self.share.units.get(1 + layer)?));
                    gathered.map_or(0.0, |it| self.clock.collective(&it))
                }
                false => 0.0,
            };
            let beside = (below - taken / self.clock.device.overlap.max(1e-9)).max(0.0);
            said.add(self.clock.say(column, beside).times(times));
            tp.add(self.clock.say(partial, 0.0).times(times));
        }
        said
    }

    /// Updated parameters are gathered beside the next step, until each is needed.
    fn refreshing(&self) -> Conversation {
        let trained = match self.share.is_frozen() {
            true => &self.share.adapters,
            false => &self.share.units,
        };
        let mut said = Conversation::default();
        let (mut until, mut busy) = (0.0, 0.0);
        for (index, unit) in trained.iter().enumerate() {
            let refresh = talk::reduction(unit, self.clock.settings).refresh;
            let seconds: f64 = refresh.iter().map(|it| self.clock.collective(it)).sum();
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
