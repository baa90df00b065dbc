//! What the library believes of a `tokenizer.json`, and what ends the process when it is wrong: JSON that breaks off in the
//! decoder, and templates that name a special token which they do not define.

use serde::Deserialize;
use serde_json::Value;

/// Post-processors nested deeper than this are not looked through, and not taken.
const MAX_DEPTH: usize = 16;

/// Checks the syntax and the post-processor of a `tokenizer.json`. The error says what is wrong. Whatever else is wrong with
/// the file, the library finds.
pub(super) fn check(tokenizer: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Outline {
        #[serde(default)]
        post_processor: Value,
    }
    let outline: Outline = serde_json::from_slice(tokenizer).map_err(|error| error.to_string())?;
    check_processor(&outline.post_processor, 0)
}

fn check_processor(processor: &Value, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "its post_processor is nested more than {MAX_DEPTH} deep"
        ));
    }
    for inner in processor["processors"].as_array().into_iter().flatten() {
        check_processor(inner, depth + 1)?;
    }
    // The library tells kinds of processors by their fields where `type` is absent.
    for (name, texts) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        for piece in processor[name].as_array().into_iter().flatten() {
            if let Some(id) = piece["SpecialToken"]["id"].as_str()
                && processor["special_tokens"].get(id).is_none()
            {
                return Err(format!(
                    "its post_processor puts the special token {id:?} around a text, and does not define it"
                ));
            }
            if let Some(id) = piece["Sequence"]["id"].as_str()
                && !texts.contains(&id)
            {
                return Err(format!(
                    "its post_processor has a place for a text {id:?} in {name}, where there is none"
                ));
            }
        }
    }
    Ok(())
}
