//! Who is measured: the variants of ours and the PyTorch programs, and the command that runs each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::configuration::Configuration;
use super::options::{Options, Peers};
use super::summary::Measurement;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

/// A strategy of ours, with its level of sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Fsdp,
    Zero0,
    Zero1,
    Zero2,
}

impl Variant {
    pub const ALL: [Self; 4] = [Self::Fsdp, Self::Zero0, Self::Zero1, Self::Zero2];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Fsdp => "fsdp",
            Self::Zero0 => "zero0",
            Self::Zero1 => "zero1",
            Self::Zero2 => "zero2",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Fsdp => &["--strategy", "fsdp"],
            Self::Zero0 => &["--strategy", "deepspeed", "--zero_stage", "0"],
            Self::Zero1 => &["--strategy", "deepspeed", "--zero_stage", "1"],
            Self::Zero2 => &["--strategy", "deepspeed", "--zero_stage", "2"],
        }
    }
}

/// A program in benches/peers, with or without jemalloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    name: &'static str,
    program: &'static str,
    jemalloc: bool,
    /// Whether it can cut layers over ranks.
    tensor_parallel: bool,
}

impl Peer {
    pub const ALL: [Self; 7] = [
        Self::new("naive", "naive.py", false),
        Self::new("tuned", "tuned.py", false),
        Self::new("tuned+jemalloc", "tuned.py", true),
        Self::new("hand-tuned", "hand_tuned.py", false),
        Self::new("hand-tuned+jemalloc", "hand_tuned.py", true),
        Self {
            tensor_parallel: false,
            ..Self::new("ddp", "ddp.py", false)
        },
        Self {
            tensor_parallel: false,
            ..Self::new("ddp+jemalloc", "ddp.py", true)
        },
    ];

    const fn new(name: &'static str, program: &'static str, jemalloc: bool) -> Self {
        Self {
            name,
            program,
            jemalloc,
            tensor_parallel: true,
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name == name)
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it can train this at all.
    pub fn suits(&self, configuration: &Configuration) -> bool {
        self.tensor_parallel || configuration.tp == 1
    }
}

/// One side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Ours(Variant),
    Peer(Peer),
}

impl Contender {
    pub fn name(&self) -> String {
        match self {
            Self::Ours(variant) => format!("tandem {}", variant.name()),
            Self::Peer(peer) => peer.name().to_owned(),
        }
    }

    /// One turn: fresh processes that train `steps` measured steps.
    ///
    /// # Errors
    /// If it cannot be started, fails, or does not print what it should.
    pub fn run(
        &self,
        configuration: &Configuration,
        steps: usize,
        place: &Place,
    ) -> Result<Measurement> {
        let output = self
            .command(configuration, steps, place)
            .stdin(Stdio::null())
            .output()
            .context("cannot start it")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}\n{}",
            output.status,
            complaint.trim_end()
        );
        Measurement::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn command(&self, configuration: &Configuration, steps: usize, place: &Place) -> Command {
        let mut command = match self {
            Self::Ours(variant) => {
                let mut command = Command::new(&place.binary);
                if let Some(libtorch) = &place.libtorch {
                    libtorch.give_to(&mut command);
                }
                command
                    .args(["bench", "step", "--dtype", "bf16", "--json"])
                    .args(variant.flags());
                command
            }
            Self::Peer(peer) => {
                let mut command = Command::new(&place.python);
                // No __pycache__ in the checkout.
                command.arg("-B").arg(place.programs.join(peer.program));
                if let Some(library) = place.jemalloc.as_ref().filter(|_| peer.jemalloc) {
                    command
                        .env("LD_PRELOAD", library)
                        .env("MALLOC_CONF", JEMALLOC_SETTINGS);
                }
                command
            }
        };
        for (flag, number) in [
            ("--layers", configuration.layers),
            ("--seq", configuration.seq),
            ("--batch", configuration.batch),
            ("--tp", configuration.tp),
            ("--dp", configuration.dp),
            ("--steps", steps),
        ] {
            command.arg(flag).arg(number.to_string());
        }
        command
    }
}

/// What PyTorch's performance tuning guide recommends: freed memory stays with the process.
const JEMALLOC_SETTINGS: &str = "oversize_threshold:1,background_thread:true,metadata_thp:auto,dirty_decay_ms:9000000000,muzzy_decay_ms:9000000000";

/// Where distributions put jemalloc.
const JEMALLOC_PATHS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
    "/usr/lib64/libjemalloc.so.2",
    "/usr/lib/libjemalloc.so.2",
    "/usr/local/lib/libjemalloc.so.2",
];

/// Where on this machine the contenders are, and which peers can run.
#[derive(Debug)]
pub struct Place {
    pub binary: PathBuf,
    /// What ours compute with; the peers have their Python's.
    pub libtorch: Option<Libtorch>,
    pub programs: PathBuf,
    pub python: PathBuf,
    pub jemalloc: Option<PathBuf>,
    pub peers: Vec<Peer>,
}

