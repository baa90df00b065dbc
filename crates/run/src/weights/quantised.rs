//! Telling that weights are quantised, from what their tensors are and are called.

use tandem_checkpoint::{Dtype, HfWeights};

/// Ends of names that only a quantised linear layer has, and what writes them.
const ENDINGS: [(&str, &str); 9] = [
    (".g_idx", "gptq"),
    (".qweight", "gptq or awq"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale", "fp8"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    ("_blocks", "mxfp4"),
    (".qzeros", "gptq or awq"),
];

/// How the weights are quantised; `None` when they are not. A config that says so is refused before.
pub(super) fn how(weights: &HfWeights) -> Option<String> {
    let by_name = ENDINGS.iter().find_map(|(ending, what)| {
        let mut names = weights.names();
        names.any(|name| name.ends_with(ending)).then_some(*what)
    });
    let by_kind = || {
        weights
            .entries()
            .find_map(|(name, _, entry)| match entry.dtype {
                _ if !name.ends_with(".weight") => None,
                Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => None,
                Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 => Some("fp8".to_owned()),
                other => Some(other.to_string()),
            })
    };
    by_name.map(str::to_owned).or_else(by_kind)
}
