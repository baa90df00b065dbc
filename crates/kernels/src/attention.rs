//! Causal grouped-query attention (Ainslie et al., arXiv 2305.13245) in bf16 on processors with AVX512-BF16.
//!
//! A few queries at a time meet all keys that they see, so their softmax needs no second pass; scores exist for one block of
//! queries of one head only, as in FlashAttention (Dao et al., arXiv 2205.14135). Backward computes them again. Products are
//! those of [`crate::matmul`]; what a query does not see is not computed.

mod backward;
mod forward;
mod heads;
mod rows;

use crate::avx512_bf16::Avx512Bf16;
pub use backward::{Gradients, Saved, backward};
pub use forward::forward;
pub use heads::Heads;
use rows::Mask;

/// What a query may see besides being causal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// Multiplies the scores before the softmax, usually `1 / sqrt(head_dim)`; more than 0.
    pub scale: f32,
    /// A query sees this many keys at most, itself included; at least itself.
    pub window: Option<usize>,
    /// Scores are bent to at most this much: `cap * tanh(score / cap)`, after the scale; more than 0 (Gemma 2, arXiv
    /// 2408.00118).
    pub soft_cap: Option<f32>,
}

/// What attention is computed of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[batch, seq, heads, head_dim]`.
    pub q: Heads<'a>,
    /// `[batch, seq, kv_heads, head_dim]`, with `heads` a multiple of `kv_heads`.
    pub k: Heads<'a>,
    /// As `k`.
    pub v: Heads<'a>,
    /// `[batch, seq]`: where the document of each position begins. A query sees nothing before it. `None`: each row is one
    /// document.
    pub documents: Option<&'a [u32]>,
}

/// What is computed, and with which instructions.
#[derive(Clone, Copy)]
struct Shape<'a> {
    cpu: Avx512Bf16,
    batch: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: usize,
    documents: Option<&'a [u32]>,
    scale: f32,
    soft_cap: Option<f32>,
}

impl<'a> Shape<'a> {
    /// # Panics
    /// When sizes do not fit, or documents do not follow each other.
    fn of(cpu: Avx512Bf16, inputs: &Inputs<'a>, spec: Spec) -> Self {
        let (q, k, v) = (inputs.q.size(), inputs.k.size(), inputs.v.size());
        let [batch, seq, heads, dim] = q;
        let kv_heads = k[2];
        assert!(
            k == [batch, seq, kv_heads, dim] && v == k && q.iter().chain(&k).all(|&n| n > 0),
            "queries {q:?} do not fit keys {k:?} and values {v:?}"
        );
        assert!(
            heads.is_multiple_of(kv_heads),
            "{heads} heads cannot share {kv_heads} key/value heads"
        );
        assert!(spec.scale > 0.0, "the scale {} is not positive", spec.scale);
        let soft_cap = spec.soft_cap;
        assert!(
            soft_cap.is_none_or(|cap| cap > 0.0),
            "the soft cap {soft_cap:?} is not positive"
        );
        if let Some(documents) = inputs.documents {
            assert_eq!(
                documents.len(),
                batch * seq,
                "a document for every position"
            );
            let follow = documents.chunks_exact(seq).all(|row| {
                let mut current = 0;
                row.iter().enumerate().all(|(position, &start)| {
                    let begins = start as usize == position;
                    current = if begins { start } else { current };
                    start == current
                })
            });
            assert!(follow, "documents must begin where the one before ends");
        }
        Self {
            cpu,
            batch,
            seq,
            heads,
            kv_heads,
            dim,
            window: spec.window.map_or(usize::MAX, |window| window.max(1)),
            documents: inputs.documents,
            scale: spec.scale,
            soft_cap,
        }
    }

