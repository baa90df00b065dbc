//! `cargo xtask`: everything a developer or a CI machine does with this checkout besides `cargo build`.
//!
//! It depends on nothing that needs libtorch, because fetching libtorch is its first task.

mod bench;
mod build_time;
mod demo;
mod gpu;
mod metrics;
mod python_environment;
mod real_model;
mod setup;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use lexopt::prelude::*;

use crate::bench::Bench;
use crate::setup::releases::Release;
use crate::workspace::Workspace;

const USAGE: &str = "\
Usage: cargo xtask <task>

  setup [--torch VERSION] [--force]
                           Make libtorch available in .libtorch: $LIBTORCH, a Python torch, or wheels fetched with pip.
                           With --torch, fetch and use that version (2.10 to 2.15); others that were fetched stay. With
                           --force, choose again even when a working one is there.
  test [--long [--kills N]] [--torch VERSION[,VERSION]...] [FILTER]
                           Set up, then check formatting, lints, docs and tidiness and run all tests, and some of them again
                           with the oldest libtorch. --long adds the tests that take minutes, among them one that kills
                           as many processes as --kills says; with FILTER, only tests with that in their name run
                           (`fuzz`, `crash_matrix`, `exports`), and no lints. With --torch, run only the tests that depend on
                           libtorch, with each of these versions.
  demo [--steps N]         Set up, build, then train a small model on real text with 2 x 2 workers, with one strategy and
                           with the other, and show how the loss fell.
  real-model               Set up, build, fetch SmolLM2-135M-Instruct, fine-tune it on real text on two meshes, export it,
                           measure its perplexity before and after, and hold it against transformers. It needs 8 GB of
                           memory and 10 GB of disk.
  build-time [--features F]
                           Build with optimisation from nothing, and show which packages took how many CPU seconds.
  gpu [ARG]...             Build with optimisation and check all that a GPU does, beside the same work in PyTorch; the arguments
                           are those of `tandem doctor --gpu` (docs/gpu.md).
  bench NAME [ARG]...      Set up, build with optimisation and measure: step, comm, checkpoint, recovery, tokenize, plan or ray.
";

/// What the command line asked for.
#[derive(Debug, PartialEq)]
enum Task {
    Help,
    Setup(setup::Request),
    Test(test::Options),
    Demo { steps: usize },
    RealModel,
    BuildTime { features: Option<String> },
    Gpu(Vec<OsString>),
    Bench(Bench, Vec<OsString>),
}

fn main() -> ExitCode {
    if let Some(code) = build_time::as_compiler() {
        return code;
    }
    let task = match parse(lexopt::Parser::from_env()) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::of_this_checkout();
    match task {
        Task::Help => print!("{USAGE}"),
        Task::Setup(request) => drop(setup::run(&workspace, &request)?),
        Task::Test(options) => test::run(&workspace, &options)?,
        Task::Demo { steps } => demo::run(&workspace, steps)?,
        Task::RealModel => real_model::run(&workspace)?,
        Task::BuildTime { features } => build_time::run(&workspace, features.as_deref())?,
        Task::Gpu(arguments) => gpu::run(&workspace, &arguments)?,
        Task::Bench(bench, arguments) => bench::run(&workspace, bench, &arguments)?,
    }
    Ok(())
}

fn parse(mut arguments: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let name = match arguments.next()? {
        None | Some(Long("help") | Short('h')) => return Ok(Task::Help),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected()),
    };
    match name.as_str() {
        "help" => Ok(Task::Help),
        "setup" => {
            let mut request = setup::Request::default();
            while let Some(argument) = arguments.next()? {
                match argument {
                    Long("force") => request.force = true,
                    Long("torch") => {
                        request.release = Some(release(&arguments.value()?.string()?)?)
                    }
                    other => return Err(other.unexpected()),
                }
            }
            Ok(Task::Setup(request))
        }
        "test" => {
            let mut options = test::Options::default();
            while let Some(argument) = arguments.next()? {
                match argument {
                    Long("long") => options.long = true,
                    Long("kills") => options.kills = Some(arguments.value()?.parse()?),
                    Long("torch") => {
                        let names = arguments.value()?.string()?;
                        let releases: Result<Vec<_>, _> = names.split(',').map(release).collect();
                        options.torch.extend(releases?);
                    }
                    Value(filter) if options.filter.is_none() => {
                        options.filter = Some(filter.string()?);
                    }
                    other => return Err(other.unexpected()),
                }
            }
            if options.kills.is_some() && !options.long {
                return Err(
                    "--kills is for --long: only its tests kill as often as they are told".into(),
                );
            }
            Ok(Task::Test(options))
        }
        "demo" => {
            let mut steps = demo::DEFAULT_STEPS;
            while let Some(argument) = arguments.next()? {
                match argument {
                    Long("steps") => steps = arguments.value()?.parse()?,
                    other => return Err(other.unexpected()),
                }
            }
            if steps < 2 {
                return Err("--steps must be 2 at least, for a loss to fall".into());
            }
            Ok(Task::Demo { steps })
        }
        "real-model" => match arguments.next()? {
            None => Ok(Task::RealModel),
            Some(other) => Err(other.unexpected()),
        },
        "build-time" => {
            let mut features = None;
            while let Some(argument) = arguments.next()? {
                match argument {
                    Long("features") => features = Some(arguments.value()?.string()?),
                    other => return Err(other.unexpected()),
                }
            }
            Ok(Task::BuildTime { features })
        }
        "gpu" => Ok(Task::Gpu(arguments.raw_args()?.collect())),
        "bench" => {
            let name = arguments.value()?.string()?;
            let bench =
                Bench::named(&name).ok_or_else(|| format!("there is no benchmark `{name}`"))?;
            Ok(Task::Bench(bench, arguments.raw_args()?.collect()))
        }
        other => Err(format!("there is no task `{other}`").into()),
    }
}

