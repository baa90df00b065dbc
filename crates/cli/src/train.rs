//! The two entry points: `train_deepspeed` and `train_fsdp`.

mod checked;
mod controller;
mod identity;
mod model_files;
mod ray;
mod resume;
mod training;

use std::process::ExitCode;

use clap::Parser;
use tandem_launch::exit_code;

use crate::args::{DeepSpeedArgs, FsdpArgs};
use crate::cluster_args::Cluster;
use crate::failure::Failure;
use crate::request::Request;
use crate::session::{Role, end, end_worker};

/// `train_deepspeed`
pub fn main_deepspeed() -> ExitCode {
    main(&Request::DeepSpeed(DeepSpeedArgs::parse()))
}

/// `train_fsdp`
pub fn main_fsdp() -> ExitCode {
    main(&Request::Fsdp(FsdpArgs::parse()))
}

fn main(request: &Request) -> ExitCode {
    let cluster = &request.common().cluster;
    if cluster.check_flags {
        return end(request.check().map(|_| exit_code::OK));
    }
    match (Role::detect(), cluster.cluster) {
        (Err(failure), _) => end(Err(failure)),
        (Ok(Role::Controller), Cluster::Local) => end(controller::run(request)),
        (Ok(Role::Controller), Cluster::Ray) => end(ray::run(request)),
        (Ok(Role::Worker { env, .. }), Cluster::Ray) => end(Err(Failure::usage(format!(
            "--cluster ray starts workers, but the environment says that this process is one ({:?}, rank {}); \
             leave out --cluster ray, or unset the launcher's variables",
            env.source, env.rank
        )))),
        (Ok(Role::Worker { env, control }), Cluster::Local) => {
            let result = training::run(request, &env, &control);
            end_worker(&env, control, result)
        }
    }
}
