//! Curves for TensorBoard: `{run}/tensorboard/`, event files that grow by a record a step.
//!
//! A run that goes on begins another file. What the files before it say of later steps is cut off, so that every reader sees
//! each step once; and the new file begins with a record that tells a TensorBoard which has them in memory already to forget
//! them (`SessionLog.START`).

mod event;
mod record;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tandem_files::open_own;

use crate::events::{EvalMetrics, StepMetrics};

/// The folder in that of the run.
const FOLDER: &str = "tensorboard";
/// What TensorBoard looks for in a file's name.
const PREFIX: &str = "events.out.tfevents.";
/// What tells our files from those that others put beside them.
const OWN: &str = ".tandem.";

/// The event file of one start of a run.
pub(crate) struct Curves {
    path: PathBuf,
    /// None after a write that failed: curves are no reason to end a run.
    file: Option<File>,
}

impl Curves {
    /// Goes on after step `done`, at `time` (seconds since 1970).
    ///
    /// # Errors
    /// What the system says.
    pub fn create(run_dir: &Path, done: u64, time: f64) -> io::Result<Self> {
        let folder = run_dir.join(FOLDER);
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let names = own_files(&folder)?;
        for name in &names {
            cut(&folder.join(name), done)?;
        }
        let path = folder.join(next_name(names.last().map(String::as_str), time as u64));
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)?;
        let mut bytes = Vec::new();
        record::append(&mut bytes, &event::version(time));
        record::append(&mut bytes, &event::session_start(time, done + 1));
        file.write_all(&bytes)?;
        Ok(Self {
            path,
            file: Some(file),
        })
    }

    /// The points of a step, under torchtitan's names where it has one.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let memory_mb = metrics.peak_memory_mb.iter().copied().fold(0.0, f64::max);
        let mut values = vec![
            ("loss_metrics/global_avg_loss", metrics.loss),
            ("grad_norm", metrics.grad_norm),
            ("lr", metrics.lr),
            // A device's share, as torchtitan counts it.
            ("throughput(tps)", metrics.tokens_per_s_per_device),
            ("tokens_per_s", metrics.tokens_per_s),
            ("tflops", metrics.tflops_per_device),
            ("mfu(%)", 100.0 * metrics.mfu),
            ("time_metrics/end_to_end(s)", metrics.step_time_s),
            ("time_metrics/saving(s)", metrics.saving_s),
            (
                "memory/max_resident(GiB)",
                memory_mb * 1e6 / 1_073_741_824.0,
            ),
            ("n_tokens_seen", metrics.tokens_seen as f64),
            ("epoch", (metrics.epoch + 1) as f64),
        ];
        if let Some(experts) = &metrics.experts {
            let worst = experts.max_over_mean.iter().copied().fold(0.0, f64::max);
            values.push(("experts/aux_loss", experts.aux_loss));
            values.push(("experts/max_over_mean", worst));
            values.push(("experts/idle", experts.idle as f64));
        }
        self.write(&event::scalars(metrics.time, metrics.step, &values));
    }

    /// The points of an evaluation that ends at `time` (seconds since 1970).
    pub fn evaluated(&mut self, metrics: &EvalMetrics, time: f64) {
        let values = [
            ("eval/loss", metrics.eval_loss),
            ("eval/perplexity", metrics.perplexity),
        ];
        self.write(&event::scalars(time, metrics.step, &values));
    }

    fn write(&mut self, event: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        let mut bytes = Vec::with_capacity(event.len() + 16);
        record::append(&mut bytes, event);
        // One write per record: whoever follows the file never sees half of one.
        if let Err(error) = file.write_all(&bytes) {
            let path = self.path.display();
            tracing::warn!(%error, "cannot write {path}: TensorBoard's curves end here");
            self.file = None;
        }
    }
}

/// Names of our event files, in the order in which TensorBoard reads them.
fn own_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Not what a link points to, and nothing that waits when it is opened.
        if !entry.file_type()?.is_file() {
            continue;
        }
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with(PREFIX) && name.contains(OWN) => names.push(name),
            _ => {}
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A name behind `last`, whatever the clock says: TensorBoard reads files in the order of their names.
fn next_name(last: Option<&str>, seconds: u64) -> String {
    let numbers = last.and_then(|name| {
        let (time, count) = name.strip_prefix(PREFIX)?.split_once(OWN)?;
        Some((time.parse::<u64>().ok()?, count.parse::<u64>().ok()?))
    });
    let (time, count) = match numbers {
        Some((time, count)) => (time.max(seconds), count.saturating_add(1)),
        None => (seconds, 0),
    };
    format!("{PREFIX}{time:010}{OWN}{count:06}")
}

