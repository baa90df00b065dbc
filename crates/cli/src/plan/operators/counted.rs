//! Launches and bytes by operator, from the operators of two steps, for people and for programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_model::Recompute;
use tandem_plan::{CompiledLayer, recompute_name};
use tandem_tensor::torch::recorder::Call;
use tandem_trainer::Activity;

/// All calls of one operator in one part of a step. Its bytes are a straight line over the tokens: every operator reads and writes weights,
/// which do not depend on them, and activations, which grow with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    /// As [`Activity::kind`] has it.
    part: String,
    /// libtorch's name for it.
    name: String,
    launches: usize,
    fixed_bytes: f64,
    bytes_per_token: f64,
}

impl Recorded {
    fn bytes(&self, tokens: u64) -> f64 {
        self.fixed_bytes + tokens as f64 * self.bytes_per_token
    }
}

/// From the operators of a step of one row of `seq` tokens, and of one of two such rows.
pub(super) fn by_operator(one_row: &[Call], two_rows: &[Call], seq: u64) -> Vec<Recorded> {
    let sums = |calls: &[Call]| {
        let mut sums = BTreeMap::<(&'static str, String), (usize, u64)>::new();
        for call in calls.iter().filter(|call| call.device.is_cuda()) {
            let sum = sums.entry((call.part, call.name.clone())).or_default();
            sum.0 += 1;
            sum.1 += call.bytes();
        }
        sums
    };
    let one = sums(one_row);
    let operators = sums(two_rows).into_iter();
    let recorded = operators.map(|(key, (launches, two))| {
        let (_, one) = one.get(&key).copied().unwrap_or_default();
        let of_a_row = two as f64 - one as f64;
        Recorded {
            part: key.0.to_owned(),
            name: key.1,
            launches,
            fixed_bytes: one as f64 - of_a_row,
            bytes_per_token: of_a_row / seq as f64,
        }
    });
    recorded.collect()
}

/// What one kind of operator, or of a compiled layer's kernels, comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    launches: usize,
    bytes: f64,
}

/// Some rows with their sums.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Table {
    launches: usize,
    bytes: f64,
    /// Those that move the most first.
    operators: Vec<Row>,
}

impl Table {
    fn new(rows: impl Iterator<Item = Row>) -> Self {
        let mut operators: Vec<Row> = rows.collect();
        operators.sort_by(|a, b| b.bytes.total_cmp(&a.bytes));
        Self {
            launches: operators.iter().map(|row| row.launches).sum(),
            bytes: operators.iter().map(|row| row.bytes).sum(),
            operators,
        }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.operators.iter().map(|row| {
            format!(
                "          {:>4} x {:<44} {:>8.3} GB {:>5.1} %",
                row.launches,
                row.name,
                row.bytes / 1e9,
                100.0 * row.bytes / self.bytes
            )
        })
    }
}

/// A part of the step that is no layer, as it was recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Part {
    name: String,
    launches: usize,
    fixed_bytes: f64,
    bytes_per_token: f64,
}

/// One layer, forward and backward, and what else there is in a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Operators {
    /// Of a micro-batch.
    tokens: u64,
    recompute: &'static str,
    /// Of the model that was recorded: one layer, and a small vocabulary.
    parameters: u64,
    layer: Table,
    /// A compiled PyTorch layer; null where the rules of the count do not know the layer.
    compiled: Option<Table>,
    /// The layer's bytes over those of the compiled one.
    ratio: Option<f64>,
    /// The other parts of the recorded step.
    parts: Vec<Part>,
}

