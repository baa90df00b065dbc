//! Workers that no controller of ours started: processes with a launcher's variables.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::demo::{self, Run, train};

/// Every variable by which some launcher tells a rank who it is; a test must not inherit any.
const LAUNCHERS: [&str; 5] = ["SLURM_", "OMPI_", "PMIX_", "TANDEM_", "TORCHELASTIC_"];
const TORCHRUN: [&str; 8] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
];

/// The workers of one run. Those that are left are killed when the test is over.
pub struct Workers {
    ranks: Vec<(Child, File)>,
}

/// How a worker ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub text: String,
    pub after: Duration,
}

impl Workers {
    /// Starts `count` workers of `run`, each with its own variables and, where `wrap` says so, inside another command.
    pub fn start(
        run: &Run,
        count: usize,
        variables: impl Fn(usize) -> Vec<(&'static str, String)>,
        wrap: impl Fn(usize, Command) -> Command,
    ) -> Self {
        let ranks = (0..count).map(|rank| {
            let mut command = wrap(rank, train(run));
            clean(&mut command);
            for (name, value) in variables(rank) {
                command.env(name, value);
            }
            // A file, because nobody reads a pipe while the worker runs.
            let file = tempfile::tempfile().unwrap();
            let child = command.stderr(file.try_clone().unwrap()).spawn().unwrap();
            (child, file)
        });
        Self {
            ranks: ranks.collect(),
        }
    }

    /// The process of a rank, or of what it was wrapped in.
    pub fn pid(&self, rank: usize) -> u32 {
        self.ranks[rank].0.id()
    }

    /// Blocks until the first one has said something.
    pub fn wait_for(&mut self, words: &str) {
        let start = Instant::now();
        while !self.texts()[0].contains(words) {
            assert!(start.elapsed() < Duration::from_secs(60), "never: {words}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether one has ended badly.
    pub fn any_failed(&mut self) -> bool {
        let mut ends = self.ranks.iter_mut().map(|(child, _)| child.try_wait());
        ends.any(|end| end.unwrap().is_some_and(|status| !status.success()))
    }

    /// The workers from rank `first` on, apart from the others.
    pub fn split_off(&mut self, first: usize) -> Self {
        Self {
            ranks: self.ranks.split_off(first),
        }
    }

    /// Waits for all to end, which must happen within `limit`.
    pub fn end_within(&mut self, limit: Duration) -> Vec<Ended> {
        let start = Instant::now();
        let mut ended: Vec<Option<(Option<i32>, Duration)>> = vec![None; self.ranks.len()];
        while ended.iter().any(Option::is_none) {
            for ((child, _), ended) in self.ranks.iter_mut().zip(&mut ended) {
                if ended.is_none()
                    && let Some(status) = child.try_wait().unwrap()
                {
                    *ended = Some((status.code(), start.elapsed()));
                }
            }
            if start.elapsed() > limit {
                let texts = self.texts();
                panic!("{ended:?} after {limit:?}: {texts:#?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = ended.into_iter().flatten();
        let all: Vec<Ended> = ended
            .zip(self.texts())
            .map(|((code, after), text)| Ended { code, text, after })
            .collect();
        println!("{all:#?}");
        all
    }

    /// Waits for the end of all, with the same exit code.
    pub fn all_end_with(&mut self, code: i32) {
        for (rank, ended) in self.end_within(Duration::from_secs(120)).iter().enumerate() {
            assert_eq!(ended.code, Some(code), "rank {rank}: {}", ended.text);
        }
    }

    /// Waits for the good end of all.
    pub fn succeed(&mut self) {
        self.all_end_with(0);
    }

    fn texts(&mut self) -> Vec<String> {
        let texts = self.ranks.iter_mut().map(|(_, file)| {
            // By position: the place in the file is the worker's, which may be writing.
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        texts.collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (child, _) in &mut self.ranks {
            if matches!(child.try_wait(), Ok(None)) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Removes what a launcher that runs this test may have set.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars() {
        // Which libtorch computes is no launcher's business.
        let is_libtorch = name == "TANDEM_LIBTORCH";
        let is_launchers =
            LAUNCHERS.iter().any(|prefix| name.starts_with(prefix)) || TORCHRUN.contains(&&*name);
        if is_launchers && !is_libtorch {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
}

/// torchrun's variables for `count` ranks on hosts of `each`.
pub fn torchrun(
    count: usize,
    each: usize,
    address: &str,
    port: u16,
) -> impl Fn(usize) -> Vec<(&'static str, String)> + use<> {
    let address = address.to_owned();
    move |rank| {
        vec![
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", count.to_string()),
            ("LOCAL_RANK", (rank % each).to_string()),
            ("LOCAL_WORLD_SIZE", each.to_string()),
            ("NODE_RANK", (rank / each).to_string()),
            ("MASTER_ADDR", address.clone()),
            ("MASTER_PORT", port.to_string()),
        ]
    }
}

/// A port that was free a moment ago. A launcher's user takes the same risk.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The short run of 2 x 2 workers that every launcher is to repeat.
pub fn short() -> Run {
    Run::new("fsdp", 2, 2).args(["--max_steps", "4", "--learning_rate", "1e-3"])
}

/// A run in which something happens on the way. It saves after every step.
pub fn long() -> Run {
    short().args(["--max_steps", &STEPS.to_string(), "--save_steps", "1"])
}

const STEPS: usize = 24;

/// The local controller's losses of the long run, of which the short one is the beginning.
pub static LOCAL: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let losses = demo::losses(&long().succeed());
    assert_eq!(losses.len(), STEPS);
    losses
});

/// That a run of some other launcher's computed what the local controller's did, bit for bit.
pub fn assert_as_local(run: &Run, steps: usize) {
    assert_eq!(demo::losses(&run.dir()), LOCAL[..steps]);
}

/// As [`assert_as_local`], for a run of `steps` steps that may have more than the long run: of them, only their number counts.
pub fn assert_begins_as_local(run: &Run, steps: usize) {
    let losses = demo::losses(&run.dir());
    assert_eq!(losses.len(), steps);
    let common = steps.min(STEPS);
    assert_eq!(losses[..common], LOCAL[..common]);
}

/// As [`assert_as_local`], for the whole long run.
pub fn assert_whole(run: &Run) {
    assert_as_local(run, STEPS);
}

/// For [`Workers::start`]: no other command around the worker.
pub fn plain(_: usize, command: Command) -> Command {
    command
}
