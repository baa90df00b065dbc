//! Tensors of the files that the model has no use for.

use std::collections::BTreeSet;

use tandem_model::{ModelConfig, ModuleTree};

use super::HEAD;

/// Names that a line has room for.
const MAX_NAMED: usize = 4;

/// Whether the model computes the same without the tensor `name`: a tied head's copy, buffers of old versions, other modules,
/// and layers behind the ones that are kept. A tensor of a module that it has (a bias, say) would have changed what that
/// module computes.
pub(super) fn is_ignorable(name: &str, config: &ModelConfig, tree: &ModuleTree) -> bool {
    if name == HEAD {
        return config.tie_word_embeddings;
    }
    if is_computed(name) {
        return true;
    }
    match layer_of(name) {
        Some(layer) => layer >= config.num_layers,
        None => {
            let owner = name.rsplit_once('.').map_or("", |(module, _)| module);
            !tree.modules().any(|module| module.path == owner)
        }
    }
}

/// All of `ignored` in one line, but for what is known anyway: an equal copy of the embedding, and what is computed.
pub(super) fn line(ignored: &[String]) -> Option<String> {
    let said: Vec<&str> = ignored
        .iter()
        .map(String::as_str)
        .filter(|name| *name != HEAD && !is_computed(name))
        .collect();
    if said.is_empty() {
        return None;
    }
    let layers: BTreeSet<usize> = said.iter().filter_map(|name| layer_of(name)).collect();
    let mut names: Vec<String> = Vec::new();
    if let (Some(first), Some(last)) = (layers.first(), layers.last()) {
        names.push(match first == last {
            true => format!("model.layers.{first}"),
            false => format!("model.layers.{first} to {last}"),
        });
    }
    let others: Vec<&&str> = said
        .iter()
        .filter(|name| layer_of(name).is_none())
        .collect();
    names.extend(
        others
            .iter()
            .take(MAX_NAMED)
            .map(|name| (**name).to_owned()),
    );
    if others.len() > MAX_NAMED {
        names.push(format!("and {} more", others.len() - MAX_NAMED));
    }
    Some(format!(
        "{} tensors of the files are not used: {}",
        said.len(),
        names.join(", ")
    ))
}

/// Buffers that old versions saved, and that are a function of the config.
fn is_computed(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

fn layer_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.")?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_them_all() {
        let names =
            |list: &[&str]| -> Vec<String> { list.iter().map(|name| (*name).to_owned()).collect() };
        assert_eq!(line(&[]), None);
        assert_eq!(
            line(&names(&[
                HEAD,
                "model.layers.0.self_attn.rotary_emb.inv_freq"
            ])),
            None
        );
        let two = names(&["model.layers.2.a.weight", "model.layers.3.b.weight", HEAD]);
        assert_eq!(
            line(&two).unwrap(),
            "2 tensors of the files are not used: model.layers.2 to 3"
        );
        let many: Vec<String> = (0..9).map(|i| format!("visual.{i}.weight")).collect();
        let said = line(&many).unwrap();
        assert!(
            said.starts_with("9 tensors") && said.ends_with("and 5 more"),
            "{said}"
        );
    }
}
