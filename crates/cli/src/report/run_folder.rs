//! What a run's folder says of it. Anything may be missing, cut off or damaged: what can be read is shown, and what cannot is
//! named.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};
use tandem_files::read_small;
use tandem_run::failure::{Failure, Outcome};

use super::columns::{Evaluations, Steps};

/// Longer lines are none of ours.
const LONGEST_LINE: u64 = 4 << 20;
/// Larger files of settings are none either.
const LARGEST_FILE: u64 = 16 << 20;
/// Lines of a file that are named one by one.
const NAMED_LINES: usize = 3;

/// All that is known of a run.
#[derive(Debug, Default, Serialize)]
pub struct RunFolder {
    pub name: String,
    pub path: String,
    /// As Ray Train calls it, where a controller has left word.
    pub state: Option<String>,
    /// Name and value, for the reader.
    pub facts: Vec<(String, String)>,
    pub flags: BTreeMap<String, Value>,
    pub steps: Steps,
    pub evaluations: Evaluations,
    pub attempts: Vec<Attempt>,
    /// Starts of training, from `events.jsonl`: all that is known of attempts where there was no controller.
    pub starts: Vec<Start>,
    pub saves: Vec<Save>,
    pub failed_saves: Vec<FailedSave>,
    pub profile: Option<Profile>,
    /// What MFU is a fraction of, and whose peak that is.
    pub peak_flops: Option<f64>,
    pub peak_of: Option<String>,
    /// When something was last heard of it, in seconds since 1970.
    pub last_time: Option<f64>,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// From the start of all workers to their end. Times are in seconds since 1970.
#[derive(Debug, Serialize)]
pub struct Attempt {
    started: Option<f64>,
    ended: Option<f64>,
    outcome: Option<String>,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Start {
    time: Option<f64>,
    step: u64,
}

#[derive(Debug, Serialize)]
pub struct Save {
    time: Option<f64>,
    step: u64,
    name: String,
    seconds: Option<f64>,
    blocked_s: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct FailedSave {
    time: Option<f64>,
    step: u64,
    problem: String,
}

/// Where a step's time went.
#[derive(Debug, Serialize)]
pub struct Profile {
    step_ms: f64,
    parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    ms: f64,
}

impl RunFolder {
    /// Reads the folder.
    ///
    /// # Errors
    /// It is none, or it is not a run's.
    pub fn read(folder: &Path) -> Outcome<Self> {
        let shown = folder.display();
        if !folder.is_dir() {
            return Err(Failure::usage(format!(
                "{shown} is no folder; give the folders of runs (--storage_path with the name of an experiment; of a run in object \
                 storage, its folder in --local_path)"
            )));
        }
        let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = absolute.file_name().unwrap_or(absolute.as_os_str());
        let mut run = Self {
            name: name.to_string_lossy().into_owned(),
            path: absolute.display().to_string(),
            ..Self::default()
        };
        let mut found = run.metrics(folder);
        found |= run.configuration(folder);
        found |= run.record(folder);
        if !found {
            return Err(Failure::usage(format!(
                "{shown} is not the folder of a run: there is no metrics.jsonl, run_config.json or run.json in it that can be read"
            )));
        }
        run.events(folder);
        run.profile(folder);
        run.evaluations.place(&run.steps);
        let heard = run.saves.iter().filter_map(|save| save.time);
        run.last_time = heard.chain(run.steps.last_time).reduce(f64::max);
        let each = run.steps.thin_out();
        if each > 1 {
            let means = format!("each point of a curve is the mean of {each} steps");
            run.facts.push(("points".to_owned(), means));
        }
        Ok(run)
    }

    /// `metrics.jsonl`: steps and evaluations. Returns whether it is there.
    fn metrics(&mut self, folder: &Path) -> bool {
        let (steps, evaluations) = (&mut self.steps, &mut self.evaluations);
        read_lines(folder, "metrics.jsonl", &mut self.problems, |line| {
            let step = line.get("step").and_then(Value::as_u64)?;
            if line.get("eval_loss").is_some() {
                evaluations.push(step, line);
            } else if line.get("loss").is_some() {
                steps.push(step, line);
            } else {
                return None;
            }
            Some(())
        })
    }

