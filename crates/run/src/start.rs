//! Starting a run: on this machine, on Ray, or, where a launcher has started this process, as one of the workers.

mod checked;
mod checked_only;
mod controller;
mod lease;
pub mod local;
mod ray;

#[cfg(feature = "testing")]
pub use lease::start_beside;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::environment::Environment;
use crate::failure::{Failure, Outcome};
use crate::session::{Role, end, end_worker};
use crate::spec::{Cluster, RunSpec};
use crate::worker;
pub use checked_only::check;

/// Does this process's part of the run, to the end. Workers on this machine are this program with `args`. A worker tells
/// its controller about a spec that is none.
pub fn train(spec: Outcome<RunSpec>, args: &[OsString], environment: &Environment) -> ExitCode {
    let (env, control) = match Role::detect(environment) {
        Err(failure) => return end(Err(failure)),
        Ok(Role::Worker { env, control }) => (env, control),
        Ok(Role::Controller) => {
            return end(spec.and_then(|spec| match &spec.cluster.ray {
                None => controller::run(&spec, args, environment),
                Some(ray) => ray::run(&spec, ray, environment),
            }));
        }
    };
    if let Ok(RunSpec {
        cluster: Cluster { ray: Some(_), .. },
        ..
    }) = spec
    {
        return end(Err(Failure::usage(format!(
            "--cluster ray starts workers, but the environment says that this process is one ({:?}, rank {}); \
             leave out --cluster ray, or unset the launcher's variables",
            env.source, env.rank
        ))));
    }
    let result = spec.and_then(|spec| worker::run(&spec, &env, &control, environment));
    end_worker(&env, control, result)
}