impl Operators {
    pub(super) fn new(
        tokens: u64,
        recompute: Recompute,
        parameters: u64,
        recorded: Vec<Recorded>,
        compiled: Option<&CompiledLayer>,
    ) -> Self {
        let of_layer = [Activity::Layer(0), Activity::LayerBackward(0)].map(Activity::kind);
        let mut layer = BTreeMap::<String, Row>::new();
        let mut parts = BTreeMap::<String, Part>::new();
        for it in recorded {
            if of_layer.contains(&it.part.as_str()) {
                let row = layer.entry(it.name.clone()).or_insert_with(|| Row {
                    name: it.name.clone(),
                    launches: 0,
                    bytes: 0.0,
                });
                row.launches += it.launches;
                row.bytes += it.bytes(tokens);
            } else {
                let part = parts.entry(it.part.clone()).or_insert_with(|| Part {
                    name: match it.part.as_str() {
                        "" => "between the parts".to_owned(),
                        part => part.to_owned(),
                    },
                    launches: 0,
                    fixed_bytes: 0.0,
                    bytes_per_token: 0.0,
                });
                part.launches += it.launches;
                part.fixed_bytes += it.fixed_bytes;
                part.bytes_per_token += it.bytes_per_token;
            }
        }
        let layer = Table::new(layer.into_values());
        let compiled = compiled.map(|compiled| {
            Table::new(compiled.kernels.iter().map(|kernel| Row {
                name: kernel.name.to_owned(),
                launches: kernel.launches,
                bytes: kernel.bytes(tokens) as f64,
            }))
        });
        let ratio = compiled.as_ref().map(|it| layer.bytes / it.bytes);
        Self {
            tokens,
            recompute: recompute_name(recompute),
            parameters,
            layer,
            compiled,
            ratio,
            parts: parts.into_values().collect(),
        }
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let gb = |bytes: f64| format!("{:.3} GB", bytes / 1e9);
        let mut lines = vec![format!(
            "layer     {} launches, {} read and written: the first layer, whole, forward and backward of {} tokens, --recompute {}",
            self.layer.launches,
            gb(self.layer.bytes),
            self.tokens,
            self.recompute
        )];
        lines.extend(self.layer.lines());
        match (&self.compiled, self.ratio) {
            (Some(compiled), Some(ratio)) => {
                lines.push(format!(
                    "compiled  {} launches, {} in PyTorch, by a count that nobody has measured (docs/gpu.md); {ratio:.2} times that here",
                    compiled.launches,
                    gb(compiled.bytes)
                ));
                lines.extend(compiled.lines());
            }
            _ => lines.push(
                "compiled  not counted: experts, adapters, soft caps, or norms that Llama does not have"
                    .to_owned(),
            ),
        }
        lines.push(format!(
            "besides   recorded with one layer and a small vocabulary, {} parameters in all:",
            self.parameters
        ));
        lines.extend(self.parts.iter().map(|part| {
            format!(
                "          {:>4} in {:<44} {:>8.3} GB and {:.0} bytes for each token",
                part.launches,
                part.name,
                part.fixed_bytes / 1e9,
                part.bytes_per_token
            )
        }));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use tandem_tensor::Device;
    use tandem_tensor::torch::recorder::Action;

    fn call(part: &'static str, name: &str, read: u64) -> Call {
        Call {
            name: name.into(),
            part,
            action: Action::Compute,
            device: Device::Cuda(0),
            read,
            written: 10,
            sizes: String::new(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn bytes_go_on_in_a_line_and_a_layer_is_forward_and_backward() {
        let [forward, backward] =
            [Activity::Layer(0), Activity::LayerBackward(0)].map(Activity::kind);
        let head = Activity::Head.kind();
        // 100 bytes of weights, 4 of each token; 20 bytes of results.
        let step = |tokens: u64| {
            vec![
                call(forward, "mm", 100 + 4 * tokens),
                call(backward, "mm", 100 + 4 * tokens),
                call(backward, "mul", 8 * tokens),
                call(head, "mm", 7),
                Call {
                    device: Device::Cpu,
                    ..call(head, "add", 7)
                },
            ]
        };
        let recorded = by_operator(&step(8), &step(16), 8);
        let found = Operators::new(1000, Recompute::Light, 5, recorded, None);
        assert_eq!((found.layer.launches, found.layer.bytes), (3, 16_230.0));
        let rows = found.layer.operators.iter();
        let rows: Vec<_> = rows
            .map(|row| (row.name.as_str(), row.launches, row.bytes))
            .collect();
        assert_eq!(rows, [("mm", 2, 8_220.0), ("mul", 1, 8_010.0)]);
        let [part] = found.parts.as_slice() else {
            panic!("{:?}", found.parts);
        };
        assert_eq!((part.name.as_str(), part.launches), (head, 1));
        assert_eq!((part.fixed_bytes, part.bytes_per_token), (17.0, 0.0));
        assert_eq!((&found.compiled, found.ratio), (&None, None));
        assert!(
            found
                .lines()
                .iter()
                .any(|line| line.contains("not counted"))
        );
    }
}