    /// Elements from a row of scores to the next: no multiple of a page. Rows that are whole pages apart would take turns in few
    /// places of a cache, and usual lengths are powers of two.
    fn width(&self) -> usize {
        const LINE_OF_BF16: usize = 32;
        self.seq.next_multiple_of(2 * LINE_OF_BF16) + LINE_OF_BF16
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// For a query head, counted through all batch rows.
    fn mask(&self, head: usize) -> Mask<'a> {
        let row = head / self.heads * self.seq;
        Mask {
            window: self.window,
            documents: self.documents.map(|starts| &starts[row..][..self.seq]),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{numbers, unfilled, wide};

    /// `[batch, seq, heads, head_dim]` in fp64.
    struct Exact {
        data: Vec<f64>,
        size: [usize; 4],
    }

    impl Exact {
        fn zeros(size: [usize; 4]) -> Self {
            Self {
                data: vec![0.0; size.iter().product()],
                size,
            }
        }

        fn of(heads: &Heads<'_>) -> Self {
            let mut exact = Self::zeros(heads.size());
            let [batch, seq, count, dim] = exact.size;
            for index in 0..batch * count {
                for position in 0..seq {
                    let row = wide(heads.head(index).row(position));
                    exact.row(index, position)[..dim].copy_from_slice(&row);
                }
            }
            exact
        }

        /// Of the head `index`, counted through all batch rows.
        fn row(&mut self, index: usize, position: usize) -> &mut [f64] {
            let [_, seq, heads, dim] = self.size;
            let (batch, head) = (index / heads, index % heads);
            &mut self.data[((batch * seq + position) * heads + head) * dim..][..dim]
        }
    }

    struct Expected {
        out: Exact,
        logsumexp: Vec<f64>,
        d_q: Exact,
        d_k: Exact,
        d_v: Exact,
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    fn add(sum: &mut [f64], factor: f64, row: &[f64]) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += factor * x;
        }
    }

    /// The formula and its gradients, query by query.
    fn expected(inputs: &Inputs<'_>, spec: Spec, d_out: &Heads<'_>) -> Expected {
        let [mut q, mut k, mut v] = [&inputs.q, &inputs.k, &inputs.v].map(Exact::of);
        let mut d_out = Exact::of(d_out);
        let [batch, seq, heads, _] = q.size;
        let group = heads / k.size[2];
        let mut expected = Expected {
            out: Exact::zeros(q.size),
            logsumexp: Vec::new(),
            d_q: Exact::zeros(q.size),
            d_k: Exact::zeros(k.size),
            d_v: Exact::zeros(k.size),
        };
        let scale = f64::from(spec.scale);
        for (head, i) in (0..batch * heads).flat_map(|head| (0..seq).map(move |i| (head, i))) {
            let shared = head / group;
            let start = inputs
                .documents
                .map(|starts| starts[head / heads * seq + i]);
            let first = (i + 1).saturating_sub(spec.window.unwrap_or(seq));
            let first = first.max(start.unwrap_or(0) as usize);
            let query = q.row(head, i).to_vec();
            let d_out = d_out.row(head, i).to_vec();
            let scores = (first..=i).map(|j| scale * dot(&query, k.row(shared, j)));
            let mut p: Vec<f64> = scores.collect();
            let mut slope = vec![1.0; p.len()];
            if let Some(cap) = spec.soft_cap.map(f64::from) {
                for (score, slope) in p.iter_mut().zip(&mut slope) {
                    let bent = (*score / cap).tanh();
                    (*score, *slope) = (cap * bent, 1.0 - bent * bent);
                }
            }
            let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = p.iter().map(|score| (score - largest).exp()).sum();
            let logsumexp = largest + sum.ln();
            p.iter_mut().for_each(|p| *p = (*p - logsumexp).exp());
            expected.logsumexp.push(logsumexp);
            let d_p: Vec<f64> = (first..=i).map(|j| dot(&d_out, v.row(shared, j))).collect();
            let common = dot(&p, &d_p);
            for (j, ((p, d_p), slope)) in (first..).zip(p.iter().zip(&d_p).zip(&slope)) {
                let d_score = p * (d_p - common) * slope * scale;
                add(expected.out.row(head, i), *p, v.row(shared, j));
                add(expected.d_q.row(head, i), d_score, k.row(shared, j));
                add(expected.d_k.row(shared, j), d_score, &query);
                add(expected.d_v.row(shared, j), *p, &d_out);
            }
        }
        expected
    }

    /// Fails when the two differ by more than bf16 explains.
    fn assert_near(label: &str, found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len(), "{label}");
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        // Some gradients are zero exactly, up to rounding.
        let size = norm(&mut expected.iter().copied()) + 0.1 * (expected.len() as f64).sqrt();
        assert!(off <= 6e-3 * size, "{label}: {off} of {size}");
    }

    /// Rows of documents of these lengths, again and again; every row begins with another one.
    fn documents(batch: usize, seq: usize, lengths: &[usize]) -> Vec<u32> {
        let mut starts = Vec::new();
        for row in 0..batch {
            let mut lengths = lengths.iter().cycle().skip(row);
            let mut start = 0;
            while start < seq {
                let len = lengths.next().map_or(1, |len| (*len).min(seq - start));
                starts.extend(vec![start as u32; len]);
                start += len;
            }
        }
        starts
    }

