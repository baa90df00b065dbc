//! What a rank says to the others in a step: the collectives of the table at the top of `tandem_trainer`'s `train_step.rs`, less
//! those of a few bytes. A test there holds this list against what ranks are recorded to say.

use tandem_model::{QkNormDims, Recompute};
use tandem_parallel::ShardingLevel;

use crate::settings::Settings;
use crate::share::{Layer, Share, Unit};

/// Whom it is said to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The row.
    Tp,
    /// The column.
    Dp,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Every rank gets the sum.
    AllReduce,
    /// Every rank gets all parts.
    AllGather,
    /// Every rank gets its part of the sum.
    ReduceScatter,
}

/// One collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collective {
    /// Whom it is said to.
    pub group: Group,
    /// What is done.
    pub verb: Verb,
    /// Bytes of the whole tensor.
    pub bytes: u128,
}

/// What the row says in the forward and the backward pass of a part, and how often.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub forward: Vec<(Collective, u128)>,
    pub backward: Vec<(Collective, u128)>,
    /// Of the backward pass, those that run while the gradients of weights are computed: the attention's, and the MLP's.
    pub beside: [Option<Collective>; 2],
}

/// The conversations of a row about the tokens of a micro-batch.
struct Tokens<'a> {
    settings: &'a Settings,
    hidden: u128,
}

impl Tokens<'_> {
    fn say(&self, verb: Verb, bytes: u128) -> Option<Collective> {
        (self.settings.tp() > 1).then_some(Collective {
            group: Group::Tp,
            verb,
            bytes,
        })
    }

    fn gather(&self, each: u128) -> Option<Collective> {
        let bytes = self.settings.tokens() * self.hidden * each;
        self.say(Verb::AllGather, bytes)
            .filter(|_| self.settings.cuts_tokens())
    }

    fn reduce(&self, each: u128) -> Option<Collective> {
        let verb = match self.settings.cuts_tokens() {
            true => Verb::ReduceScatter,
            false => Verb::AllReduce,
        };
        self.say(verb, self.settings.tokens() * self.hidden * each)
    }
}

/// What the row says in one layer.
pub(crate) fn layer(layer: &Layer, share: &Share, settings: &Settings) -> Row {
    let tokens = Tokens {
        settings,
        hidden: share.hidden as u128,
    };
    let c = settings.product_bytes();
    let mut row = Row::default();
    let (attends, computes) = (layer.cuts_attention, layer.cuts_mlp);
    let across = match layer.dims.qk_norm {
        Some(QkNormDims::AcrossHeads { .. }) if attends => {
            tokens.say(Verb::AllReduce, 8 * settings.tokens())
        }
        _ => None,
    };
    let reduce = |is_cut: bool| tokens.reduce(c).filter(|_| is_cut);
    let mut forward = Vec::new();
    forward.extend(tokens.gather(c));
    forward.extend(across);
    forward.extend(reduce(attends));
    forward.extend(tokens.gather(c));
    forward.extend(reduce(computes));
    let mut backward = Vec::new();
    if settings.recompute == Recompute::Full {
        backward.extend(forward.clone());
    }
    let needs_input = |place: usize| !share.is_frozen() || layer.adapted[place] > 0;
    for (index, is_cut, place) in [(1, computes, 2), (0, attends, 0)] {
        backward.extend(tokens.gather(c));
        row.beside[index] = reduce(is_cut);
        if settings.recompute == Recompute::Light && needs_input(place) {
            backward.extend(tokens.gather(c));
        }
    }
    backward.extend(across);
    row.forward = once(forward);
    row.backward = once(backward);
    row
}

fn once(collectives: impl IntoIterator<Item = Collective>) -> Vec<(Collective, u128)> {
    collectives.into_iter().map(|it| (it, 1)).collect()
}

/// What the row says about the embedding.
pub(crate) fn embedding(share: &Share, settings: &Settings) -> Row {
    let tokens = Tokens {
        settings,
        hidden: share.hidden as u128,
    };
    let r = settings.residual_bytes();
    let back = tokens.gather(r).filter(|_| !share.is_frozen());
    Row {
        forward: once(tokens.reduce(r)),
        backward: once(back),
        ..Row::default()
    }
}

/// What the row says in the head.
pub(crate) fn head(share: &Share, settings: &Settings) -> Row {
    let tokens = Tokens {
        settings,
        hidden: share.hidden as u128,
    };
    let c = settings.product_bytes();
    let all = settings.tokens();
    let rows = all.min(settings.head_chunk_rows.max(1) as u128);
    let stats = |rows: u128| tokens.say(Verb::AllGather, 12 * settings.tp() as u128 * rows);
    let mut backward = once(tokens.gather(c));
    backward.extend(stats(rows).map(|it| (it, all / rows)));
    let rest = stats(all % rows).filter(|it| it.bytes > 0);
    backward.extend(once(rest));
    backward.extend(once(tokens.reduce(c)));
    Row {
        backward,
        ..Row::default()
    }
}

