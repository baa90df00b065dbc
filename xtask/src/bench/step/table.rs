//! The table of one configuration.

use super::contender::Contender;
use super::summary::Summary;

/// One line per contender. Ratios are to the first, so a peer's says how many times faster ours is.
pub fn draw(summaries: &[Summary]) -> String {
    let mut text = format!(
        "{:<22} {:>9} {:>9} {:>10} {:>10} {:>7} {:>8} {:>8} {:>8}\n",
        "contender",
        "step, s",
        "tokens/s",
        "peak, MB",
        "cpu s/step",
        "ratio",
        "floor, s",
        "x floor",
        "spread"
    );
    let reference = summaries.first().and_then(Summary::step_time_s);
    for summary in summaries {
        let name = summary.contender.name();
        let Some(step_time_s) = summary.step_time_s() else {
            text += &format!("{name:<22} failed\n");
            continue;
        };
        let floor_s = summary.median(|measurement| measurement.floor_s);
        text += &format!(
            "{name:<22} {step_time_s:>9.3} {:>9} {:>10} {:>10} {:>7} {:>8} {:>8} {:>8}\n",
            shown(
                summary.median(|measurement| Some(measurement.tokens_per_s)),
                0
            ),
            shown(summary.peak_memory_mb(), 0),
            shown(summary.median(|measurement| measurement.cpu_s_per_step), 3),
            shown(reference.map(|reference| step_time_s / reference), 2),
            shown(floor_s, 3),
            shown(floor_s.map(|floor_s| step_time_s / floor_s), 2),
            shown(summary.spread(), 2),
        );
    }
    text + &losses(summaries)
}

/// The first losses show whether the contenders did the same work. Ours draws its own random weights and tokens, so that it
/// agrees with the peers about as well as two seeds do; the peers share theirs.
fn losses(summaries: &[Summary]) -> String {
    let mut text = String::new();
    for summary in summaries {
        if let Some(last) = summary.measurements.last() {
            text += &format!(
                "{:<22} loss {:.4} to {:.4}\n",
                summary.contender.name(),
                last.loss_first,
                last.loss_last
            );
        }
    }
    let first = |ours: bool| {
        let side = summaries
            .iter()
            .filter(move |summary| matches!(summary.contender, Contender::Ours(_)) == ours);
        side.filter_map(|summary| summary.measurements.first())
            .map(|measurement| measurement.loss_first)
    };
    for ours in [true, false] {
        let (low, high) = first(ours).fold((f64::INFINITY, 0.0f64), |(low, high), loss| {
            (low.min(loss), high.max(loss))
        });
        if high - low > LOSS_TOLERANCE {
            text += &format!(
                "careful: first losses differ by {:.3} where the work should be the same\n",
                high - low
            );
        }
    }
    text
}

/// What bf16 and another order of additions explain, many times over.
const LOSS_TOLERANCE: f64 = 0.05;

fn shown(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::super::contender::{Peer, Variant};
    use super::super::summary::tests::summary_of;
    use super::*;

    #[test]
    fn ratios_are_to_the_first_and_to_the_floor() {
        let mut failed = Summary::new(Contender::Peer(Peer::ALL[1]));
        failed.error = Some("no torch".to_owned());
        let text = draw(&[
            summary_of(Contender::Ours(Variant::Fsdp), &[0.5], Some(0.4)),
            summary_of(Contender::Peer(Peer::ALL[0]), &[4.0], None),
            failed,
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("1.00    0.400     1.25"), "{text}");
        assert!(lines[2].contains("8.00        -        -"), "{text}");
        assert!(lines[3].contains("failed"), "{text}");
        assert!(!text.contains("careful"), "{text}");
    }

    #[test]
    fn peers_that_start_from_different_losses_are_pointed_out() {
        let mut other = summary_of(Contender::Peer(Peer::ALL[1]), &[1.0], None);
        other.measurements[0].loss_first = 11.0;
        let text = draw(&[
            summary_of(Contender::Peer(Peer::ALL[0]), &[1.0], None),
            other,
        ]);
        assert!(
            text.contains("careful: first losses differ by 1.150"),
            "{text}"
        );
    }
}
