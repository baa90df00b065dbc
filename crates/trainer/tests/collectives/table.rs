//! The table, read and worked out.

use std::collections::BTreeMap;

/// How often each was said: by group, collective and bytes.
pub type Collectives = BTreeMap<(String, String, usize), usize>;

/// A row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Words that must all be true, or levels of sharding of which one must be.
    only_at: Vec<String>,
    times: String,
    group: String,
    operation: String,
    bytes: String,
    /// Crate, and file under its `src`.
    pub file: String,
}

/// What the symbols of the table stand for in one case, on one rank.
pub struct Sizes {
    /// Numbers by their symbol, those of units left out.
    pub numbers: BTreeMap<&'static str, usize>,
    /// Words that are true.
    pub words: Vec<&'static str>,
    /// Ranks by group.
    pub groups: BTreeMap<&'static str, usize>,
    pub sequence_parallel: bool,
    pub units: Vec<UnitSizes>,
}

/// A unit's.
pub struct UnitSizes {
    /// 0 to 3.
    pub level: usize,
    /// Elements.
    pub unit: usize,
    /// Elements of which ranks of the row have a part of the gradient each.
    pub partial: usize,
    pub is_layer: bool,
    /// Whether it holds experts that are spread over ranks.
    pub is_experts: bool,
    pub is_trained: bool,
}

/// The rows of the only table in the comment at the top of `text`.
pub fn parse(text: &str) -> Vec<Row> {
    let mut lines = text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .filter_map(|line| line.strip_prefix("//! |"));
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_end_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let heads = cells(lines.next().expect("a table"));
    let expected = [
        "when",
        "only at",
        "times",
        "group",
        "operation",
        "bytes",
        "in",
    ];
    assert_eq!(heads, expected);
    let rows: Vec<Row> = lines
        .skip(1)
        .map(|line| {
            let [_when, only_at, times, group, operation, bytes, file] =
                <[String; 7]>::try_from(cells(line)).expect("seven cells");
            Row {
                only_at: only_at
                    .split(',')
                    .map(|word| word.trim().to_owned())
                    .filter(|word| !word.is_empty())
                    .collect(),
                times,
                group,
                operation,
                bytes,
                file,
            }
        })
        .collect();
    assert!(rows.len() > 8, "only {} rows were read", rows.len());
    rows
}

impl Row {
    /// Adds what the row lists in a case. Returns whether that is anything.
    pub fn add_to(&self, sizes: &Sizes, listed: &mut Collectives) -> bool {
        let Some(collective) = self.collective(sizes.sequence_parallel) else {
            return false;
        };
        let mut is_used = false;
        for unit in self.units(sizes) {
            // Experts that are spread have another column.
            let group = match self.group.as_str() {
                "dp" if unit.is_experts => "edp",
                group => group,
            };
            if *sizes.groups.get(group).expect("a group") == 1 {
                continue;
            }
            let levels: Vec<usize> = self.only_at.iter().filter_map(|w| w.parse().ok()).collect();
            let mut words = self.only_at.iter().filter(|w| w.parse::<usize>().is_err());
            let is_level = levels.is_empty() || levels.contains(&unit.level);
            let holds = |word: &String| match word.as_str() {
                "trained" => unit.is_trained,
                word => sizes.words.contains(&word),
            };
            if !is_level || !words.all(holds) {
                continue;
            }
            let value = |symbol: &str| match symbol {
                "unit" | "layer" | "experts" => unit.unit,
                "partial" => unit.partial,
                other => match other.parse() {
                    Ok(number) => number,
                    Err(_) => *sizes
                        .numbers
                        .get(other)
                        .unwrap_or_else(|| panic!("{other:?} means nothing: {self:?}")),
                },
            };
            let (times, bytes) = (product(&self.times, &value), product(&self.bytes, &value));
            if times > 0 && bytes > 0 {
                let key = (group.to_owned(), collective.to_owned(), bytes);
                *listed.entry(key).or_default() += times;
                is_used = true;
            }
        }
        is_used
    }

    /// The units that the row is for: each, one layer, the experts of one, or (where it is for none) any one.
    fn units<'a>(&self, sizes: &'a Sizes) -> Vec<&'a UnitSizes> {
        let speaks_of = |symbol: &str| self.bytes.split('·').any(|factor| factor == symbol);
        if speaks_of("unit") || speaks_of("partial") {
            sizes.units.iter().collect()
        } else if speaks_of("layer") {
            let layer = sizes.units.iter().find(|unit| unit.is_layer);
            vec![layer.expect("a model has a layer")]
        } else if speaks_of("experts") {
            sizes
                .units
                .iter()
                .find(|unit| unit.is_experts)
                .into_iter()
                .collect()
        } else {
            sizes.units[..1].iter().collect()
        }
    }

    fn collective(&self, sequence_parallel: bool) -> Option<&str> {
        match (self.operation.as_str(), sequence_parallel) {
            ("reduce_tokens", false) => Some("all_reduce"),
            ("reduce_tokens", true) => Some("reduce_scatter"),
            ("gather_tokens", false) => None,
            ("gather_tokens", true) | ("join_shares", false) => Some("all_gather"),
            ("join_shares", true) => None,
            (operation, _) => Some(operation),
        }
    }

    /// What one would look for in the file.
    pub fn calls(&self) -> &'static [&'static str] {
        match self.operation.as_str() {
            "reduce_tokens" => &["tp.reduce_tokens(", "tp.start_reduce_tokens("],
            "gather_tokens" => &["tp.gather_tokens("],
            "all_reduce" => &[".all_reduce(", "tp.sum_over_row("],
            "reduce_scatter" => &[".reduce_scatter_into("],
            "all_gather" => &[
                ".all_gather_into(",
                "all_gather_numbers(",
                "tp.gather_stats(",
                "peers.gather_counts(",
            ],
            "all_to_all" => &["peers.exchange(", "peers.start_exchange("],
            "join_shares" => &[".start_join_shares("],
            other => panic!("{other} is no operation"),
        }
    }
}

/// Factors with `·` between them: a number, a symbol, or a difference in parentheses.
fn product(text: &str, value: &dyn Fn(&str) -> usize) -> usize {
    let factor = |text: &str| {
        let text = text.trim_matches(['(', ')']);
        match text.split_once('-') {
            Some((from, less)) => value(from) - value(less),
            None => value(text),
        }
    };
    text.split('·').map(factor).product()
}
