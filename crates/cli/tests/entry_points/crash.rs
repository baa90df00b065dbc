//! SIGKILL of any process at any moment: the run recovers, or continues when it is started again, and its losses are those
//! of a run that was never interrupted, bit for bit.
//!
//! Moments are found by watching the run's folder, and a random delay is added, so that over many runs every place is hit.
//! The seed is printed; `TANDEM_TEST_SEED` sets it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::demo::{self, Run, losses, train, workers_of};
use crate::saved;

const STEPS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(120);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Rank(usize),
    Controller,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// While the token cache is built.
    Tokenizing,
    /// Anywhere in a step.
    Step,
    /// A shard is being written.
    Shards,
    /// All shards are there, the commit record is not.
    Commit,
    /// A restart is loading a checkpoint.
    Loading,
}

const VICTIMS: [Victim; 5] = [
    Victim::Rank(0),
    Victim::Rank(1),
    Victim::Rank(2),
    Victim::Rank(3),
    Victim::Controller,
];

const MOMENTS: [Moment; 5] = [
    Moment::Tokenizing,
    Moment::Step,
    Moment::Shards,
    Moment::Commit,
    Moment::Loading,
];

fn run() -> Run {
    Run::new("fsdp", 2, 2).args([
        "--max_steps",
        &STEPS.to_string(),
        "--save_steps",
        "3",
        "--max_failures",
        "3",
        "--learning_rate",
        "1e-3",
    ])
}

/// A small generator: the test must be repeatable by its seed alone.
struct Random(u64);

