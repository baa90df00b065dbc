//! What the library believes of a `tokenizer.json`, and what ends the process when it is wrong: JSON that breaks off in the
//! decoder, templates that name a special token which they do not define, and normalizers that make a text too long.

use serde::Deserialize;
use serde_json::Value;

/// How many times as long as a text its normalizer may make it. Of published ones, few reach ten.
const MAX_GROWTH: usize = 1024;

/// Post-processors and normalizers nested deeper than this are not looked through, and not taken.
const MAX_DEPTH: usize = 16;

/// Checks the syntax, the post-processor and the normalizer of a `tokenizer.json`. The error says what is wrong. Whatever else
/// is wrong with the file, the library finds. Returns how many times as long as a text what is tokenized of it may be.
pub(super) fn check(tokenizer: &[u8]) -> Result<usize, String> {
    #[derive(Deserialize)]
    struct Outline {
        #[serde(default)]
        post_processor: Value,
        #[serde(default)]
        normalizer: Value,
    }
    let outline: Outline = serde_json::from_slice(tokenizer).map_err(|error| error.to_string())?;
    check_processor(&outline.post_processor, 0)?;
    match growth(&outline.normalizer, 0)? {
        growth @ ..=MAX_GROWTH => Ok(growth),
        growth => Err(format!(
            "its normalizer may make a text {growth} times as long, and {MAX_GROWTH} times is the most that is taken"
        )),
    }
}

/// How many times as long a normalizer may make a text, by what it puts in the place of what it finds.
fn growth(normalizer: &Value, depth: usize) -> Result<usize, String> {
    if depth > MAX_DEPTH {
        return Err(format!(
            "its normalizer is nested more than {MAX_DEPTH} deep"
        ));
    }
    // The library tells kinds of normalizers by their fields where `type` is absent.
    let put = normalizer["content"].as_str().map_or(0, str::len);
    let mut product = match &normalizer["pattern"] {
        Value::Object(pattern) => match pattern.get("String").and_then(Value::as_str) {
            Some(found) if !found.is_empty() => put.div_ceil(found.len()).max(1),
            // A pattern may match nothing at all, before every character.
            _ => put.saturating_add(1),
        },
        _ => 1,
    };
    for inner in normalizer["normalizers"].as_array().into_iter().flatten() {
        product = product.saturating_mul(growth(inner, depth + 1)?);
    }
    Ok(product)
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
