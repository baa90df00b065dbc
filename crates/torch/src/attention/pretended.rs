//! What FlashAttention computes on a GPU, with the CPU's kernel: for a pretended device.

use super::{Documents, FORWARD, GRADIENT, Masked, Saved, cpu_backward, cpu_forward};
use crate::recorder::Writes;
use crate::stand_in;
use crate::tensor::Tensor;

/// As [`super::cuda_forward`].
#[track_caller]
pub(super) fn forward(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    masked: Masked<'_>,
) -> (Tensor, Tensor) {
    let given = [query, key, value];
    let [out, logsumexp] =
        stand_in::for_operator(FORWARD, Writes::Results, &given, || {
            match masked.documents {
                None => rows(query, key, value, masked),
                Some(documents) => {
                    let found = documents.each().map(|place| {
                        let [query, key, value] = given.map(|tensor| place.row_of(tensor));
                        let [out, logsumexp] = rows(&query, &key, &value, masked);
                        (out.squeeze_dim(0), logsumexp.squeeze_dim(0))
                    });
                    let (outs, logsumexps): (Vec<Tensor>, Vec<Tensor>) = found.unzip();
                    [Tensor::cat(&outs, 0), Tensor::cat(&logsumexps, 1)]
                }
            }
        });
    (out, logsumexp)
}

/// As [`super::cuda_backward`].
#[track_caller]
pub(super) fn backward(
    d_out: &Tensor,
    saved: Saved<'_>,
    masked: Masked<'_>,
) -> (Tensor, Tensor, Tensor) {
    let Saved {
        query,
        key,
        value,
        out,
        logsumexp,
    } = saved;
    let given = [d_out, query, key, value, out, logsumexp];
    let gradients = stand_in::for_operator(GRADIENT, Writes::Results, &given, || {
        let Some(documents) = masked.documents else {
            return rows_backward(d_out, saved, masked);
        };
        let found: Vec<[Tensor; 3]> = documents
            .each()
            .map(|place| {
                let [d_out, query, key, value, out] =
                    [d_out, query, key, value, out].map(|tensor| place.row_of(tensor));
                let logsumexp = logsumexp.narrow(1, place.start, place.len);
                let saved = Saved {
                    query: &query,
                    key: &key,
                    value: &value,
                    out: &out,
                    logsumexp: &logsumexp.unsqueeze(0).contiguous(),
                };
                rows_backward(&d_out, saved, masked).map(|gradient| gradient.squeeze_dim(0))
            })
            .collect();
        std::array::from_fn(|which| {
            let parts: Vec<&Tensor> = found.iter().map(|gradients| &gradients[which]).collect();
            Tensor::cat(&parts, 0)
        })
    });
    let [d_query, d_key, d_value] = gradients;
    (d_query, d_key, d_value)
}

/// Output and log-sum-exp of rows `[batch, seq, heads, dim]`.
fn rows(query: &Tensor, key: &Tensor, value: &Tensor, masked: Masked<'_>) -> [Tensor; 2] {
    let mask = window_mask(query, masked.window_left);
    let (query, key, value) = (swapped(query), swapped(key), swapped(value));
    let (out, logsumexp) = cpu_forward(&query, &key, &value, mask.as_ref(), masked.scale);
    [swapped(&out).contiguous(), logsumexp]
}

fn rows_backward(d_out: &Tensor, saved: Saved<'_>, masked: Masked<'_>) -> [Tensor; 3] {
    let mask = window_mask(saved.query, masked.window_left);
    let [query, key, value, out] = [saved.query, saved.key, saved.value, saved.out].map(swapped);
    let saved = Saved {
        query: &query,
        key: &key,
        value: &value,
        out: &out,
        logsumexp: saved.logsumexp,
    };
    let (d_query, d_key, d_value) =
        cpu_backward(&swapped(d_out), saved, mask.as_ref(), masked.scale);
    [d_query, d_key, d_value].map(|gradient| swapped(&gradient).contiguous())
}