/// Of a unit: the gathering of its parameters.
pub(crate) fn gather(unit: &Unit, share: &Share, settings: &Settings) -> Option<Collective> {
    let cuts = unit.level(settings) == ShardingLevel::Parameters;
    let param = match share.is_frozen() {
        true => settings.precision.frozen().param,
        false => settings.precision.param,
    };
    cuts.then_some(Collective {
        group: Group::Dp,
        verb: Verb::AllGather,
        bytes: param.elt_size_in_bytes() as u128 * unit.numel as u128,
    })
}

/// Of a trained unit: what becomes of its gradient, and whether that is after every micro-batch.
pub(crate) struct Reduction {
    /// Over the row, of what each of its ranks has a part of.
    pub partial: Option<Collective>,
    /// Over the column.
    pub column: Option<Collective>,
    pub every_time: bool,
    /// After the update.
    pub refresh: Option<Collective>,
}

/// What becomes of the gradient of a unit, and of its update.
pub(crate) fn reduction(unit: &Unit, settings: &Settings) -> Reduction {
    let level = unit.level(settings);
    let numel = unit.numel as u128;
    let column = |verb, each: usize| Collective {
        group: Group::Dp,
        verb,
        bytes: each as u128 * numel,
    };
    let verb = match level {
        ShardingLevel::Replicated => Verb::AllReduce,
        _ => Verb::ReduceScatter,
    };
    let (reduce, param) = (settings.precision.reduce, settings.precision.param);
    let refreshes = matches!(level, ShardingLevel::Optimizer | ShardingLevel::Gradients);
    Reduction {
        partial: (settings.tp() > 1 && unit.partial > 0).then_some(Collective {
            group: Group::Tp,
            verb: Verb::AllReduce,
            bytes: 4 * unit.partial as u128,
        }),
        column: (settings.dp() > 1).then(|| column(verb, reduce.elt_size_in_bytes())),
        every_time: level >= ShardingLevel::Gradients,
        refresh: refreshes.then(|| column(Verb::AllGather, param.elt_size_in_bytes())),
    }
}

/// All that a rank says in a step, and how often.
pub fn of_step(share: &Share, settings: &Settings) -> Vec<(Collective, u128)> {
    let micro = settings.micro_batches as u128;
    // Where a loss keeps experts in balance, several micro-batches are looked ahead at.
    let ahead = match share.looks_ahead && micro > 1 {
        true => micro,
        false => 0,
    };
    let mut said = Vec::new();
    let mut add = |collectives: &[(Collective, u128)], times: u128| {
        said.extend(collectives.iter().map(|(it, each)| (*it, each * times)));
    };
    let rows = share.layers.iter().map(|it| layer(it, share, settings));
    let rows = rows.chain([embedding(share, settings), head(share, settings)]);
    for row in rows {
        add(&row.forward, micro + ahead);
        add(&row.backward, micro);
        add(&once(row.beside.into_iter().flatten()), micro);
    }
    let last_layer = share.layers.len();
    for (index, unit) in share.units.iter().enumerate() {
        let is_layer = (1..=last_layer).contains(&index);
        let again = match settings.reshard_after_forward && is_layer && index < last_layer {
            true => micro,
            false => 0,
        };
        // The head is not looked ahead at, but gathered behind the last layer all the same.
        let gathered = gather(unit, share, settings);
        add(&once(gathered), micro + ahead + again);
        if share.is_frozen() {
            continue;
        }
        reduce(unit, settings, micro, &mut add);
    }
    for unit in &share.adapters {
        reduce(unit, settings, micro, &mut add);
    }
    if share.experts > 0 && settings.dp() > 1 {
        let load = Collective {
            group: Group::Dp,
            verb: Verb::AllReduce,
            bytes: 16 * share.experts as u128,
        };
        add(&[(load, 1)], 1);
    }
    said
}

fn reduce(
    unit: &Unit,
    settings: &Settings,
    micro: u128,
    add: &mut impl FnMut(&[(Collective, u128)], u128),
) {
    let Reduction {
        partial,
        column,
        every_time,
        refresh,
    } = reduction(unit, settings);
    let times = if every_time { micro } else { 1 };
    add(&once(partial), times);
    add(&once(column), times);
    add(&once(refresh), 1);
}
