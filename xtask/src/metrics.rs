//! A run's `metrics.jsonl`: one JSON object per logged step.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What is read of one logged step.
#[derive(Debug)]
struct Step {
    step: u64,
    loss: f64,
    tokens_per_s: f64,
    /// One number per rank.
    peak_memory_mb: Vec<f64>,
}

/// The logged steps of one run, in order; at least one.
#[derive(Debug)]
pub struct Metrics {
    steps: Vec<Step>,
}

impl Metrics {
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        Self::parse(&text).with_context(|| format!("{shown} is not as expected"))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let steps: Vec<Step> = text
            .lines()
            .zip(1..)
            .map(|(line, number)| parse_step(line).with_context(|| format!("line {number}")))
            .collect::<Result<_>>()?;
        ensure!(!steps.is_empty(), "it has no step");
        Ok(Self { steps })
    }

    /// `(step, loss)` of every logged step.
    pub fn losses(&self) -> Vec<(u64, f64)> {
        self.steps
            .iter()
            .map(|step| (step.step, step.loss))
            .collect()
    }

    pub fn first_loss(&self) -> f64 {
        self.steps[0].loss
    }

    pub fn last_loss(&self) -> f64 {
        self.steps[self.steps.len() - 1].loss
    }

    /// The median over steps, which the slow first one does not move.
    pub fn tokens_per_s(&self) -> f64 {
        let mut rates: Vec<f64> = self.steps.iter().map(|step| step.tokens_per_s).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    /// The largest of each rank.
    pub fn peak_memory_mb(&self) -> Vec<f64> {
        let mut peak: Vec<f64> = Vec::new();
        for step in &self.steps {
            peak.resize(peak.len().max(step.peak_memory_mb.len()), 0.0);
            for (peak, megabytes) in peak.iter_mut().zip(&step.peak_memory_mb) {
                *peak = peak.max(*megabytes);
            }
        }
        peak
    }

    /// The step at which the losses of two runs differ most, and by how much; infinitely if they logged other steps.
    pub fn largest_difference(&self, other: &Self) -> (u64, f64) {
        if self.steps.len() != other.steps.len() {
            return (
                self.steps.len().min(other.steps.len()) as u64 + 1,
                f64::INFINITY,
            );
        }
        self.steps
            .iter()
            .zip(&other.steps)
            .map(|(a, b)| (a.step, (a.loss - b.loss).abs()))
            .fold(
                (0, -1.0),
                |worst, this| if this.1 > worst.1 { this } else { worst },
            )
    }
}

fn parse_step(line: &str) -> Result<Step> {
    let object: Value = serde_json::from_str(line).context("it is not JSON")?;
    // A loss that is not finite has no JSON number either, so it ends here.
    let number = |name: &str| {
        object[name]
            .as_f64()
            .with_context(|| format!("{name:?} is not a number"))
    };
    let memory = object["peak_memory_mb"]
        .as_array()
        .context("\"peak_memory_mb\" is not a list")?;
    Ok(Step {
        step: object["step"]
            .as_u64()
            .context("\"step\" is not a whole number")?,
        loss: number("loss")?,
        tokens_per_s: number("tokens_per_s")?,
        peak_memory_mb: memory.iter().filter_map(Value::as_f64).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_and_the_field_that_are_wrong_are_named() {
        let good = "{\"step\":1,\"loss\":2.0,\"tokens_per_s\":3.0,\"peak_memory_mb\":[4.0]}";
        let bad = good.replace("2.0", "null");
        let error = Metrics::parse(&format!("{good}\n{bad}\n")).expect_err("no loss");
        let text = format!("{error:#}");
        assert!(
            text.contains("line 2") && text.contains("\"loss\""),
            "{text}"
        );
        assert!(Metrics::parse("").is_err(), "an empty file is no run");
    }

    #[test]
    fn steps_are_summarised() {
        let text = "\
            {\"step\":1,\"loss\":8.0,\"tokens_per_s\":10.0,\"peak_memory_mb\":[100,90]}\n\
            {\"step\":2,\"loss\":7.0,\"tokens_per_s\":30.0,\"peak_memory_mb\":[110,80]}\n\
            {\"step\":3,\"loss\":6.0,\"tokens_per_s\":20.0,\"peak_memory_mb\":[105,95]}\n";
        let metrics = Metrics::parse(text).expect("well-formed");
        assert_eq!(metrics.tokens_per_s(), 20.0);
        assert_eq!(metrics.peak_memory_mb(), [110.0, 95.0]);
        let other = Metrics::parse(&text.replace("7.0", "7.5")).expect("well-formed");
        assert_eq!(metrics.largest_difference(&other), (2, 0.5));
        assert_eq!(metrics.largest_difference(&metrics), (1, 0.0));
        let shorter = Metrics::parse(text.lines().next().expect("a line")).expect("well-formed");
        assert_eq!(metrics.largest_difference(&shorter).1, f64::INFINITY);
    }
}
