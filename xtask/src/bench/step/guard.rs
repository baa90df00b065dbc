//! Limits that a change must not break: how far a step may be from the floor of the same run, and how much memory it may take.
//!
//! Both sides of a ratio are measured on the same machine in the same minute, so a limit holds on a slow machine too; times alone
//! would not. On a busy one the ratio of processor times is the one to go by: a step waits for its turn more often than a product
//! of a millisecond.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::configuration::{self, Configuration};
use super::summary::{Measurement, Summary};
use crate::workspace::Workspace;

/// Where the limits are kept.
const FILE: &str = "benches/limits.json";

/// A number of one turn, where the turn has it.
type Measure = fn(&Measurement) -> Option<f64>;

/// What can be limited: its name in the file, and how a turn is measured by it.
const MEASURES: [(&str, Measure); 4] = [
    ("x_floor", |turn| Some(turn.step_time_s / turn.floor_s?)),
    ("processor_x_floor", |turn| {
        turn.raw.get("processor_floor_ratio")?.as_f64()
    }),
    ("peak_memory_mb", Measurement::largest_peak_mb),
    ("page_faults_per_step", |turn| {
        turn.raw.get("page_faults_per_step")?.as_f64()
    }),
];

/// The limits of some configurations.
#[derive(Debug)]
pub struct Guard(Map<String, Value>);

impl Guard {
    /// The limits of this checkout.
    ///
    /// # Errors
    /// If the file is not there, or names what does not exist.
    pub fn load(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root().join(FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not understood", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let limits: Map<String, Value> = serde_json::from_str(text)?;
        for (name, of_one) in &limits {
            ensure!(
                configuration::named(name).len() == 1,
                "there is no configuration `{name}`"
            );
            let of_one = of_one
                .as_object()
                .with_context(|| format!("the limits of `{name}` are no object"))?;
            for (measure, limit) in of_one {
                let is_known = MEASURES.iter().any(|(name, _)| name == measure);
                ensure!(is_known && limit.is_number(), "{name}: {measure}: {limit}");
            }
        }
        Ok(Self(limits))
    }

    /// What has limits.
    pub fn configurations(&self) -> Vec<Configuration> {
        self.0
            .keys()
            .flat_map(|name| configuration::named(name))
            .collect()
    }

    /// Prints every limit beside the median of what was measured.
    ///
    /// # Errors
    /// If a limit is exceeded, or nothing can be held against it.
    pub fn check(&self, results: &[(Configuration, Vec<Summary>)]) -> Result<()> {
        println!();
        let mut broken = 0;
        for (configuration, summaries) in results {
            let limits = self.0.get(configuration.name).and_then(Value::as_object);
            for summary in summaries {
                for (measure, limit) in limits.into_iter().flatten() {
                    let of = MEASURES.iter().find(|(name, _)| name == measure);
                    let (Some((_, of)), Some(limit)) = (of, limit.as_f64()) else {
                        continue;
                    };
                    let (name, contender) = (configuration.name, summary.contender.name());
                    let found = summary.median(of).with_context(|| {
                        format!("{name}, {contender}: nothing was measured of {measure}")
                    })?;
                    let is_kept = found <= limit;
                    broken += usize::from(!is_kept);
                    let verdict = if is_kept { "ok" } else { "TOO MUCH" };
                    println!(
                        "{name:<14} {contender:<14} {measure:<22} {found:>9.2}  limit {limit:>8}  {verdict}"
                    );
                }
            }
        }
        if broken > 0 {
            bail!(
                "{broken} limits of {FILE} are exceeded. If the machine was quiet, the last changes cost more than they say"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contender::{Contender, Variant};
    use super::super::summary::tests::summary_of;
    use super::*;

    #[test]
    fn the_checkouts_own_limits_are_understood() {
        let guard = Guard::load(&Workspace::of_this_checkout()).unwrap();
        assert!(!guard.configurations().is_empty());
    }

    #[test]
    fn what_exceeds_a_limit_is_an_error() {
        let guard = Guard::parse(r#"{"tp2": {"x_floor": 1.2, "peak_memory_mb": 2000}}"#).unwrap();
        let results = |times: &[f64]| {
            let summary = summary_of(Contender::Ours(Variant::Fsdp), times, Some(1.0));
            [(guard.configurations().remove(0), vec![summary])]
        };
        // One slow turn of three is the machine.
        guard.check(&results(&[1.1, 1.9, 1.1])).unwrap();
        let error = guard.check(&results(&[1.3, 1.1, 1.4])).unwrap_err();
        assert!(error.to_string().starts_with("1 limits"), "{error}");
        let nothing = guard.check(&results(&[])).unwrap_err();
        assert!(nothing.to_string().contains("nothing was measured"));
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        for text in [
            r#"{"lunch": {"x_floor": 1}}"#,
            r#"{"tp2": {"taste": 1}}"#,
            r#"{"tp2": {"x_floor": "low"}}"#,
            r#"{"tp2": 3}"#,
        ] {
            assert!(Guard::parse(text).is_err(), "{text}");
        }
    }
}
