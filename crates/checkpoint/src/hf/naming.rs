//! Weights whose names have another prefix than the model's: the text part of a larger model, a module that something had
//! wrapped when it was saved, the decoder without its head.

use std::collections::{BTreeMap, HashMap};

use super::{HfWeights, WeightsError};

/// What torch.compile, FSDP and activation checkpointing call the module that they wrap, anywhere in a name.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// The decoder, in the names of a model with a head.
const DECODER: &str = "model.";

/// The head, beside the decoder.
const HEAD: &str = "lm_head.";

impl HfWeights {
    /// Calls the tensors what `expected` calls them, where another prefix makes all of them fit: `language_model.`, what
    /// wraps a module (`_orig_mod.`, `module.`), `model.` twice or not at all. Of a pair in `either`, one is enough. Says what
    /// it has read as what; nothing when the names fit as they are, or not at all.
    ///
    /// # Errors
    /// [`WeightsError::TwoModels`] when several prefixes make everything fit.
    pub fn fit_names(
        &mut self,
        expected: &[(String, Vec<usize>)],
        either: (&str, &str),
    ) -> Result<Option<String>, WeightsError> {
        let fit = fit(self, expected, either)?;
        let Some(Fit { said, names }) = fit else {
            return Ok(None);
        };
        self.set_file_names(names)?;
        Ok(Some(said))
    }
}

/// Names by which the weights are those of the model.
struct Fit {
    /// What was read as what.
    said: String,
    /// The names, file by file.
    names: Vec<Vec<String>>,
}

/// Looks for a prefix that makes all of `expected` fit. Of a pair in `either`, one is enough.
fn fit(
    weights: &HfWeights,
    expected: &[(String, Vec<usize>)],
    either: (&str, &str),
) -> Result<Option<Fit>, WeightsError> {
    let fits = |found: &HashMap<&str, &[usize]>| {
        expected.iter().all(|(name, shape)| {
            let is_there = |name: &str| found.get(name).is_some_and(|found| *found == shape);
            is_there(name) || (name == either.0 && is_there(either.1))
        })
    };
    let plain = weights
        .entries()
        .map(|(name, _, entry)| (name, entry.shape.as_slice()));
    if fits(&plain.collect()) {
        return Ok(None);
    }
    // By what stands before the names of one tensor that every decoder has.
    let in_decoder = |(name, _): &&(String, Vec<usize>)| {
        name.starts_with(DECODER) && name != either.0 && name != either.1
    };
    let Some((anchor, _)) = expected.iter().find(in_decoder) else {
        return Ok(None);
    };
    let anchor = &anchor[DECODER.len()..];
    let mut found = BTreeMap::new();
    for (name, ..) in weights.entries() {
        let unwrapped = unwrapped(name);
        let Some(base) = unwrapped.strip_suffix(anchor) else {
            continue;
        };
        if !(base.is_empty() || base.ends_with('.')) {
            continue;
        }
        let names: Vec<Vec<String>> = weights
            .file_names()
            .map(|names| names.iter().map(|name| renamed(name, base)).collect())
            .collect();
        let shapes = weights
            .entries()
            .map(|(_, _, entry)| entry.shape.as_slice());
        let all: HashMap<&str, &[usize]> = names
            .iter()
            .flatten()
            .map(String::as_str)
            .zip(shapes)
            .collect();
        let is_unambiguous = all.len() == names.iter().map(Vec::len).sum::<usize>();
        if is_unambiguous && fits(&all) {
            found.insert(base.to_owned(), (said(base, name, anchor), names));
        }
    }
    if found.len() > 1 {
        return Err(WeightsError::TwoModels {
            folder: weights.folder().to_owned(),
            prefixes: found.into_keys().collect(),
        });
    }
    let fit = found.into_iter().next();
    Ok(fit.map(|(_, (said, names))| Fit { said, names }))
}

/// The name without wrappers.
fn unwrapped(name: &str) -> String {
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| !WRAPPERS.contains(part))
        .collect();
    parts.join(".")
}

/// The name in a model whose decoder's names begin with `model.` instead of `base`.
fn renamed(name: &str, base: &str) -> String {
    let name = unwrapped(name);
    // All of a model, head included, in something larger.
    if let Some(outer) = base.strip_suffix(DECODER) {
        return match name.strip_prefix(outer) {
            Some(rest) => rest.to_owned(),
            None => name,
        };
    }
    match name.strip_prefix(base) {
        Some(rest) if rest.starts_with(HEAD) => rest.to_owned(),
        Some(rest) => format!("{DECODER}{rest}"),
        None => name,
    }
}

/// How `name` was read, which is that of `anchor` and has `base` before it, wrappers aside.
fn said(base: &str, name: &str, anchor: &str) -> String {
    let prefix = name.strip_suffix(anchor).unwrap_or(base);
    match base.strip_suffix(DECODER) {
        Some("") => {
            let taken: Vec<&str> = name
                .split('.')
                .filter(|part| WRAPPERS.contains(part))
                .collect();
            format!(
                "{} is taken out of the names of the tensors",
                taken.join(".")
            )
        }
        Some(_) => {
            let outer = prefix.strip_suffix(DECODER).unwrap_or(prefix);
            // `model.` may be the end of a longer word: `language_model.`
            match outer.ends_with('.') {
                true => format!("the prefix {outer} is taken off the names of the tensors"),
                false => format!("{base} in the names of the tensors is read as {DECODER}"),
            }
        }
        None if base.is_empty() => {
            format!("{DECODER} is put before the names of the tensors, which lack it")
        }
        None => format!("{base} in the names of the tensors is read as {DECODER}"),
    }
}
