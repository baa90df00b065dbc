//! What came out of a run, in five lines: the loss, the best checkpoint, and what to type next.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use tandem_checkpoint::{CheckpointEntry, Retention, ScoreOrder};

use crate::spec::RunSpec;
use crate::storage::Storage;

/// What a run without a better measure calls its best checkpoint by, where it has evaluated.
const EVAL_LOSS: &str = "eval_loss";

/// What the lines are made of.
#[derive(Debug, Default)]
struct Outcome<'a> {
    /// Step and loss of the last step.
    last: Option<(u64, f64)>,
    /// Of the best one.
    best: Option<(u64, f64)>,
    /// The same for evaluations.
    last_eval: Option<(u64, f64)>,
    best_eval: Option<(u64, f64)>,
    checkpoint: Option<Chosen>,
    /// The run's folder or URL.
    location: &'a str,
    /// The folder of its metrics.
    run_dir: &'a str,
    name: &'a str,
    entry_point: &'a str,
    /// What gives a run that is finished more to do; nothing for one that was stopped.
    more: Option<String>,
    /// The folder of this program, where a shell would not find it.
    programs: Option<PathBuf>,
}

/// A checkpoint, and why this one.
#[derive(Debug)]
struct Chosen {
    name: String,
    step: u64,
    why: String,
}

/// The lines of a run that has ended well; `is_finished` unless it was stopped.
pub fn lines(spec: &RunSpec, storage: &Storage, name: &str, is_finished: bool) -> Vec<String> {
    let retention = spec.checkpoints.kept.retention();
    let checkpoint = match storage.run(retention.clone()) {
        Ok(run) => best(run.checkpoints(), &retention),
        // The run has ended well all the same.
        Err(_) => None,
    };
    let training = &spec.compute.training;
    let run_dir = storage.run_dir.display().to_string();
    let mut outcome = Outcome {
        checkpoint,
        location: &storage.location,
        run_dir: &run_dir,
        name,
        entry_point: spec.compute.engine.strategy.entry_point(),
        programs: programs(),
        ..Outcome::default()
    };
    let metrics = storage.run_dir.join("metrics.jsonl");
    // Opening a pipe would wait for ever.
    if metrics.is_file()
        && let Ok(file) = File::open(metrics)
    {
        outcome.read(BufReader::new(file));
    }
    if is_finished {
        let steps = outcome.last.map_or(0, |(step, _)| step);
        outcome.more = Some(match training.max_steps {
            limit if limit > 0 && steps >= limit => format!("--max_steps {}", limit * 2),
            _ => format!("--num_epochs {}", training.num_epochs + 1),
        });
    }
    outcome.lines()
}

impl Outcome<'_> {
    /// Takes the losses from `metrics.jsonl`; what is no line of it counts for nothing.
    fn read(&mut self, metrics: impl BufRead) {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
            loss: Option<f64>,
            eval_loss: Option<f64>,
        }
        for line in metrics.split(b'\n').map_while(Result::ok) {
            let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                continue;
            };
            let better = |best: Option<(u64, f64)>, value: f64| match best {
                Some((_, before)) if before <= value => best,
                _ => Some((line.step, value)),
            };
            if let Some(loss) = line.loss {
                self.last = Some((line.step, loss));
                self.best = better(self.best, loss);
            }
            if let Some(loss) = line.eval_loss {
                self.last_eval = Some((line.step, loss));
                self.best_eval = better(self.best_eval, loss);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("result    {}", self.result())];
        if let Some(Chosen { name, step, why }) = &self.checkpoint {
            let place = format!("{}/{name}", self.location.trim_end_matches('/'));
            lines.push(format!("best      {place} (step {step}, {why})"));
            let export = self.command("tandem", "export");
            let output = quoted(&format!("{}-model", self.name));
            let place = quoted(&place);
            lines.push(format!(
                "export    {export} --checkpoint {place} --output {output}"
            ));
        }
        let folder = quoted(self.run_dir);
        // A URL is no place to continue from by itself: its storage path is.
        let run = match self.location.contains("://") {
            false => folder.clone(),
            true => {
                let storage = self.location.trim_end_matches(self.name);
                let storage = quoted(storage.trim_end_matches('/'));
                format!("{} --storage_path {storage}", quoted(self.name))
            }
        };
        let more = self
            .more
            .as_ref()
            .map_or(String::new(), |flag| format!(" {flag}"));
        let train = self.program(self.entry_point);
        lines.push(format!("continue  {train} --resume_from {run}{more}"));
        let report = self.command("tandem", "report");
        let page = quoted(&format!("{}.html", self.name));
        lines.push(format!("report    {report} {folder} -o {page}"));
        lines
    }

    fn result(&self) -> String {
        let losses = |last: Option<(u64, f64)>, best: Option<(u64, f64)>| {
            let (last, best) = last.zip(best)?;
            Some(match last == best {
                true => format!("{:.4} at the end, its best (step {})", last.1, last.0),
                false => format!(
                    "{:.4} at the end (step {}), {:.4} at its best (step {})",
                    last.1, last.0, best.1, best.0
                ),
            })
        };
        let training = losses(self.last, self.best).map(|text| format!("loss {text}"));
        let evaluated =
            losses(self.last_eval, self.best_eval).map(|text| format!("eval loss {text}"));
        let all: Vec<String> = training.into_iter().chain(evaluated).collect();
        match all.is_empty() {
            true => "no step was done".to_owned(),
            false => all.join("; "),
        }
    }

    fn command(&self, program: &str, subcommand: &str) -> String {
        format!("{} {subcommand}", self.program(program))
    }

    /// A program as a shell finds it.
    fn program(&self, name: &str) -> String {
        match &self.programs {
            Some(folder) => quoted(&folder.join(name).display().to_string()),
            None => name.to_owned(),
        }
    }
}