/// Heads before positions, and back.
fn swapped(tensor: &Tensor) -> Tensor {
    tensor.transpose(1, 2)
}

/// Additive `[seq, seq]`, of the kind of `query`; `None` where the window hides nothing.
fn window_mask(query: &Tensor, left: Option<i64>) -> Option<Tensor> {
    let seq = query.size()[1];
    let left = left.filter(|left| left + 1 < seq)?;
    let seen = |i: i64, j: i64| (i - left..=i).contains(&j);
    let values: Vec<f32> = (0..seq)
        .flat_map(|i| (0..seq).map(move |j| if seen(i, j) { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    let mask = Tensor::from_slice(&values).view([seq, seq]);
    Some(mask.to_kind(query.kind()))
}

/// One of several sequences.
struct Place {
    start: i64,
    len: i64,
}

impl Place {
    /// Its `[1, len, heads, dim]` of `[tokens, heads, dim]`.
    fn row_of(&self, tensor: &Tensor) -> Tensor {
        tensor.narrow(0, self.start, self.len).unsqueeze(0)
    }
}

impl Documents<'_> {
    fn each(&self) -> impl Iterator<Item = Place> {
        let bounds = self.bounds.to_vec::<i32>();
        let places = bounds.windows(2).map(|pair| Place {
            start: pair[0].into(),
            len: (pair[1] - pair[0]).into(),
        });
        places.collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::kind::Kind;
    use crate::pretend;

    /// A window and several documents are one mask over the whole row.
    #[test]
    fn windows_and_documents_hide_what_they_should() {
        const SEQ: i64 = 12;
        let _pretended = pretend::cuda();
        let there = |values: &[f32]| {
            let tensor = Tensor::from_slice(values).view([SEQ, 2, 8]);
            tensor.to_device(Device::Cuda(0))
        };
        let waves = |speed: f32| -> Vec<f32> {
            let numbers = 0..SEQ * 16;
            numbers.map(|i| (i as f32 * speed).sin()).collect()
        };
        let [query, key, value, d_out] = [0.7, 1.3, 2.1, 0.4].map(|speed| there(&waves(speed)));
        let bounds = Tensor::from_slice(&[0i32, 5, 6, 12]).to_device(Device::Cuda(0));
        let masked = Masked {
            scale: 0.3,
            window_left: Some(2),
            documents: Some(Documents {
                bounds: &bounds,
                longest: 6,
            }),
        };
        let (out, logsumexp) = forward(&query, &key, &value, masked);
        let saved = Saved {
            query: &query,
            key: &key,
            value: &value,
            out: &out,
            logsumexp: &logsumexp,
        };
        let (d_query, d_key, d_value) = backward(&d_out, saved, masked);

        let document = |i: i64| [5, 6, 12].iter().position(|end| i < *end);
        let seen = |i: i64, j: i64| j <= i && i - j <= 2 && document(i) == document(j);
        let values: Vec<f32> = (0..SEQ)
            .flat_map(|i| (0..SEQ).map(move |j| if seen(i, j) { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        let mask = Tensor::from_slice(&values).view([SEQ, SEQ]);
        let row = |tensor: &Tensor| swapped(&tensor.to_device(Device::Cpu).unsqueeze(0));
        let [query, key, value, d_out] = [&query, &key, &value, &d_out].map(row);
        let (expected, logsumexp) = cpu_forward(&query, &key, &value, Some(&mask), 0.3);
        let saved = Saved {
            query: &query,
            key: &key,
            value: &value,
            out: &expected,
            logsumexp: &logsumexp,
        };
        let (d_q, d_k, d_v) = cpu_backward(&d_out, saved, Some(&mask), 0.3);
        for (found, expected) in [
            (&out, &expected),
            (&d_query, &d_q),
            (&d_key, &d_k),
            (&d_value, &d_v),
        ] {
            assert_eq!(found.device(), Device::Cuda(0));
            let off = (row(found) - expected).abs().sum(Kind::Double);
            assert!(off.double_value() < 1e-4, "{found:?}: {off:?}");
        }
    }
}
