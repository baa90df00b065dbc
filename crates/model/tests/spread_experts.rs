//! Experts that are spread over ranks, seen from one: what it says to the others, and what it computes meanwhile.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use serde_json::json;
use tandem_model::{
    DecoderLayer, ExpertPeers, Gradients, LayerDims, LayerTensors, MlpTensors, ModelConfig,
    ModuleTree, PendingTensor, Recompute, SingleRank, TokenFacts, TpContext, TpError, WholeBlocks,
};
use tandem_tensor::attention::AttentionSpec;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, random};

const HIDDEN: i64 = 16;

/// A rank that has all experts, as if others had some: what it sends comes back.
#[derive(Default)]
struct Alone {
    /// What must be computed before an exchange that runs beside it is waited for.
    gradients: RefCell<Vec<Tensor>>,
    waited: Rc<Cell<usize>>,
}

/// An exchange under way.
struct UnderWay {
    rows: Tensor,
    gradients: Vec<Tensor>,
    waited: Rc<Cell<usize>>,
}

impl PendingTensor for UnderWay {
    fn wait(self: Box<Self>) -> Result<Tensor, TpError> {
        for gradient in &self.gradients {
            let sum = gradient.sum(Kind::Double).double_value();
            assert!(sum.is_finite(), "it was waited for too early");
        }
        self.waited.set(self.waited.get() + 1);
        Ok(self.rows)
    }
}

impl ExpertPeers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn shares(&self, experts: usize) -> Vec<Range<usize>> {
        std::iter::once(0..experts).collect()
    }

    fn gather_counts(&self, own: &[usize]) -> Result<Vec<Vec<usize>>, TpError> {
        Ok(vec![own.to_vec()])
    }

    fn exchange(&self, x: &Tensor, counts: &[usize]) -> Result<Tensor, TpError> {
        assert_eq!(x.size()[0] as usize, counts[0]);
        Ok(x.copy())
    }

    fn start_exchange(
        &self,
        x: &Tensor,
        counts: &[usize],
    ) -> Result<Box<dyn PendingTensor>, TpError> {
        Ok(Box::new(UnderWay {
            rows: self.exchange(x, counts)?,
            gradients: self
                .gradients
                .borrow()
                .iter()
                .map(Tensor::shallow_clone)
                .collect(),
            waited: Rc::clone(&self.waited),
        }))
    }
}

impl TpContext for Alone {
    fn gather_tokens(&self, local: &Tensor) -> Result<Tensor, TpError> {
        SingleRank.gather_tokens(local)
    }

    fn reduce_tokens(&self, partial: Tensor) -> Result<Tensor, TpError> {
        SingleRank.reduce_tokens(partial)
    }

    fn start_reduce_tokens(&self, partial: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        SingleRank.start_reduce_tokens(partial)
    }

    fn own_tokens(&self, all: Tensor) -> Tensor {
        SingleRank.own_tokens(all)
    }

    fn share_tokens(&self, own: &Tensor) -> Tensor {
        SingleRank.share_tokens(own)
    }

    fn start_join_shares(&self, share: Tensor) -> Result<Box<dyn PendingTensor>, TpError> {
        SingleRank.start_join_shares(share)
    }

    fn expert_peers(&self) -> Option<&dyn ExpertPeers> {
        Some(self)
    }

    fn sum_over_row(&self, partial: &Tensor) -> Result<(), TpError> {
        SingleRank.sum_over_row(partial)
    }

    fn gather_stats(&self, stats: &Tensor) -> Result<Tensor, TpError> {
        SingleRank.gather_stats(stats)
    }
}

fn randn(shape: &[i64], seed: u64, std: f32) -> Tensor {
    let numel: i64 = shape.iter().product();
    let mut values = vec![0f32; numel as usize];
    random::fill_normal(&mut values, seed, "spread experts", 0, std);
    Tensor::from_slice(&values).view(shape)
}

/// The gradients of the input and of all weights.
fn gradients(config: &ModelConfig, tp: &dyn TpContext, alone: Option<&Alone>) -> [Tensor; 2] {
    let tokens = 24;
    let layer = DecoderLayer {
        dims: LayerDims::whole(config, 0),
        whole: WholeBlocks::default(),
        rope: None,
        attention: AttentionSpec {
            scale: config.attention_scale,
            sliding_window: None,
            soft_cap: None,
        },
        norm: config.norm,
        activation: config.activation,
        residual_scale: config.residual_scale,
        matmul: Kind::Float,
        seq: 12,
    };
    let parameters = &ModuleTree::new(config).units[1].parameters;
    let numel = parameters.iter().map(|it| it.numel() as i64).sum::<i64>();
    let flat = randn(&[numel], 1, 0.3);
    let weights = LayerTensors::view(&flat, &layer.dims).unwrap();
    let d_flat = Tensor::full([numel], f64::NAN, (Kind::Float, Device::Cpu));
    let d_weights = LayerTensors::view(&d_flat, &layer.dims).unwrap();
    let (x, d_out) = (
        randn(&[tokens, HIDDEN], 2, 1.0),
        randn(&[tokens, HIDDEN], 3, 1.0),
    );
    let facts = TokenFacts::default();
    let (_, saved) = layer
        .forward(&weights, x, facts, tp, Recompute::Light)
        .unwrap();
    if let (Some(alone), MlpTensors::Experts(own)) = (alone, &d_weights.mlp) {
        let of_experts = [&own.down, &own.gate_up];
        alone
            .gradients
            .replace(of_experts.map(Tensor::shallow_clone).into());
    }
    let own = Gradients::Weights(&d_weights);
    let first = Accumulate::First.into();
    let d_x = layer
        .backward(&weights, own, first, saved, d_out, None, tp)
        .unwrap();
    [d_x, d_flat]
}

#[test]
fn gradients_of_weights_are_computed_while_those_of_rows_are_on_their_way_back() {
    let json = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 1, "intermediate_size": 24, "num_experts": 5,
        "num_experts_per_tok": 2, "moe_intermediate_size": 10, "vocab_size": 20, "max_position_embeddings": 64,
    });
    let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
    let alone = Alone::default();
    let spread = gradients(&config, &alone, Some(&alone));
    assert_eq!(
        alone.waited.get(),
        2,
        "the rows' gradients, and their weights'"
    );
    let experts = alone
        .gradients
        .take()
        .iter()
        .map(|it| it.size()[0])
        .sum::<i64>();
    assert_eq!(experts, 2 * 5);
    // And they are those of a rank without others.
    let own = gradients(&config, &SingleRank, None);
    for (spread, own) in spread.iter().zip(&own) {
        assert!(spread.equal(own));
    }
}
