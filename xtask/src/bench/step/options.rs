//! The command line of `cargo xtask bench step`.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use lexopt::prelude::*;

use super::configuration::{self, Configuration, DEFAULT_GROUP};
use super::contender::{Peer, Variant};

pub const USAGE: &str = "\
Usage: cargo xtask bench step [OPTION]...

Builds with optimisation and trains a cut Qwen2-0.5B, or a model of another family, or adapters of one (random weights, packed
random tokens, bf16) with ours and with PyTorch programs (benches/peers; Qwen2-0.5B only), taking turns. Prints step time, tokens/s, peak memory per rank and ratios, and stores all numbers
in benches/runs/<date>/.

  --config NAME,...    Configurations or groups of them; repeatable (default: matrix). See --list.
  --list               The configurations there are.
  --ours VARIANT,...   fsdp, zero0, zero1, zero2 (default: all of them).
  --peers PEER,...     none, all, or of: naive, tuned, hand-tuned, ddp (where tp is 1); the last three also as
                       tuned+jemalloc, ... (default: all that can run here; one that is named must run).
  --peers-only         Do not build or run ours.
  --guard              Measure ours alone in the configurations that benches/limits.json names, and fail where a limit of
                       it is exceeded: distance from the floor, memory, page faults. FSDP unless --ours says otherwise.
  --steps N            Steps measured in a turn (default: 10).
  --turns N            Turns of each contender (default: 3).
  --python PATH        The Python that has torch (default: python of $VIRTUAL_ENV, else python3).
  --jemalloc PATH      The library to preload (default: where distributions put it).
  --binary PATH        The `tandem` to measure instead of building one.
  --output DIR         Where to store the numbers (default: benches/runs).
";

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    Help,
    List,
    Measure(Options),
}

/// What to measure, and how often.
#[derive(Debug)]
pub struct Options {
    pub configurations: Vec<Configuration>,
    pub ours: Vec<Variant>,
    pub peers: Peers,
    pub peers_only: bool,
    pub guard: bool,
    pub steps: usize,
    pub turns: usize,
    pub python: Option<PathBuf>,
    pub jemalloc: Option<PathBuf>,
    pub binary: Option<PathBuf>,
    pub output: Option<PathBuf>,
}

/// Which peers run.
#[derive(Debug, PartialEq, Eq)]
pub enum Peers {
    /// All that can; the others are named in the output.
    Available,
    /// These, or it is an error.
    Named(Vec<Peer>),
}

/// # Errors
/// What is not understood, by name.
pub fn parse(mut arguments: lexopt::Parser) -> Result<Request> {
    let mut options = Options {
        configurations: Vec::new(),
        ours: Vec::new(),
        peers: Peers::Available,
        peers_only: false,
        guard: false,
        steps: 10,
        turns: 3,
        python: None,
        jemalloc: None,
        binary: None,
        output: None,
    };
    let (mut ours, mut peers_are_given) = (None, false);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Request::Help),
            Long("list") => return Ok(Request::List),
            Long("config") => {
                for name in arguments.value()?.string()?.split(',') {
                    options.configurations.extend(configurations(name)?);
                }
            }
            Long("ours") => {
                let names = arguments.value()?.string()?;
                ours = Some(one_of("variant", &names, Variant::named)?);
            }
            Long("peers") => {
                options.peers = peers(&arguments.value()?.string()?)?;
                peers_are_given = true;
            }
            Long("peers-only") => options.peers_only = true,
            Long("guard") => options.guard = true,
            Long("steps") => options.steps = arguments.value()?.parse()?,
            Long("turns") => options.turns = arguments.value()?.parse()?,
            Long("python") => options.python = Some(arguments.value()?.into()),
            Long("jemalloc") => options.jemalloc = Some(arguments.value()?.into()),
            Long("binary") => options.binary = Some(arguments.value()?.into()),
            Long("output") => options.output = Some(arguments.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.steps == 0 || options.turns == 0 {
        bail!("--steps and --turns must be 1 at least");
    }
    options.ours = ours.unwrap_or_else(|| match options.guard {
        true => vec![Variant::Fsdp],
        false => Variant::ALL.to_vec(),
    });
    if options.guard {
        if options.peers_only || peers_are_given {
            bail!("--guard measures ours alone: leave out --peers and --peers-only");
        }
        options.peers = Peers::Named(Vec::new());
    } else if options.configurations.is_empty() {
        options.configurations = configuration::named(DEFAULT_GROUP);
    }
    Ok(Request::Measure(options))
}

fn configurations(name: &str) -> Result<Vec<Configuration>> {
    let found = configuration::named(name);
    if found.is_empty() {
        bail!("there is no configuration `{name}`; --list shows them");
    }
    Ok(found)
}

fn peers(text: &str) -> Result<Peers> {
    match text {
        "all" => Ok(Peers::Available),
        "none" => Ok(Peers::Named(Vec::new())),
        names => Ok(Peers::Named(one_of("peer", names, Peer::named)?)),
    }
}

fn one_of<T>(kind: &str, names: &str, named: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let each = names.split(',');
    each.map(|name| named(name).ok_or_else(|| anyhow!("there is no {kind} `{name}`; see --help")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options> {
        match parse(lexopt::Parser::from_args(arguments))? {
            Request::Measure(options) => Ok(options),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn the_whole_matrix_is_measured_unless_told_otherwise() {
        let options = parsed(&[]).unwrap();
        assert_eq!(options.configurations.len(), 6);
        assert_eq!(options.ours, Variant::ALL);
        assert_eq!(options.peers, Peers::Available);
    }

    #[test]
    fn lists_are_read() {
        let options = parsed(&[
            "--config",
            "tp2,dp2",
            "--config",
            "ranks",
            "--ours=zero1",
            "--peers",
            "naive,tuned+jemalloc",
        ]);
        let options = options.unwrap();
        assert_eq!(options.configurations.len(), 6);
        assert_eq!(options.ours, [Variant::Zero1]);
        let Peers::Named(peers) = options.peers else {
            panic!("not named")
        };
        assert_eq!(
            peers.iter().map(Peer::name).collect::<Vec<_>>(),
            ["naive", "tuned+jemalloc"]
        );
        assert_eq!(
            parsed(&["--peers", "none"]).unwrap().peers,
            Peers::Named(Vec::new())
        );
    }

    #[test]
    fn the_guard_measures_ours_alone_and_knows_its_configurations() {
        let options = parsed(&["--guard"]).unwrap();
        assert!(options.configurations.is_empty());
        assert_eq!(options.ours, [Variant::Fsdp]);
        assert_eq!(options.peers, Peers::Named(Vec::new()));
        let all = parsed(&["--guard", "--ours", "fsdp,zero0,zero1,zero2"]).unwrap();
        assert_eq!(all.ours, Variant::ALL);
        let error = parsed(&["--guard", "--peers", "all"]).unwrap_err();
        assert!(error.to_string().contains("--peers"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (arguments, part) in [
            (["--config", "lunch"], "`lunch`"),
            (["--ours", "zero3"], "`zero3`"),
            (["--peers", "jax"], "`jax`"),
            (["--steps", "0"], "--steps"),
            (["--guard", "--peers-only"], "--guard"),
        ] {
            let error = parsed(&arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