impl Random {
    fn from_environment() -> Self {
        let seed = std::env::var("TANDEM_TEST_SEED").map_or_else(
            |_| std::process::id().into(),
            |text| text.parse().expect("TANDEM_TEST_SEED is a number"),
        );
        println!("TANDEM_TEST_SEED={seed}");
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Waits until `seen`, as closely as a file system can be watched. False when the run ended before.
fn wait_until(child: &mut Child, seen: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !seen() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < PATIENCE, "the moment never came");
        std::thread::sleep(Duration::from_micros(300));
    }
    true
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Folders of saves under way.
fn uncommitted(run_dir: &Path) -> Vec<PathBuf> {
    names(run_dir)
        .iter()
        .filter(|name| name.starts_with("checkpoint_20"))
        .map(|name| run_dir.join(name))
        .filter(|folder| !folder.join("commit.json").exists())
        .collect()
}

fn shards(folder: &Path) -> usize {
    let is_shard = |name: &String| name.starts_with("shard-") && name.ends_with(".safetensors");
    names(folder).iter().filter(|name| is_shard(name)).count()
}

fn steps_done(run: &Run) -> usize {
    std::fs::read_to_string(run.dir().join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

fn reach(moment: Moment, run: &Run, child: &mut Child) -> bool {
    let run_dir = run.dir();
    match moment {
        Moment::Tokenizing => {
            let cache = run.storage.path().join("token_cache");
            wait_until(child, || !names(&cache).is_empty())
        }
        Moment::Step => wait_until(child, || steps_done(run) >= 4),
        Moment::Shards => wait_until(child, || !uncommitted(&run_dir).is_empty()),
        Moment::Commit => wait_until(child, || {
            uncommitted(&run_dir)
                .iter()
                .any(|folder| shards(folder) == 4)
        }),
        Moment::Loading => {
            let controller = child.id();
            let is_second = || {
                let log = std::fs::read_to_string(run_dir.join("run.json")).unwrap_or_default();
                log.matches("\"attempt\"").count() > 1 && workers_of(controller).len() == 4
            };
            if !wait_until(child, || steps_done(run) >= 4) {
                return false;
            }
            strike(Victim::Rank(1), child);
            wait_until(child, is_second)
        }
    }
}

/// Kills the victim, if it is (still) there.
fn strike(victim: Victim, child: &Child) {
    let pid = match victim {
        Victim::Controller => Some(child.id()),
        Victim::Rank(rank) => workers_of(child.id())
            .into_iter()
            .find(|(found, _)| *found == rank)
            .map(|(_, pid)| pid),
    };
    if let Some(pid) = pid {
        // It may end by itself at this very moment.
        let _ = std::process::Command::new("kill")
            .args(["-s", "KILL", &pid.to_string()])
            .stderr(Stdio::null())
            .status();
    }
}

/// One kill, and what comes of it.
fn crash(victim: Victim, moment: Moment, delay: Duration, expected: &[f64]) {
    let what = format!(
        "{victim:?} killed {:.1} ms after {moment:?}",
        delay.as_secs_f64() * 1e3
    );
    let run = run();
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    let workers = if reach(moment, &run, &mut child) {
        std::thread::sleep(delay);
        let workers = workers_of(child.id());
        strike(victim, &child);
        workers
    } else {
        Vec::new()
    };
    let (code, text) = demo::output_within(&mut child, PATIENCE);
    demo::assert_gone_soon(&workers, Duration::from_secs(5));
    let run = if code == Some(0) {
        run
    } else {
        // Only the controller's death is not recovered from; everything else must be.
        assert!(
            victim == Victim::Controller && code.is_none(),
            "{what}: {code:?}\n{text}"
        );
        let again = match saved::steps(&run.dir()).is_empty() {
            true => run,
            false => run.args(["--resume_from", "run"]),
        };
        again.succeed();
        again
    };
    assert_eq!(losses(&run.dir()), expected, "{what}");
    saved::assert_nothing_torn(&run.dir());
    for entry in saved::checkpoints(&run.dir()) {
        assert_eq!(entry.problem, None, "{what}");
        let reader = saved::run_dir(&run.dir()).reader(&entry.name).unwrap();
        for check in reader.verify(|_| {}) {
            assert!(check.problems.is_empty(), "{what}: {:?}", check.problems);
        }
    }
    println!("{what}: recovered, {STEPS} losses bit for bit");
}

fn expected() -> Vec<f64> {
    let run = run();
    losses(&run.succeed())
}

#[test]
fn a_sample_of_the_crash_matrix() {
    let expected = expected();
    let mut random = Random::from_environment();
    // Every moment once, with two victims for those in the middle of a save.
    let mut first = random.below(5) as usize;
    for moment in MOMENTS {
        let count = match moment {
            Moment::Shards | Moment::Commit => 2,
            _ => 1,
        };
        for _ in 0..count {
            first += 1;
            let delay = Duration::from_micros(random.below(3000));
            let victim = match moment {
                // It is the controller that builds the cache, before there are workers.
                Moment::Tokenizing => Victim::Controller,
                _ => VICTIMS[first % 5],
            };
            crash(victim, moment, delay, &expected);
        }
    }
}

#[test]
#[ignore = "25 + 50 kills: cargo xtask test --long, or as many as --kills says"]
fn the_crash_matrix() {
    let expected = expected();
    let mut random = Random::from_environment();
    // An hour has 300 of them or so.
    let count = std::env::var("TANDEM_TEST_KILLS").ok();
    let count = count.map_or(75, |text| {
        text.parse().expect("TANDEM_TEST_KILLS is a number")
    });
    let matrix = MOMENTS
        .into_iter()
        .flat_map(|moment| VICTIMS.map(|victim| (victim, moment)));
    let mut matrix = matrix.collect::<Vec<_>>().into_iter();
    let mut lost = Vec::new();
    for number in 1..=count {
        let (victim, moment, delay) = match matrix.next() {
            Some((victim, moment)) => (victim, moment, Duration::from_micros(random.below(3000))),
            None => {
                let victim = VICTIMS[random.below(5) as usize];
                let moment = MOMENTS[random.below(5) as usize];
                (victim, moment, Duration::from_millis(random.below(400)))
            }
        };
        // One that fails says so above; the others of a long night are still worth knowing.
        let ended = std::panic::catch_unwind(|| crash(victim, moment, delay, &expected));
        if ended.is_err() {
            lost.push(format!(
                "kill {number}: {victim:?} {delay:?} after {moment:?}"
            ));
        }
    }
    match lost.as_slice() {
        [] => println!(
            "{count} kills; what was lost: nothing (every run has its {STEPS} losses bit for bit, and whole checkpoints)"
        ),
        lost => panic!("{count} kills; what was lost:\n{}", lost.join("\n")),
    }
}

#[test]
fn a_stopped_rank_is_found_and_the_run_goes_on() {
    // Long enough that it is not over before the rank is stopped.
    let long = || run().args(["--max_steps", "80"]);
    let run = long().args(["--hang_timeout_s", "4"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(4);
    let workers = workers_of(child.id());
    let victim = workers.iter().find(|(rank, _)| *rank == 2).unwrap().1;
    demo::kill(victim, "STOP");
    let (code, text) = demo::output_within(&mut child, PATIENCE);
    println!("{text}");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("rank 2") && text.contains("stopped"),
        "{text}"
    );
    demo::assert_gone_soon(&workers, Duration::from_secs(5));
    assert_eq!(losses(&run.dir()), losses(&long().succeed()));
}

#[test]
fn a_run_that_keeps_failing_is_given_up_with_the_first_cause() {
    let run = run().args(["--max_failures", "0", "--max_steps", "1000000"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(4);
    strike(Victim::Rank(3), &child);
    let (code, text) = demo::output_within(&mut child, PATIENCE);
    assert_eq!(code, Some(1), "{text}");
    let cause = text.find("rank 3 failed after step").expect(&text);
    assert!(text[cause..].contains("SIGKILL"), "{text}");
}

#[test]
fn from_the_kill_to_the_next_step_it_takes_less_than_ten_seconds() {
    let run = run().args(["--max_steps", "1000000", "--save_steps", "20"]);
    let run = run.args(["--log_interval", "1"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut read_until = |start: &str| {
        let found = lines.find(|line| line.as_ref().unwrap().starts_with(start));
        found.expect(start).unwrap()
    };
    read_until("step 6/");
    let killed = Instant::now();
    strike(Victim::Rank(0), &child);
    read_until("starting again in");
    read_until("step ");
    let seconds = killed.elapsed().as_secs_f64();
    demo::kill(child.id(), "KILL");
    child.wait().unwrap();
    println!("{seconds:.1} s from the kill to the first new step");
    // A machine that is busy with other tests may take longer; a restart that waits for something takes minutes.
    assert!(seconds < 60.0, "{seconds} s");
}