    /// Inputs are parts of a common buffer, as q|k|v are: sizes around tiles and blocks, odd ones, windows that end within
    /// them.
    #[test]
    fn follows_the_formula_at_all_sizes() {
        let Some(cpu) = Avx512Bf16::detect() else {
            return;
        };
        for [batch, seq, heads, kv_heads, dim] in [
            [1, 1, 1, 1, 8],
            [2, 13, 2, 2, 16],
            [1, 15, 3, 1, 33],
            [2, 40, 6, 2, 64],
            [1, 112, 4, 2, 64],
            [1, 130, 2, 1, 128],
            [1, 261, 7, 1, 64],
        ] {
            let caps = [None, Some(0.7), Some(50.0)];
            // Of a few tokens, of one, and longer than any block.
            let short = documents(batch, seq, &[5, 1, 1, 17, 2, 40]);
            let long = documents(batch, seq, &[150, 1, 120]);
            for (window, soft_cap, documents) in [
                (None, caps[0], None),
                (None, caps[1], None),
                (Some(1), caps[2], None),
                (Some(33), caps[0], None),
                (Some(33), caps[1], None),
                (Some(100), caps[0], None),
                (None, caps[0], Some(&short)),
                (None, caps[1], Some(&long)),
                (Some(9), caps[0], Some(&short)),
                (Some(33), caps[0], Some(&long)),
            ] {
                let spec = Spec {
                    scale: 1.0 / (dim as f32).sqrt(),
                    window,
                    soft_cap,
                };
                let width = (heads + 2 * kv_heads) * dim;
                let qkv: Vec<bf16> = numbers(batch * seq * width, 1, 1.5);
                let part = |start: usize, heads| {
                    let strides = [seq * width, width, dim];
                    Heads::new(&qkv[start * dim..], [batch, seq, heads, dim], strides)
                };
                let inputs = Inputs {
                    q: part(0, heads),
                    k: part(heads, kv_heads),
                    v: part(heads + kv_heads, kv_heads),
                    documents: documents.map(|starts| &starts[..]),
                };
                let size = inputs.q.size();
                let d_out: Vec<bf16> = numbers(size.iter().product(), 2, 1.0);
                let d_out = Heads::plain(&d_out, size);

                let mut out = unfilled::<bf16>(size.iter().product());
                let mut logsumexp = unfilled::<f32>(batch * heads * seq);
                forward(cpu, inputs, spec, &mut out, &mut logsumexp);
                let mut d_q = unfilled::<bf16>(out.len());
                let mut d_k = unfilled::<bf16>(batch * seq * kv_heads * dim);
                let mut d_v = d_k.clone();
                let saved = Saved {
                    out: Heads::plain(&out, size),
                    logsumexp: &logsumexp,
                };
                let gradients = Gradients {
                    d_q: &mut d_q,
                    d_k: &mut d_k,
                    d_v: &mut d_v,
                };
                backward(cpu, inputs, spec, saved, d_out, gradients);

                let expected = expected(&inputs, spec, &d_out);
                let longest = documents.and_then(|starts| starts.last());
                let label = format!(
                    "{batch} x {seq}, {heads}/{kv_heads} heads of {dim}, {spec:?}, last document at {longest:?}"
                );
                for (name, found, expected) in [
                    ("out", wide(&out), &expected.out.data),
                    ("logsumexp", wide(&logsumexp), &expected.logsumexp),
                    ("d_q", wide(&d_q), &expected.d_q.data),
                    ("d_k", wide(&d_k), &expected.d_k.data),
                    ("d_v", wide(&d_v), &expected.d_v.data),
                ] {
                    assert_near(&format!("{name}, {label}"), &found, expected);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "5 heads cannot share 2 key/value heads")]
    fn heads_that_cannot_be_shared_are_noticed() {
        let data = [bf16::ONE; 5];
        let (q, k) = (
            Heads::plain(&data, [1, 1, 5, 1]),
            Heads::plain(&data, [1, 1, 2, 1]),
        );
        let spec = Spec {
            scale: 1.0,
            window: None,
            soft_cap: None,
        };
        match Avx512Bf16::detect() {
            Some(cpu) => forward(
                cpu,
                Inputs {
                    q,
                    k,
                    v: k,
                    documents: None,
                },
                spec,
                &mut [bf16::ONE; 5],
                &mut [0.0; 5],
            ),
            None => panic!("5 heads cannot share 2 key/value heads, nor be asked for here"),
        }
    }
}
