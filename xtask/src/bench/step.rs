//! `cargo xtask bench step`: whole training steps of ours and of PyTorch programs, at equal work, in the same run.
//!
//! Contenders take turns (A B A B), each time in fresh processes, so that a machine that gets slower or busier slows all of
//! them. What a contender took is the median over its turns of its median step; what is worth keeping is the ratio.

mod configuration;
mod contender;
mod guard;
mod machine;
mod options;
mod place;
mod record;
mod summary;
mod table;

use std::ffi::OsString;

use anyhow::{Result, bail, ensure};

use self::configuration::Configuration;
use self::contender::Contender;
use self::guard::Guard;
use self::machine::Machine;
use self::options::{Options, Request};
use self::place::Place;
use self::summary::Summary;
use crate::setup;
use crate::workspace::Workspace;

/// Measures what `arguments` ask for, prints a table per configuration and stores everything as JSON.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<()> {
    let mut options = match options::parse(lexopt::Parser::from_args(arguments))? {
        Request::Help => {
            print!("{}", options::USAGE);
            return Ok(());
        }
        Request::List => {
            print!("{}", configuration::list());
            return Ok(());
        }
        Request::Measure(options) => options,
    };
    let guard = match options.guard {
        true => Some(Guard::load(workspace)?),
        false => None,
    };
    if let Some(guard) = &guard
        && options.configurations.is_empty()
    {
        options.configurations = guard.configurations();
    }
    let mut libtorch = None;
    if !options.peers_only {
        libtorch = Some(setup::run(workspace, &setup::Request::default())?);
        workspace.build_release()?;
    }
    let place = Place::find(workspace, libtorch, &options)?;
    let machine = Machine::look(workspace)?;
    println!("{machine}");
    let mut results = Vec::new();
    for configuration in &options.configurations {
        let contenders = contenders(configuration, &options, &place);
        ensure!(!contenders.is_empty(), "nothing is left to be measured");
        results.push(measure(configuration, &contenders, &options, &place)?);
        // Stored after each, because the whole matrix takes long and may be cut off.
        record::store(workspace, &options, &machine, &results)?;
    }
    println!(
        "\nstored in {}",
        record::path(workspace, &options, &machine).display()
    );
    if results
        .iter()
        .flat_map(|(_, summaries)| summaries)
        .any(Summary::failed)
    {
        bail!("some contenders failed; see above");
    }
    guard.map_or(Ok(()), |guard| guard.check(&results))
}

/// Ours first: the ratios are to the first.
fn contenders(configuration: &Configuration, options: &Options, place: &Place) -> Vec<Contender> {
    let ours = options.ours.iter().filter(|_| !options.peers_only);
    let ours = ours.filter(|variant| configuration.tells_apart(**variant));
    let peers = place
        .peers
        .iter()
        .filter(|peer| configuration.suits_peers() && peer.suits(configuration.tp));
    ours.map(|variant| Contender::Ours(*variant))
        .chain(peers.map(|peer| Contender::Peer(*peer)))
        .collect()
}

fn measure(
    configuration: &Configuration,
    contenders: &[Contender],
    options: &Options,
    place: &Place,
) -> Result<(Configuration, Vec<Summary>)> {
    println!("\n== {configuration}");
    let mut summaries: Vec<_> = contenders.iter().copied().map(Summary::new).collect();
    for turn in 1..=options.turns {
        for summary in summaries.iter_mut().filter(|summary| !summary.failed()) {
            let name = summary.contender.name();
            match place.run(&summary.contender, configuration, options.steps) {
                Ok(measurement) => {
                    println!("turn {turn}: {name} {:.3} s", measurement.step_time_s);
                    summary.measurements.push(measurement);
                }
                // The others can still be compared.
                Err(error) => {
                    eprintln!("turn {turn}: {name} failed: {error:#}");
                    summary.error = Some(format!("{error:#}"));
                }
            }
        }
    }
    print!("\n{}", table::draw(&summaries));
    Ok((configuration.clone(), summaries))
}
