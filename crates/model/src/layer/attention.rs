//! The attention block: norm, q|k|v (column-parallel over heads), rotary embedding, attention, output projection
//! (row-parallel).

mod qk_norm;

use std::sync::Arc;

use tandem_tensor::attention::{self, AttentionOutput, Documents};
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Kind, Tensor, rope};

use super::DecoderLayer;
use super::adapter::{Gradients, Hidden};
use super::residual::BranchGradient;
use crate::adapter::Place;
use crate::error::ModelError;
use crate::tensors::LayerTensors;
use crate::tp_context::TpContext;

/// What the attention's backward needs.
#[derive(Debug)]
pub(super) struct AttentionSaved {
    /// Of the norm before the block, where there is one.
    rstd: Option<Tensor>,
    /// What q|k|v were projected from, for all tokens, where it is not computed again.
    input: Option<Tensor>,
    /// q|k|v for all tokens: rotated, or (with q/k norms) as projected, since the norms' backward needs that.
    qkv: Tensor,
    /// Of q and of k, fp32 `[2, tokens]`, where they are normalised across heads.
    across_rstd: Option<Tensor>,
    output: AttentionOutput,
    /// Of the adapters of q|k|v, and of the output projection.
    hidden: (Option<Hidden>, Option<Hidden>),
    documents: Option<Arc<Documents>>,
}

