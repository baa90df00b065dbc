//! The two entry points: `train_deepspeed` and `train_fsdp`.

mod controller;
mod identity;
mod model_files;
mod resume;
mod training;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{DeepSpeedArgs, FsdpArgs};
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
    match Role::detect() {
        Err(failure) => end(Err(failure)),
        Ok(Role::Controller) => end(controller::run(request)),
        Ok(Role::Worker { env, control }) => {
            let result = training::run(request, &env, &control);
            end_worker(&env, control, result)
        }
    }
}
