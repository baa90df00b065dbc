//! Where on this machine the contenders are, which of the peers can run, and the command that runs each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::configuration::Configuration;
use super::contender::{Contender, Peer};
use super::options::{Options, Peers};
use super::summary::Measurement;
use crate::setup::Libtorch;
use crate::workspace::Workspace;

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
                Some(obstacle) if named => bail!("{} cannot run: {obstacle}", peer.name()),
                Some(obstacle) => println!("not measured: {}, because {obstacle}", peer.name()),
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
        } else if peer.has_jemalloc() && self.jemalloc.is_none() {
            Some(
                "jemalloc is not installed (Debian: libjemalloc2); --jemalloc says where it is"
                    .to_owned(),
            )
        } else {
            None
        }
    }

    /// One turn of a contender: fresh processes that train `steps` measured steps.
    ///
    /// # Errors
    /// If it cannot be started, fails, or does not print what it should.
    pub fn run(
        &self,
        contender: &Contender,
        configuration: &Configuration,
        steps: usize,
    ) -> Result<Measurement> {
        let output = self
            .command(contender, configuration, steps)
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

    fn command(
        &self,
        contender: &Contender,
        configuration: &Configuration,
        steps: usize,
    ) -> Command {
        let mut command = match contender {
            Contender::Ours(variant) => {
                let mut command = Command::new(&self.binary);
                if let Some(libtorch) = &self.libtorch {
                    libtorch.give_to(&mut command);
                }
                command
                    .args(["bench", "step", "--dtype", "bf16", "--json"])
                    .args(variant.flags())
                    .args(["--model", configuration.model, "--lora_r"])
                    .arg(configuration.lora_r.to_string());
                // Builds from before the flag are measured too.
                if configuration.ep > 1 {
                    let ranks = configuration.ep.to_string();
                    command.args(["--expert_parallel_size", &ranks]);
                }
                command
            }
            Contender::Peer(peer) => {
                let mut command = Command::new(&self.python);
                // No __pycache__ in the checkout.
                command.arg("-B").arg(self.programs.join(peer.program()));
                if let Some(library) = self.jemalloc.as_ref().filter(|_| peer.has_jemalloc()) {
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
    use super::super::contender::Variant;
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
        let command = place().command(&contender, configuration, 7);
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
        let ours = line(Contender::Ours(Variant::Zero1)).0.join(" ");
        assert!(ours.contains("--strategy deepspeed --zero_stage 1"));
        assert!(ours.contains("--model qwen2 --lora_r 0"));
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
}