    /// `events.jsonl`: starts and saves.
    fn events(&mut self, folder: &Path) {
        let Self {
            saves,
            failed_saves,
            starts,
            peak_flops,
            peak_of,
            problems,
            ..
        } = self;
        read_lines(folder, "events.jsonl", problems, |line| {
            let time = line.get("time").and_then(Value::as_f64);
            let step = line.get("step").and_then(Value::as_u64)?;
            let number = |name| line.get(name).and_then(Value::as_f64);
            let text = |name| line.get(name).and_then(Value::as_str).map(str::to_owned);
            match line.get("event")?.as_str()? {
                "started" => {
                    *peak_flops = number("peak_flops");
                    *peak_of = text("peak_of");
                    starts.push(Start { time, step });
                }
                "saved" => saves.push(Save {
                    time,
                    step,
                    name: text("name")?,
                    seconds: number("seconds"),
                    blocked_s: number("blocked_s"),
                }),
                "save_failed" => failed_saves.push(FailedSave {
                    time,
                    step,
                    problem: text("problem")?,
                }),
                // What a newer program adds is no damage.
                _ => {}
            }
            Some(())
        });
        // A run that went back to an older checkpoint has saved some steps twice; the axis of steps wants an order.
        saves.sort_by_key(|save| save.step);
    }

    /// `run_config.json`: what was asked for.
    fn configuration(&mut self, folder: &Path) -> bool {
        let Some(config) = self.json(folder, "run_config.json") else {
            return false;
        };
        if let Some(entry_point) = config.get("entry_point").and_then(Value::as_str) {
            self.fact("entry point", entry_point);
        }
        if let Some(flags) = config.get("flags").and_then(Value::as_object) {
            let flags = flags
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()));
            self.flags = flags.collect();
        }
        true
    }

    /// `run.json`: what the controller knows.
    fn record(&mut self, folder: &Path) -> bool {
        let Some(record) = self.json(folder, "run.json") else {
            return false;
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        self.state = text(record.get("state"));
        for (name, key) in [
            ("state", "state"),
            ("why", "reason"),
            ("host", "host"),
            ("started", "started_at"),
            ("ended", "ended_at"),
        ] {
            if let Some(value) = text(record.get(key)) {
                self.fact(name, &value);
            }
        }
        if let Some(facts) = record.get("facts").and_then(Value::as_object) {
            for (name, value) in facts {
                self.fact(name, value.as_str().unwrap_or_default());
            }
        }
        let attempts = record.get("attempts").and_then(Value::as_array);
        for attempt in attempts.into_iter().flatten() {
            let time = |key| attempt.get(key).and_then(Value::as_str).and_then(seconds);
            self.attempts.push(Attempt {
                started: time("started_at"),
                ended: time("ended_at"),
                outcome: text(attempt.get("outcome")),
                reason: text(attempt.get("reason")),
            });
        }
        self.attempts.retain(|attempt| attempt.started.is_some());
        true
    }

    /// `profile/breakdown.json`.
    fn profile(&mut self, folder: &Path) {
        let Some(found) = self.json(folder, "profile/breakdown.json") else {
            return;
        };
        let parts = found.get("parts").and_then(Value::as_array);
        let parts = parts.into_iter().flatten().filter_map(|part| {
            let name = part.get("name")?.as_str()?.to_owned();
            Some(Part {
                name,
                ms: part.get("ms")?.as_f64()?,
            })
        });
        let step_ms = found.get("step_ms").and_then(Value::as_f64);
        self.profile = step_ms.map(|step_ms| Profile {
            step_ms,
            parts: parts.collect(),
        });
    }

    fn fact(&mut self, name: &str, value: &str) {
        self.facts.push((name.to_owned(), value.to_owned()));
    }

    /// An object in a small file; `None` where there is none, which is said unless it is simply not there.
    fn json(&mut self, folder: &Path, name: &str) -> Option<Map<String, Value>> {
        let bytes = match read_small(&folder.join(name), LARGEST_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.problems.push(format!("{name}: {error}"));
                return None;
            }
        };
        let problem = match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => return Some(object),
            Ok(_) => "it is not an object".to_owned(),
            Err(error) => error.to_string(),
        };
        self.problems.push(format!("{name}: {problem}"));
        None
    }
}

