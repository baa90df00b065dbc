//! What a contender printed, turn by turn, and the numbers that stand for it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::contender::Contender;

/// One turn of one contender.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Median over the turn's steps.
    pub step_time_s: f64,
    pub tokens_per_s: f64,
    /// Of every rank, in MB.
    pub peak_memory_mb: Vec<f64>,
    /// Processor seconds of all ranks in a step, which other work on the machine moves less than the time; not everyone tells.
    pub cpu_s_per_step: Option<f64>,
    /// The shortest that a step can take on this machine, by the contender's own measurement; only ours tells.
    pub floor_s: Option<f64>,
    pub loss_first: f64,
    pub loss_last: f64,
    /// All that was printed, to be stored.
    pub raw: Value,
}

impl Measurement {
    /// The last line of `stdout` that is a JSON object: libraries may print before it.
    ///
    /// # Errors
    /// If there is none, or a number is missing.
    pub fn parse(stdout: &str) -> Result<Self> {
        let mut objects = stdout
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(Value::is_object);
        let raw: Value = objects.next_back().context("it printed no JSON object")?;
        let optional = |key: &str| raw.get(key).and_then(Value::as_f64);
        let number = |key: &str| {
            optional(key).with_context(|| format!("its JSON lacks the number `{key}`: {raw}"))
        };
        let memory = raw.get("peak_memory_mb").and_then(Value::as_array);
        let memory =
            memory.with_context(|| format!("its JSON lacks the list `peak_memory_mb`: {raw}"))?;
        Ok(Self {
            step_time_s: number("step_time_s")?,
            tokens_per_s: number("tokens_per_s")?,
            peak_memory_mb: memory.iter().filter_map(Value::as_f64).collect(),
            cpu_s_per_step: optional("cpu_s_per_step"),
            floor_s: optional("floor_s").or_else(|| optional("gemm_floor_s")),
            loss_first: number("loss_first")?,
            loss_last: number("loss_last")?,
            raw: raw.clone(),
        })
    }

    /// The largest of any rank, in MB.
    pub fn largest_peak_mb(&self) -> Option<f64> {
        self.peak_memory_mb.iter().copied().max_by(f64::total_cmp)
    }
}

/// All turns of one contender.
#[derive(Debug)]
pub struct Summary {
    pub contender: Contender,
    pub measurements: Vec<Measurement>,
    /// Why there are no more measurements.
    pub error: Option<String>,
}

impl Summary {
    pub fn new(contender: Contender) -> Self {
        Self {
            contender,
            measurements: Vec::new(),
            error: None,
        }
    }

    pub fn failed(&self) -> bool {
        self.error.is_some()
    }

    /// The median over turns of something that a turn may have.
    pub fn median(&self, of: impl Fn(&Measurement) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.measurements.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = values[(values.len() - 1) / 2];
        Some((lower + upper) / 2.0)
    }

    pub fn step_time_s(&self) -> Option<f64> {
        self.median(|measurement| Some(measurement.step_time_s))
    }

    /// The largest of any rank in any turn.
    pub fn peak_memory_mb(&self) -> Option<f64> {
        let of_turns = self.measurements.iter();
        of_turns
            .filter_map(Measurement::largest_peak_mb)
            .max_by(f64::total_cmp)
    }

    /// Slowest turn over fastest: how noisy the machine was.
    pub fn spread(&self) -> Option<f64> {
        let times = || {
            self.measurements
                .iter()
                .map(|measurement| measurement.step_time_s)
        };
        Some(times().max_by(f64::total_cmp)? / times().min_by(f64::total_cmp)?)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "contender": self.contender.name(),
            "step_time_s": self.step_time_s(),
            "tokens_per_s": self.median(|measurement| Some(measurement.tokens_per_s)),
            "peak_memory_mb": self.peak_memory_mb(),
            "cpu_s_per_step": self.median(|measurement| measurement.cpu_s_per_step),
            "floor_s": self.median(|measurement| measurement.floor_s),
            "spread": self.spread(),
            "error": self.error,
            "turns": self.measurements.iter().map(|measurement| &measurement.raw).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::contender::Variant;
    use super::*;

    pub fn summary_of(contender: Contender, step_times_s: &[f64], floor_s: Option<f64>) -> Summary {
        let mut summary = Summary::new(contender);
        for seconds in step_times_s {
            let printed = json!({
                "step_time_s": seconds, "tokens_per_s": 512.0 / seconds, "peak_memory_mb": [900.0, 1000.0 * seconds],
                "gemm_floor_s": floor_s, "loss_first": 12.15, "loss_last": 12.0,
            });
            summary
                .measurements
                .push(Measurement::parse(&printed.to_string()).unwrap());
        }
        summary
    }

    #[test]
    fn the_last_object_counts_and_what_is_missing_is_named() {
        let line = r#"{"step_time_s": 2, "tokens_per_s": 256.0, "peak_memory_mb": [1, 2], "loss_first": 12, "loss_last": 11}"#;
        let found = Measurement::parse(&format!("warming up\n{{}}\n{line}\n")).unwrap();
        assert_eq!(
            (found.step_time_s, found.peak_memory_mb),
            (2.0, vec![1.0, 2.0])
        );
        let error = Measurement::parse("all well").unwrap_err().to_string();
        assert!(error.contains("no JSON"), "{error}");
        let error = Measurement::parse(&line.replace("loss_last", "loss"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`loss_last`"), "{error}");
    }

    #[test]
    fn turns_are_joined_by_their_median() {
        let ours = Contender::Ours(Variant::Fsdp);
        let odd = summary_of(ours, &[1.0, 9.0, 2.0], Some(0.5));
        assert_eq!(odd.step_time_s(), Some(2.0));
        assert_eq!(odd.spread(), Some(9.0));
        assert_eq!(odd.peak_memory_mb(), Some(9000.0));
        assert_eq!(odd.median(|measurement| measurement.floor_s), Some(0.5));
        assert_eq!(summary_of(ours, &[1.0, 2.0], None).step_time_s(), Some(1.5));
        assert_eq!(Summary::new(ours).step_time_s(), None);
    }
}
