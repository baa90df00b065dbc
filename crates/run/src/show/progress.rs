//! How far a run is, as one line of text: a function of the numbers and of the width of whatever shows it.

use std::time::Duration;

/// What is known after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProgressLine {
    /// Done steps.
    pub step: u64,
    /// The last of the run.
    pub last_step: u64,
    /// The pass over the data, counted from 1.
    pub epoch: u64,
    /// Passes in all; none where they have no limit.
    pub epochs: Option<u64>,
    /// Mean cross entropy.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Of all workers.
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation, as a fraction.
    pub mfu: f64,
    /// Seconds of the step.
    pub step_time_s: f64,
    /// How long the rest will take.
    pub left: Duration,
}

/// Between the parts of a line.
const GAP: &str = "  ";
/// Columns of the bar without its brackets.
const SHORTEST_BAR: usize = 8;
const LONGEST_BAR: usize = 40;

/// A part of the line. Where there is no room for all, the ones with a small number stay.
struct Part {
    text: String,
    rank: u8,
}

impl ProgressLine {
    /// What comes before the bar, and what after it.
    fn parts(&self) -> (Vec<Part>, Vec<Part>) {
        let part = |rank, text: String| Part { text, rank };
        let of_all = self.epochs.map_or(String::new(), |all| format!("/{all}"));
        let before = vec![
            part(0, format!("step {}/{}", self.step, self.last_step)),
            part(3, format!("epoch {}{of_all}", self.epoch)),
        ];
        let mut after = vec![
            part(1, format!("loss {:.4}", self.loss)),
            part(6, format!("lr {:.2e}", self.lr)),
            part(7, format!("grad norm {:.3}", self.grad_norm)),
            part(4, format!("{} tokens/s", count(self.tokens_per_s))),
        ];
        if self.mfu.is_finite() {
            after.push(part(5, format!("MFU {:.0}%", 100.0 * self.mfu)));
        }
        after.push(part(8, format!("{:.3} s/step", self.step_time_s)));
        if self.step < self.last_step {
            after.push(part(2, format!("{} left", short(self.left))));
        }
        (before, after)
    }

    /// A line without a bar, of at most `width` columns if that is possible; of any width without one.
    pub fn line(&self, width: Option<usize>) -> String {
        let (before, after) = self.parts();
        let parts: Vec<Part> = before.into_iter().chain(after).collect();
        let limit = fitting(&parts.iter().collect::<Vec<_>>(), width, 0);
        joined(&parts, limit)
    }

    /// A line with a bar, of at most `width` columns if that is possible. The bar goes first where there is too little room.
    pub fn bar(&self, width: usize) -> String {
        let (before, after) = self.parts();
        let all: Vec<&Part> = before.iter().chain(&after).collect();
        let reserve = GAP.len() + 2 + SHORTEST_BAR;
        let has_bar = length(&all, 1) + reserve <= width;
        let reserve = if has_bar { reserve } else { 0 };
        let limit = fitting(&all, Some(width), reserve);
        let (before, after) = (joined(&before, limit), joined(&after, limit));
        let mut parts = vec![before];
        if has_bar {
            let room = width - length(&all, limit) - GAP.len() - 2;
            parts.push(self.drawn(room.min(LONGEST_BAR)));
        }
        if !after.is_empty() {
            parts.push(after);
        }
        parts.join(GAP)
    }

    fn drawn(&self, columns: usize) -> String {
        let part = self.step as f64 / self.last_step.max(1) as f64;
        let full = ((part * columns as f64) as usize).min(columns);
        let (head, full) = match full < columns && full > 0 {
            true => (">", full - 1),
            false => ("", full),
        };
        let empty = columns - full - head.len();
        format!("[{}{head}{}]", "=".repeat(full), " ".repeat(empty))
    }
}

/// The largest rank of parts that fit into `width` beside `reserve` columns; at least the most important ones.
fn fitting(parts: &[&Part], width: Option<usize>, reserve: usize) -> u8 {
    let Some(width) = width else {
        return u8::MAX;
    };
    let mut limit = 0;
    for rank in 1..=8 {
        if length(parts, rank) + reserve > width {
            break;
        }
        limit = rank;
    }
    limit
}

/// Columns of the parts up to a rank.
fn length(parts: &[&Part], limit: u8) -> usize {
    let shown = parts.iter().filter(|part| part.rank <= limit);
    let columns: usize = shown.map(|part| part.text.len() + GAP.len()).sum();
    columns.saturating_sub(GAP.len())
}