/// The best checkpoint by retention's score; else by its evaluation; else the newest.
fn best(checkpoints: &[CheckpointEntry], retention: &Retention) -> Option<Chosen> {
    let mut readable = checkpoints.iter().filter(|entry| entry.problem.is_none());
    let (attribute, order) = match &retention.score {
        Some(score) => (score.attribute.as_str(), score.order),
        None => (EVAL_LOSS, ScoreOrder::Min),
    };
    let scored = readable.clone().filter_map(|entry| {
        let value = entry.metrics.get(attribute).and_then(Value::as_f64)?;
        (!value.is_nan()).then_some((entry, value))
    });
    let best = scored.reduce(|best, next| {
        let is_better = match order {
            ScoreOrder::Max => next.1 > best.1,
            ScoreOrder::Min => next.1 < best.1,
        };
        if is_better { next } else { best }
    });
    let chosen = |entry: &CheckpointEntry, why: String| Chosen {
        name: entry.name.to_string(),
        step: entry.global_step,
        why,
    };
    match best {
        Some((entry, value)) => Some(chosen(entry, format!("{attribute} {value:.4}"))),
        None => readable
            .next_back()
            .map(|entry| chosen(entry, "the newest".to_owned())),
    }
}

/// The folder of this program, unless a shell finds this one by its name.
fn programs() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path)
        .map(|folder| folder.join("tandem"))
        .find(|program| program.is_file())
        .and_then(|program| program.canonicalize().ok());
    let is_found = first.is_some() && first == folder.join("tandem").canonicalize().ok();
    (!is_found).then_some(folder)
}

/// A word as a shell must get it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tandem_checkpoint::{CheckpointName, Score};

    fn entry(step: u64, metrics: &[(&str, f64)]) -> CheckpointEntry {
        let name = format!("checkpoint_2026-01-01_00-00-00.{step:06}");
        let metrics = metrics
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()));
        CheckpointEntry {
            name: CheckpointName::new(name).unwrap(),
            created_unix_us: step as i64,
            global_step: step,
            metrics: metrics.collect(),
            problem: None,
        }
    }

    #[test]
    fn the_best_is_what_retention_or_the_evaluation_says_or_the_newest() {
        let by = |attribute: &str, order| Retention {
            num_to_keep: None,
            score: Some(Score {
                attribute: attribute.to_owned(),
                order,
            }),
        };
        let mut entries = vec![
            entry(1, &[("loss", 3.0), ("eval_loss", 2.5)]),
            entry(2, &[("loss", 1.0), ("eval_loss", 2.0)]),
            entry(3, &[("loss", 2.0), ("eval_loss", f64::NAN)]),
        ];
        let step = |entries: &[CheckpointEntry], retention: &Retention| {
            let chosen = best(entries, retention).unwrap();
            (chosen.step, chosen.why)
        };
        let none = Retention::default();
        assert_eq!(step(&entries, &none), (2, "eval_loss 2.0000".into()));
        assert_eq!(step(&entries, &by("loss", ScoreOrder::Max)).0, 1);
        assert_eq!(
            step(&entries, &by("other", ScoreOrder::Max)),
            (3, "the newest".into())
        );
        entries[1].problem = Some("damaged".into());
        assert_eq!(step(&entries, &none).0, 1);
        for entry in &mut entries {
            entry.metrics = BTreeMap::new();
        }
        assert_eq!(step(&entries, &none), (3, "the newest".into()));
        assert!(best(&[], &none).is_none());
    }

    #[test]
    fn five_lines_say_what_came_out_and_what_to_type() {
        let mut outcome = Outcome {
            checkpoint: best(&[entry(2, &[])], &Retention::default()),
            location: "/runs/it's mine",
            run_dir: "/runs/it's mine",
            name: "it's mine",
            entry_point: "train_fsdp",
            more: Some("--num_epochs 2".into()),
            ..Outcome::default()
        };
        let metrics = "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":2.0}\nbroken\n{\"step\":2,\"eval_loss\":2.25}\n\
                       {\"step\":3,\"loss\":2.125}\n{\"step\":4,\"lo";
        outcome.read(metrics.as_bytes());
        let place = "/runs/it's mine/checkpoint_2026-01-01_00-00-00.000002";
        let in_quotes = place.replace('\'', r"'\''");
        assert_eq!(
            outcome.lines(),
            [
                "result    loss 2.1250 at the end (step 3), 2.0000 at its best (step 2); eval loss 2.2500 at the end, its best (step 2)"
                    .to_owned(),
                format!("best      {place} (step 2, the newest)"),
                format!("export    tandem export --checkpoint '{in_quotes}' --output 'it'\\''s mine-model'"),
                r"continue  train_fsdp --resume_from '/runs/it'\''s mine' --num_epochs 2".to_owned(),
                r"report    tandem report '/runs/it'\''s mine' -o 'it'\''s mine.html'".to_owned(),
            ]
        );
        let remote = Outcome {
            location: "s3://bucket/runs/first",
            run_dir: "runs/first",
            name: "first",
            entry_point: "train_deepspeed",
            programs: Some("/opt/bin".into()),
            ..Outcome::default()
        };
        assert_eq!(
            remote.lines(),
            [
                "result    no step was done",
                "continue  /opt/bin/train_deepspeed --resume_from first --storage_path s3://bucket/runs",
                "report    /opt/bin/tandem report runs/first -o first.html",
            ]
        );
    }
}