impl Place {
    /// # Errors
    /// If a peer that was asked for by name cannot run.
    pub fn find(
        workspace: &Workspace,
        libtorch: Option<Libtorch>,
        options: &Options,
    ) -> Result<Self> {
        let python = options.python.clone().unwrap_or_else(default_python);
        let mut place = Self {
            binary: match &options.binary {
                Some(binary) => binary.clone(),
                None => workspace.release_binary("tandem")?,
            },
            libtorch,
            programs: workspace.root().join("benches/peers"),
            jemalloc: options.jemalloc.clone().or_else(find_jemalloc),
            python,
            peers: Vec::new(),
        };
        let (wanted, named) = match &options.peers {
            Peers::Available => (Peer::ALL.to_vec(), false),
            Peers::Named(peers) => (peers.clone(), true),
        };
        if wanted.is_empty() {
            return Ok(place);
        }
        let torch = torch_version(&place.python);
        for peer in wanted {
            match place.obstacle(&peer, torch.as_deref()) {
                None => place.peers.push(peer),
                Some(obstacle) if named => bail!("{} cannot run: {obstacle}", peer.name),
                Some(obstacle) => println!("not measured: {}, because {obstacle}", peer.name),
            }
        }
        Ok(place)
    }

    /// Why a peer cannot run here.
    fn obstacle(&self, peer: &Peer, torch: Option<&str>) -> Option<String> {
        if torch.is_none() {
            Some(format!(
                "`{} -c 'import torch'` does not work; benches/peers/README.md says how to install it",
                self.python.display()
            ))
        } else if peer.jemalloc && self.jemalloc.is_none() {
            Some(
                "jemalloc is not installed (Debian: libjemalloc2); --jemalloc says where it is"
                    .to_owned(),
            )
        } else {
            None
        }
    }
}

fn default_python() -> PathBuf {
    match std::env::var_os("VIRTUAL_ENV") {
        Some(environment) => Path::new(&environment).join("bin/python"),
        None => "python3".into(),
    }
}

fn find_jemalloc() -> Option<PathBuf> {
    JEMALLOC_PATHS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

fn torch_version(python: &Path) -> Option<String> {
    let arguments = ["-c", "import torch; print(torch.__version__)"].map(OsString::from);
    let output = Command::new(python).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::configuration;
    use super::*;

    fn place() -> Place {
        Place {
            binary: "/built/tandem".into(),
            programs: "/checkout/benches/peers".into(),
            libtorch: None,
            python: "/venv/bin/python".into(),
            jemalloc: Some("/lib/libjemalloc.so.2".into()),
            peers: Vec::new(),
        }
    }

    fn line(contender: Contender) -> (Vec<String>, bool) {
        let configuration = &configuration::named("tp2-dp2-long")[0];
        let command = contender.command(configuration, 7, &place());
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let preloads = command.get_envs().any(|(name, _)| name == "LD_PRELOAD");
        (
            words
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            preloads,
        )
    }

    #[test]
    fn all_contenders_get_the_same_work() {
        let work = "--layers 2 --seq 1024 --batch 2 --tp 2 --dp 2 --steps 7";
        for contender in [
            Contender::Ours(Variant::Zero1),
            Contender::Peer(Peer::ALL[0]),
        ] {
            let (words, preloads) = line(contender);
            assert!(words.join(" ").ends_with(work), "{words:?}");
            assert!(!preloads);
        }
        assert!(
            line(Contender::Ours(Variant::Zero1))
                .0
                .join(" ")
                .contains("--strategy deepspeed --zero_stage 1")
        );
        assert!(
            line(Contender::Peer(Peer::ALL[2])).1,
            "jemalloc is preloaded"
        );
    }

    #[test]
    fn a_peer_that_lacks_something_says_what() {
        let without = Place {
            jemalloc: None,
            ..place()
        };
        let obstacle = without.obstacle(&Peer::ALL[2], Some("2.13.0")).unwrap();
        assert!(obstacle.contains("libjemalloc2"), "{obstacle}");
        assert_eq!(without.obstacle(&Peer::ALL[1], Some("2.13.0")), None);
        let obstacle = place().obstacle(&Peer::ALL[0], None).unwrap();
        assert!(obstacle.contains("README"), "{obstacle}");
    }

    #[test]
    fn data_parallelism_alone_is_not_asked_for_more() {
        let ddp = Peer::named("ddp").unwrap();
        assert!(ddp.suits(&configuration::named("dp2")[0]));
        assert!(!ddp.suits(&configuration::named("tp2-dp2")[0]));
    }

    #[test]
    fn names_lead_back_to_what_they_name() {
        for variant in Variant::ALL {
            assert_eq!(Variant::named(variant.name()), Some(variant));
        }
        for peer in Peer::ALL {
            assert_eq!(Peer::named(peer.name()), Some(peer));
        }
    }
}
