//! What a rank says to the others in a step: the collectives of the table at the top of `tandem_trainer`'s `train_step.rs`, less
//! those of a few bytes and those of all ranks. A test there holds this list against what ranks are recorded to say.

use tandem_model::{ExpertsDims, QkNormDims, Recompute};
use tandem_parallel::ShardingLevel;

use crate::group::Group;
use crate::settings::Settings;
use crate::share::{Layer, Share, Unit};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Every rank gets the sum.
    AllReduce,
    /// Every rank gets all parts.
    AllGather,
    /// Every rank gets its part of the sum.
    ReduceScatter,
    /// Every rank gets what each has for it.
    AllToAll,
}

/// One collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collective {
    /// Whom it is said to.
    pub group: Group,
    /// What is done.
    pub verb: Verb,
    /// Bytes of the whole tensor; of what is sent from each to each, of all ranks together.
    pub bytes: u128,
}

/// What is said in the forward and the backward pass of a part, and how often: by the row, and by the ranks over which experts are
/// spread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub forward: Vec<(Collective, u128)>,
    pub backward: Vec<(Collective, u128)>,
    /// Of the backward pass, those that run while the gradients of weights are computed: about the attention's input, about the
    /// MLP's, and about rows on their way back from experts. Each are of one group.
    pub beside: [Vec<Collective>; 3],
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

    /// Of the shares of a row whose tokens its ranks share out, all.
    fn join(&self, each: u128) -> Option<Collective> {
        let bytes = self.settings.tokens() * self.hidden * each;
        self.say(Verb::AllGather, bytes)
            .filter(|_| !self.settings.cuts_tokens())
    }
}

/// The conversations of ranks over which a layer's experts are spread, about the rows of a micro-batch that go to experts.
struct Experts {
    ranks: u128,
    /// Of a layer.
    experts: u128,
    /// Those of all ranks.
    rows: u128,
    row_bytes: u128,
}

impl Experts {
    fn of(dims: &ExpertsDims, share: &Share, settings: &Settings) -> Self {
        let ranks = share.expert_ranks as u128;
        Self {
            ranks,
            experts: dims.rule.experts as u128,
            rows: ranks * settings.routed_tokens(dims) * dims.rule.top_k as u128,
            row_bytes: share.hidden as u128 * settings.product_bytes(),
        }
    }

    fn say(verb: Verb, bytes: u128) -> Collective {
        Collective {
            group: Group::Ep,
            verb,
            bytes,
        }
    }

    /// The rows, there or back.
    fn rows(&self) -> Collective {
        Self::say(Verb::AllToAll, self.rows * self.row_bytes)
    }

    /// A number for each row, there or back.
    fn weights(&self) -> Collective {
        Self::say(Verb::AllToAll, 4 * self.rows)
    }

    fn forward(&self) -> [Collective; 4] {
        let counts = Self::say(Verb::AllGather, 8 * self.ranks * self.experts);
        [counts, self.rows(), self.weights(), self.rows()]
    }
}

/// What is said in one layer.
pub(crate) fn layer(layer: &Layer, share: &Share, settings: &Settings) -> Said {
    let tokens = Tokens {
        settings,
        hidden: share.hidden as u128,
    };
    let c = settings.product_bytes();
    let mut said = Said::default();
    let (attends, computes) = (layer.cuts_attention, layer.cuts_mlp);
    let across = match layer.dims.qk_norm {
        Some(QkNormDims::AcrossHeads { .. }) if attends => {
            tokens.say(Verb::AllReduce, 8 * settings.tokens())
        }
        _ => None,
    };
    let spread = layer.dims.experts.as_ref().filter(|it| it.is_spread());
    let spread = spread.map(|it| Experts::of(it, share, settings));
    let reduce = |is_cut: bool| tokens.reduce(c).filter(|_| is_cut);
    let mut forward = Vec::new();
    forward.extend(tokens.gather(c));
    forward.extend(across);
    forward.extend(reduce(attends));
    match &spread {
        Some(experts) => {
            forward.extend(experts.forward());
            forward.extend(tokens.join(c));
        }
        None => {
            forward.extend(tokens.gather(c));
            forward.extend(reduce(computes));
        }
    }
    let mut backward = Vec::new();
    if settings.recompute == Recompute::Full {
        backward.extend(forward.clone());
    }
    let needs_input = |place: usize| !share.is_frozen() || layer.adapted[place] > 0;
    for (index, is_cut, place) in [(1, computes, 2), (0, attends, 0)] {
        if let (1, Some(experts)) = (index, &spread) {
            backward.push(experts.rows());
            said.beside[2] = vec![experts.weights(), experts.rows()];
            said.beside[index].extend(tokens.join(c));
            continue;
        }
        backward.extend(tokens.gather(c));
        said.beside[index].extend(reduce(is_cut));
        if settings.recompute == Recompute::Light && needs_input(place) {
            backward.extend(tokens.gather(c));
        }
    }
    backward.extend(across);
    said.forward = once(forward);
    said.backward = once(backward);
    said
}

fn once(collectives: impl IntoIterator<Item = Collective>) -> Vec<(Collective, u128)> {
    collectives.into_iter().map(|it| (it, 1)).collect()
}

/// What the row says about the embedding.
pub(crate) fn embedding(share: &Share, settings: &Settings) -> Said {
    let tokens = Tokens {
        settings,
        hidden: share.hidden as u128,
    };
    let r = settings.residual_bytes();
    let back = tokens.gather(r).filter(|_| !share.is_frozen());
    Said {
        forward: once(tokens.reduce(r)),
        backward: once(back),
        ..Said::default()
    }
}

/// What the row says in the head.
pub(crate) fn head(share: &Share, settings: &Settings) -> Said {
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
    Said {
        backward,
        ..Said::default()
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
        group: unit.column(),
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
        group: unit.column(),
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
        column: (unit.replicas(settings) > 1).then(|| column(verb, reduce.elt_size_in_bytes())),
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
    let parts = share.layers.iter().map(|it| layer(it, share, settings));
    let parts = parts.chain([embedding(share, settings), head(share, settings)]);
    for part in parts {
        add(&part.forward, micro + ahead);
        add(&part.backward, micro);
        add(&once(part.beside.into_iter().flatten()), micro);
    }
    let last_layer = share.layers.len();
    for index in share.walked() {
        let again = match settings.reshard_after_forward && (1..last_layer).contains(&index) {
            true => micro,
            false => 0,
        };
        for unit in share.with_experts(index).map(|unit| &share.units[unit]) {
            // The head is not looked ahead at, but gathered behind the last layer all the same.
            let gathered = gather(unit, share, settings);
            add(&once(gathered), micro + ahead + again);
            if !share.is_frozen() {
                reduce(unit, settings, micro, &mut add);
            }
        }
    }
    for unit in &share.adapters {
        reduce(unit, settings, micro, &mut add);
    }
    // Of experts that are spread, the load goes to all ranks.
    if share.experts > 0 && share.expert_ranks == 1 && settings.dp() > 1 {
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
