//! The `tandem` command.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tandem_launch::exit_code;
use tandem_launch::say;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::libtorch::{self, Libtorch};
use tandem_run::session::{Ended, Role, end, end_worker};
use tandem_run::spec::wire;
use tandem_run::start::local::{self, Supervision};

use crate::bench_step::{self, BenchStepArgs};
use crate::data::{self, DataCommand};
use crate::doctor::{self, DoctorArgs};
use crate::eval::{self, EvalArgs};
use crate::export::{self, ExportArgs};
use crate::gpu;
use crate::init::{self, InitArgs};
use crate::inspect::{self, InspectArgs};
use crate::plan::{self, PlanArgs};
use crate::replay::{self, ReplayArgs};
use crate::report::{self, ReportArgs};

const AFTER_HELP: &str = "\
This program is also train_fsdp and train_deepspeed: under these names, or with one of them as its first argument.";

/// Tools around training.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, about, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Eval(EvalArgs),
    Replay(ReplayArgs),
    Init(InitArgs),
    Export(ExportArgs),
    Inspect(InspectArgs),
    Doctor(DoctorArgs),
    Report(ReportArgs),
    Plan(Box<PlanArgs>),
    #[command(subcommand)]
    Data(DataCommand),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(Bench),
    /// Print the JSON schema of the request that the Ray driver takes (docs/ray.md).
    Schema,
}

#[derive(Debug, Subcommand)]
enum Bench {
    Step(BenchStepArgs),
}

/// Parses the command line behind the program's name and runs it.
pub fn main(args: &[OsString], environment: &Environment) -> ExitCode {
    let name = OsString::from("tandem");
    let cli = Cli::parse_from(std::iter::once(&name).chain(args));
    match Role::detect(environment) {
        Err(failure) => end(Err(failure)),
        Ok(Role::Worker { env, control }) => {
            let result = match &cli.command {
                Command::Init(_)
                | Command::Export(_)
                | Command::Inspect(_)
                | Command::Report(_)
                | Command::Data(_)
                | Command::Schema => Err(Failure::usage(
                    "init, export, inspect, report, data and schema are single processes; start them without RANK and WORLD_SIZE",
                )),
                Command::Eval(args) => eval::run_worker(args, &env, &control, environment),
                Command::Replay(args) => replay::run_worker(args, &env),
                Command::Plan(args) => plan::run_worker(args, &env, environment),
                Command::Doctor(args) => gpu::run_worker(&args.gpu, &env, environment),
                Command::Bench(Bench::Step(args)) => {
                    bench_step::run_worker(args, &env, environment)
                }
            };
            end_worker(
                &env,
                control,
                result.map(|()| Ended::Finished(Default::default())),
            )
        }
        Ok(Role::Controller) => end(match &cli.command {
            Command::Eval(own) => eval::run(own, args, environment),
            Command::Replay(own) => replay_with_workers(own, args),
            Command::Init(args) => init::run(args),
            Command::Export(args) => export::run(args, environment),
            Command::Inspect(args) => inspect::run(args, environment),
            Command::Doctor(args) if args.gpu.gpu => gpu::run(&args.gpu, environment),
            Command::Doctor(args) => doctor::run(args, environment),
            Command::Report(args) => report::run(args),
            Command::Plan(own) => plan::run(own, args),
            Command::Data(command) => data::run(command),
            Command::Bench(Bench::Step(own)) => bench_step::run(own, args),
            Command::Schema => print_schema(),
        }),
    }
}

/// Workers replay the case under a scratch run folder; then this process compares.
fn replay_with_workers(args: &ReplayArgs, line: &[OsString]) -> Outcome<i32> {
    let (spec, case) = args.check_flags()?;
    let workers = libtorch::workers(spec.mesh.world_size(), args.transport.into());
    let libtorch = Libtorch::ready(args.device, workers)?;
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let code = local::run_workers(
        libtorch,
        line,
        spec.mesh.world_size(),
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

fn print_schema() -> Outcome<i32> {
    let text = serde_json::to_string_pretty(&wire::request_schema()).map_err(Failure::other)?;
    say!("{text}")?;
    Ok(exit_code::OK)
}
