//! How heads, MLP columns and vocabulary are cut over a tensor parallel row. Nothing needs to divide evenly.

use std::ops::Range;

use tandem_mesh::partition;
use tandem_model::{ExpertsDims, LayerDims, ModelConfig, QkNormDims};

/// Per tp_rank, the range that it computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpSlices {
    /// Query heads: a partition.
    pub q_heads: Vec<Range<usize>>,
    /// Key/value heads that these query heads read. Neighbouring ranks share a head where there are fewer heads than
    /// ranks; its gradient is then summed over the holders.
    pub kv_heads: Vec<Range<usize>>,
    /// Columns of the MLP: a partition.
    pub intermediate: Vec<Range<usize>>,
    /// Columns of each expert of a mixture: a partition.
    pub expert_intermediate: Vec<Range<usize>>,
    /// Vocabulary entries: a partition.
    pub vocab: Vec<Range<usize>>,
    heads_per_kv: usize,
}

/// A model that is too small for the row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--tp_size {tp_size} is more than the model's {count} {what}; every rank needs at least one: use --tp_size {count} or less"
)]
pub struct TpSlicesError {
    tp_size: usize,
    count: usize,
    what: &'static str,
}

impl TpSlices {
    /// # Errors
    /// When a rank would have no query head, no MLP column or no vocabulary entry.
    pub fn new(config: &ModelConfig, tp_size: usize) -> Result<Self, TpSlicesError> {
        let experts = config.experts.as_ref();
        let of_expert = experts.map(|experts| experts.intermediate_size);
        for (count, what) in [
            (config.num_heads, "attention heads"),
            (config.intermediate_size, "MLP columns"),
            (config.vocab_size, "vocabulary entries"),
            (of_expert.unwrap_or(tp_size), "columns of an expert"),
        ] {
            if tp_size > count {
                return Err(TpSlicesError {
                    tp_size,
                    count,
                    what,
                });
            }
        }
        let cut = |count: usize| -> Vec<Range<usize>> {
            (0..tp_size)
                .map(|rank| partition(count, tp_size, rank))
                .collect()
        };
        let heads_per_kv = config.num_heads / config.num_kv_heads;
        let (q_heads, kv_heads): (Vec<_>, Vec<_>) = if config.num_kv_heads >= tp_size {
            // Whole groups: every key/value head is on one rank.
            cut(config.num_kv_heads)
                .into_iter()
                .map(|kv| (kv.start * heads_per_kv..kv.end * heads_per_kv, kv))
                .unzip()
        } else {
            cut(config.num_heads)
                .into_iter()
                .map(|q| {
                    let kv = q.start / heads_per_kv..(q.end - 1) / heads_per_kv + 1;
                    (q, kv)
                })
                .unzip()
        };
        Ok(Self {
            q_heads,
            kv_heads,
            intermediate: cut(config.intermediate_size),
            expert_intermediate: cut(of_expert.unwrap_or(0)),
            vocab: cut(config.vocab_size),
            heads_per_kv,
        })
    }

    /// Ranks in the row.
    pub fn tp_size(&self) -> usize {
        self.vocab.len()
    }

    /// The ranks that hold key/value head `head`, ascending.
    pub fn kv_holders(&self, head: usize) -> Vec<usize> {
        (0..self.tp_size())
            .filter(|&rank| self.kv_heads[rank].contains(&head))
            .collect()
    }

    /// Of the key/value heads of `tp_rank`, as it counts them, those that no rank before it holds.
    fn counted_kv(&self, tp_rank: usize) -> Range<usize> {
        let held = &self.kv_heads[tp_rank];
        let first = match tp_rank.checked_sub(1) {
            Some(before) => self.kv_heads[before].end.clamp(held.start, held.end),
            None => held.start,
        };
        first - held.start..held.len()
    }

    /// Dimensions of layer `index` on `tp_rank`. Where experts are spread over ranks, `own_experts` are this rank's, whole; otherwise
    /// each is cut.
    pub fn layer_dims(
        &self,
        config: &ModelConfig,
        index: usize,
        tp_rank: usize,
        own_experts: Option<Range<usize>>,
    ) -> LayerDims {
        let (q, kv) = (&self.q_heads[tp_rank], &self.kv_heads[tp_rank]);
        let map: Vec<i64> = q
            .clone()
            .map(|head| (head / self.heads_per_kv - kv.start) as i64)
            .collect();
        // The kernels group heads by themselves where head i reads key/value head i / (heads / kv_heads).
        let uniform = q.len() % kv.len() == 0
            && map
                .iter()
                .enumerate()
                .all(|(i, &kv_head)| kv_head as usize == i / (q.len() / kv.len()));
        let whole = LayerDims::whole(config, index);
        let qk_norm = whole.qk_norm.clone().map(|norm| match norm {
            QkNormDims::PerHead => QkNormDims::PerHead,
            QkNormDims::AcrossHeads {
                q_features,
                k_features,
                ..
            } => QkNormDims::AcrossHeads {
                q_features,
                k_features,
                counted_kv: self.counted_kv(tp_rank),
            },
        });
        LayerDims {
            q_heads: q.len(),
            kv_heads: kv.len(),
            kv_of_q: (!uniform).then_some(map),
            intermediate: self.intermediate[tp_rank].len(),
            qk_norm,
            experts: whole.experts.map(|experts| match own_experts {
                None => ExpertsDims {
                    intermediate: self.expert_intermediate[tp_rank].len(),
                    ..experts
                },
                Some(own) => ExpertsDims {
                    here: own.len(),
                    ..experts
                },
            }),
            ..whole
        }
    }
}
