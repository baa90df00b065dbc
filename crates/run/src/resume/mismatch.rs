//! Why a run is not the one of a checkpoint, in words. What identifies model and data is a hash, which tells nobody anything.

use serde_json::Value;
use tandem_checkpoint::{TrainState, differences};

use crate::adapter::{self, LORA};

/// Where [`TrainState::extra`] has the size of the data.
pub const DATA_SIZE: &str = "data_size";

/// Flags that decide which rows there are.
const OF_DATA: [&str; 14] = [
    "dataset_name",
    "dataset_config",
    "dataset_split",
    "dataset_percentage",
    "dataset_format",
    "text_column",
    "completion_only_loss",
    "assistant_only_loss",
    "chat_template_path",
    "eos_token",
    "packing",
    "packing_strategy",
    "document_mask",
    "seq_length",
];

/// A line for each difference that stands against it; none when it is the same run.
pub fn lines(saved: &TrainState, current: &TrainState) -> Vec<String> {
    let found = differences(saved, current);
    let mut lines = Vec::new();
    for difference in &found.refused {
        match difference.what.as_str() {
            "data" => {
                // The flags first: they are what can be changed.
                let flags = found.allowed.iter().chain(&found.refused);
                let of_data: Vec<String> = flags
                    .filter(|one| OF_DATA.contains(&one.what.as_str()))
                    .map(|one| format!("--{} is {}, and was {}", one.what, one.current, one.saved))
                    .collect();
                lines.push(format!("  data: {}", data(saved, current, &of_data)));
            }
            "model" => {
                let layers = found.allowed.iter().find(|one| one.what == "num_layers");
                let why = layers.map_or(String::new(), |one| {
                    format!(": --num_layers is {}, and was {}", one.current, one.saved)
                });
                lines.push(format!(
                    "  model: architecture or sizes are not those of the checkpoint{why}"
                ));
            }
            _ => lines.push(format!("  {difference}")),
        }
    }
    let of = |state: &TrainState| state.extra.get(LORA).cloned();
    lines.extend(adapter::mismatch(of(saved).as_ref(), of(current).as_ref()));
    lines
}

fn data(saved: &TrainState, current: &TrainState, flags: &[String]) -> String {
    let size = match (size_of(saved), size_of(current)) {
        (Some(then), Some(now)) if then.1 != now.1 => {
            let (what, by) = if now.1 > then.1 {
                ("longer", now.1 - then.1)
            } else {
                ("shorter", then.1 - now.1)
            };
            format!(
                ": it is {what} by {by} tokens ({} documents with {} tokens then, {} with {} now)",
                then.0, then.1, now.0, now.1
            )
        }
        (Some((documents, tokens)), Some(_)) => {
            format!(": it has as many tokens, {tokens} in {documents} documents, but other ones")
        }
        _ => String::new(),
    };
    if flags.is_empty() {
        let name = match current.settings.get("dataset_name") {
            Some(Value::String(name)) => name.clone(),
            Some(Value::Array(names)) => {
                let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
                names.join(", ")
            }
            _ => "the dataset".to_owned(),
        };
        format!("the text of {name} has changed since the checkpoint, or the tokenizer has{size}")
    } else {
        format!(
            "the rows are different from the checkpoint's ({}){size}",
            flags.join("; ")
        )
    }
}

/// Documents and tokens.
fn size_of(state: &TrainState) -> Option<(u64, u64)> {
    let size = state.extra.get(DATA_SIZE)?;
    Some((size["documents"].as_u64()?, size["tokens"].as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(hash: &str, name: &str, tokens: u64) -> TrainState {
        TrainState {
            data_fingerprint: hash.to_owned(),
            settings: [("dataset_name".to_owned(), json!(name))].into(),
            extra: [(
                DATA_SIZE.to_owned(),
                json!({"documents": 3, "tokens": tokens}),
            )]
            .into(),
            ..TrainState::default()
        }
    }

    #[test]
    fn a_text_that_has_changed_is_called_that() {
        let saved = state("1f3a", "a.txt", 100);
        assert!(lines(&saved, &saved).is_empty());
        let of = |current: TrainState| lines(&saved, &current).join("\n");
        let text = of(state("9c4b", "a.txt", 110));
        assert!(text.contains("the text of a.txt has changed"), "{text}");
        assert!(text.contains("longer by 10 tokens"), "{text}");
        let text = of(state("9c4b", "a.txt", 100));
        assert!(text.contains("as many tokens"), "{text}");
        let text = of(state("9c4b", "b.txt", 90));
        let words = "--dataset_name is \"b.txt\", and was \"a.txt\"";
        assert!(
            text.contains(words) && text.contains("shorter by 10"),
            "{text}"
        );
        assert!(!text.contains("9c4b") && !text.contains("1f3a"), "{text}");
        let old = TrainState {
            extra: Default::default(),
            ..saved.clone()
        };
        let text = lines(&old, &state("9c4b", "a.txt", 1)).join("\n");
        assert!(text.contains("has changed"), "{text}");
        let model = TrainState {
            model_fingerprint: "77".into(),
            ..saved.clone()
        };
        assert!(of(model).contains("model: architecture or sizes"));
    }
}
