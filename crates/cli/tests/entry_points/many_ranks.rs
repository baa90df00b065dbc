//! Many real ranks of a tiny model on several hosts, which are network namespaces: rows in shared memory, columns and the group of
//! all ranks over TCP. What they compute is what one rank computes, and what a start costs grows with the ranks and not with their
//! square.
//!
//! It says what a rank costs: libtorch's table of operators alone is 55 MB of every process's own.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_plan::scale;

use crate::demo::{self, Run};
use crate::hosts::Hosts;
use crate::tiny::Tiny;
use crate::workers::{Workers, free_port, torchrun};

/// Ranks in a row, which has four heads to share out.
const TP: usize = 4;

const STEPS: usize = 3;

/// What one rank takes of the machine's memory, measured: 69 to 75 MB of its own, and the kernel's part of its connections.
const MB_OF_RANK: usize = 80;

/// Open files that come and go: of data, of the weights.
const PASSING: u64 = 8;

#[test]
#[ignore = "64 processes, 5 GB: cargo xtask test --long many_ranks"]
fn many_ranks_on_4_hosts_train_as_one() {
    train(4, 16);
}

#[test]
#[ignore = "256 processes, 20 GB: cargo xtask test --long many_ranks"]
fn many_ranks_on_16_hosts_train_as_one() {
    train(16, 16);
}

fn train(hosts: usize, each: usize) {
    let ranks = hosts * each;
    let available = meminfo("MemAvailable");
    assert!(
        available > MB_OF_RANK * ranks,
        "{ranks} ranks need {} MB of memory, and {available} are available: run it where nothing else runs",
        MB_OF_RANK * ranks
    );
    let test = format!("many{ranks}");
    let network = Hosts::make(&test, hosts)
        .unwrap_or_else(|refused| panic!("this test needs root and `ip netns`: {refused}"));
    let dp = ranks / TP;
    let tiny = Tiny::new("qwen2_untied");
    let text = fs::read_to_string(demo::demo("data/kjv.txt")).unwrap();
    let tokens = 32 * (dp * STEPS + 8);
    fs::write(tiny.data(), text.chars().take(tokens).collect::<String>()).unwrap();
    let run = |tp: usize, dp: usize, batch: usize| {
        let run = Run::new("fsdp", tp, dp).args(tiny.args());
        let (steps, batch) = (STEPS.to_string(), batch.to_string());
        run.args(["--max_steps", &steps, "--batch_size", &batch])
            .args(["--learning_rate", "1e-3"])
    };
    let expected = demo::losses(&run(1, 1, dp).succeed());

    let run = run(TP, dp, 1);
    let variables = torchrun(ranks, each, &Hosts::address(0), free_port());
    let variables = |rank| {
        let mut own = variables(rank);
        if rank == 0 {
            own.push(("RUST_LOG", "tandem_comm=debug".to_owned()));
        }
        own
    };
    let wrap = |rank: usize, command: Command| network.wrap(rank / each, &command);
    let begin = Instant::now();
    let mut workers = Workers::start(&run, ranks, variables, wrap);
    let mut watched = Watched::default();
    while !run.dir().join("metrics.jsonl").exists() {
        watched.look(&workers, ranks, available);
        assert!(begin.elapsed() < LIMIT, "no step within {LIMIT:?}");
        assert!(!workers.any_failed(), "a rank failed before the first step");
    }
    let started = begin.elapsed();
    let ended = workers.end_within(LIMIT);
    for (rank, ended) in ended.iter().enumerate() {
        assert_eq!(ended.code, Some(0), "rank {rank}: {}", ended.text);
    }
    let [received, sent] = ["received=", "sent="].map(|word| number_after(&ended[0].text, word));
    println!(
        "{ranks} ranks on {hosts} hosts: first step after {:.1} s, end after {:.1} s; {} MB and at most {} open files a rank; \
         rank 0's store received {received} messages and sent {sent}",
        started.as_secs_f64(),
        begin.elapsed().as_secs_f64(),
        watched.mb / ranks,
        watched.files
    );
    let losses = demo::losses(&run.dir());
    assert_eq!(losses.len(), STEPS);
    for (one, many) in expected.iter().zip(&losses) {
        assert!((one - many).abs() < 1e-5 * one, "{expected:?}, {losses:?}");
    }
    let hosts = scale::Hosts {
        ranks,
        each,
        tp: TP,
        experts: 1,
        wire: scale::Wire::Host,
    };
    let (start, ends) = (scale::starting(&hosts), scale::ends(ranks));
    // How many ends rank 0 hears of, and tells others of, depends on who ends when: it may be the first.
    let heard = start.received..=start.received + ends.received;
    assert!(heard.contains(&(received as u64)), "{heard:?}");
    let told = start.sent..=start.sent + ends.sent;
    assert!(told.contains(&(sent as u64)), "{told:?}");
    let files = scale::open_files(&hosts, true);
    let most = watched.files as u64;
    assert!(
        most.abs_diff(files) <= PASSING,
        "{most}, and {files} are planned"
    );
    assert!(most <= scale::descriptors_asked(ranks));
}

/// Starting takes half a second of a core for each rank; two of them may be busy with something else.
const LIMIT: Duration = Duration::from_secs(900);

/// The most that was seen.
#[derive(Default)]
struct Watched {
    /// Of all ranks together.
    mb: usize,
    /// Of one rank.
    files: usize,
}

impl Watched {
    fn look(&mut self, workers: &Workers, ranks: usize, available: usize) {
        self.mb = self
            .mb
            .max(available.saturating_sub(meminfo("MemAvailable")));
        for rank in [0, ranks - 1] {
            // It may have ended.
            let files = fs::read_dir(format!("/proc/{}/fd", workers.pid(rank)));
            self.files = self.files.max(files.map_or(0, Iterator::count));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A line of `/proc/meminfo`, in MB.
fn meminfo(name: &str) -> usize {
    number_after(
        &fs::read_to_string("/proc/meminfo").unwrap(),
        &format!("{name}:"),
    ) >> 10
}

/// The number that follows `word` for the last time.
fn number_after(text: &str, word: &str) -> usize {
    let (_, rest) = text
        .rsplit_once(word)
        .unwrap_or_else(|| panic!("no {word} in {text}"));
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().unwrap()
}
