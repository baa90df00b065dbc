//! Why the best candidate is the best: what every other choice would cost, a sentence each.

use tandem_model::Recompute;

use crate::search::Candidate;
use crate::time::StepTime;

/// One choice that a candidate makes.
type Axis = fn(&Candidate) -> String;

const AXES: [Axis; 6] = [
    |it| {
        let mesh = it.settings.mesh;
        format!("tp {} x dp {}", mesh.tp_size(), mesh.dp_size())
    },
    |it| match it.expert_parallel {
        1 => "experts cut over the row".to_owned(),
        ranks => format!("experts spread over {ranks} ranks"),
    },
    |it| match it.cut.zero_stage() {
        Some(stage) => format!("DeepSpeed, ZeRO {stage}"),
        None if it.cut.reshard_after_forward => "FSDP".to_owned(),
        None => "FSDP that keeps what it gathered".to_owned(),
    },
    |it| format!("recompute {}", recompute_name(it.settings.recompute)),
    |it| match it.settings.sequence_parallel {
        true => "with sequence parallelism".to_owned(),
        false => "without sequence parallelism".to_owned(),
    },
    |it| format!("micro-batches of {}", it.settings.batch_size),
];

/// Of each axis, so many of the other values are told, the best first.
const MOST_OTHERS: usize = 4;

/// The flag's word for it.
pub fn recompute_name(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Light => "light",
        Recompute::Full => "full",
    }
}

/// For each axis, what its other values cost: `candidates` as a search gives them. Empty where nothing fits.
pub fn reasons(candidates: &[Candidate], memory_bytes: f64) -> Vec<String> {
    let Some(best) = candidates.first().filter(|it| it.fits) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for axis in AXES {
        let mut seen = vec![axis(best)];
        for other in candidates {
            let value = axis(other);
            if seen.contains(&value) || seen.len() > MOST_OTHERS {
                continue;
            }
            // The candidates are sorted: this is the best with that value.
            lines.push(format!("{value} {}", difference(best, other, memory_bytes)));
            seen.push(value);
        }
    }
    lines
}

/// One part of a step's time.
type Seconds = fn(&StepTime) -> f64;

/// What `other`, the best of its kind, has more of than `best`.
fn difference(best: &Candidate, other: &Candidate, memory_bytes: f64) -> String {
    if !other.fits {
        return format!(
            "does not fit: {:.1} GB at least, of {:.1}",
            other.memory.total() as f64 / 1e9,
            memory_bytes / 1e9
        );
    }
    let (a, b) = (&best.time, &other.time);
    let times = b.total_s() / a.total_s();
    if times < 1.005 {
        let more = other.memory.total() as f64 / best.memory.total() as f64;
        return format!("is as fast, with {more:.2} times the memory");
    }
    let parts: [(&str, Seconds); 6] = [
        ("products", |it| it.products_s),
        ("attention", |it| it.attention_s),
        ("memory-bound work", |it| it.memory_bound_s),
        ("what the row says", |it| it.tp.exposed_s),
        ("what the column says", |it| it.dp.exposed_s),
        ("rows on their way to experts and back", |it| {
            it.ep.exposed_s
        }),
    ];
    let more = parts.map(|(name, of)| (name, of(b) - of(a)));
    let largest = more.into_iter().max_by(|x, y| x.1.total_cmp(&y.1));
    let because = largest.map_or(String::new(), |(name, seconds)| {
        format!(": {} more for {name}", duration(seconds))
    });
    format!("takes {times:.2} times as long{because}")
}

/// Seconds for people.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}