fn release(name: &str) -> Result<&'static Release, lexopt::Error> {
    Release::named(name).map_err(|error| lexopt::Error::Custom(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Task, String> {
        parse(lexopt::Parser::from_args(arguments)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_task_and_its_options_are_read() {
        assert_eq!(parsed(&[]), Ok(Task::Help));
        let request = setup::Request::default();
        assert_eq!(parsed(&["setup"]), Ok(Task::Setup(request)));
        let request = setup::Request {
            force: true,
            release: None,
        };
        assert_eq!(parsed(&["setup", "--force"]), Ok(Task::Setup(request)));
        let named = |name| Release::named(name).expect("a release");
        let request = setup::Request {
            force: false,
            release: Some(named("2.11.0")),
        };
        assert_eq!(
            parsed(&["setup", "--torch", "2.11"]),
            Ok(Task::Setup(request))
        );
        let options = test::Options {
            long: true,
            filter: Some("replay".into()),
            ..test::Options::default()
        };
        assert_eq!(
            parsed(&["test", "--long", "replay"]),
            Ok(Task::Test(options))
        );
        let options = test::Options {
            torch: vec![named("2.10"), named("2.15")],
            ..test::Options::default()
        };
        assert_eq!(
            parsed(&["test", "--torch=2.10,2.15.0"]),
            Ok(Task::Test(options))
        );
        let options = test::Options {
            long: true,
            kills: Some(1000),
            ..test::Options::default()
        };
        assert_eq!(
            parsed(&["test", "--long", "--kills", "1000"]),
            Ok(Task::Test(options))
        );
        assert_eq!(parsed(&["demo", "--steps=9"]), Ok(Task::Demo { steps: 9 }));
        assert_eq!(parsed(&["real-model"]), Ok(Task::RealModel));
        let task = Task::BuildTime {
            features: Some("object-storage".into()),
        };
        assert_eq!(
            parsed(&["build-time", "--features", "object-storage"]),
            Ok(task)
        );
        let task = Task::Gpu(vec!["--device".into(), "cpu".into()]);
        assert_eq!(parsed(&["gpu", "--device", "cpu"]), Ok(task));
        let task = Task::Bench(Bench::Comm, vec!["--ranks".into(), "2".into()]);
        assert_eq!(parsed(&["bench", "comm", "--ranks", "2"]), Ok(task));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = parsed(&["deploy"]).expect_err("no such task");
        assert!(error.contains("`deploy`"), "{error}");
        let error = parsed(&["setup", "--fast"]).expect_err("no such option");
        assert!(error.contains("--fast"), "{error}");
        let error = parsed(&["setup", "--torch", "2.9"]).expect_err("too old");
        assert!(
            error.contains("torch 2.9 is too old") && error.contains("2.10.0"),
            "{error}"
        );
        let error = parsed(&["test", "--torch", "2.15,2.99"]).expect_err("unknown");
        assert!(error.contains("2.99"), "{error}");
        let error = parsed(&["real-model", "--steps", "9"]).expect_err("no such option");
        assert!(error.contains("--steps"), "{error}");
        let error = parsed(&["bench", "lunch"]).expect_err("no such benchmark");
        assert!(error.contains("`lunch`"), "{error}");
        assert!(
            parsed(&["demo", "--steps", "1"]).is_err(),
            "one step shows nothing"
        );
        let error = parsed(&["test", "--kills", "9"]).expect_err("it would kill nobody");
        assert!(error.contains("--long"), "{error}");
        assert!(parsed(&["test", "one", "two"]).is_err(), "one filter only");
    }
}
