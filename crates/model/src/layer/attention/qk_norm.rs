//! The norms of q and k: of each head, or of all heads together, of which a rank has some.

use tandem_tensor::rms_norm::{self, across};
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Kind, Tensor};

use super::{AttentionSaved, Heads};
use crate::error::ModelError;
use crate::layer::DecoderLayer;
use crate::tensors::{LayerTensors, QkNormDims};
use crate::tp_context::TpContext;

impl DecoderLayer {
    /// Puts the normalised q and k into `heads`, where they are normalised at all.
    pub(super) fn norm_heads(
        &self,
        weights: &LayerTensors,
        qkv: &Tensor,
        across_rstd: Option<&Tensor>,
        heads: &mut Heads,
    ) {
        let (Some(q_norm), Some(k_norm)) = (&weights.q_norm, &weights.k_norm) else {
            return;
        };
        if let Some(rstd) = across_rstd {
            let [q, k] = self.rows_of_heads(qkv);
            let apply = |x: &Tensor, weight: &Tensor, which: i64| {
                across::apply(x, weight, &rstd.get(which), self.norm, self.matmul)
            };
            heads.q = apply(&q, q_norm, 0).view(heads.q.size());
            heads.k = apply(&k, k_norm, 1).view(heads.k.size());
        } else {
            heads.q = rms_norm::forward(&heads.q, q_norm, self.norm, self.matmul).0;
            heads.k = rms_norm::forward(&heads.k, k_norm, self.norm, self.matmul).0;
        }
    }

    /// `rstd` of q and of k over the heads of all ranks, fp32 `[2, tokens]`, where they are normalised so.
    pub(super) fn rstd_across_heads(
        &self,
        qkv: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<Option<Tensor>, ModelError> {
        let Some(QkNormDims::AcrossHeads {
            q_features,
            k_features,
            counted_kv,
        }) = &self.dims.qk_norm
        else {
            return Ok(None);
        };
        let [q, k] = self.rows_of_heads(qkv);
        // A head that several ranks have is counted once.
        let counted = k.narrow(1, counted_kv.start as i64, counted_kv.len() as i64);
        let squares = Tensor::stack(&[across::squares(&q), across::squares(&counted)], 0);
        tp.sum_over_row(&squares)?;
        let rstd = |which, features| across::rstd(&squares.get(which), features, self.norm);
        let both = [rstd(0, *q_features), rstd(1, *k_features)];
        Ok(Some(Tensor::stack(&both, 0)))
    }

    /// From the gradient of the normalised q and k in `d_qkv` to that of q and k as projected, in place.
    pub(super) fn qk_norms_backward(
        &self,
        weights: &LayerTensors,
        gradients: Option<&LayerTensors>,
        accumulate: Accumulate,
        saved: &AttentionSaved,
        d_qkv: &Tensor,
        tp: &dyn TpContext,
    ) -> Result<(), ModelError> {
        let (Some(q_norm), Some(k_norm)) = (&weights.q_norm, &weights.k_norm) else {
            return Ok(());
        };
        let d_q_norm = gradients.and_then(|own| own.q_norm.as_ref());
        let d_k_norm = gradients.and_then(|own| own.k_norm.as_ref());
        let store = |d_weight: Option<&Tensor>, value: &Tensor| {
            if let Some(d_weight) = d_weight {
                linear::store(d_weight, value, accumulate);
            }
        };
        let spec = self.norm;
        let (
            Some(QkNormDims::AcrossHeads {
                q_features,
                k_features,
                counted_kv,
            }),
            Some(rstd),
        ) = (&self.dims.qk_norm, &saved.across_rstd)
        else {
            let (d, projected) = (self.split_heads(d_qkv), self.split_heads(&saved.qkv));
            for (d, x, weight, d_weight) in [
                (&d.q, &projected.q, q_norm, d_q_norm),
                (&d.k, &projected.k, k_norm, d_k_norm),
            ] {
                let (_, rstd) = rms_norm::forward(x, weight, spec, self.matmul);
                let (d_x, d_norm) = rms_norm::backward(d, x, weight, &rstd, spec);
                d.copy_(&d_x);
                store(d_weight, &d_norm);
            }
            return Ok(());
        };
        let ([d_q, d_k], [q, k]) = (self.rows_of_heads(d_qkv), self.rows_of_heads(&saved.qkv));
        let (q_rstd, k_rstd) = (rstd.get(0), rstd.get(1));
        // Of a head that several ranks have, each has a part of the gradient, so that all parts count.
        let projections = Tensor::stack(
            &[
                across::projections(&d_q, &q, q_norm, &q_rstd, spec),
                across::projections(&d_k, &k, k_norm, &k_rstd, spec),
            ],
            0,
        );
        tp.sum_over_row(&projections)?;
        let (of_q, of_k) = (projections.get(0), projections.get(1));
        let (d_x, d_norm) =
            across::backward(&d_q, &q, q_norm, &q_rstd, spec, &of_q, *q_features, None);
        d_q.copy_(&d_x);
        store(d_q_norm, &d_norm);
        let counted = Tensor::zeros([self.dims.kv_heads as i64], (Kind::Float, k.device()));
        counted
            .narrow(0, counted_kv.start as i64, counted_kv.len() as i64)
            .fill_(1.0);
        let counted = Some(&counted);
        let (d_x, d_norm) =
            across::backward(&d_k, &k, k_norm, &k_rstd, spec, &of_k, *k_features, counted);
        d_k.copy_(&d_x);
        store(d_k_norm, &d_norm);
        Ok(())
    }

    /// q and k as `[tokens, heads, head_dim]`; views.
    fn rows_of_heads(&self, qkv: &Tensor) -> [Tensor; 2] {
        let Heads { q, k, .. } = self.split_heads(qkv);
        [q, k].map(|heads| {
            let size = heads.size();
            heads.view([size[0] * size[1], size[2], size[3]])
        })
    }
}
