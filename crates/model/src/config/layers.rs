//! Which layers slide, and over how many keys.

use serde_json::Value;

use super::ConfigError;
use super::keys::Keys;

/// `sliding_window`: `default` where the key is absent, none where it is null.
pub(super) fn window(
    keys: &Keys<'_>,
    default: Option<usize>,
) -> Result<Option<usize>, ConfigError> {
    match keys.0.get("sliding_window") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => Ok(Some(keys.any_size_or("sliding_window", 1)?)),
    }
}

/// Per layer, whether it slides: `layer_types` where it is given (transformers 5), else as `otherwise` says of the layer.
pub(super) fn sliding(
    keys: &Keys<'_>,
    num_layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    let Some(types) = keys.list("layer_types")? else {
        return Ok((0..num_layers).map(otherwise).collect());
    };
    if types.len() < num_layers {
        return Err(ConfigError::Value {
            key: "layer_types",
            value: format!("a list of {}", types.len()),
            expected: format!("num_hidden_layers is {num_layers}"),
        });
    }
    let kept = types.iter().take(num_layers);
    kept.map(|kind| match kind.as_str() {
        // The second is the older name.
        Some("full_attention" | "attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(ConfigError::Value {
            key: "layer_types",
            value: kind.to_string(),
            expected: "only full_attention and sliding_attention are supported".to_owned(),
        }),
    })
    .collect()
}

/// The window of each layer.
pub(super) fn windows(
    sliding: &[bool],
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, ConfigError> {
    if window.is_none() && sliding.contains(&true) {
        return Err(ConfigError::Value {
            key: "layer_types",
            value: "\"sliding_attention\"".to_owned(),
            expected:
                "there is no window: sliding_window is null, or use_sliding_window is not true"
                    .to_owned(),
        });
    }
    Ok(sliding
        .iter()
        .map(|slides| window.filter(|_| *slides))
        .collect())
}