fn joined(parts: &[Part], limit: u8) -> String {
    let shown = parts.iter().filter(|part| part.rank <= limit);
    let texts: Vec<&str> = shown.map(|part| part.text.as_str()).collect();
    texts.join(GAP)
}

/// `950`, `12.3k`, `1.2M`.
pub fn count(number: f64) -> String {
    match number {
        _ if number < 9_999.5 => format!("{number:.0}"),
        _ if number < 999_950.0 => format!("{:.1}k", number / 1e3),
        _ => format!("{:.1}M", number / 1e6),
    }
}

/// `42s`, `3m 20s`, `2h 05m`, `3d 4h`.
pub fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: ProgressLine = ProgressLine {
        step: 120,
        last_step: 300,
        epoch: 1,
        epochs: Some(3),
        loss: 2.34567,
        lr: 1e-4,
        grad_norm: 1.2345,
        tokens_per_s: 12_345.6,
        mfu: 0.41,
        step_time_s: 0.166,
        left: Duration::from_secs(205),
    };

    #[test]
    fn the_bar_says_what_matters_at_every_width() {
        for (width, expected) in [
            (20, "step 120/300"),
            (40, "step 120/300  [===>       ]  loss 2.3457"),
            (
                60,
                "step 120/300  [======>           ]  loss 2.3457  3m 25s left",
            ),
            (
                80,
                "step 120/300  epoch 1/3  [==>      ]  loss 2.3457  12.3k tokens/s  3m 25s left",
            ),
            (
                120,
                "step 120/300  epoch 1/3  [==>       ]  loss 2.3457  lr 1.00e-4  grad norm 1.234  12.3k tokens/s  MFU 41%  3m 25s left",
            ),
        ] {
            let bar = AT.bar(width);
            println!("{bar}");
            assert!(bar.len() <= width, "{} in {width}: {bar}", bar.len());
            let squeezed = |text: &str| text.replace(['=', ' ', '>'], "");
            assert_eq!(squeezed(&bar), squeezed(expected), "{width}");
        }
        // As long as there is a bar, it fills the line.
        for width in 40..=110 {
            assert_eq!(AT.bar(width).len(), width, "{}", AT.bar(width));
        }
        assert!(AT.bar(300).contains(&format!("[{}", "=".repeat(15))));
    }

    #[test]
    fn the_bar_is_as_full_as_the_run_is_done() {
        let at = |step| ProgressLine { step, ..AT }.drawn(10);
        assert_eq!(at(0), "[          ]");
        assert_eq!(at(30), "[>         ]");
        assert_eq!(at(150), "[====>     ]");
        assert_eq!(at(300), "[==========]");
        assert_eq!(at(900), "[==========]");
        let none = ProgressLine {
            last_step: 0,
            step: 0,
            ..AT
        };
        assert_eq!(none.drawn(3), "[   ]");
    }

    #[test]
    fn a_line_has_all_or_what_fits() {
        assert_eq!(
            AT.line(None),
            "step 120/300  epoch 1/3  loss 2.3457  lr 1.00e-4  grad norm 1.234  12.3k tokens/s  MFU 41%  0.166 s/step  3m 25s left"
        );
        for (width, expected) in [
            (40, "step 120/300  loss 2.3457  3m 25s left"),
            (
                80,
                "step 120/300  epoch 1/3  loss 2.3457  12.3k tokens/s  MFU 41%  3m 25s left",
            ),
            (
                120,
                "step 120/300  epoch 1/3  loss 2.3457  lr 1.00e-4  grad norm 1.234  12.3k tokens/s  MFU 41%  0.166 s/step  3m 25s left",
            ),
        ] {
            assert_eq!(AT.line(Some(width)), expected);
            assert!(expected.len() <= width);
        }
        let last = ProgressLine {
            step: 300,
            epochs: None,
            mfu: f64::NAN,
            ..AT
        };
        assert_eq!(
            last.line(Some(80)),
            "step 300/300  epoch 1  loss 2.3457  lr 1.00e-4  grad norm 1.234  12.3k tokens/s"
        );
    }

    #[test]
    fn numbers_and_times_are_short() {
        for (number, text) in [
            (0.4, "0"),
            (9_999.0, "9999"),
            (12_345.0, "12.3k"),
            (2.5e6, "2.5M"),
        ] {
            assert_eq!(count(number), text);
        }
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (200, "3m 20s"),
            (7_500, "2h 05m"),
            (273_600, "3d 4h"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}
