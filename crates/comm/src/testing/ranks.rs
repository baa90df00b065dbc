//! Starting the ranks of a test as processes: copies of the test's own binary.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "nccl")]
use crate::testing::detour::Detour;
use crate::testing::over::Over;
use crate::testing::signs::SIGNS;
#[cfg(feature = "nccl")]
use crate::testing::simulated;
use crate::{ProcessGroup, RunSecret, Transport, World, WorldConfig};

/// Set in the environment of a rank.
const RANK: &str = "TANDEM_TEST_RANK";
/// Which of a test's sets of ranks it belongs to.
const SET: &str = "TANDEM_TEST_SET";
const PORT: &str = "TANDEM_TEST_PORT";

/// Printed by a rank that ran to its end, so that a rank which ran nothing at all is noticed.
const DONE: &str = "rank is done";

/// Nothing here takes this long; it only keeps a hanging rank from hanging the tests.
const PATIENCE: Duration = Duration::from_secs(1800);

/// How the ranks of a test are set up.
#[derive(Clone)]
pub struct Setup {
    /// Full name of the test that the ranks run.
    pub test: &'static str,
    /// How many there are.
    pub ranks: usize,
    /// How their groups move data.
    pub over: Over,
    /// How long they wait for each other.
    pub timeout: Duration,
    /// Ranks that are expected to be killed rather than to end by themselves.
    pub victims: Vec<usize>,
    /// Variables of single ranks' environments.
    variables: Vec<(usize, &'static str, String)>,
}

impl Setup {
    /// Of `ranks` ranks, all of which end by themselves.
    pub fn new(test: &'static str, ranks: usize, over: impl Into<Over>) -> Self {
        Self {
            test,
            ranks,
            over: over.into(),
            timeout: Duration::from_secs(900),
            victims: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// With a variable in the environment of one rank.
    #[must_use]
    pub fn variable(mut self, rank: usize, name: &'static str, value: &str) -> Self {
        self.variables.push((rank, name, value.to_owned()));
        self
    }

    /// With these ranks killed on the way.
    #[must_use]
    pub fn victims(mut self, victims: &[usize]) -> Self {
        self.victims = victims.to_vec();
        self
    }

    /// With another timeout than one that no test reaches.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The configuration of rank `rank`, for a test that connects by itself.
    pub fn config(&self, rank: usize, port: u16) -> WorldConfig {
        WorldConfig {
            rank,
            world_size: self.ranks,
            local_rank: rank,
            local_world_size: self.ranks,
            master_addr: "127.0.0.1".to_owned(),
            master_port: port,
            master_fd: None,
            secret: secret(),
            timeout: self.timeout,
            network_interface: None,
            transport: match self.over {
                Over::Host(transport) => transport,
                #[cfg(feature = "nccl")]
                Over::Nccl | Over::Staged(_) => Transport::Auto,
            },
        }
    }

    #[cfg(feature = "nccl")]
    fn on_device(&self, world: World) -> World {
        match Detour::new(self.over, world.rank()) {
            Some(detour) => world.made_by(detour.into_maker()),
            None => world,
        }
    }

    #[cfg(not(feature = "nccl"))]
    fn on_device(&self, world: World) -> World {
        world
    }

    /// In the test: starts the ranks and returns what each printed. In a rank: runs `body` in a world and exits.
    pub fn run(&self, body: impl FnOnce(World)) -> Vec<String> {
        self.run_configured(|config| {
            let world = World::connect(&config).expect("the ranks meet");
            body(self.on_device(world));
        })
    }

    /// As [`Setup::run`], for bodies that connect themselves.
    pub fn run_configured(&self, body: impl FnOnce(WorldConfig)) -> Vec<String> {
        let variable = |name| std::env::var(name).ok();
        let Some(rank) = variable(RANK) else {
            return self.start();
        };
        if variable(SET).as_deref() != Some(&*self.set()) {
            return Vec::new();
        }
        let number = |text: String| text.parse::<usize>().expect("a number");
        let port = number(variable(PORT).expect("a port"));
        body(self.config(number(rank), port as u16));
        let mut out = std::io::stdout();
        writeln!(out, "{DONE}").expect("stdout is open");
        out.flush().expect("stdout is open");
        // What follows in the test is the parent's.
        std::process::exit(0);
    }

    fn set(&self) -> String {
        format!("{} {:?} {:?}", self.ranks, self.over, self.variables)
    }

    fn start(&self) -> Vec<String> {
        let port = free_port("127.0.0.1");
        let signs = tempfile::tempdir().expect("a folder for signs");
        let children: Vec<Child> = (0..self.ranks)
            .map(|rank| {
                let mut command =
                    Command::new(std::env::current_exe().expect("this binary has a path"));
                #[cfg(feature = "nccl")]
                if !matches!(self.over, Over::Host(_)) {
                    simulated::install(&mut command);
                }
                let own = self.variables.iter().filter(|(of, ..)| *of == rank);
                command.envs(own.map(|(_, name, value)| (*name, value)));
                command
                    .args([self.test, "--exact", "--nocapture", "--test-threads=1"])
                    .env(RANK, rank.to_string())
                    .env(SET, self.set())
                    .env(PORT, port.to_string())
                    .env(SIGNS, signs.path())
                    .env("OMP_NUM_THREADS", "1")
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .expect("a rank starts")
            })
            .collect();
        let pids: Vec<u32> = children.iter().map(Child::id).collect();
        let outputs = self.wait_for(children);
        assert_nothing_left(&pids);
        outputs
    }

    fn wait_for(&self, mut children: Vec<Child>) -> Vec<String> {
        let readers: Vec<_> = children
            .iter_mut()
            .map(|child| {
                let mut out = child.stdout.take().expect("stdout is piped");
                let mut err = child.stderr.take().expect("stderr is piped");
                let err = std::thread::spawn(move || {
                    let mut text = String::new();
                    let _read = err.read_to_string(&mut text);
                    text
                });
                let out = std::thread::spawn(move || {
                    let mut text = String::new();
                    let _read = out.read_to_string(&mut text);
                    text
                });
                (out, err)
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let mut statuses = vec![None; self.ranks];
        let is_victim = |rank: usize| self.victims.contains(&rank);
        // A stopped victim is killed once the others have ended; where there are no others, all end by themselves.
        let all_die = (0..self.ranks).all(is_victim);
        let is_awaited = |rank: usize| all_die || !is_victim(rank);
        while (0..self.ranks).any(|rank| statuses[rank].is_none() && is_awaited(rank))
            && Instant::now() < deadline
        {
            for (status, child) in statuses.iter_mut().zip(&mut children) {
                if status.is_none() {
                    *status = child.try_wait().expect("a child can be waited for");
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for child in &mut children {
            // Fails for those that have ended.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
        let outputs: Vec<String> = readers
            .into_iter()
            .map(|(out, err)| {
                let text = out.join().expect("stdout is read");
                text + &err.join().expect("stderr is read")
            })
            .collect();
        for (rank, (status, output)) in statuses.iter().zip(&outputs).enumerate() {
            if is_victim(rank) {
                continue;
            }
            let succeeded = status.is_some_and(|status| status.success()) && output.contains(DONE);
            assert!(
                succeeded,
                "rank {rank} of {}: {status:?}\n{}",
                self.ranks,
                outputs.join("\n-----\n")
            );
        }
        outputs
    }
}

/// The secret of all ranks in tests that are about something else.
fn secret() -> RunSecret {
    RunSecret::guessable("the ranks of a test")
}

/// All ranks of `world` as one group.
pub fn everyone(world: &World) -> Arc<dyn ProcessGroup> {
    let ranks: Vec<usize> = (0..world.size()).collect();
    world
        .new_group("all", &ranks)
        .expect("a group of all ranks")
}

/// What follows `label` in the lines of `output` that have it.
pub fn lines<'a>(output: &'a str, label: &str) -> Vec<&'a str> {
    output
        .lines()
        // The test runner leaves the beginning of the first line behind.
        .filter_map(|line| Some(line.split_once(label)?.1.trim()))
        .collect()
}

/// A port of `address` that nobody listens on at the moment.
pub fn free_port(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Shared memory has no names here; this notices if that changes.
fn assert_nothing_left(pids: &[u32]) {
    for entry in std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours =
            name.contains("tandem") || pids.iter().any(|pid| name.contains(&pid.to_string()));
        assert!(!is_ours, "/dev/shm/{name} was left behind");
    }
}