/// Gives every line of `name` that is an object to `take`, which returns whether it is what it should be. Others are counted,
/// and the first of them named. Returns whether the file is there.
fn read_lines(
    folder: &Path,
    name: &str,
    problems: &mut Vec<String>,
    mut take: impl FnMut(&Value) -> Option<()>,
) -> bool {
    let mut lines = match open(&folder.join(name)) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        Err(error) => {
            problems.push(format!("{name}: {error}"));
            return false;
        }
    };
    let (mut bad, mut named) = (0, Vec::new());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                problems.push(format!("{name}: line {number}: {error}"));
                break;
            }
        }
        let problem = match serde_json::from_slice::<Value>(&line) {
            Ok(value) if take(&value).is_some() => continue,
            Ok(_) => "not what such a line says".to_owned(),
            Err(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
            // A run that goes on may be in the middle of it.
            Err(_) if !line.ends_with(b"\n") => "cut off".to_owned(),
            Err(error) => error.to_string(),
        };
        bad += 1;
        if named.len() < NAMED_LINES {
            named.push(format!("line {number} ({problem})"));
        }
    }
    if bad > 0 {
        let more = if bad > named.len() { ", ..." } else { "" };
        problems.push(format!(
            "{name}: {bad} line(s) left out: {}{more}",
            named.join(", ")
        ));
    }
    true
}

/// Opens a regular file; a pipe would wait for whoever writes into it.
fn open(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    File::open(path)
}

