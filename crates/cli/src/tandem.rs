//! The `tandem` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::bench_step::{self, BenchStepArgs};
use crate::export::{self, ExportArgs};
use crate::failure::{Failure, Outcome};
use crate::inspect::{self, InspectArgs};
use crate::local::{self, Supervision};
use crate::replay::{self, ReplayArgs};
use crate::session::{Ended, Role, end, end_worker};

/// Tools around training.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(ReplayArgs),
    Export(ExportArgs),
    Inspect(InspectArgs),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
enum Bench {
    Step(BenchStepArgs),
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match Role::detect() {
        Err(failure) => end(Err(failure)),
        Ok(Role::Worker { env, control }) => {
            let result = match &cli.command {
                Command::Export(_) | Command::Inspect(_) => Err(Failure::usage(
                    "export and inspect are single processes; start them without RANK and WORLD_SIZE",
                )),
                Command::Replay(args) => replay::run_worker(args, &env),
                Command::Bench(Bench::Step(args)) => bench_step::run_worker(args, &env),
            };
            end_worker(
                &env,
                control,
                result.map(|()| Ended::Finished(Default::default())),
            )
        }
        Ok(Role::Controller) => end(match &cli.command {
            Command::Replay(args) => replay_with_workers(args),
            Command::Export(args) => export::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Bench(Bench::Step(args)) => bench_step::run(args),
        }),
    }
}

/// Workers replay the case under a scratch run folder; then this process compares.
fn replay_with_workers(args: &ReplayArgs) -> Outcome<i32> {
    let (mesh, case) = args.check_flags()?;
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let code = local::run_workers(
        mesh.world_size(),
        scratch.path(),
        &[],
        Supervision::NONE,
        &mut |_| {},
    )?;
    if code == 0 && args.check {
        replay::check(args, &case)?;
    }
    Ok(code)
}
