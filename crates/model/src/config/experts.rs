//! What configs say about mixtures of experts in the same way.

use tandem_tensor::experts::Rule;

use super::ConfigError;
use super::keys::{Keys, at_most};

/// Far beyond the most that are published.
const MAX_EXPERTS: usize = 65_536;

/// The keys of [`rule`] and [`balance`], which only families with experts have.
pub(super) const KEYS: [&str; 2] = ["num_experts", "num_local_experts"];

/// How many experts there are and how many a token goes to. transformers 5 knows two names for the former.
pub(super) fn rule(
    keys: &Keys<'_>,
    (experts, top_k): (usize, usize),
    normalise: bool,
) -> Result<Rule, ConfigError> {
    let key = match keys.get("num_local_experts") {
        Some(_) => "num_local_experts",
        None => "num_experts",
    };
    let experts = keys.size_or(key, experts)?;
    at_most(MAX_EXPERTS, key, experts)?;
    let top_k = keys.size_or("num_experts_per_tok", top_k)?;
    if top_k > experts {
        return Err(ConfigError::Value {
            key: "num_experts_per_tok",
            value: top_k.to_string(),
            expected: format!("there are only {experts} experts ({key})"),
        });
    }
    Ok(Rule {
        experts,
        top_k,
        normalise,
    })
}

/// The coefficient of the loss that keeps experts in balance, which transformers adds only where it is asked to give the router's
/// logits.
pub(super) fn balance(keys: &Keys<'_>) -> Result<Option<f64>, ConfigError> {
    let coefficient = keys.number_or("router_aux_loss_coef", 0.001)?;
    if !(coefficient >= 0.0 && coefficient.is_finite()) {
        return Err(ConfigError::Value {
            key: "router_aux_loss_coef",
            value: coefficient.to_string(),
            expected: "it must be 0 or more".to_owned(),
        });
    }
    let is_on = keys.flag("output_router_logits", false)?;
    Ok((is_on && coefficient > 0.0).then_some(coefficient))
}