/// Seconds since 1970 of a time as `run.json` has it.
fn seconds(time: &str) -> Option<f64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(time.as_millisecond() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn what_can_be_read_is_shown_and_what_cannot_is_named() {
        let metrics = "{\"step\":1,\"loss\":2.5,\"time\":100.0}\n\
                       not json\n\
                       {\"step\":2,\"loss\":null}\n\
                       {\"step\":\"x\",\"loss\":1}\n\
                       []\n\
                       \n\
                       {\"step\":2,\"eval_loss\":2.25,\"perplexity\":9.5}\n\
                       {\"step\":3}\n\
                       {\"step\":3,\"loss\":2.0,\"time\":102.0}\n\
                       {\"step\":4,\"lo";
        let events = "{\"time\":100.5,\"event\":\"started\",\"step\":0,\"peak_flops\":2e12,\"peak_of\":\"a GPU\"}\n\
                      {\"time\":103.0,\"event\":\"saved\",\"step\":3,\"name\":\"checkpoint_3\",\"seconds\":1.5,\"blocked_s\":0.25}\n\
                      {\"time\":103.5,\"event\":\"save_failed\",\"step\":3,\"problem\":\"full\"}\n\
                      {\"time\":104.0,\"event\":\"of a newer program\",\"step\":3}\n\
                      {\"event\":\"saved\",\"step\":9}\n";
        let record = "{\"state\":\"ERRORED\",\"host\":\"n1\",\"facts\":{\"libtorch\":\"2.15\"},\"attempts\":[\
                      {\"started_at\":\"1970-01-01T00:01:39.500Z\",\"ended_at\":\"1970-01-01T00:01:45Z\",\"outcome\":\"failed\",\
                      \"reason\":\"rank 3\"},{\"started_at\":\"soon\"},7]}";
        let run = folder(&[
            ("metrics.jsonl", metrics),
            ("events.jsonl", events),
            ("run.json", record),
            (
                "run_config.json",
                "{\"entry_point\":\"train_fsdp\",\"flags\":{\"lr\":1}}",
            ),
            (
                "profile/breakdown.json",
                "{\"step_ms\":10.0,\"parts\":[{\"name\":\"data\",\"ms\":2.0},3]}",
            ),
        ]);
        let run = RunFolder::read(run.path()).unwrap();
        assert_eq!(run.steps.step, [1, 2, 3]);
        assert_eq!(run.steps.loss, [Some(2.5), None, Some(2.0)]);
        assert_eq!(
            (&*run.evaluations.step, &*run.evaluations.eval_loss),
            (&[2][..], &[Some(2.25)][..])
        );
        assert_eq!(
            (run.saves.len(), run.failed_saves.len(), run.starts.len()),
            (1, 1, 1)
        );
        assert_eq!(
            (run.peak_flops, run.peak_of.as_deref()),
            (Some(2e12), Some("a GPU"))
        );
        assert_eq!(run.attempts.len(), 1, "{:?}", run.attempts);
        assert_eq!(
            (run.attempts[0].started, run.attempts[0].ended),
            (Some(99.5), Some(105.0))
        );
        assert_eq!(run.last_time, Some(103.0));
        assert_eq!(run.profile.unwrap().parts.len(), 1);
        assert_eq!(run.flags["lr"], 1);
        assert_eq!(run.problems.len(), 2, "{:?}", run.problems);
        let bad = &run.problems[0];
        assert!(
            bad.starts_with("metrics.jsonl: 5 line(s) left out: line 2 ("),
            "{bad}"
        );
        assert!(
            bad.contains("line 4 (not what such a line says), line 5") && bad.ends_with(", ..."),
            "{bad}"
        );
        assert!(
            run.problems[1].contains("events.jsonl: 1 line(s) left out: line 5"),
            "{:?}",
            run.problems
        );
    }

    /// A page is made of what there is, whatever it is.
    #[test]
    fn no_bytes_are_too_bad() {
        let files = [
            (
                "metrics.jsonl",
                "{\"step\":1,\"loss\":2.5,\"peak_memory_mb\":[1]}\n{\"step\":1,\"eval_loss\":2.5}\n",
            ),
            (
                "events.jsonl",
                "{\"time\":1,\"event\":\"saved\",\"step\":1,\"name\":\"c\"}\n",
            ),
            (
                "run.json",
                "{\"state\":\"FINISHED\",\"attempts\":[{\"started_at\":\"2026-01-01T00:00:00Z\"}]}",
            ),
            ("run_config.json", "{\"flags\":{\"lr\":1}}"),
            (
                "profile/breakdown.json",
                "{\"step_ms\":1,\"parts\":[{\"name\":\"data\",\"ms\":1}]}",
            ),
        ];
        let folder = folder(&files);
        for (name, text) in files {
            let path = folder.path().join(name);
            for position in (0..text.len()).step_by(2) {
                for byte in [b'9', b'"', 0xff] {
                    let mut bytes = text.as_bytes().to_vec();
                    bytes[position] = byte;
                    std::fs::write(&path, bytes).unwrap();
                    let run = RunFolder::read(folder.path()).unwrap();
                    serde_json::to_string(&run).unwrap();
                }
            }
            std::fs::write(&path, text).unwrap();
        }
    }

    #[test]
    fn one_good_file_is_enough_and_none_is_an_error() {
        let run = folder(&[
            ("run.json", "{}"),
            ("metrics.jsonl", "\u{0}\u{0}"),
            ("run_config.json", "[1]"),
        ]);
        let run = RunFolder::read(run.path()).unwrap();
        assert_eq!(run.problems.len(), 2, "{:?}", run.problems);
        for (files, words) in [
            (&[][..], "is not the folder of a run"),
            (&[("run_config.json", "{")], "is not the folder of a run"),
        ] {
            let failure = RunFolder::read(folder(files).path()).unwrap_err();
            assert_eq!(failure.exit_code, 2);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        let failure = RunFolder::read(Path::new("/no/such/run")).unwrap_err();
        assert!(
            failure.message.contains("/no/such/run is no folder"),
            "{}",
            failure.message
        );
    }
}
