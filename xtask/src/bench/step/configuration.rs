//! What is trained, and on how many ranks: the named configurations of the matrix.

use std::fmt;

use super::contender::Variant;

/// One configuration: packed random tokens, bf16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub name: &'static str,
    /// What `--config` calls several of them at once.
    pub group: &'static str,
    /// Whose sizes, as `tandem bench step --model` calls them.
    pub model: &'static str,
    /// Rank of adapters of all matrices, which are trained in the place of the model; 0 where the model is.
    pub lora_r: usize,
    pub layers: usize,
    pub seq: usize,
    /// Rows per data parallel rank.
    pub batch: usize,
    pub tp: usize,
    pub dp: usize,
    /// Ranks over which the experts of a mixture are spread; with 1, a row cuts each.
    pub ep: usize,
}

impl Configuration {
    /// Whether this variant of ours does something else here than the variants before it: with one data parallel rank there
    /// is nothing to shard over, so the levels of ZeRO are one.
    pub fn tells_apart(&self, variant: Variant) -> bool {
        self.dp > 1 || matches!(variant, Variant::Fsdp | Variant::Zero0)
    }

    /// Whether PyTorch's programs can do the same work: they train a Qwen2-0.5B.
    pub fn suits_peers(&self) -> bool {
        self.model == QWEN2 && self.lora_r == 0
    }
}

/// The model unless a configuration says otherwise.
const QWEN2: &str = "qwen2";

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {} layers, seq {}, batch {}, tp {} x dp {}",
            self.name, self.model, self.layers, self.seq, self.batch, self.tp, self.dp
        )?;
        if self.ep > 1 {
            write!(f, ", experts over {} ranks", self.ep)?;
        }
        match self.lora_r {
            0 => Ok(()),
            r => write!(f, ", adapters of rank {r}"),
        }
    }
}

/// The group that is measured when none is asked for.
pub const DEFAULT_GROUP: &str = "matrix";

const fn row(
    group: &'static str,
    name: &'static str,
    [layers, seq, batch, tp, dp]: [usize; 5],
) -> Configuration {
    Configuration {
        name,
        group,
        model: QWEN2,
        lora_r: 0,
        layers,
        seq,
        batch,
        tp,
        dp,
        ep: 1,
    }
}

/// Another model than Qwen2-0.5B.
const fn of(model: &'static str, name: &'static str, columns: [usize; 5]) -> Configuration {
    Configuration {
        model,
        ..row("models", name, columns)
    }
}

/// Where products weigh least: narrow layers, with few tokens for each weight or many keys for each query.
const fn narrow(model: &'static str, name: &'static str, columns: [usize; 5]) -> Configuration {
    Configuration {
        group: "narrow",
        ..of(model, name, columns)
    }
}

/// Its experts over both ranks.
const fn spread(mixture: Configuration) -> Configuration {
    Configuration { ep: 2, ..mixture }
}

/// Columns: layers, seq, batch, tp, dp.
const CONFIGURATIONS: [Configuration; 29] = [
    row("matrix", "tp2", [2, 512, 1, 2, 1]),
    row("matrix", "dp2", [2, 512, 1, 1, 2]),
    row("matrix", "tp2-dp2", [2, 512, 1, 2, 2]),
    row("matrix", "tp2-dp2-long", [2, 1024, 2, 2, 2]),
    row("matrix", "deep-tp2", [24, 512, 1, 2, 1]),
    row("matrix", "deep-one-rank", [24, 1024, 1, 1, 1]),
    row("layers", "layers-1", [1, 512, 1, 2, 1]),
    row("layers", "layers-2", [2, 512, 1, 2, 1]),
    row("layers", "layers-4", [4, 512, 1, 2, 1]),
    row("layers", "layers-8", [8, 512, 1, 2, 1]),
    row("seq", "seq-128", [2, 128, 1, 2, 1]),
    row("seq", "seq-256", [2, 256, 1, 2, 1]),
    row("seq", "seq-512", [2, 512, 1, 2, 1]),
    row("seq", "seq-1024", [2, 1024, 1, 2, 1]),
    row("seq", "seq-2048", [2, 2048, 1, 2, 1]),
    row("ranks", "ranks-1", [2, 512, 1, 1, 1]),
    row("ranks", "ranks-2", [2, 512, 1, 2, 1]),
    row("ranks", "ranks-4", [2, 512, 1, 2, 2]),
    row("ranks", "ranks-8", [2, 512, 1, 2, 4]),
    of("smollm2", "smollm2", [30, 512, 1, 1, 2]),
    of("gemma2", "gemma2", [2, 512, 1, 2, 1]),
    of("qwen3-moe", "moe", [2, 512, 4, 1, 2]),
    spread(of("qwen3-moe", "moe-spread", [2, 512, 4, 1, 2])),
    // Beside deep-tp2, which trains the same model itself.
    Configuration {
        lora_r: 16,
        ..row("models", "lora", [24, 512, 1, 2, 1])
    },
    narrow("smollm2", "smollm2-long", [30, 2048, 1, 1, 2]),
    narrow("gemma2-narrow", "gemma2-narrow", [26, 512, 1, 2, 1]),
    narrow("qwen3-moe-narrow", "moe-narrow", [8, 512, 1, 1, 2]),
    spread(narrow(
        "qwen3-moe-narrow",
        "moe-narrow-spread",
        [8, 512, 1, 1, 2],
    )),
    row("smoke", "smoke", [1, 64, 1, 2, 1]),
];

/// The configuration of that name, or all of the group of that name; empty if there is neither.
pub fn named(name: &str) -> Vec<Configuration> {
    let chosen =
        |configuration: &&Configuration| [configuration.name, configuration.group].contains(&name);
    CONFIGURATIONS.iter().filter(chosen).cloned().collect()
}

/// All configurations by group, for a person to choose from.
pub fn list() -> String {
    let lines = CONFIGURATIONS
        .iter()
        .map(|configuration| format!("{:<8} {configuration}\n", configuration.group));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_configuration_and_a_group_is_several() {
        assert_eq!(named("dp2").len(), 1);
        assert_eq!(named(DEFAULT_GROUP).len(), 6);
        assert_eq!(named("models").len(), 5);
        assert_eq!(named("narrow").len(), 4);
        assert!(named("lunch").is_empty());
        for configuration in &CONFIGURATIONS {
            let same = named(configuration.name);
            assert!(same.contains(configuration), "{configuration}");
            assert!(same.len() == 1, "{} is several", configuration.name);
        }
    }

    /// A ratio of times of different work would say nothing.
    #[test]
    fn pytorchs_programs_run_where_they_do_the_same_work() {
        let suits = |name: &str| named(name)[0].suits_peers();
        assert!(suits("tp2") && suits("deep-one-rank"));
        assert!(!suits("moe") && !suits("lora"));
    }

    #[test]
    fn levels_of_zero_differ_only_where_there_is_something_to_shard_over() {
        let alone = &named("tp2")[0];
        let (once, twice) = (Variant::Zero0, Variant::Zero2);
        assert!(alone.tells_apart(once) && !alone.tells_apart(twice));
        assert!(named("dp2")[0].tells_apart(twice));
    }
}