/// q, k and v as `[batch, seq, heads, head_dim]` views of one `[tokens, qkv_width]` buffer.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl DecoderLayer {
    /// What the block adds to the residual stream, less the bias of the output projection.
    ///
    /// Positions count through the row, also where there are several documents: rotary scores depend on how far query and key
    /// are apart, and both are of one document, so starting again in each would change roundings only, and need a table of
    /// angles for every row.
    pub(super) fn attention_forward(
        &self,
        weights: &LayerTensors,
        x: &Tensor,
        documents: Option<&Arc<Documents>>,
        tp: &dyn TpContext,
        keeps_all: bool,
    ) -> Result<(Tensor, AttentionSaved), ModelError> {
        let (input, rstd) = self.block_input(x, weights.norm_before_attention.as_ref());
        let input = tp.gather_tokens(&input)?;
        let (weight, bias) = (&weights.qkv_weight, weights.qkv_bias.as_ref());
        let (qkv, hidden_qkv) = weights.adapted_forward(Place::Qkv, &input, weight, bias);
        let across_rstd = self.rstd_across_heads(&qkv, tp)?;
        let heads = self.normed_and_rotated(weights, &qkv, across_rstd.as_ref());
        let (k, v) = (self.per_query(&heads.k), self.per_query(&heads.v));
        let output =
            attention::forward(&heads.q, &k, &v, self.attention, documents.map(Arc::as_ref));
        let joined = self.join_heads(&output.out);
        let (partial, hidden_output) =
            weights.adapted_forward(Place::Output, &joined, &weights.o_weight, None);
        drop(joined);
        let delta = tp.reduce_tokens(partial)?;
        let saved = AttentionSaved {
            rstd,
            input: keeps_all.then_some(input),
            qkv,
            across_rstd,
            output,
            hidden: (hidden_qkv, hidden_output),
            documents: documents.cloned(),
        };
        Ok((delta, saved))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "weights, gradients and saved state of one block"
    )]
    pub(super) fn attention_backward(
        &self,
        weights: &LayerTensors,
        gradients: Gradients<'_>,
        accumulate: Accumulate,
        x: &Tensor,
        mut saved: AttentionSaved,
        d_branch: BranchGradient,
        d_out: Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let own = gradients.weights();
        if let Some(d_bias) = own.and_then(|own| own.o_bias.as_ref()) {
            linear::backward_bias(d_bias, &d_branch.d_biased, accumulate);
        }
        let d_branch = tp.gather_tokens(&d_branch.d_delta)?;
        let (d_joined, d_hidden) =
            weights.adapted_backward_input(Place::Output, &d_branch, &weights.o_weight);
        let joined = self.join_heads(&saved.output.out);
        if let Some(own) = own {
            linear::backward_weight(&own.o_weight, &d_branch, &joined, accumulate);
        }
        weights.adapters_backward(
            Place::Output,
            gradients,
            &d_branch,
            (saved.hidden.1.take(), d_hidden),
            &joined,
            accumulate,
        );
        drop((d_branch, joined));

        let d_qkv =
            self.attention_core_backward(weights, own, accumulate, &saved, &d_joined, tp)?;
        let (d_input, d_hidden) =
            weights.adapted_backward_input(Place::Qkv, &d_qkv, &weights.qkv_weight);

        // The sum over the row runs while the weight gradient is computed.
        let d_input = tp.start_reduce_tokens(d_input)?;
        let norm = &weights.norm_before_attention;
        if gradients.need_input(Place::Qkv) {
            let input = match saved.input {
                Some(input) => input,
                None => self.block_input_again(x, norm.as_ref(), tp)?,
            };
            if let Some(own) = own {
                linear::backward_weight(&own.qkv_weight, &d_qkv, &input, accumulate);
            }
            let on_the_way = (saved.hidden.0.take(), d_hidden);
            let place = Place::Qkv;
            weights.adapters_backward(place, gradients, &d_qkv, on_the_way, &input, accumulate);
        }
        if let Some(d_bias) = own.and_then(|own| own.qkv_bias.as_ref()) {
            linear::backward_bias(d_bias, &d_qkv, accumulate);
        }
        let d_input = d_input.wait()?;

        let d_norm = own.and_then(|own| own.norm_before_attention.as_ref());
        let rstd = saved.rstd.as_ref();
        Ok(self.block_input_backward(&d_input, x, norm, d_norm, rstd, &d_out, accumulate))
    }

    /// The attention kernel's backward, and that of the rotation and of the q/k norms: the gradient of q|k|v as projected.
    fn attention_core_backward(
        &self,
        weights: &LayerTensors,
        gradients: Option<&LayerTensors>,
        accumulate: Accumulate,
        saved: &AttentionSaved,
        d_joined: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Tensor, ModelError> {
        let heads = match self.dims.qk_norm {
            Some(_) => self.normed_and_rotated(weights, &saved.qkv, saved.across_rstd.as_ref()),
            None => self.split_heads(&saved.qkv),
        };
        let (k, v) = (self.per_query(&heads.k), self.per_query(&heads.v));
        let d_heads = self.one_group(d_joined, self.dims.q_heads);
        let (d_q, d_k, d_v) = attention::backward(
            &d_heads,
            &heads.q,
            &k,
            &v,
            &saved.output,
            self.attention,
            saved.documents.as_deref(),
        );
        let (d_k, d_v) = (self.sum_per_key(d_k), self.sum_per_key(d_v));

        let d_qkv = saved.qkv.empty_like();
        let Heads { q, k, v } = self.split_heads(&d_qkv);
        for (to, from) in [(&q, &d_q), (&k, &d_k)] {
            match &self.rope {
                Some(rope) => rope::apply_backward_into(to, from, &rope.cos, &rope.sin),
                None => to.copy_(from),
            }
        }
        v.copy_(&d_v);
        self.qk_norms_backward(weights, gradients, accumulate, saved, &d_qkv, tp)?;
        Ok(d_qkv)
    }

    /// q and k after their norms and rotation. Without norms `qkv` itself is rotated in place.
    fn normed_and_rotated(
        &self,
        weights: &LayerTensors,
        qkv: &Tensor,
        across_rstd: Option<&Tensor>,
    ) -> Heads {
        let mut heads = self.split_heads(qkv);
        self.norm_heads(weights, qkv, across_rstd, &mut heads);
        match (&self.rope, &self.dims.qk_norm) {
            (None, _) => {}
            // Side by side in `qkv`, so they are rotated together.
            (Some(rope), None) => {
                let heads = self.dims.q_heads + self.dims.kv_heads;
                let width = (heads * self.dims.head_dim) as i64;
                let both = self.one_group(&qkv.narrow(1, 0, width), heads);
                rope::apply_(&both, &rope.cos, &rope.sin);
            }
            (Some(rope), Some(_)) => {
                rope::apply_(&heads.q, &rope.cos, &rope.sin);
                rope::apply_(&heads.k, &rope.cos, &rope.sin);
            }
        }
        heads
    }

    fn split_heads(&self, qkv: &Tensor) -> Heads {
        let dims = &self.dims;
        let (q_width, kv_width) = (
            (dims.q_heads * dims.head_dim) as i64,
            (dims.kv_heads * dims.head_dim) as i64,
        );
        let part = |start: i64, width: i64, heads: usize| {
            self.one_group(&qkv.narrow(1, start, width), heads)
        };
        Heads {
            q: part(0, q_width, dims.q_heads),
            k: part(q_width, kv_width, dims.kv_heads),
            v: part(q_width + kv_width, kv_width, dims.kv_heads),
        }
    }

    /// `[tokens, heads * head_dim]` as `[batch, seq, heads, head_dim]`; a view.
    fn one_group(&self, x: &Tensor, heads: usize) -> Tensor {
        let seq = self.seq as i64;
        x.view([
            x.size()[0] / seq,
            seq,
            heads as i64,
            self.dims.head_dim as i64,
        ])
    }

    /// `[batch, seq, heads, head_dim]` as `[tokens, heads * head_dim]`.
    fn join_heads(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.reshape([size[0] * size[1], size[2] * size[3]])
    }

    /// The key/value head of every query head, where the kernels' own grouping does not fit this rank's heads.
    fn per_query(&self, kv: &Tensor) -> Tensor {
        match &self.dims.kv_of_q {
            Some(map) => kv.index_select(2, &Tensor::from_slice(map).to_device(kv.device())),
            None => kv.shallow_clone(),
        }
    }

    /// The transpose of [`Self::per_query`].
    fn sum_per_key(&self, d: Tensor) -> Tensor {
        match &self.dims.kv_of_q {
            Some(map) => {
                let mut size = d.size().to_vec();
                size[2] = self.dims.kv_heads as i64;
                let sums = Tensor::zeros(size, (Kind::Float, d.device()));
                // One after the other, so that the sums are the same in every run.
                for (head, &kv_head) in map.iter().enumerate() {
                    sums.select(2, kv_head).add_(&d.select(2, head as i64));
                }
                sums
            }
            None => d,
        }
    }
}