/// Cuts the file before the first record of a step after `done`, or that is none. A file that is left without a step goes.
fn cut(path: &Path, done: u64) -> io::Result<()> {
    let file = open_own(path, OpenOptions::new().read(true).write(true))?;
    let mut reader = record::Reader::new(&file)?;
    let (mut kept, mut steps) = (0, 0);
    while let Some(event) = reader.next()? {
        let step = event::step_of(&event);
        if step > done {
            break;
        }
        steps += u64::from(step > 0);
        kept = reader.position();
    }
    if steps == 0 {
        return std::fs::remove_file(path);
    }
    if kept < reader.length() {
        file.set_len(kept)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of its own: the format as TensorFlow describes it, bit by bit.
    mod decoder {
        /// CRC-32C without a table.
        fn crc(bytes: &[u8]) -> u32 {
            let mut crc = u32::MAX;
            for byte in bytes {
                for bit in 0..8 {
                    let odd = (crc ^ u32::from(byte >> bit)) & 1;
                    crc = (crc >> 1) ^ if odd == 1 { 0x82f6_3b78 } else { 0 };
                }
            }
            !crc
        }

        fn masked(bytes: &[u8]) -> u32 {
            let crc = crc(bytes);
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        }

        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let (first, rest) = bytes.split_first().unwrap();
                *bytes = rest;
                value |= u64::from(first & 0x7f) << shift;
                shift += 7;
                if first & 0x80 == 0 {
                    return value;
                }
            }
        }

        /// Number and contents of every field; numbers as their bytes.
        fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
            let mut found = Vec::new();
            while !bytes.is_empty() {
                let key = varint(&mut bytes);
                let contents = match key & 7 {
                    0 => varint(&mut bytes).to_le_bytes().to_vec(),
                    kind => {
                        let length = match kind {
                            1 => 8,
                            5 => 4,
                            2 => varint(&mut bytes) as usize,
                            other => panic!("wire type {other}"),
                        };
                        let (own, rest) = bytes.split_at(length);
                        bytes = rest;
                        own.to_vec()
                    }
                };
                found.push((key >> 3, contents));
            }
            found
        }

        #[derive(Debug, Default, PartialEq)]
        pub struct Event {
            pub time: f64,
            pub step: u64,
            pub version: String,
            /// The status of a session's log; 1 is its start.
            pub session: Option<u64>,
            pub scalars: Vec<(String, f32)>,
        }

        fn number(bytes: &[u8]) -> u64 {
            u64::from_le_bytes(bytes.try_into().unwrap())
        }

        fn event(bytes: &[u8]) -> Event {
            let mut event = Event::default();
            for (field, contents) in fields(bytes) {
                match field {
                    1 => event.time = f64::from_bits(number(&contents)),
                    2 => event.step = number(&contents),
                    3 => event.version = String::from_utf8(contents).unwrap(),
                    5 => {
                        for (one, value) in fields(&contents) {
                            assert_eq!(one, 1);
                            let parts = fields(&value);
                            let tag = String::from_utf8(parts[0].1.clone()).unwrap();
                            let bytes = parts[1].1.clone().try_into().unwrap();
                            assert_eq!((parts.len(), parts[0].0, parts[1].0), (2, 1, 2));
                            event.scalars.push((tag, f32::from_le_bytes(bytes)));
                        }
                    }
                    7 => event.session = Some(number(&fields(&contents)[0].1)),
                    other => panic!("field {other}"),
                }
            }
            event
        }

        /// All events of a file, whose sums must be right.
        pub fn read(mut bytes: &[u8]) -> Vec<Event> {
            assert_eq!(crc(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
            let mut take = |count: usize| {
                let (own, rest) = bytes.split_at_checked(count)?;
                bytes = rest;
                Some(own.to_vec())
            };
            let mut events = Vec::new();
            while let Some(length) = take(8) {
                let sum = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap());
                assert_eq!(sum(take(4).unwrap()), masked(&length));
                let data = take(number(&length) as usize).unwrap();
                assert_eq!(sum(take(4).unwrap()), masked(&data));
                events.push(event(&data));
            }
            events
        }
    }

    fn metrics(step: u64, loss: f64) -> StepMetrics {
        StepMetrics {
            experts: None,
            step,
            epoch: 0,
            loss,
            lr: 1e-4,
            grad_norm: 2.0,
            tokens_per_s: 400.0,
            tokens_per_s_per_device: 100.0,
            step_time_s: 0.5,
            saving_s: 0.0,
            tokens_seen: 300 * step,
            n_tokens: 299,
            tflops_per_device: 0.125,
            mfu: 0.25,
            peak_memory_mb: vec![1024.0, 2048.0],
            time: 1000.5 + step as f64,
        }
    }

    /// All events of all files, as TensorBoard reads them.
    fn events(run_dir: &Path) -> Vec<decoder::Event> {
        let folder = run_dir.join(FOLDER);
        let names = own_files(&folder).unwrap();
        let read = |name| decoder::read(&std::fs::read(folder.join(name)).unwrap());
        names.into_iter().flat_map(read).collect()
    }

    /// Step and value of a curve.
    fn curve(run_dir: &Path, tag: &str) -> Vec<(u64, f32)> {
        let events = events(run_dir);
        let points = events.iter().flat_map(|event| {
            let of_tag = event.scalars.iter().filter(|(name, _)| name == tag);
            of_tag.map(|(_, value)| (event.step, *value))
        });
        points.collect()
    }

    #[test]
    fn another_reader_reads_what_is_written() {
        let run = tempfile::tempdir().unwrap();
        let mut curves = Curves::create(run.path(), 0, 1000.5).unwrap();
        curves.step(&metrics(1, 2.5));
        let evaluation = EvalMetrics {
            step: 1,
            eval_loss: 1.5,
            perplexity: 4.5,
            eval_tokens: 64,
            eval_seconds: 0.1,
        };
        curves.evaluated(&evaluation, 1002.0);
        let events = events(run.path());
        assert_eq!(events.len(), 4);
        assert_eq!(
            (&*events[0].version, events[0].time),
            ("brain.Event:2", 1000.5)
        );
        assert_eq!((events[1].session, events[1].step), (Some(1), 1));
        let step = &events[2];
        assert_eq!((step.step, step.time), (1, 1001.5));
        let value = |tag: &str| {
            let found = step.scalars.iter().find(|(name, _)| name == tag);
            found.unwrap_or_else(|| panic!("no {tag} in {step:?}")).1
        };
        for (tag, expected) in [
            ("loss_metrics/global_avg_loss", 2.5),
            ("throughput(tps)", 100.0),
            ("tokens_per_s", 400.0),
            ("mfu(%)", 25.0),
            ("grad_norm", 2.0),
            ("lr", 1e-4),
            ("memory/max_resident(GiB)", 2048e6 / 1024f32.powi(3)),
            ("n_tokens_seen", 300.0),
            ("epoch", 1.0),
        ] {
            assert_eq!(value(tag), expected, "{tag}");
        }
        let evaluated = [
            ("eval/loss".to_owned(), 1.5),
            ("eval/perplexity".to_owned(), 4.5),
        ];
        assert_eq!((events[3].step, &*events[3].scalars), (1, &evaluated[..]));
    }

    #[test]
    fn a_run_that_goes_on_has_every_step_once() {
        let run = tempfile::tempdir().unwrap();
        // Killed after step 4, in the middle of a record; it goes on after step 2, twice, and then with a clock that was set
        // back.
        let mut curves = Curves::create(run.path(), 0, 1000.0).unwrap();
        (1..=4).for_each(|step| curves.step(&metrics(step, 1.0)));
        let path = curves.path.clone();
        drop(curves);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&bytes[..], &bytes[..9]].concat()).unwrap();
        drop(Curves::create(run.path(), 2, 1001.0).unwrap());
        let mut curves = Curves::create(run.path(), 2, 1002.0).unwrap();
        (3..=6).for_each(|step| curves.step(&metrics(step, 2.0)));
        let mut curves = Curves::create(run.path(), 5, 7.0).unwrap();
        (6..=7).for_each(|step| curves.step(&metrics(step, 3.0)));
        let expected = [1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0];
        let expected: Vec<(u64, f32)> = (1..).zip(expected).collect();
        assert_eq!(curve(run.path(), "loss_metrics/global_avg_loss"), expected);
        let starts = events(run.path());
        let starts = starts.iter().filter(|event| event.session == Some(1));
        assert_eq!(
            starts.map(|event| event.step).collect::<Vec<_>>(),
            [1, 3, 6],
            "the start that came to nothing has left no file"
        );
    }

    /// A file may hold anything: what is left of it can be read, and nothing of later steps is in it.
    #[test]
    fn whatever_the_bytes_are_what_is_left_is_sound() {
        let run = tempfile::tempdir().unwrap();
        let mut curves = Curves::create(run.path(), 0, 1000.0).unwrap();
        (1..=3).for_each(|step| curves.step(&metrics(step, 1.0)));
        let path = curves.path.clone();
        let good = std::fs::read(&path).unwrap();
        let check = |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            cut(&path, 2).unwrap_or_else(|error| panic!("{what}: {error}"));
            if let Ok(left) = std::fs::read(&path) {
                let events = decoder::read(&left);
                assert!(events.iter().all(|event| event.step <= 2), "{what}");
            }
        };
        for position in 0..good.len() {
            check(&good[..position], &format!("{position} bytes"));
            let mut changed = good.clone();
            changed[position] ^= 1 << (position % 8);
            check(&changed, &format!("a bit of byte {position}"));
        }
        check(&[0xff; 64], "all ones");
    }

    #[test]
    fn files_of_others_stay_and_damaged_ones_end_where_they_are_damaged() {
        let run = tempfile::tempdir().unwrap();
        let mut curves = Curves::create(run.path(), 0, 1000.0).unwrap();
        (1..=3).for_each(|step| curves.step(&metrics(step, 1.0)));
        let path = curves.path.clone();
        let theirs = run
            .path()
            .join(FOLDER)
            .join("events.out.tfevents.1.host.2.0");
        std::fs::write(&theirs, "theirs").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let in_the_last = bytes.len() - 20;
        bytes[in_the_last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        Curves::create(run.path(), 3, 1001.0).unwrap();
        let steps = curve(run.path(), "lr");
        assert_eq!(
            steps.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(std::fs::read_to_string(theirs).unwrap(), "theirs");
    }
}
